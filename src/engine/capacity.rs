//! What a pool can still promise, and promises to requests.
//!
//! Every creation, copy, snapshot and expansion promises what it will take before it begins. What it made takes the place of
//! the promise in the index at one instant (see `store::Promise`); when it fails, the promise ends after what it left
//! has been removed. `room` has the formula, `usable` what it is fed with.

use super::open_pool::OpenPool;
use super::{Engine, EngineError};
use crate::backend;
use crate::host::{Host, HostError};
use crate::store::{Charge, Promise};
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

impl OpenPool {
    /// What can still be promised.
    pub(super) fn room(
        &self,
        allocation: Allocation,
        host: &dyn Host,
    ) -> Result<ByteSize, HostError> {
        let terms = self.terms(host, false)?;
        Ok(terms.room(self.store.charges().promised(), allocation))
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
    ) -> Result<Result<Promise<'_>, ByteSize>, HostError> {
        let promise = |about_to_refuse| {
            // Asked before the promise: no lock that others need is held over I/O.
            let terms = self.terms(host, about_to_refuse)?;
            let charge = Charge::of(size, allocation);
            Ok(self.store.promise(charge, |promised| terms.room(promised, allocation)))
        };
        match promise(false)? {
            Ok(promise) => Ok(Ok(promise)),
            Err(_room) => {
                // What was deleted a moment ago is charged until it is gone, which is about now.
                self.reaper.wait_a_moment();
                promise(true)
            }
        }
    }

    /// Makes a promise as large as this, where it is smaller.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`]: the promise is what it was.
    pub(super) fn raise<'a>(
        &'a self,
        promise: &mut Promise<'a>,
        needed: Charge,
        host: &dyn Host,
    ) -> Result<(), EngineError> {
        let more = needed.minus(promise.charge());
        for (size, allocation) in [(more.thin, Allocation::Thin), (more.thick, Allocation::Thick)] {
            if size > ByteSize::ZERO {
                let added = self.reserve(size, allocation, host)?;
                promise.add(added.map_err(|room| no_room(size, &self.name, room))?);
            }
        }
        Ok(())
    }
}

/// The error for what does not fit beside what the pool has promised.
pub(super) fn no_room(size: ByteSize, pool: &str, room: ByteSize) -> EngineError {
    EngineError::NoSpace(format!(
        "no room for {size} in pool {pool}: {room} can still be promised; delete volumes or snapshots, add a pool, or lower its reserve"
    ))
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
    /// The class is wrong, or the filesystem cannot be asked.
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
        let allocation = match parameters.backend {
            Backend::Hostpath => Allocation::Thin,
            Backend::Loop => parameters.allocation,
        };
        let mut capacity = Capacity { available: ByteSize::ZERO, maximum: ByteSize::ZERO, minimum };
        let elsewhere = query.topology.as_ref().is_some_and(|term| !self.is_accessible(term));
        // What CreateVolume refuses has no room.
        let impossible = query.block && parameters.backend == Backend::Hostpath;
        if elsewhere || impossible {
            return Ok(capacity);
        }
        // A pool that this node does not have, or that is away, is no error: the scheduler must know that nothing is here.
        let Ok(pools) = self.pools.chosen(&parameters.pool) else { return Ok(capacity) };
        let has_choice = self.pools.has_choice(&parameters.pool);
        for pool in pools {
            // Nothing can be had of one that does not answer, or takes no writes.
            let Some(_visit) = pool.enter(has_choice) else { continue };
            if pool.check_writable().is_err() {
                continue;
            }
            if parameters.backend == Backend::Hostpath
                && pool.limit_for(parameters.quota, &*self.host).is_err()
            {
                continue;
            }
            let room = pool.room(allocation, &*self.host)?.round_down(step);
            let room = if room < minimum { ByteSize::ZERO } else { room };
            capacity.available = capacity.available.saturating_add(room);
            capacity.maximum = capacity.maximum.max(room);
        }
        Ok(capacity)
    }
}
