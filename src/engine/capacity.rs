//! What a pool can still promise.
//!
//! promised = Σ sizes of volumes + trash not yet gone + archive + retained + what requests in flight will take.
//! Room = min(size × overcommit − reserve − promised, available − reserve). Thick images are never overcommitted.

use std::sync::{MutexGuard, PoisonError};

use super::open_pool::OpenPool;
use super::{Engine, EngineError};
use crate::backend;
use crate::host::{Host, HostError, Space};
use crate::volume::{Allocation, Backend, ByteSize, Filesystem, Parameters, Topology};

/// For which kind of volume capacity is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityQuery {
    /// The StorageClass's parameters.
    pub parameters: Parameters,
    /// The volume is a raw block device.
    pub block: bool,
    /// Where the volume must be reachable from; `None` when the request does not say.
    pub topology: Option<Topology>,
}

/// What can be had, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// For new volumes of that class, all together.
    pub available: ByteSize,
    /// The largest single one.
    pub maximum: ByteSize,
    /// The smallest single one.
    pub minimum: ByteSize,
}

/// Space that is promised to a request which has not ended; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    pool: &'a OpenPool,
    size: ByteSize,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.pool.in_flight();
        *in_flight = in_flight.saturating_sub(self.size);
    }
}

impl OpenPool {
    fn in_flight(&self) -> MutexGuard<'_, ByteSize> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can still be promised on a filesystem with that space, given what requests in flight will take.
    fn room_beside(&self, space: &Space, in_flight: ByteSize, allocation: Allocation) -> ByteSize {
        let factor = match allocation {
            Allocation::Thin => self.overcommit,
            Allocation::Thick => self.overcommit.min(1.0),
        };
        let reserve = self.reserve.of(space.total);
        let promised = self.store.charges().total().saturating_add(in_flight);
        let left = scaled(space.total, factor).saturating_sub(reserve).saturating_sub(promised);
        left.min(space.available.saturating_sub(reserve))
    }

    /// What can still be promised.
    pub(super) fn room(
        &self,
        allocation: Allocation,
        host: &dyn Host,
    ) -> Result<ByteSize, HostError> {
        let space = host.space(self.store.directory())?;
        Ok(self.room_beside(&space, *self.in_flight(), allocation))
    }

    /// Promises space to a request.
    ///
    /// # Errors
    /// `Ok(Err(room))` when there is not enough room.
    pub(super) fn reserve(
        &self,
        size: ByteSize,
        allocation: Allocation,
        host: &dyn Host,
    ) -> Result<Result<Reservation<'_>, ByteSize>, HostError> {
        // Asked before the lock: a hung disk must not hold up who only wants to know.
        let space = host.space(self.store.directory())?;
        let mut in_flight = self.in_flight();
        let room = self.room_beside(&space, *in_flight, allocation);
        if size > room {
            return Ok(Err(room));
        }
        *in_flight = in_flight.saturating_add(size);
        Ok(Ok(Reservation { pool: self, size }))
    }
}

/// A size times the overcommit factor.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the factor is an estimate of the operator; `as` saturates at both ends"
)]
fn scaled(size: ByteSize, factor: f64) -> ByteSize {
    if (factor - 1.0).abs() < f64::EPSILON {
        return size;
    }
    ByteSize::new((size.bytes() as f64 * factor) as u64)
}

impl Engine {
    /// This node satisfies the term. A term without this driver's key says nothing that holds here.
    pub(super) fn is_accessible(&self, term: &Topology) -> bool {
        // Keys are compared without case (CSI 1.13, Topology).
        self.topology.iter().all(|(key, value)| {
            term.iter().any(|(other, wanted)| other.eq_ignore_ascii_case(key) && wanted == value)
        })
    }

    /// What new volumes of a class can have here.
    ///
    /// # Errors
    /// The class names a pool that this node does not have or that is away, or the filesystem cannot be asked.
    pub fn capacity(&self, query: &CapacityQuery) -> Result<Capacity, EngineError> {
        let parameters = &query.parameters;
        let filesystem = if query.block {
            None
        } else {
            Some(parameters.filesystem.unwrap_or(Filesystem::Ext4))
        };
        if let (Backend::Loop, Some(filesystem)) = (parameters.backend, filesystem) {
            let options = parameters.mkfs_options_for(filesystem);
            options.map_err(|e| EngineError::Invalid(e.to_string()))?;
        }
        let (minimum, step) = backend::smallest(parameters.backend, filesystem);
        let mut capacity = Capacity { available: ByteSize::ZERO, maximum: ByteSize::ZERO, minimum };
        let elsewhere = query.topology.as_ref().is_some_and(|term| !self.is_accessible(term));
        // What CreateVolume refuses has no room.
        let impossible = query.block && parameters.backend == Backend::Hostpath;
        if elsewhere || impossible {
            return Ok(capacity);
        }
        for pool in self.pools.chosen(&parameters.pool)? {
            if parameters.backend == Backend::Hostpath
                && pool.limit_for(parameters.quota, &*self.host).is_err()
            {
                continue;
            }
            let room = pool.room(parameters.allocation, &*self.host)?.round_down(step);
            let room = if room < minimum { ByteSize::ZERO } else { room };
            capacity.available = capacity.available.saturating_add(room);
            capacity.maximum = capacity.maximum.max(room);
        }
        Ok(capacity)
    }
}
