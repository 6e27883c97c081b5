//! What is in a pool, in memory: enough to list, to find and to count without reading records again.
//!
//! Invariant: it says what the directories say, because the pool's lock makes this process the only writer and every
//! change goes through `pool`. It is a cache: a restart builds it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::attachment::AttachmentCount;
use super::{Group, Name, Shared, Snapshot};
use crate::volume::{ByteSize, Generation, Key};

/// A volume in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Its record was read.
    Whole {
        /// Which of the volumes that ever had this name.
        generation: Generation,
        /// Its size.
        size: ByteSize,
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
            Self::Whole { size, shared, .. } => Cost::of_volume(*size, shared),
            Self::Damaged { size, .. } => Cost::of_volume(*size, &[]),
        }
    }

    fn nodes(&self) -> &[String] {
        match self {
            Self::Whole { nodes, .. } => nodes,
            Self::Damaged { .. } => &[],
        }
    }
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
            Self::Damaged { size, .. } => Cost::of_volume(*size, &[]),
        }
    }
}

/// What something costs its pool for as long as it is there, in its place or in a grave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cost {
    /// What is charged for it alone.
    pub(super) charge: ByteSize,
    /// What is charged once for it and all others that have it.
    pub(super) shares: Vec<Shared>,
}

impl Cost {
    /// A volume is charged its size.
    pub(super) fn of_volume(size: ByteSize, shared: &[Shared]) -> Self {
        Self { charge: size, shares: shared.to_vec() }
    }

    /// What a snapshot took when it was made is charged as long as it, or anything that began with it, is there.
    pub(super) fn of_snapshot(snapshot: &Snapshot) -> Self {
        let own = Shared {
            size: snapshot.charge,
            writer: snapshot.source.clone(),
            origin: snapshot.itself.clone(),
        };
        let shares = std::iter::once(own).chain(snapshot.shared.iter().cloned()).collect();
        Self { charge: ByteSize::ZERO, shares }
    }

    /// Both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.charge = self.charge.saturating_add(other.charge);
        self.shares.extend(other.shares);
        self
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

/// What the pool has promised, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charges {
    /// Volumes.
    pub volumes: ByteSize,
    /// Snapshots, those in groups included, and what is left of those that are gone in volumes that began with them.
    pub snapshots: ByteSize,
    /// Archived, retained and not yet removed ones.
    pub graves: ByteSize,
}

impl Charges {
    /// All of it.
    #[must_use]
    pub const fn total(self) -> ByteSize {
        self.volumes.saturating_add(self.snapshots).saturating_add(self.graves)
    }
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
    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        let cost = entry.cost();
        self.charges.volumes = self.charges.volumes.saturating_add(cost.charge);
        self.add_shares(&cost);
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
            let cost = old.cost();
            self.charges.volumes = self.charges.volumes.saturating_sub(cost.charge);
            self.remove_shares(&cost);
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
        let cost = entry.cost();
        self.charges.snapshots = self.charges.snapshots.saturating_add(cost.charge);
        self.add_shares(&cost);
        if let SnapshotEntry::Whole(snapshot) = &entry {
            self.by_source.entry(snapshot.source.clone()).or_default().insert(key.clone());
        }
        self.snapshots.insert(key, entry);
    }

    pub(super) fn remove_snapshot(&mut self, key: &Key) {
        let Some(old) = self.snapshots.remove(key) else { return };
        let cost = old.cost();
        self.charges.snapshots = self.charges.snapshots.saturating_sub(cost.charge);
        self.remove_shares(&cost);
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
        self.charges.graves = self.charges.graves.saturating_add(cost.charge);
        self.add_shares(&cost);
        self.graves.insert(path, cost);
    }

    pub(super) fn has_grave(&self, path: &str) -> bool {
        self.graves.contains_key(path)
    }

    /// Forgets a grave; the volumes that wrote what it shared.
    pub(super) fn remove_grave(&mut self, path: &str) -> Vec<Name> {
        let Some(cost) = self.graves.remove(path) else { return Vec::new() };
        self.charges.graves = self.charges.graves.saturating_sub(cost.charge);
        self.remove_shares(&cost);
        cost.shares.into_iter().map(|share| share.writer).collect()
    }

    fn add_shares(&mut self, cost: &Cost) {
        for share in &cost.shares {
            let origins = self.shares.entry(share.writer.clone()).or_default();
            let (count, size) = origins.entry(share.origin.clone()).or_insert((0, share.size));
            if *count == 0 {
                self.charges.snapshots = self.charges.snapshots.saturating_add(*size);
            }
            *count += 1;
        }
    }

    fn remove_shares(&mut self, cost: &Cost) {
        for share in &cost.shares {
            let Some(origins) = self.shares.get_mut(&share.writer) else { continue };
            let Some((count, size)) = origins.get_mut(&share.origin) else { continue };
            *count -= 1;
            if *count == 0 {
                self.charges.snapshots = self.charges.snapshots.saturating_sub(*size);
                origins.remove(&share.origin);
                if origins.is_empty() {
                    self.shares.remove(&share.writer);
                }
            }
        }
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
        fn the_sums_are_those_of_the_entries(steps in proptest::collection::vec((0_u8..10, 0_u8..4, 0_u64..1000), 0..60)) {
            let mut index = Index::default();
            let mut promised = BTreeSet::new();
            let writer = Name { key: Key::of_name("w"), generation: Generation::from_bits([0; 4]) };
            for (what, name, size) in steps {
                let key = Key::of_name(&name.to_string());
                let bytes = ByteSize::new(size);
                let shared = vec![Shared {
                    size: ByteSize::new(7),
                    writer: writer.clone(),
                    origin: writer.clone(),
                }];
                let whole = |inline: bool, nodes: &[&str]| Entry::Whole {
                    generation: Generation::from_bits([0; 4]),
                    size: bytes,
                    shared: if inline { shared.clone() } else { Vec::new() },
                    inline,
                    nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
                };
                match what {
                    0 => index.insert(key, Entry::Damaged { reason: String::new(), size: bytes }),
                    1 => index.remove(&key),
                    2 => index.insert_grave(name.to_string(), Cost::of_volume(bytes, &shared)),
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
                    _ => index.insert(key, whole(true, &[])),
                }
            }
            let charge = |cost: Cost| cost.charge.bytes();
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
            prop_assert_eq!(index.charges().total().bytes(), volumes + snapshots + shared + graves);
            let listed: usize = index.by_source.values().map(BTreeSet::len).sum();
            prop_assert_eq!(listed, index.snapshots.len());
        }
    }
}
