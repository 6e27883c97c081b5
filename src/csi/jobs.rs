//! Blocking work behind async handlers.
//!
//! Invariants:
//! - At most one job per key. The key is tried, never waited for: busy is ABORTED, and the CO comes again.
//! - The guard of the key lives in the job. tonic drops a handler at the client's deadline while the job runs on; a
//!   guard in the handler would be free too early.
//! - What a job copies from it pins: that makes a request that would change or end the source ABORTED, but no Node call.
//! - Jobs are bounded per lane (a pool), so that a hung disk cannot take all threads. Copies have lanes of their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore};
use tonic::Status;

use super::status::status;
use crate::engine::EngineError;
use crate::telemetry::{Figures, labels, metrics};

/// Jobs of one lane that run at the same time.
const LANE_WIDTH: usize = 16;

/// Runs blocking jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    shared: Arc<Shared>,
}

/// What a job works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    keys: Vec<String>,
    /// It changes or ends what the key names, so that nobody may be copying it.
    whole: bool,
    pins: Vec<String>,
}

impl Claims {
    /// A Node call on what the key names; no copy holds it up.
    pub fn node(key: impl Into<String>) -> Self {
        Self { keys: vec![key.into()], whole: false, pins: Vec::new() }
    }

    /// A change of what the key names.
    pub fn whole(key: impl Into<String>) -> Self {
        Self { keys: vec![key.into()], whole: true, pins: Vec::new() }
    }

    /// Changes nothing, but keeps these from being changed.
    pub fn reading(keys: impl IntoIterator<Item = String>) -> Self {
        Self { keys: Vec::new(), whole: false, pins: Vec::new() }.pinning(keys)
    }

    /// Changes these as well.
    #[must_use]
    pub fn with(mut self, keys: impl IntoIterator<Item = String>) -> Self {
        self.keys.extend(keys);
        self
    }

    /// Keeps what another key names from being changed meanwhile.
    #[must_use]
    pub fn pinning(mut self, keys: impl IntoIterator<Item = String>) -> Self {
        self.pins.extend(keys);
        self
    }
}

impl From<&String> for Claims {
    fn from(key: &String) -> Self {
        Self::whole(key)
    }
}

impl From<&str> for Claims {
    fn from(key: &str) -> Self {
        Self::whole(key)
    }
}

/// Who has which keys.
#[derive(Debug, Default)]
struct Keys {
    /// Whether the job that has it is a change.
    busy: HashMap<String, bool>,
    /// How many jobs copy from it.
    pinned: HashMap<String, usize>,
}

impl Keys {
    /// Takes all that is claimed, or says what is not to be had.
    fn take(&mut self, claims: &Claims) -> Result<(), String> {
        if let Some(key) = claims.keys.iter().find(|key| self.busy.contains_key(*key)) {
            return Err(format!(
                "another request for {key} is running; try again when it has ended"
            ));
        }
        let pinned = claims.keys.iter().find(|key| self.pinned.contains_key(*key));
        if let Some(key) = pinned.filter(|_| claims.whole) {
            return Err(format!("{key} is being copied; try again when that has ended"));
        }
        if let Some(pin) = claims.pins.iter().find(|pin| self.busy.get(*pin) == Some(&true)) {
            return Err(format!(
                "the source {pin} is being changed; try again when that has ended"
            ));
        }
        self.busy.extend(claims.keys.iter().map(|key| (key.clone(), claims.whole)));
        for pin in &claims.pins {
            *self.pinned.entry(pin.clone()).or_default() += 1;
        }
        Ok(())
    }

    fn give_back(&mut self, claims: &Claims) {
        for key in &claims.keys {
            self.busy.remove(key);
        }
        for pin in &claims.pins {
            if let Some(count) = self.pinned.get_mut(pin) {
                *count -= 1;
                if *count == 0 {
                    self.pinned.remove(pin);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    keys: Mutex<Keys>,
    lanes: Mutex<HashMap<String, Arc<Semaphore>>>,
    running: Mutex<Runs>,
    waiting: AtomicU64,
    idle: Notify,
}

/// The jobs that run, with the time at which each began, in that order.
#[derive(Debug, Default)]
struct Runs {
    begun: BTreeMap<u64, Instant>,
    next: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of these is changed by one call that leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to work on what is claimed; given up when dropped.
#[derive(Debug)]
struct KeyGuard {
    shared: Arc<Shared>,
    claims: Claims,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        lock(&self.shared.keys).give_back(&self.claims);
    }
}

/// Counts a running job.
#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    number: u64,
}

impl Running {
    fn begin(shared: &Arc<Shared>) -> Self {
        let mut runs = lock(&shared.running);
        let number = runs.next;
        runs.next += 1;
        runs.begun.insert(number, Instant::now());
        drop(runs);
        Self { shared: Arc::clone(shared), number }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut runs = lock(&self.shared.running);
        runs.begun.remove(&self.number);
        if runs.begun.is_empty() {
            self.shared.idle.notify_waiters();
        }
    }
}

/// Counts a request that waits for a place in its lane, also when its caller goes away.
#[derive(Debug)]
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Jobs {
    /// Runs a job that changes something. `lane` is the pool that it works on.
    ///
    /// # Errors
    /// ABORTED while another job has what it claims, otherwise what the job says.
    pub async fn change<T: Send + 'static>(
        &self,
        claims: impl Into<Claims>,
        lane: &str,
        job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        let claims = claims.into();
        lock(&self.shared.keys).take(&claims).map_err(Status::aborted)?;
        let guard = KeyGuard { shared: Arc::clone(&self.shared), claims };
        self.spawn(Some(guard), lane, job).await
    }

    /// Runs a job that changes nothing.
    ///
    /// # Errors
    /// What the job says.
    pub async fn read<T: Send + 'static>(
        &self,
        lane: &str,
        job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        self.spawn(None, lane, job).await
    }

    fn lane(&self, lane: &str) -> Arc<Semaphore> {
        let mut lanes = lock(&self.shared.lanes);
        // Ids from outside name lanes; what no pool has must not make this grow.
        if lanes.len() > 1024 {
            lanes.retain(|_, semaphore| semaphore.available_permits() < LANE_WIDTH);
        }
        let lane = lanes.entry(lane.to_owned());
        Arc::clone(lane.or_insert_with(|| Arc::new(Semaphore::new(LANE_WIDTH))))
    }

    async fn spawn<T: Send + 'static>(
        &self,
        guard: Option<KeyGuard>,
        lane: &str,
        job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        let waiting = Waiting::begin(&self.shared.waiting);
        let permit = self.lane(lane).acquire_owned().await;
        drop(waiting);
        let permit = permit.map_err(|_closed| Status::unavailable("the driver is stopping"))?;
        let running = Running::begin(&self.shared);
        let joined = tokio::task::spawn_blocking(move || {
            // Let go of in this order: whoever waits until nothing runs finds the key free.
            let _held = (guard, permit, running);
            job()
        });
        match joined.await {
            Ok(result) => result.map_err(|error| status(&error)),
            Err(panic) => {
                tracing::error!(%panic, "a job panicked; this is a bug of orlop");
                Err(Status::internal("a job of the driver panicked; its log has the place"))
            }
        }
    }

    /// Adds how many jobs there are, and how old the oldest is.
    pub fn figures(&self, figures: &mut Figures) {
        let runs = lock(&self.shared.running);
        let running = u64::try_from(runs.begun.len()).unwrap_or(u64::MAX);
        let oldest = runs.begun.values().next().map_or(0, |begun| begun.elapsed().as_secs());
        drop(runs);
        let waiting = self.shared.waiting.load(Ordering::Relaxed);
        figures.set(&metrics::JOBS, &labels(&["running"]), running);
        figures.set(&metrics::JOBS, &labels(&["waiting"]), waiting);
        figures.set(&metrics::OLDEST_JOB, &labels(&[]), oldest);
    }

    /// Waits until no job runs.
    pub async fn idle(&self) {
        loop {
            let idle = self.shared.idle.notified();
            if lock(&self.shared.running).begun.is_empty() {
                return;
            }
            idle.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_key_is_busy_until_its_job_ends_even_when_the_caller_has_gone() {
        let jobs = Jobs::default();
        let (go, wait) = mpsc::channel::<()>();
        let (started, has_started) = tokio::sync::oneshot::channel::<()>();
        {
            let job = jobs.change("k", "p", move || {
                started.send(()).unwrap();
                wait.recv().unwrap();
                Ok(())
            });
            tokio::select! {
                _ = job => panic!("the job cannot have ended"),
                started = has_started => started.unwrap(),
            }
            // The handler is dropped here, as tonic does at a deadline.
        }
        let busy = jobs.change("k", "p", || Ok(())).await.unwrap_err();
        assert_eq!(busy.code(), tonic::Code::Aborted);
        assert!(jobs.change("other", "p", || Ok(())).await.is_ok());
        go.send(()).unwrap();
        jobs.idle().await;
        assert!(jobs.change("k", "p", || Ok(())).await.is_ok());
    }

    #[test]
    fn a_copy_holds_up_changes_of_its_source_and_no_node_call() {
        let mut keys = Keys::default();
        let copy = Claims::whole("copy").pinning(["source".to_owned()]);
        let second = Claims::whole("second").pinning(["source".to_owned()]);
        keys.take(&copy).unwrap();
        keys.take(&second).unwrap();
        keys.give_back(&second);
        assert!(keys.take(&Claims::whole("source")).is_err(), "pinned once more");
        let stage = Claims::node("source");
        keys.take(&stage).unwrap();
        // And the other way round: what a Node call works on can be copied.
        keys.take(&second).unwrap();
        keys.give_back(&stage);
        keys.give_back(&copy);
        keys.give_back(&second);
        let delete = Claims::whole("source");
        keys.take(&delete).unwrap();
        assert!(keys.take(&copy).is_err(), "what is being changed is not copied");
        keys.give_back(&delete);
        assert!(keys.busy.is_empty() && keys.pinned.is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_internal_and_frees_the_key() {
        let jobs = Jobs::default();
        let failed =
            jobs.change("k", "p", || -> Result<(), EngineError> { panic!("on purpose") }).await;
        assert_eq!(failed.unwrap_err().code(), tonic::Code::Internal);
        assert!(jobs.change("k", "p", || Ok(())).await.is_ok());
    }
}
