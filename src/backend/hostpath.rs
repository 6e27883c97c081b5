//! A hostpath volume: a directory, on btrfs a subvolume, so that it can have a limit and atomic snapshots.

use std::os::fd::AsFd;

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, fsync};

use super::BackendError;
use crate::fault;
use crate::host::{Host, HostError, PoolFilesystem, RootOwner};
use crate::store::{DATA, VolumeDir};

/// Makes the volume's directory and flushes it.
///
/// # Errors
/// A system call failed.
pub fn create(dir: &VolumeDir, owner: RootOwner, host: &dyn Host) -> Result<(), BackendError> {
    let failed =
        |operation: &'static str| move |e: nix::errno::Errno| HostError::call(operation, DATA, e);
    let data = if host.space(dir.as_fd())?.filesystem == PoolFilesystem::Btrfs {
        host.make_subvolume(dir.as_fd(), DATA)?;
        dir.directory(DATA)?
    } else {
        dir.create_directory(DATA)?
    };
    fault::point!("backend.hostpath.made").map_err(|e| HostError::call("make", DATA, e))?;
    fchown(data.as_fd(), Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
        .map_err(failed("set the owner of"))?;
    // After the owner: chown clears the set-id bits.
    fchmod(data.as_fd(), Mode::from_bits_truncate(owner.mode))
        .map_err(failed("set the mode of"))?;
    fsync(&data).map_err(failed("flush"))?;
    fsync(dir.as_fd()).map_err(failed("flush"))?;
    Ok(())
}
