//! What should be, in as few words as possible.

use std::collections::BTreeMap;

use orlop::volume::VolumeId;

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

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// What is mounted at each place, and whether it is read-only.
    pub(crate) places: [Option<bool>; 3],
}

impl Volume {
    fn is_published(&self) -> bool {
        self.places[1..].iter().any(Option::is_some)
    }

    pub(crate) fn is_used(&self) -> bool {
        self.places.iter().any(Option::is_some)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) volumes: BTreeMap<usize, Volume>,
    /// The last id that each name had before.
    pub(crate) past: BTreeMap<usize, VolumeId>,
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
        | Op::NodeExpand(name, _)) = op
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

    fn create(&mut self, name: usize, kind: Kind, size: u64, id: Option<&VolumeId>) -> Said {
        match self.volumes.get(&name) {
            Some(has) if has.kind == kind && size <= has.size => Said::Done,
            Some(_) => Said::Refused("Conflict"),
            None if size > self.room() => Said::Refused("NoSpace"),
            None => {
                let id = id.expect("a new volume has an id").clone();
                self.volumes.insert(name, Volume { id, kind, size, places: [None; 3] });
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

    /// A step's answer, and what it changes. `id` is the one that a creation answered with.
    pub(crate) fn apply(&mut self, op: &Op, id: Option<&VolumeId>) -> Said {
        let room = self.room();
        if let Op::Create(name, kind, size) = *op {
            return self.create(name, kind, size, id);
        }
        if let Op::Delete(name, late) = *op {
            return self.delete(name, late);
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
        | Op::Faulty(..)
        | Op::Crash
        | Op::Reboot => Said::Done,
    }
}
