//! Counts the files of directories that no limit counts, in the background: one thread per pool, when somebody has asked.
//!
//! What was counted is kept in memory with its time, and counted again when somebody asks for it and it is old. The
//! thread works a quarter of the time at most and yields the disk, so that pods do not feel it; it ends soon after its
//! volume was deleted, or its pool went away.
//!
//! Must not: keep a pool open, or make anybody wait.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::chain;
use super::open_pool::OpenPool;
use crate::backend::{self, BackendError, Count, Found, Watcher};
use crate::host::Host;
use crate::store::Name;

/// A count is taken again when it is so old, and no sooner than after four times what it took.
const FRESH: Duration = Duration::from_secs(300);
/// After so much work there is a rest of three times as long, but never a longer one than that.
const STRETCH: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// What is known of one volume.
#[derive(Debug)]
struct Known {
    /// `None`: it could not be counted.
    count: Option<(Count, Timestamp)>,
    ended: Instant,
    took: Duration,
}

impl Known {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.ended) < FRESH.max(self.took * 4)
    }
}

#[derive(Debug, Default)]
struct State {
    /// One small entry for each volume that somebody asked for.
    known: BTreeMap<Name, Known>,
    waiting: BTreeSet<Name>,
    /// There is a thread.
    running: bool,
    /// What it counts, until that is called off.
    current: Option<Name>,
    last: Option<Name>,
}

/// The counts of one pool.
#[derive(Debug, Default)]
pub(super) struct Counts {
    state: Mutex<State>,
    changed: Condvar,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one step, so a panic elsewhere has not broken it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a volume, and whether a thread has to be started to find out more.
    fn ask(&self, name: &Name, now: Instant) -> (Option<(Count, Timestamp)>, bool) {
        let mut state = self.lock();
        let known = state.known.get(name);
        let fresh = known.is_some_and(|known| known.is_fresh(now));
        let count = known.and_then(|known| known.count);
        if fresh || state.current.as_ref() == Some(name) {
            return (count, false);
        }
        state.waiting.insert(name.clone());
        (count, !std::mem::replace(&mut state.running, true))
    }

    /// The next volume to count, in turn; `None` ends the thread.
    fn take(&self) -> Option<Name> {
        let mut state = self.lock();
        let behind = state.last.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let next = state.waiting.range((behind, Bound::Unbounded)).next();
        let next = next.or_else(|| state.waiting.first()).cloned();
        if let Some(name) = &next {
            state.waiting.remove(name);
            state.last.clone_from(&next);
        } else {
            state.running = false;
            self.changed.notify_all();
        }
        state.current.clone_from(&next);
        next
    }

    /// Keeps what was found, unless the volume is gone by now.
    fn keep(&self, name: &Name, count: Option<Count>, begun: Instant) {
        let ended = Instant::now();
        let count = count.map(|count| (count, Timestamp::now()));
        let mut state = self.lock();
        if state.current.as_ref() == Some(name) {
            // A failure does not take away what was known.
            let count = count.or_else(|| state.known.get(name).and_then(|known| known.count));
            let known = Known { count, ended, took: ended.saturating_duration_since(begun) };
            state.known.insert(name.clone(), known);
        }
    }

    /// Forgets a volume that is gone, and has its counting end.
    pub(super) fn forget(&self, name: &Name) {
        let mut state = self.lock();
        state.known.remove(name);
        state.waiting.remove(name);
        if state.current.as_ref() == Some(name) {
            state.current = None;
            self.changed.notify_all();
        }
    }

    /// Waits, unless it is called off; `false` when it is.
    fn rest(&self, name: &Name, time: Duration) -> bool {
        let wanted = |state: &mut State| state.current.as_ref() == Some(name);
        let rested = self.changed.wait_timeout_while(self.lock(), time, wanted);
        let (mut state, _) = rested.unwrap_or_else(PoisonError::into_inner);
        wanted(&mut state)
    }

    /// Waits until nothing is left to count.
    pub(super) fn settle(&self) {
        let settled = self.changed.wait_while(self.lock(), |state| state.running);
        drop(settled.unwrap_or_else(PoisonError::into_inner));
    }
}

/// What is known of a volume's files. When that is old or nothing, they are counted soon.
pub(super) fn figures(
    pool: &Arc<OpenPool>,
    host: &Arc<dyn Host>,
    name: &Name,
) -> Option<(Count, Timestamp)> {
    let (known, start) = pool.counts.ask(name, Instant::now());
    if start {
        let (weak, counts) = (Arc::downgrade(pool), Arc::clone(&pool.counts));
        let thread_host = Arc::clone(host);
        let thread = std::thread::Builder::new()
            .name(format!("count-{}", pool.name))
            .spawn(move || work(&weak, &counts, &*thread_host));
        if let Err(error) = thread {
            // The next who asks tries again.
            tracing::warn!(pool = pool.name, %error, "cannot start the thread that counts files");
            pool.counts.lock().running = false;
        }
    }
    known
}

fn work(pool: &Weak<OpenPool>, counts: &Counts, host: &dyn Host) {
    if let Err(error) = host.yield_disk() {
        tracing::debug!(error = chain(&error), "files are counted with the ordinary I/O priority");
    }
    while let Some(name) = counts.take() {
        let begun = Instant::now();
        let mut pace = Pace { pool, counts, name: &name, since: begun };
        match count(&mut pace) {
            Ok(Some(count)) => counts.keep(&name, Some(count), begun),
            // Called off, or the pool is away.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(volume = %name.key, error = chain(&error), "cannot count the files of a volume");
                counts.keep(&name, None, begun);
            }
        }
    }
}

fn count(pace: &mut Pace<'_>) -> Result<Option<Count>, BackendError> {
    // The pool is let go of before the count begins: it must not wait for that when it is to be unmounted.
    let opened = pace.pool.upgrade().map(|pool| pool.store.open_volume(&pace.name.key));
    match opened {
        Some(volume) => backend::count_directory(&volume?, pace),
        None => Ok(None),
    }
}

/// Makes the work slow, and end when it should.
struct Pace<'a> {
    pool: &'a Weak<OpenPool>,
    counts: &'a Counts,
    name: &'a Name,
    since: Instant,
}

impl Watcher for Pace<'_> {
    fn goes_on(&mut self) -> bool {
        let worked = self.since.elapsed();
        if worked < STRETCH {
            return true;
        }
        let wanted = self.counts.rest(self.name, (worked * 3).min(LONGEST_REST));
        self.since = Instant::now();
        wanted && self.pool.upgrade().is_some_and(|pool| pool.store.is_in_place())
    }

    fn found(&mut self, _found: &Found<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{ByteSize, Generation, Key};

    fn name(text: &str) -> Name {
        Name { key: Key::of_name(text), generation: Generation::from_bits([0; 4]) }
    }

    const COUNT: Count = Count { bytes: ByteSize::gib(1), inodes: 7 };

    #[test]
    fn an_old_count_is_told_and_taken_again() {
        let (counts, a) = (Counts::default(), name("a"));
        let start = Instant::now();
        assert_eq!(counts.ask(&a, start), (None, true), "the first one starts a thread");
        assert_eq!(counts.ask(&a, start), (None, false), "there is one");
        assert_eq!(counts.take(), Some(a.clone()));
        assert_eq!(counts.ask(&a, start), (None, false), "it is being counted");
        counts.keep(&a, Some(COUNT), start);
        assert_eq!(counts.take(), None);
        let told = |after| {
            let (known, starts) = counts.ask(&a, Instant::now() + after);
            (known.map(|(count, _)| count), starts)
        };
        assert_eq!(told(Duration::ZERO), (Some(COUNT), false));
        assert_eq!(told(FRESH / 2), (Some(COUNT), false));
        assert_eq!(told(FRESH), (Some(COUNT), true));
        // It took an hour, and fails.
        let hour = Duration::from_secs(3600);
        assert_eq!(counts.take(), Some(a.clone()));
        counts.keep(&a, None, Instant::now().checked_sub(hour).unwrap());
        assert_eq!(counts.take(), None);
        assert_eq!(told(hour * 3), (Some(COUNT), false));
        assert_eq!(told(hour * 4), (Some(COUNT), true));
    }

    #[test]
    fn all_get_their_turn_and_what_is_gone_is_forgotten() {
        let counts = Counts::default();
        let mut names: Vec<Name> = ["a", "b", "c"].map(name).to_vec();
        names.sort();
        let now = Instant::now();
        let ask = |index: usize| counts.ask(&names[index], now);
        for index in 0..3 {
            ask(index);
        }
        assert_eq!(counts.take().as_ref(), Some(&names[0]));
        assert_eq!(counts.take().as_ref(), Some(&names[1]));
        ask(0);
        assert!(counts.rest(&names[1], Duration::ZERO));
        counts.forget(&names[1]);
        assert!(!counts.rest(&names[1], Duration::from_secs(3600)), "called off at once");
        counts.keep(&names[1], Some(COUNT), now);
        assert_eq!(counts.take().as_ref(), Some(&names[2]), "before the first once more");
        counts.keep(&names[2], Some(COUNT), now);
        counts.forget(&names[0]);
        assert_eq!(counts.take(), None);
        counts.settle();
        assert_eq!(counts.lock().known.keys().collect::<Vec<_>>(), [&names[2]]);
    }
}
