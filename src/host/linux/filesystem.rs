//! What is done to filesystems that exist: recognise, repair, grow, measure; btrfs subvolumes and NODATACOW.
//!
//! Must not: run anything that asks questions or guesses, or write to a device that it only looks at.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, XFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;

use super::command::Programs;
use super::mounts::fd_path;
use super::sys;
use super::sys::quota;
use crate::fault;
use crate::host::{
    HostError, PROBE_LENGTH, PoolFilesystem, Signature, Space, loop_path, probe_signature,
};
use crate::volume::{ByteSize, Filesystem};

/// The inode number of a btrfs subvolume's root.
pub(super) const SUBVOLUME_ROOT: u64 = 256;
/// `FS_IMMUTABLE_FL` and `FS_APPEND_FL`
const UNREMOVABLE: u32 = 0x10 | 0x20;
/// `FS_NOCOW_FL`
const NO_COPY_ON_WRITE: u32 = 0x0080_0000;

pub(super) fn probe(file: BorrowedFd<'_>) -> Result<Option<Signature>, HostError> {
    let failed = |e| HostError::call("read the beginning of", fd_path(file), e);
    let reader = File::from(file.try_clone_to_owned().map_err(failed)?);
    let mut head = vec![0_u8; PROBE_LENGTH];
    let mut length = 0_usize;
    while let Some(rest @ [_, ..]) = head.get_mut(length..) {
        let at = u64::try_from(length).unwrap_or(u64::MAX);
        match reader.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(probe_signature(head.get(..length).unwrap_or_default()))
}

/// Makes sure that nobody works on the device: a program that a killed driver had started runs on to its end.
fn claim(number: u32) -> Result<(), HostError> {
    let path = loop_path(number);
    let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    match open(&path, flags, Mode::empty()) {
        Ok(_closed) => Ok(()),
        Err(e) => Err(HostError::call("have to ourselves", path, e)),
    }
}

pub(super) fn repair(
    programs: &Programs,
    loop_number: u32,
    filesystem: Filesystem,
) -> Result<(), HostError> {
    match filesystem {
        Filesystem::Ext4 => {
            // 1: errors were corrected.
            claim(loop_number)?;
            let device = loop_path(loop_number);
            programs.e2fsck.run(&["-p".as_ref(), device.as_os_str()], &[0, 1])?;
            Ok(())
        }
        // Both replay their logs at mount, and have no repair that never guesses.
        Filesystem::Xfs | Filesystem::Btrfs => Ok(()),
    }
}

/// The number of `CAP_SYS_RESOURCE` (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

/// The kernel lets ext4 grow while mounted only for a process with `CAP_SYS_RESOURCE`.
pub(super) fn can_grow_mounted(filesystem: Filesystem) -> bool {
    match filesystem {
        Filesystem::Xfs | Filesystem::Btrfs => true,
        Filesystem::Ext4 => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
            let effective =
                effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
            // What cannot be read is left to the kernel to refuse.
            effective.is_none_or(|bits| bits & (1 << CAP_SYS_RESOURCE) != 0)
        }
    }
}

pub(super) fn grow_unmounted(
    programs: &Programs,
    loop_number: u32,
    filesystem: Filesystem,
) -> Result<(), HostError> {
    match filesystem {
        Filesystem::Ext4 => {
            claim(loop_number)?;
            let device = loop_path(loop_number);
            // resize2fs wants the filesystem checked; killed half-way it leaves a mark that asks for another check.
            let check = [OsStr::new("-f"), OsStr::new("-p"), device.as_os_str()];
            programs.e2fsck.run(&check, &[0, 1])?;
            programs.resize2fs.run(&[device.as_os_str()], &[0])?;
            Ok(())
        }
        // These only grow while mounted, and there they always can.
        Filesystem::Xfs | Filesystem::Btrfs => Ok(()),
    }
}

pub(super) fn grow(
    filesystem: Filesystem,
    mount_point: &Path,
    device: ByteSize,
) -> Result<(), HostError> {
    let failed = |e: Errno| HostError::call("grow the filesystem at", mount_point, e);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mount = open(mount_point, flags, Mode::empty()).map_err(failed)?;
    fault::point!("host.grow.start")
        .map_err(|e| HostError::call("grow the filesystem at", mount_point, e))?;
    let grown = grow_at(mount.as_fd(), filesystem, device);
    if (filesystem, grown) == (Filesystem::Ext4, Err(Errno::EPERM)) {
        return Err(HostError::Unsupported {
            what: format!("the kernel does not grow the ext4 at {}", mount_point.display()),
            remedy: "it needs the capability CAP_SYS_RESOURCE, which a privileged container has, and a filesystem without recorded errors",
        });
    }
    grown.map_err(failed)?;
    fault::point!("host.grow.done")
        .map_err(|e| HostError::call("grow the filesystem at", mount_point, e))
}

/// Grows the mounted filesystem that a directory lies on.
pub(super) fn grow_at(
    mount: BorrowedFd<'_>,
    filesystem: Filesystem,
    device: ByteSize,
) -> nix::Result<()> {
    match filesystem {
        Filesystem::Ext4 => grow_ext4(mount, device),
        Filesystem::Xfs => grow_xfs(mount, device),
        Filesystem::Btrfs => sys::btrfs_grow(mount),
    }
}

fn grow_ext4(mount: BorrowedFd<'_>, device: ByteSize) -> nix::Result<()> {
    let block = u64::try_from(fstatfs(mount)?.block_size()).map_err(|_overflow| Errno::EINVAL)?;
    let blocks = device.bytes().checked_div(block).ok_or(Errno::EINVAL)?;
    sys::ext4_resize(mount, blocks)
}

fn grow_xfs(mount: BorrowedFd<'_>, device: ByteSize) -> nix::Result<()> {
    let geometry = sys::xfs_geometry(mount)?;
    let blocks = device.bytes().checked_div(u64::from(geometry.block_size)).ok_or(Errno::EINVAL)?;
    if blocks == geometry.data_blocks {
        return Ok(());
    }
    sys::xfs_grow(mount, blocks, geometry.inode_max_percent)
}

fn kind_of(magic: FsType) -> PoolFilesystem {
    match magic {
        EXT4_SUPER_MAGIC => PoolFilesystem::Ext,
        XFS_SUPER_MAGIC => PoolFilesystem::Xfs,
        BTRFS_SUPER_MAGIC => PoolFilesystem::Btrfs,
        FsType(other) => PoolFilesystem::Other(other),
    }
}

pub(super) fn space(file: BorrowedFd<'_>) -> Result<Space, HostError> {
    let failed = |e| HostError::call("ask the space of", fd_path(file), e);
    let magic = fstatfs(file).map_err(failed)?.filesystem_type();
    let figures = fstatvfs(file).map_err(failed)?;
    let bytes = |blocks: u64| ByteSize::new(blocks.saturating_mul(figures.fragment_size()));
    Ok(Space {
        filesystem: kind_of(magic),
        total: bytes(figures.blocks()),
        free: bytes(figures.blocks_free()),
        available: bytes(figures.blocks_available()),
        inodes: figures.files(),
        inodes_free: figures.files_free(),
    })
}

/// Commits a btrfs; others count at once.
pub(super) fn settle_space(directory: BorrowedFd<'_>, written: bool) -> Result<(), HostError> {
    let settled = match space(directory)?.filesystem {
        PoolFilesystem::Btrfs if written => nix::unistd::syncfs(directory),
        PoolFilesystem::Btrfs => btrfs_commit(directory),
        PoolFilesystem::Ext | PoolFilesystem::Xfs | PoolFilesystem::Other(_) => Ok(()),
    };
    settled.map_err(|e| HostError::call("flush", fd_path(directory), e))
}

/// Writes all changes of metadata to the disk, without the data that others have still to write.
pub(super) fn btrfs_commit(filesystem: BorrowedFd<'_>) -> nix::Result<()> {
    let transaction = quota::btrfs_start_sync(filesystem)?;
    quota::btrfs_wait_sync(filesystem, transaction)
}

pub(super) fn space_at(path: &Path) -> Result<Space, HostError> {
    // O_PATH asks for no permission and wakes nothing up.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty())
        .map_err(|e| HostError::call("ask the space of", path, e))?;
    space(file.as_fd())
}

pub(super) fn is_btrfs(file: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(fstatfs(file)?.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// The same directory, open so that ioctls work (they do not on `O_PATH`).
pub(super) fn reopened(directory: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(directory, ".", flags, Mode::empty())
}

pub(super) fn make_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), HostError> {
    let failed = |e: Errno| HostError::call("make the subvolume", fd_path(parent).join(name), e);
    let directory = reopened(parent).map_err(failed)?;
    if !is_btrfs(parent).map_err(failed)? {
        return Err(HostError::Unsupported {
            what: format!("{} is not on btrfs", fd_path(parent).display()),
            remedy: "subvolumes exist on btrfs only",
        });
    }
    if !is_one_name(name) {
        return Err(failed(Errno::EINVAL));
    }
    sys::btrfs_create(directory.as_fd(), name).map_err(failed)
}

fn is_one_name(name: &OsStr) -> bool {
    !matches!(name.as_bytes(), b"" | b"." | b"..") && !name.as_bytes().contains(&b'/')
}

pub(super) fn remove_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, HostError> {
    let failed = |e: Errno| HostError::call("remove the subvolume", fd_path(parent).join(name), e);
    let Some(subvolume) = open_subvolume(parent, name).map_err(failed)? else {
        return Ok(false);
    };
    sys::btrfs_make_writable(subvolume.as_fd()).map_err(failed)?;
    let directory = reopened(parent).map_err(failed)?;
    sys::btrfs_destroy(directory.as_fd(), name).map_err(failed)?;
    Ok(true)
}

/// Opens `name` when it is the root of a subvolume, and neither a link nor something mounted there.
fn open_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<OwnedFd>> {
    if !is_one_name(name) {
        return Err(Errno::EINVAL);
    }
    if !is_btrfs(parent)? {
        return Ok(None);
    }
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    match openat2(parent, name, how) {
        Ok(subvolume) => Ok((fstat(&subvolume)?.st_ino == SUBVOLUME_ROOT).then_some(subvolume)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file is copy-on-write; where there is no such thing no file is.
pub(super) fn is_copied_on_write(file: BorrowedFd<'_>) -> Result<bool, HostError> {
    let failed = |e: Errno| HostError::call("read the flags of", fd_path(file), e);
    if !is_btrfs(file).map_err(failed)? {
        return Ok(false);
    }
    Ok(sys::file_flags(file).map_err(failed)? & NO_COPY_ON_WRITE == 0)
}

pub(super) fn disable_copy_on_write(file: BorrowedFd<'_>) -> Result<(), HostError> {
    let failed = |e: Errno| HostError::call("switch copy-on-write off for", fd_path(file), e);
    if !is_btrfs(file).map_err(failed)? {
        return Ok(());
    }
    let flags = sys::file_flags(file).map_err(failed)? | NO_COPY_ON_WRITE;
    sys::set_file_flags(file, flags).map_err(failed)?;
    // On a file with data btrfs ignores the flag and says nothing.
    if sys::file_flags(file).map_err(failed)? & NO_COPY_ON_WRITE == 0 {
        return Err(HostError::Unexpected {
            what: "copy-on-write stays on, because the file is not empty".to_owned(),
            path: fd_path(file),
        });
    }
    Ok(())
}

pub(super) fn make_removable(file: BorrowedFd<'_>) -> Result<(), HostError> {
    let failed = |e: Errno| HostError::call("make removable", fd_path(file), e);
    let flags = sys::file_flags(file).map_err(failed)?;
    if flags & UNREMOVABLE == 0 {
        return Ok(());
    }
    sys::set_file_flags(file, flags & !UNREMOVABLE).map_err(failed)
}
