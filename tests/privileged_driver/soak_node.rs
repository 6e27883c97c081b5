//! Stage, publish, write, read, and back, in any order.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use orlop::csi::proto::volume_usage::Unit;
use tonic::Code;

use crate::driver::no_forks;
use crate::life::Kind;
use crate::soak_client::{Actor, Answer, MODE};
use crate::soak_model::{Content, FILES, LONGEST, PART, Piece, Volume, Want};
use crate::soak_world::PoolIn;

/// Writes a file of a volume, or a part of a device, and flushes it: first what is in it, then its name. Nothing is
/// removed where there is nothing to write.
pub(crate) fn put(kind: Kind, target: &Path, index: usize, piece: Option<Piece>) {
    let _quiet = no_forks();
    if kind == Kind::Block {
        let mut bytes = piece.map(Piece::bytes).unwrap_or_default();
        bytes.resize(LONGEST, 0);
        let device = OpenOptions::new().write(true).open(target).unwrap();
        device.write_all_at(&bytes, u64::try_from(index).unwrap() * PART).unwrap();
        return device.sync_all().unwrap();
    }
    let path = target.join(format!("file-{index}"));
    match piece {
        Some(piece) => {
            let file = File::create(path).unwrap();
            file.write_all_at(&piece.bytes(), 0).unwrap();
            file.sync_all().unwrap();
        }
        None if path.exists() => std::fs::remove_file(path).unwrap(),
        None => {}
    }
    File::open(target).unwrap().sync_all().unwrap();
}

/// What a volume shows that is not as it should be.
pub(crate) fn differs(kind: Kind, target: &Path, content: &Content) -> Option<String> {
    let _quiet = no_forks();
    if kind == Kind::Block {
        let device = File::open(target).unwrap();
        return parts_differ(&device, content);
    }
    let mut names: Vec<String> = std::fs::read_dir(target)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // e2fsck makes it again when an ext4 is grown unmounted or copied.
    let is_fsck = |name: &String| kind == Kind::Ext4 && name == "lost+found";
    names.retain(|name| !(is_fsck(name) && crate::life::is_empty(&target.join(name))));
    names.sort();
    let mut wanted = Vec::new();
    for (index, piece) in content.iter().enumerate() {
        let Some(piece) = piece else { continue };
        wanted.push(format!("file-{index}"));
        let found = std::fs::read(target.join(format!("file-{index}")));
        match found {
            Ok(found) if found == piece.bytes() => {}
            Ok(found) => {
                return Some(format!("file-{index} is another ({} bytes)", found.len()));
            }
            Err(error) => return Some(format!("file-{index}: {error}; there are {names:?}")),
        }
    }
    (names != wanted).then(|| format!("it has {names:?} and should have {wanted:?}"))
}

/// The same for an opened device or its image.
pub(crate) fn parts_differ(device: &File, content: &Content) -> Option<String> {
    for (index, piece) in content.iter().enumerate() {
        let mut wanted = piece.map(Piece::bytes).unwrap_or_default();
        wanted.resize(LONGEST, 0);
        let mut found = vec![0; LONGEST];
        device.read_exact_at(&mut found, u64::try_from(index).unwrap() * PART).unwrap();
        if found != wanted {
            return Some(format!("part {index} is not as it was written"));
        }
    }
    None
}

impl Actor {
    pub(crate) fn stage(&mut self) {
        let slot = self.any_slot();
        let staging = self.staging(slot);
        let Some(volume) = self.slots[slot].volume.clone() else {
            let Some(past) = self.slots[slot].past.clone() else { return };
            let (want, capability) = (Want::Refused(Code::NotFound), Kind::Ext4.capability(MODE));
            let step = ("stage", format!("{past}, which is gone"));
            self.expect(step, want, |c| c.stage(&past, &staging, &capability));
            return;
        };
        if self.random.one_in(8) {
            let asked = if volume.kind() == Kind::Block { Kind::Xfs } else { Kind::Block };
            let capability = asked.capability(MODE);
            let want = Want::Refused(Code::FailedPrecondition);
            let step = ("stage as another kind", volume.id.clone());
            self.expect(step, want, |c| c.stage(&volume.id, &staging, &capability));
            return;
        }
        self.stage_now(slot, true);
    }

    pub(crate) fn stage_now(&mut self, slot: usize, gives_up: bool) {
        let staging = self.staging(slot);
        let volume = self.slots[slot].volume.clone().unwrap();
        let capability = volume.kind().capability(MODE);
        let step = ("stage", volume.id.clone());
        let stage = |c: &crate::client::Client| c.stage(&volume.id, &staging, &capability);
        match self.call(step, Want::Done, gives_up, stage) {
            Answer::Done(()) => self.slots[slot].volume.as_mut().unwrap().staged = true,
            Answer::Refused => {}
            Answer::Lost => self.unstage_now(slot),
        }
    }

    pub(crate) fn publish(&mut self) {
        let slot = self.any_slot();
        let (target, read_only) = (self.random.index(2), self.random.one_in(3));
        if self.slots[slot].volume.is_none() {
            let Some(past) = self.slots[slot].past.clone() else { return };
            let want = Want::Refused(Code::NotFound);
            self.publish_as(slot, &past, Kind::Ext4, (target, read_only), want);
            return;
        }
        self.publish_now(slot, target, read_only);
    }

    fn publish_now(&mut self, slot: usize, target: usize, read_only: bool) {
        let volume = self.slots[slot].volume.as_ref().unwrap();
        let want = match (volume.staged, volume.targets[target]) {
            (false, _) => Want::Refused(Code::FailedPrecondition),
            (true, Some(has)) if has != read_only => Want::Refused(Code::AlreadyExists),
            (true, _) => Want::Done,
        };
        let (id, kind) = (volume.id.clone(), volume.kind());
        match self.publish_as(slot, &id, kind, (target, read_only), want) {
            Answer::Done(()) => {
                self.slots[slot].volume.as_mut().unwrap().targets[target] = Some(read_only);
            }
            Answer::Refused => {}
            Answer::Lost => self.unpublish_now(slot, target),
        }
    }

    fn publish_as(
        &mut self,
        slot: usize,
        id: &str,
        kind: Kind,
        place: (usize, bool),
        want: Want,
    ) -> Answer<()> {
        let (staging, target) = (self.staging(slot), self.target(slot, place.0));
        let capability = kind.capability(MODE);
        let step = ("publish", format!("{id} at {}, read-only: {}", target.display(), place.1));
        self.call(step, want, true, |c| c.publish(id, (&staging, &target), &capability, place.1))
    }

    pub(crate) fn unpublish(&mut self) {
        let (slot, target) = (self.any_slot(), self.random.index(2));
        if self.slots[slot].any_id().is_some() {
            self.unpublish_now(slot, target);
        }
    }

    pub(crate) fn unpublish_now(&mut self, slot: usize, target: usize) {
        let id = self.slots[slot].any_id().unwrap();
        let path = self.target(slot, target);
        let step = ("unpublish", format!("{id} at {}", path.display()));
        self.insist(step, |c| c.unpublish(&id, &path));
        self.claim(!path.exists(), "unpublish removes the target path");
        if let Some(volume) = &mut self.slots[slot].volume {
            volume.targets[target] = None;
        }
    }

    pub(crate) fn unstage(&mut self) {
        let slot = self.any_slot();
        if self.slots[slot].any_id().is_some() {
            self.unstage_now(slot);
        }
    }

    pub(crate) fn unstage_now(&mut self, slot: usize) {
        let (id, staging) = (self.slots[slot].any_id().unwrap(), self.staging(slot));
        let volume = self.slots[slot].volume.as_ref();
        // A bound device does not keep its loop device.
        let is_held = volume.is_some_and(|v| v.kind() == Kind::Block && v.is_published());
        let want = if is_held { Want::Refused(Code::FailedPrecondition) } else { Want::Done };
        let step = ("unstage", id.clone());
        if self.expect(step, want, |c| c.unstage(&id, &staging)).is_some()
            && let Some(volume) = &mut self.slots[slot].volume
        {
            volume.staged = false;
        }
    }

    /// Begins to use a volume as a pod does.
    pub(crate) fn start_pod(&mut self) {
        let Some(slot) = self.slot_where(|volume| !volume.is_published()) else { return };
        self.stage_now(slot, true);
        self.publish_now(slot, 0, false);
        for _ in 0..2 {
            self.write_into(slot);
        }
    }

    pub(crate) fn write(&mut self) {
        let writable = |volume: &Volume| volume.targets.contains(&Some(false));
        if let Some(slot) = self.slot_where(writable) {
            self.write_into(slot);
        }
    }

    fn write_into(&mut self, slot: usize) {
        let index = self.random.index(FILES);
        let piece = (!self.random.one_in(6)).then(|| Piece::new(&mut self.random));
        let volume = self.slots[slot].volume.as_mut().unwrap();
        let target = volume.targets.iter().position(|at| *at == Some(false));
        // A publish that was cut off may have been taken back.
        let Some(target) = target else { return };
        volume.content[index] = piece;
        let (id, kind) = (volume.id.clone(), volume.kind());
        put(kind, &self.target(slot, target), index, piece);
        self.world.count("write");
        self.world.trace(self.number, format!("write {index} of {id}: {piece:?}"));
    }

    pub(crate) fn read(&mut self) {
        let Some(slot) = self.slot_where(Volume::is_published) else { return };
        self.world.count("read");
        self.check_content(slot);
    }

    /// Whatever shows the volume shows what was written.
    pub(crate) fn check_content(&self, slot: usize) {
        let volume = self.slots[slot].volume.as_ref().unwrap();
        for (target, published) in volume.targets.iter().enumerate() {
            if published.is_none() {
                continue;
            }
            let path = self.target(slot, target);
            if let Some(why) = differs(volume.kind(), &path, &volume.content) {
                self.fail(&format!("read {volume:?} at {}", path.display()), &why);
            }
        }
    }

    /// Shows the volume if need be, compares its content, and leaves it as it was.
    pub(crate) fn look_inside(&mut self, slot: usize) {
        let Some(volume) = self.slots[slot].volume.clone() else { return };
        self.world.count("look inside");
        if volume.is_published() {
            return self.check_content(slot);
        }
        self.stage_now(slot, false);
        let id = &volume.id;
        let (staging, target) = (self.staging(slot), self.target(slot, 0));
        let capability = volume.kind().capability(MODE);
        let step = ("publish", format!("{id} for a look"));
        self.insist(step, |c| c.publish(id, (&staging, &target), &capability, true));
        self.slots[slot].volume.as_mut().unwrap().targets[0] = Some(true);
        self.check_content(slot);
        self.unpublish_now(slot, 0);
        if !volume.staged {
            self.unstage_now(slot);
        }
    }

    pub(crate) fn stats(&mut self) {
        let (slot, target) = (self.any_slot(), self.random.index(2));
        let Some(volume) = self.slots[slot].volume.clone() else { return };
        let (is_there, path) = if self.random.one_in(2) {
            (volume.staged, self.staging(slot))
        } else {
            (volume.targets[target].is_some(), self.target(slot, target))
        };
        let want = if is_there { Want::Done } else { Want::Refused(Code::NotFound) };
        let step = ("stats", format!("{} at {}", volume.id, path.display()));
        let Some(told) = self.expect(step, want, |c| c.stats(&volume.id, &path)) else { return };
        let bytes = told.iter().find(|usage| usage.unit == i32::from(Unit::Bytes)).unwrap();
        let total = u64::try_from(bytes.total).unwrap();
        let is_unlimited = volume.kind() == Kind::Hostpath
            && (volume.pool != PoolIn::Btrfs
                || volume.wish.create.parameters.contains(&("quota", "off")));
        let is_whole =
            volume.kind() == Kind::Block || (volume.kind() == Kind::Hostpath && !is_unlimited);
        if is_whole {
            self.claim(total == volume.size, &format!("{total} is the size of {}", volume.id));
        } else if !is_unlimited {
            self.claim(total <= volume.size, &format!("{total} is in {}", volume.id));
        }
    }
}
