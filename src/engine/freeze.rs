//! Holds writers up for as long as it takes to share blocks: sync, durable mark, freeze, work, thaw.
//!
//! Invariants:
//! - What is frozen is the filesystem that was seen, held open since: a path may lead elsewhere by now.
//! - A filesystem that this driver freezes is marked in `state/` before, and the mark stays until it is known to be
//!   thawed. A later run thaws what is marked and belongs to no living process, before it listens.
//! - A second thread ends every freeze [`LONGEST`] after the first one, whatever the rest does; what the work made is
//!   then no good. So is it when somebody else ended a freeze early.
//! - What somebody else has frozen is not thawed here, unless this run is killed between its mark and its freeze.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Engine, EngineError, chain};
use crate::fault;
use crate::host::{HeldMount, HostError, MountEntry};
use crate::store::StoreError;
use crate::telemetry::{self, Reason};
use crate::volume::{Key, VolumeId};

/// Writers wait at most this long.
const LONGEST: Duration = Duration::from_secs(2);
/// How often and how long a start waits for another process that is just freezing.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// A mounted volume whose writers are to wait.
#[derive(Debug, Clone)]
pub(super) struct FreezePoint {
    pub(super) id: VolumeId,
    /// Its filesystem.
    pub(super) mount: Arc<dyn HeldMount>,
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
    fn keys(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of all of them at once.
    fn take(&self, keys: Vec<Key>) -> FreezeTurn<'_> {
        let busy = |taken: &mut HashSet<Key>| keys.iter().any(|key| taken.contains(key));
        let waited = self.change.wait_while(self.keys(), busy);
        waited.unwrap_or_else(PoisonError::into_inner).extend(keys.iter().cloned());
        FreezeTurn { freezes: self, keys }
    }
}

impl Drop for FreezeTurn<'_> {
    fn drop(&mut self) {
        self.freezes.keys().retain(|key| !self.keys.contains(key));
        self.freezes.change.notify_all();
    }
}

/// What this job has frozen, shared with the thread that ends it when time is up.
struct Frozen {
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    /// Not known to be thawed yet.
    points: Vec<FreezePoint>,
    /// No more is frozen; what is frozen is thawed.
    ended: bool,
    /// Time was up, or somebody else had thawed one before.
    torn: bool,
}

impl State {
    /// Thaws what is frozen; what fails stays, and can be tried again.
    fn thaw(&mut self) -> Result<(), HostError> {
        let mut failure = Ok(());
        let mut torn = self.torn;
        self.points.retain(|point| match point.mount.thaw() {
            Ok(was_frozen) => {
                torn |= !was_frozen;
                false
            }
            Err(error) => {
                failure = Err(error);
                true
            }
        });
        self.torn = torn;
        failure
    }
}

impl Frozen {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Freezes one more; `false` when somebody else has frozen it.
    fn add(&self, point: &FreezePoint) -> Result<bool, HostError> {
        if !point.mount.freeze()? {
            return Ok(false);
        }
        let mut state = self.state();
        state.points.push(point.clone());
        // Time may have been up while the kernel waited for its writers.
        let thawed = if state.ended { state.thaw() } else { Ok(()) };
        drop(state);
        thawed.map(|()| true)
    }

    /// Thaws all that is left to thaw.
    fn end(&self) -> Result<(), HostError> {
        let mut state = self.state();
        state.ended = true;
        let thawed = state.thaw();
        drop(state);
        self.change.notify_all();
        thawed
    }

    /// Ends the freeze when time is up and nobody has ended it.
    fn watch(&self) {
        let waited = self.change.wait_timeout_while(self.state(), LONGEST, |state| !state.ended);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return;
        }
        (state.ended, state.torn) = (true, true);
        if let Err(error) = state.thaw() {
            tracing::error!(error = chain(&error), "cannot thaw a volume; it is tried again");
        }
    }

    fn is_unthawed(&self, point: &FreezePoint) -> bool {
        self.state().points.iter().any(|left| left.id == point.id)
    }
}

impl Engine {
    /// Does the work while nobody can write to these volumes.
    ///
    /// # Errors
    /// What the work says, or the freeze failed, took too long or ended too early.
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
            point.mount.sync()?;
        }
        // A second freeze of one volume would find it frozen, and take away the mark of the first.
        let _turn = self.freezes.take(points.iter().map(|point| point.id.key.clone()).collect());
        // Another process must not take the marks for those of a dead one.
        let _alive = self.state.hold_marks()?;
        for point in points {
            // Nobody else can have a mark of a volume of this pool: a killed run left it, and what it froze.
            if self.state.is_marked(&point.id)? {
                point.mount.thaw()?;
            }
        }
        let frozen = Frozen { state: Mutex::default(), change: Condvar::new() };
        let start = Instant::now();
        let result = self.freeze(points, &frozen, work);
        // Whole microseconds, as people read them.
        let took = start.elapsed();
        let milliseconds = (took.as_secs_f64() * 1e6).round() / 1e3;
        telemetry::freeze(took);
        let volumes = points.len();
        tracing::info!(volumes, milliseconds, "writers were held up");
        if points.iter().any(|point| frozen.is_unthawed(point)) {
            // The timer has another try.
            self.thaw_pending.store(true, Ordering::SeqCst);
        }
        // A mark stays only where its volume is not known to be thawed.
        let thawed = points.iter().filter(|point| !frozen.is_unthawed(point));
        let unmark = |all: Result<(), StoreError>, point: &FreezePoint| {
            // Each of them, also behind one that fails.
            let unmarked = self.state.unmark_frozen(&point.id);
            all.and(unmarked)
        };
        let unmarked = thawed.fold(Ok(()), unmark);
        match result {
            Ok(done) => unmarked.map(|()| done).map_err(EngineError::from),
            Err(error) => Err(error.with_undo(unmarked)),
        }
    }

    fn freeze<T>(
        &self,
        points: &[FreezePoint],
        frozen: &Frozen,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        for point in points {
            self.state.mark_frozen(&point.id)?;
        }
        injected(fault::point!("engine.freeze.marked"))?;
        let (result, ended) = std::thread::scope(|scope| {
            let watchdog = std::thread::Builder::new().name("thaw".to_owned());
            if let Err(error) = watchdog.spawn_scoped(scope, || frozen.watch()) {
                let error = HostError::call("start a thread to thaw", "a volume", error);
                return (Err(error.into()), Ok(()));
            }
            let result = self.freeze_each(points, frozen, work);
            (result, frozen.end())
        });
        match (result, ended) {
            (Err(error), ended) => Err(error.with_undo(ended)),
            (Ok(_), Err(error)) => Err(error.into()),
            (Ok(_), Ok(())) if frozen.state().torn => Err(EngineError::Precondition(format!(
                "writers could not be held up for as long as the copy took (at most {} s), so it shows no single instant; repeat when the disk is less busy and nobody else thaws the volume",
                LONGEST.as_secs()
            ))),
            (Ok(done), Ok(())) => Ok(done),
        }
    }

    fn freeze_each<T>(
        &self,
        points: &[FreezePoint],
        frozen: &Frozen,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut elsewhere = Vec::new();
        for point in points {
            if frozen.state().ended {
                // Time is up; the rest need not wait for nothing.
                break;
            }
            if !frozen.add(point)? {
                // Nobody writes to it either. Were this run killed, the next one must not thaw it.
                self.state.unmark_frozen(&point.id)?;
                elsewhere.push(point);
            }
        }
        injected(fault::point!("engine.freeze.frozen"))?;
        let done = work()?;
        for point in elsewhere {
            // To freeze it is the only way to ask, and does so when it was not.
            self.state.mark_frozen(&point.id)?;
            if frozen.add(point)? {
                return Err(EngineError::Precondition(format!(
                    "volume {} was frozen by another program, which thawed it during the copy; repeat",
                    point.id
                )));
            }
        }
        Ok(done)
    }

    /// Thaws what a killed run has left frozen, unless that was done. What cannot be thawed stays marked.
    pub(super) fn thaw_marked(&self, wait: bool) {
        // Taken before the look: whoever fails to thaw meanwhile is not overlooked.
        if !self.thaw_pending.swap(false, Ordering::SeqCst) {
            return;
        }
        match self.try_thaw_marked(if wait { TRIES } else { 1 }) {
            Ok(true) => {}
            Ok(false) => {
                self.thaw_pending.store(true, Ordering::SeqCst);
                tracing::warn!(
                    "another process holds up writers; what an earlier run left frozen is looked for later"
                );
            }
            Err(error) => {
                self.thaw_pending.store(true, Ordering::SeqCst);
                tracing::error!(
                    error = chain(&error),
                    "cannot look for what an earlier run left frozen"
                );
            }
        }
    }

    fn try_thaw_marked(&self, tries: u32) -> Result<bool, EngineError> {
        for _ in 0..tries {
            if let Some(_nobody_freezes) = self.state.own_marks()? {
                let mut all = true;
                for id in self.state.frozen()? {
                    // One that cannot be thawed must not keep another one frozen.
                    all &= self.thaw_one(&id);
                }
                return Ok(all);
            }
            std::thread::park_timeout(PAUSE);
        }
        Ok(false)
    }

    fn thaw_one(&self, id: &VolumeId) -> bool {
        match self.thaw_volume(id) {
            Ok(thawed) => {
                tracing::warn!(volume = %id, thawed, "this volume's writers were still held up, by a run that was killed or could not thaw");
                match self.state.unmark_frozen(id) {
                    Ok(()) => {
                        telemetry::cleanup(Reason::FrozenFilesystem);
                        true
                    }
                    Err(error) => {
                        tracing::error!(volume = %id, error = chain(&error), "thawed, but its mark cannot be removed");
                        false
                    }
                }
            }
            Err(error) => {
                tracing::error!(volume = %id, error = chain(&error), "cannot thaw; run `fsfreeze --unfreeze` on its mount point");
                false
            }
        }
    }

    /// Thaws the filesystem of a volume; its loop device says which it is, since its pool may be away.
    fn thaw_volume(&self, id: &VolumeId) -> Result<bool, EngineError> {
        let label = id.to_string();
        let mut loops = self.host.loops()?;
        loops.retain(|status| status.label == label && status.backing_device.is_none());
        let table = self.host.mounts()?;
        let mut thawed = false;
        for status in loops {
            let ours = |entry: &&MountEntry| entry.mounted_loop() == Some(status.number);
            let seen = table.iter().find(ours).map(|entry| self.host.hold_mount(entry));
            // Unmounted, it stays frozen, and whoever mounts it again could not write.
            let mount = match seen.transpose()?.flatten() {
                Some(mount) => Some(mount),
                None => self.host.hold_device(status.number)?,
            };
            if let Some(mount) = mount {
                thawed |= mount.thaw()?;
            }
        }
        Ok(thawed)
    }
}

fn injected(fault: std::io::Result<()>) -> Result<(), EngineError> {
    fault.map_err(|e| StoreError::io("freeze", "a volume", e).into())
}
