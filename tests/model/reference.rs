//! What should be, in as few words as possible.

use std::collections::BTreeMap;

use orlop::volume::{SnapshotId, VolumeId};

/// The room of the pool, in GiB.
pub(crate) const ROOM: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Filesystem,
    Device,
}

/// A step. Names and places are small numbers; place 0 is the staging path, the others are targets.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(usize, Kind, u64),
    /// With the id that the name had before, when it had one.
    Delete(usize, bool),
    Expand(usize, u64),
    Stage(usize),
    Publish(usize, usize, bool),
    Unpublish(usize, usize),
    Unstage(usize),
    Stats(usize, usize),
    NodeExpand(usize, usize),
    /// Of a volume, under one of the names of snapshots.
    Snapshot(usize, usize),
    DeleteSnapshot(usize),
    /// From a snapshot, the volume of a name with at least that size.
    Restore(usize, usize, u64),
    /// These calls fail once.
    Faulty(Vec<&'static str>, Box<Op>),
    Crash,
    Reboot,
}

/// What a step is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    /// A size in GiB.
    Size(u64),
    /// The kind of the error.
    Refused(&'static str),
    /// A fault reached the caller.
    Broken(String),
}

/// The id of what a step made or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    Nothing,
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

impl Made {
    const fn volume(&self) -> Option<&VolumeId> {
        if let Self::Volume(id) = self { Some(id) } else { None }
    }

    const fn snapshot(&self) -> Option<&SnapshotId> {
        if let Self::Snapshot(id) = self { Some(id) } else { None }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// What is mounted at each place, and whether it is read-only.
    pub(crate) places: [Option<bool>; 3],
    /// What it was made of.
    pub(crate) source: Option<SnapshotId>,
}

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: SnapshotId,
    pub(crate) of: VolumeId,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
}

impl Volume {
    fn is_published(&self) -> bool {
        self.places[1..].iter().any(Option::is_some)
    }

    pub(crate) fn is_used(&self) -> bool {
        self.places.iter().any(Option::is_some)
    }

    /// Somebody may write. A filesystem may write by itself while it is mounted anywhere.
    fn is_written(&self) -> bool {
        match self.kind {
            Kind::Directory => self.places.contains(&Some(false)),
            Kind::Filesystem | Kind::Device => self.is_used(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) volumes: BTreeMap<usize, Volume>,
    /// The last id that each name had before.
    pub(crate) past: BTreeMap<usize, VolumeId>,
    pub(crate) snapshots: BTreeMap<usize, Snapshot>,
    /// The last snapshot that each name had before.
    pub(crate) past_snapshots: BTreeMap<usize, Snapshot>,
    /// Images are copied at one instant; directories never are.
    pub(crate) shares: bool,
}

impl Reference {
    fn room(&self) -> u64 {
        ROOM - self.volumes.values().map(|volume| volume.size).sum::<u64>()
    }

    /// The id that a step uses; `None` when the name never had one.
    pub(crate) fn id(&self, op: &Op) -> Option<&VolumeId> {
        let (Op::Delete(name, _)
        | Op::Expand(name, _)
        | Op::Stage(name)
        | Op::Publish(name, ..)
        | Op::Unpublish(name, _)
        | Op::Unstage(name)
        | Op::Stats(name, _)
        | Op::NodeExpand(name, _)
        | Op::Snapshot(name, _)) = op
        else {
            return None;
        };
        let (now, past) = (self.volumes.get(name).map(|v| &v.id), self.past.get(name));
        if matches!(op, Op::Delete(_, true)) { past.or(now) } else { now.or(past) }
    }

    pub(crate) fn reboot(&mut self) {
        for volume in self.volumes.values_mut() {
            volume.places = [None; 3];
        }
    }

    /// The snapshot that a name has, or had.
    pub(crate) fn snapshot(&self, name: usize) -> Option<&Snapshot> {
        self.snapshots.get(&name).or_else(|| self.past_snapshots.get(&name))
    }

    fn take(&mut self, volume: usize, name: usize, id: Option<&SnapshotId>) -> Said {
        let now = self.volumes.get(&volume);
        let Some(of) = now.map(|volume| &volume.id).or_else(|| self.past.get(&volume)) else {
            return Said::Refused("NotFound");
        };
        if let Some(has) = self.snapshots.get(&name) {
            return if has.of == *of { Said::Done } else { Said::Refused("Conflict") };
        }
        let Some(volume) = now else { return Said::Refused("NotFound") };
        let instant = volume.kind != Kind::Directory && self.shares;
        if volume.is_written() && !instant {
            return Said::Refused("Precondition");
        }
        let id = id.expect("a new snapshot has an id").clone();
        let (of, kind, size) = (of.clone(), volume.kind, volume.size);
        self.snapshots.insert(name, Snapshot { id, of, kind, size });
        Said::Done
    }

    fn drop_snapshot(&mut self, name: usize) -> Said {
        if let Some(snapshot) = self.snapshots.remove(&name) {
            self.past_snapshots.insert(name, snapshot);
        }
        Said::Done
    }

    fn restore(&mut self, from: usize, name: usize, size: u64, id: Option<&VolumeId>) -> Said {
        let Some(wanted) = self.snapshot(from).cloned() else { return Said::Refused("NotFound") };
        if let Some(has) = self.volumes.get(&name) {
            let same = has.kind == wanted.kind && size <= has.size;
            let same = same && has.source.as_ref() == Some(&wanted.id);
            return if same { Said::Done } else { Said::Refused("Conflict") };
        }
        if !self.snapshots.contains_key(&from) {
            return Said::Refused("NotFound");
        }
        let size = size.max(wanted.size);
        if size > self.room() {
            return Said::Refused("NoSpace");
        }
        let id = id.expect("a new volume has an id").clone();
        let source = Some(wanted.id);
        let volume = Volume { id, kind: wanted.kind, size, places: [None; 3], source };
        self.volumes.insert(name, volume);
        Said::Done
    }

    fn create(&mut self, name: usize, kind: Kind, size: u64, id: Option<&VolumeId>) -> Said {
        match self.volumes.get(&name) {
            Some(Volume { source: Some(_), .. }) => Said::Refused("Conflict"),
            Some(has) if has.kind == kind && size <= has.size => Said::Done,
            Some(_) => Said::Refused("Conflict"),
            None if size > self.room() => Said::Refused("NoSpace"),
            None => {
                let id = id.expect("a new volume has an id").clone();
                self.volumes
                    .insert(name, Volume { id, kind, size, places: [None; 3], source: None });
                Said::Done
            }
        }
    }

    fn delete(&mut self, name: usize, late: bool) -> Said {
        match self.volumes.get(&name) {
            Some(_) if late && self.past.contains_key(&name) => Said::Done,
            Some(volume) if volume.is_used() => Said::Refused("Precondition"),
            Some(volume) => {
                self.past.insert(name, volume.id.clone());
                self.volumes.remove(&name);
                Said::Done
            }
            None => Said::Done,
        }
    }

    /// A step's answer, and what it changes. `made` is what a creation answered with.
    pub(crate) fn apply(&mut self, op: &Op, made: &Made) -> Said {
        let room = self.room();
        match *op {
            Op::Create(name, kind, size) => return self.create(name, kind, size, made.volume()),
            Op::Restore(from, name, size) => {
                return self.restore(from, name, size, made.volume());
            }
            Op::Delete(name, late) => return self.delete(name, late),
            Op::Snapshot(volume, name) => return self.take(volume, name, made.snapshot()),
            Op::DeleteSnapshot(name) => return self.drop_snapshot(name),
            Op::Expand(..)
            | Op::Stage(_)
            | Op::Publish(..)
            | Op::Unpublish(..)
            | Op::Unstage(_)
            | Op::Stats(..)
            | Op::NodeExpand(..)
            | Op::Faulty(..)
            | Op::Crash
            | Op::Reboot => {}
        }
        let (Op::Expand(name, _)
        | Op::Stage(name)
        | Op::Publish(name, ..)
        | Op::Unpublish(name, _)
        | Op::Unstage(name)
        | Op::Stats(name, _)
        | Op::NodeExpand(name, _)) = op
        else {
            return Said::Done;
        };
        let Some(volume) = self.volumes.get_mut(name) else {
            let teardown = matches!(op, Op::Unpublish(..) | Op::Unstage(_));
            return if teardown { Said::Done } else { Said::Refused("NotFound") };
        };
        on_volume(volume, op, room)
    }
}

fn on_volume(volume: &mut Volume, op: &Op, room: u64) -> Said {
    match *op {
        Op::Expand(_, size) if size > volume.size + room => Said::Refused("Size"),
        Op::Expand(_, size) => {
            volume.size = volume.size.max(size);
            Said::Size(volume.size)
        }
        Op::Stage(_) => {
            volume.places[0] = Some(false);
            Said::Done
        }
        Op::Publish(..) if volume.places[0].is_none() => Said::Refused("Precondition"),
        Op::Publish(_, at, read_only) => match volume.places[at] {
            Some(has) if has != read_only => Said::Refused("Conflict"),
            _ => {
                volume.places[at] = Some(read_only);
                Said::Done
            }
        },
        Op::Unpublish(_, at) => {
            volume.places[at] = None;
            Said::Done
        }
        // A bound device does not keep its loop device.
        Op::Unstage(_) if volume.kind == Kind::Device && volume.is_published() => {
            Said::Refused("Precondition")
        }
        Op::Unstage(_) => {
            volume.places[0] = None;
            Said::Done
        }
        Op::Stats(_, at) | Op::NodeExpand(_, at) if volume.places[at].is_none() => {
            Said::Refused("NotFound")
        }
        Op::NodeExpand(..) => Said::Size(volume.size),
        Op::Stats(..)
        | Op::Create(..)
        | Op::Delete(..)
        | Op::Snapshot(..)
        | Op::DeleteSnapshot(_)
        | Op::Restore(..)
        | Op::Faulty(..)
        | Op::Crash
        | Op::Reboot => Said::Done,
    }
}
