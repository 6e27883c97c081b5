//! Project quotas of ext4 and XFS, and qgroups of btrfs, by ioctl and quotactl_fd.

mod qgroup;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::LinuxHost;
use super::filesystem::{is_btrfs, reopened};
use super::mounts::fd_path;
use crate::host::{Bounds, HostError, LimitState, Limits};
use crate::volume::{Limit, LimitKind};

/// The directory, open so that ioctls work, when it is on btrfs.
fn open_on_btrfs(directory: BorrowedFd<'_>) -> nix::Result<Option<OwnedFd>> {
    if is_btrfs(directory)? { reopened(directory).map(Some) } else { Ok(None) }
}

fn unsupported() -> HostError {
    HostError::Unsupported {
        what: "limits on directories".to_owned(),
        remedy: "use backend=loop, which always holds its size",
    }
}

impl Limits for LinuxHost {
    fn limit_kind(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        let failed = |e| HostError::call("ask for the quotas of", fd_path(filesystem), e);
        match open_on_btrfs(filesystem).map_err(failed)? {
            Some(directory) => qgroup::kind(directory.as_fd()).map_err(failed),
            None => Ok(None),
        }
    }

    fn enable_quota(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        let failed = |e: Errno| HostError::call("switch quotas on for", fd_path(filesystem), e);
        if let Some(directory) = open_on_btrfs(filesystem).map_err(failed)? {
            qgroup::enable(directory.as_fd())
                .map_err(|e| HostError::call("switch quotas on for", fd_path(filesystem), e))?;
        }
        self.limit_kind(filesystem)
    }

    fn begin_limit(
        &self,
        _directory: BorrowedFd<'_>,
        _kind: LimitKind,
    ) -> Result<Limit, HostError> {
        Err(unsupported())
    }

    fn set_bounds(
        &self,
        _filesystem: BorrowedFd<'_>,
        _limit: Limit,
        _bounds: Option<Bounds>,
    ) -> Result<(), HostError> {
        Err(unsupported())
    }

    fn limit_state(
        &self,
        _filesystem: BorrowedFd<'_>,
        _limit: Limit,
    ) -> Result<Option<LimitState>, HostError> {
        Ok(None)
    }

    fn limit_of(&self, _directory: BorrowedFd<'_>) -> Result<Option<Limit>, HostError> {
        Ok(None)
    }

    fn end_limit(&self, _filesystem: BorrowedFd<'_>, _limit: Limit) -> Result<bool, HostError> {
        Ok(true)
    }

    fn being_freed(&self, _filesystem: BorrowedFd<'_>) -> Result<Vec<u64>, HostError> {
        Ok(Vec::new())
    }
}
