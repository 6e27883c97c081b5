//! A measurement that may hang, for somebody who must not: taken in a thread of its own, and kept.
//!
//! Invariant: at most one thread measures for each of these, so a disk that hangs holds one thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who asks gets nothing rather than something so old.
const STALE: Duration = Duration::from_secs(600);

/// The last measurement.
#[derive(Debug)]
pub(in crate::engine) struct Cached<T> {
    state: Mutex<State<T>>,
    ended: Condvar,
}

#[derive(Debug)]
struct State<T> {
    last: Option<(Arc<T>, Instant)>,
    running: bool,
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self { state: Mutex::new(State { last: None, running: false }), ended: Condvar::new() }
    }
}

/// The one who measures; gives the turn back also when that panics.
struct Turn<T>(Arc<Cached<T>>);

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        self.0.lock().running = false;
        self.0.ended.notify_all();
    }
}

impl<T> Cached<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change is one step, so a panic elsewhere has not broken it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was measured last, after waiting until `deadline` for a measurement that is under way.
    pub(super) fn get(&self, deadline: Instant) -> Option<Arc<T>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.ended.wait_timeout_while(self.lock(), left, |state| state.running);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let fresh = state.last.as_ref().filter(|(_, at)| at.elapsed() < STALE);
        fresh.map(|(value, _)| Arc::clone(value))
    }
}

impl<T: Send + Sync + 'static> Cached<T> {
    /// Has it measured when the last time is longer ago than `fresh` and nobody is at it.
    pub(super) fn refresh(
        self: &Arc<Self>,
        fresh: Duration,
        measure: impl FnOnce() -> T + Send + 'static,
    ) {
        {
            let mut state = self.lock();
            let is_fresh = state.last.as_ref().is_some_and(|(_, at)| at.elapsed() < fresh);
            if state.running || is_fresh {
                return;
            }
            state.running = true;
        }
        let turn = Turn(Arc::clone(self));
        let thread = std::thread::Builder::new().name("figures".to_owned()).spawn(move || {
            let value = measure();
            turn.0.lock().last = Some((Arc::new(value), Instant::now()));
        });
        if let Err(error) = thread {
            // The turn went back with the closure; the next scrape tries again.
            tracing::warn!(%error, "cannot start a thread that measures");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn what_hangs_holds_up_nobody_and_what_was_known_stays() {
        let cached = Arc::new(Cached::default());
        let soon = || Instant::now() + Duration::from_millis(10);
        let later = || Instant::now() + Duration::from_secs(60);
        assert_eq!(cached.get(later()), None);
        cached.refresh(Duration::ZERO, || 1);
        assert_eq!(cached.get(later()).as_deref(), Some(&1));
        cached.refresh(Duration::from_secs(60), || 2);
        assert_eq!(cached.get(later()).as_deref(), Some(&1), "it is fresh");

        let (go, wait) = mpsc::channel::<()>();
        cached.refresh(Duration::ZERO, move || {
            wait.recv().unwrap();
            3
        });
        assert_eq!(cached.get(soon()).as_deref(), Some(&1));
        cached.refresh(Duration::ZERO, || panic!("one at a time"));
        go.send(()).unwrap();
        assert_eq!(cached.get(later()).as_deref(), Some(&3));
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let cached = Arc::new(Cached::default());
        let later = || Instant::now() + Duration::from_secs(60);
        cached.refresh(Duration::ZERO, || panic!("on purpose"));
        assert_eq!(cached.get(later()), None::<Arc<u8>>);
        cached.refresh(Duration::ZERO, || 1);
        assert_eq!(cached.get(later()).as_deref(), Some(&1));
    }
}
