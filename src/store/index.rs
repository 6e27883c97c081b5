//! What is in a pool, in memory: enough to list, to find and to count without reading records again.
//!
//! Invariant: it says what the directories say, because the pool's lock makes this process the only writer and every
//! change goes through `pool`. It is a cache: a restart builds it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::attachment::AttachmentCount;
use super::charge::{Charge, Charges, Cost, GRAVES, IN_FLIGHT, SNAPSHOTS, Sum, VOLUMES};
use super::{Group, Name, Shared, Snapshot};
use crate::volume::{Allocation, Backend, ByteSize, Claim, Generation, Key, Limit};

/// How it can be known what the data of a volume takes of the pool's filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Footprint {
    /// Its image tells.
    Image,
    /// The limit of its directory tells.
    Limit(Limit),
    /// Nobody can say at once: a directory without a limit, or what may share blocks.
    Unknown,
}

/// A volume in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Its record was read.
    Whole {
        /// Which of the volumes that ever had this name.
        generation: Generation,
        /// Its size.
        size: ByteSize,
        /// What its data is.
        backend: Backend,
        /// Its data may not be in its place.
        moving: bool,
        /// The claim that it was made for.
        claim: Option<Arc<Claim>>,
        /// Whether its blocks are reserved.
        allocation: Allocation,
        /// How it can be known what it takes.
        footprint: Footprint,
        /// What it shared when it was made.
        shared: Vec<Shared>,
        /// It is an inline volume: its pod's, not the CO's.
        inline: bool,
        /// The nodes that it is attached to.
        nodes: Vec<String>,
    },
    /// Its record cannot be read.
    Damaged {
        /// Why.
        reason: String,
        /// What its data may take, as far as that can be seen.
        size: ByteSize,
    },
}

impl Entry {
    fn cost(&self) -> Cost {
        match self {
            Self::Whole { size, allocation, shared, .. } => {
                Cost::of_volume(Charge::of(*size, *allocation), shared)
            }
            Self::Damaged { size, .. } => damaged(*size),
        }
    }

    fn nodes(&self) -> &[String] {
        match self {
            Self::Whole { nodes, .. } => nodes,
            Self::Damaged { .. } => &[],
        }
    }
}

/// What cannot be read costs what its data may take.
fn damaged(size: ByteSize) -> Cost {
    Cost::of_volume(Charge::of(size, Allocation::Thin), &[])
}

/// A snapshot in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotEntry {
    /// Its record was read.
    Whole(Arc<Snapshot>),
    /// Its record cannot be read.
    Damaged {
        /// Why.
        reason: String,
        /// What its data may take, as far as that can be seen.
        size: ByteSize,
    },
}

impl SnapshotEntry {
    fn cost(&self) -> Cost {
        match self {
            Self::Whole(snapshot) => Cost::of_snapshot(snapshot),
            Self::Damaged { size, .. } => damaged(*size),
        }
    }
}

/// A group in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEntry {
    /// Its record was read.
    Whole(Arc<Group>),
    /// Its record cannot be read.
    Damaged {
        /// Why.
        reason: String,
    },
}

/// The volumes, snapshots and graves of one pool.
#[derive(Debug, Default)]
pub(super) struct Index {
    volumes: BTreeMap<Key, Entry>,
    /// Those of them that are inline volumes.
    inline: BTreeSet<Key>,
    snapshots: BTreeMap<Key, SnapshotEntry>,
    /// The snapshots of each volume that has any.
    by_source: BTreeMap<Name, BTreeSet<Key>>,
    groups: BTreeMap<Key, GroupEntry>,
    /// By path relative to the pool, e.g. `trash/<key>.<gen>`.
    graves: BTreeMap<String, Cost>,
    /// What of a volume's writing others have as well, by writer and origin: how many have it, and how much it is.
    shares: BTreeMap<Name, BTreeMap<Name, (usize, ByteSize)>>,
    charges: Charges,
    /// How often the charges have changed.
    revision: u64,
    attachments: AttachmentCount,
}

fn behind<'a, T>(
    map: &'a BTreeMap<Key, T>,
    key: Option<&'a Key>,
) -> impl Iterator<Item = (&'a Key, &'a T)> {
    let start = key.map_or(Bound::Unbounded, Bound::Excluded);
    map.range::<Key, _>((start, Bound::Unbounded))
}

impl Index {
    fn add(&mut self, sum: Sum, charge: Charge) {
        let sum = sum(&mut self.charges);
        *sum = sum.saturating_add(charge.total());
        self.charges.thick = self.charges.thick.saturating_add(charge.thick);
        self.revision = self.revision.wrapping_add(1);
    }

    fn take(&mut self, sum: Sum, charge: Charge) {
        let sum = sum(&mut self.charges);
        *sum = sum.saturating_sub(charge.total());
        self.charges.thick = self.charges.thick.saturating_sub(charge.thick);
        self.revision = self.revision.wrapping_add(1);
    }

    fn add_cost(&mut self, sum: Sum, cost: &Cost) {
        self.add(sum, cost.charge);
        for share in &cost.shares {
            let origins = self.shares.entry(share.writer.clone()).or_default();
            let (count, size) = origins.entry(share.origin.clone()).or_insert((0, share.size));
            *count += 1;
            let first = (*count == 1).then_some(*size);
            if let Some(size) = first {
                self.add(SNAPSHOTS, Charge::of(size, Allocation::Thin));
            }
        }
    }

    fn take_cost(&mut self, sum: Sum, cost: &Cost) {
        self.take(sum, cost.charge);
        for share in &cost.shares {
            let Some(origins) = self.shares.get_mut(&share.writer) else { continue };
            let Some((count, size)) = origins.get_mut(&share.origin) else { continue };
            *count -= 1;
            if *count == 0 {
                let last = Charge::of(*size, Allocation::Thin);
                origins.remove(&share.origin);
                if origins.is_empty() {
                    self.shares.remove(&share.writer);
                }
                self.take(SNAPSHOTS, last);
            }
        }
    }

    pub(super) fn begin_promise(&mut self, charge: Charge) {
        self.add(IN_FLIGHT, charge);
    }

    pub(super) fn end_promise(&mut self, charge: Charge) {
        self.take(IN_FLIGHT, charge);
    }

    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        self.add_cost(VOLUMES, &entry.cost());
        if matches!(entry, Entry::Whole { inline: true, .. }) {
            self.inline.insert(key.clone());
        }
        for node in entry.nodes() {
            self.attachments.add(&key, node);
        }
        self.volumes.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(old) = self.volumes.remove(key) {
            self.take_cost(VOLUMES, &old.cost());
            for node in old.nodes() {
                self.attachments.remove(node);
            }
        }
        self.inline.remove(key);
    }

    pub(super) fn inline(&self) -> impl Iterator<Item = &Key> {
        self.inline.iter()
    }

    pub(super) const fn attachments(&mut self) -> &mut AttachmentCount {
        &mut self.attachments
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.volumes.get(key)
    }

    pub(super) fn after<'a>(
        &'a self,
        key: Option<&'a Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a Entry)> {
        behind(&self.volumes, key)
    }

    pub(super) fn insert_snapshot(&mut self, key: Key, entry: SnapshotEntry) {
        self.remove_snapshot(&key);
        self.add_cost(SNAPSHOTS, &entry.cost());
        if let SnapshotEntry::Whole(snapshot) = &entry {
            self.by_source.entry(snapshot.source.clone()).or_default().insert(key.clone());
        }
        self.snapshots.insert(key, entry);
    }

    pub(super) fn remove_snapshot(&mut self, key: &Key) {
        let Some(old) = self.snapshots.remove(key) else { return };
        self.take_cost(SNAPSHOTS, &old.cost());
        if let SnapshotEntry::Whole(snapshot) = old
            && let Some(keys) = self.by_source.get_mut(&snapshot.source)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_source.remove(&snapshot.source);
            }
        }
    }

    pub(super) fn snapshot(&self, key: &Key) -> Option<&SnapshotEntry> {
        self.snapshots.get(key)
    }

    pub(super) fn snapshots_after<'a>(
        &'a self,
        key: Option<&'a Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a SnapshotEntry)> {
        behind(&self.snapshots, key)
    }

    /// The keys of a volume's snapshots behind one of them.
    pub(super) fn snapshots_of<'a>(
        &'a self,
        source: &Name,
        after: Option<&'a Key>,
    ) -> impl Iterator<Item = &'a Key> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.by_source.get(source).into_iter();
        keys.flat_map(move |keys| keys.range::<Key, _>((start, Bound::Unbounded)))
    }

    pub(super) fn insert_group(&mut self, key: Key, group: GroupEntry) {
        self.groups.insert(key, group);
    }

    /// Takes a group out, with its members; what they cost.
    pub(super) fn remove_group(&mut self, key: &Key) -> Cost {
        let mut cost = Cost::default();
        if let Some(GroupEntry::Whole(group)) = self.groups.remove(key) {
            for member in &group.members {
                if let Some(entry) = self.snapshots.get(&member.key) {
                    cost = cost.and(entry.cost());
                }
                self.remove_snapshot(&member.key);
            }
        }
        cost
    }

    pub(super) fn group(&self, key: &Key) -> Option<&GroupEntry> {
        self.groups.get(key)
    }

    pub(super) fn insert_grave(&mut self, path: String, cost: Cost) {
        self.remove_grave(&path);
        self.add_cost(GRAVES, &cost);
        self.graves.insert(path, cost);
    }

    pub(super) fn has_grave(&self, path: &str) -> bool {
        self.graves.contains_key(path)
    }

    /// Forgets a grave; the volumes that wrote what it shared.
    pub(super) fn remove_grave(&mut self, path: &str) -> Vec<Name> {
        let Some(cost) = self.graves.remove(path) else { return Vec::new() };
        self.take_cost(GRAVES, &cost);
        cost.shares.into_iter().map(|share| share.writer).collect()
    }

    /// How much of what a volume wrote others have as well: snapshots, volumes that began with it, and what is left of
    /// either.
    pub(super) fn shared_by_others(&self, writer: &Name) -> ByteSize {
        let sizes = self.shares.get(writer).into_iter().flat_map(BTreeMap::values);
        sizes.fold(ByteSize::ZERO, |sum, (_, size)| sum.saturating_add(*size))
    }

    pub(super) fn writers(&self) -> impl Iterator<Item = &Name> {
        self.shares.keys()
    }

    pub(super) const fn charges(&self) -> Charges {
        self.charges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Resolved;
    use proptest::prelude::*;

    fn snapshot(name: &str, source: u8, charge: ByteSize) -> SnapshotEntry {
        let name_of = |text: &str| Name {
            key: Key::of_name(text),
            generation: Generation::from_bits([0; 4]),
        };
        SnapshotEntry::Whole(Arc::new(Snapshot {
            itself: name_of(name),
            name: name.to_owned(),
            created: String::new(),
            source: name_of(&source.to_string()),
            group: None,
            resolved: Resolved::Hostpath,
            size: charge,
            charge,
            shared: Vec::new(),
        }))
    }

    proptest! {
        #[test]
        fn the_sums_are_those_of_the_entries(steps in proptest::collection::vec((0_u8..12, 0_u8..4, 0_u64..1000), 0..60)) {
            let mut index = Index::default();
            let (mut promised, mut in_flight) = (BTreeSet::new(), Vec::new());
            let writer = Name { key: Key::of_name("w"), generation: Generation::from_bits([0; 4]) };
            for (what, name, size) in steps {
                let key = Key::of_name(&name.to_string());
                let bytes = ByteSize::new(size);
                let allocation =
                    if size % 3 == 0 { Allocation::Thick } else { Allocation::Thin };
                let shared = vec![Shared {
                    size: ByteSize::new(7),
                    writer: writer.clone(),
                    origin: writer.clone(),
                }];
                let whole = |inline: bool, nodes: &[&str]| Entry::Whole {
                    generation: Generation::from_bits([0; 4]),
                    size: bytes,
                    backend: Backend::Loop,
                    moving: false,
                    claim: None,
                    allocation,
                    footprint: Footprint::Image,
                    shared: if inline { shared.clone() } else { Vec::new() },
                    inline,
                    nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
                };
                match what {
                    0 => index.insert(key, Entry::Damaged { reason: String::new(), size: bytes }),
                    1 => index.remove(&key),
                    2 => index.insert_grave(name.to_string(), Cost::of_volume(Charge::of(bytes, allocation), &shared)),
                    3 => drop(index.remove_grave(&name.to_string())),
                    4 => index.insert_snapshot(key, snapshot(&name.to_string(), u8::from(size % 2 == 0), bytes)),
                    5 => index.remove_snapshot(&key),
                    6 => {
                        promised.remove(&key);
                        index.insert(key, whole(false, &["n1", "n2"]));
                    }
                    7 => {
                        index.attachments().promise(&key, "n1");
                        promised.insert(key);
                    }
                    8 => {
                        index.attachments().take_back(&key, "n1");
                        promised.remove(&key);
                    }
                    9 => index.insert(key, whole(true, &[])),
                    10 => {
                        let charge = Charge::of(bytes, allocation);
                        in_flight.push(charge);
                        index.begin_promise(charge);
                    }
                    _ => index.end_promise(in_flight.pop().unwrap_or_default()),
                }
            }
            let charge = |cost: Cost| cost.charge.total().bytes();
            let volumes: u64 = index.volumes.values().map(|entry| charge(entry.cost())).sum();
            let graves: u64 = index.graves.values().cloned().map(charge).sum();
            let attached = index.volumes.values().filter(|entry| !entry.nodes().is_empty()).count();
            prop_assert_eq!(index.attachments().of("n2"), attached);
            prop_assert_eq!(index.attachments().of("n1"), attached + promised.len());
            let is_inline = |key: &&Key| matches!(index.get(key), Some(Entry::Whole { inline: true, .. }));
            prop_assert!(index.volumes.keys().filter(is_inline).eq(index.inline()));
            let whole = |entry: &SnapshotEntry| match entry {
                SnapshotEntry::Whole(snapshot) => snapshot.charge.bytes(),
                SnapshotEntry::Damaged { .. } => 0,
            };
            let snapshots: u64 = index.snapshots.values().map(whole).sum();
            // Of one origin, so it is charged once.
            let shared = if index.inline.is_empty() && index.graves.is_empty() { 0 } else { 7 };
            prop_assert_eq!(index.shared_by_others(&writer).bytes(), shared);
            prop_assert_eq!(index.charges().volumes.bytes(), volumes);
            prop_assert_eq!(index.charges().snapshots.bytes(), snapshots + shared);
            let flying: u64 = in_flight.iter().map(|charge| charge.total().bytes()).sum();
            let all = volumes + snapshots + shared + graves + flying;
            prop_assert_eq!(index.charges().total().bytes(), all);
            let costs = index.volumes.values().map(Entry::cost).chain(index.graves.values().cloned());
            let thick = costs.map(|cost| cost.charge).chain(in_flight).map(|c| c.thick.bytes());
            prop_assert_eq!(index.charges().promised().thick.bytes(), thick.sum::<u64>());
            let listed: usize = index.by_source.values().map(BTreeSet::len).sum();
            prop_assert_eq!(listed, index.snapshots.len());
        }
    }
}
