//! Project quotas of ext4 and XFS, and qgroups of btrfs, by ioctl and quotactl_fd.

use std::os::fd::BorrowedFd;

use super::LinuxHost;
use crate::host::{Bounds, HostError, LimitState, Limits};
use crate::volume::{Limit, LimitKind};

fn unsupported() -> HostError {
    HostError::Unsupported {
        what: "limits on directories".to_owned(),
        remedy: "use backend=loop, which always holds its size",
    }
}

impl Limits for LinuxHost {
    fn limit_kind(&self, _filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        Ok(None)
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
