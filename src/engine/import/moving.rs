//! A source becomes the volume's data by one rename.
//!
//! 1. The volume's directory with its record, and in that the note of where the data comes from.
//! 2. The rename, flushed on both sides.
//! 3. What the data needs in its new place: a limit, its size; the record that a kept volume leaves is removed.
//! 4. The record without the note.
//!
//! Every step can be repeated, and which ones were taken is seen on the disk.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::kept::{Place, check_wishes};
use super::source::Source;
use super::{Described, ImportRequest, unfinished};
use crate::backend;
use crate::engine::open_pool::OpenPool;
use crate::engine::{Engine, EngineError, Located, chain, reaper};
use crate::fault;
use crate::host::{HostError, PoolFilesystem};
use crate::store::{DATA, Grave, Kept, Kind, Outside, Promise, Record, Resolved};
use crate::telemetry::{self, Reason};
use crate::volume::{Allocation, ByteSize, Quota};

impl Engine {
    /// Begins a move, and ends it.
    pub(super) fn import_move(
        &self,
        request: &ImportRequest,
        name: &str,
        source: &Source,
        place: &Place,
    ) -> Result<Described, EngineError> {
        if let Place::Kept(pool, kept) = place {
            return self.move_kept(request, name, source, (pool, kept));
        }
        let pools = self.pools_beside(request, source)?;
        let size = source.size(request.size)?;
        let (pool, promise) = self.reserve_in_first(&pools, &request.pool, |pool| {
            // What it takes is on the filesystem already, and only the rest is promised, unless others may have it as well.
            let has_own = !pool.shares_blocks(&*self.host)?;
            Ok(if has_own { size.saturating_sub(source.count.bytes) } else { size })
        })?;
        if source.resolved == Resolved::Hostpath {
            source.fits(size, pool.limit_for(Quota::Auto, &*self.host)?)?;
        }
        self.check_on_delete(request, pool, source.resolved)?;
        let record = Self::imported(request, name, source, size, true)?;
        let source = (&source.outside, request.unused);
        self.begin_move(Arc::clone(pool), record, promise, source, place)
    }

    /// The data of a kept volume becomes that of one with another name. It has been promised as long as it was kept.
    fn move_kept(
        &self,
        request: &ImportRequest,
        name: &str,
        source: &Source,
        (pool, kept): (&Arc<OpenPool>, &Kept),
    ) -> Result<Described, EngineError> {
        check_wishes(request, pool)?;
        let old = Self::kept_record(pool, kept)?.volume;
        if pool.store.shared_by_others(&kept.itself) > ByteSize::ZERO {
            return Err(EngineError::Precondition(format!(
                "snapshots or clones share what {} wrote, which is charged to it by its name; import it without --name, or with --copy",
                source.outside.path().display()
            )));
        }
        self.check_on_delete(request, pool, old.resolved)?;
        let mut record = Self::imported(request, name, source, old.size, true)?;
        let promise = pool.store.promise_of_kept(kept, &old);
        record.volume.on_delete = request.on_delete.unwrap_or(old.on_delete);
        (record.volume.request, record.volume.resolved) = (old.request, old.resolved);
        let place = Place::Kept(Arc::clone(pool), kept.clone());
        let outside = (&source.outside, request.unused);
        let moved = self.begin_move(Arc::clone(pool), record, promise, outside, &place);
        if moved.is_err() {
            pool.store.charge_kept(kept);
        }
        moved
    }

    /// The pools on whose filesystem the source lies, those with more room first.
    fn pools_beside(
        &self,
        request: &ImportRequest,
        source: &Source,
    ) -> Result<Vec<Arc<OpenPool>>, EngineError> {
        let mut beside = self.pools.chosen(&request.pool)?;
        let mut on_btrfs = false;
        for pool in std::mem::take(&mut beside) {
            if !source.outside.is_beside(pool.store.directory())? {
                continue;
            }
            // A volume's directory is a subvolume there, which a directory cannot become.
            let space = self.host.space(pool.store.directory())?;
            if source.resolved == Resolved::Hostpath && space.filesystem == PoolFilesystem::Btrfs {
                on_btrfs = true;
            } else {
                beside.push(pool);
            }
        }
        let shown = source.outside.path().display();
        if beside.is_empty() {
            return Err(EngineError::Precondition(if on_btrfs {
                format!(
                    "{shown} cannot be moved into a pool on btrfs: a volume's directory is a subvolume there, which a directory cannot become; import it with --copy, and remove it afterwards"
                )
            } else {
                format!(
                    "{shown} lies on the filesystem of no pool that it could go to, so it cannot be moved there; import it with --copy, and remove it afterwards"
                )
            }));
        }
        self.most_room_first(beside)
    }

    fn begin_move(
        &self,
        pool: Arc<OpenPool>,
        record: Record,
        mut promise: Promise<'_>,
        (outside, unused): (&Outside, bool),
        place: &Place,
    ) -> Result<Described, EngineError> {
        let incoming = pool.store.begin(Kind::Volume, &record.volume.key, &*self.host)?;
        if let Err(error) = incoming.commit(&record, &mut promise) {
            return Err(EngineError::from(error).with_undo(incoming.abandon(&*self.host)));
        }
        drop(incoming);
        let located = Located { pool, record };
        let noted = fault::point!("engine.import.noted");
        let moved = noted
            .map_err(|e| HostError::call("move", outside.path(), e).into())
            // Again: to count what is in it may have taken long.
            .and_then(|()| self.refuse_used(outside, unused))
            .and_then(|()| rename_in(&located, outside));
        match moved {
            Ok(()) => self.complete(located, place),
            Err(error) => Err(self.taken_back(&located, error)),
        }
    }

    /// A move that failed: as long as nothing was moved, the volume goes again.
    fn taken_back(&self, located: &Located, error: EngineError) -> EngineError {
        match located.pool.store.data_in_place(located.volume()) {
            Ok(None) => error.with_undo(self.give_up_import(located)),
            Ok(Some(inode)) if noted_inode(located) == Some(inode) => half_done(located, &error),
            Ok(Some(_)) => foreign(located),
            Err(other) => unknown(located, &error, &other.into()),
        }
    }

    /// Goes on with an import that was cut off, from wherever that was.
    pub(super) fn go_on(
        &self,
        request: &ImportRequest,
        located: Located,
        source: &str,
        inode: u64,
        place: &Place,
    ) -> Result<Described, EngineError> {
        let (id, volume) = (located.id(), located.volume());
        let other =
            request.size.is_some_and(|size| size.round_up(backend::STEP) != Some(volume.size));
        if other || request.on_delete.is_some_and(|on_delete| on_delete != volume.on_delete) {
            return Err(EngineError::Conflict(format!(
                "volume {id} is half imported with another --size ({} bytes) or --on-delete ({}); repeat the command as it was, or delete the volume to begin anew",
                volume.size.bytes(),
                volume.on_delete
            )));
        }
        let in_place = located.pool.store.data_in_place(volume)?;
        if in_place == Some(inode) {
            located.pool.store.flush_move()?;
            return self.complete(located, place);
        }
        if in_place.is_some() {
            return Err(foreign(&located));
        }
        let found = self.look_at_source(source.as_ref(), place, (false, request.unused))?;
        if found.outside.identity().inode != inode {
            return Err(EngineError::Precondition(format!(
                "{source} is not what it was when its import began; delete volume {id}, which has no data yet, and import it anew"
            )));
        }
        match rename_in(&located, &found.outside) {
            Ok(()) => self.complete(located, place),
            Err(error) => Err(self.taken_back(&located, error)),
        }
    }

    /// Does what is left to do when the data is in its place.
    fn complete(&self, mut located: Located, place: &Place) -> Result<Described, EngineError> {
        match self.settle_in(&mut located, place) {
            Ok(()) => {
                tracing::info!(volume = %located.id(), pool = located.pool.name, "imported");
                Ok(Described::of(&located))
            }
            Err(error) => Err(half_done(&located, &error)),
        }
    }

    fn settle_in(&self, located: &mut Located, place: &Place) -> Result<(), EngineError> {
        match place {
            Place::Kept(pool, kept) => inherit(located, pool, kept)?,
            Place::Outside if located.volume().resolved == Resolved::Hostpath => {
                self.limit_moved(located)?;
            }
            Place::Outside => {
                let dir = located.pool.store.open_volume(&located.volume().key)?;
                backend::grow_image(&dir, located.volume().size, Allocation::Thin)?;
            }
        }
        located.pool.hold(located.volume(), &*self.host)?;
        let failed = |e| HostError::call("complete the import of", located.id().to_string(), e);
        fault::point!("engine.import.completing").map_err(failed)?;
        if let Some(import) = &mut located.record.volume.import {
            import.moving = None;
        }
        Ok(located.pool.store.update(&located.record)?)
    }

    /// Puts a directory that was moved under a limit of its own, with all that is in it.
    fn limit_moved(&self, located: &mut Located) -> Result<(), EngineError> {
        let (pool, host) = (Arc::clone(&located.pool), &*self.host);
        let Some(kind) = pool.limit_for(Quota::Auto, host)? else { return Ok(()) };
        let data = pool.store.open_volume(&located.volume().key)?.directory(DATA)?;
        let limit = if let Some(limit) = located.volume().limit {
            limit
        } else {
            let limit = host.begin_limit(data.as_fd(), kind)?;
            located.record.volume.limit = Some(limit);
            // Before any file is under it: a repeat must not draw another one.
            pool.store.update(&located.record)?;
            limit
        };
        fault::point!("engine.import.limiting").map_err(|e| HostError::call("limit", DATA, e))?;
        Ok(backend::put_under_limit(data.as_fd(), limit, host)?)
    }

    /// Gives up an import of which nothing was moved yet: the volume goes, the source stays where it is.
    ///
    /// # Errors
    /// The data has been moved: only the end of the import, and then a deletion, takes the volume away.
    pub(in crate::engine) fn give_up_import(&self, located: &Located) -> Result<(), EngineError> {
        let (pool, volume) = (&located.pool, located.volume());
        if pool.store.data_in_place(volume)?.is_some() {
            return Err(unfinished(located));
        }
        pool.store.bury(&located.record, Grave::Trash)?;
        reaper::wake(pool, &self.host);
        let source = volume.import.as_ref().map(|import| import.source.as_ref());
        if let Some(Place::Kept(pool, kept)) = source.map(|source| self.place(source)) {
            pool.store.charge_kept(&kept);
        }
        telemetry::cleanup(Reason::Import);
        Ok(())
    }
}

/// Renames the data into the volume.
fn rename_in(located: &Located, outside: &Outside) -> Result<(), EngineError> {
    let moved = located.pool.store.take_in(located.volume(), outside);
    moved.map_err(|error| {
        let shown = outside.path().display();
        match error.errno() {
            Some(nix::errno::Errno::EXDEV) => EngineError::Precondition(format!(
                "{shown} is on another mount than pool {} and cannot be moved there; import it with --copy, and remove it afterwards",
                located.pool.name
            )),
            Some(nix::errno::Errno::EPERM) => EngineError::Precondition(format!(
                "the kernel does not let {shown} be moved ({}); take the flags immutable and append-only from it and from the directory above (chattr -i -a), or import it with --copy",
                chain(&error)
            )),
            _ => error.into(),
        }
    })
}

/// Takes over what a kept volume had beside its data, and removes what is left of it.
fn inherit(located: &mut Located, pool: &OpenPool, kept: &Kept) -> Result<(), EngineError> {
    if let Some(old) = pool.store.kept_record(kept)? {
        // Not earlier: a volume without data must not end a limit that the data is under.
        (located.record.volume.limit, located.record.volume.shared) =
            (old.volume.limit, old.volume.shared);
        pool.store.update(&located.record)?;
    }
    Ok(pool.store.close_kept(kept)?)
}

/// The data is in the volume, and something that has to be done there failed.
/// The inode that was to be moved.
fn noted_inode(located: &Located) -> Option<u64> {
    located.volume().import.as_ref()?.moving
}

/// Something else has the place of the data.
fn foreign(located: &Located) -> EngineError {
    EngineError::Conflict(format!(
        "what is in the place of the data of volume {} is not what was moved there; move it out of the volume's directory, then repeat",
        located.id()
    ))
}

/// The pool cannot say any more whether the data was moved.
fn unknown(located: &Located, error: &EngineError, other: &EngineError) -> EngineError {
    EngineError::Precondition(format!(
        "the import of volume {} failed ({}), and whether its data was moved cannot be seen ({}); remove neither the source nor the volume, mend the pool, then repeat the command",
        located.id(),
        chain(error),
        chain(other)
    ))
}

fn half_done(located: &Located, error: &EngineError) -> EngineError {
    let (id, reason) = (located.id(), chain(error));
    EngineError::Precondition(format!(
        "the import of volume {id} is half done: its data is in the volume now, whole; repeat the command when this is mended: {reason}"
    ))
}
