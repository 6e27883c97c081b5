//! Copying by system calls: FICLONE, btrfs snapshots, FIFREEZE, FIEMAP.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{fsync, syncfs};

use super::filesystem::space;
use super::layout::{
    FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_UNWRITTEN, FIEMAP_EXTENTS, FIEMAP_NOT_PLAIN, XFS_REFLINK,
};
use super::mounts::fd_path;
use super::{LinuxHost, renew, sys};
use crate::host::{Copying, Extent, Frozen, HostError, PoolFilesystem, loop_path};
use crate::volume::{ByteSize, Filesystem};

/// A frozen filesystem, by its root directory.
#[derive(Debug)]
struct FrozenMount {
    root: OwnedFd,
    path: PathBuf,
}

impl Frozen for FrozenMount {
    fn thaw(&self) -> Result<bool, HostError> {
        thaw(self.root.as_fd(), &self.path)
    }
}

fn thaw(root: BorrowedFd<'_>, path: &Path) -> Result<bool, HostError> {
    match sys::thaw(root) {
        Ok(()) => Ok(true),
        // Not frozen.
        Err(Errno::EINVAL) => Ok(false),
        Err(e) => Err(HostError::call("thaw", path, e)),
    }
}

/// Opens the directory at a path, which wakes nothing up and writes nothing, also when it is frozen.
fn open_root(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}

fn extent(raw: &super::layout::FiemapExtent) -> Extent {
    Extent {
        start: raw.logical,
        length: raw.length,
        physical: raw.physical,
        unwritten: raw.flags & FIEMAP_EXTENT_UNWRITTEN != 0,
        plain: raw.flags & FIEMAP_NOT_PLAIN == 0,
    }
}

impl Copying for LinuxHost {
    fn shares_blocks(&self, directory: BorrowedFd<'_>) -> Result<bool, HostError> {
        match space(directory)?.filesystem {
            PoolFilesystem::Btrfs => Ok(true),
            PoolFilesystem::Xfs => {
                let failed =
                    |e: Errno| HostError::call("ask the geometry of", fd_path(directory), e);
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let opened = openat(directory, ".", flags, Mode::empty()).map_err(failed)?;
                let geometry = sys::xfs_geometry(opened.as_fd()).map_err(failed)?;
                Ok(geometry.flags & XFS_REFLINK != 0)
            }
            PoolFilesystem::Ext | PoolFilesystem::Other(_) => Ok(false),
        }
    }

    fn share_file(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), HostError> {
        sys::clone_file(source, target)
            .map_err(|e| HostError::call("share the blocks of", fd_path(source), e))
    }

    fn extents(
        &self,
        file: BorrowedFd<'_>,
        from: u64,
        to: u64,
    ) -> Result<Option<Vec<Extent>>, HostError> {
        let mut found: Vec<Extent> = Vec::new();
        let mut at = from;
        while at < to {
            let map = match sys::fiemap(file, at, to - at) {
                Ok(map) => map,
                Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => return Ok(None),
                Err(e) => return Err(HostError::call("ask the extents of", fd_path(file), e)),
            };
            let count = usize::try_from(map.mapped).unwrap_or(0).min(FIEMAP_EXTENTS);
            let raw = map.extents.get(..count).unwrap_or_default();
            // A range that was asked for twice begins with the extent that the first answer ended with.
            let new = raw.iter().map(extent).filter(|extent| extent.end() > at);
            found.extend(new);
            let last = raw.last().is_none_or(|raw| raw.flags & FIEMAP_EXTENT_LAST != 0);
            let end = found.last().map_or(to, Extent::end);
            if last || end <= at {
                break;
            }
            at = end;
        }
        Ok(Some(found))
    }

    fn snapshot_subvolume(
        &self,
        subvolume: BorrowedFd<'_>,
        parent: BorrowedFd<'_>,
        name: &str,
        read_only: bool,
    ) -> Result<(), HostError> {
        sys::btrfs_snapshot(subvolume, parent, OsStr::new(name), read_only)
            .map_err(|e| HostError::call("snapshot the subvolume", fd_path(subvolume), e))
    }

    fn has_inner_subvolumes(&self, subvolume: BorrowedFd<'_>) -> Result<bool, HostError> {
        let inner = sys::btrfs_inner(subvolume);
        Ok(inner.map_err(|e| HostError::call("look for subvolumes in", fd_path(subvolume), e))? > 0)
    }

    fn sync_at(&self, mount_point: &Path) -> Result<(), HostError> {
        let synced = open_root(mount_point).and_then(syncfs);
        synced.map_err(|e| HostError::call("flush", mount_point, e))
    }

    fn sync_loop(&self, number: u32) -> Result<(), HostError> {
        let path = loop_path(number);
        let synced = open(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).and_then(fsync);
        synced.map_err(|e| HostError::call("flush", path, e))
    }

    fn freeze(&self, mount_point: &Path) -> Result<Option<Box<dyn Frozen>>, HostError> {
        let failed = |e: Errno| HostError::call("freeze", mount_point, e);
        let root = open_root(mount_point).map_err(failed)?;
        match sys::freeze(root.as_fd()) {
            Ok(()) => Ok(Some(Box::new(FrozenMount { root, path: mount_point.to_owned() }))),
            Err(Errno::EBUSY) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    fn thaw_at(&self, mount_point: &Path) -> Result<bool, HostError> {
        let root = open_root(mount_point).map_err(|e| HostError::call("open", mount_point, e))?;
        thaw(root.as_fd(), mount_point)
    }

    fn renew(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        sector: u32,
    ) -> Result<(), HostError> {
        renew::renew(&self.programs, &self.loops, image, filesystem, sector)
    }

    fn allocated(&self, file: BorrowedFd<'_>) -> Result<ByteSize, HostError> {
        let stat = fstat(file).map_err(|e| HostError::call("look at", fd_path(file), e))?;
        // Always in units of 512 bytes (stat(2)).
        Ok(ByteSize::new(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)))
    }
}
