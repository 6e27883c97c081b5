//! What the machine can do to copy a volume's data: share blocks, snapshot subvolumes, freeze, tell extents.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{HostError, MountEntry};
use crate::volume::{ByteSize, Filesystem};

/// A range of a file as its filesystem stores it (FS_IOC_FIEMAP). What lies between extents is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub start: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Where it begins on the disk, in bytes; means something only when `plain`.
    pub physical: u64,
    /// It is allocated, but reads as zeroes.
    pub unwritten: bool,
    /// Another file has it as well.
    pub shared: bool,
    /// Its bytes lie at `physical` as they are: not compressed, encrypted, inline, delayed or of unknown place.
    pub plain: bool,
}

impl Extent {
    /// Where it ends in the file.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

/// Copying, beside [`super::Host`]. Every call blocks and may be repeated.
pub trait Copying {
    /// Files in this directory can share blocks with each other.
    fn shares_blocks(&self, directory: BorrowedFd<'_>) -> Result<bool, HostError>;

    /// Makes an empty file share all blocks of another one (FICLONE), at one instant. The source's dirty pages are
    /// written first.
    fn share_file(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), HostError>;

    /// The extents of a file that touch the range, in order, after its dirty pages were written; `None` where the
    /// filesystem does not tell.
    fn extents(
        &self,
        file: BorrowedFd<'_>,
        from: u64,
        to: u64,
    ) -> Result<Option<Vec<Extent>>, HostError>;

    /// Makes a snapshot `name` in `parent` of a btrfs subvolume, at one instant.
    fn snapshot_subvolume(
        &self,
        subvolume: BorrowedFd<'_>,
        parent: BorrowedFd<'_>,
        name: &str,
        read_only: bool,
    ) -> Result<(), HostError>;

    /// Subvolumes lie in this btrfs subvolume; in a snapshot of it they would be empty directories.
    fn has_inner_subvolumes(&self, subvolume: BorrowedFd<'_>) -> Result<bool, HostError>;

    /// Writes all that is dirty in the cache of a loop device.
    fn sync_loop(&self, number: u32) -> Result<(), HostError>;

    /// Holds the filesystem of a mount that was seen, without keeping that mount from being unmounted; `None` when its path
    /// leads to another mount by now.
    fn hold_mount(&self, seen: &MountEntry) -> Result<Option<Arc<dyn HeldMount>>, HostError>;

    /// Holds the filesystem on a loop device, mounted or not; `None` when there is none.
    fn hold_device(&self, loop_number: u32) -> Result<Option<Arc<dyn HeldMount>>, HostError>;

    /// Makes the filesystem in a copied image one of its own: replays its log, gives it a new UUID, and grows it to the
    /// length of its image. One that was `made_elsewhere` (by a pod, on a raw device) is checked as well.
    fn renew(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        sector: u32,
        made_elsewhere: bool,
    ) -> Result<(), HostError>;

    /// Makes an empty file copy-on-write or not, as another one is: the kernel shares no blocks between the two kinds.
    fn match_copy_on_write(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
    ) -> Result<(), HostError>;

    /// Space that a file takes of its filesystem.
    fn allocated(&self, file: BorrowedFd<'_>) -> Result<ByteSize, HostError>;
}

/// A filesystem that stays for as long as this value lives, also when it is unmounted everywhere.
pub trait HeldMount: Debug + Send + Sync {
    /// Writes all that is dirty (syncfs).
    fn sync(&self) -> Result<(), HostError>;

    /// Freezes it (FIFREEZE): whoever writes waits. `false` when it is frozen already.
    fn freeze(&self) -> Result<bool, HostError>;

    /// Ends a freeze (FITHAW), whoever made it; `false` when it was not frozen.
    fn thaw(&self) -> Result<bool, HostError>;
}
