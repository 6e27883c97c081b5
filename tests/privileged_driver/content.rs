//! What becomes of data: figures, wiping, keeping, and successors of the same name.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use orlop::csi::proto::{VolumeUsage, volume_usage::Unit};
use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, device_size, read, trash_is_empty, write};
use crate::pools::PoolOn;
use crate::privileged::{Sandbox, poll, privileged, run};

const SECRET: &str = "attack at dawn";

fn usage(usages: &[VolumeUsage], unit: Unit) -> Option<(u64, u64)> {
    let found = usages.iter().find(|usage| usage.unit == i32::from(unit))?;
    Some((u64::try_from(found.total).unwrap(), u64::try_from(found.used).unwrap()))
}

#[test]
fn stats_are_those_of_the_filesystem_and_of_the_device() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            let paths = [&life.staging, &life.target];
            for path in paths {
                let stats = driver.client.stats(&life.id, path).unwrap();
                check_stats(kind, &life.target, &stats);
            }
            life.down(&mut driver);
            let gone = driver.client.stats(&life.id, &life.target);
            assert_eq!(gone.unwrap_err().code(), Code::NotFound);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

fn check_stats(kind: Kind, target: &Path, stats: &[VolumeUsage]) {
    let (total, used) = usage(stats, Unit::Bytes).unwrap();
    if kind == Kind::Block {
        assert_eq!((total, stats.len()), (device_size(target), 1));
        return;
    }
    let seen = nix::sys::statvfs::statvfs(target).unwrap();
    assert_eq!(total, seen.blocks() * seen.fragment_size(), "{kind:?}");
    assert!(used <= total);
    let inodes = usage(stats, Unit::Inodes).unwrap();
    if kind.is_filesystem_on_loop() {
        // Nobody else uses this filesystem, so the figures do not move.
        assert_eq!(used, total - seen.blocks_free() * seen.fragment_size());
        assert_eq!(inodes, (seen.files(), seen.files() - seen.files_free()), "{kind:?}");
    }
}

/// Where a volume's data lies in the pool.
fn data_file(life: &Life, dir: &Path) -> PathBuf {
    dir.join(if life.kind == Kind::Hostpath { "data/file" } else { "disk.img" })
}

/// Everything in an open file, from its start.
fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn has_secret(content: &[u8]) -> bool {
    content.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

/// A volume with the secret in it, unstaged, and its data opened.
fn with_secret(driver: &mut Driver, life: &mut Life) -> File {
    life.born(driver);
    life.up(driver);
    write(life.kind, &life.target, SECRET);
    life.down(driver);
    let file = File::open(data_file(life, &life.dir())).unwrap();
    assert!(has_secret(&content(&file)));
    file
}

#[test]
fn wiped_data_is_overwritten_before_it_goes() {
    privileged(|sandbox| {
        PoolOn::Ext4.mount(sandbox, 512);
        let mut driver = Driver::start(sandbox);
        for kind in [Kind::Hostpath, Kind::Ext4, Kind::Block] {
            // The control: without wiping the data is still there for whoever holds the file.
            for (on_delete, wiped) in [("wipe", true), ("delete", false)] {
                let name = format!("{kind:?}-{on_delete}");
                let mut life = Life::new(sandbox, kind, &name).with("onDelete", on_delete);
                let file = with_secret(&mut driver, &mut life);
                life.gone(&mut driver);
                poll("the trash is empty", || trash_is_empty(sandbox));
                let content = content(&file);
                assert_eq!(has_secret(&content), !wiped, "{name}");
                assert_eq!(content.iter().all(|byte| *byte == 0), wiped, "{name}");
            }
        }
        check_pool_left(sandbox, driver);
    });
}

/// As [`check_nothing_left`], where the pool itself is mounted.
fn check_pool_left(sandbox: &Sandbox, driver: Driver) {
    poll("the pool is empty", || {
        ["incoming", "volumes", "trash"].iter().all(|name| {
            std::fs::read_dir(sandbox.path("pool").join(name)).unwrap().next().is_none()
        })
    });
    drop(driver);
    run("umount", &[sandbox.path("pool")]);
}

#[test]
fn a_wipe_that_was_cut_off_is_finished_by_the_next_start() {
    privileged(|sandbox| {
        PoolOn::Ext4.mount(sandbox, 512);
        let mut driver = Driver::start_armed(sandbox, Some("store.bury.renamed:abort"));
        let mut life = Life::new(sandbox, Kind::Block, "v").with("onDelete", "wipe");
        let file = with_secret(&mut driver, &mut life);
        life.gone(&mut driver);
        assert!(driver.deaths > 0, "the driver died between the rename and the wipe");
        poll("the trash is empty", || trash_is_empty(sandbox));
        assert!(content(&file).iter().all(|byte| *byte == 0));
        drop(file);
        check_pool_left(sandbox, driver);
    });
}

#[test]
fn kept_data_stays_readable_and_out_of_the_successors_reach() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for (on_delete, grave) in [("retain", "retained"), ("archive", "archive")] {
            for kind in Kind::ALL {
                let name = format!("{kind:?}-{on_delete}");
                let mut life = Life::new(sandbox, kind, &name).with("onDelete", on_delete);
                drop(with_secret(&mut driver, &mut life));
                let parts: Vec<_> = life.id.split('-').collect();
                let kept = sandbox.path(format!("pool/{grave}/{}.{}", parts[2], parts[3]));
                life.gone(&mut driver);
                assert!(kept.join("volume.json").exists());
                let file = File::open(data_file(&life, &kept)).unwrap();
                assert!(has_secret(&content(&file)), "{name}");
                let mut successor = Life::new(sandbox, kind, &name).with("onDelete", "delete");
                check_empty(&mut driver, &mut successor);
                assert!(has_secret(&content(&file)), "{name}");
            }
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

/// A new volume holds nothing; it is deleted again.
fn check_empty(driver: &mut Driver, life: &mut Life) {
    life.born(driver);
    life.up(driver);
    if life.kind == Kind::Block {
        let mut content = Vec::new();
        File::open(&life.target).unwrap().read_to_end(&mut content).unwrap();
        assert!(!content.is_empty() && content.iter().all(|byte| *byte == 0));
    } else {
        assert_eq!(std::fs::read_dir(&life.target).unwrap().count(), 0, "{:?}", life.kind);
    }
    life.down(driver);
    life.gone(driver);
}

#[test]
fn a_successor_of_the_same_name_is_another_volume() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut first = Life::new(sandbox, kind, &format!("{kind:?}"));
            drop(with_secret(&mut driver, &mut first));
            first.gone(&mut driver);
            let mut second = Life::new(sandbox, kind, &format!("{kind:?}"));
            second.born(&mut driver);
            assert_ne!(first.id, second.id);
            // A late delete of the first one does not hit its successor.
            first.gone(&mut driver);
            let stale = first.try_stage(&driver.client);
            assert_eq!(stale.unwrap_err().code(), Code::NotFound);
            check_empty(&mut driver, &mut second);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn data_outlives_stages_and_repeated_requests() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            drop(with_secret(&mut driver, &mut life));
            let id = life.id.clone();
            life.born(&mut driver);
            assert_eq!(life.id, id, "a repeated create finds the volume");
            for _again in 0..2 {
                life.up(&mut driver);
                life.up(&mut driver);
                assert_eq!(read(kind, &life.target), SECRET);
                life.down(&mut driver);
                life.down(&mut driver);
            }
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

/// The kernel resizes no btrfs to less than 256 MiB; a volume must stay usable all the same.
#[test]
fn the_smallest_btrfs_stays_usable_when_it_grows_a_little() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Btrfs, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, SECRET);
        life.down(&mut driver);
        driver.insist("expand", |c| c.expand(&life.id, Kind::Btrfs.grown()));
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), SECRET);
        let bytes = Kind::Btrfs.grown();
        driver.insist("node expand", |c| c.node_expand(&life.id, &life.target, bytes));
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

/// A class that asks for blocks which are really there.
#[test]
fn a_thick_volume_gets_and_keeps_its_blocks() {
    privileged(|sandbox| {
        PoolOn::Ext4.mount(sandbox, 512);
        let mut driver = Driver::start(sandbox);
        for kind in [Kind::Ext4, Kind::Block] {
            let mut life =
                Life::new(sandbox, kind, &format!("{kind:?}")).with("allocation", "thick");
            drop(with_secret(&mut driver, &mut life));
            let blocks = || std::fs::metadata(life.image()).unwrap().blocks() * 512;
            assert!(blocks() >= kind.size(), "{kind:?} at birth: {}", blocks());
            driver.insist("expand", |c| c.expand(&life.id, kind.grown()));
            assert!(blocks() >= kind.grown(), "{kind:?} grown: {}", blocks());
            life.up(&mut driver);
            write(kind, &life.target, "");
            life.down(&mut driver);
            assert!(blocks() >= kind.grown(), "{kind:?} used: {}", blocks());
            life.gone(&mut driver);
        }
        check_pool_left(sandbox, driver);
    });
}
