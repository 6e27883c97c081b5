//! Snapshots: make, delete, look up, list.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::capacity::no_room;
use super::copying::CopyTarget;
use super::open_pool::OpenPool;
use super::pools::random;
use super::{Engine, EngineError, Located, reaper};
use crate::backend;
use crate::host::HostError;
use crate::store::{
    IMAGE, Kind, Name, Promise, Resolved, Snapshot, SnapshotEntry, StoreError, VolumeDir,
};
use crate::volume::{
    Allocation, ByteSize, Generation, GroupId, Key, OnDelete, PoolTag, SnapshotId, Topology,
    VolumeId,
};

/// What a new snapshot is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// The CO's name.
    pub name: String,
    /// The key of that name.
    pub key: Key,
    /// The volume.
    pub source: VolumeId,
    /// Where it must be reachable from; empty when the request does not say.
    pub requisite: Vec<Topology>,
}

/// A snapshot that exists, with its pool.
#[derive(Debug, Clone)]
pub struct FoundSnapshot {
    /// The tag of its pool.
    pub pool: PoolTag,
    /// Its record.
    pub snapshot: Arc<Snapshot>,
}

impl FoundSnapshot {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.snapshot.id(self.pool.clone())
    }

    /// The volume that it was taken of.
    #[must_use]
    pub fn source(&self) -> VolumeId {
        self.snapshot.source.volume_id(self.pool.clone())
    }

    /// The group that it was taken in.
    #[must_use]
    pub fn group(&self) -> Option<GroupId> {
        self.snapshot.group.as_ref().map(|group| group.group_id(self.pool.clone()))
    }
}

/// A snapshot with the pool that it lives in.
pub(super) type SnapshotIn = (Arc<OpenPool>, Arc<Snapshot>);

fn damaged(id: &impl std::fmt::Display, source: StoreError) -> EngineError {
    EngineError::Damaged { what: format!("snapshot {id}"), source }
}

/// Now, as records keep it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A generation for something new.
pub(super) fn generation() -> Result<Generation, EngineError> {
    let mut bits = [0; 4];
    random(&mut bits)?;
    Ok(Generation::from_bits(bits))
}

impl Engine {
    /// The volume may be copied at all.
    ///
    /// # Errors
    /// [`EngineError::Precondition`]: it is to be wiped, or has lost data, of which a copy would make a good one.
    pub(super) fn may_be_copied(&self, located: &Located) -> Result<(), EngineError> {
        let (id, volume) = (located.id(), located.volume());
        if volume.on_delete == OnDelete::Wipe {
            return Err(EngineError::Precondition(format!(
                "volume {id} has onDelete=wipe, and a copy would keep what is to be overwritten; change it first (ControllerModifyVolume; in Kubernetes a VolumeAttributesClass with onDelete: delete)"
            )));
        }
        let Resolved::Loop { filesystem, .. } = volume.resolved else { return Ok(()) };
        let image = located.pool.store.open_volume(&volume.key)?.image_to_read()?;
        let failed = |e| HostError::call("look at", IMAGE, e);
        let length = ByteSize::new(image.metadata().map_err(failed)?.len());
        let has = self.host.probe(image.as_fd())?.map(|signature| signature.filesystem);
        if length < volume.size {
            return Err(EngineError::Precondition(format!(
                "volume {id} cannot be copied: its image has {length}, the volume {} (ImageTruncated); restore the volume from an earlier snapshot",
                volume.size
            )));
        }
        if filesystem.is_some() && has != filesystem {
            return Err(EngineError::Precondition(format!(
                "volume {id} cannot be copied: its image does not begin with its filesystem any more (FilesystemMissing); restore the volume from an earlier snapshot"
            )));
        }
        Ok(())
    }

    /// Makes a snapshot, or finds the one that an earlier call made.
    ///
    /// # Errors
    /// See [`EngineError`]; no snapshot exists then that did not before.
    pub fn create_snapshot(&self, spec: &SnapshotSpec) -> Result<FoundSnapshot, EngineError> {
        // Opened if need be: a snapshot is always in the pool of its source.
        self.pools.by_tag(&spec.source.pool)?;
        if let Some(found) = self.snapshot_by_key(&spec.key)? {
            if found.snapshot.source != Name::from(&spec.source) {
                return Err(EngineError::Conflict(format!(
                    "a snapshot of this name exists of volume {}, the request asks for one of {}; delete it first or use another name",
                    found.source(),
                    spec.source
                )));
            }
            return Ok(found);
        }
        let located = self.locate(&spec.source)?;
        self.check_requisite(&spec.requisite)?;
        self.may_be_copied(&located)?;
        let pool = &located.pool;
        let mut promise = self.reserve_copy(pool, std::slice::from_ref(&located))?;
        let full = |error: EngineError| {
            error.when_full(|cause| {
                EngineError::NoSpace(format!(
                    "the filesystem of pool {} is full: {cause}",
                    pool.name
                ))
            })
        };
        let incoming = pool.store.begin(Kind::Snapshot, &spec.key, &*self.host);
        let incoming = incoming.map_err(|e| full(e.into()))?;
        let itself = Name { key: spec.key.clone(), generation: generation()? };
        let _room = self.room_to_rewrite(std::slice::from_ref(&located))?;
        let made = self.take(&located, incoming.dir(), itself, &spec.name).and_then(|snapshot| {
            pool.raise(&mut promise, snapshot.charged(), &*self.host)?;
            Ok(incoming.commit_snapshot(snapshot, &mut promise)?)
        });
        match made {
            Ok(snapshot) => Ok(FoundSnapshot { pool: pool.tag(), snapshot }),
            Err(error) => Err(full(error).with_undo(incoming.abandon(&*self.host))),
        }
    }

    /// Fills the directory of a new snapshot and flushes it.
    fn take(
        &self,
        located: &Located,
        dir: &VolumeDir,
        itself: Name,
        name: &str,
    ) -> Result<Snapshot, EngineError> {
        let created = now();
        self.copy_volume(located, self.snapshot_target(located, dir)?)?;
        self.seal_snapshot(
            located,
            dir,
            Snapshot {
                itself,
                name: name.to_owned(),
                created,
                source: located.volume().itself(),
                group: None,
                resolved: located.volume().resolved,
                size: located.volume().size,
                charge: ByteSize::ZERO,
                shared: located.volume().shared.clone(),
            },
        )
    }

    /// What the data of a snapshot becomes.
    pub(super) fn snapshot_target<'a>(
        &self,
        located: &Located,
        dir: &'a VolumeDir,
    ) -> Result<CopyTarget<'a>, EngineError> {
        Ok(CopyTarget {
            dir,
            size: located.volume().size,
            allocation: Allocation::Thin,
            share: located.pool.shares_blocks(&*self.host)?,
            read_only: true,
            limit: None,
        })
    }

    /// Flushes the data of a new snapshot, and says what it takes: a pod may have written since that was promised.
    pub(super) fn seal_snapshot(
        &self,
        located: &Located,
        dir: &VolumeDir,
        mut snapshot: Snapshot,
    ) -> Result<Snapshot, EngineError> {
        if matches!(located.volume().resolved, Resolved::Loop { .. }) {
            // Longer than the record says when an expansion was cut off, or came in between.
            snapshot.size = backend::seal_image(dir)?;
        }
        snapshot.charge = self.charge_for(located, dir)?;
        Ok(snapshot)
    }

    /// Only the finished snapshot tells what a volume takes: its own directory is being written to, and the snapshot of a
    /// subvolume costs nothing to take back.
    fn is_measured_later(&self, located: &Located) -> Result<bool, EngineError> {
        Ok(located.volume().resolved == Resolved::Hostpath && self.copies_instantly(located)?)
    }

    /// Promises what copies of these volumes will take, all in one pool; of those that are measured later, what is known
    /// by now.
    ///
    /// # Errors
    /// There is no room, or a volume is in use that has to be counted file by file.
    pub(super) fn reserve_copy<'a>(
        &self,
        pool: &'a OpenPool,
        located: &[Located],
    ) -> Result<Promise<'a>, EngineError> {
        let mut promise = pool.store.no_promise();
        for located in located {
            let charge = if self.is_measured_later(located)? {
                self.most_shared(located)?
            } else {
                self.refuse_restless(located)?;
                self.measure(located)?
            };
            let allocation = located.volume().resolved.allocation();
            let more = pool.reserve(charge, allocation, &*self.host)?;
            promise.add(more.map_err(|room| no_room(charge, &pool.name, room))?);
        }
        Ok(promise)
    }

    /// A request's topology includes this node.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`]: not here.
    pub(super) fn check_requisite(&self, requisite: &[Topology]) -> Result<(), EngineError> {
        if requisite.is_empty() || requisite.iter().any(|term| self.is_accessible(term)) {
            return Ok(());
        }
        Err(EngineError::NoSpace(format!(
            "none of the required topologies is this node's ({:?})",
            self.topology
        )))
    }

    /// The snapshot of a key, in whichever pool it is.
    fn snapshot_by_key(&self, key: &Key) -> Result<Option<FoundSnapshot>, EngineError> {
        // A pool that is away could have one as well, but only of a volume that is away too.
        for pool in self.pools.open_ones() {
            match pool.store.snapshot(key) {
                None => {}
                Some(SnapshotEntry::Whole(snapshot)) => {
                    return Ok(Some(FoundSnapshot { pool: pool.tag(), snapshot }));
                }
                Some(SnapshotEntry::Damaged { .. }) => {
                    let snapshot = pool.store.mend_snapshot(key).map_err(|e| damaged(key, e))?;
                    return Ok(Some(FoundSnapshot { pool: pool.tag(), snapshot }));
                }
            }
        }
        Ok(None)
    }

    /// The snapshot of an id together with its pool; `None` when its pool is here and has no such snapshot.
    pub(super) fn find_snapshot(&self, id: &SnapshotId) -> Result<Option<SnapshotIn>, EngineError> {
        let pool = self.pools.by_tag(&id.pool)?;
        let snapshot = match pool.store.snapshot(&id.key) {
            None => return Ok(None),
            Some(SnapshotEntry::Whole(snapshot)) => snapshot,
            // Somebody may have mended it.
            Some(SnapshotEntry::Damaged { .. }) => {
                pool.store.mend_snapshot(&id.key).map_err(|source| damaged(id, source))?
            }
        };
        Ok((snapshot.itself.generation == id.generation).then_some((pool, snapshot)))
    }

    /// The snapshot of an id.
    ///
    /// # Errors
    /// It does not exist, is damaged, or its pool is away.
    pub fn get_snapshot(&self, id: &SnapshotId) -> Result<FoundSnapshot, EngineError> {
        let (pool, snapshot) = self.find_snapshot(id)?.ok_or_else(|| no_snapshot(id))?;
        Ok(FoundSnapshot { pool: pool.tag(), snapshot })
    }

    /// The snapshot of an id as a listing, empty when there is none, or none of that volume.
    ///
    /// # Errors
    /// It is damaged, or its pool is away.
    pub fn snapshot_if_any(
        &self,
        id: &SnapshotId,
        source: Option<&VolumeId>,
    ) -> Result<(Vec<FoundSnapshot>, bool), EngineError> {
        let found = self.find_snapshot(id)?;
        let found = found.map(|(pool, snapshot)| FoundSnapshot { pool: pool.tag(), snapshot });
        let fits = |found: &FoundSnapshot| source.is_none_or(|source| found.source() == *source);
        Ok((found.filter(fits).into_iter().collect(), false))
    }

    /// Ends a snapshot. One that does not exist is fine; volumes that were restored from it are not touched.
    ///
    /// # Errors
    /// It belongs to a group, is damaged, or its pool is away.
    pub fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), EngineError> {
        let found = match self.find_snapshot(id) {
            Err(EngineError::Away(_)) if self.state.is_forgotten(id)? => return Ok(()),
            found => found?,
        };
        let Some((pool, snapshot)) = found else { return Ok(()) };
        // What was damaged since it was read is not removed.
        pool.store.mend_snapshot(&id.key).map_err(|source| damaged(id, source))?;
        if let Some(group) = &snapshot.group {
            return Err(EngineError::Invalid(format!(
                "snapshot {id} belongs to the group {}; delete the group",
                group.group_id(pool.tag())
            )));
        }
        pool.store.bury_snapshot(&snapshot)?;
        reaper::wake(&pool, &self.host);
        Ok(())
    }

    /// At most `count` snapshots behind `after`, in the order of pool tags and keys, and whether there are more; only
    /// those of a volume when one is named. Damaged ones have no id that could be told.
    ///
    /// # Errors
    /// The pool of that volume is away: nobody can say what it has.
    pub fn list_snapshots(
        &self,
        after: Option<&SnapshotId>,
        source: Option<&VolumeId>,
        count: usize,
    ) -> Result<(Vec<FoundSnapshot>, bool), EngineError> {
        let mut pools = match source {
            None => self.pools.here(),
            Some(source) => vec![self.pools.by_tag(&source.pool)?],
        };
        pools.sort_by_key(|pool| pool.tag());
        let source = source.map(Name::from);
        let mut listed = Vec::new();
        for pool in pools {
            let tag = pool.tag();
            let mut behind = match after {
                Some(after) if after.pool > tag => continue,
                Some(after) if after.pool == tag => Some(after.key.clone()),
                Some(_) | None => None,
            };
            // One more than asked tells whether there is another page.
            while listed.len() <= count {
                let more = (count - listed.len()).saturating_add(1);
                let page = pool.store.snapshots_after(behind.as_ref(), source.as_ref(), more);
                let Some((last, _)) = page.last() else { break };
                behind = Some(last.clone());
                for (_, entry) in page {
                    if let SnapshotEntry::Whole(snapshot) = entry {
                        listed.push(FoundSnapshot { pool: tag.clone(), snapshot });
                    }
                }
            }
        }
        let more = listed.len() > count;
        listed.truncate(count);
        Ok((listed, more))
    }
}

pub(super) fn no_snapshot(id: &SnapshotId) -> EngineError {
    EngineError::NotFound(format!("snapshot {id} does not exist"))
}
