//! Health on real mounts: things are broken as disks, kernels and people break them, and mended again.

#![expect(clippy::disallowed_methods, reason = "breaks files and filesystems as an operator could")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, check_nothing_left, read, try_write, write};
use crate::obstacles::hand_over_in_the_end;
use crate::privileged::{Sandbox, loops_below, mounts_below, poll, privileged, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Life {
    /// What the controller, its list and the node tell of the volume.
    #[track_caller]
    fn is_told(&self, driver: &Driver, expected: &[&str]) {
        assert_eq!(driver.client.health(&self.id), expected);
        let listed = driver.client.listed_health(&self.id);
        assert_eq!(listed.unwrap_or_default(), expected);
    }

    /// What the node tells of the volume where it is staged and published.
    #[track_caller]
    fn is_told_at_its_paths(&self, driver: &Driver, expected: &[&str]) {
        let told = driver.client.node_health(&self.id, &self.staging, &self.target);
        assert_eq!(told, expected);
    }

    /// N of the loop device below the volume.
    fn loop_number(&self) -> u32 {
        let mut loops = loops_below(&self.dir());
        loops.retain(|found| !found.is_view);
        assert_eq!(loops.len(), 1, "{loops:?}");
        loops[0].number
    }
}

/// Lets the kernel believe that it has found an error in an ext4. It counts it a moment later.
fn trigger_error(loop_number: u32) {
    let filesystem = Path::new("/sys/fs/ext4").join(format!("loop{loop_number}"));
    let count = || std::fs::read_to_string(filesystem.join("errors_count")).unwrap();
    let before = count();
    std::fs::write(filesystem.join("trigger_fs_error"), "1").unwrap();
    poll("the kernel has counted it", || count() != before);
}

#[test]
fn every_kind_is_well_in_every_state() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in [Kind::Hostpath, Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Block] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.is_told(&driver, &[]);
            life.up(&mut driver);
            write(kind, &life.target, "data");
            life.is_told(&driver, &[]);
            life.is_told_at_its_paths(&driver, &[]);
            driver.restart();
            life.is_told_at_its_paths(&driver, &[]);
            life.down(&mut driver);
            life.is_told(&driver, &[]);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn errors_of_an_ext4_are_told_until_it_is_checked() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "ext4");
        life.born(&mut driver);
        life.up(&mut driver);
        trigger_error(life.loop_number());
        life.is_told(&driver, &["FilesystemErrors"]);
        life.is_told_at_its_paths(&driver, &["FilesystemErrors"]);
        life.down(&mut driver);
        life.is_told(&driver, &["FilesystemErrors"]);
        life.up(&mut driver);
        life.is_told(&driver, &[]);
        // With errors=remount-ro the kernel stops it.
        run("mount", &["-o", "remount,errors=remount-ro", text(&life.target)]);
        trigger_error(life.loop_number());
        try_write(life.kind, &life.target, "no").unwrap_err();
        let told = driver.client.health(&life.id);
        // Older kernels make the filesystem read-only instead of saying that they stopped it.
        let stopped = ["FilesystemStopped", "FilesystemReadOnly"];
        assert!(told.len() == 2 && told[0] == "FilesystemErrors", "{told:?}");
        assert!(stopped.contains(&told[1].as_str()), "{told:?}");
        life.down(&mut driver);
        life.up(&mut driver);
        life.is_told(&driver, &[]);
        write(life.kind, &life.target, "yes");
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn an_xfs_that_has_shut_down_is_told_until_it_is_mounted_again() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Xfs, "xfs");
        life.born(&mut driver);
        life.up(&mut driver);
        run("xfs_io", &["-x", "-c", "shutdown -f", text(&life.target)]);
        life.is_told(&driver, &["FilesystemStopped"]);
        life.is_told_at_its_paths(&driver, &["FilesystemStopped"]);
        life.down(&mut driver);
        life.up(&mut driver);
        life.is_told_at_its_paths(&driver, &[]);
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_btrfs_with_lost_blocks_or_without_writing_is_told() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Btrfs, "btrfs");
        life.born(&mut driver);
        life.up(&mut driver);
        run("mount", &["-o", "remount,ro", text(&life.staging)]);
        life.is_told(&driver, &["FilesystemReadOnly"]);
        run("mount", &["-o", "remount,rw", text(&life.staging)]);
        life.is_told(&driver, &[]);
        let content = vec![0x5a; 1 << 20];
        std::fs::write(life.target.join("file"), &content).unwrap();
        life.down(&mut driver);
        // The disk loses a block of it.
        let at = offset_of(&life.image(), &content[..4096]);
        let image = File::options().write(true).open(life.image()).unwrap();
        image.write_all_at(&[0; 4096], at).unwrap();
        image.sync_all().unwrap();
        drop(image);
        life.up(&mut driver);
        life.is_told(&driver, &[]);
        std::fs::read(life.target.join("file")).unwrap_err();
        life.is_told(&driver, &["FilesystemErrors"]);
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

/// Where a block of that content lies in a file.
fn offset_of(path: &Path, block: &[u8]) -> u64 {
    let (file, mut buffer, mut at) = (File::open(path).unwrap(), vec![0; block.len()], 0);
    loop {
        file.read_exact_at(&mut buffer, at).expect("it lies somewhere");
        if buffer == block {
            return at;
        }
        at += u64::try_from(block.len()).unwrap();
    }
}

#[test]
fn data_and_records_that_are_lost_are_told() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let aside = sandbox.path("aside");
        for (kind, data) in [(Kind::Hostpath, "data"), (Kind::Block, "disk.img")] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            std::fs::rename(life.dir().join(data), &aside).unwrap();
            life.is_told(&driver, &["DataMissing"]);
            std::fs::rename(&aside, life.dir().join(data)).unwrap();
            let record = life.dir().join("volume.json");
            let good = std::fs::read(&record).unwrap();
            std::fs::write(&record, &good[..good.len() / 2]).unwrap();
            driver.restart();
            assert_eq!(driver.client.health(&life.id), ["RecordDamaged"]);
            std::fs::write(&record, &good).unwrap();
            life.is_told(&driver, &[]);
            if kind == Kind::Block {
                let image = File::options().write(true).open(life.image()).unwrap();
                image.set_len(kind.size() - 4096).unwrap();
                life.is_told(&driver, &["ImageTruncated"]);
            }
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn mounts_and_loop_devices_that_somebody_changed_are_told() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            run("umount", &[&life.target]);
            life.is_told_at_its_paths(&driver, &["MountMissing"]);
            if kind != Kind::Block {
                run("mount", &["-t", "tmpfs", "somebody-elses", text(&life.target)]);
                life.is_told_at_its_paths(&driver, &["MountReplaced"]);
                run("umount", &[&life.target]);
            }
            if kind != Kind::Hostpath {
                let image = life.image();
                let second = run("losetup", &["--find", "--show", text(&image)]);
                life.is_told(&driver, &["LoopConflict"]);
                run("losetup", &["--detach", second.trim()]);
                life.is_told(&driver, &[]);
            }
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_device_that_was_handed_to_another_image_is_told() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Block, "block");
        life.born(&mut driver);
        life.up(&mut driver);
        let number = hand_over_in_the_end(sandbox, &mut driver, &life);
        life.is_told_at_its_paths(&driver, &["MountReplaced"]);
        run("losetup", &["--detach", &format!("/dev/loop{number}")]);
        life.down(&mut driver);
        life.is_told(&driver, &[]);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

/// A pool on a filesystem of its own; the image, to mount it again.
fn mount_pool(sandbox: &Sandbox) -> std::path::PathBuf {
    let image = sandbox.path("pool.img");
    File::create(&image).unwrap().set_len(256 * MIB).unwrap();
    run("mkfs.ext4", &["-q", text(&image)]);
    run("mount", &["-o", "loop", text(&image), text(&sandbox.make_dir("pool"))]);
    image
}

#[test]
fn a_pool_in_trouble_is_told_of_its_volumes_and_of_storage() {
    privileged(|sandbox| {
        let image = mount_pool(sandbox);
        let pool = sandbox.path("pool");
        let number = loops_below(sandbox.dir())[0].number;
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Hostpath, "dir");
        life.born(&mut driver);
        let both = |driver: &Driver, expected: &[&str]| {
            life.is_told(driver, expected);
            assert_eq!(driver.client.storage_health(), expected);
        };
        both(&driver, &[]);
        run("mount", &["-o", "remount,ro", text(&pool)]);
        both(&driver, &["PoolReadOnly"]);
        run("mount", &["-o", "remount,rw", text(&pool)]);
        both(&driver, &[]);
        let available = nix::sys::statvfs::statvfs(&pool).unwrap();
        let available = available.blocks_available() * available.fragment_size();
        let filler = pool.join("filler");
        let bytes = (available - MIB).to_string();
        run("fallocate", &["-l", &bytes, text(&filler)]);
        both(&driver, &["PoolNearlyFull"]);
        std::fs::remove_file(&filler).unwrap();
        both(&driver, &[]);
        trigger_error(number);
        both(&driver, &["PoolFilesystemErrors"]);
        // Its disk is gone, and comes back.
        run("umount", &["--lazy", text(&pool)]);
        assert_eq!(driver.client.health(&life.id), ["PoolAway"]);
        assert_eq!(driver.client.storage_health(), ["PoolAway"]);
        run("mount", &["-o", "loop", text(&image), text(&pool)]);
        both(&driver, &["PoolFilesystemErrors"]);
        life.gone(&mut driver);
        drop(driver);
        run("umount", &[&pool]);
        assert_eq!(mounts_below(sandbox.dir()), Vec::<std::path::PathBuf>::new());
    });
}

#[test]
fn what_is_attached_read_only_cannot_be_written() {
    privileged(|sandbox| {
        let mut driver = Driver::start_with_flags(sandbox, &["--attach"]);
        for kind in [Kind::Hostpath, Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Block] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.try_stage(&driver.client).unwrap_err();
            let capability = kind.capability(life.mode);
            driver.client.attach(&life.id, &capability, false).unwrap();
            life.up(&mut driver);
            write(kind, &life.target, "written");
            life.down(&mut driver);
            driver.client.delete(&life.id).unwrap_err();
            driver.client.detach(&life.id).unwrap();
            driver.client.attach(&life.id, &capability, true).unwrap();
            // The record is what says so.
            driver.restart();
            life.up(&mut driver);
            try_write(kind, &life.target, "no").unwrap_err();
            assert_eq!(read(kind, &life.target), "written");
            life.is_told_at_its_paths(&driver, &[]);
            life.down(&mut driver);
            driver.client.detach(&life.id).unwrap();
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
