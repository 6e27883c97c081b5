//! Filesystems: what is on a device, how much room there is, growing, repairing, btrfs subvolumes.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, Statfs, XFS_SUPER_MAGIC, fstatfs, statfs,
};

use super::command::Programs;
use super::sys;
use crate::fault;
use crate::host::{
    HostError, PROBE_LENGTH, PoolFilesystem, Signature, Space, loop_path, probe_signature,
};
use crate::volume::{ByteSize, Filesystem};

/// The inode number of every btrfs subvolume's root (BTRFS_FIRST_FREE_OBJECTID).
const SUBVOLUME_INODE: u64 = 256;
/// FS_NOCOW_FL
const NO_COW: u32 = 0x0080_0000;

pub(super) fn probe(file: BorrowedFd<'_>) -> Result<Option<Signature>, HostError> {
    let failed = |e: std::io::Error| HostError::call("read", "the beginning of the image", e);
    let file = File::from(file.try_clone_to_owned().map_err(failed)?);
    let mut head = vec![0; PROBE_LENGTH];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64).map_err(failed)? {
            0 => break,
            count => filled += count,
        }
    }
    head.truncate(filled);
    Ok(probe_signature(&head))
}

pub(super) fn repair(
    programs: &Programs,
    number: u32,
    filesystem: Filesystem,
) -> Result<(), HostError> {
    match filesystem {
        // 0: clean, 1: errors corrected. Anything else wants a person.
        Filesystem::Ext4 => {
            Ok(programs.e2fsck.run(&[OsStr::new("-p"), loop_path(number).as_os_str()], &[0, 1])?)
        }
        // These have no mark that asks for a repair; their journals are replayed by the mount.
        Filesystem::Xfs | Filesystem::Btrfs => Ok(()),
    }
}

/// The number of CAP_SYS_RESOURCE (capabilities(7)).
const CAP_SYS_RESOURCE: u32 = 24;

/// The kernel lets ext4 grow while mounted only for a process with CAP_SYS_RESOURCE.
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
    number: u32,
    filesystem: Filesystem,
) -> Result<(), HostError> {
    match filesystem {
        Filesystem::Ext4 => {
            let device = loop_path(number);
            // resize2fs wants the filesystem checked; killed half-way it leaves a mark that asks for another check.
            programs
                .e2fsck
                .run(&[OsStr::new("-f"), OsStr::new("-p"), device.as_os_str()], &[0, 1])?;
            Ok(programs.resize2fs.run(&[device.as_os_str()], &[0])?)
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
    let injected = |e: std::io::Error| HostError::call("grow the filesystem at", mount_point, e);
    fault::point!("host.grow.start").map_err(injected)?;
    let root = File::open(mount_point).map_err(injected)?;
    match filesystem {
        Filesystem::Ext4 => {
            let block = fstatfs(&root).map_err(failed)?.block_size();
            let block = u64::try_from(block)
                .ok()
                .filter(|block| *block > 0)
                .ok_or_else(|| failed(Errno::EINVAL))?;
            sys::ext4_resize(root.as_fd(), device.bytes() / block).map_err(failed)?;
        }
        Filesystem::Xfs => {
            let geometry = sys::xfs_geometry(root.as_fd()).map_err(failed)?;
            let blocks = device.bytes() / u64::from(geometry.block_size.max(1));
            if blocks > geometry.data_blocks {
                sys::xfs_grow(root.as_fd(), blocks, geometry.inode_max_percent).map_err(failed)?;
            }
        }
        Filesystem::Btrfs => sys::btrfs_grow(root.as_fd()).map_err(failed)?,
    }
    fault::point!("host.grow.done").map_err(injected)
}

fn kind(statfs: &Statfs) -> PoolFilesystem {
    match statfs.filesystem_type() {
        EXT4_SUPER_MAGIC => PoolFilesystem::Ext,
        XFS_SUPER_MAGIC => PoolFilesystem::Xfs,
        BTRFS_SUPER_MAGIC => PoolFilesystem::Btrfs,
        #[expect(
            clippy::useless_conversion,
            reason = "the type of the magic number differs by architecture"
        )]
        other => PoolFilesystem::Other(i64::from(other.0)),
    }
}

fn describe(statfs: &Statfs) -> Space {
    let block = u64::try_from(statfs.block_size()).unwrap_or(0);
    let size = |blocks: u64| ByteSize::new(blocks.saturating_mul(block));
    Space {
        filesystem: kind(statfs),
        total: size(statfs.blocks()),
        free: size(statfs.blocks_free()),
        available: size(statfs.blocks_available()),
        inodes: statfs.files(),
        inodes_free: statfs.files_free(),
    }
}

pub(super) fn space(file: BorrowedFd<'_>) -> Result<Space, HostError> {
    fstatfs(file)
        .map(|statfs| describe(&statfs))
        .map_err(|e| HostError::call("ask the space of", "the filesystem", e))
}

pub(super) fn space_at(path: &Path) -> Result<Space, HostError> {
    statfs(path)
        .map(|statfs| describe(&statfs))
        .map_err(|e| HostError::call("ask the space of", path, e))
}

pub(super) fn remove_subvolume(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, HostError> {
    let failed = |e: Errno| HostError::call("remove the subvolume", name, e);
    if fstatfs(parent).map_err(failed)?.filesystem_type() != BTRFS_SUPER_MAGIC {
        return Ok(false);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let subvolume = match openat(parent, name, flags, Mode::empty()) {
        Ok(subvolume) => subvolume,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
    };
    if fstat(&subvolume).map_err(failed)?.st_ino != SUBVOLUME_INODE {
        return Ok(false);
    }
    sys::btrfs_make_writable(subvolume.as_fd()).map_err(failed)?;
    drop(subvolume);
    sys::btrfs_destroy(parent, name).map_err(failed)?;
    Ok(true)
}

pub(super) fn disable_copy_on_write(file: BorrowedFd<'_>) -> Result<(), HostError> {
    let failed = |e: Errno| HostError::call("turn copy-on-write off for", "the image", e);
    if fstatfs(file).map_err(failed)?.filesystem_type() != BTRFS_SUPER_MAGIC {
        return Ok(());
    }
    let flags = sys::file_flags(file).map_err(failed)?;
    sys::set_file_flags(file, flags | NO_COW).map_err(failed)
}
