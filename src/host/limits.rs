//! How a filesystem holds directories to a size: project quotas of ext4 and XFS, qgroups of btrfs.
//!
//! Must not: switch quotas on for a filesystem that is not the driver's own; a simple quota makes a btrfs unreadable to
//! older kernels.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use super::HostError;
use crate::volume::{ByteSize, Limit, LimitKind};

/// What a limit bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes.
    pub bytes: ByteSize,
    /// Inodes; `None` where the filesystem does not count them, or for no bound.
    pub inodes: Option<u64>,
}

/// What the filesystem says of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitState {
    /// What is bounded; `None` when it only counts.
    pub bounds: Option<Bounds>,
    /// Bytes in use. On btrfs as of its last commit, which is at most half a minute ago.
    pub used: ByteSize,
    /// Inodes in use, where the filesystem counts them.
    pub inodes: Option<u64>,
}

/// Limits, beside [`super::Host`]. Every call blocks, may be repeated, and costs the same however much is in the
/// directory. `filesystem` is an open directory on it.
pub trait Limits: Debug {
    /// How this filesystem can hold directories; `None` when it cannot, or is not told to.
    fn limit_kind(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError>;

    /// Switches quotas on for a filesystem that is the driver's own: on btrfs simple ones where the kernel has them (Linux
    /// 6.7), else plain ones. Those that are on stay as they are. Elsewhere the mount has to say it, and this only looks.
    /// Durable when it returns; plain quotas take a scan of all that is there.
    fn enable_quota(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError>;

    /// Puts a directory that is new and empty (a subvolume on btrfs) under a limit of its own, which bounds nothing yet.
    /// What is made in it later comes under it as well. The limit is one that nothing else is under.
    fn begin_limit(&self, directory: BorrowedFd<'_>, kind: LimitKind) -> Result<Limit, HostError>;

    /// Puts a file or directory that exists, open for reading, under the limit of the directory above it; what is made in
    /// a directory later comes under it as well. Only where files carry their limit ([`LimitKind::Project`]).
    fn join_limit(&self, file: BorrowedFd<'_>, limit: Limit) -> Result<(), HostError>;

    /// Bounds a limit, and makes that durable; `None` lifts its bounds.
    fn set_bounds(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
        bounds: Option<Bounds>,
    ) -> Result<(), HostError>;

    /// What is bounded and in use; `None` when the filesystem knows no such limit.
    fn limit_state(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
    ) -> Result<Option<LimitState>, HostError>;

    /// The limit that a directory is under as [`Limits::begin_limit`] puts it.
    fn limit_of(&self, directory: BorrowedFd<'_>) -> Result<Option<Limit>, HostError>;

    /// Does away with a limit that nothing is under any more; one that does not exist is fine. `false` when something is
    /// under it still.
    fn end_limit(&self, filesystem: BorrowedFd<'_>, limit: Limit) -> Result<bool, HostError>;

    /// The subvolumes of a btrfs that are deleted and whose space is not free yet, by their ids; elsewhere none. Sees to it
    /// that the kernel begins with what was deleted since the last commit.
    fn being_freed(&self, filesystem: BorrowedFd<'_>) -> Result<Vec<u64>, HostError>;

    /// Has btrfs begin to free whatever is deleted; left to itself it may begin half a minute later. Writes all that is
    /// dirty on the filesystem, and takes as long as that.
    fn free_now(&self, filesystem: BorrowedFd<'_>) -> Result<(), HostError>;
}
