//! Project quotas of ext4 and XFS, and qgroups of btrfs, by ioctl and quotactl_fd.

mod project;
mod qgroup;
mod tree;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::LinuxHost;
use super::filesystem::{is_btrfs, reopened};
use super::mounts::fd_path;
use super::sys::quota;
use crate::host::{Bounds, HostError, LimitState, Limits};
use crate::volume::{Limit, LimitKind};

/// Runs a step on a directory that is open so that ioctls work; a failure says what was tried, and where.
fn on<T>(
    operation: &'static str,
    directory: BorrowedFd<'_>,
    step: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> Result<T, HostError> {
    let result =
        reopened(directory).map_err(io::Error::from).and_then(|fd: OwnedFd| step(fd.as_fd()));
    result.map_err(|e| HostError::call(operation, fd_path(directory), e))
}

fn kind(directory: BorrowedFd<'_>) -> io::Result<Option<LimitKind>> {
    if is_btrfs(directory)? {
        return Ok(qgroup::kind(directory)?);
    }
    Ok(project::is_enforced(directory)?.then_some(LimitKind::Project))
}

/// Ids of projects have 32 bits.
fn project_id(limit: Limit) -> nix::Result<u32> {
    u32::try_from(limit.number).map_err(|_overflow| Errno::EINVAL)
}

impl Limits for LinuxHost {
    fn limit_kind(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        on("ask for the quotas of", filesystem, kind)
    }

    fn enable_quota(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        on("switch quotas on for", filesystem, |directory| {
            if is_btrfs(directory)? {
                qgroup::enable(directory)?;
            }
            kind(directory)
        })
    }

    fn begin_limit(&self, directory: BorrowedFd<'_>, kind: LimitKind) -> Result<Limit, HostError> {
        if self.limit_kind(directory)? != Some(kind) {
            return Err(HostError::Unsupported {
                what: format!("{} cannot be held by a {kind}", fd_path(directory).display()),
                remedy: "mount XFS, or ext4 that has the features quota and project (tune2fs -O quota,project), with prjquota; switch quotas of btrfs on; or use backend=loop, which always holds its size",
            });
        }
        let number = on("put under a limit", directory, |directory| match kind {
            LimitKind::Project => project::begin(directory).map(u64::from),
            LimitKind::SimpleQuota | LimitKind::Qgroup => qgroup::begin(directory),
        })?;
        Ok(Limit { kind, number })
    }

    fn join_limit(&self, file: BorrowedFd<'_>, limit: Limit) -> Result<(), HostError> {
        let joined = match limit.kind {
            LimitKind::Project => {
                project_id(limit).map_err(io::Error::from).and_then(|id| project::join(file, id))
            }
            LimitKind::SimpleQuota | LimitKind::Qgroup => Err(Errno::ENOTSUP.into()),
        };
        joined.map_err(|e| HostError::call("put under a limit", fd_path(file), e))
    }

    fn set_bounds(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
        bounds: Option<Bounds>,
    ) -> Result<(), HostError> {
        on("set a limit on", filesystem, |filesystem| match limit.kind {
            LimitKind::Project => project::set(filesystem, project_id(limit)?, bounds),
            LimitKind::SimpleQuota | LimitKind::Qgroup => {
                qgroup::set(filesystem, limit.number, bounds.map(|bounds| bounds.bytes))
            }
        })
    }

    fn limit_state(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
    ) -> Result<Option<LimitState>, HostError> {
        on("ask for a limit on", filesystem, |filesystem| match limit.kind {
            LimitKind::Project => Ok(project::state(filesystem, project_id(limit)?)?),
            LimitKind::SimpleQuota | LimitKind::Qgroup => {
                Ok(qgroup::state(filesystem, limit.number)?)
            }
        })
    }

    fn limit_of(&self, directory: BorrowedFd<'_>) -> Result<Option<Limit>, HostError> {
        on("ask for the limit of", directory, |directory| {
            let Some(kind) = kind(directory)? else { return Ok(None) };
            let number = match kind {
                LimitKind::Project => project::id_of(directory)?.map(u64::from),
                LimitKind::SimpleQuota | LimitKind::Qgroup => qgroup::number_of(directory)?,
            };
            Ok(number.map(|number| Limit { kind, number }))
        })
    }

    fn end_limit(&self, filesystem: BorrowedFd<'_>, limit: Limit) -> Result<bool, HostError> {
        on("end a limit on", filesystem, |filesystem| match limit.kind {
            LimitKind::Project => project::end(filesystem, project_id(limit)?),
            LimitKind::SimpleQuota | LimitKind::Qgroup => qgroup::end(filesystem, limit.number),
        })
    }

    fn being_freed(&self, filesystem: BorrowedFd<'_>) -> Result<Vec<u64>, HostError> {
        on("ask what is being freed on", filesystem, |filesystem| {
            if is_btrfs(filesystem)? {
                Ok(qgroup::being_freed(filesystem)?)
            } else {
                Ok(Vec::new())
            }
        })
    }

    fn free_now(&self, filesystem: BorrowedFd<'_>) -> Result<(), HostError> {
        on("begin to free what was deleted on", filesystem, |filesystem| {
            if is_btrfs(filesystem)? { Ok(quota::btrfs_sync(filesystem)?) } else { Ok(()) }
        })
    }
}
