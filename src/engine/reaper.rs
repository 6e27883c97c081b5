//! Removal of what lies in `trash/`, in the background: one thread per pool, so that a big removal holds up nothing and
//! a hung disk holds up only its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::open_pool::OpenPool;
use super::{EngineError, chain};
use crate::host::Host;
use crate::telemetry::{self, Reason};
use crate::volume::LimitKind;

/// How long the space of removed subvolumes is waited for in one go, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
/// When the kernel has not freed anything by then, it is told to.
const HURRY: Duration = Duration::from_secs(1);

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
/// volume that wrote what is in it may need the room of its bound until then. Each entry waits for its own subvolumes
/// only; others of the filesystem may never be freed.
pub(super) fn drain(pool: &OpenPool, host: &dyn Host) {
    let _turn = pool.reaper.work.lock().unwrap_or_else(PoisonError::into_inner);
    let names = match pool.store.trash() {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(pool = pool.name, error = chain(&error), "cannot read the trash");
            return;
        }
    };
    let mut empty = BTreeSet::new();
    let mut seen = BTreeSet::new();
    if !names.is_empty() {
        match being_freed(pool, host) {
            Ok(freed) => seen = freed,
            Err(error) => return cannot_tell(pool, &error),
        }
    }
    for name in names {
        match hollow(pool, &name, &mut seen, host) {
            Ok(()) => drop(empty.insert(name)),
            Err(error) => say(pool, &name, &error),
        }
    }
    let nothing_is_freed = wait_until_free(pool, empty, host);
    pool.settle_overdue(nothing_is_freed, host);
    pool.measure_what_is_left(host);
}

/// Closes what is empty as soon as its space is free; whether the filesystem frees nothing more.
fn wait_until_free(pool: &OpenPool, mut empty: BTreeSet<OsString>, host: &dyn Host) -> bool {
    let start = Instant::now();
    let mut told = false;
    let nothing_is_freed = loop {
        let freed = match being_freed(pool, host) {
            Ok(freed) => freed,
            Err(error) => {
                cannot_tell(pool, &error);
                return false;
            }
        };
        close_free(pool, &mut empty, &freed, host);
        if empty.is_empty() || start.elapsed() > PATIENCE {
            break freed.is_empty();
        }
        if start.elapsed() > HURRY && !std::mem::replace(&mut told, true) {
            // Once: it writes what others have still to write.
            if let Err(error) = host.free_now(pool.store.directory()) {
                cannot_tell(pool, &error.into());
            }
        }
        std::thread::park_timeout(PAUSE);
    };
    if !empty.is_empty() {
        tracing::info!(
            pool = pool.name,
            entries = empty.len(),
            "the filesystem is still freeing what was removed"
        );
    }
    nothing_is_freed
}

fn say(pool: &OpenPool, name: &OsStr, error: &EngineError) {
    tracing::warn!(pool = pool.name, entry = %name.display(), error = chain(error), "cannot remove from the trash");
}

fn cannot_tell(pool: &OpenPool, error: &EngineError) {
    tracing::warn!(pool = pool.name, error = chain(error), "cannot tell what is free");
}

fn pending(pool: &OpenPool) -> MutexGuard<'_, BTreeMap<OsString, BTreeSet<u64>>> {
    pool.pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The subvolumes whose space is not free yet, on a pool where that matters.
fn being_freed(pool: &OpenPool, host: &dyn Host) -> Result<BTreeSet<u64>, EngineError> {
    let filesystem = pool.store.directory();
    if host.limit_kind(filesystem)?.is_none() {
        return Ok(BTreeSet::new());
    }
    Ok(host.being_freed(filesystem)?.into_iter().collect())
}

/// Removes the data of an entry, and notes the subvolumes that went with it: those that were not `seen` before. Its bound
/// goes first: what is full may need room to become empty.
fn hollow(
    pool: &OpenPool,
    name: &OsStr,
    seen: &mut BTreeSet<u64>,
    host: &dyn Host,
) -> Result<(), EngineError> {
    let filesystem = pool.store.directory();
    if let Some(limit) = pool.store.grave_limit(name) {
        let lifted = host.limit_state(filesystem, limit).and_then(|state| {
            if state.is_some_and(|state| state.bounds.is_some()) {
                host.set_bounds(filesystem, limit, None)?;
            }
            Ok(())
        });
        if let Err(error) = lifted {
            tracing::warn!(pool = pool.name, entry = %name.display(), error = chain(&error), "cannot lift its limit");
        }
    }
    let emptied = pool.store.empty_grave(name, host);
    let freed = being_freed(pool, host)?;
    let own: BTreeSet<u64> = freed.difference(seen).copied().collect();
    *seen = freed;
    emptied?;
    if !own.is_empty() {
        pending(pool).entry(name.to_owned()).or_default().extend(own);
    }
    Ok(())
}

/// Closes the entries of which nothing is being freed any more.
fn close_free(
    pool: &OpenPool,
    empty: &mut BTreeSet<OsString>,
    freed: &BTreeSet<u64>,
    host: &dyn Host,
) {
    for name in empty.clone() {
        if pending(pool).get(&name).is_some_and(|own| !own.is_disjoint(freed)) {
            continue;
        }
        empty.remove(&name);
        pending(pool).remove(&name);
        match close(pool, &name, host) {
            Ok(()) => {
                tracing::debug!(pool = pool.name, entry = %name.display(), "removed from the trash");
                telemetry::cleanup(Reason::Trash);
            }
            Err(error) => say(pool, &name, &error),
        }
    }
}

/// Removes an entry that is empty, with its limit, and lowers the bounds that it had raised.
fn close(pool: &OpenPool, name: &OsStr, host: &dyn Host) -> Result<(), EngineError> {
    if let Some(limit) = pool.store.grave_limit(name)
        && !host.end_limit(pool.store.directory(), limit)?
    {
        if limit.kind != LimitKind::Project {
            return Err(EngineError::Away(format!("something is still under its limit ({limit})")));
        }
        // A file's owner may give it any project id, and XFS counts what was removed a moment longer. While anything has
        // this id, nobody else gets it.
        tracing::info!(pool = pool.name, entry = %name.display(), %limit, "its project id is still in use");
    }
    pool.will_be_less();
    for writer in pool.store.close_grave(name, host)? {
        pool.settle(&writer, host);
    }
    Ok(())
}
