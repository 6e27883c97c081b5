//! Blocking work behind async handlers.
//!
//! Invariants:
//! - At most one job per key. The key is tried, never waited for: busy is ABORTED, and the CO comes again.
//! - The guard of the key lives in the job. tonic drops a handler at the client's deadline while the job runs on; a
//!   guard in the handler would be free too early.
//! - Jobs are bounded per lane (a pool), so that a hung disk cannot take all threads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};
use tonic::Status;

use super::status::status;
use crate::engine::EngineError;

/// Jobs of one lane that run at the same time.
const LANE_WIDTH: usize = 16;

/// Runs blocking jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    busy: Mutex<HashSet<String>>,
    lanes: Mutex<HashMap<String, Arc<Semaphore>>>,
    running: Mutex<usize>,
    idle: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of these is changed by one call that leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to work on a key; given up when dropped.
#[derive(Debug)]
struct KeyGuard {
    shared: Arc<Shared>,
    key: String,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        lock(&self.shared.busy).remove(&self.key);
    }
}

/// Counts a running job.
#[derive(Debug)]
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = lock(&self.0.running);
        *running -= 1;
        if *running == 0 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Jobs {
    /// Runs a job that changes what `key` names. `lane` is the pool that it works on.
    ///
    /// # Errors
    /// ABORTED while another job has the key, otherwise what the job says.
    pub async fn change<T: Send + 'static>(
        &self,
        key: &str,
        lane: &str,
        job: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, Status> {
        let guard = self.try_key(key).ok_or_else(|| {
            Status::aborted(format!(
                "another request for {key} is running; try again when it has ended"
            ))
        })?;
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

    fn try_key(&self, key: &str) -> Option<KeyGuard> {
        let free = lock(&self.shared.busy).insert(key.to_owned());
        free.then(|| KeyGuard { shared: Arc::clone(&self.shared), key: key.to_owned() })
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
        let permit = self.lane(lane).acquire_owned().await;
        let permit = permit.map_err(|_closed| Status::unavailable("the driver is stopping"))?;
        *lock(&self.shared.running) += 1;
        let running = Running(Arc::clone(&self.shared));
        let joined = tokio::task::spawn_blocking(move || {
            let _held = (running, permit, guard);
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

    /// Waits until no job runs.
    pub async fn idle(&self) {
        loop {
            let idle = self.shared.idle.notified();
            if *lock(&self.shared.running) == 0 {
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
        let (started, has_started) = mpsc::channel::<()>();
        {
            let job = jobs.change("k", "p", move || {
                started.send(()).unwrap();
                wait.recv().unwrap();
                Ok(())
            });
            let mut job = Box::pin(job);
            tokio::select! {
                biased;
                _ = &mut job => panic!("the job cannot have ended"),
                () = tokio::task::yield_now() => {}
            }
            // The handler is dropped here, as tonic does at a deadline.
        }
        tokio::task::spawn_blocking(move || has_started.recv().unwrap()).await.unwrap();
        let busy = jobs.change("k", "p", || Ok(())).await.unwrap_err();
        assert_eq!(busy.code(), tonic::Code::Aborted);
        assert!(jobs.change("other", "p", || Ok(())).await.is_ok());
        go.send(()).unwrap();
        jobs.idle().await;
        assert!(jobs.change("k", "p", || Ok(())).await.is_ok());
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
