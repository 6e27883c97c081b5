//! What a client does next.

use crate::content::SLOTS;
use crate::ledger::{OnDelete, Op, Pool, Source, Spec};
use crate::life::{Kind, MIB};
use crate::node::smallest;
use crate::random::Random;
use crate::world::{Volume, World};

/// At most so many volumes, snapshots and kept volumes of one client.
const VOLUMES: usize = 4;
const SNAPSHOTS: usize = 2;
const KEPT: usize = 1;
/// Copies of the large kinds are bounded by what a disk has.
const LARGE: usize = 2;

/// What a cut waits for: an operation, in one word, on a kind of volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) word: &'static str,
    pub(crate) kind: Kind,
}

impl Wanted {
    /// The operation is one of these.
    pub(crate) fn is(self, op: &Op, world: &World) -> bool {
        let spec = match op {
            Op::Create { spec, .. } => Some(spec),
            Op::Snapshot { volume, .. }
            | Op::Up { volume }
            | Op::Down { volume }
            | Op::Write { volume, .. }
            | Op::Expand { volume, .. }
            | Op::Modify { volume, .. }
            | Op::Delete { volume } => world.volumes.get(volume).map(|volume| &volume.spec),
            Op::Forget { snapshot } => world.snapshots.get(snapshot).map(|taken| &taken.spec),
            // Nobody was promised anything.
            Op::Purge { .. } => None,
        };
        op.word() == self.word && spec.is_some_and(|spec| spec.kind == self.kind)
    }
}

/// A client as it chooses.
#[derive(Debug)]
pub(crate) struct Chooser<'a> {
    pub(crate) world: &'a World,
    pub(crate) pool: Pool,
    pub(crate) client: &'a str,
}

fn is_large(kind: Kind) -> bool {
    matches!(kind, Kind::Xfs | Kind::Btrfs)
}

impl Chooser<'_> {
    fn is_mine(&self, name: &str) -> bool {
        World::owner(name) == self.client
    }

    fn volumes(&self) -> impl Iterator<Item = (&String, &Volume)> {
        self.world.volumes.iter().filter(|(name, _)| self.is_mine(name))
    }

    fn large(&self) -> usize {
        self.volumes().filter(|(_, volume)| is_large(volume.spec.kind)).count()
    }

    /// There may be one more volume of that kind.
    fn has_place(&self, kind: Kind) -> bool {
        self.volumes().count() < VOLUMES && (!is_large(kind) || self.large() < LARGE)
    }

    /// The next operation: one that is wanted, or one that leads there, where that can be.
    pub(crate) fn next(&self, random: &mut Random, wanted: Option<Wanted>) -> Op {
        let mut can: Vec<(u64, Op)> = Vec::new();
        self.births(random, &mut can);
        for (name, volume) in self.volumes() {
            self.with_volume(name, volume, random, &mut can);
        }
        self.with_snapshots(&mut can);
        let kept: Vec<&String> = self.world.kept.keys().filter(|name| self.is_mine(name)).collect();
        if kept.len() > KEPT {
            return Op::Purge { volume: kept[0].clone() };
        }
        if let Some(wanted) = wanted {
            self.lead_to(wanted, &mut can);
        }
        let sum: u64 = can.iter().map(|(weight, _)| weight).sum();
        let mut at = random.below(sum);
        for (weight, op) in can {
            if at < weight {
                return op;
            }
            at -= weight;
        }
        unreachable!("the weights add up");
    }

    fn lead_to(&self, wanted: Wanted, can: &mut Vec<(u64, Op)>) {
        if can.iter().any(|(_, op)| wanted.is(op, self.world)) {
            can.retain(|(_, op)| wanted.is(op, self.world));
            return;
        }
        // Without a volume of that kind there is nothing to do it with.
        let born = Wanted { word: "create", ..wanted };
        let has_one = self.volumes().any(|(_, volume)| volume.spec.kind == wanted.kind);
        if !has_one && can.iter().any(|(_, op)| born.is(op, self.world)) {
            can.retain(|(_, op)| born.is(op, self.world));
        }
    }

    fn births(&self, random: &mut Random, can: &mut Vec<(u64, Op)>) {
        let kinds: &[(u64, Kind)] = if self.client.ends_with("-0") && self.pool != Pool::Managed {
            &[
                (3, Kind::Hostpath),
                (2, Kind::Ext4),
                (2, Kind::Block),
                (1, Kind::Xfs),
                (1, Kind::Btrfs),
            ]
        } else {
            &[(3, Kind::Hostpath), (2, Kind::Ext4), (2, Kind::Block)]
        };
        for (weight, kind) in kinds {
            // One large volume is enough to begin with; the other place is for a copy.
            if !self.has_place(*kind) || (is_large(*kind) && self.large() > 0) {
                continue;
            }
            let thick = matches!(kind, Kind::Ext4 | Kind::Block) && random.below(3) == 0;
            let bytes = smallest(*kind);
            let spec = Spec { pool: self.pool, kind: *kind, thick, bytes };
            let volume = self.world.next_name(self.client);
            can.push((*weight, Op::Create { volume, spec, source: None }));
        }
    }

    fn with_volume(
        &self,
        name: &str,
        volume: &Volume,
        random: &mut Random,
        can: &mut Vec<(u64, Op)>,
    ) {
        let spec = &volume.spec;
        let (volume_name, instant) = (name.to_owned(), self.pool.is_instant(spec.kind));
        if volume.up {
            let slot = u8::try_from(random.below(SLOTS)).unwrap();
            let seed = random.next();
            can.push((6, Op::Write { volume: name.to_owned(), slot, seed }));
            can.push((2, Op::Down { volume: name.to_owned() }));
        } else {
            can.push((4, Op::Up { volume: name.to_owned() }));
            can.push((2, Op::Delete { volume: name.to_owned() }));
        }
        if volume.bytes < 2 * spec.bytes {
            let bytes = volume.bytes + (1 + random.below(4)) * MIB;
            can.push((1, Op::Expand { volume: name.to_owned(), bytes }));
        }
        let keep = OnDelete::ALL[usize::try_from(random.below(3)).unwrap()];
        if keep != volume.keep {
            can.push((1, Op::Modify { volume: name.to_owned(), keep }));
        }
        if volume.slots.is_empty() || (volume.up && !instant) {
            return;
        }
        let snapshots = self.world.snapshots.keys().filter(|name| self.is_mine(name)).count();
        if snapshots < SNAPSHOTS {
            let snapshot = self.world.next_name(self.client);
            can.push((2, Op::Snapshot { snapshot, volume: name.to_owned() }));
        }
        // A thick clone shares nothing, so it needs a volume that nobody writes to.
        if self.has_place(spec.kind) && !(volume.up && spec.thick) {
            let spec = Spec { bytes: volume.bytes, ..spec.clone() };
            let source = Some(Source::Volume(volume_name));
            let volume = self.world.next_name(self.client);
            can.push((1, Op::Create { volume, spec, source }));
        }
    }

    fn with_snapshots(&self, can: &mut Vec<(u64, Op)>) {
        for (name, snapshot) in &self.world.snapshots {
            if !self.is_mine(name) {
                continue;
            }
            can.push((1, Op::Forget { snapshot: name.clone() }));
            if self.has_place(snapshot.spec.kind) {
                let spec = Spec { bytes: snapshot.bytes, ..snapshot.spec.clone() };
                let source = Some(Source::Snapshot(name.clone()));
                let volume = self.world.next_name(self.client);
                can.push((2, Op::Create { volume, spec, source }));
            }
        }
    }
}
