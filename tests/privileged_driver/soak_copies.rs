//! Snapshots, restores, clones and groups of a client's own volumes.

use orlop::csi::proto;
use tonic::Code;

use crate::client::{Client, Create};
use crate::client_snapshots::{from_snapshot, from_volume};
use crate::life::{Kind, MIB};
use crate::snapshots::is_instant;
use crate::soak_client::{Actor, MODE, SNAPSHOTS};
use crate::soak_model::{Content, Group, Snapshot, Volume, Want, Wish};
use crate::soak_volumes::is_small;
use crate::soak_world::PoolIn;

const IN_USE: Want = Want::Refused(Code::FailedPrecondition);
const GONE: Want = Want::Refused(Code::NotFound);
/// The source has gone, or was just growing.
const AFTER_DISTURBANCE: Want = Want::Either(&[Code::NotFound, Code::FailedPrecondition]);

fn size(snapshot: &proto::Snapshot) -> u64 {
    u64::try_from(snapshot.size_bytes).unwrap()
}

/// What a copy that shares blocks with its source is answered with.
fn may_be_copied(volume: &Volume) -> Want {
    let is_instant = is_instant(volume.pool.on(), volume.kind());
    if volume.on_delete == "wipe" || (volume.is_written() && !is_instant) {
        IN_USE
    } else {
        Want::Done
    }
}

impl Actor {
    /// Every snapshot that exists, those in groups included.
    pub(crate) fn all_snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        let members = self.group.iter().flat_map(|group| &group.members);
        self.snapshots.iter().flatten().chain(members)
    }

    pub(crate) fn has_snapshots(&self, id: &str) -> bool {
        self.all_snapshots().any(|snapshot| snapshot.of == id)
    }

    fn snapshot_name(&self, number: usize) -> String {
        format!("snapshot-{}-{number}", self.number)
    }

    pub(crate) fn snapshot(&mut self) {
        let (slot, number) = (self.any_slot(), self.random.index(SNAPSHOTS));
        let name = self.snapshot_name(number);
        let Some(id) = self.slots[slot].any_id() else { return };
        if let Some(has) = self.snapshots[number].clone() {
            if self.world.pool_of(&id) != has.pool {
                // A driver that starts may not have opened that pool yet, and takes another one of the name here.
                return;
            }
            let want = if has.of == id { Want::Done } else { Want::Refused(Code::AlreadyExists) };
            let step = ("snapshot again", format!("{name} of {id}"));
            if let Some(told) = self.expect(step, want, |c| c.snapshot(&name, &id)) {
                self.claim(told.snapshot_id == has.id, "the same request finds the snapshot");
            }
            return;
        }
        let Some(volume) = self.slots[slot].volume.clone() else {
            self.expect(("snapshot", format!("{id}, which is gone")), GONE, |c| {
                c.snapshot(&name, &id)
            });
            return;
        };
        let step = ("snapshot", format!("{name} of {id}"));
        let take = |c: &Client| c.snapshot(&name, &id);
        let mut want = may_be_copied(&volume);
        if want == Want::Done && self.random.one_in(3) {
            let disturbed = ("snapshot, disturbed", name.clone());
            let is_made = self.beside(&disturbed, take, |actor| actor.disturb(slot));
            want = if is_made { Want::Done } else { AFTER_DISTURBANCE };
        }
        let Some(told) = self.expect(step, want, take) else { return };
        self.note_snapshot(number, &volume, slot, &told);
    }

    fn note_snapshot(
        &mut self,
        number: usize,
        volume: &Volume,
        slot: usize,
        told: &proto::Snapshot,
    ) {
        self.claim(self.world.is_new(&told.snapshot_id), "a new snapshot has a new id");
        // It may have grown between two tries.
        let now = self.slots[slot].volume.as_ref().map_or(volume.size, |now| now.size);
        let is_right = size(told) == volume.size || size(told) == now;
        self.claim(is_right, "a snapshot has the size of its volume");
        self.snapshots[number] = Some(Snapshot {
            id: told.snapshot_id.clone(),
            of: volume.id.clone(),
            kind: volume.kind(),
            size: size(told),
            pool: volume.pool,
            content: volume.content,
        });
        if let Some(volume) = &mut self.slots[slot].volume {
            volume.may_share = true;
        }
    }

    /// Ends or grows the source of a copy that is just being made.
    fn disturb(&mut self, source: usize) {
        if self.slots[source].volume.is_none() {
            return;
        }
        match self.random.below(3) {
            0 => self.expand_now(source, 4 * MIB),
            _ => self.delete_now(source),
        }
    }

    pub(crate) fn delete_snapshot(&mut self) {
        let number = self.random.index(SNAPSHOTS);
        if let Some(group) = &self.group
            && self.random.one_in(4)
        {
            let id = group.members[0].id.clone();
            let want = Want::Refused(Code::InvalidArgument);
            self.expect(("delete a member", id.clone()), want, |c| c.delete_snapshot(&id));
            return;
        }
        let Some(id) = self.snapshots[number].take().map(|snapshot| snapshot.id) else {
            let Some(past) = self.past_snapshots.last().cloned() else { return };
            self.insist(("delete a snapshot late", past.clone()), |c| c.delete_snapshot(&past));
            return;
        };
        self.insist(("delete a snapshot", id.clone()), |c| c.delete_snapshot(&id));
        self.past_snapshots.push(id);
    }

    /// What a copy of something is to be.
    fn wish_of_copy(
        &mut self,
        slot: usize,
        from: (Kind, PoolIn, u64, Content),
        source: proto::VolumeContentSource,
    ) -> (Wish, bool) {
        let (kind, pool, size, content) = from;
        let place = if self.random.one_in(4) { self.pool_for(kind) } else { pool };
        let is_thick = is_small(kind) && kind != Kind::Hostpath && self.random.one_in(6);
        let mut parameters = vec![("backend", kind.backend()), ("pool", place.name())];
        if is_thick {
            parameters.push(("allocation", "thick"));
        }
        let create = Create {
            name: self.slots[slot].name.clone(),
            bytes: size + self.random.below(3) * 4 * MIB,
            capability: kind.capability(MODE),
            parameters,
        };
        let shares = place == pool && !is_thick;
        (Wish { kind, create, source: Some(source), content, on_delete: "delete" }, shares)
    }

    pub(crate) fn restore(&mut self) {
        let slot = self.free_slot();
        let snapshots: Vec<Snapshot> = self.all_snapshots().cloned().collect();
        if snapshots.is_empty() {
            let Some(past) = self.past_snapshots.last().cloned() else { return };
            let from = (Kind::Ext4, PoolIn::Ext4, 64 * MIB, Default::default());
            let (wish, _) = self.wish_of_copy(slot, from, from_snapshot(&past));
            if !self.is_taken(slot, &wish) {
                let step = ("restore", format!("{past}, which is gone"));
                self.expect(step, GONE, |c| c.make(&wish));
            }
            return;
        }
        let snapshot = snapshots[self.random.index(snapshots.len())].clone();
        let from = (snapshot.kind, snapshot.pool, snapshot.size, snapshot.content);
        let (wish, _) = self.wish_of_copy(slot, from, from_snapshot(&snapshot.id));
        if !self.is_taken(slot, &wish) {
            self.world.count("restore");
            self.be_born(slot, wish);
        }
    }

    /// The name has a volume already: the same wish finds it, any other is refused.
    fn is_taken(&mut self, slot: usize, wish: &Wish) -> bool {
        let Some(volume) = self.slots[slot].volume.clone() else { return false };
        let about = volume.id.clone();
        if volume.wish.source.is_some() && self.random.one_in(2) {
            // Also when the source has gone since.
            let told = self.insist(("copy again", about), |c| c.make(&volume.wish));
            self.claim(told.volume_id == volume.id, "the same request finds the copy");
        } else if volume.wish.source != wish.source {
            let mut wish = wish.clone();
            wish.create.parameters[1] = ("pool", volume.pool.name());
            let want = Want::Refused(Code::AlreadyExists);
            self.expect(("copy under a taken name", about), want, |c| c.make(&wish));
        }
        true
    }

    pub(crate) fn clone_volume(&mut self) {
        let (slot, source) = (self.free_slot(), self.any_slot());
        let Some(id) = self.slots[source].any_id().filter(|_| slot != source) else { return };
        let volume = self.slots[source].volume.clone();
        let from = match &volume {
            Some(volume) => (volume.kind(), volume.pool, volume.size, volume.content),
            None => (Kind::Ext4, PoolIn::Ext4, 64 * MIB, Default::default()),
        };
        let (wish, shares) = self.wish_of_copy(slot, from, from_volume(&id));
        if self.is_taken(slot, &wish) {
            return;
        }
        let Some(volume) = volume else {
            self.expect(("clone", format!("{id}, which is gone")), GONE, |c| c.make(&wish));
            return;
        };
        let needs_quiet = volume.is_written() && !shares;
        let mut want = if needs_quiet { IN_USE } else { may_be_copied(&volume) };
        let make = |c: &Client| c.make(&wish);
        if want == Want::Done && self.random.one_in(3) {
            let disturbed = ("clone, disturbed", id.clone());
            let is_made = self.beside(&disturbed, make, |actor| actor.disturb(source));
            want = if is_made { Want::Done } else { AFTER_DISTURBANCE };
        }
        let step = || ("clone", format!("{id} as {:?}", wish.create));
        if want == IN_USE {
            // The provisioner comes again and again; nothing of that adds up.
            (0..3).for_each(|_| drop(self.expect(step(), want, make)));
            return;
        }
        if let Some(told) = self.expect(step(), want, make) {
            if let Some(volume) = &mut self.slots[source].volume {
                volume.may_share = true;
            }
            self.place(slot, wish, &told);
        }
    }

    pub(crate) fn take_group(&mut self) {
        let (first, second) = (self.any_slot(), self.any_slot());
        if first == second {
            return;
        }
        let ids = [first, second].map(|slot| self.slots[slot].any_id());
        let [Some(one), Some(two)] = ids else { return };
        let mut sources = vec![one, two];
        sources.sort();
        let name = format!("group-{}", self.number);
        let names: Vec<&str> = sources.iter().map(String::as_str).collect();
        let take = |c: &Client| c.group(&name, &names);
        let step = ("group", format!("{name} of {sources:?}"));
        if let Some(has) = self.group.clone() {
            if sources.iter().all(|id| self.world.pool_of(id) != has.members[0].pool) {
                // As for single snapshots.
                return;
            }
            let is_same = has.sources == sources;
            let want = if is_same { Want::Done } else { Want::Refused(Code::AlreadyExists) };
            if let Some(told) = self.expect(step, want, take) {
                self.claim(told == has.told, "the same request finds the group");
            }
            return;
        }
        let volumes = [first, second].map(|slot| self.slots[slot].volume.clone());
        let want = group_want(&volumes);
        let Some(told) = self.expect(step, want, take) else { return };
        let volumes = volumes.map(Option::unwrap);
        let mut members = Vec::new();
        for member in &told.snapshots {
            self.claim(self.world.is_new(&member.snapshot_id), "a new member has a new id");
            let volume = volumes.iter().find(|volume| volume.id == member.source_volume_id);
            let volume = volume.unwrap();
            self.claim(size(member) == volume.size, "a member has the size of its volume");
            members.push(Snapshot {
                id: member.snapshot_id.clone(),
                of: volume.id.clone(),
                kind: volume.kind(),
                size: size(member),
                pool: volume.pool,
                content: volume.content,
            });
        }
        self.claim(members.len() == 2, "a group is whole");
        for slot in [first, second] {
            self.slots[slot].volume.as_mut().unwrap().may_share = true;
        }
        self.group = Some(Group { told, sources, members });
    }

    pub(crate) fn delete_group(&mut self) {
        let Some(group) = self.group.take() else { return };
        let step = ("delete a group", group.told.group_snapshot_id.clone());
        self.insist(step, |c| c.delete_group(&group.told));
        self.past_snapshots.extend(group.members.into_iter().map(|member| member.id));
    }
}

/// What a group of two volumes is answered with.
fn group_want(volumes: &[Option<Volume>; 2]) -> Want {
    let [Some(one), Some(two)] = volumes else { return GONE };
    let is_frozen = |volume: &Volume| {
        volume.kind().is_filesystem_on_loop() && is_instant(volume.pool.on(), volume.kind())
    };
    let holds =
        |volume: &Volume| volume.on_delete != "wipe" && (!volume.is_written() || is_frozen(volume));
    if one.pool == two.pool && holds(one) && holds(two) { Want::Done } else { IN_USE }
}
