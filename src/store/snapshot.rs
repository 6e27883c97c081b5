//! `snapshot.json` and `group.json`: what must be remembered of a snapshot and of a group of them.
//!
//! A snapshot never changes, so these are written once. A snapshot does not name its pool, as volumes do not: it is
//! always in that of the volume that it was taken of.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::record::{FORMAT, READER, ResolvedFile};
use super::{Charge, Kind, Resolved, Shared, StoreError};
use crate::volume::{
    ByteSize, Generation, GroupId, IdError, Key, PoolTag, SnapshotId, Source, VolumeId,
};

/// One of those that ever had a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The directory.
    pub key: Key,
    /// Which of those that ever had this name.
    pub generation: Generation,
}

impl Name {
    /// The volume's id in the pool with that tag.
    #[must_use]
    pub fn volume_id(&self, pool: PoolTag) -> VolumeId {
        VolumeId { pool, key: self.key.clone(), generation: self.generation.clone() }
    }

    /// The group's id in the pool with that tag.
    #[must_use]
    pub fn group_id(&self, pool: PoolTag) -> GroupId {
        GroupId { pool, key: self.key.clone(), generation: self.generation.clone() }
    }

    /// The snapshot's id in the pool with that tag.
    #[must_use]
    pub fn snapshot_id(&self, pool: PoolTag) -> SnapshotId {
        SnapshotId { pool, key: self.key.clone(), generation: self.generation.clone() }
    }
}

impl From<&VolumeId> for Name {
    fn from(id: &VolumeId) -> Self {
        Self { key: id.key.clone(), generation: id.generation.clone() }
    }
}

/// A snapshot as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which one.
    pub itself: Name,
    /// The CO's name; of a member of a group, the group's.
    pub name: String,
    /// The instant that it shows, RFC 3339.
    pub created: String,
    /// The volume that it was taken of, which may be gone.
    pub source: Name,
    /// The group that it was taken in.
    pub group: Option<Name>,
    /// What the volume was.
    pub resolved: Resolved,
    /// How large the volume was: what a restore needs at least.
    pub size: ByteSize,
    /// What it takes of its pool.
    pub charge: ByteSize,
    /// What its volume itself began with.
    pub shared: Vec<Shared>,
}

/// A group of snapshots as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Which one.
    pub itself: Name,
    /// The CO's name.
    pub name: String,
    /// The instant that it shows, RFC 3339.
    pub created: String,
    /// Its members.
    pub members: Vec<Name>,
    /// The volumes that they were taken of, in the same order.
    pub sources: Vec<Name>,
}

#[derive(Debug, Serialize, Deserialize)]
struct NameFile {
    key: String,
    generation: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SharedFile {
    size_bytes: u64,
    writer: NameFile,
    origin: NameFile,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotFile {
    format: u32,
    min_reader: u32,
    key: String,
    generation: String,
    name: String,
    created: String,
    source: NameFile,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<NameFile>,
    resolved: ResolvedFile,
    size_bytes: u64,
    charge_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shared: Vec<SharedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupFile {
    format: u32,
    min_reader: u32,
    key: String,
    generation: String,
    name: String,
    created: String,
    members: Vec<MemberFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemberFile {
    snapshot: NameFile,
    source: NameFile,
}

impl NameFile {
    fn of(name: &Name) -> Self {
        Self { key: name.key.to_string(), generation: name.generation.to_string() }
    }

    /// The name in the field `whose`.
    fn read(&self, whose: &str) -> Result<Name, String> {
        let wrong = |e: IdError| format!("{whose}: {e}");
        Ok(Name {
            key: self.key.parse().map_err(wrong)?,
            generation: self.generation.parse().map_err(wrong)?,
        })
    }
}

impl SharedFile {
    pub(super) fn of(shared: &Shared) -> Self {
        Self {
            size_bytes: shared.size.bytes(),
            writer: NameFile::of(&shared.writer),
            origin: NameFile::of(&shared.origin),
        }
    }

    pub(super) fn read(&self) -> Result<Shared, String> {
        let (writer, origin) =
            (self.writer.read("shared.writer")?, self.origin.read("shared.origin")?);
        Ok(Shared { size: size("shared.sizeBytes", self.size_bytes)?, writer, origin })
    }
}

/// The fields of a record that this release can read.
///
/// # Errors
/// [`StoreError::Damaged`] or [`StoreError::TooNew`].
pub(super) fn readable(path: &Path, content: &[u8]) -> Result<Map<String, Value>, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let raw: Map<String, Value> =
        serde_json::from_slice(content).map_err(|e| damaged(e.to_string()))?;
    match raw.get("minReader").map(Value::as_u64) {
        None => Err(damaged("it has no minReader".to_owned())),
        Some(None) => Err(damaged("minReader is not a number".to_owned())),
        Some(Some(needs)) if needs > u64::from(READER) => {
            let needs = u32::try_from(needs).unwrap_or(u32::MAX);
            Err(StoreError::TooNew { path: path.to_owned(), needs, reader: READER })
        }
        Some(Some(_)) => Ok(raw),
    }
}

/// The fields as `F` has them.
///
/// # Errors
/// Which field is missing or not what it should be.
pub(super) fn typed<F: serde::de::DeserializeOwned>(raw: Map<String, Value>) -> Result<F, String> {
    serde_path_to_error::deserialize(Value::Object(raw)).map_err(|error| error.to_string())
}

/// No filesystem holds more. Larger numbers would not add up any more when they are charged.
const LARGEST: ByteSize = ByteSize::gib(1 << 30);

/// A size in the field of that name.
///
/// # Errors
/// It is larger than anything can be.
pub(super) fn size(field: &str, bytes: u64) -> Result<ByteSize, String> {
    let size = ByteSize::new(bytes);
    if size > LARGEST {
        return Err(format!("{field} is {bytes}, which is more than any disk has"));
    }
    Ok(size)
}

fn place(kind: Kind, key: &Key) -> PathBuf {
    Path::new(kind.directory()).join(key.as_str()).join(kind.record())
}

/// Reads a record whose fields are `F`.
fn parse<F: serde::de::DeserializeOwned, T>(
    kind: Kind,
    key: &Key,
    content: &[u8],
    read: impl FnOnce(F) -> Result<(T, Key), String>,
) -> Result<T, StoreError> {
    let path = place(kind, key);
    let raw = readable(&path, content)?;
    let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
    let file: F = typed(raw).map_err(damaged)?;
    let (known, own) = read(file).map_err(damaged)?;
    if own != *key {
        return Err(damaged(format!("it belongs to the key {own}")));
    }
    Ok(known)
}

fn text(kind: Kind, file: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut text = serde_json::to_vec_pretty(file)
        .map_err(|e| StoreError::io("write", kind.record(), std::io::Error::from(e)))?;
    text.push(b'\n');
    Ok(text)
}

impl Snapshot {
    /// Its id in the pool with that tag.
    #[must_use]
    pub fn id(&self, pool: PoolTag) -> SnapshotId {
        self.itself.snapshot_id(pool)
    }

    /// What it is charged. The blocks that a thick volume shares with it must be there when the volume rewrites them.
    #[must_use]
    pub const fn charged(&self) -> Charge {
        Charge::of(self.charge, self.resolved.allocation())
    }

    /// Reads the record that lies in the directory of `key`.
    pub(super) fn parse(key: &Key, content: &[u8]) -> Result<Self, StoreError> {
        parse(Kind::Snapshot, key, content, |file: SnapshotFile| {
            let itself = NameFile { key: file.key, generation: file.generation };
            let itself = itself.read("key or generation")?;
            let key = itself.key.clone();
            let snapshot = Self {
                itself,
                name: file.name,
                created: file.created,
                source: file.source.read("source")?,
                group: file.group.map(|group| group.read("group")).transpose()?,
                resolved: file.resolved.read()?,
                size: size("sizeBytes", file.size_bytes)?,
                charge: size("chargeBytes", file.charge_bytes)?,
                shared: file.shared.iter().map(SharedFile::read).collect::<Result<_, _>>()?,
            };
            Ok((snapshot, key))
        })
    }

    /// The record as it is written.
    pub(super) fn to_text(&self) -> Result<Vec<u8>, StoreError> {
        let NameFile { key, generation } = NameFile::of(&self.itself);
        let file = SnapshotFile {
            format: FORMAT,
            min_reader: 1,
            key,
            generation,
            name: self.name.clone(),
            created: self.created.clone(),
            source: NameFile::of(&self.source),
            group: self.group.as_ref().map(NameFile::of),
            resolved: ResolvedFile::of(self.resolved),
            size_bytes: self.size.bytes(),
            charge_bytes: self.charge.bytes(),
            shared: self.shared.iter().map(SharedFile::of).collect(),
        };
        text(Kind::Snapshot, &file)
    }
}

impl Group {
    /// Reads the record that lies in the directory of `key`.
    pub(super) fn parse(key: &Key, content: &[u8]) -> Result<Self, StoreError> {
        parse(Kind::Group, key, content, |file: GroupFile| {
            let itself = NameFile { key: file.key, generation: file.generation };
            let itself = itself.read("key or generation")?;
            let key = itself.key.clone();
            let read = |of: fn(&MemberFile) -> &NameFile, field: &str| {
                let read = |member| of(member).read(field);
                file.members.iter().map(read).collect::<Result<Vec<_>, _>>()
            };
            let group = Self {
                itself,
                name: file.name.clone(),
                created: file.created.clone(),
                members: read(|member| &member.snapshot, "members.snapshot")?,
                sources: read(|member| &member.source, "members.source")?,
            };
            Ok((group, key))
        })
    }

    /// The record as it is written.
    pub(super) fn to_text(&self) -> Result<Vec<u8>, StoreError> {
        let NameFile { key, generation } = NameFile::of(&self.itself);
        let members = self.members.iter().zip(&self.sources);
        let file = GroupFile {
            format: FORMAT,
            min_reader: 1,
            key,
            generation,
            name: self.name.clone(),
            created: self.created.clone(),
            members: members
                .map(|(snapshot, source)| MemberFile {
                    snapshot: NameFile::of(snapshot),
                    source: NameFile::of(source),
                })
                .collect(),
        };
        text(Kind::Group, &file)
    }
}

/// What a volume began with, as its record keeps it. The pool's tag is left out of the comparison: a pool may get a
/// new UUID.
#[must_use]
pub fn same_source(one: Option<&Source>, other: Option<&Source>) -> bool {
    let plain = |source: &Source| match source {
        Source::Snapshot(id) => (Kind::Snapshot, id.key.clone(), id.generation.clone()),
        Source::Volume(id) => (Kind::Volume, id.key.clone(), id.generation.clone()),
    };
    one.map(plain) == other.map(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name { key: Key::of_name(text), generation: Generation::from_bits([1, 2, 3, 4]) }
    }

    fn sample(text: &str) -> Snapshot {
        Snapshot {
            itself: name(text),
            name: text.to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            source: name("volume"),
            group: Some(name("group")),
            resolved: Resolved::Hostpath,
            size: ByteSize::gib(1),
            charge: ByteSize::mib(3),
            shared: vec![Shared { size: ByteSize::mib(2), writer: name("w"), origin: name("o") }],
        }
    }

    #[test]
    fn a_group_survives_the_disk() {
        let group = Group {
            itself: name("g"),
            name: "g".to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            members: vec![name("a"), name("b")],
            sources: vec![name("c"), name("d")],
        };
        let text = group.to_text().unwrap();
        assert_eq!(Group::parse(&Key::of_name("g"), &text).unwrap(), group);
        assert!(Group::parse(&Key::of_name("other"), &text).is_err());
    }

    proptest! {
        #[test]
        fn snapshots_survive_the_disk(name in "\\PC{0,40}", cut in 0_usize..600) {
            let snapshot = sample(&name);
            let text = snapshot.to_text().unwrap();
            prop_assert_eq!(&Snapshot::parse(&Key::of_name(&name), &text).unwrap(), &snapshot);
            if cut + 1 < text.len() {
                prop_assert!(Snapshot::parse(&Key::of_name(&name), &text[..cut]).is_err());
            }
        }
    }
}
