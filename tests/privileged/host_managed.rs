//! What managed pools need of the machine: blank disks, claims, making, mounting, sealed mount points.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use orlop::host::linux::LinuxHost;
use orlop::host::{Content, Disk, ManagedPools, PoolMount, loop_path};
use orlop::volume::{Filesystem, FilesystemUuid};

use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

/// mkfs.btrfs looks whether any disk has the UUID already, so each test has its own.
fn new_uuid() -> FilesystemUuid {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).unwrap();
    FilesystemUuid::from_bits(bits)
}

const MIB: u64 = 1 << 20;
/// Where the claim is.
const CLAIM_AT: u64 = 16 * MIB;

/// A loop device that plays a disk.
fn disk(sandbox: &Sandbox, name: &str) -> (PathBuf, File) {
    let image = sandbox.path(name);
    let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(400 * MIB).unwrap();
    let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
    (PathBuf::from(device.trim()), file)
}

fn open(host: &LinuxHost, path: &Path) -> Disk {
    let mut disk = None;
    // udev and the like look at new disks.
    poll("the disk can be locked", || {
        disk = host.open_disk(path).ok().flatten();
        disk.is_some()
    });
    disk.unwrap()
}

fn content(host: &LinuxHost, path: &Path) -> Content {
    host.disk_content(&open(host, path), true).unwrap()
}

/// As much as any mkfs would have written to.
fn beginning(disk: &File) -> Vec<u8> {
    let mut bytes = vec![0; 40 << 20];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn is_foreign(content: &Content) -> bool {
    matches!(content, Content::Foreign(_))
}

#[test]
fn nothing_that_has_data_is_blank_or_formatted() {
    privileged(|sandbox| {
        let (host, uuid) = (LinuxHost::new(), new_uuid());
        let (path, file) = disk(sandbox, "disk");
        assert_eq!(content(&host, &path), Content::Blank);
        let refused = host.make_on_disk(&open(&host, &path), Filesystem::Xfs, uuid);
        assert!(refused.is_err(), "without a claim nothing is made");

        let dirty = |what: &str, make: &dyn Fn()| {
            make();
            let disk = open(&host, &path);
            let found = host.disk_content(&disk, true).unwrap();
            assert_ne!(found, Content::Blank, "{what}");
            let before = beginning(&file);
            assert!(host.claim_disk(&disk, uuid).is_err(), "{what}");
            assert!(host.make_on_disk(&disk, Filesystem::Btrfs, uuid).is_err(), "{what}");
            drop(disk);
            assert!(before == beginning(&file), "{what}: nothing is written");
            drop(file.set_len(0));
            file.set_len(400 * MIB).unwrap();
            run("blockdev", &["--flushbufs", path.to_str().unwrap()]);
            assert_eq!(content(&host, &path), Content::Blank);
        };
        let device = path.to_str().unwrap();
        for filesystem in ["ext4", "xfs", "btrfs"] {
            dirty(filesystem, &|| drop(run(&format!("mkfs.{filesystem}"), &["-q", device])));
        }
        dirty("swap", &|| drop(run("mkswap", &[device])));
        for (what, at) in
            [("an old partition table", 510), ("the end of a RAID", 400 * MIB - 60_000)]
        {
            dirty(what, &|| {
                let device = File::options().write(true).open(&path).unwrap();
                device.write_all_at(&[0x55, 0xaa], at).unwrap();
                device.sync_all().unwrap();
            });
        }
        run("losetup", &["-d", device]);
        assert!(host.open_disk(&sandbox.path("disk")).is_err(), "a file is no disk");
        assert!(host.open_disk(&sandbox.path("none")).unwrap().is_none());
    });
}

#[test]
fn a_filesystem_is_made_on_a_claimed_disk_and_an_interrupted_making_begins_again() {
    privileged(|sandbox| {
        let (host, uuid) = (LinuxHost::new(), new_uuid());
        for filesystem in [Filesystem::Xfs, Filesystem::Btrfs] {
            let (path, _file) = disk(sandbox, filesystem.as_str());
            let device = open(&host, &path);
            assert_eq!(host.disk_user(&device).unwrap(), None);
            host.claim_disk(&device, uuid).unwrap();
            assert_eq!(host.disk_content(&device, true).unwrap(), Content::Claimed(uuid));
            assert!(host.claim_disk(&device, uuid).is_err(), "it is not blank any more");
            let other = FilesystemUuid::from_bytes([1; 16]);
            assert!(host.make_on_disk(&device, filesystem, other).is_err(), "another's claim");
            let mut claim = [0; 512];
            let node = File::options().read(true).write(true).open(&path).unwrap();
            node.read_exact_at(&mut claim, CLAIM_AT).unwrap();

            host.make_on_disk(&device, filesystem, uuid).unwrap();
            assert!(is_made(&host, &device, filesystem, uuid));
            // Killed before the claim was taken away.
            node.write_all_at(&claim, CLAIM_AT).unwrap();
            node.sync_all().unwrap();
            drop(node);
            assert_eq!(host.disk_content(&device, true).unwrap(), Content::Claimed(uuid));
            host.make_on_disk(&device, filesystem, uuid).unwrap();
            assert!(is_made(&host, &device, filesystem, uuid));
            drop(device);

            mounted_and_sealed(sandbox, &host, &path, filesystem, uuid);
            run("losetup", &["-d", path.to_str().unwrap()]);
            poll("the disk is gone", || loops_below(sandbox.dir()).is_empty());
        }
    });
}

#[test]
fn a_disk_with_partitions_holders_or_a_lock_is_told() {
    privileged(|sandbox| {
        let host = LinuxHost::new();
        let (path, _file) = disk(sandbox, "disk");
        let held = open(&host, &path);
        assert!(host.open_disk(&path).is_err(), "two do not work on one disk");
        drop(held);
        // A loop device on top does not hold it, but swap, mounts and arrays do: they open it for themselves.
        let alone = {
            use std::os::unix::fs::OpenOptionsExt;
            File::options().read(true).custom_flags(libc::O_EXCL).open(&path).unwrap()
        };
        let user = host.disk_user(&open(&host, &path)).unwrap();
        assert!(user.is_some_and(|user| user.contains("another program")));
        drop(alone);
        assert_eq!(host.disk_user(&open(&host, &path)).unwrap(), None);
        run("losetup", &["-d", path.to_str().unwrap()]);
        let number = path.to_str().unwrap().trim_start_matches("/dev/loop").parse().unwrap();
        assert_eq!(loop_path(number), path);
    });
}

#[test]
fn an_image_is_made_blank_and_stays_reserved() {
    privileged(|sandbox| {
        use std::os::fd::AsFd;
        use std::os::unix::fs::MetadataExt;
        let (host, uuid) = (LinuxHost::new(), new_uuid());
        for filesystem in [Filesystem::Xfs, Filesystem::Btrfs] {
            let path = sandbox.path(filesystem.as_str());
            let image =
                File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            run("fallocate", &["-l", "400M", path.to_str().unwrap()]);
            host.make_in_image(image.as_fd(), filesystem, uuid).unwrap();
            let metadata = image.metadata().unwrap();
            assert_eq!(metadata.len(), 400 * MIB);
            assert!(metadata.blocks() * 512 >= 400 * MIB, "a hole in the image");
            assert!(!is_foreign(&host.image_content(image.as_fd()).unwrap()));
            assert!(host.make_in_image(image.as_fd(), filesystem, uuid).is_err(), "never twice");
        }
    });
}

/// The filesystem is there, whole, and nothing claims the disk.
fn is_made(host: &LinuxHost, disk: &Disk, filesystem: Filesystem, uuid: FilesystemUuid) -> bool {
    let content = host.disk_content(disk, true).unwrap();
    matches!(content, Content::Filesystem(found) if found.is_ours
        && (found.uuid, found.signature.filesystem) == (uuid, filesystem))
}

fn mounted_and_sealed(
    sandbox: &Sandbox,
    host: &LinuxHost,
    path: &Path,
    filesystem: Filesystem,
    uuid: FilesystemUuid,
) {
    let target = sandbox.path("pool");
    assert!(host.seal_mount_point(&target).unwrap());
    assert!(host.seal_mount_point(&target).unwrap(), "it may be repeated");
    assert!(File::create(target.join("lost")).is_err(), "nothing is written below");
    let request = PoolMount { device: path, filesystem, target: &target };
    host.mount_pool(&request).unwrap();
    assert_eq!(host.mounted_uuid(&target).unwrap(), Some(uuid));
    assert!(host.disk_user(&open(host, path)).unwrap().is_some(), "it is mounted");
    File::create(target.join("kept")).unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains("/pool ")).unwrap();
    assert!(line.contains("noatime") && !line.contains(",discard"), "{line}");
    run("umount", &[&target]);
    assert!(!target.join("kept").exists());
    run("chattr", &["-i", target.to_str().unwrap()]);
    run("rmdir", &[&target]);
}
