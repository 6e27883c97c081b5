//! Paths, mount points, bind mounts, filesystem mounts and unmounts.
//!
//! Invariants: no verb follows a link at the end of a path; nothing is removed that is not an empty directory or
//! an empty regular file; a bind mount has all its attributes before anybody can see it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat};
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};
use sys_mount::MountFlags;

use super::loops::wait_until;
use super::{layout, sys};
use crate::fault;
use crate::host::{
    BindSource, DeviceNumber, FileIdentity, FilesystemMount, HostError, MountPoint, MountTable,
    Node, NodeKind, loop_path,
};
use crate::volume::{Filesystem, MountAttributes};

// Not /proc/self: a mount namespace belongs to a thread, and that one shows the main thread's.
const MOUNT_INFO: &str = "/proc/thread-self/mountinfo";

/// How long EBUSY may be an accident.
const BUSY_WAIT: Duration = Duration::from_millis(50);

pub(super) fn read_table() -> Result<MountTable, HostError> {
    let text = std::fs::read(MOUNT_INFO).map_err(|e| HostError::call("read", MOUNT_INFO, e))?;
    parse_table(&text, Path::new(MOUNT_INFO))
}

fn parse_table(text: &[u8], path: &Path) -> Result<MountTable, HostError> {
    MountTable::parse(text)
        .map_err(|e| HostError::Unexpected { what: e.to_string(), path: path.to_owned() })
}

/// The inode number of the first PID namespace (PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The tables of all mount namespaces that a process in /proc is in, this one's first, and whether these are all of the
/// machine's.
pub(super) fn tables_in_sight() -> Result<(Vec<MountTable>, bool), HostError> {
    let failed = |e| HostError::call("list", "/proc", e);
    let mut seen =
        BTreeSet::from([std::fs::read_link("/proc/thread-self/ns/mnt").map_err(failed)?]);
    let mut tables = vec![read_table()?];
    let first = std::fs::metadata("/proc/self/ns/pid").map_err(failed)?.ino();
    let mut is_all = first == FIRST_PID_NAMESPACE;
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let namespace = match std::fs::read_link(path.join("ns/mnt")) {
            Ok(namespace) => namespace,
            Err(error) => {
                // Otherwise not a process, or one that has just ended.
                is_all &= error.kind() != io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        let info = path.join("mountinfo");
        if seen.contains(&namespace) {
            continue;
        }
        // One that is just ending cannot be read; another process may be in the same namespace.
        if let Ok(text) = std::fs::read(&info) {
            tables.push(parse_table(&text, &info)?);
            seen.insert(namespace);
        }
    }
    Ok((tables, is_all))
}

pub(super) fn canonical(path: &Path) -> Result<Option<PathBuf>, HostError> {
    let bytes = path.as_os_str().as_bytes();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(unexpected(path, "not a path that ends in a name"));
    };
    // `file_name` overlooks a dot at the end.
    if bytes.ends_with(b"/.") || !path.is_absolute() {
        return Err(unexpected(path, "not an absolute path that ends in a name"));
    }
    match parent.canonicalize() {
        Ok(parent) if parent.is_dir() => Ok(Some(parent.join(name))),
        // A file is nobody's parent.
        Ok(_) => Ok(None),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(HostError::call("resolve", parent, e)),
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

pub(super) fn node(path: &Path) -> Result<Option<Node>, HostError> {
    let Some(stat) = stat_of(path)? else {
        return Ok(None);
    };
    let kind = match file_type(&stat) {
        SFlag::S_IFDIR => NodeKind::Directory,
        SFlag::S_IFREG => NodeKind::File,
        SFlag::S_IFBLK => NodeKind::BlockDevice(DeviceNumber::of_stat(stat.st_rdev)),
        _ => NodeKind::Other,
    };
    let identity = FileIdentity { device: DeviceNumber::of_stat(stat.st_dev), inode: stat.st_ino };
    Ok(Some(Node { identity, kind }))
}

fn stat_of(path: &Path) -> Result<Option<FileStat>, HostError> {
    match lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(e) => Err(HostError::call("stat", path, e)),
    }
}

pub(super) fn make_mount_point(path: &Path, kind: MountPoint) -> Result<(), HostError> {
    match kind {
        MountPoint::Directory => match mkdir(path, Mode::from_bits_truncate(0o750)) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => check_empty_directory(path),
            Err(e) => Err(HostError::call("make the directory", path, e)),
        },
        MountPoint::File => {
            let flags = OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_NOFOLLOW
                | OFlag::O_WRONLY
                | OFlag::O_CLOEXEC;
            match open(path, flags, Mode::from_bits_truncate(0o600)) {
                Ok(_closed) => Ok(()),
                Err(Errno::EEXIST) => check_empty_file(path),
                Err(e) => Err(HostError::call("make the file", path, e)),
            }
        }
    }
}

fn check_empty_directory(path: &Path) -> Result<(), HostError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut directory = match Dir::open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Err(unexpected(
                path,
                "not a directory, so nothing can be mounted there; move it away",
            ));
        }
        Err(e) => return Err(HostError::call("open the directory", path, e)),
    };
    for entry in directory.iter() {
        let entry = entry.map_err(|e| HostError::call("read the directory", path, e))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Err(unexpected(
                path,
                "the directory is not empty; these are not the volume's files, move them away",
            ));
        }
    }
    Ok(())
}

fn check_empty_file(path: &Path) -> Result<(), HostError> {
    match stat_of(path)? {
        Some(stat) if file_type(&stat) == SFlag::S_IFREG && stat.st_size == 0 => Ok(()),
        _ => Err(unexpected(
            path,
            "not an empty regular file, so no device can be bound there; move it away",
        )),
    }
}

fn unexpected(path: &Path, what: &str) -> HostError {
    HostError::Unexpected { what: what.to_owned(), path: path.to_owned() }
}

pub(super) fn remove_mount_point(path: &Path) -> Result<(), HostError> {
    let Some(stat) = stat_of(path)? else {
        return Ok(());
    };
    let how = match file_type(&stat) {
        SFlag::S_IFDIR => UnlinkatFlags::RemoveDir,
        SFlag::S_IFREG if stat.st_size == 0 => UnlinkatFlags::NoRemoveDir,
        _ => {
            return Err(unexpected(
                path,
                "neither a directory nor an empty file, so it is left alone",
            ));
        }
    };
    match unlinkat(nix::fcntl::AT_FDCWD, path, how) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(HostError::call("remove the mount point", path, e)),
    }
}

fn bits_of(attributes: MountAttributes) -> u64 {
    [
        (attributes.read_only, layout::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, layout::MOUNT_ATTR_NOSUID),
        (attributes.no_dev, layout::MOUNT_ATTR_NODEV),
        (attributes.no_exec, layout::MOUNT_ATTR_NOEXEC),
        (attributes.no_dir_atime, layout::MOUNT_ATTR_NODIRATIME),
        (attributes.no_symlink_follow, layout::MOUNT_ATTR_NOSYMFOLLOW),
    ]
    .iter()
    .filter_map(|(wanted, bit)| wanted.then_some(bit))
    .sum()
}

fn mount_attr(attributes: MountAttributes) -> layout::MountAttr {
    let mut attr = layout::MountAttr {
        set: bits_of(attributes),
        // A bind of a shared mount would join its peers, and what a pod mounts inside its volume would appear in
        // the pool. At a shared place it becomes shared again when it is moved there, in a peer group of its own.
        propagation: libc::MS_PRIVATE,
        ..layout::MountAttr::default()
    };
    // One choice of three, so the bits of the choice go first. Unless asked, the source's choice stays.
    let atime = match (attributes.no_atime, attributes.strict_atime) {
        (true, _) => Some(layout::MOUNT_ATTR_NOATIME),
        (false, true) => Some(layout::MOUNT_ATTR_STRICTATIME),
        (false, false) => None,
    };
    if let Some(atime) = atime {
        attr.clear = layout::MOUNT_ATTR_ATIME;
        attr.set |= atime;
    }
    attr
}

pub(super) fn bind(
    source: BindSource<'_>,
    target: &Path,
    attributes: MountAttributes,
) -> Result<(), HostError> {
    let (tree, from) = match source {
        BindSource::Fd(fd) => (sys::clone_tree_of(fd), fd_path(fd)),
        BindSource::Path(path) => (sys::clone_tree_at(path), path.to_owned()),
    };
    let tree = tree.map_err(|e| too_old(e, "copy the mount of", &from))?;
    let stat = fstat(&tree).map_err(|e| HostError::call("stat", &from, e))?;
    if file_type(&stat) == SFlag::S_IFLNK {
        return Err(unexpected(&from, "a symbolic link cannot be bound"));
    }
    sys::set_attributes(tree.as_fd(), &mount_attr(attributes))
        .map_err(|e| too_old(e, "set the mount attributes of", &from))?;
    fault::point!("host.bind.built").map_err(|e| HostError::call("bind", target, e))?;
    sys::move_mount(tree.as_fd(), target).map_err(|e| too_old(e, "bind to", target))?;
    fault::point!("host.bind.moved").map_err(|e| HostError::call("bind", target, e))
}

fn too_old(errno: Errno, operation: &'static str, path: &Path) -> HostError {
    if errno == Errno::ENOSYS {
        return HostError::Unsupported {
            what: "this kernel cannot set the attributes of a mount before it is visible"
                .to_owned(),
            remedy: "Linux 5.12 or newer is needed (or a seccomp profile that allows mount_setattr)",
        };
    }
    HostError::call(operation, path, errno)
}

/// Where a descriptor leads to by now, for messages and as a hint for people.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    std::fs::read_link(&link).unwrap_or(link)
}

/// Flags and options of mount(2).
fn mount_arguments(request: &FilesystemMount<'_>) -> (MountFlags, String) {
    let attributes = request.attributes;
    // sys-mount has no name for the last two.
    let no_symlink_follow = MountFlags::from_bits_retain(libc::MS_NOSYMFOLLOW);
    let lazy_time = MountFlags::from_bits_retain(libc::MS_LAZYTIME);
    let mut flags = MountFlags::empty();
    for (wanted, flag) in [
        (attributes.read_only, MountFlags::RDONLY),
        (attributes.no_suid, MountFlags::NOSUID),
        (attributes.no_dev, MountFlags::NODEV),
        (attributes.no_exec, MountFlags::NOEXEC),
        (attributes.no_atime, MountFlags::NOATIME),
        (attributes.no_dir_atime, MountFlags::NODIRATIME),
        (attributes.strict_atime, MountFlags::STRICTATIME),
        (attributes.no_symlink_follow, no_symlink_follow),
    ] {
        flags.set(flag, flags.contains(flag) || wanted);
    }
    let mut data = Vec::new();
    for option in request.options {
        match option.as_str() {
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "lazytime" => flags |= lazy_time,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

pub(super) fn mount(request: &FilesystemMount<'_>) -> Result<(), HostError> {
    let (flags, data) = mount_arguments(request);
    mount_device(&loop_path(request.loop_number), request.filesystem, request.target, flags, &data)
}

/// Mounts a block device at an existing directory; a link at its end is not followed.
pub(super) fn mount_device(
    device: &Path,
    filesystem: Filesystem,
    target: &Path,
    flags: MountFlags,
    data: &str,
) -> Result<(), HostError> {
    let open_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place: OwnedFd = open(target, open_flags, Mode::empty())
        .map_err(|e| HostError::call("open the mount point", target, e))?;
    // mount(2) follows links, so it gets the directory that was just opened.
    let place_path = format!("/proc/self/fd/{}", place.as_raw_fd());
    fault::point!("host.mount.start").map_err(|e| HostError::call("mount", target, e))?;
    let mut builder = sys_mount::Mount::builder().fstype(filesystem.as_str()).flags(flags);
    if !data.is_empty() {
        builder = builder.data(data);
    }
    // Dropping sys-mount's handle leaves the mount in place.
    builder
        .mount(device, &place_path)
        .map(drop)
        .map_err(|e| explain_mount(e, filesystem, target))?;
    fault::point!("host.mount.done").map_err(|e| HostError::call("mount", target, e))
}

fn explain_mount(error: io::Error, filesystem: Filesystem, target: &Path) -> HostError {
    if error.raw_os_error() == Some(libc::ENODEV) {
        return HostError::Unsupported {
            what: format!("this kernel has no filesystem {filesystem}"),
            remedy: "load its kernel module on the node, or choose another fstype",
        };
    }
    let operation = match error.raw_os_error() {
        Some(libc::EINVAL) => {
            "mount (the kernel refused the filesystem's superblock or a mount option) on"
        }
        Some(libc::EUCLEAN | libc::EIO) => "mount (the filesystem is damaged) on",
        _ => "mount the filesystem on",
    };
    HostError::call(operation, target, error)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that unmounts; the flag keeps it from following a link"
)]
pub(super) fn unmount(target: &Path) -> Result<(), HostError> {
    let path =
        canonical(target)?.ok_or_else(|| HostError::call("unmount", target, Errno::ENOENT))?;
    fault::point!("host.unmount.start").map_err(|e| HostError::call("unmount", &path, e))?;
    let mut result = Ok(());
    // A program that another thread starts has copies of this process's descriptors until its exec, so EBUSY may be
    // over in a moment.
    wait_until(BUSY_WAIT, || {
        result = umount2(&path, MntFlags::UMOUNT_NOFOLLOW);
        result != Err(Errno::EBUSY)
    });
    result.map_err(|e| HostError::call("unmount", &path, e))?;
    fault::point!("host.unmount.done").map_err(|e| HostError::call("unmount", &path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_that_ends_in_a_name_is_canonical() {
        for path in ["/", "/tmp/..", "/tmp/.", "", "relative"] {
            assert!(canonical(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(canonical(Path::new("/no-such/one")).unwrap(), None);
        assert_eq!(
            canonical(Path::new("/tmp/x/")).unwrap(),
            Path::new("/tmp").canonicalize().ok().map(|tmp| tmp.join("x"))
        );
    }

    #[test]
    fn mount_points_are_made_and_removed_without_harm() {
        let home = tempfile::tempdir().unwrap();
        let (directory, file) = (home.path().join("d"), home.path().join("f"));
        for _ in 0..2 {
            make_mount_point(&directory, MountPoint::Directory).unwrap();
            make_mount_point(&file, MountPoint::File).unwrap();
        }
        assert!(make_mount_point(&file, MountPoint::Directory).is_err());
        assert!(make_mount_point(&directory, MountPoint::File).is_err());
        let inner = directory.join("inner");
        make_mount_point(&inner, MountPoint::File).unwrap();
        let refused = make_mount_point(&directory, MountPoint::Directory).unwrap_err();
        assert!(refused.to_string().contains("not empty"), "{refused}");
        assert!(remove_mount_point(&directory).is_err());
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(make_mount_point(&link, MountPoint::Directory).is_err());
        assert!(remove_mount_point(&link).is_err());
        for path in [&inner, &directory, &file, &file] {
            remove_mount_point(path).unwrap();
        }
    }

    #[test]
    fn options_become_flags_and_text() {
        let options = ["sync", "commit=5", "lazytime", "context=\"a,b\""].map(str::to_owned);
        let (flags, data) = mount_arguments(&FilesystemMount {
            loop_number: 0,
            filesystem: Filesystem::Ext4,
            target: Path::new("/x"),
            attributes: MountAttributes { no_atime: true, ..MountAttributes::default() },
            options: &options,
        });
        assert_eq!(data, "commit=5,context=\"a,b\"");
        assert_eq!(flags.bits(), libc::MS_SYNCHRONOUS | libc::MS_LAZYTIME | libc::MS_NOATIME);
    }

    #[test]
    fn the_atime_choice_is_replaced_only_when_asked() {
        let plain = mount_attr(MountAttributes::default());
        assert_eq!((plain.set, plain.clear), (0, 0));
        let strict = mount_attr(MountAttributes {
            strict_atime: true,
            read_only: true,
            ..MountAttributes::default()
        });
        assert_eq!((strict.set, strict.clear), (0x21, 0x70));
    }
}
