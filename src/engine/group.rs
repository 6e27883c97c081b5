//! Groups of snapshots: all of one instant, or none.
//!
//! The members lie in the group's directory, so one rename makes them exist together and one ends them together.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::copying::Instantly;
use super::freeze::FreezePoint;
use super::observe::Writing;
use super::open_pool::OpenPool;
use super::snapshot::{generation, now};
use super::traffic::QuietCopy;
use super::{Engine, EngineError, FoundSnapshot, Located, reaper};
use crate::backend::{BackendError, Progress};
use crate::store::{
    Charge, Group, GroupEntry, Incoming, Kind, Name, Snapshot, SnapshotEntry, StoreError, VolumeDir,
};
use crate::volume::{ByteSize, GroupId, Key, SnapshotId, VolumeId};

/// What a new group is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// The CO's name.
    pub name: String,
    /// The key of that name.
    pub key: Key,
    /// The volumes, at least one.
    pub sources: BTreeSet<VolumeId>,
}

/// A group that exists, with its pool and members.
#[derive(Debug, Clone)]
pub struct FoundGroup {
    /// Its id.
    pub id: GroupId,
    /// When it was taken, RFC 3339.
    pub created: String,
    /// Its members.
    pub members: Vec<FoundSnapshot>,
}

/// A member that is being made.
struct Member<'a> {
    located: &'a Located,
    dir: VolumeDir,
    itself: Name,
}

/// A volume to which nobody writes; a Node call interrupts that.
struct Quiet<'a> {
    progress: Arc<Progress>,
    _copy: QuietCopy<'a>,
}

impl Engine {
    /// Takes a group of snapshots, or finds the one that an earlier call took.
    ///
    /// # Errors
    /// See [`EngineError`]; no snapshot exists then that did not before.
    pub fn create_group(&self, spec: &GroupSpec) -> Result<FoundGroup, EngineError> {
        for source in &spec.sources {
            // Opened if need be: a group is always in the pool of its sources.
            self.pools.by_tag(&source.pool)?;
        }
        for pool in self.pools.open_ones() {
            if let Some(group) = whole(&pool, &spec.key, &spec.key)? {
                return same_group(spec, &pool, &group);
            }
        }
        let located = spec.sources.iter().map(|id| self.locate(id));
        let located = located.collect::<Result<Vec<_>, _>>()?;
        let (Some(first), Some(id)) = (located.first(), spec.sources.first()) else {
            return Err(EngineError::Invalid("a group has at least one source".to_owned()));
        };
        if let Some(other) = spec.sources.iter().find(|other| other.pool != id.pool) {
            return Err(EngineError::Precondition(format!(
                "volumes {id} and {other} are in different pools, which cannot be written at one instant; group volumes of one pool"
            )));
        }
        located.iter().try_for_each(|located| self.may_be_copied(located))?;
        let pool = &first.pool;
        let mut promise = self.reserve_copy(pool, &located)?;
        let full = |error: EngineError| {
            error.when_full(|cause| {
                EngineError::NoSpace(format!(
                    "the filesystem of pool {} is full: {cause}",
                    pool.name
                ))
            })
        };
        let incoming = pool.store.begin(Kind::Group, &spec.key, &*self.host);
        let incoming = incoming.map_err(|e| full(e.into()))?;
        let _room = self.room_to_rewrite(&located)?;
        let made = self.take_group(spec, &located, &incoming).and_then(|(group, snapshots)| {
            let charges = snapshots.iter().map(Snapshot::charged).fold(Charge::NONE, Charge::plus);
            pool.raise(&mut promise, charges, &*self.host)?;
            let known = group.clone();
            incoming.commit_group(group, snapshots, &mut promise)?;
            Ok(known)
        });
        match made {
            Ok(group) => found(pool, &group),
            Err(error) => Err(full(error).with_undo(incoming.abandon(&*self.host))),
        }
    }

    /// A volume that is held up for the instant of the group: one with a filesystem of its own, in use.
    fn is_held_up(&self, located: &Located) -> Result<bool, EngineError> {
        let writing = self.observe(located)?.writing();
        Ok(matches!(writing, Writing::Filesystem(..)) && self.copies_instantly(located)?)
    }

    /// What has to be frozen. Asked for late: until it is dropped, what is unmounted meanwhile does not go away.
    fn points(&self, members: &[&Member<'_>]) -> Result<Vec<FreezePoint>, EngineError> {
        let point = |member: &&Member<'_>| match self.freeze_point(member.located, true)? {
            Instantly::Frozen(point) => Ok(point),
            Instantly::AsItIs | Instantly::Not => Err(EngineError::Precondition(format!(
                "volume {} was unmounted while its group was taken; repeat",
                member.located.id()
            ))),
        };
        members.iter().map(point).collect()
    }

    /// Makes sure that nobody writes to a volume that cannot be held up, until the answer is dropped or interrupted.
    fn keep_quiet<'a>(&'a self, located: &Located) -> Result<Quiet<'a>, EngineError> {
        let moving = |how: &str| {
            EngineError::Precondition(format!(
                "volume {} is in use ({how}) and cannot be frozen (a directory or a raw block device), so the group would show no single instant; end the pods that use it, use backend=loop with volumeMode: Filesystem, or snapshot it alone",
                located.id()
            ))
        };
        let progress = Arc::new(Progress::default());
        let copy = self.traffic.begin_copy(&located.volume().key, &progress);
        let copy = copy.ok_or_else(|| moving("being mounted"))?;
        let writing = self.observe(located)?.writing();
        if writing.is_somebody() {
            return Err(moving(&writing.describe()));
        }
        Ok(Quiet { progress, _copy: copy })
    }

    fn take_group(
        &self,
        spec: &GroupSpec,
        located: &[Located],
        incoming: &Incoming<'_>,
    ) -> Result<(Group, Vec<Snapshot>), EngineError> {
        let (mut held, mut still, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
        let mut members = Vec::new();
        for located in located {
            let key = Key::of_member(&spec.name, &located.volume().key);
            let dir = incoming.member(&key)?;
            members.push(Member { located, dir, itself: Name { key, generation: generation()? } });
        }
        for member in &members {
            if self.is_held_up(member.located)? {
                held.push(member);
                continue;
            }
            if located.len() > 1 {
                quiet.push(self.keep_quiet(member.located)?);
            }
            still.push(member);
        }
        // What nobody writes to shows the same instant whenever it is copied, and may take its time.
        for member in still {
            self.copy_volume(member.located, self.snapshot_target(member.located, &member.dir)?)?;
        }
        let created = now();
        self.copy_held(&held)?;
        if quiet.iter().any(|quiet| quiet.progress.is_interrupted()) {
            return Err(BackendError::Interrupted.into());
        }
        self.seal_group(spec, &members, created)
    }

    /// Copies members that are in use, all at one instant.
    fn copy_held(&self, held: &[&Member<'_>]) -> Result<(), EngineError> {
        let targets = held.iter().map(|member| self.snapshot_target(member.located, &member.dir));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let points = self.points(held)?;
        self.while_frozen(&points, || {
            let mut pairs = held.iter().zip(&targets);
            pairs.try_for_each(|(member, target)| self.copy_now(member.located, *target))
        })
    }

    /// Flushes the members and counts them.
    fn seal_group(
        &self,
        spec: &GroupSpec,
        members: &[Member<'_>],
        created: String,
    ) -> Result<(Group, Vec<Snapshot>), EngineError> {
        let itself = Name { key: spec.key.clone(), generation: generation()? };
        let mut snapshots = Vec::new();
        for member in members {
            let volume = member.located.volume();
            let snapshot = Snapshot {
                itself: member.itself.clone(),
                name: spec.name.clone(),
                created: created.clone(),
                source: volume.itself(),
                group: Some(itself.clone()),
                resolved: volume.resolved,
                size: volume.size,
                charge: ByteSize::ZERO,
                shared: volume.shared.clone(),
            };
            snapshots.push(self.seal_snapshot(member.located, &member.dir, snapshot)?);
        }
        let group = Group {
            itself,
            name: spec.name.clone(),
            created,
            members: members.iter().map(|member| member.itself.clone()).collect(),
            sources: members.iter().map(|member| member.located.volume().itself()).collect(),
        };
        Ok((group, snapshots))
    }

    /// The group of an id.
    ///
    /// # Errors
    /// It does not exist, or its pool is away.
    pub fn get_group(&self, id: &GroupId) -> Result<FoundGroup, EngineError> {
        let pool = self.pools.by_tag(&id.pool)?;
        match whole(&pool, &id.key, id)? {
            Some(group) if group.itself.generation == id.generation => found(&pool, &group),
            Some(_) | None => {
                Err(EngineError::NotFound(format!("group snapshot {id} does not exist")))
            }
        }
    }

    /// The members of a group, from memory; none when there is no such group.
    #[must_use]
    pub fn group_members(&self, id: &GroupId) -> Vec<SnapshotId> {
        let pools = self.pools.open_ones();
        let pool = pools.iter().find(|pool| pool.tag() == id.pool);
        // What the members of a damaged one are is not known; it is not deleted either.
        let group = pool.and_then(|pool| match pool.store.group(&id.key) {
            Some(GroupEntry::Whole(group)) => Some(group),
            Some(GroupEntry::Damaged { .. }) | None => None,
        });
        let members = group.iter().flat_map(|group| &group.members);
        members.map(|member| member.snapshot_id(id.pool.clone())).collect()
    }

    /// The group has exactly these members, where the request names any.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] otherwise.
    pub fn check_members(
        group: &FoundGroup,
        named: &BTreeSet<SnapshotId>,
    ) -> Result<(), EngineError> {
        let has: BTreeSet<SnapshotId> = group.members.iter().map(FoundSnapshot::id).collect();
        if named.is_empty() || *named == has {
            return Ok(());
        }
        let odd = named.symmetric_difference(&has).next().map(ToString::to_string);
        Err(EngineError::Invalid(format!(
            "snapshot_ids are not those of group {}: {} is in one of the lists only",
            group.id,
            odd.unwrap_or_default()
        )))
    }

    /// Ends a group with all its members. One that does not exist is fine.
    ///
    /// # Errors
    /// The request names other members, or its pool is away.
    pub fn delete_group(
        &self,
        id: &GroupId,
        named: &BTreeSet<SnapshotId>,
    ) -> Result<(), EngineError> {
        let pool = match self.pools.by_tag(&id.pool) {
            Err(EngineError::Away(_)) if self.state.is_forgotten(id)? => return Ok(()),
            pool => pool?,
        };
        if pool.store.group(&id.key).is_none() {
            return Ok(());
        }
        // What was damaged since it was read is not removed.
        let group = pool.store.mend_group(&id.key).map_err(|source| damaged(id, source))?;
        if group.itself.generation != id.generation {
            return Ok(());
        }
        Self::check_members(&found(&pool, &group)?, named)?;
        pool.store.bury_group(&group)?;
        reaper::wake(&pool, &self.host);
        Ok(())
    }
}

/// The group of a key.
///
/// # Errors
/// [`EngineError::Damaged`]: nothing is done to it or its members.
fn whole(
    pool: &OpenPool,
    key: &Key,
    id: &impl std::fmt::Display,
) -> Result<Option<Arc<Group>>, EngineError> {
    match pool.store.group(key) {
        None => Ok(None),
        Some(GroupEntry::Whole(group)) => Ok(Some(group)),
        // Somebody may have mended it.
        Some(GroupEntry::Damaged { .. }) => {
            pool.store.mend_group(key).map(Some).map_err(|source| damaged(id, source))
        }
    }
}

fn damaged(id: &impl std::fmt::Display, source: StoreError) -> EngineError {
    EngineError::Damaged { what: format!("group snapshot {id}"), source }
}

/// A group that exists already is the one that the request asks for.
fn same_group(
    spec: &GroupSpec,
    pool: &Arc<OpenPool>,
    group: &Group,
) -> Result<FoundGroup, EngineError> {
    let has: BTreeSet<&Name> = group.sources.iter().collect();
    let asked: BTreeSet<Name> = spec.sources.iter().map(Name::from).collect();
    if has == asked.iter().collect() {
        return found(pool, group);
    }
    Err(EngineError::Conflict(
        "a group snapshot of this name exists of other volumes; delete it first or use another name"
            .to_owned(),
    ))
}

fn found(pool: &Arc<OpenPool>, group: &Group) -> Result<FoundGroup, EngineError> {
    let id = group.itself.group_id(pool.tag());
    let mut members = Vec::new();
    for member in &group.members {
        match pool.store.snapshot(&member.key) {
            Some(SnapshotEntry::Whole(snapshot)) => {
                members.push(FoundSnapshot { pool: pool.tag(), snapshot });
            }
            Some(SnapshotEntry::Damaged { .. }) => {
                let mended = pool.store.mend_snapshot(&member.key);
                let snapshot = mended.map_err(|source| damaged(&id, source))?;
                members.push(FoundSnapshot { pool: pool.tag(), snapshot });
            }
            None => {
                return Err(EngineError::NotFound(format!(
                    "snapshot {} of group {id} is not there any more",
                    member.key
                )));
            }
        }
    }
    Ok(FoundGroup { id, created: group.created.clone(), members })
}
