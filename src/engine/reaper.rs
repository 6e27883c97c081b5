//! Removal of what lies in `trash/`, in the background: one thread per pool, so that a big removal holds up nothing and
//! a hung disk holds up only its own.

use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};

use super::chain;
use super::open_pool::OpenPool;
use crate::host::Host;

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
pub(super) fn drain(pool: &OpenPool, host: &dyn Host) {
    let _turn = pool.reaper.work.lock().unwrap_or_else(PoisonError::into_inner);
    let names = match pool.store.trash() {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(pool = pool.name, error = chain(&error), "cannot read the trash");
            return;
        }
    };
    for name in names {
        dispose(pool, &name, host);
    }
}

fn dispose(pool: &OpenPool, name: &OsStr, host: &dyn Host) {
    match pool.store.dispose(name, host) {
        Ok(()) => {
            tracing::debug!(pool = pool.name, entry = %name.display(), "removed from the trash");
        }
        Err(error) => {
            tracing::warn!(pool = pool.name, entry = %name.display(), error = chain(&error), "cannot remove from the trash");
        }
    }
}
