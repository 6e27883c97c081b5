//! What must be there, and what may be: the model that the lines of the ledger add up to.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::{Event, OnDelete, Op, Pool, Source, Spec, Told};

/// Seeds of what was written, by slot.
pub(crate) type Slots = BTreeMap<u8, u64>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) source: Option<Source>,
    pub(crate) bytes: u64,
    pub(crate) keep: OnDelete,
    pub(crate) slots: Slots,
    /// Published in this boot.
    pub(crate) up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) spec: Spec,
    pub(crate) volume: String,
    pub(crate) bytes: u64,
    pub(crate) slots: Slots,
    /// What it shows was read in a restored volume.
    pub(crate) read: bool,
}

/// A volume that a deletion has kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) volume: Volume,
    /// The directory of the pool, and the name in it.
    pub(crate) place: (&'static str, String),
}

/// What a client has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) op: Op,
    /// The power was cut since.
    pub(crate) cut: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) kept: BTreeMap<String, Kept>,
    /// By client: one thing at a time.
    pub(crate) begun: BTreeMap<String, Begun>,
    /// How many volumes and snapshots a client has begun to make; their names are never used again.
    pub(crate) births: BTreeMap<String, u32>,
    /// The pools that were ready once.
    pub(crate) pools: BTreeSet<Pool>,
    pub(crate) boots: usize,
    pub(crate) acknowledged: usize,
    /// Acknowledgements up to the last complete look.
    pub(crate) checked: usize,
    /// What was begun and not acknowledged when the power was cut.
    pub(crate) in_flight: usize,
}

/// The key and the generation in an id.
pub(crate) fn key_and_generation(id: &str) -> (String, String) {
    let parts: Vec<&str> = id.split('-').collect();
    (parts[2].to_owned(), parts[3].to_owned())
}

impl World {
    pub(crate) fn hear(&mut self, event: &Event) {
        match event {
            Event::Boot => self.boot(),
            Event::Ready { pools } => self.pools.extend(pools),
            Event::Checked => self.checked = self.acknowledged,
            Event::Working => {}
            Event::Begin { client, op } => {
                if matches!(op, Op::Create { .. } | Op::Snapshot { .. }) {
                    *self.births.entry(client.clone()).or_default() += 1;
                }
                let begun = Begun { op: op.clone(), cut: false };
                assert_eq!(self.begun.insert(client.clone(), begun), None, "{client} is busy");
            }
            Event::Done { client, told } => {
                let begun = self.begun.remove(client).unwrap();
                self.acknowledged += 1;
                self.done(&begun.op, told);
            }
        }
    }

    fn boot(&mut self) {
        self.boots += 1;
        for volume in self.volumes.values_mut() {
            volume.up = false;
        }
        for begun in self.begun.values_mut() {
            self.in_flight += usize::from(!begun.cut);
            begun.cut = true;
        }
        // What was mounted has gone with the power, be it half or whole.
        self.begun.retain(|_, begun| !matches!(begun.op, Op::Up { .. } | Op::Down { .. }));
    }

    /// What a volume or snapshot begins with.
    fn begins_with(&self, source: Option<&Source>) -> Slots {
        match source {
            None => Slots::new(),
            Some(Source::Snapshot(name)) => self.snapshots[name].slots.clone(),
            Some(Source::Volume(name)) => self.volumes[name].slots.clone(),
        }
    }

    fn volume(&mut self, name: &str) -> &mut Volume {
        self.volumes.get_mut(name).unwrap_or_else(|| panic!("no volume {name}"))
    }

    /// The volume that a begun or finished creation makes.
    pub(crate) fn new_volume(&self, spec: &Spec, source: Option<&Source>, told: &Told) -> Volume {
        Volume {
            id: told.id.clone(),
            spec: spec.clone(),
            source: source.cloned(),
            bytes: spec.bytes,
            keep: OnDelete::Delete,
            slots: self.begins_with(source),
            up: false,
        }
    }

    /// The same for a snapshot.
    pub(crate) fn new_snapshot(&self, volume: &str, told: &Told) -> Snapshot {
        let source = &self.volumes[volume];
        Snapshot {
            id: told.id.clone(),
            spec: source.spec.clone(),
            volume: volume.to_owned(),
            bytes: source.bytes,
            slots: source.slots.clone(),
            read: false,
        }
    }

    fn done(&mut self, op: &Op, told: &Told) {
        match op {
            Op::Create { volume, spec, source } => {
                let made = self.new_volume(spec, source.as_ref(), told);
                if let Some(Source::Snapshot(name)) = source {
                    self.snapshots.get_mut(name).unwrap().read = true;
                }
                self.volumes.insert(volume.clone(), made);
            }
            Op::Up { volume } => self.volume(volume).up = true,
            Op::Down { volume } => self.volume(volume).up = false,
            Op::Write { volume, slot, seed } => {
                self.volume(volume).slots.insert(*slot, *seed);
            }
            Op::Expand { volume, bytes } => self.volume(volume).bytes = *bytes,
            Op::Modify { volume, keep } => self.volume(volume).keep = *keep,
            Op::Delete { volume: name } => {
                let volume = self.volumes.remove(name).unwrap();
                if let Some(directory) = volume.keep.keeps_in() {
                    let (key, generation) = key_and_generation(&volume.id);
                    let place = (directory, format!("{key}.{generation}"));
                    self.kept.insert(name.clone(), Kept { volume, place });
                }
            }
            Op::Snapshot { snapshot, volume } => {
                let made = self.new_snapshot(volume, told);
                self.snapshots.insert(snapshot.clone(), made);
            }
            Op::Forget { snapshot } => drop(self.snapshots.remove(snapshot)),
            Op::Purge { volume } => drop(self.kept.remove(volume)),
        }
    }

    /// What was begun with a volume or snapshot and not acknowledged.
    pub(crate) fn begun_with(&self, object: &str) -> Option<&Op> {
        self.begun.values().map(|begun| &begun.op).find(|op| op.object() == object)
    }

    /// The name of the next thing that a client makes.
    pub(crate) fn next_name(&self, client: &str) -> String {
        format!("{client}-{}", self.births.get(client).unwrap_or(&0))
    }

    /// The client whose thing it is.
    pub(crate) fn owner(object: &str) -> &str {
        object.rsplit_once('-').unwrap().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::Kind;

    fn begin(op: Op) -> Event {
        Event::Begin { client: "xfs-0".to_owned(), op }
    }

    fn done(id: &str) -> Event {
        let told = Told { id: id.to_owned(), bytes: 0 };
        Event::Done { client: "xfs-0".to_owned(), told }
    }

    fn create(name: &str, source: Option<Source>) -> Op {
        let spec = Spec { pool: Pool::Xfs, kind: Kind::Hostpath, thick: false, bytes: 1 << 20 };
        Op::Create { volume: name.to_owned(), spec, source }
    }

    #[test]
    fn what_was_acknowledged_adds_up() {
        let mut world = World::default();
        let (v, s) = ("xfs-0-0".to_owned(), "xfs-0-1".to_owned());
        let id = "v-11111111-aaaa-0000";
        for (op, id) in [
            (create(&v, None), id),
            (Op::Up { volume: v.clone() }, ""),
            (Op::Write { volume: v.clone(), slot: 1, seed: 7 }, ""),
            (Op::Snapshot { snapshot: s.clone(), volume: v.clone() }, "s-11111111-bbbb-0000"),
            (Op::Write { volume: v.clone(), slot: 1, seed: 8 }, ""),
            (create("xfs-0-2", Some(Source::Snapshot(s.clone()))), "v-11111111-cccc-0000"),
            (Op::Modify { volume: v.clone(), keep: OnDelete::Retain }, ""),
        ] {
            world.hear(&begin(op));
            world.hear(&done(id));
        }
        assert_eq!(world.volumes[&v].slots, Slots::from([(1, 8)]));
        assert_eq!(world.volumes["xfs-0-2"].slots, Slots::from([(1, 7)]));
        assert!(world.snapshots[&s].read && world.volumes[&v].up);
        world.hear(&begin(Op::Delete { volume: v.clone() }));
        world.hear(&Event::Boot);
        assert!(!world.volumes[&v].up, "a boot unmounts");
        world.hear(&Event::Boot);
        assert_eq!((world.in_flight, world.boots), (1, 2), "one operation, two cuts");
        world.hear(&done(""));
        assert_eq!(world.kept[&v].place, ("retained", "aaaa.0000".to_owned()));
        assert!(world.volumes.len() == 1 && world.begun.is_empty());
        assert_eq!((world.acknowledged, world.next_name("xfs-0")), (8, "xfs-0-3".to_owned()));
    }

    #[test]
    fn what_was_not_acknowledged_changes_nothing() {
        let mut world = World::default();
        world.hear(&begin(create("xfs-0-0", None)));
        world.hear(&Event::Boot);
        assert!(world.volumes.is_empty() && world.acknowledged == 0);
        assert!(matches!(world.begun_with("xfs-0-0"), Some(Op::Create { .. })));
        assert_eq!(World::owner("xfs-0-0"), "xfs-0");
    }
}
