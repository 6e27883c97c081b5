//! What is in a pool, in memory: enough to list, to find and to count without reading records again.
//!
//! Invariant: it says what the directories say, because the pool's lock makes this process the only writer and every
//! change goes through `pool`. It is a cache: a restart builds it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

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
        /// It is an inline volume: its pod's, not the CO's.
        inline: bool,
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
    const fn size(&self) -> ByteSize {
        match self {
            Self::Whole { size, .. } | Self::Damaged { size, .. } => *size,
        }
    }
}

/// What the pool has promised, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charges {
    /// Volumes.
    pub volumes: ByteSize,
    /// Archived, retained and not yet removed ones.
    pub graves: ByteSize,
}

impl Charges {
    /// All of it.
    #[must_use]
    pub const fn total(self) -> ByteSize {
        self.volumes.saturating_add(self.graves)
    }
}

/// The volumes and graves of one pool.
#[derive(Debug, Default)]
pub(super) struct Index {
    volumes: BTreeMap<Key, Entry>,
    /// Those of them that are inline volumes.
    inline: BTreeSet<Key>,
    /// By path relative to the pool, e.g. `trash/<key>.<gen>`.
    graves: BTreeMap<String, ByteSize>,
    charges: Charges,
}

impl Index {
    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        self.charges.volumes = self.charges.volumes.saturating_add(entry.size());
        if matches!(entry, Entry::Whole { inline: true, .. }) {
            self.inline.insert(key.clone());
        }
        self.volumes.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(old) = self.volumes.remove(key) {
            self.charges.volumes = self.charges.volumes.saturating_sub(old.size());
        }
        self.inline.remove(key);
    }

    pub(super) fn inline(&self) -> impl Iterator<Item = &Key> {
        self.inline.iter()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.volumes.get(key)
    }

    pub(super) fn after(&self, key: Option<&Key>) -> impl Iterator<Item = (&Key, &Entry)> {
        let start = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.volumes.range::<Key, _>((start, Bound::Unbounded))
    }

    pub(super) fn insert_grave(&mut self, path: String, size: ByteSize) {
        self.remove_grave(&path);
        self.charges.graves = self.charges.graves.saturating_add(size);
        self.graves.insert(path, size);
    }

    pub(super) fn has_grave(&self, path: &str) -> bool {
        self.graves.contains_key(path)
    }

    pub(super) fn remove_grave(&mut self, path: &str) {
        if let Some(size) = self.graves.remove(path) {
            self.charges.graves = self.charges.graves.saturating_sub(size);
        }
    }

    pub(super) const fn charges(&self) -> Charges {
        self.charges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sums_are_those_of_the_entries(steps in proptest::collection::vec((0_u8..5, 0_u8..4, 0_u64..1000), 0..60)) {
            let mut index = Index::default();
            for (what, name, size) in steps {
                let key = Key::of_name(&name.to_string());
                let size = ByteSize::new(size);
                match what {
                    0 => index.insert(key, Entry::Damaged { reason: String::new(), size }),
                    1 => index.remove(&key),
                    4 => {
                        let generation = Generation::from_bits([0; 4]);
                        index.insert(key, Entry::Whole { generation, size, inline: true });
                    }
                    2 => index.insert_grave(name.to_string(), size),
                    _ => index.remove_grave(&name.to_string()),
                }
            }
            let volumes: u64 = index.volumes.values().map(|entry| entry.size().bytes()).sum();
            let graves: u64 = index.graves.values().map(|size| size.bytes()).sum();
            let is_inline = |key: &&Key| matches!(index.get(key), Some(Entry::Whole { inline: true, .. }));
            prop_assert!(index.volumes.keys().filter(is_inline).eq(index.inline()));
            prop_assert_eq!(index.charges().volumes.bytes(), volumes);
            prop_assert_eq!(index.charges().total().bytes(), volumes + graves);
        }
    }
}
