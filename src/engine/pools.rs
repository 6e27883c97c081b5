//! The pools of this node: which are here, which are away, and why.
//!
//! Invariants:
//! - A pool is written to only while its lock in `state/` is held and its path leads to the directory that was opened.
//! - A known pool whose marker is absent or different is away, never made anew: an unmounted disk looks like an empty
//!   directory.
//! - Nothing here refuses to start. A pool that is away is tried again when somebody asks for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::answers::Answers;
use super::limits::Holds;
use super::managed::{self, CreatePool, Foundation, Ground};
use super::open_pool::{OpenPool, Reserve, Turns};
use super::system::System;
use super::usable::Usable;
use super::{EngineConfig, EngineError, chain, counting, figures, reaper};
use crate::host::{Host, Space};
use crate::store::{Charges, Marker, Pool, PoolLook, StateDir, StoreError};
use crate::telemetry::{self, Recovery};
use crate::volume::{PoolChoice, PoolTag, PoolUuid};

/// A pool as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolConfig {
    /// Its name in StorageClasses.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// `None`: 20 % when it shares its filesystem with the system, kubelet or container storage, otherwise 5 %.
    pub reserve: Option<Reserve>,
    /// Bytes promised for each real one; thick images are never overcommitted.
    pub overcommit: f64,
    /// A managed pool: its filesystem is made once, and mounted at `path`.
    pub create: Option<CreatePool>,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolStatus {
    /// Open.
    Ready {
        /// Its identity.
        uuid: PoolUuid,
    },
    /// Another process has its lock; it may be the one that this process replaces.
    Waiting(String),
    /// Not usable, and why.
    Away(String),
}

/// What there is to say of one pool.
#[derive(Debug, Clone)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// How it is.
    pub status: PoolStatus,
    /// Its filesystem, when it is open.
    pub space: Option<Space>,
    /// What it has promised, when it is open.
    pub charges: Option<Charges>,
}

#[derive(Debug, Clone)]
enum State {
    Ready(Arc<OpenPool>),
    Waiting(String),
    Away(String),
}

impl State {
    fn has_same_reason(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Away(one), Self::Away(two)) | (Self::Waiting(one), Self::Waiting(two)) => {
                one == two
            }
            (Self::Ready(_) | Self::Waiting(_) | Self::Away(_), _) => false,
        }
    }
}

/// Why a pool cannot be opened whose filesystem is being waited for.
const SILENCE: &str = "its filesystem does not answer: opening it takes more than 10 s; look at the kernel's log, check the disk";

/// One configured pool. Neither lock is held over I/O that others wait for: a hung disk must not stop the other pools.
#[derive(Debug)]
struct Slot {
    config: PoolConfig,
    /// Held for a moment only.
    state: Mutex<State>,
    /// Held by the one thread that tries to open the pool.
    opening: Mutex<()>,
    /// That thread, while it looks into the pool.
    answers: Answers,
}

/// All configured pools.
#[derive(Debug)]
pub(super) struct Pools {
    slots: Vec<Slot>,
    host: Arc<dyn Host>,
    state: Arc<StateDir>,
    root_dir: PathBuf,
    init: bool,
    /// A pool on the filesystem of one of these keeps a larger reserve.
    system: System,
}

impl Slot {
    fn state(&self) -> State {
        let state = self.lock().clone();
        match &state {
            // The thread that opens it cannot say so.
            State::Waiting(_) if self.answers.is_hung() => State::Away(SILENCE.to_owned()),
            State::Ready(_) | State::Waiting(_) | State::Away(_) => state,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, so a panic while it was held has not broken it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> Option<Arc<OpenPool>> {
        match self.state() {
            State::Ready(pool) => Some(pool),
            State::Waiting(_) | State::Away(_) => None,
        }
    }

    /// Replaces the state and says so once.
    fn change(&self, next: State) {
        let (pool, path) = (&self.config.name, self.config.path.display());
        let mut state = self.lock();
        match &next {
            State::Ready(open) => {
                tracing::info!(pool, %path, uuid = %open.store.uuid(), "pool is open");
                if matches!(*state, State::Away(_)) {
                    telemetry::recovery(Recovery::Pool);
                }
            }
            State::Waiting(reason) | State::Away(reason) if !state.has_same_reason(&next) => {
                tracing::warn!(pool, %path, reason, "pool is away");
            }
            State::Waiting(_) | State::Away(_) => {}
        }
        *state = next;
    }
}

impl Pools {
    pub(super) fn new(config: &EngineConfig, host: Arc<dyn Host>, state: Arc<StateDir>) -> Self {
        let slot = |config: &PoolConfig| Slot {
            config: config.clone(),
            state: Mutex::new(State::Waiting("not opened yet".to_owned())),
            opening: Mutex::default(),
            answers: Answers::default(),
        };
        Self {
            slots: config.pools.iter().map(slot).collect(),
            host,
            state,
            root_dir: config.root_dir.clone(),
            init: config.init_pools,
            system: System::new(&config.kubelet_dir),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.config.name.as_str())
    }

    /// Opens a pool if it is away, and has another try at its trash.
    pub(super) fn retry(&self, name: &str) {
        for slot in self.slots.iter().filter(|slot| slot.config.name == name) {
            // A failure is kept as the state of the pool.
            if let Ok(pool) = self.refresh(slot) {
                reaper::wake(&pool, &self.host);
                counting::look_when_due(&pool, &self.host);
                pool.measure_when_due(&*self.host);
            }
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.slots.iter().any(|slot| matches!(slot.state(), State::Waiting(_)))
    }

    pub(super) fn root_dir(&self) -> &Path {
        &self.root_dir
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.slots.iter().map(|slot| slot.config.path.as_path())
    }

    /// The pool of a slot if it is here now; otherwise one try to open it.
    fn refresh(&self, slot: &Slot) -> Result<Arc<OpenPool>, EngineError> {
        if let Some(pool) = slot.ready() {
            if pool.store.is_in_place() {
                return Ok(pool);
            }
            // Lets go of it (when the last job is done with it), so that its disk can be unmounted.
            let reason = "its directory is no longer at its path; its disk is probably unmounted";
            slot.change(State::Away(reason.to_owned()));
            // The next call tries to open it: until the last job is done, the lock is still ours.
            return Err(away(&slot.config, reason));
        }
        let Ok(_turn) = slot.opening.try_lock() else {
            let reason =
                if slot.answers.is_hung() { SILENCE } else { "it is being opened; try again" };
            return Err(away(&slot.config, reason));
        };
        // Whoever had the turn before may have opened it.
        if let Some(pool) = slot.ready() {
            return Ok(pool);
        }
        match self.open(slot) {
            Ok(pool) => {
                let pool = Arc::new(pool);
                slot.change(State::Ready(Arc::clone(&pool)));
                if let Some(error) = self.twins(&pool.tag()) {
                    tracing::error!(pool = slot.config.name, %error, "pool is not served");
                }
                reaper::wake(&pool, &self.host);
                Ok(pool)
            }
            Err(error) => {
                let reason = chain(&error);
                slot.change(if matches!(error, EngineError::Store(StoreError::Locked { .. })) {
                    State::Waiting(reason.clone())
                } else {
                    State::Away(reason.clone())
                });
                Err(away(&slot.config, &reason))
            }
        }
    }

    /// Opens a pool by the rules of its life: known, new, adopted or refused.
    fn open(&self, slot: &Slot) -> Result<OpenPool, EngineError> {
        let config = &slot.config;
        let lock = self.state.lock(&config.name)?;
        let known = self.state.known(&config.name)?;
        let foundation = self.prepare(config, known.is_some())?;
        let may_init = self.init && config.create.is_none()
            || foundation.as_ref().is_some_and(|foundation| foundation.is_new);
        let _visit = slot.answers.visit();
        see_or_make(config, known.as_ref(), may_init)?;
        let store = Pool::open(&config.path, &*self.host)?;
        if known.as_ref() != Some(store.uuid()) {
            self.state.remember(&config.name, store.uuid(), &config.path)?;
        }
        Ok(OpenPool {
            name: config.name.clone(),
            reserve: self.reserve(config),
            overcommit: config.overcommit,
            answers: Answers::default(),
            usable: Usable::default(),
            reaper: Turns::default(),
            counts: Arc::default(),
            figures: figures::PoolFigures::default(),
            orphans: Mutex::default(),
            holds: Holds::new(store.writers()),
            pending: Mutex::default(),
            store,
            foundation,
            lock,
        })
    }

    fn reserve(&self, config: &PoolConfig) -> Reserve {
        config.reserve.unwrap_or_else(|| self.system.reserve(&config.path, &*self.host))
    }

    /// Sees to it that the filesystem of a managed pool is mounted.
    fn prepare(&self, config: &PoolConfig, known: bool) -> Result<Option<Foundation>, EngineError> {
        let ground = Ground {
            host: &*self.host,
            state: &self.state,
            root_dir: &self.root_dir,
            system: &self.system,
        };
        let create = config.create.as_ref();
        create.map(|create| managed::prepare(&ground, config, create, known)).transpose()
    }

    /// Every configured pool, or why it is not served now.
    pub(super) fn each(&self) -> Vec<Result<Arc<OpenPool>, EngineError>> {
        let open: Vec<_> = self.slots.iter().map(|slot| self.refresh(slot)).collect();
        let own = |pool: Arc<OpenPool>| self.twins(&pool.tag()).map_or(Ok(pool), Err);
        open.into_iter().map(|pool| pool.and_then(own)).collect()
    }

    /// All pools that are here now, without those whose identity is not their own.
    pub(super) fn here(&self) -> Vec<Arc<OpenPool>> {
        self.each().into_iter().filter_map(Result::ok).collect()
    }

    /// Why the pool of that tag is not served now; `None` when no configured pool is known to have it.
    pub(super) fn missing(&self, tag: &PoolTag) -> Option<EngineError> {
        let known = |slot: &&Slot| {
            let uuid = self.state.known(&slot.config.name).ok().flatten();
            uuid.is_some_and(|uuid| uuid.tag() == *tag)
        };
        self.twins(tag).or_else(|| {
            let slot = self.slots.iter().filter(|slot| slot.ready().is_none()).find(known)?;
            match slot.state() {
                State::Ready(_) => None,
                State::Waiting(reason) | State::Away(reason) => Some(away(&slot.config, &reason)),
            }
        })
    }

    /// Two open pools have that tag, which is one too many to serve either; from memory.
    fn twins(&self, tag: &PoolTag) -> Option<EngineError> {
        let open = self.open_ones();
        let mut found = open.iter().filter(|pool| pool.tag() == *tag);
        let (one, other) = (found.next()?, found.next()?);
        Some(EngineError::Away(format!(
            "the pools {} and {} have the same UUID {}; one is a copy of the other: take it out of the configuration or run `orlop pool new-uuid` on it",
            one.name,
            other.name,
            one.store.uuid()
        )))
    }

    /// The pools that a new volume may go to.
    ///
    /// # Errors
    /// No pool has that name, or it is away.
    pub(super) fn chosen(&self, choice: &PoolChoice) -> Result<Vec<Arc<OpenPool>>, EngineError> {
        let PoolChoice::Named(name) = choice else {
            return Ok(self.here());
        };
        let Some(slot) = self.slots.iter().find(|slot| slot.config.name == *name) else {
            let names: Vec<_> = self.slots.iter().map(|slot| slot.config.name.as_str()).collect();
            return Err(EngineError::Invalid(format!(
                "parameter pool has the value {name:?}; this node's pools are: {}",
                names.join(", ")
            )));
        };
        let pool = self.refresh(slot)?;
        Ok(vec![self.by_tag(&pool.tag())?])
    }

    /// Requests with that choice can go to one of several pools.
    pub(super) fn has_choice(&self, choice: &PoolChoice) -> bool {
        *choice == PoolChoice::Any && self.slots.len() > 1
    }

    /// All open pools, from memory: nobody's disk is asked.
    pub(super) fn open_ones(&self) -> Vec<Arc<OpenPool>> {
        self.slots.iter().filter_map(Slot::ready).collect()
    }

    /// One configured pool that is away or has the identity of another one, if there is one.
    pub(super) fn first_away(&self) -> Option<EngineError> {
        let mut closed = self.slots.iter().filter(|slot| slot.ready().is_none());
        let away = closed.find_map(|slot| self.refresh(slot).err());
        away.or_else(|| self.open_ones().iter().find_map(|pool| self.twins(&pool.tag())))
    }

    /// The pool of that tag.
    ///
    /// # Errors
    /// [`EngineError::Away`]: it is not here. Never "not found": the volume may well exist.
    pub(super) fn by_tag(&self, tag: &PoolTag) -> Result<Arc<OpenPool>, EngineError> {
        let find =
            || self.slots.iter().find(|slot| slot.ready().is_some_and(|pool| pool.tag() == *tag));
        if find().is_none() {
            for slot in self.slots.iter().filter(|slot| slot.ready().is_none()) {
                let _open_or_away = self.refresh(slot);
            }
        }
        match (find(), self.twins(tag)) {
            (_, Some(twins)) => Err(twins),
            (Some(slot), None) => self.refresh(slot),
            (None, None) => Err(self.away_by_tag(tag)),
        }
    }

    /// Why no open pool has that tag.
    fn away_by_tag(&self, tag: &PoolTag) -> EngineError {
        // Which pools were here before is remembered by name.
        let was_it = |slot: &&Slot| {
            let known = self.state.known(&slot.config.name);
            known.is_ok_and(|known| known.is_some_and(|uuid| uuid.tag() == *tag))
        };
        match self.slots.iter().find(was_it).map(|slot| (slot, slot.state())) {
            Some((slot, State::Waiting(reason))) => EngineError::Away(format!(
                "pool {} ({}) is not open: {reason}; it is taken over when that has ended",
                slot.config.name,
                slot.config.path.display()
            )),
            Some((slot, State::Away(reason))) => away(&slot.config, &reason),
            Some((_, State::Ready(_))) | None => EngineError::Away(format!(
                "the pool {tag} is not on this node now; mount its disk, or give up what it has with `orlop volume forget` or `orlop snapshot forget`"
            )),
        }
    }

    pub(super) fn reports(&self) -> Vec<PoolReport> {
        let report = |slot: &Slot| {
            let opened = self.refresh(slot).ok();
            let status = match slot.state() {
                State::Ready(pool) => match self.twins(&pool.tag()) {
                    None => PoolStatus::Ready { uuid: pool.store.uuid().clone() },
                    Some(error) => PoolStatus::Away(chain(&error)),
                },
                State::Waiting(reason) => PoolStatus::Waiting(reason),
                State::Away(reason) => PoolStatus::Away(reason),
            };
            PoolReport {
                name: slot.config.name.clone(),
                path: slot.config.path.clone(),
                status,
                space: opened
                    .as_ref()
                    .and_then(|pool| self.host.space(pool.store.directory()).ok()),
                charges: opened.as_ref().map(|pool| pool.store.charges()),
            }
        };
        self.slots.iter().map(report).collect()
    }

    pub(super) fn drain_trash(&self) {
        for pool in self.here() {
            reaper::drain(&pool, &*self.host);
        }
    }
}

/// The pool that is to be at a path is there; a new one is made where that may be.
fn see_or_make(
    config: &PoolConfig,
    known: Option<&PoolUuid>,
    may_init: bool,
) -> Result<(), EngineError> {
    match (Pool::look(&config.path)?, known) {
        (PoolLook::Pool(marker), Some(known)) if !marker.is_or_was(known) => {
            return Err(EngineError::Away(format!(
                "another pool ({}) lies there, not {known}; mount the right disk",
                marker.uuid
            )));
        }
        (PoolLook::Pool(_), _) => {}
        (PoolLook::Absent | PoolLook::Empty | PoolLook::Foreign(_), Some(known)) => {
            return Err(EngineError::Away(format!(
                "its marker pool.json (pool {known}) is not there; its disk is probably not mounted"
            )));
        }
        (PoolLook::Absent | PoolLook::Empty, None) if may_init => {
            Pool::init(&config.path, &new_marker(&config.name)?)?;
        }
        (PoolLook::Absent | PoolLook::Empty, None) => {
            return Err(EngineError::Away(format!(
                "it is not a pool yet; run `orlop pool init --name {} {}`, or serve with --init-pools",
                config.name,
                config.path.display()
            )));
        }
        (PoolLook::Foreign(found), None) => {
            return Err(StoreError::NotEmpty { path: config.path.clone(), found }.into());
        }
    }
    Ok(())
}

fn away(config: &PoolConfig, reason: &str) -> EngineError {
    EngineError::Away(format!("pool {} ({}) is away: {reason}", config.name, config.path.display()))
}

/// A marker with a new identity.
///
/// # Errors
/// The kernel has no random numbers.
pub(super) fn new_marker(name: &str) -> Result<Marker, EngineError> {
    let mut bits = [0; 16];
    random(&mut bits)?;
    Ok(Marker { uuid: PoolUuid::from_bits(bits), name: name.to_owned(), previous: None })
}

/// Unpredictable bits.
pub(super) fn random(bits: &mut [u8]) -> Result<(), EngineError> {
    getrandom::fill(bits).map_err(|e| {
        StoreError::io("read random numbers from", "getrandom(2)", std::io::Error::other(e)).into()
    })
}

pub(super) mod states;
#[cfg(test)]
mod tests;
