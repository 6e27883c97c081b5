//! The record as it lies on the disk.
//!
//! Must not: be used by anything but records; the rest of the driver works with live types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::attachment::AttachmentFile;
use super::super::snapshot::{SharedFile, size};
use super::{FORMAT, Import, PLAIN_READER, READER, Request, Resolved, Volume};
use crate::volume::{
    Allocation, Backend, ByteSize, CapacityRange, Claim, DirectIo, Filesystem, IdError, Limit,
    LimitKind, OnDelete, Pod, Source,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordFile {
    format: u32,
    min_reader: u32,
    key: String,
    generation: String,
    name: String,
    created: String,
    request: RequestFile,
    resolved: ResolvedFile,
    current: CurrentFile,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inline: Option<InlineFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<ClaimFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<LimitFile>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shared: Vec<SharedFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    import: Option<ImportFile>,
}

/// The name of that field.
pub(super) const IMPORT: &str = "import";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImportFile {
    source: String,
    /// There only while the data may not be in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moving_inode: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LimitFile {
    kind: String,
    number: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestFile {
    required_bytes: u64,
    limit_bytes: Option<u64>,
    access: String,
    filesystem: Option<String>,
    parameters: BTreeMap<String, String>,
    /// The id of a snapshot or volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::store) struct ResolvedFile {
    backend: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<ImageFile>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageFile {
    filesystem: Option<String>,
    sector_bytes: u32,
    allocation: String,
    #[serde(rename = "directIO")]
    direct_io: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CurrentFile {
    size_bytes: u64,
    on_delete: String,
    #[serde(default)]
    attachments: Vec<AttachmentFile>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct InlineFile {
    pod_uid: String,
    pod_namespace: String,
    pod_name: String,
    target: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClaimFile {
    namespace: String,
    name: String,
}

impl InlineFile {
    fn of(pod: &Pod) -> Self {
        Self {
            pod_uid: pod.uid().to_owned(),
            pod_namespace: pod.namespace().to_owned(),
            pod_name: pod.name().to_owned(),
            // From a request, so it is text.
            target: pod.target().to_string_lossy().into_owned(),
        }
    }

    fn read(&self) -> Result<Pod, String> {
        Pod::new(&self.pod_uid, &self.pod_namespace, &self.pod_name, &self.target)
            .map_err(|e| format!("inline.podUid: {e}"))
    }
}

impl LimitFile {
    fn of(limit: Limit) -> Self {
        Self { kind: limit.kind.to_string(), number: limit.number }
    }

    fn read(&self) -> Result<Limit, String> {
        let kind = LimitKind::from_word(&self.kind);
        let kind = kind.ok_or_else(|| unknown("limit.kind", &self.kind))?;
        Ok(Limit { kind, number: self.number })
    }
}

/// A word of the record that is none of the known ones.
pub(in crate::store) fn unknown(field: &'static str, word: &str) -> String {
    format!("{field} is {word:?}, which this release does not know")
}

fn filesystem(field: &'static str, word: Option<&str>) -> Result<Option<Filesystem>, String> {
    word.map(|word| Filesystem::from_word(word).ok_or_else(|| unknown(field, word))).transpose()
}

fn source(text: &str) -> Result<Source, String> {
    let snapshot = text.parse().map(Source::Snapshot);
    snapshot.or_else(|_| text.parse().map(Source::Volume)).map_err(|_foreign| {
        format!("request.source is {text:?}, which is neither a snapshot's nor a volume's id")
    })
}

impl ResolvedFile {
    pub(in crate::store) fn of(resolved: Resolved) -> Self {
        let image = match resolved {
            Resolved::Hostpath => None,
            Resolved::Loop { filesystem, sector, allocation, direct_io } => Some(ImageFile {
                filesystem: filesystem.map(|filesystem| filesystem.to_string()),
                sector_bytes: sector,
                allocation: allocation.to_string(),
                direct_io: direct_io.to_string(),
            }),
        };
        Self { backend: resolved.backend().to_string(), image }
    }

    pub(in crate::store) fn read(&self) -> Result<Resolved, String> {
        let backend = Backend::from_word(&self.backend)
            .ok_or_else(|| unknown("resolved.backend", &self.backend))?;
        match (backend, &self.image) {
            (Backend::Hostpath, None) => Ok(Resolved::Hostpath),
            (Backend::Hostpath, Some(_)) => {
                Err("resolved.backend is hostpath, which has no resolved.image".to_owned())
            }
            (Backend::Loop, None) => {
                Err("resolved.backend is loop, which needs resolved.image".to_owned())
            }
            (Backend::Loop, Some(image)) => {
                if !matches!(image.sector_bytes, 512 | 4096) {
                    return Err(format!(
                        "resolved.image.sectorBytes is {}, not 512 or 4096",
                        image.sector_bytes
                    ));
                }
                Ok(Resolved::Loop {
                    filesystem: filesystem(
                        "resolved.image.filesystem",
                        image.filesystem.as_deref(),
                    )?,
                    sector: image.sector_bytes,
                    allocation: Allocation::from_word(&image.allocation)
                        .ok_or_else(|| unknown("resolved.image.allocation", &image.allocation))?,
                    direct_io: DirectIo::from_word(&image.direct_io)
                        .ok_or_else(|| unknown("resolved.image.directIO", &image.direct_io))?,
                })
            }
        }
    }
}

impl RecordFile {
    pub(super) fn of(volume: &Volume) -> Self {
        Self {
            format: FORMAT,
            // A release that does not know of moves would use, or delete, a volume whose data may be elsewhere.
            min_reader: if volume.is_moving() { READER } else { PLAIN_READER },
            key: volume.key.to_string(),
            generation: volume.generation.to_string(),
            name: volume.name.clone(),
            created: volume.created.clone(),
            request: RequestFile {
                required_bytes: volume.request.capacity.required.bytes(),
                limit_bytes: volume.request.capacity.limit.map(ByteSize::bytes),
                access: if volume.request.block { "block" } else { "mount" }.to_owned(),
                filesystem: volume.request.filesystem.map(|filesystem| filesystem.to_string()),
                parameters: volume.request.parameters.clone(),
                source: volume.request.source.as_ref().map(|source| match source {
                    Source::Snapshot(id) => id.to_string(),
                    Source::Volume(id) => id.to_string(),
                }),
            },
            resolved: ResolvedFile::of(volume.resolved),
            current: CurrentFile {
                size_bytes: volume.size.bytes(),
                on_delete: volume.on_delete.to_string(),
                attachments: volume.attachments.iter().map(AttachmentFile::of).collect(),
            },
            inline: volume.pod.as_ref().map(InlineFile::of),
            claim: volume
                .claim
                .clone()
                .map(|Claim { namespace, name }| ClaimFile { namespace, name }),
            limit: volume.limit.map(LimitFile::of),
            shared: volume.shared.iter().map(SharedFile::of).collect(),
            import: volume.import.as_ref().map(|import| ImportFile {
                source: import.source.clone(),
                moving_inode: import.moving,
            }),
        }
    }

    pub(super) fn read(self) -> Result<Volume, String> {
        let block = match self.request.access.as_str() {
            "block" => true,
            "mount" => false,
            other => return Err(unknown("request.access", other)),
        };
        Ok(Volume {
            key: self.key.parse().map_err(|e: IdError| format!("key: {e}"))?,
            generation: self.generation.parse().map_err(|e: IdError| format!("generation: {e}"))?,
            name: self.name,
            created: self.created,
            request: Request {
                capacity: CapacityRange {
                    required: ByteSize::new(self.request.required_bytes),
                    limit: self.request.limit_bytes.map(ByteSize::new),
                },
                block,
                filesystem: filesystem("request.filesystem", self.request.filesystem.as_deref())?,
                parameters: self.request.parameters,
                source: self.request.source.as_deref().map(source).transpose()?,
            },
            resolved: self.resolved.read()?,
            size: size("current.sizeBytes", self.current.size_bytes)?,
            on_delete: OnDelete::from_word(&self.current.on_delete)
                .ok_or_else(|| unknown("current.onDelete", &self.current.on_delete))?,
            limit: self.limit.as_ref().map(LimitFile::read).transpose()?,
            shared: self.shared.iter().map(SharedFile::read).collect::<Result<_, _>>()?,
            pod: self.inline.as_ref().map(InlineFile::read).transpose()?,
            claim: self.claim.map(|ClaimFile { namespace, name }| Claim { namespace, name }),
            attachments: self
                .current
                .attachments
                .into_iter()
                .map(AttachmentFile::read)
                .collect::<Result<_, _>>()?,
            import: self
                .import
                .map(|import| Import { source: import.source, moving: import.moving_inode }),
        })
    }
}
