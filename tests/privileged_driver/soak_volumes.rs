//! Volumes of their own: created, created again, grown, changed, deleted.

use orlop::csi::proto;
use tonic::Code;

use crate::client::Create;
use crate::life::{Kind, MIB};
use crate::privileged::can_grow_mounted_ext4;
use crate::soak_client::{Actor, Answer, MODE};
use crate::soak_model::{Kept, Volume, Want, Wish};
use crate::soak_world::PoolIn;

/// What is made, how often beside the others. Filesystems that need much room are rarer.
const KINDS: [Kind; 12] = [
    Kind::Hostpath,
    Kind::Hostpath,
    Kind::Hostpath,
    Kind::Hostpath,
    Kind::Ext4,
    Kind::Ext4,
    Kind::Ext4,
    Kind::Block,
    Kind::Block,
    Kind::Block,
    Kind::Xfs,
    Kind::Btrfs,
];
/// No volume grows to more than this beyond its first size.
const GROWTH: u64 = 96 * MIB;

/// Small enough to be kept after a deletion, or to have all its blocks.
pub(crate) fn is_small(kind: Kind) -> bool {
    matches!(kind, Kind::Hostpath | Kind::Ext4 | Kind::Block)
}

impl Actor {
    pub(crate) fn pool_for(&mut self, kind: Kind) -> PoolIn {
        let pool = self.random.pick(&PoolIn::ALL);
        if is_small(kind) || pool.is_large() { pool } else { PoolIn::Xfs }
    }

    fn wish(&mut self, slot: usize) -> Wish {
        let kind = self.random.pick(&KINDS);
        let pool = self.pool_for(kind);
        let mut parameters = vec![("backend", kind.backend())];
        parameters.push(("pool", if self.random.one_in(5) { "any" } else { pool.name() }));
        if kind == Kind::Hostpath {
            parameters.push(("quota", self.random.pick(&["auto", "off"])));
        } else {
            // The managed pool has blocks of 4096 bytes, a raw block volume sectors of 512: there "on" cannot be had.
            let most = if kind == Kind::Block { 2 } else { 3 };
            parameters.push(("directIO", self.random.pick(&["auto", "off", "on"][..most])));
            if is_small(kind) && self.random.one_in(4) {
                parameters.push(("allocation", "thick"));
            }
        }
        let mut on_delete = "delete";
        if is_small(kind) && self.random.one_in(5) {
            on_delete = self.random.pick(&["retain", "archive"]);
            parameters.push(("onDelete", on_delete));
        }
        let create = Create {
            name: self.slots[slot].name.clone(),
            bytes: kind.size(),
            capability: kind.capability(MODE),
            parameters,
        };
        Wish { kind, create, source: None, content: Default::default(), on_delete }
    }

    pub(crate) fn create(&mut self) {
        let slot = self.free_slot();
        let Some(volume) = self.slots[slot].volume.clone() else {
            let wish = self.wish(slot);
            return self.be_born(slot, wish);
        };
        let mut wish = volume.wish.clone();
        let about = wish.create.name.clone();
        match self.random.below(3) {
            0 => {
                let told = self.insist(("create again", about), |c| c.make(&wish));
                self.claim(told.volume_id == volume.id, "the same request finds the volume");
                let size = u64::try_from(told.capacity_bytes).unwrap();
                self.claim(size == volume.size, "and tells its size");
            }
            1 => {
                wish.create.bytes = volume.size + 4 * MIB;
                let want = Want::Refused(Code::AlreadyExists);
                self.expect(("create with another size", about), want, |c| c.make(&wish));
            }
            _ => {
                let other = if wish.kind == Kind::Hostpath { "loop" } else { "hostpath" };
                wish.create.capability = Kind::Ext4.capability(MODE);
                wish.create.parameters = vec![("backend", other)];
                let want = Want::Refused(Code::AlreadyExists);
                self.expect(("create with another backend", about), want, |c| c.make(&wish));
            }
        }
    }

    /// A volume that must be made now, in a slot without one.
    pub(crate) fn be_born(&mut self, slot: usize, wish: Wish) {
        let step = || ("create", format!("{:?} {:?}", wish.create, wish.source));
        match self.call(step(), Want::Done, true, |c| c.make(&wish)) {
            Answer::Done(told) => self.place(slot, wish, &told),
            Answer::Refused => {}
            Answer::Lost => {
                // The opposite of a creation that may have come about: made for certain, and deleted.
                let told = self.insist(step(), |c| c.make(&wish));
                self.place(slot, wish, &told);
                if self.random.one_in(2) {
                    self.delete_now(slot);
                }
            }
        }
    }

    /// What was just made has the place of its name in the model.
    pub(crate) fn place(&mut self, slot: usize, wish: Wish, told: &proto::Volume) {
        let (id, size) = (told.volume_id.clone(), u64::try_from(told.capacity_bytes).unwrap());
        self.claim(self.world.is_new(&id), "what is new has a new id");
        let least = if wish.kind == Kind::Btrfs { 256 * MIB } else { 0 };
        let asked = wish.create.bytes.max(least);
        // The source of a copy may have grown between two tries.
        let more = if wish.source.is_some() { GROWTH } else { 0 };
        let is_right = (asked..=asked + more).contains(&size);
        self.claim(is_right, &format!("{id} has {size} bytes, asked were {asked}"));
        self.slots[slot].volume = Some(Volume {
            pool: self.world.pool_of(&id),
            id,
            size,
            staged: false,
            targets: [None; 2],
            content: wish.content,
            on_delete: wish.on_delete,
            may_share: wish.source.is_some(),
            wish,
        });
    }

    pub(crate) fn delete(&mut self) {
        let slot = self.any_slot();
        let past = self.slots[slot].past.clone();
        match (&self.slots[slot].volume, past) {
            (volume, Some(past)) if volume.is_none() || self.random.one_in(4) => {
                // Whoever has the name now is not hit by it.
                self.insist(("delete late", past.clone()), |c| c.delete(&past));
            }
            (None, _) => {}
            (Some(_), _) => self.delete_now(slot),
        }
    }

    /// Ends a volume as a pod and its claim end.
    pub(crate) fn retire(&mut self) {
        if let Some(slot) = self.slot_where(|_| true) {
            self.take_down(slot);
            self.delete_now(slot);
        }
    }

    pub(crate) fn take_down(&mut self, slot: usize) {
        self.unpublish_now(slot, 0);
        self.unpublish_now(slot, 1);
        self.unstage_now(slot);
    }

    /// Deletes what a name has, or finds it in use.
    pub(crate) fn delete_now(&mut self, slot: usize) {
        let volume = self.slots[slot].volume.clone().unwrap();
        let want =
            if volume.is_used() { Want::Refused(Code::FailedPrecondition) } else { Want::Done };
        let step = ("delete", volume.id.clone());
        let gives_up = volume.wish.source.is_none();
        match self.call(step, want, gives_up, |c| c.delete(&volume.id)) {
            Answer::Done(()) => self.bury(slot),
            Answer::Refused => {}
            Answer::Lost => {
                // The opposite: the same creation finds the volume as it was, or makes a new one.
                let step = ("create after a lost deletion", volume.wish.create.name.clone());
                let told = self.insist(step, |c| c.make(&volume.wish));
                if told.volume_id != volume.id {
                    self.claim(!volume.is_used(), "what is in use is not deleted");
                    self.bury(slot);
                    self.place(slot, volume.wish, &told);
                }
            }
        }
    }

    /// The volume is gone; its `onDelete` says what stays.
    fn bury(&mut self, slot: usize) {
        let volume = self.slots[slot].volume.take().unwrap();
        let directory = match volume.on_delete {
            "retain" => Some("retained"),
            "archive" => Some("archive"),
            _ => None,
        };
        let parts: Vec<&str> = volume.id.split('-').collect();
        if let Some(directory) = directory {
            self.kept.push(Kept {
                pool: volume.pool,
                place: format!("{directory}/{}.{}", parts[2], parts[3]),
                kind: volume.kind(),
                size: volume.size,
                content: volume.content,
            });
        }
        self.slots[slot].past = Some(volume.id);
    }

    pub(crate) fn expand(&mut self) {
        let slot = self.any_slot();
        if self.slots[slot].volume.is_none() {
            let Some(past) = self.slots[slot].past.clone() else { return };
            let want = Want::Refused(Code::NotFound);
            self.expect(("expand", past.clone()), want, |c| c.expand(&past, 64 * MIB));
            return;
        }
        let more = self.random.below(7) * 4 * MIB;
        self.expand_now(slot, more);
    }

    pub(crate) fn expand_now(&mut self, slot: usize, more: u64) {
        let volume = self.slots[slot].volume.as_ref().unwrap();
        let (id, size, first) = (volume.id.clone(), volume.size, volume.wish.create.bytes);
        let bytes = if size + more > first + GROWTH { size / 2 } else { size + more };
        let step = ("expand", format!("{id} from {size} to {bytes}"));
        self.insist(step, |c| c.expand(&id, bytes));
        self.slots[slot].volume.as_mut().unwrap().size = size.max(bytes);
    }

    pub(crate) fn node_expand(&mut self) {
        let (slot, target) = (self.any_slot(), self.random.index(2));
        let is_staging = self.random.one_in(2);
        let Some(volume) = &self.slots[slot].volume else { return };
        let (id, size) = (volume.id.clone(), volume.size);
        let (is_there, path) = if is_staging {
            (volume.staged, self.staging(slot))
        } else {
            (volume.targets[target].is_some(), self.target(slot, target))
        };
        let want = if !is_there {
            Want::Refused(Code::NotFound)
        } else if volume.kind() == Kind::Ext4 && !can_grow_mounted_ext4() {
            Want::Either(&[Code::FailedPrecondition])
        } else {
            Want::Done
        };
        let step = ("node expand", format!("{id} at {}", path.display()));
        self.expect(step, want, |c| c.node_expand(&id, &path, size));
    }

    pub(crate) fn modify(&mut self) {
        let Some(slot) = self.slot_where(|volume| is_small(volume.kind())) else { return };
        let value = self.random.pick(&["delete", "delete", "retain", "archive", "wipe"]);
        let volume = self.slots[slot].volume.clone().unwrap();
        let want = if value == "wipe" && volume.on_delete != "wipe" {
            self.may_be_wiped(&volume)
        } else {
            Want::Done
        };
        let step = ("modify", format!("{} to {value}", volume.id));
        if self.expect(step, want, |c| c.modify(&volume.id, "onDelete", value)).is_some() {
            self.slots[slot].volume.as_mut().unwrap().on_delete = value;
        }
    }

    fn may_be_wiped(&self, volume: &Volume) -> Want {
        let shares = volume.pool.on().shares();
        if self.has_snapshots(&volume.id) || (shares && volume.kind() == Kind::Hostpath) {
            return Want::Refused(Code::InvalidArgument);
        }
        // What once was shared may be still, for all that the model knows.
        if shares && volume.may_share { Want::Either(&[Code::InvalidArgument]) } else { Want::Done }
    }

    pub(crate) fn capacity(&mut self) {
        let pool = self.random.pick(&PoolIn::ALL).name();
        self.insist(("capacity", pool.to_owned()), |c| c.room_in(pool));
    }

    /// Whatever the others do meanwhile, the pages have what is there the whole time, once. A driver that starts leaves
    /// out what lies in pools that it has not opened yet, so a list of such a moment tells nothing.
    pub(crate) fn list(&mut self) {
        let page = i32::try_from(1 + self.random.below(6)).unwrap();
        let settled = self.world.settled();
        let volumes = self.insist(("list", format!("by {page}")), |c| c.volumes_in_pages(page));
        let step = ("list snapshots", format!("by {page}"));
        let snapshots = self.insist(step, |c| c.snapshots_in_pages(page));
        if settled.is_none() || settled != self.world.settled() {
            return;
        }
        for volume in self.slots.iter().filter_map(|slot| slot.volume.as_ref()) {
            let is_right = volumes.get(&volume.id) == Some(&volume.size);
            self.claim(is_right, &format!("{} has {} in the list", volume.id, volume.size));
        }
        for snapshot in self.all_snapshots() {
            let is_right = snapshots.get(&snapshot.id) == Some(&snapshot.of);
            self.claim(is_right, &format!("{} is in the list", snapshot.id));
        }
    }

    pub(crate) fn confirm(&mut self) {
        let slot = self.any_slot();
        let Some(id) = self.slots[slot].any_id() else { return };
        let Some(volume) = &self.slots[slot].volume else {
            let capability = Kind::Ext4.capability(MODE);
            let want = Want::Refused(Code::NotFound);
            self.expect(("validate", id.clone()), want, |c| c.validate(&id, &capability));
            return;
        };
        let kind = volume.kind();
        let is_right = self.random.one_in(2);
        let asked = match (is_right, kind) {
            (true, _) => kind,
            (false, Kind::Block) => Kind::Ext4,
            (false, _) => Kind::Block,
        };
        let capability = asked.capability(MODE);
        let step = ("validate", format!("{id} as {asked:?}"));
        let confirmed = self.insist(step, |c| c.validate(&id, &capability));
        self.claim(confirmed == is_right, "what a volume can be used as is confirmed");
    }

    pub(crate) fn health(&mut self) {
        let Some(slot) = self.slot_where(|_| true) else { return };
        let id = self.slots[slot].any_id().unwrap();
        let settled = self.world.settled();
        let ills = self.insist(("health", id.clone()), |c| c.ills(&id));
        // While it starts, a pool that it has not opened yet is told to be away.
        let is_starting = settled.is_none() || settled != self.world.settled();
        self.claim(is_starting || ills.is_empty(), &format!("{id} is well, but it has {ills:?}"));
    }
}
