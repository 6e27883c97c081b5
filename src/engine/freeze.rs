//! Holds writers up for as long as it takes to share blocks: sync, durable mark, freeze, work, thaw.
//!
//! Invariants:
//! - A filesystem that this driver froze is marked in `state/` before it is frozen, so that after a kill the next start
//!   thaws exactly those, before it listens.
//! - A second thread ends the freeze after [`LONGEST`], whatever the work does; what the work made is then no good.
//! - What somebody else has frozen is not thawed here.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Engine, EngineError, chain};
use crate::fault;
use crate::host::{Frozen, HostError, MountEntry};
use crate::store::StoreError;
use crate::volume::{Key, VolumeId};

/// Writers wait at most this long.
const LONGEST: Duration = Duration::from_secs(2);

/// A mounted volume whose writers are to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FreezePoint {
    pub(super) id: VolumeId,
    /// A mount of its filesystem.
    pub(super) mount_point: PathBuf,
}

/// The volumes that are being frozen, each by one job.
#[derive(Debug, Default)]
pub(super) struct Freezes {
    keys: Mutex<HashSet<Key>>,
    change: Condvar,
}

/// The right to freeze some volumes; given up when dropped.
struct FreezeTurn<'a> {
    freezes: &'a Freezes,
    keys: Vec<Key>,
}

impl Freezes {
    /// Waits for the turn of all of them at once. Others have theirs for a little more than [`LONGEST`].
    fn take(&self, keys: Vec<Key>) -> FreezeTurn<'_> {
        let taken = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |taken: &mut HashSet<Key>| keys.iter().any(|key| taken.contains(key));
        let mut taken = self.change.wait_while(taken, busy).unwrap_or_else(PoisonError::into_inner);
        taken.extend(keys.iter().cloned());
        drop(taken);
        FreezeTurn { freezes: self, keys }
    }
}

impl Drop for FreezeTurn<'_> {
    fn drop(&mut self) {
        let mut taken = self.freezes.keys.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|key| !self.keys.contains(key));
        drop(taken);
        self.freezes.change.notify_all();
    }
}

/// Ends freezes when time is up.
struct Watchdog {
    shared: Arc<Shared>,
    thread: std::thread::JoinHandle<()>,
}

struct Shared {
    frozen: Vec<Box<dyn Frozen>>,
    /// `Some(true)`: time is up; `Some(false)`: the work is done.
    ended: Mutex<Option<bool>>,
    change: Condvar,
}

impl Shared {
    fn thaw(&self) -> Result<(), HostError> {
        // All of them, also when one fails.
        let results: Vec<_> = self.frozen.iter().map(|frozen| frozen.thaw()).collect();
        results.into_iter().try_for_each(|result| result.map(drop))
    }
}

impl Watchdog {
    fn start(frozen: Vec<Box<dyn Frozen>>) -> Result<Self, (std::io::Error, Arc<Shared>)> {
        let shared = Arc::new(Shared { frozen, ended: Mutex::new(None), change: Condvar::new() });
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("thaw".to_owned()).spawn(move || {
            let ended = watched.ended.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = watched.change.wait_timeout_while(ended, LONGEST, |ended| ended.is_none());
            let (mut ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if ended.is_none() {
                *ended = Some(true);
                if let Err(error) = watched.thaw() {
                    tracing::error!(error = chain(&error), "cannot thaw a volume");
                }
            }
        });
        match thread {
            Ok(thread) => Ok(Self { shared, thread }),
            Err(error) => Err((error, shared)),
        }
    }

    /// Ends the freeze; `true` when that was in time.
    fn end(self) -> Result<bool, HostError> {
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let in_time = ended.is_none();
        ended.get_or_insert(false);
        drop(ended);
        let thawed = self.shared.thaw();
        self.shared.change.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the thread that ends a freeze panicked; this is a bug of orlop");
        }
        thawed.map(|()| in_time)
    }
}

impl Engine {
    /// Does the work while nobody can write to these volumes.
    ///
    /// # Errors
    /// What the work says, or the freeze failed or took too long.
    pub(super) fn while_frozen<T>(
        &self,
        points: &[FreezePoint],
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if points.is_empty() {
            return work();
        }
        for point in points {
            // Most of it before the freeze, so that writers wait for little.
            self.host.sync_at(&point.mount_point)?;
        }
        let mut marked = Vec::new();
        // A second freeze of one volume would find it frozen, and take away the mark of the first.
        let _turn = self.freezes.take(points.iter().map(|point| point.id.key.clone()).collect());
        let result = self.mark_and_freeze(points, &mut marked, work);
        let unmarked = marked.iter().try_for_each(|id| self.state.unmark_frozen(id));
        match result {
            Ok(done) => unmarked.map(|()| done).map_err(EngineError::from),
            Err(error) => Err(error.with_undo(unmarked)),
        }
    }

    fn mark_and_freeze<T>(
        &self,
        points: &[FreezePoint],
        marked: &mut Vec<VolumeId>,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        for point in points {
            self.state.mark_frozen(&point.id)?;
            marked.push(point.id.clone());
        }
        injected(fault::point!("engine.freeze.marked"))?;
        let start = Instant::now();
        let mut frozen = Vec::new();
        for point in points {
            match self.host.freeze(&point.mount_point) {
                Ok(Some(one)) => frozen.push(one),
                // Nobody writes to what another program has frozen, and ending that is not ours.
                Ok(None) => {}
                Err(error) => {
                    let thawed = frozen.iter().try_for_each(|one| one.thaw().map(drop));
                    return Err(EngineError::from(error).with_undo(thawed));
                }
            }
        }
        let watchdog = match Watchdog::start(frozen) {
            Ok(watchdog) => watchdog,
            Err((error, shared)) => {
                let error = HostError::call("start a thread to thaw", "a volume", error);
                return Err(EngineError::from(error).with_undo(shared.thaw()));
            }
        };
        let result = injected(fault::point!("engine.freeze.frozen")).and_then(|()| work());
        let in_time = watchdog.end();
        let milliseconds = start.elapsed().as_secs_f64() * 1e3;
        let volumes = points.len();
        tracing::info!(volumes, milliseconds, "writers were held up");
        match (result, in_time) {
            (Err(error), thawed) => Err(error.with_undo(thawed.map(drop))),
            (Ok(_), Err(error)) => Err(error.into()),
            (Ok(_), Ok(false)) => Err(EngineError::Precondition(format!(
                "the copy was not done within {} s, for which writers may be held up; repeat when the disk is less busy",
                LONGEST.as_secs()
            ))),
            (Ok(done), Ok(true)) => Ok(done),
        }
    }

    /// Thaws what a killed run has left frozen. What cannot be thawed stays marked.
    pub(super) fn thaw_marked(&self) -> Result<(), EngineError> {
        for id in self.state.frozen()? {
            match self.thaw_volume(&id) {
                Ok(thawed) => {
                    tracing::warn!(volume = %id, thawed, "an earlier run was killed while it held up this volume's writers");
                    self.state.unmark_frozen(&id)?;
                }
                Err(error) => {
                    tracing::error!(volume = %id, error = chain(&error), "cannot thaw; run `fsfreeze --unfreeze` on its mount point");
                }
            }
        }
        Ok(())
    }

    /// Thaws the filesystem of a volume wherever it is mounted; its loop device says which it is, since its pool may be
    /// away.
    fn thaw_volume(&self, id: &VolumeId) -> Result<bool, EngineError> {
        let label = id.to_string();
        let loops = self.host.loops()?;
        let table = self.host.mounts()?;
        let ours = |entry: &&MountEntry| {
            entry.mounted_loop().is_some_and(|number| {
                loops.iter().any(|status| status.number == number && status.label == label)
            })
        };
        match table.iter().find(ours) {
            Some(entry) => Ok(self.host.thaw_at(&entry.mount_point)?),
            None => Ok(false),
        }
    }
}

fn injected(fault: std::io::Result<()>) -> Result<(), EngineError> {
    fault.map_err(|e| StoreError::io("freeze", "a volume", e).into())
}
