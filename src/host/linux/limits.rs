//! Project quotas of ext4 and XFS, and qgroups of btrfs, by ioctl and quotactl_fd.

mod qgroup;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::LinuxHost;
use super::filesystem::{is_btrfs, reopened};
use super::mounts::fd_path;
use crate::host::{Bounds, HostError, LimitState, Limits};
use crate::volume::{Limit, LimitKind};

/// Names what was tried, and where.
fn failed<E: Into<std::io::Error>>(
    operation: &'static str,
    directory: BorrowedFd<'_>,
) -> impl Fn(E) -> HostError {
    let path = fd_path(directory);
    move |e| HostError::call(operation, &path, e)
}

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
        let failed = failed("ask for the quotas of", filesystem);
        match open_on_btrfs(filesystem).map_err(&failed)? {
            Some(directory) => qgroup::kind(directory.as_fd()).map_err(&failed),
            None => Ok(None),
        }
    }

    fn enable_quota(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        let failed = failed::<std::io::Error>("switch quotas on for", filesystem);
        if let Some(directory) = open_on_btrfs(filesystem).map_err(|e| failed(e.into()))? {
            qgroup::enable(directory.as_fd()).map_err(failed)?;
        }
        self.limit_kind(filesystem)
    }

    fn begin_limit(&self, directory: BorrowedFd<'_>, kind: LimitKind) -> Result<Limit, HostError> {
        let failed = failed::<std::io::Error>("put under a limit", directory);
        if self.limit_kind(directory)? != Some(kind) {
            return Err(unsupported());
        }
        let open = reopened(directory).map_err(|e| failed(e.into()))?;
        let number = qgroup::begin(open.as_fd()).map_err(failed)?;
        Ok(Limit { kind, number })
    }

    fn set_bounds(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
        bounds: Option<Bounds>,
    ) -> Result<(), HostError> {
        let failed = failed::<std::io::Error>("set a limit on", filesystem);
        let open = reopened(filesystem).map_err(|e| failed(e.into()))?;
        let bytes = bounds.map(|bounds| bounds.bytes);
        qgroup::set(open.as_fd(), limit.number, bytes).map_err(failed)
    }

    fn limit_state(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
    ) -> Result<Option<LimitState>, HostError> {
        let failed = failed("ask for a limit on", filesystem);
        let open = reopened(filesystem).map_err(&failed)?;
        qgroup::state(open.as_fd(), limit.number).map_err(failed)
    }

    fn limit_of(&self, directory: BorrowedFd<'_>) -> Result<Option<Limit>, HostError> {
        let failed = failed("ask for the limit of", directory);
        let Some(kind) = self.limit_kind(directory)? else { return Ok(None) };
        let open = reopened(directory).map_err(&failed)?;
        let number = qgroup::number_of(open.as_fd()).map_err(failed)?;
        Ok(number.map(|number| Limit { kind, number }))
    }

    fn end_limit(&self, filesystem: BorrowedFd<'_>, limit: Limit) -> Result<bool, HostError> {
        let failed = failed::<std::io::Error>("end a limit on", filesystem);
        let open = reopened(filesystem).map_err(|e| failed(e.into()))?;
        qgroup::end(open.as_fd(), limit.number).map_err(failed)
    }

    fn being_freed(&self, filesystem: BorrowedFd<'_>) -> Result<Vec<u64>, HostError> {
        let failed = failed("ask what is being freed on", filesystem);
        match open_on_btrfs(filesystem).map_err(&failed)? {
            Some(directory) => qgroup::being_freed(directory.as_fd()).map_err(failed),
            None => Ok(Vec::new()),
        }
    }
}
