//! A pool that is open for writing, with all that several use cases share of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::EngineError;
use super::answers::{Answers, Visit};
use super::counting::Counts;
use super::figures::PoolFigures;
use super::limits::Holds;
use super::managed::Foundation;
use super::usable::Usable;
use crate::store::{Entry, Name, Pool, PoolLock};
use crate::volume::{ByteSize, Key, PoolTag, VolumeId};

/// What volumes may never take of a pool's filesystem.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserve {
    /// So many bytes.
    Bytes(ByteSize),
    /// That share of the filesystem, in percent.
    Percent(u8),
}

impl Reserve {
    /// The reserve of a filesystem of that size.
    #[must_use]
    pub fn of(self, total: ByteSize) -> ByteSize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => {
                let share = u128::from(total.bytes()) * u128::from(percent) / 100;
                ByteSize::new(u64::try_from(share).unwrap_or(u64::MAX))
            }
        }
    }
}

/// A pool that is open for writing.
#[derive(Debug)]
pub(super) struct OpenPool {
    pub(super) name: String,
    pub(super) store: Pool,
    pub(super) reserve: Reserve,
    pub(super) overcommit: f64,
    /// Who waits for its filesystem.
    pub(super) answers: Answers,
    /// What its filesystem has for it, as last measured.
    pub(super) usable: Usable,
    pub(super) reaper: Turns,
    /// Outlives the pool for as long as a thread counts.
    pub(super) counts: Arc<Counts>,
    /// What metrics tell of it.
    pub(super) figures: PoolFigures,
    /// Inline volumes whose pod was absent in the last scan.
    pub(super) orphans: Mutex<BTreeSet<VolumeId>>,
    pub(super) holds: Holds,
    /// Subvolumes of entries of the trash whose space is not free yet.
    pub(super) pending: Mutex<BTreeMap<OsString, BTreeSet<u64>>>,
    /// What a managed pool is on.
    pub(super) foundation: Option<Foundation>,
    /// Held for as long as the pool is open.
    #[expect(dead_code, reason = "what counts is that it is held")]
    pub(super) lock: PoolLock,
}

impl OpenPool {
    pub(super) fn tag(&self) -> PoolTag {
        self.store.uuid().tag()
    }

    /// A place for a request that is going to use the pool's filesystem; `None` when there are other pools to choose from
    /// and this one does not answer.
    pub(super) fn enter(&self, has_choice: bool) -> Option<Visit<'_>> {
        if has_choice { self.answers.enter() } else { Some(self.answers.visit()) }
    }

    /// Nothing can be made in a pool that takes no writes.
    ///
    /// # Errors
    /// [`EngineError::Away`]
    pub(super) fn check_writable(&self) -> Result<(), EngineError> {
        if !self.store.is_read_only() {
            return Ok(());
        }
        Err(EngineError::Away(format!(
            "the filesystem of pool {} ({}) is read-only; look at the kernel's log; mount it for writing again",
            self.name,
            self.store.path().display()
        )))
    }

    /// What there is to say of a pool that does not answer.
    pub(super) fn silence(&self) -> EngineError {
        EngineError::Away(format!(
            "pool {} ({}) does not answer: requests have been waiting for its filesystem for more than 10 s; look at the kernel's log, check the disk",
            self.name,
            self.store.path().display()
        ))
    }

    /// All volumes in the order of their keys. They are read in stretches, so that nobody waits for a long list.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Key, Entry)> + '_ {
        let mut behind: Option<Key> = None;
        let stretch = move || {
            let page = self.store.entries_after(behind.as_ref(), STRETCH);
            behind = Some(page.last()?.0.clone());
            Some(page)
        };
        std::iter::from_fn(stretch).flatten()
    }

    /// The volume is there, and not a successor of its name.
    pub(super) fn has(&self, name: &Name) -> bool {
        match self.store.entry(&name.key) {
            Some(Entry::Whole { generation, .. }) => generation == name.generation,
            Some(Entry::Damaged { .. }) | None => false,
        }
    }
}

/// So many volumes are taken from the index at once.
const STRETCH: usize = 256;

/// How long a request that would be refused waits for what is just being removed, and how often it looks.
const MOMENT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Whether a pool's trash is being emptied.
#[derive(Debug, Default)]
pub(super) struct Turns {
    turn: Mutex<Turn>,
    /// Held while entries are removed.
    pub(super) work: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) running: bool,
    pub(super) again: bool,
}

impl Turns {
    pub(super) fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what is in the trash by now is gone, but not for long.
    pub(super) fn wait_a_moment(&self) {
        let start = Instant::now();
        while self.turn().running && start.elapsed() < MOMENT {
            std::thread::park_timeout(PAUSE);
        }
    }

    /// The running thread may stop; `false` when there is new work for it.
    pub(super) fn may_stop(&self) -> bool {
        let mut turn = self.turn();
        turn.running = turn.again;
        turn.again = false;
        !turn.running
    }
}
