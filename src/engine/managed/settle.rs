//! The superblock of a managed XFS that has grown is written back at once.
//!
//! Recovery of the log of an XFS, after a power cut, does not know the new size and refuses blocks beyond the old one (seen
//! on Linux 6.1, after new space was written to): the pool would not mount any more. A freeze has the superblock written;
//! it waits for no more than what is dirty.
//!
//! Invariants: there is a mark in `state/` from before the growth until the filesystem is known to be thawed, so that the
//! run after one that was killed writes the superblock, or thaws what that one has frozen, before anything else.
//!
//! Must not: leave a pool frozen, also when it fails.

use std::path::Path;
use std::sync::Arc;

use super::Ground;
use super::apply::point;
use crate::engine::EngineError;
use crate::fault;
use crate::host::{HeldMount, Host, HostError};
use crate::store::StateDir;
use crate::telemetry::{self, Reason};

/// To be called before the growth.
pub(super) fn begin(ground: &Ground<'_>, pool: &str, path: &Path) -> Result<(), EngineError> {
    ground.state.mark_growing(pool)?;
    Ok(point(fault::point!("managed.settle.marked"), path)?)
}

/// The pool's filesystem, mounted at its path.
fn hold(host: &dyn Host, path: &Path) -> Result<Option<Arc<dyn HeldMount>>, EngineError> {
    let table = host.mounts()?;
    let Some(entry) = table.top_at(path) else { return Ok(None) };
    let gone = || HostError::call("hold the mount of", path, nix::errno::Errno::ESTALE);
    Ok(Some(host.hold_mount(entry)?.ok_or_else(gone)?))
}

/// Writes the superblock back. The pool is mounted at the path.
pub(super) fn end(ground: &Ground<'_>, pool: &str, path: &Path) -> Result<(), EngineError> {
    // Whoever unmounts it meanwhile mounts it again, and there is the mark.
    let Some(mount) = hold(ground.host, path)? else { return Ok(()) };
    // Most of it before the freeze, so that writers wait for little.
    mount.sync()?;
    let frozen = mount.freeze()?;
    let hit = point(fault::point!("managed.settle.frozen"), path);
    if frozen {
        mount.thaw()?;
    }
    hit?;
    Ok(ground.state.unmark_growing(pool)?)
}

/// Goes on with what an earlier run has begun. A filesystem that was unmounted while it was frozen is frozen when it is
/// mounted again.
pub(super) fn resume(ground: &Ground<'_>, pool: &str, path: &Path) -> Result<(), EngineError> {
    if !ground.state.is_growing(pool)? {
        return Ok(());
    }
    let Some(mount) = hold(ground.host, path)? else { return Ok(()) };
    if mount.thaw()? {
        say_thawed(pool);
    }
    end(ground, pool, path)
}

fn say_thawed(pool: &str) {
    telemetry::cleanup(Reason::FrozenFilesystem);
    tracing::warn!(pool, "an earlier run was killed while it held up the pool's writers");
}

/// Thaws every pool that an earlier run may have left frozen, also one that is not configured any more or cannot be
/// opened. To be called at the start; the marks stay.
pub(in crate::engine) fn thaw_left(state: &StateDir, host: &dyn Host) -> Result<(), EngineError> {
    for (pool, path) in state.growing()? {
        let uuid = state.managed(&pool)?.map(|record| record.uuid);
        let path = host.canonical(&path)?.unwrap_or(path);
        let Some(mount) = hold(host, &path)? else { continue };
        if uuid.is_some() && host.mounted_uuid(&path)? == uuid && mount.thaw()? {
            say_thawed(&pool);
        }
    }
    Ok(())
}
