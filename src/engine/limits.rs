//! Directories that are held to their size.
//!
//! A hostpath volume has a limit of its own where the pool's filesystem can hold one (see `host::Limits`). Its bound is the
//! volume's size; where bytes belong to who wrote them first ([`LimitKind::charges_first_writer`]), also what others have
//! of what the volume wrote: it may rewrite all of it, and what the others keep stays in its account. That much is charged
//! to the others, so the sum of all bounds is never more than what the pool has promised.
//!
//! Invariants: a bound is raised before anything needs it and lowered after the last who needed it is gone; what is set is
//! durable, and was read back, before anybody is told.
//!
//! Must not: touch a limit that no record of this pool, and nothing in its `incoming/`, names.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use super::open_pool::OpenPool;
use super::{Engine, EngineError, Located, chain};
use crate::backend::NewLimit;
use crate::host::{Bounds, Host, PoolFilesystem};
use crate::store::{Entry, Name, Resolved, Volume, VolumeDir};
use crate::volume::{ByteSize, LimitKind, Quota};

/// Who rewrites what others keep needs more than that at times: a twentieth more for random writes of 4 KiB, whose
/// metadata takes as much while it is on its way (measured on Linux 6.18).
const REWRITE: u64 = 20;

/// However small a volume is, it may have so many inodes.
const FEWEST_INODES: u64 = 1024;

/// What to do where a pool's filesystem holds no directory to a size.
const fn remedy(filesystem: PoolFilesystem) -> &'static str {
    match filesystem {
        PoolFilesystem::Ext => {
            "mount its filesystem with prjquota (ext4 needs the features quota and project: tune2fs -O quota,project -Q prjquota, unmounted)"
        }
        PoolFilesystem::Xfs => {
            "mount its filesystem with prjquota, in a kernel whose XFS has quotas"
        }
        PoolFilesystem::Btrfs => {
            "switch simple quotas on (btrfs quota enable --simple, Linux 6.7), or let Orlop make the pool (create in --config)"
        }
        PoolFilesystem::Other(_) => {
            "put it on btrfs, XFS or ext4, or let Orlop make the pool (create in --config)"
        }
    }
}

impl OpenPool {
    fn rewriting(&self) -> MutexGuard<'_, BTreeMap<Name, ByteSize>> {
        // Each change leaves it whole, so a panic while it was held has not broken it.
        self.rewriting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a new directory can be held; `None` when it is not to be, or cannot.
    ///
    /// # Errors
    /// `quota: required`, and the pool cannot.
    pub(super) fn limit_for(
        &self,
        quota: Quota,
        host: &dyn Host,
    ) -> Result<Option<LimitKind>, EngineError> {
        if quota == Quota::Off {
            return Ok(None);
        }
        let kind = host.limit_kind(self.store.directory())?;
        if quota == Quota::Auto || kind.is_some_and(LimitKind::is_hard) {
            return Ok(kind);
        }
        let remedy = remedy(host.space(self.store.directory())?.filesystem);
        let how = if kind.is_some() { "only softly hold" } else { "not hold" };
        Err(EngineError::Invalid(format!(
            "parameter quota=required: pool {} can {how} a directory to its size; {remedy}; or use backend=loop, which always can",
            self.name
        )))
    }

    /// What a volume of that size is bounded to when others have so much of what it wrote.
    fn bounds(
        &self,
        kind: LimitKind,
        size: ByteSize,
        shared: ByteSize,
        host: &dyn Host,
    ) -> Result<Bounds, EngineError> {
        let shared = if kind.charges_first_writer() { shared } else { ByteSize::ZERO };
        let inodes = match kind {
            LimitKind::SimpleQuota | LimitKind::Qgroup => None,
            LimitKind::Project => {
                let space = host.space(self.store.directory())?;
                Some(share(space.inodes, size, space.total).max(FEWEST_INODES))
            }
        };
        Ok(Bounds { bytes: size.saturating_add(shared), inodes })
    }

    /// What the directory of a new volume is held to; `None` when it is not to be held, or cannot.
    ///
    /// # Errors
    /// `quota: required`, and the pool cannot.
    pub(super) fn new_limit(
        &self,
        quota: Quota,
        size: ByteSize,
        host: &dyn Host,
    ) -> Result<Option<NewLimit>, EngineError> {
        let Some(kind) = self.limit_for(quota, host)? else { return Ok(None) };
        let bounds = self.bounds(kind, size, ByteSize::ZERO, host)?;
        Ok(Some(NewLimit { kind, bounds }))
    }

    /// Makes the bound of a volume that for which its record asks, what others share, and copies that are being made. A
    /// volume without a limit has nothing to set. `false` when the filesystem does not know the limit any more.
    pub(super) fn hold(&self, volume: &Volume, host: &dyn Host) -> Result<bool, EngineError> {
        let Some(limit) = volume.limit else { return Ok(true) };
        // Over the system calls as well: two that set one bound must not do so in the wrong order.
        let rewriting = self.rewriting();
        let Some(state) = host.limit_state(self.store.directory(), limit)? else {
            return Ok(false);
        };
        let more = rewriting.get(&volume.itself()).copied().unwrap_or_default();
        let shared = self.store.shared_by_others(&volume.itself()).saturating_add(more);
        let bounds = self.bounds(limit.kind, volume.size, shared, host)?;
        if state.bounds.is_none_or(|now| now.bytes != bounds.bytes) {
            host.set_bounds(self.store.directory(), limit, Some(bounds))?;
        }
        Ok(true)
    }

    /// The same for a volume of which others have less or more than before; it may be gone. A failure is told in the log
    /// and mended when the volume is next staged.
    pub(super) fn settle(&self, writer: &Name, host: &dyn Host) {
        match self.store.entry(&writer.key) {
            Some(Entry::Whole { generation, .. }) if generation == writer.generation => {}
            Some(Entry::Whole { .. } | Entry::Damaged { .. }) | None => return,
        }
        let held =
            self.store.read(&writer.key).map_err(EngineError::from).and_then(|record| {
                record.map_or(Ok(true), |record| self.hold(&record.volume, host))
            });
        if let Err(error) = held {
            tracing::warn!(pool = self.name, volume = %writer.key, error = chain(&error), "cannot set the limit of a volume");
        }
    }
}

impl Engine {
    /// Holds a volume to its size before it is used: a limit may have been lost with a mount option, or be that of a run that
    /// was killed.
    pub(super) fn hold_to_size(&self, located: &Located) {
        let volume = located.volume();
        if volume.resolved != Resolved::Hostpath {
            return;
        }
        match located.pool.hold(volume, &*self.host) {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!(volume = %located.id(), pool = located.pool.name, "the pool's filesystem does not hold the volume to its size any more (quotas are off, or it is a copy)");
            }
            Err(error) => {
                tracing::error!(volume = %located.id(), error = chain(&error), "cannot hold the volume to its size");
            }
        }
    }

    /// How much a copy of a volume's directory will share with it at most, where that is how the pool counts: what the
    /// volume wrote, and what it began with itself.
    pub(super) fn most_shared(&self, located: &Located) -> Result<ByteSize, EngineError> {
        let (volume, pool) = (located.volume(), &located.pool);
        let Some(limit) = volume.limit.filter(|limit| limit.kind.charges_first_writer()) else {
            return Ok(ByteSize::ZERO);
        };
        let state = self.host.limit_state(pool.store.directory(), limit)?;
        let wrote = state.map(|state| state.used).unwrap_or_default();
        let began = volume.shared.iter().map(|shared| shared.size);
        Ok(Self::charge_of_copy(located, began.fold(wrote, ByteSize::saturating_add)))
    }

    /// What a copy of a volume's directory is charged, whose directory is given: as the filesystem counts it, as of a moment
    /// ago, which is when it was copied; or counted file by file.
    pub(super) fn charge_for(
        &self,
        located: &Located,
        dir: &VolumeDir,
    ) -> Result<ByteSize, EngineError> {
        if let Some(charge) = self.counted(located)? {
            return Ok(charge);
        }
        let taken = self.measure_in(dir, located.volume().resolved)?;
        Ok(Self::charge_of_copy(located, taken))
    }

    fn counted(&self, located: &Located) -> Result<Option<ByteSize>, EngineError> {
        let (volume, pool) = (located.volume(), &located.pool);
        match volume.limit {
            Some(limit) if limit.kind == LimitKind::Qgroup => {
                let state = self.host.limit_state(pool.store.directory(), limit)?;
                Ok(state.map(|state| state.used))
            }
            // What others have of what it wrote may be more than what it has itself.
            Some(limit)
                if limit.kind == LimitKind::SimpleQuota
                    && pool.store.shared_by_others(&volume.itself()) == ByteSize::ZERO =>
            {
                self.most_shared(located).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// What a copy of a volume's directory is charged that takes so much: under simple quotas the volume may write as much
    /// again.
    pub(super) fn charge_of_copy(located: &Located, taken: ByteSize) -> ByteSize {
        match located.volume().limit {
            Some(limit) if limit.kind.charges_first_writer() => {
                taken.saturating_add(ByteSize::new(taken.bytes() / REWRITE))
            }
            Some(_) | None => taken,
        }
    }

    /// Lets volumes rewrite all that they have while copies of them are being made; when the answer is dropped, as much as
    /// the copies that there are by then ask for.
    pub(super) fn room_to_rewrite<'a>(
        &'a self,
        located: &'a [Located],
    ) -> Result<Vec<RoomToRewrite<'a>>, EngineError> {
        let mut rooms = Vec::new();
        for located in located {
            let size = self.most_shared(located)?;
            let writer = located.volume().itself();
            let mut rewriting = located.pool.rewriting();
            let sum = rewriting.entry(writer).or_default();
            *sum = sum.saturating_add(size);
            drop(rewriting);
            rooms.push(RoomToRewrite { engine: self, located, size });
            located.pool.hold(located.volume(), &*self.host)?;
        }
        Ok(rooms)
    }
}

/// A volume that may rewrite all that it has, until this is dropped.
#[derive(Debug)]
pub(super) struct RoomToRewrite<'a> {
    engine: &'a Engine,
    located: &'a Located,
    size: ByteSize,
}

impl Drop for RoomToRewrite<'_> {
    fn drop(&mut self) {
        let (pool, writer) = (&self.located.pool, self.located.volume().itself());
        let mut rewriting = pool.rewriting();
        if let Some(sum) = rewriting.get_mut(&writer) {
            *sum = sum.saturating_sub(self.size);
            if *sum == ByteSize::ZERO {
                rewriting.remove(&writer);
            }
        }
        drop(rewriting);
        pool.settle(&writer, &*self.engine.host);
    }
}

/// The part of a whole that goes with a size.
fn share(whole: u64, size: ByteSize, total: ByteSize) -> u64 {
    let part = u128::from(whole) * u128::from(size.bytes());
    let part = part.checked_div(u128::from(total.bytes())).unwrap_or(0);
    u64::try_from(part).unwrap_or(u64::MAX)
}
