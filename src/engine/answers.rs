//! Whether the filesystem of a pool answers, told by how long requests have been waiting for it.
//!
//! A disk that hangs gives no error: whoever writes to it waits, and nobody can end that. So requests that could go to
//! another pool wait for one pool in small numbers only, and not for one that does not answer.
//!
//! Must not: touch a disk, or hold up requests that have no other pool to go to.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Who waits longer than that for what takes milliseconds waits for a disk that hangs, or for one that is as good as that.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many of the requests that have a choice may wait for one pool. It must be a small part of what a lane holds
/// (`csi::jobs`), so that they cannot fill the lane before it shows that the pool hangs.
const PLACES: usize = 4;

/// The requests that are waiting for one pool.
#[derive(Debug, Default)]
pub(super) struct Answers {
    waiting: Mutex<Waiting>,
    change: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// When each of them came, by a number of its own.
    since: BTreeMap<u64, Instant>,
    next: u64,
}

impl Waiting {
    fn longest(&self) -> Duration {
        self.since.values().min().map_or(Duration::ZERO, Instant::elapsed)
    }
}

/// A request that waits for the pool; it has its answer when this is dropped.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    answers: &'a Answers,
    number: u64,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.answers.waiting().since.remove(&self.number);
        self.answers.change.notify_all();
    }
}

impl Answers {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Each change is one call that leaves it whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has been waiting for too long, and still is.
    pub(super) fn is_hung(&self) -> bool {
        self.waiting().longest() > PATIENCE
    }

    /// For a request that has no other pool to go to.
    pub(super) fn visit(&self) -> Visit<'_> {
        self.begin(&mut self.waiting())
    }

    /// For a request that has; `None` when the pool does not answer. While there is no place, this waits until there is one
    /// or until that shows.
    pub(super) fn enter(&self) -> Option<Visit<'_>> {
        let mut waiting = self.waiting();
        loop {
            let left = PATIENCE.checked_sub(waiting.longest())?;
            if waiting.since.len() < PLACES {
                return Some(self.begin(&mut waiting));
            }
            // A moment longer, so that the longest has waited for more than the time.
            let left = left + Duration::from_millis(1);
            let waited = self.change.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn begin(&self, waiting: &mut Waiting) -> Visit<'_> {
        waiting.next += 1;
        waiting.since.insert(waiting.next, Instant::now());
        Visit { answers: self, number: waiting.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everybody who waits came that long before.
    fn age(answers: &Answers, by: Duration) {
        for since in answers.waiting().since.values_mut() {
            *since = since.checked_sub(by).unwrap();
        }
    }

    #[test]
    fn a_pool_hangs_for_as_long_as_somebody_has_waited_for_too_long() {
        let answers = Answers::default();
        assert!(!answers.is_hung());
        let first = answers.visit();
        let second = answers.visit();
        assert!(!answers.is_hung() && answers.enter().is_some());
        age(&answers, PATIENCE * 2);
        assert!(answers.is_hung() && answers.enter().is_none());
        drop(first);
        assert!(answers.is_hung(), "the other one still waits");
        drop(second);
        assert!(!answers.is_hung() && answers.enter().is_some());
    }

    #[test]
    fn who_has_a_choice_waits_for_a_place_and_goes_elsewhere_when_the_pool_hangs() {
        let answers = Answers::default();
        let mut inside: Vec<_> = (0..PLACES).map(|_| answers.enter().unwrap()).collect();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| answers.enter().is_some());
            inside.pop();
            assert!(next.join().unwrap(), "a place was free");
            inside.push(answers.enter().unwrap());
            age(&answers, PATIENCE.checked_sub(Duration::from_millis(20)).unwrap());
            let late = scope.spawn(|| answers.enter().is_some());
            assert!(!late.join().unwrap(), "it hangs");
        });
        // Who has no choice is not held up here; the lane of the pool bounds how many they are.
        let _visits: Vec<_> = (0..PLACES).map(|_| answers.visit()).collect();
        assert_eq!(answers.waiting().since.len(), 2 * PLACES);
    }
}
