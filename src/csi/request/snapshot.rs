//! Requests about snapshots and groups of them, and what a volume begins with.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tonic::Status;

use super::super::proto::{self, volume_content_source::Type as RawSource};
use super::{invalid, map, name, required, requisite, volume_id};
use crate::engine::{GroupSpec, SnapshotSpec};
use crate::volume::{GroupId, IdError, Key, SnapshotId, Source, VolumeId};

/// Parameters under this prefix are the snapshotter's own.
const KUBERNETES_PREFIX: &str = "csi.storage.k8s.io/";

/// A snapshot id that must be there. One that is not of this driver names no snapshot.
pub(in crate::csi) fn snapshot_id(text: &str) -> Result<SnapshotId, Status> {
    snapshot_in("snapshot_id", text)
}

/// The same in another field.
pub(in crate::csi) fn snapshot_in(field: &str, text: &str) -> Result<SnapshotId, Status> {
    required(field, text)?
        .parse()
        .map_err(|error: IdError| Status::not_found(format!("no such snapshot: {error}")))
}

/// The same for a call that succeeds when the snapshot does not exist.
pub(in crate::csi) fn snapshot_id_or_unknown(text: &str) -> Result<Option<SnapshotId>, Status> {
    Ok(required("snapshot_id", text)?.parse().ok())
}

/// A group id that must be there. One that is not of this driver names no group.
pub(in crate::csi) fn group_id(text: &str) -> Result<GroupId, Status> {
    required("group_snapshot_id", text)?
        .parse()
        .map_err(|error: IdError| Status::not_found(format!("no such group snapshot: {error}")))
}

/// The same for a call that succeeds when the group does not exist.
pub(in crate::csi) fn group_id_or_unknown(text: &str) -> Result<Option<GroupId>, Status> {
    Ok(required("group_snapshot_id", text)?.parse().ok())
}

/// The snapshots that a request says a group has; those that are not of this driver are of no group.
pub(in crate::csi) fn members(ids: &[String]) -> Result<BTreeSet<SnapshotId>, Status> {
    let member = |text: &String| {
        text.parse().map_err(|error: IdError| {
            invalid(format!("snapshot_ids: {error}, so it is not of this group"))
        })
    };
    ids.iter().map(member).collect()
}

/// A snapshot class of this driver has no parameters.
fn no_parameters(raw: &HashMap<String, String>) -> Result<(), Status> {
    let parameters: BTreeMap<String, String> = map("parameters", raw)?;
    let ours = |name: &&String| !name.starts_with(KUBERNETES_PREFIX);
    match parameters.keys().find(ours) {
        None => Ok(()),
        Some(unknown) => {
            let unknown: String = unknown.chars().take(80).collect();
            Err(invalid(format!(
                "unknown parameter {unknown:?}; a snapshot class of this driver takes none"
            )))
        }
    }
}

/// A CreateSnapshot request.
pub(in crate::csi) fn create_snapshot(
    request: &proto::CreateSnapshotRequest,
) -> Result<SnapshotSpec, Status> {
    let name = name(&request.name)?;
    required("source_volume_id", &request.source_volume_id)?;
    no_parameters(&request.parameters)?;
    Ok(SnapshotSpec {
        name: name.to_owned(),
        key: Key::of_name(name),
        source: volume_id(&request.source_volume_id)?,
        requisite: requisite(request.accessibility_requirements.as_ref()),
    })
}

/// A CreateVolumeGroupSnapshot request.
pub(in crate::csi) fn create_group(
    request: &proto::CreateVolumeGroupSnapshotRequest,
) -> Result<GroupSpec, Status> {
    let name = name(&request.name)?;
    if request.source_volume_ids.is_empty() {
        return Err(invalid("source_volume_ids are missing"));
    }
    no_parameters(&request.parameters)?;
    for id in &request.source_volume_ids {
        required("source_volume_ids", id)?;
    }
    let sources = request.source_volume_ids.iter().map(|id| volume_id(id));
    let sources: BTreeSet<VolumeId> = sources.collect::<Result<_, _>>()?;
    if sources.len() != request.source_volume_ids.len() {
        return Err(invalid("source_volume_ids name a volume twice"));
    }
    Ok(GroupSpec { name: name.to_owned(), key: Key::of_name(name), sources })
}

/// What a volume is to begin with.
pub(in crate::csi) fn source(
    raw: Option<&proto::VolumeContentSource>,
) -> Result<Option<Source>, Status> {
    let Some(raw) = raw else { return Ok(None) };
    match &raw.r#type {
        None => Err(invalid("volume_content_source names neither a snapshot nor a volume")),
        Some(RawSource::Snapshot(source)) => {
            snapshot_id(&source.snapshot_id).map(|id| Some(Source::Snapshot(id)))
        }
        Some(RawSource::Volume(source)) => {
            volume_id(&source.volume_id).map(|id| Some(Source::Volume(id)))
        }
    }
}

/// The same as a reply says it.
pub(in crate::csi) fn content_source(source: &Source) -> proto::VolumeContentSource {
    use proto::volume_content_source::{SnapshotSource, VolumeSource};
    let source = match source {
        Source::Snapshot(id) => RawSource::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        Source::Volume(id) => RawSource::Volume(VolumeSource { volume_id: id.to_string() }),
    };
    proto::VolumeContentSource { r#type: Some(source) }
}
