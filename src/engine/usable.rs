//! What a pool's filesystem has for it: what is available and what its own data takes.
//!
//! What others have on the same filesystem, and what the filesystem needs for itself, is neither. It is measured now and
//! then and remembered, because it changes slowly, while what is available changes with every block that somebody
//! writes: a thick image that is just being made takes blocks that are promised already, and must not count twice.
//!
//! Images tell what they take. Of directories, copies that may share blocks, snapshots, graves and what is in flight
//! nobody knows, so a measurement gives a lowest and a highest figure, and of what lies between, the one next to the
//! last is right: what volumes write does not change it. The first one takes the highest.
//!
//! Must not: hold the lock of the index over I/O.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::open_pool::OpenPool;
use super::room::{Terms, bounds};
use crate::host::{Host, HostError, Space};
use crate::store::Charge;
use crate::volume::ByteSize;

/// How old a measurement may be. What is available is looked at each time.
const OLD: Duration = Duration::from_secs(30);
/// How soon it is repeated for a request that would be refused, or when much has been written.
const SOON: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    usable: ByteSize,
    /// What of the thin promises was written.
    written: ByteSize,
    /// What the filesystem said then.
    space: Space,
    at: Instant,
}

impl Measured {
    fn is_due(&self, space: &Space, about_to_refuse: bool) -> bool {
        let changed = space.total != self.space.total || space.available > self.space.available;
        let fell = self.space.available.saturating_sub(space.available);
        let fell_far = fell.bytes() > space.total.bytes() / 64;
        let age = self.at.elapsed();
        age > OLD || (fell_far && age > SOON) || (about_to_refuse && (changed || age > SOON))
    }
}

impl OpenPool {
    fn measured(&self) -> MutexGuard<'_, Option<Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the formula of the pool is fed with. Who is `about_to_refuse` gets newer figures than others.
    pub(super) fn terms(&self, host: &dyn Host, about_to_refuse: bool) -> Result<Terms, HostError> {
        let space = host.space(self.store.directory())?;
        // Whoever comes meanwhile needs the same figures of the same disk.
        let mut last = self.measured();
        let measured = match *last {
            Some(measured) if !measured.is_due(&space, about_to_refuse) => measured,
            old => *last.insert(self.measure(old, host)?),
        };
        drop(last);
        Ok(Terms {
            usable: measured.usable.min(space.total),
            written: measured.written,
            available: space.available,
            reserve: self.reserve.of(space.total),
            overcommit: self.overcommit,
        })
    }

    fn measure(&self, old: Option<Measured>, host: &dyn Host) -> Result<Measured, HostError> {
        let directory = self.store.directory();
        // Otherwise the images might say one thing and the filesystem another.
        host.settle_space(directory)?;
        let taken = self.store.taken();
        let space = host.space(directory)?;
        let at = Instant::now();
        let moved = self.store.revision() != taken.revision;
        if let (Some(old), true) = (old, moved) {
            // Something came or went between the two looks, so they do not fit together.
            return Ok(Measured { space, at, ..old });
        }
        let unknown = taken.charges.promised().minus(taken.covered);
        let (low, high) = bounds(&space, taken.known.total(), unknown.total());
        let usable = old.map_or(high, |old| old.usable.clamp(low, high));
        let written = match old {
            // Whose blocks are just being reserved looks as if it were written.
            Some(old) if taken.charges.in_flight > ByteSize::ZERO => old.written,
            Some(_) | None => written(usable, &space, taken.known, unknown),
        };
        Ok(Measured { usable, written, space, at })
    }
}

/// What is neither available nor thick has been written by thin volumes.
fn written(usable: ByteSize, space: &Space, known: Charge, unknown: Charge) -> ByteSize {
    let thick = known.thick.saturating_add(unknown.thick);
    usable.saturating_sub(space.available).saturating_sub(thick)
}
