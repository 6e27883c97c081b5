//! `volume.json`: everything that must be remembered of a volume.
//!
//! The structs with `serde` are the disk's; [`Volume`] is what the rest of the driver works with. Fields that this
//! release does not know are kept and written back, so that a rollback does not damage newer records. A record does
//! not name its pool: a disk that moves, or a pool with a new UUID, brings its volumes along.

mod file;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use self::file::RecordFile;
pub(super) use self::file::{ResolvedFile, unknown};
use super::attachment::Attachment;
use super::merge::text_over;
use super::snapshot::{readable, typed};
use super::{Charge, DATA, Footprint, IMAGE, Kind, Name, StoreError};
use crate::volume::{
    Allocation, Backend, ByteSize, CapacityRange, Claim, DirectIo, Filesystem, Generation, Key,
    Limit, OnDelete, Pod, PoolTag, Source, VolumeId,
};

/// The record's file name.
pub(super) const RECORD: &str = Kind::Volume.record();
/// What this release writes.
pub(super) const FORMAT: u32 = 1;
/// What this release can read: a record asks for a reader of at least its `minReader`.
pub(super) const READER: u32 = 2;
/// What reads a record of which nothing is new.
pub(super) const PLAIN_READER: u32 = 1;

/// The request as it was understood at birth: what a retry is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The sizes that it accepted.
    pub capacity: CapacityRange,
    /// It asked for a raw block device.
    pub block: bool,
    /// The filesystem it asked for; `None` when it left that open.
    pub filesystem: Option<Filesystem>,
    /// Its parameters with defaults filled in, without mutable ones.
    pub parameters: BTreeMap<String, String>,
    /// What it was to begin with; `None` for an empty volume.
    pub source: Option<Source>,
}

/// What the request became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// A directory.
    Hostpath,
    /// An image.
    Loop {
        /// Its filesystem; `None` for raw block.
        filesystem: Option<Filesystem>,
        /// Logical sector size of its loop device, in bytes; part of the format.
        sector: u32,
        /// Whether its blocks are reserved.
        allocation: Allocation,
        /// Direct I/O of its loop device.
        direct_io: DirectIo,
    },
}

impl Resolved {
    /// Which backend holds the data.
    #[must_use]
    pub const fn backend(self) -> Backend {
        match self {
            Self::Hostpath => Backend::Hostpath,
            Self::Loop { .. } => Backend::Loop,
        }
    }

    /// Whether its blocks are reserved; those of a directory are not.
    #[must_use]
    pub const fn allocation(self) -> Allocation {
        match self {
            Self::Hostpath => Allocation::Thin,
            Self::Loop { allocation, .. } => allocation,
        }
    }

    /// The name of the data within the volume's directory.
    #[must_use]
    pub const fn data_name(self) -> &'static str {
        match self {
            Self::Hostpath => DATA,
            Self::Loop { .. } => IMAGE,
        }
    }

    /// The filesystem of its image, when it has one.
    #[must_use]
    pub const fn filesystem(self) -> Option<Filesystem> {
        match self {
            Self::Hostpath => None,
            Self::Loop { filesystem, .. } => filesystem,
        }
    }

    /// It is a raw block device.
    #[must_use]
    pub const fn is_block(self) -> bool {
        matches!(self, Self::Loop { filesystem: None, .. })
    }
}

/// A volume as its record tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its directory.
    pub key: Key,
    /// Which of the volumes that ever had this name.
    pub generation: Generation,
    /// The CO's name.
    pub name: String,
    /// When it was born, RFC 3339.
    pub created: String,
    /// What was asked for.
    pub request: Request,
    /// What was made.
    pub resolved: Resolved,
    /// How large it is now.
    pub size: ByteSize,
    /// What becomes of its data.
    pub on_delete: OnDelete,
    /// What holds its directory to its size.
    pub limit: Option<Limit>,
    /// What it shared when it was made, where bytes belong to who wrote them first.
    pub shared: Vec<Shared>,
    /// The pod that it belongs to, when it is an inline volume.
    pub pod: Option<Pod>,
    /// The claim that it was made for, as far as that was told; not part of the request.
    pub claim: Option<Claim>,
    /// The nodes that it is attached to; at most one entry for each.
    pub attachments: Vec<Attachment>,
    /// Where its data comes from, when it was imported.
    pub import: Option<Import>,
}

/// Where the data of a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// What was named as the source.
    pub source: String,
    /// The inode of the directory or image, in the pool's filesystem, for as long as it may not be in its place: whatever
    /// else may have its name by then is left alone.
    pub moving: Option<u64>,
}

impl Volume {
    /// What it is charged.
    #[must_use]
    pub const fn charged(&self) -> Charge {
        Charge::of(self.size, self.resolved.allocation())
    }

    /// How it can be known what it takes.
    #[must_use]
    pub const fn footprint(&self) -> Footprint {
        if self.is_moving() {
            return Footprint::Unknown;
        }
        // A thick one shares nothing, however it was made. What was there before may share with anything.
        let is_made_of_some = self.request.source.is_some() || self.import.is_some();
        let may_share = matches!(self.resolved.allocation(), Allocation::Thin) && is_made_of_some;
        match (self.resolved.backend(), self.limit) {
            (Backend::Loop, _) if !may_share => Footprint::Image,
            (Backend::Hostpath, Some(limit)) if !may_share || limit.kind.charges_first_writer() => {
                Footprint::Limit(limit)
            }
            (Backend::Loop | Backend::Hostpath, _) => Footprint::Unknown,
        }
    }

    /// Its data may not be in its place: an import has not ended.
    #[must_use]
    pub const fn is_moving(&self) -> bool {
        matches!(self.import, Some(Import { moving: Some(_), .. }))
    }

    /// Its name within its pool.
    #[must_use]
    pub fn itself(&self) -> Name {
        Name { key: self.key.clone(), generation: self.generation.clone() }
    }

    /// Its id in the pool with that tag.
    #[must_use]
    pub fn id(&self, pool: PoolTag) -> VolumeId {
        VolumeId { pool, key: self.key.clone(), generation: self.generation.clone() }
    }
}

/// Data that something began with and that its filesystem counts for the volume that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// How much, in bytes.
    pub size: ByteSize,
    /// The volume that wrote it, which may be gone.
    pub writer: Name,
    /// The snapshot that first had it as well, or the volume that did without a snapshot; may be gone. All that began
    /// with one origin have the same data, so it is charged once.
    pub origin: Name,
}

/// A volume together with the fields of its record that this release does not know.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What is known.
    pub volume: Volume,
    /// The record as it was read.
    raw: Map<String, Value>,
}

impl Record {
    /// The record of a new volume.
    #[must_use]
    pub fn new(volume: Volume) -> Self {
        Self { volume, raw: Map::new() }
    }

    /// Reads a record that lies in the directory of `key`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] or [`StoreError::TooNew`].
    pub fn parse(key: &Key, content: &[u8]) -> Result<Self, StoreError> {
        let path = std::path::Path::new("volumes").join(key.as_str()).join(RECORD);
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        let raw = readable(&path, content)?;
        let file: RecordFile = typed(raw.clone()).map_err(damaged)?;
        let volume = file.read().map_err(damaged)?;
        if volume.key != *key {
            return Err(damaged(format!("it belongs to the key {}", volume.key)));
        }
        Ok(Self { volume, raw })
    }

    /// The record as it is written.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_text(&self) -> Result<Vec<u8>, StoreError> {
        let mut raw = self.raw.clone();
        // The one field in which something goes again, and what it asks of readers.
        raw.remove(file::IMPORT);
        raw.remove("minReader");
        text_over(raw, &RecordFile::of(&self.volume), RECORD)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::volume::LimitKind;
    use proptest::prelude::*;

    pub(crate) fn sample(name: &str) -> Volume {
        Volume {
            key: Key::of_name(name),
            generation: Generation::from_bits([1, 2, 3, 4]),
            name: name.to_owned(),
            created: "2026-01-01T00:00:00Z".to_owned(),
            request: Request {
                capacity: CapacityRange::default(),
                block: false,
                filesystem: Some(Filesystem::Xfs),
                parameters: BTreeMap::from([("backend".to_owned(), "loop".to_owned())]),
                source: None,
            },
            resolved: Resolved::Loop {
                filesystem: Some(Filesystem::Xfs),
                sector: 4096,
                allocation: Allocation::Thin,
                direct_io: DirectIo::Auto,
            },
            size: ByteSize::gib(1),
            on_delete: OnDelete::Archive,
            limit: None,
            shared: Vec::new(),
            pod: None,
            claim: None,
            attachments: Vec::new(),
            import: None,
        }
    }

    #[test]
    fn the_note_of_a_move_goes_and_what_is_not_known_stays() {
        let mut volume = sample("a");
        let source = "/srv/a \"b\"";
        volume.import = Some(Import { source: source.to_owned(), moving: Some(u64::MAX) });
        let text = Record::new(volume.clone()).to_text().unwrap();
        let mut value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["import"]["movingInode"], u64::MAX);
        value["later"] = "kept".into();
        let text = serde_json::to_vec(&value).unwrap();
        let mut read = Record::parse(&volume.key, &text).unwrap();
        assert_eq!(read.volume, volume);
        assert_eq!(read.volume.footprint(), Footprint::Unknown, "its image may not be there");
        read.volume.import = Some(Import { source: source.to_owned(), moving: None });
        let written: Value = serde_json::from_slice(&read.to_text().unwrap()).unwrap();
        assert_eq!(written["import"], serde_json::json!({ "source": source }));
        assert_eq!(written["later"], "kept");
    }

    #[test]
    fn unknown_fields_are_kept_at_every_depth() {
        let record = Record::new(sample("a"));
        let mut value: Value = serde_json::from_slice(&record.to_text().unwrap()).unwrap();
        value["format"] = 7.into();
        value["later"] = "kept".into();
        let attached = |node: &str| serde_json::json!({"node": node, "readOnly": true, "accessMode": "MULTI_NODE_READER_ONLY", "later": node});
        value["current"]["attachments"] = vec![attached("n1"), attached("n2")].into();
        let text = serde_json::to_vec(&value).unwrap();
        let mut read = Record::parse(&record.volume.key, &text).unwrap();
        read.volume.size = ByteSize::gib(2);
        read.volume.attachments.retain(|attachment| attachment.node == "n2");
        let written: Value = serde_json::from_slice(&read.to_text().unwrap()).unwrap();
        assert_eq!(written["format"], 7);
        assert_eq!(written["later"], "kept");
        assert_eq!(written["current"]["attachments"], serde_json::json!([attached("n2")]));
        assert_eq!(written["current"]["sizeBytes"], 1_u64 << 31);
    }

    #[test]
    fn what_cannot_be_read_is_damaged_and_says_why() {
        let record = Record::new(sample("a"));
        let good = String::from_utf8(record.to_text().unwrap()).unwrap();
        for (from, to, reason) in [
            ("\"minReader\": 1", "\"minReader\": 3", "later release"),
            (
                "\"backend\": \"loop\",\n    \"image\"",
                "\"backend\": \"zfs\",\n    \"image\"",
                "\"zfs\"",
            ),
            ("\"sectorBytes\": 4096", "\"sectorBytes\": 1", "512 or 4096"),
            ("\"onDelete\": \"archive\"", "\"onDelete\": \"burn\"", "burn"),
            (record.volume.key.as_str(), Key::of_name("b").as_str(), "belongs to"),
            ("\"created\"", "\"cre", "damaged"),
        ] {
            assert!(good.contains(from), "{from}");
            let text = good.replace(from, to);
            let error = Record::parse(&record.volume.key, text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{from}: {error}");
        }
        assert!(Record::parse(&record.volume.key, b"").is_err());
    }

    proptest! {
        #[test]
        fn records_survive_the_disk(name in "\\PC{0,40}", size in 0_u64..(1 << 60), block: bool, required in 0_u64..(1 << 60), inline: bool) {
            let mut volume = sample(&name);
            volume.pod = inline.then(|| Pod::new("u-1", &name, &name, format!("/pods/u-1/{name}")).unwrap());
            volume.claim = inline.then(|| Claim { namespace: name.clone(), name: name.clone() });
            volume.size = ByteSize::new(size);
            volume.limit = block.then_some(Limit { kind: LimitKind::Project, number: required });
            let shared = |origin: &str| Shared {
                size: ByteSize::new(required),
                writer: sample("source").itself(),
                origin: sample(origin).itself(),
            };
            volume.shared = if inline { vec![shared("one"), shared("two")] } else { Vec::new() };
            volume.request.block = block;
            volume.request.capacity.required = ByteSize::new(required);
            let text = Record::new(volume.clone()).to_text().unwrap();
            prop_assert_eq!(Record::parse(&volume.key, &text).unwrap().volume, volume);
        }

        #[test]
        fn rubbish_is_never_a_panic(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Record::parse(&Key::of_name("a"), &content).is_err());
        }

        #[test]
        fn a_torn_record_is_never_taken_for_a_whole_one(cut in 0_usize..700) {
            let text = Record::new(sample("a")).to_text().unwrap();
            // Only the final newline may be missing.
            if cut + 1 < text.len() {
                prop_assert!(Record::parse(&Key::of_name("a"), &text[..cut]).is_err());
            }
        }
    }
}
