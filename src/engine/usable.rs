//! What a pool's filesystem has for it: what is available and what its own data takes.
//!
//! What others have on the same filesystem, and what the filesystem needs for itself, is neither. It is measured now and
//! then and remembered, because it changes slowly, while what is available changes with every block that somebody
//! writes: a thick image that is just being made takes blocks that are promised already, and must not count twice.
//!
//! Images and the limits of directories tell what they take. Of directories without one, copies that may share blocks,
//! snapshots, graves and what is in flight nobody knows, so a measurement gives a lowest and a highest figure, and of what lies between, the one next to the
//! last is right: what volumes write does not change it. The first one takes the highest.
//!
//! It is measured in the background, and by a request only when nobody has yet or when it would be refused. When something
//! of which nobody knew what it took has gone, it is measured by who removed it: what it was taken to have written, and
//! had not, was somebody else's and must not be promised.
//!
//! Must not: hold the lock of the index over I/O, or have a request wait for what others have still to write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::chain;
use super::open_pool::{OpenPool, Reserve};
use super::room::{Terms, bounds};
use crate::host::{Host, HostError, PoolFilesystem, Space};
use crate::store::{Charge, Taken};
use crate::volume::ByteSize;

/// How old a measurement may be. What is available is looked at each time.
const OLD: Duration = Duration::from_secs(30);
/// How soon it is repeated for a request that would be refused, or when much has been written.
const SOON: Duration = Duration::from_secs(5);

/// What was measured of a pool, and whoever measures just now.
#[derive(Debug, Default)]
pub(super) struct Usable {
    last: Mutex<Option<Measured>>,
    turn: Mutex<()>,
    /// Something has gone since the last thorough measurement.
    is_less: AtomicBool,
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
struct Measured {
    usable: ByteSize,
    /// If nothing had written but what tells.
    least: ByteSize,
    /// What of the thin promises was written.
    written: ByteSize,
    /// What the filesystem said then.
    space: Space,
    /// Which state of the pool that was.
    revision: u64,
    at: Instant,
}

/// How much trouble a measurement may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Somebody waits for it: what volumes are just writing may be missing in their limits, so it raises the figures only.
    Quick,
    /// All that was written is on the disk before.
    Thorough,
}

impl Measured {
    /// A request that would be refused is worth another look.
    fn is_stale(&self, space: &Space) -> bool {
        let changed = space.total != self.space.total || space.available > self.space.available;
        changed || self.at.elapsed() > SOON
    }

    /// Something of which nobody knows what it takes counts as written.
    const fn is_guessed(&self) -> bool {
        self.usable.bytes() > self.least.bytes()
    }

    /// It is time to look again, if there is anything to see.
    fn is_due(&self, space: &Space, revision: u64) -> bool {
        let fell = self.space.available.saturating_sub(space.available);
        let fell_far = fell.bytes() > space.total.bytes() / 64;
        let age = self.at.elapsed();
        let is_same = *space == self.space && revision == self.revision;
        !is_same && (age > OLD || (fell_far && age > SOON))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change leaves what is in it whole, so a panic while it was held has not broken it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenPool {
    /// What the formula of the pool is fed with. Who is `about_to_refuse` gets newer figures than others.
    pub(super) fn terms(&self, host: &dyn Host, about_to_refuse: bool) -> Result<Terms, HostError> {
        let space = host.space(self.store.directory())?;
        let suffices = |last: &Measured| !(about_to_refuse && last.is_stale(&space));
        let measured = self.measured(Care::Quick, suffices, host)?;
        Ok(Terms {
            usable: measured.usable.min(space.total),
            written: measured.written,
            available: space.available,
            reserve: self.reserve.of(space.total).max(least_reserve(&space)),
            overcommit: self.overcommit,
        })
    }

    /// Measures when it is time to, so that requests need not.
    pub(super) fn measure_when_due(&self, host: &dyn Host) {
        let measured = host.space(self.store.directory()).and_then(|space| {
            let suffices = |last: &Measured| !last.is_due(&space, self.store.revision());
            self.measured(Care::Thorough, suffices, host)
        });
        if let Err(error) = measured {
            tracing::warn!(pool = self.name, error = chain(&error), "cannot measure the pool");
        }
    }

    /// Something is about to go that was charged.
    pub(super) fn will_be_less(&self) {
        self.usable.is_less.store(true, Ordering::Release);
    }

    /// Measures after something has gone, where that makes a difference.
    pub(super) fn measure_what_is_left(&self, host: &dyn Host) {
        let is_guessed = lock(&self.usable.last).is_some_and(|last| last.is_guessed());
        if !(is_guessed && self.usable.is_less.load(Ordering::Acquire)) {
            return;
        }
        if let Err(error) = self.measured(Care::Thorough, |_| false, host) {
            // The next look at the pools tries again.
            tracing::warn!(pool = self.name, error = chain(&error), "cannot measure the pool");
        }
    }

    /// The last measurement if it suffices, else a new one. Whoever comes meanwhile gets the same.
    fn measured(
        &self,
        care: Care,
        suffices: impl Fn(&Measured) -> bool,
        host: &dyn Host,
    ) -> Result<Measured, HostError> {
        let last = || lock(&self.usable.last).filter(|last| suffices(last));
        if let Some(measured) = last() {
            return Ok(measured);
        }
        let _turn = lock(&self.usable.turn);
        if let Some(measured) = last() {
            return Ok(measured);
        }
        let old = *lock(&self.usable.last);
        let measured = self.measure(old, care, host)?;
        *lock(&self.usable.last) = Some(measured);
        Ok(measured)
    }

    fn measure(
        &self,
        old: Option<Measured>,
        care: Care,
        host: &dyn Host,
    ) -> Result<Measured, HostError> {
        let was_less = self.usable.is_less.swap(false, Ordering::AcqRel);
        let measured = self.look(old, care, host);
        let is_settled = care == Care::Thorough
            && measured.as_ref().is_ok_and(|now| now.revision == self.store.revision());
        if was_less && !is_settled {
            self.will_be_less();
        }
        measured
    }

    fn look(
        &self,
        old: Option<Measured>,
        care: Care,
        host: &dyn Host,
    ) -> Result<Measured, HostError> {
        let directory = self.store.directory();
        host.settle_space(directory, old.is_none() || care == Care::Thorough)?;
        let taken = self.store.taken(host);
        let space = host.space(directory)?;
        let (at, revision) = (Instant::now(), taken.revision);
        let moved = self.store.revision() != revision;
        if let (Some(old), true) = (old, moved) {
            // Something came or went between the two looks, so they do not fit together.
            return Ok(Measured { space, revision, at, ..old });
        }
        let unknown = taken.charges.promised().minus(taken.covered);
        let (low, high) = bounds(&space, taken.known.total(), unknown.total());
        let usable = match (old, care) {
            (None, _) => high,
            (Some(old), Care::Quick) => old.usable.max(low),
            (Some(old), Care::Thorough) => old.usable.clamp(low, high),
        };
        let written = match old {
            // Whose blocks are just being reserved looks as if it were written.
            Some(old) if taken.charges.in_flight > ByteSize::ZERO => old.written,
            Some(_) | None => written(usable, &space, taken.known, unknown),
        };
        Ok(Measured { usable, least: low, written, space, revision, at })
    }
}

/// The terms of a pool that was looked at once.
pub(super) fn terms(taken: &Taken, space: &Space, reserve: Reserve, overcommit: f64) -> Terms {
    let unknown = taken.charges.promised().minus(taken.covered);
    let (_, usable) = bounds(space, taken.known.total(), unknown.total());
    Terms {
        usable,
        written: written(usable, space, taken.known, unknown),
        available: space.available,
        reserve: reserve.of(space.total).max(least_reserve(space)),
        overcommit,
    }
}

/// Who rewrites blocks that are shared needs some more for a moment, however much was promised for it: with 16 blocks left
/// XFS refused it, with 64 it did not, whatever the size (measured on Linux 6.18), and extents fall to pieces.
fn least_reserve(space: &Space) -> ByteSize {
    match space.filesystem {
        PoolFilesystem::Xfs | PoolFilesystem::Btrfs => {
            ByteSize::mib(1).saturating_add(ByteSize::new(space.total.bytes() / 1024))
        }
        PoolFilesystem::Ext | PoolFilesystem::Other(_) => ByteSize::ZERO,
    }
}

/// What is neither available nor thick has been written by thin volumes.
fn written(usable: ByteSize, space: &Space, known: Charge, unknown: Charge) -> ByteSize {
    let thick = known.thick.saturating_add(unknown.thick);
    usable.saturating_sub(space.available).saturating_sub(thick)
}
