//! Removal of what lies in `trash/`, in the background: one thread per pool, so that a big removal holds up nothing and
//! a hung disk holds up only its own.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::open_pool::OpenPool;
use super::{EngineError, chain};
use crate::host::Host;
use crate::volume::LimitKind;

/// How long the space of removed subvolumes is waited for in one go, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// Has the pool's trash emptied soon.
pub(super) fn wake(pool: &Arc<OpenPool>, host: &Arc<dyn Host>) {
    {
        let mut turn = pool.reaper.turn();
        turn.again = turn.running;
        if turn.running {
            return;
        }
        turn.running = true;
    }
    let (thread_pool, thread_host) = (Arc::clone(pool), Arc::clone(host));
    let thread =
        std::thread::Builder::new().name(format!("reaper-{}", pool.name)).spawn(move || {
            loop {
                drain(&thread_pool, &*thread_host);
                if thread_pool.reaper.may_stop() {
                    break;
                }
            }
        });
    if let Err(error) = thread {
        // The next deletion, or the next look at the pools, tries again.
        tracing::warn!(pool = pool.name, %error, "cannot start the thread that empties the trash");
        pool.reaper.turn().running = false;
    }
}

/// Empties the pool's trash now. What cannot be removed stays and is tried again later.
///
/// What lies there is charged until its space is free: btrfs answers the removal of a subvolume long before that, and the
/// volume that wrote what is in it may need the room of its bound until then.
pub(super) fn drain(pool: &OpenPool, host: &dyn Host) {
    let _turn = pool.reaper.work.lock().unwrap_or_else(PoisonError::into_inner);
    let names = match pool.store.trash() {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(pool = pool.name, error = chain(&error), "cannot read the trash");
            return;
        }
    };
    let failed = |name: &OsStr, error: &dyn std::error::Error| {
        tracing::warn!(pool = pool.name, entry = %name.display(), error = chain(error), "cannot remove from the trash");
    };
    let mut empty = Vec::new();
    for name in names {
        match hollow(pool, &name, host) {
            Ok(()) => empty.push(name),
            Err(error) => failed(&name, &error),
        }
    }
    match wait_until_free(pool, host) {
        Ok(true) => {}
        Ok(false) => {
            tracing::info!(pool = pool.name, "the filesystem is still freeing what was removed");
            return;
        }
        Err(error) => {
            tracing::warn!(pool = pool.name, error = chain(&error), "cannot tell what is free");
            return;
        }
    }
    for name in empty {
        match close(pool, &name, host) {
            Ok(()) => {
                tracing::debug!(pool = pool.name, entry = %name.display(), "removed from the trash");
            }
            Err(error) => failed(&name, &error),
        }
    }
}

/// Removes the data of an entry. Its bound goes first: what is full may need room to become empty.
fn hollow(pool: &OpenPool, name: &OsStr, host: &dyn Host) -> Result<(), EngineError> {
    if let Some(limit) = pool.store.grave_limit(name) {
        let filesystem = pool.store.directory();
        if host.limit_state(filesystem, limit)?.is_some_and(|state| state.bounds.is_some()) {
            host.set_bounds(filesystem, limit, None)?;
        }
    }
    Ok(pool.store.empty_grave(name, host)?)
}

/// Waits until the space of what was removed is free; `false` when that takes long.
fn wait_until_free(pool: &OpenPool, host: &dyn Host) -> Result<bool, EngineError> {
    let filesystem = pool.store.directory();
    if host.limit_kind(filesystem)?.is_none() {
        return Ok(true);
    }
    let pending = host.being_freed(filesystem)?;
    let start = Instant::now();
    let mut left = pending.clone();
    while left.iter().any(|subvolume| pending.contains(subvolume)) {
        if start.elapsed() > PATIENCE {
            return Ok(false);
        }
        std::thread::park_timeout(PAUSE);
        left = host.being_freed(filesystem)?;
    }
    Ok(true)
}

/// Removes an entry that is empty, with its limit, and lowers the bounds that it had raised.
fn close(pool: &OpenPool, name: &OsStr, host: &dyn Host) -> Result<(), EngineError> {
    if let Some(limit) = pool.store.grave_limit(name)
        && !host.end_limit(pool.store.directory(), limit)?
    {
        if limit.kind != LimitKind::Project {
            return Err(EngineError::Away(format!("something is still under its limit ({limit})")));
        }
        // A file's owner may give it any project id. While one has this id, nobody else gets it.
        tracing::warn!(pool = pool.name, entry = %name.display(), %limit, "files that are not of the volume carry its project id");
    }
    for writer in pool.store.close_grave(name, host)? {
        pool.settle(&writer, host);
    }
    Ok(())
}
