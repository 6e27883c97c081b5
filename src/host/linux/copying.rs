//! Copying by system calls: FICLONE, btrfs snapshots, FIFREEZE, FIEMAP.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{fsync, syncfs};

use super::filesystem::space;
use super::layout::{
    FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_SHARED, FIEMAP_EXTENT_UNWRITTEN, FIEMAP_EXTENTS,
    FIEMAP_NOT_PLAIN, XFS_REFLINK,
};
use super::mounts::fd_path;
use super::{LinuxHost, renew, sys};
use crate::host::{Copying, Extent, HeldMount, HostError, MountEntry, PoolFilesystem, loop_path};
use crate::volume::{ByteSize, Filesystem};

/// What to do when a filesystem that is to be thawed cannot be mounted.
const REMEDY: &str = "load the filesystem's kernel module on the node";

/// A filesystem, by a mount of it that is in no tree: what it was taken of can be unmounted meanwhile.
#[derive(Debug)]
struct Held {
    /// The mount; gone when this is closed.
    _mount: OwnedFd,
    root: OwnedFd,
    /// What it was taken of, for messages.
    name: PathBuf,
}

impl Held {
    fn new(mount: OwnedFd, name: PathBuf) -> nix::Result<Self> {
        // The mount's own descriptor is O_PATH, on which nothing can be asked for.
        let root = openat(&mount, ".", DIRECTORY, Mode::empty())?;
        Ok(Self { _mount: mount, root, name })
    }
}

impl HeldMount for Held {
    fn sync(&self) -> Result<(), HostError> {
        syncfs(&self.root).map_err(|e| HostError::call("flush", &self.name, e))
    }

    fn freeze(&self) -> Result<bool, HostError> {
        match sys::freeze(self.root.as_fd()) {
            Ok(()) => Ok(true),
            Err(Errno::EBUSY) => Ok(false),
            Err(e) => Err(HostError::call("freeze", &self.name, e)),
        }
    }

    fn thaw(&self) -> Result<bool, HostError> {
        match sys::thaw(self.root.as_fd()) {
            Ok(()) => Ok(true),
            // Not frozen.
            Err(Errno::EINVAL) => Ok(false),
            Err(e) => Err(HostError::call("thaw", &self.name, e)),
        }
    }
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The id of the mount that an open file lies on, as mountinfo has it.
fn mount_id(file: BorrowedFd<'_>) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

fn extent(raw: &super::layout::FiemapExtent) -> Extent {
    Extent {
        start: raw.logical,
        length: raw.length,
        physical: raw.physical,
        unwritten: raw.flags & FIEMAP_EXTENT_UNWRITTEN != 0,
        shared: raw.flags & FIEMAP_EXTENT_SHARED != 0,
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

    fn sync_loop(&self, number: u32) -> Result<(), HostError> {
        let path = loop_path(number);
        let synced = open(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).and_then(fsync);
        synced.map_err(|e| HostError::call("flush", path, e))
    }

    fn hold_mount(&self, seen: &MountEntry) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        let failed = |e: Errno| HostError::call("hold the mount at", &seen.mount_point, e);
        // Open for a moment only: until it is closed the mount cannot be unmounted.
        let opened = match open(&seen.mount_point, DIRECTORY, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        if mount_id(opened.as_fd()) != Some(seen.id) {
            return Ok(None);
        }
        let mount = sys::clone_tree_of(opened.as_fd()).map_err(failed)?;
        drop(opened);
        let held = Held::new(mount, seen.mount_point.clone()).map_err(failed)?;
        Ok(Some(Arc::new(held)))
    }

    fn hold_device(&self, loop_number: u32) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        let path = loop_path(loop_number);
        let device = open(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| HostError::call("open", &path, e))?;
        let Some(signature) = super::filesystem::probe(device.as_fd())? else { return Ok(None) };
        // The superblock that the kernel has of the device already, if it has one.
        let mount = super::nowhere::mount(loop_number, signature.filesystem, false, REMEDY)?;
        let held = Held::new(mount, path.clone());
        Ok(Some(Arc::new(held.map_err(|e| HostError::call("open", path, e))?)))
    }

    fn match_copy_on_write(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
    ) -> Result<(), HostError> {
        if super::filesystem::is_copied_on_write(source)? {
            return Ok(());
        }
        super::filesystem::disable_copy_on_write(target)
    }

    fn renew(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        sector: u32,
        made_elsewhere: bool,
    ) -> Result<(), HostError> {
        let tools = renew::Tools { programs: &self.programs, loops: &self.loops };
        renew::renew(tools, image, filesystem, sector, made_elsewhere)
    }

    fn allocated(&self, file: BorrowedFd<'_>) -> Result<ByteSize, HostError> {
        let stat = fstat(file).map_err(|e| HostError::call("look at", fd_path(file), e))?;
        // Always in units of 512 bytes (stat(2)).
        Ok(ByteSize::new(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)))
    }
}
