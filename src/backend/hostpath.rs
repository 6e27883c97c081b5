//! A hostpath volume: a directory, on btrfs a subvolume, so that it can have a limit and atomic snapshots.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, fsync};

use super::{BackendError, Found, Watcher, count_tree};
use crate::fault;
use crate::host::{Bounds, Host, HostError, PoolFilesystem, RootOwner};
use crate::store::{DATA, VolumeDir};
use crate::volume::{Limit, LimitKind};

/// What a new directory is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewLimit {
    /// How.
    pub kind: LimitKind,
    /// To what.
    pub bounds: Bounds,
}

impl NewLimit {
    /// Puts the data directory, in which no pod has been yet, under a limit of its own, which holds nobody yet.
    pub(super) fn begin(self, dir: &VolumeDir, host: &dyn Host) -> Result<Limit, BackendError> {
        let data = dir.directory(DATA)?;
        let limit = host.begin_limit(data.as_fd(), self.kind)?;
        fault::point!("backend.limit.begun").map_err(|e| HostError::call("limit", DATA, e))?;
        Ok(limit)
    }

    /// Holds the data directory to its size.
    pub(super) fn bound(
        self,
        limit: Limit,
        dir: &VolumeDir,
        host: &dyn Host,
    ) -> Result<(), BackendError> {
        host.set_bounds(dir.as_fd(), limit, Some(self.bounds))?;
        fault::point!("backend.limit.bounded").map_err(|e| HostError::call("limit", DATA, e))?;
        Ok(())
    }

    /// Both.
    pub(super) fn hold(self, dir: &VolumeDir, host: &dyn Host) -> Result<Limit, BackendError> {
        let limit = self.begin(dir, host)?;
        self.bound(limit, dir, host)?;
        Ok(limit)
    }
}

/// Makes the volume's directory and flushes it.
///
/// # Errors
/// A system call failed.
pub fn create(
    dir: &VolumeDir,
    owner: RootOwner,
    limit: Option<NewLimit>,
    host: &dyn Host,
) -> Result<Option<Limit>, BackendError> {
    let failed =
        |operation: &'static str| move |e: nix::errno::Errno| HostError::call(operation, DATA, e);
    let data = if host.space(dir.as_fd())?.filesystem == PoolFilesystem::Btrfs {
        host.make_subvolume(dir.as_fd(), DATA)?;
        dir.directory(DATA)?
    } else {
        dir.create_directory(DATA)?
    };
    fault::point!("backend.hostpath.made").map_err(|e| HostError::call("make", DATA, e))?;
    let limit = limit.map(|limit| limit.hold(dir, host)).transpose()?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fault::step!("step.backend.chown", fchown(data.as_fd(), Some(uid), Some(gid)))
        .map_err(failed("set the owner of"))?;
    // After the owner: chown clears the set-id bits.
    let mode = Mode::from_bits_truncate(owner.mode);
    fault::step!("step.backend.chmod", fchmod(data.as_fd(), mode))
        .map_err(failed("set the mode of"))?;
    fault::step!("step.backend.flush", fsync(&data)).map_err(failed("flush"))?;
    fault::step!("step.backend.flush", fsync(dir.as_fd())).map_err(failed("flush"))?;
    Ok(limit)
}

/// Puts all that is in a directory under the limit of the directory itself. Links, pipes and devices cannot be put under
/// one; they take no space.
///
/// # Errors
/// A system call failed; a repeat goes on.
pub fn put_under_limit(
    directory: BorrowedFd<'_>,
    limit: Limit,
    host: &dyn Host,
) -> Result<(), BackendError> {
    let mut joining = Joining { limit, host, failed: None };
    count_tree(directory, &mut joining)?;
    joining.failed.map_or(Ok(()), |error| Err(error.into()))
}

struct Joining<'a> {
    limit: Limit,
    host: &'a dyn Host,
    failed: Option<HostError>,
}

impl Watcher for Joining<'_> {
    fn goes_on(&mut self) -> bool {
        self.failed.is_none()
    }

    fn found(&mut self, found: &Found<'_>) {
        let Some(file) = found.open() else { return };
        if let (Err(error), None) = (self.host.join_limit(file.as_fd(), self.limit), &self.failed) {
            self.failed = Some(error);
        }
    }
}

/// The limit that the data of a volume is under which is being born.
///
/// # Errors
/// A system call failed.
pub fn limit_of_new(dir: &VolumeDir, host: &dyn Host) -> Result<Option<Limit>, BackendError> {
    Ok(host.limit_of(dir.directory(DATA)?.as_fd())?)
}
