//! Formatting, growing, reserving: what becomes of an image.

#![expect(clippy::disallowed_methods, reason = "makes files that the code under test is given")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use orlop::host::linux::LinuxHost;
use orlop::host::{
    FilesystemMount, FormatRecipe, Host, HostError, LoopOptions, MountPoint, RootOwner,
};
use orlop::volume::{Allocation, ByteSize, DirectIo, Filesystem, MountAttributes};

use crate::privileged::{Sandbox, can_grow_mounted_ext4, loops_below, poll, privileged, run};

const MIB: u64 = 1 << 20;
const LABEL: &str = "v-label-of-a-volume";

fn image(path: &Path, bytes: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn recipe(filesystem: Filesystem) -> FormatRecipe<'static> {
    let root = RootOwner { mode: 0o2750, uid: 1234, gid: 5678 };
    FormatRecipe { filesystem, sector: 4096, options: &[], root }
}

const fn options(allocation: Allocation) -> LoopOptions<'static> {
    LoopOptions {
        label: LABEL,
        read_only: false,
        autoclear: true,
        direct_io: DirectIo::Auto,
        sector: 4096,
        allocation,
    }
}

/// A formatted image that can be mounted again and again.
struct Disk {
    host: LinuxHost,
    filesystem: Filesystem,
    file: File,
    mount_point: PathBuf,
}

impl Disk {
    fn new(sandbox: &Sandbox, filesystem: Filesystem, bytes: u64) -> Self {
        let file = image(&sandbox.path("disk.img"), bytes);
        let host = LinuxHost::new();
        host.format(file.as_fd(), &recipe(filesystem)).unwrap();
        let mount_point = sandbox.path("mounted");
        host.make_mount_point(&mount_point, MountPoint::Directory).unwrap();
        Self { host, filesystem, file, mount_point }
    }

    /// The number of the loop device below the mount.
    fn mount(&self, allocation: Allocation, options_of_mount: &[String]) -> u32 {
        let device = self.host.attach(self.file.as_fd(), options(allocation)).unwrap();
        let number = device.number;
        let request = FilesystemMount {
            loop_number: number,
            filesystem: self.filesystem,
            target: &self.mount_point,
            attributes: MountAttributes::default(),
            options: options_of_mount,
        };
        self.host.mount(&request).unwrap();
        device.release();
        number
    }

    fn unmount(&self, sandbox: &Sandbox) {
        self.host.unmount(&self.mount_point).unwrap();
        poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
    }

    fn total(&self) -> u64 {
        self.host.space_at(&self.mount_point).unwrap().total.bytes()
    }

    fn file_size(&self) -> u64 {
        let signature = self.host.probe(self.file.as_fd()).unwrap().unwrap();
        assert_eq!(signature.filesystem, self.filesystem);
        signature.size.bytes()
    }
}

/// Born, mounted, written, grown (mounted where that may be, else before the next mount), read.
fn whole_life(sandbox: &Sandbox, filesystem: Filesystem, megabytes: u64) {
    let disk = Disk::new(sandbox, filesystem, megabytes * MIB);
    assert_eq!(disk.file_size(), megabytes * MIB, "the filesystem fills its image");
    let number = disk.mount(Allocation::Thin, &[]);
    let root = std::fs::metadata(&disk.mount_point).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o2750, 1234, 5678));
    assert_eq!(std::fs::read_dir(&disk.mount_point).unwrap().count(), 0, "no lost+found");
    let seen = disk.host.loop_status(number).unwrap().unwrap();
    assert_eq!((seen.label.as_str(), seen.autoclear, seen.partial), (LABEL, true, false));
    let table = disk.host.mounts().unwrap();
    assert_eq!(table.top_at(&disk.mount_point).unwrap().mounted_loop(), Some(number));
    std::fs::write(disk.mount_point.join("file"), "before").unwrap();
    let (before, added) = (disk.total(), 64 * MIB);
    disk.file.set_len(megabytes * MIB + added).unwrap();
    let device = disk.host.refresh_loop_size(number).unwrap();
    assert_eq!(device.bytes(), megabytes * MIB + added);
    grow(&disk, sandbox, device);
    let grown = disk.total() - before;
    assert!((added - 8 * MIB..=added).contains(&grown), "{filesystem} grew by {grown}");
    assert_eq!(std::fs::read_to_string(disk.mount_point.join("file")).unwrap(), "before");
    disk.unmount(sandbox);
    assert_eq!(disk.file_size(), device.bytes(), "the filesystem fills its device");
}

/// Leaves the filesystem mounted, and as large as its device.
fn grow(disk: &Disk, sandbox: &Sandbox, device: ByteSize) {
    let mounted = disk.host.can_grow_mounted(disk.filesystem);
    assert_eq!(mounted, disk.filesystem != Filesystem::Ext4 || can_grow_mounted_ext4());
    if mounted {
        disk.host.grow(disk.filesystem, &disk.mount_point, device).unwrap();
        // Once more does nothing.
        return disk.host.grow(disk.filesystem, &disk.mount_point, device).unwrap();
    }
    disk.host.grow(disk.filesystem, &disk.mount_point, device).unwrap_err();
    disk.unmount(sandbox);
    grow_unmounted(disk, sandbox);
    disk.mount(Allocation::Thin, &[]);
}

fn grow_unmounted(disk: &Disk, sandbox: &Sandbox) {
    let device = disk.host.attach(disk.file.as_fd(), options(Allocation::Thin)).unwrap();
    for _again in 0..2 {
        disk.host.grow_unmounted(device.number, disk.filesystem).unwrap();
    }
    device.release();
    poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
}

#[test]
fn ext4_lives() {
    privileged(|sandbox| whole_life(sandbox, Filesystem::Ext4, 64));
}

#[test]
fn xfs_lives() {
    privileged(|sandbox| whole_life(sandbox, Filesystem::Xfs, 300));
}

#[test]
fn btrfs_lives() {
    // The kernel resizes none to less than 256 MiB (btrfs_ioctl_resize).
    privileged(|sandbox| whole_life(sandbox, Filesystem::Btrfs, 256));
}

/// From a filesystem without room for more descriptors of its groups as well, and so that all of it can be used.
#[test]
#[ignore = "needs CAP_SYS_RESOURCE: make vm"]
fn a_mounted_ext4_grows_under_an_open_file() {
    privileged(|sandbox| {
        let disk = Disk::new(sandbox, Filesystem::Ext4, 64 * MIB);
        let number = disk.mount(Allocation::Thin, &[]);
        let open = image(&disk.mount_point.join("open"), 0);
        let piece = vec![7; 1 << 20];
        let mut written = 0;
        for megabytes in [128, 4096] {
            disk.file.set_len(megabytes * MIB).unwrap();
            let device = disk.host.refresh_loop_size(number).unwrap();
            disk.host.grow(Filesystem::Ext4, &disk.mount_point, device).unwrap();
            assert!(disk.total() > (megabytes - megabytes / 10) * MIB, "{} bytes", disk.total());
            // More than there was before.
            while written < megabytes.min(256) * MIB * 3 / 4 {
                open.write_all_at(&piece, written).unwrap();
                written += MIB;
            }
            open.sync_all().unwrap();
        }
        assert_eq!(disk.host.loop_status(number).unwrap().unwrap().label, LABEL, "the same device");
        drop(open);
        disk.unmount(sandbox);
        run("e2fsck", &["-f", "-n", sandbox.path("disk.img").to_str().unwrap()]);
        assert_eq!(disk.file_size(), 4096 * MIB);
    });
}

#[test]
fn an_ext4_that_is_not_mounted_grows_whoever_asks() {
    privileged(|sandbox| {
        let disk = Disk::new(sandbox, Filesystem::Ext4, 64 * MIB);
        disk.file.set_len(96 * MIB).unwrap();
        grow_unmounted(&disk, sandbox);
        assert_eq!(disk.file_size(), 96 * MIB);
    });
}

#[test]
fn a_device_that_a_program_of_a_dead_driver_works_on_is_told_to_be_busy() {
    use std::os::unix::fs::OpenOptionsExt;
    privileged(|sandbox| {
        let disk = Disk::new(sandbox, Filesystem::Ext4, 64 * MIB);
        disk.file.set_len(96 * MIB).unwrap();
        let device = disk.host.attach(disk.file.as_fd(), options(Allocation::Thin)).unwrap();
        let path = format!("/dev/loop{}", device.number);
        // As e2fsck and resize2fs have it.
        let working = File::options().read(true).custom_flags(libc::O_EXCL).open(path).unwrap();
        let busy =
            |result: Result<(), HostError>| result.unwrap_err().errno() == Some(Errno::EBUSY);
        assert!(busy(disk.host.grow_unmounted(device.number, Filesystem::Ext4)));
        assert!(busy(disk.host.repair(device.number, Filesystem::Ext4)));
        assert!(busy(disk.host.mount(&FilesystemMount {
            loop_number: device.number,
            filesystem: Filesystem::Ext4,
            target: &disk.mount_point,
            attributes: MountAttributes::default(),
            options: &[],
        })));
        drop(working);
        disk.host.grow_unmounted(device.number, Filesystem::Ext4).unwrap();
        device.release();
        poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
    });
}

#[test]
fn an_image_that_holds_something_is_never_formatted() {
    privileged(|sandbox| {
        for filesystem in [Filesystem::Ext4, Filesystem::Btrfs] {
            let path = sandbox.path(filesystem.as_str());
            let file = image(&path, 128 * MIB);
            let host = LinuxHost::new();
            host.format(file.as_fd(), &recipe(filesystem)).unwrap();
            let before = std::fs::read(&path).unwrap();
            for again in [Filesystem::Ext4, Filesystem::Btrfs, Filesystem::Xfs] {
                let refused = host.format(file.as_fd(), &recipe(again)).unwrap_err();
                assert!(matches!(refused, HostError::Unexpected { .. }), "{refused:?}");
            }
            assert!(before == std::fs::read(&path).unwrap(), "{filesystem} was changed");
        }
    });
}

/// An ext4 to be the pool: whether blocks come back does not depend on the machine's own filesystem then.
fn pool_on_ext4(sandbox: &Sandbox) -> PathBuf {
    let (image_path, pool) = (sandbox.path("pool.img"), sandbox.make_dir("pool"));
    drop(image(&image_path, 512 * MIB));
    run("mkfs.ext4", &["-q", "-F", image_path.to_str().unwrap()]);
    run("mount", &["-o", "loop", image_path.to_str().unwrap(), pool.to_str().unwrap()]);
    pool
}

fn allocated(file: &File) -> u64 {
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

/// Allocated bytes of an image after its birth, with a file in it, and after the file was removed and the filesystem
/// trimmed.
fn trimmed(sandbox: &Sandbox, allocation: Allocation) -> [u64; 3] {
    let sandbox = sandbox.sub(&format!("pool/{allocation:?}"));
    let file = image(&sandbox.path("disk.img"), 64 * MIB);
    if allocation == Allocation::Thick {
        let none = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&file, none, 0, i64::try_from(64 * MIB).unwrap()).unwrap();
    }
    let host = LinuxHost::new();
    host.format(file.as_fd(), &recipe(Filesystem::Ext4)).unwrap();
    let mount_point = sandbox.path("mounted");
    host.make_mount_point(&mount_point, MountPoint::Directory).unwrap();
    let disk = Disk { host, filesystem: Filesystem::Ext4, file, mount_point };
    let born = allocated(&disk.file);
    disk.mount(allocation, &["discard".to_owned()]);
    let big = disk.mount_point.join("big");
    std::fs::write(&big, vec![7; 16 << 20]).unwrap();
    File::open(&big).unwrap().sync_all().unwrap();
    let filled = allocated(&disk.file);
    std::fs::remove_file(&big).unwrap();
    run("sync", &["-f", disk.mount_point.to_str().unwrap()]);
    let trim = std::process::Command::new("fstrim").arg(&disk.mount_point).status().unwrap();
    assert_eq!(trim.success(), allocation == Allocation::Thin, "fstrim");
    let now = allocated(&disk.file);
    disk.host.unmount(&disk.mount_point).unwrap();
    [born, filled, now]
}

/// The thick image comes first: its loop device forbids discards, and the thin one is likely to get the same number.
#[test]
fn a_thick_image_keeps_its_blocks_and_a_thin_one_gives_them_back() {
    privileged(|sandbox| {
        let pool = pool_on_ext4(sandbox);
        let whole = 64 * MIB;
        for (when, bytes) in trimmed(sandbox, Allocation::Thick).into_iter().enumerate() {
            assert!(bytes >= whole, "at {when} the thick image has {bytes} bytes");
        }
        let [born, filled, after] = trimmed(sandbox, Allocation::Thin);
        assert!(born < whole / 2 && filled >= born + 16 * MIB, "{born} {filled}");
        assert!(after < filled - 12 * MIB, "{filled} {after}");
        poll("the loop devices of the images are gone", || loops_below(&pool).is_empty());
        run("umount", &[pool]);
    });
}

/// A btrfs in an image, mounted.
fn btrfs(sandbox: &Sandbox) -> Disk {
    let disk = Disk::new(sandbox, Filesystem::Btrfs, 128 * MIB);
    disk.mount(Allocation::Thin, &[]);
    disk
}

#[test]
fn subvolumes_are_made_and_removed_even_read_only_ones() {
    privileged(|sandbox| {
        let disk = btrfs(sandbox);
        let root = File::open(&disk.mount_point).unwrap();
        let remove = |name: &str| disk.host.remove_subvolume(root.as_fd(), name.as_ref());
        disk.host.make_subvolume(root.as_fd(), "a").unwrap();
        let a = disk.mount_point.join("a");
        assert_eq!(std::fs::metadata(&a).unwrap().ino(), 256, "a subvolume's root");
        std::fs::write(a.join("file"), "x").unwrap();
        run("btrfs", &["property", "set", "-ts", a.to_str().unwrap(), "ro", "true"]);
        std::fs::write(a.join("other"), "x").unwrap_err();
        assert!(remove("a").unwrap() && !a.exists());
        disk.host.make_subvolume(root.as_fd(), "outer").unwrap();
        let outer = File::open(disk.mount_point.join("outer")).unwrap();
        disk.host.make_subvolume(outer.as_fd(), "inner").unwrap();
        let errno = remove("outer").unwrap_err().errno();
        assert_eq!(errno, Some(Errno::ENOTEMPTY));
        assert!(disk.mount_point.join("outer/inner").exists());
        assert!(disk.host.remove_subvolume(outer.as_fd(), "inner".as_ref()).unwrap());
        drop(outer);
        assert!(remove("outer").unwrap());
        std::fs::create_dir(disk.mount_point.join("plain")).unwrap();
        assert!(!remove("plain").unwrap() && !remove("absent").unwrap());
        assert!(disk.mount_point.join("plain").exists(), "a directory is no subvolume");
        drop(root);
        disk.unmount(sandbox);
    });
}

#[test]
fn images_on_btrfs_are_not_copied_on_write() {
    privileged(|sandbox| {
        let disk = btrfs(sandbox);
        let has_flag = |path: &Path| {
            let line = run("lsattr", &[path]);
            line.split(' ').next().unwrap().contains('C')
        };
        let (flagged, plain) = (disk.mount_point.join("flagged"), disk.mount_point.join("plain"));
        let file = File::create_new(&flagged).unwrap();
        disk.host.disable_copy_on_write(file.as_fd()).unwrap();
        file.write_all_at(b"content", 0).unwrap();
        drop((file, File::create_new(&plain).unwrap()));
        assert!(has_flag(&flagged) && !has_flag(&plain));
        // Elsewhere it does nothing.
        let other = File::create_new(sandbox.path("other")).unwrap();
        disk.host.disable_copy_on_write(other.as_fd()).unwrap();
        disk.unmount(sandbox);
    });
}
