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
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::open_pool::OpenPool;
use super::{Engine, EngineError, Located, chain};
use crate::backend::{Count, NewLimit};
use crate::fault;
use crate::host::{Bounds, Host, HostError, PoolFilesystem};
use crate::store::{Name, Promise, Record, Volume, VolumeDir};
use crate::volume::{ByteSize, LimitKind, Quota, VolumeId};

/// Who rewrites what others keep needs more than that at times: a twentieth more for random writes of 4 KiB, whose
/// metadata takes as much while it is on its way (measured on Linux 6.18).
const REWRITE: u64 = 20;

/// However small a volume is, it may have so many inodes.
const FEWEST_INODES: u64 = 1024;
/// One inode for so many bytes, as mke2fs makes them: the same for ever, whatever else is in the pool.
const BYTES_PER_INODE: u64 = 16 << 10;

/// After so many tries a bound is lowered even though the volume has more: what is freed by then was its own.
const TRIES: u8 = 6;

/// What is known of the bounds of a pool's volumes beside their records.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// One is held while a volume's bound is decided and set, so that two do not do so in the wrong order: by its key.
    turns: [Mutex<()>; 16],
    /// How much of what a volume wrote copies that are being made may have as well.
    rewriting: Mutex<BTreeMap<Name, ByteSize>>,
    /// Volumes whose bound may have to be lowered, and how often it was tried.
    overdue: Mutex<BTreeMap<Name, u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change leaves what is in it whole, so a panic while it was held has not broken it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holds {
    /// Those of a pool that was just opened: a run that was killed may have left the bounds of these volumes raised, or too
    /// low for what it made.
    pub(super) fn new(writers: Vec<Name>) -> Self {
        let overdue = writers.into_iter().map(|writer| (writer, 0)).collect();
        Self { overdue: Mutex::new(overdue), ..Self::default() }
    }

    fn turn(&self, writer: &Name) -> MutexGuard<'_, ()> {
        let digit = writer.key.as_str().chars().next().and_then(|digit| digit.to_digit(16));
        let place = digit.and_then(|digit| self.turns.get(usize::try_from(digit).ok()?));
        let [first, ..] = &self.turns;
        lock(place.unwrap_or(first))
    }
}

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
        let kind = self.limit_for(quota, host)?;
        Ok(kind.map(|kind| NewLimit { kind, bounds: bounds(kind, size, ByteSize::ZERO) }))
    }

    /// Makes the bound of a volume that for which its record asks, what others share, and copies that are being made; the
    /// caller has the volume's turn. A volume without a limit has nothing to set. Never lowers a bound below what is in use,
    /// unless forced: what was just removed may be in use still. `false` when the filesystem does not hold the volume any
    /// more.
    fn hold_now(
        &self,
        volume: &Volume,
        forced: bool,
        host: &dyn Host,
    ) -> Result<bool, EngineError> {
        let (Some(limit), filesystem) = (volume.limit, self.store.directory()) else {
            return Ok(true);
        };
        // Quotas that only count know the limit as well.
        if host.limit_kind(filesystem)? != Some(limit.kind) {
            return Ok(false);
        }
        let Some(state) = host.limit_state(filesystem, limit)? else { return Ok(false) };
        let writer = volume.itself();
        let more = lock(&self.holds.rewriting).get(&writer).copied().unwrap_or_default();
        let shared = self.store.shared_by_others(&writer).saturating_add(more);
        let wanted = bounds(limit.kind, volume.size, shared);
        if state.bounds == Some(wanted) {
            return Ok(true);
        }
        let is_lowered = state.bounds.is_some_and(|now| now.bytes > wanted.bytes);
        if is_lowered && state.used > wanted.bytes && !forced {
            lock(&self.holds.overdue).entry(writer).or_default();
            return Ok(true);
        }
        host.set_bounds(filesystem, limit, Some(wanted))?;
        Ok(true)
    }

    /// The same for the volume of a record.
    pub(super) fn hold(&self, volume: &Volume, host: &dyn Host) -> Result<bool, EngineError> {
        let _turn = self.holds.turn(&volume.itself());
        self.hold_now(volume, false, host)
    }

    /// Writes a record that gives a volume another size, and bounds the volume to that before.
    ///
    /// # Errors
    /// `Ok(false)` when the filesystem does not hold the volume any more. On any failure it has its old size and bound.
    pub(super) fn hold_and_update(
        &self,
        record: &Record,
        old: &Volume,
        promise: &mut Promise<'_>,
        host: &dyn Host,
    ) -> Result<bool, EngineError> {
        let _turn = self.holds.turn(&old.itself());
        if !self.hold_now(&record.volume, false, host)? {
            return Ok(false);
        }
        let updated = fault::point!("engine.limits.held")
            .map_err(|e| HostError::call("hold the volume", old.key.as_str(), e).into())
            .and_then(|()| self.store.grow(record, promise).map_err(EngineError::from));
        match updated {
            Ok(()) => Ok(true),
            Err(error) => Err(error.with_undo(self.hold_now(old, false, host).map(drop))),
        }
    }

    /// Bounds a volume of which others have less or more than before; it may be gone. A failure is told in the log and
    /// mended when the volume is next staged.
    pub(super) fn settle(&self, writer: &Name, host: &dyn Host) {
        self.settle_as(writer, false, host);
    }

    fn settle_as(&self, writer: &Name, forced: bool, host: &dyn Host) {
        if !self.has(writer) {
            return;
        }
        // The record is read in the volume's turn, or an expansion could be taken back.
        let _turn = self.holds.turn(writer);
        let record = self.store.read(&writer.key).map_err(EngineError::from);
        let held = record.and_then(|record| match record {
            Some(record) => self.hold_now(&record.volume, forced, host),
            None => Ok(true),
        });
        if let Err(error) = held {
            tracing::warn!(pool = self.name, volume = %writer.key, error = chain(&error), "cannot set the limit of a volume");
        }
    }

    /// Lowers bounds that were not lowered because the volumes had more: now that nothing is being freed, or after some
    /// tries, what they have is theirs.
    pub(super) fn settle_overdue(&self, nothing_is_freed: bool, host: &dyn Host) {
        // Not in the head of the loop: the lock would be held to its end.
        let overdue = std::mem::take(&mut *lock(&self.holds.overdue));
        for (writer, tries) in overdue {
            let forced = nothing_is_freed || tries >= TRIES;
            self.settle_as(&writer, forced, host);
            if let Some(again) = lock(&self.holds.overdue).get_mut(&writer) {
                *again = tries.saturating_add(1);
            }
        }
    }
}

/// What a volume of that size is bounded to when others have so much of what it wrote.
fn bounds(kind: LimitKind, size: ByteSize, shared: ByteSize) -> Bounds {
    let shared = if kind.charges_first_writer() { shared } else { ByteSize::ZERO };
    let inodes = match kind {
        LimitKind::SimpleQuota | LimitKind::Qgroup => None,
        LimitKind::Project => Some((size.bytes() / BYTES_PER_INODE).max(FEWEST_INODES)),
    };
    Bounds { bytes: size.saturating_add(shared), inodes }
}

/// The smallest size that a directory with so much in it can be held to.
pub(super) fn smallest_held(count: Count) -> ByteSize {
    if count.inodes <= FEWEST_INODES {
        return count.bytes;
    }
    count.bytes.max(ByteSize::new(count.inodes.saturating_mul(BYTES_PER_INODE)))
}

/// The class of the volume requires that it is held to its size.
pub(super) fn requires_limit(volume: &Volume) -> bool {
    let quota = volume.request.parameters.get("quota");
    quota.is_some_and(|quota| quota == Quota::Required.as_str())
}

/// The kernel does not hold the volume any more.
pub(super) fn not_held(id: &VolumeId, pool: &str) -> EngineError {
    EngineError::Precondition(format!(
        "volume {id} is not held to its size by the filesystem of pool {pool} any more (QuotaNotInForce); mount it with its quotas on"
    ))
}

impl Engine {
    /// Holds a volume to its size before it is used: a limit may have been lost with a mount option, or be that of a run that
    /// was killed.
    ///
    /// # Errors
    /// The class of the volume requires that it is held, and it is not.
    pub(super) fn hold_to_size(&self, located: &Located) -> Result<(), EngineError> {
        let (volume, pool) = (located.volume(), &located.pool);
        let required = requires_limit(volume);
        match pool.hold(volume, &*self.host) {
            Ok(true) => Ok(()),
            Ok(false) if required => Err(not_held(&located.id(), &pool.name)),
            Err(error) if required => Err(error),
            Ok(false) => {
                tracing::error!(volume = %located.id(), pool = pool.name, "the pool's filesystem does not hold the volume to its size any more (quotas are off, or it is a copy)");
                Ok(())
            }
            Err(error) => {
                tracing::error!(volume = %located.id(), error = chain(&error), "cannot hold the volume to its size");
                Ok(())
            }
        }
    }

    /// How much a volume wrote that its filesystem counts for it whoever has it, as of the last commit, which may be half a
    /// minute ago; `None` where bytes are counted for who has them.
    fn written(&self, located: &Located) -> Result<Option<ByteSize>, EngineError> {
        let limit = located.volume().limit.filter(|limit| limit.kind.charges_first_writer());
        let Some(limit) = limit else { return Ok(None) };
        let state = self.host.limit_state(located.pool.store.directory(), limit)?;
        Ok(Some(state.map(|state| state.used).unwrap_or_default()))
    }

    /// How much of what a volume wrote a copy of its directory will have at most, where that is charged to the volume, and
    /// what random writes take besides.
    pub(super) fn most_shared(&self, located: &Located) -> Result<ByteSize, EngineError> {
        Ok(self.written(located)?.map(with_rewrite).unwrap_or_default())
    }

    /// What a copy of a volume's directory is charged: as the filesystem counts it, as of a moment ago, which is when it
    /// was copied; or counted file by file in the copy. What the volume itself began with is charged already.
    pub(super) fn charge_for(
        &self,
        located: &Located,
        copy: &VolumeDir,
    ) -> Result<ByteSize, EngineError> {
        let volume = located.volume();
        let measured = || self.measure_in(copy, volume.resolved);
        let Some(wrote) = self.written(located)? else { return measured() };
        // What others have of what it wrote may be more than what it has itself.
        let others = located.pool.store.shared_by_others(&volume.itself());
        let taken = if others == ByteSize::ZERO { wrote } else { wrote.min(measured()?) };
        Ok(with_rewrite(taken))
    }

    /// Lets volumes rewrite all that they have while copies of them are being made; when the answer is dropped, as much as
    /// the copies that there are by then ask for. The caller has promised what the copies will be charged.
    ///
    /// # Errors
    /// The filesystem cannot be asked about a limit.
    pub(super) fn room_to_rewrite<'a>(
        &'a self,
        located: &'a [Located],
    ) -> Result<Vec<RoomToRewrite<'a>>, EngineError> {
        let mut rooms = Vec::new();
        for located in located {
            let (pool, size) = (&located.pool, located.volume().size);
            if self.written(located)?.is_none() {
                continue;
            }
            let writer = located.volume().itself();
            let mut rewriting = lock(&pool.holds.rewriting);
            let sum = rewriting.entry(writer.clone()).or_default();
            *sum = sum.saturating_add(size);
            drop(rewriting);
            rooms.push(RoomToRewrite { engine: self, located, size });
            pool.settle(&writer, &*self.host);
        }
        Ok(rooms)
    }
}

/// A size with what random writes take besides.
fn with_rewrite(size: ByteSize) -> ByteSize {
    size.saturating_add(ByteSize::new(size.bytes() / REWRITE))
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
        let mut rewriting = lock(&pool.holds.rewriting);
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
