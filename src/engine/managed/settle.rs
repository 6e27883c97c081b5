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

use super::Ground;
use super::apply::point;
use crate::engine::EngineError;
use crate::fault;

/// To be called before the growth.
pub(super) fn begin(ground: &Ground<'_>, pool: &str, path: &Path) -> Result<(), EngineError> {
    ground.state.mark_growing(pool)?;
    Ok(point(fault::point!("managed.settle.marked"), path)?)
}

/// Writes the superblock back, if that has been begun, or was by an earlier run. `path` is where the pool is mounted.
pub(super) fn end(ground: &Ground<'_>, pool: &str, path: &Path) -> Result<(), EngineError> {
    if !ground.state.is_growing(pool)? {
        return Ok(());
    }
    let table = ground.host.mounts()?;
    let seen = table.top_at(path).map(|entry| ground.host.hold_mount(entry));
    // Unmounted, it has been written back.
    if let Some(mount) = seen.transpose()?.flatten() {
        if mount.thaw()? {
            tracing::warn!(pool, "an earlier run was killed while it held up the pool's writers");
        }
        // Most of it before the freeze, so that writers wait for little.
        mount.sync()?;
        let frozen = mount.freeze()?;
        let hit = point(fault::point!("managed.settle.frozen"), path);
        if frozen {
            mount.thaw()?;
        }
        hit?;
    }
    Ok(ground.state.unmark_growing(pool)?)
}
