//! Counts the files of directories that no limit counts, in the background: one thread per pool, when somebody has asked.
//!
//! What was counted is kept in memory with its time, and counted again when somebody asks for it and it is old. The
//! thread works a quarter of the time at most and yields the disk, so that pods do not feel it; it ends soon after its
//! volume was deleted, or its pool went away.
//!
//! The same thread looks for strays (see `strays`) when it is time for that.
//!
//! Must not: keep a pool open, or make anybody wait.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::chain;
use super::open_pool::OpenPool;
use super::strays::{self, Strays};
use crate::backend::{self, BackendError, Count, Found, Watcher};
use crate::host::Host;
use crate::store::Name;
use crate::volume::LimitKind;

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
    /// It is time to look for files that no limit counts.
    look: bool,
    /// There is a thread.
    running: bool,
    /// What it counts, until that is called off.
    current: Option<Name>,
    last: Option<Name>,
}

/// What the thread does.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    /// Count the files of a volume.
    Count(Name),
    /// Look for files that no limit counts.
    Look,
}

impl State {
    /// The next volume to count, in turn.
    fn next(&mut self) -> Option<Name> {
        let behind = self.last.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.waiting.range((behind, Bound::Unbounded)).next();
        let next = next.or_else(|| self.waiting.first()).cloned();
        if let Some(name) = &next {
            self.waiting.remove(name);
            self.last.clone_from(&next);
        }
        self.current.clone_from(&next);
        next
    }
}

/// The counts of one pool.
#[derive(Debug, Default)]
pub(super) struct Counts {
    state: Mutex<State>,
    changed: Condvar,
    /// Files that no limit counts.
    pub(super) strays: Strays,
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
        self.changed.notify_all();
        (count, !std::mem::replace(&mut state.running, true))
    }

    /// Has the thread look for strays; whether one has to be started for that.
    fn want_look(&self) -> bool {
        let mut state = self.lock();
        state.look = true;
        !std::mem::replace(&mut state.running, true)
    }

    /// What to do next; `None` ends the thread.
    fn take(&self) -> Option<Task> {
        let mut state = self.lock();
        if let Some(name) = state.next() {
            return Some(Task::Count(name));
        }
        if std::mem::take(&mut state.look) {
            return Some(Task::Look);
        }
        state.running = false;
        self.changed.notify_all();
        None
    }

    /// The next volume to count, while something else is done.
    fn take_waiting(&self) -> Option<Name> {
        self.lock().next()
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

    /// What is known of a volume; nothing is counted for that.
    pub(super) fn known(&self, name: &Name) -> Option<Count> {
        Some(self.lock().known.get(name)?.count?.0)
    }

    /// Forgets a volume that is gone, and has its counting end.
    pub(super) fn forget(&self, name: &Name) {
        self.strays.forget(name);
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

    /// Waits, unless there is something to count.
    fn idle(&self, time: Duration) {
        let idle = |state: &mut State| state.waiting.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), time, idle);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
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
        begin(pool, host);
    }
    known
}

/// Has files looked for that no limit counts, when it is time for that.
pub(super) fn look_when_due(pool: &Arc<OpenPool>, host: &Arc<dyn Host>) {
    if pool.counts.strays.is_due(Instant::now())
        && matches!(host.limit_kind(pool.store.directory()), Ok(Some(LimitKind::Project)))
        && pool.counts.want_look()
    {
        begin(pool, host);
    }
}

fn begin(pool: &Arc<OpenPool>, host: &Arc<dyn Host>) {
    let (weak, counts, thread_host) =
        (Arc::downgrade(pool), Arc::clone(&pool.counts), Arc::clone(host));
    let thread = std::thread::Builder::new()
        .name(format!("count-{}", pool.name))
        .spawn(move || Work { pool: &weak, counts: &counts, host: &*thread_host }.run());
    if let Err(error) = thread {
        // The next who asks tries again.
        tracing::warn!(pool = pool.name, %error, "cannot start the thread that counts files");
        pool.counts.lock().running = false;
    }
}

/// What the thread has.
#[derive(Clone, Copy)]
struct Work<'a> {
    pool: &'a Weak<OpenPool>,
    counts: &'a Counts,
    host: &'a dyn Host,
}

impl Work<'_> {
    fn run(self) {
        if let Err(error) = self.host.yield_disk() {
            tracing::debug!(
                error = chain(&error),
                "files are counted with the ordinary I/O priority"
            );
        }
        while let Some(task) = self.counts.take() {
            match task {
                Task::Count(name) => self.count(&name),
                Task::Look => self.look(),
            }
        }
    }

    fn count(self, name: &Name) {
        let begun = Instant::now();
        match self.counted(name, begun) {
            Ok(Some(count)) => self.counts.keep(name, Some(count), begun),
            // Called off, or the pool is away.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(volume = %name.key, error = chain(&error), "cannot count the files of a volume");
                self.counts.keep(name, None, begun);
            }
        }
    }

    fn counted(self, name: &Name, since: Instant) -> Result<Option<Count>, BackendError> {
        // The pool is let go of before the count begins, so that it can be closed.
        let opened = self.pool.upgrade().map(|pool| pool.store.open_volume(&name.key));
        let Some(volume) = opened else { return Ok(None) };
        backend::count_directory(&volume?, &mut Pace { work: self, name, since })
    }

    fn look(self) {
        let mut behind = None;
        loop {
            let Some(found) =
                self.pool.upgrade().and_then(|pool| strays::next(&pool, behind.as_ref()))
            else {
                return;
            };
            behind = Some(match found {
                Ok(suspect) => {
                    let name = &suspect.name;
                    let mut pace = SlowPace { work: self, name, since: Instant::now() };
                    let escaped = strays::look(&suspect, &mut pace, self.host);
                    if let (Some(escaped), Some(pool)) = (escaped, self.pool.upgrade()) {
                        strays::note(&pool, name, escaped);
                    }
                    suspect.name.key
                }
                Err(key) => key,
            });
        }
    }

    /// The pool is where it was.
    fn is_here(self) -> bool {
        self.pool.upgrade().is_some_and(|pool| pool.store.is_in_place())
    }
}

/// Works a quarter of the time, and ends when the volume is gone.
struct Pace<'a> {
    work: Work<'a>,
    name: &'a Name,
    since: Instant,
}

impl Watcher for Pace<'_> {
    fn goes_on(&mut self) -> bool {
        let worked = self.since.elapsed();
        if worked < STRETCH {
            return true;
        }
        let wanted = self.work.counts.rest(self.name, (worked * 3).min(LONGEST_REST));
        self.since = Instant::now();
        wanted && self.work.is_here()
    }

    fn found(&mut self, _found: &Found<'_>) {}
}

/// Works a twentieth of the time, and lets who asked for a count go first.
struct SlowPace<'a> {
    work: Work<'a>,
    name: &'a Name,
    since: Instant,
}

impl Watcher for SlowPace<'_> {
    fn goes_on(&mut self) -> bool {
        let worked = self.since.elapsed();
        if worked < STRETCH {
            return true;
        }
        self.work.counts.idle((worked * 19).min(LONGEST_REST));
        while let Some(name) = self.work.counts.take_waiting() {
            self.work.count(&name);
        }
        self.since = Instant::now();
        self.work.is_here() && self.work.pool.upgrade().is_some_and(|pool| pool.has(self.name))
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
        assert_eq!(counts.take(), Some(Task::Count(a.clone())));
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
        assert_eq!(counts.take(), Some(Task::Count(a.clone())));
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
        assert_eq!(counts.take(), Some(Task::Count(names[0].clone())));
        assert_eq!(counts.take(), Some(Task::Count(names[1].clone())));
        ask(0);
        assert!(counts.rest(&names[1], Duration::ZERO));
        counts.forget(&names[1]);
        assert!(!counts.rest(&names[1], Duration::from_secs(3600)), "called off at once");
        counts.keep(&names[1], Some(COUNT), now);
        assert_eq!(
            counts.take(),
            Some(Task::Count(names[2].clone())),
            "before the first once more"
        );
        counts.keep(&names[2], Some(COUNT), now);
        counts.forget(&names[0]);
        assert!(!counts.want_look(), "the thread is still there");
        ask(1);
        assert_eq!(counts.take_waiting().as_ref(), Some(&names[1]), "goes first");
        assert_eq!(counts.take(), Some(Task::Look));
        assert_eq!(counts.take(), None);
        counts.settle();
        assert_eq!(counts.lock().known.keys().collect::<Vec<_>>(), [&names[2]]);
    }
}
