//! Requests, parsed: from protobuf to the types of `volume` and `engine`. Whatever cannot be parsed is refused here, with
//! the field's name.
//!
//! Limits are those of CSI 1.13 ("Size Limits"): strings 128 bytes, maps 4 KiB; paths as long as Linux allows.

mod import;
mod inline;
mod snapshot;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::str::FromStr;

use tonic::Status;

pub(super) use import::import;
pub(super) use inline::inline;
pub(super) use snapshot::{
    content_source, create_group, create_snapshot, group_id, group_id_or_unknown, members,
    snapshot_id, snapshot_id_or_unknown, snapshot_in, source,
};

use super::proto;
use crate::engine::{AttachRequest, CapacityQuery, PublishRequest, StageRequest};
use crate::volume::{
    AccessMode, AccessType, CapacityRange, Claim, CreateSpec, Filesystem, Key, MountFlags,
    MutableParameters, Parameters, SizeError, Topology, VolumeCapability, VolumeId,
};

const STRING_LIMIT: usize = 128;
/// A node's id may be longer than other strings (CSI 1.13, NodeGetInfoResponse).
const NODE_ID_LIMIT: usize = 256;
const MAP_LIMIT: usize = 4096;
const PATH_LIMIT: usize = 4096;

fn invalid(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// A string that must be there and within the contract's limit.
fn required<'a>(field: &str, text: &'a str) -> Result<&'a str, Status> {
    if text.is_empty() {
        return Err(invalid(format!("{field} is missing")));
    }
    if text.len() > STRING_LIMIT {
        return Err(invalid(format!(
            "{field} has {} bytes; at most {STRING_LIMIT} are allowed",
            text.len()
        )));
    }
    Ok(text)
}

/// A volume id that must be there. One that is not of this driver names no volume.
pub(super) fn volume_id(text: &str) -> Result<VolumeId, Status> {
    required("volume_id", text)?.parse().map_err(|error: crate::volume::IdError| {
        Status::not_found(format!("volume {text:?} does not exist: {error}"))
    })
}

/// The same for a call that succeeds when the volume does not exist.
pub(super) fn volume_id_or_unknown(text: &str) -> Result<Option<VolumeId>, Status> {
    Ok(required("volume_id", text)?.parse().ok())
}

/// The id of a teardown: it may be of another release or another driver's.
pub(super) fn any_volume_id(text: &str) -> Result<&str, Status> {
    required("volume_id", text)
}

/// The id of a node.
pub(super) fn node_id(text: &str) -> Result<&str, Status> {
    match text.len() {
        0 => Err(invalid("node_id is missing")),
        1..=NODE_ID_LIMIT => Ok(text),
        length => {
            Err(invalid(format!("node_id has {length} bytes; at most {NODE_ID_LIMIT} are allowed")))
        }
    }
}

/// A path that must be there.
pub(super) fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    if text.is_empty() {
        return Err(invalid(format!("{field} is missing")));
    }
    if text.len() > PATH_LIMIT || text.contains('\0') {
        return Err(invalid(format!("{field} is no path that Linux can have")));
    }
    Ok(PathBuf::from(text))
}

fn map(field: &str, map: &HashMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAP_LIMIT {
        return Err(invalid(format!("{field} has {size} bytes; at most {MAP_LIMIT} are allowed")));
    }
    Ok(map.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
}

pub(super) fn parameters(raw: &HashMap<String, String>) -> Result<Parameters, Status> {
    Parameters::parse(&map("parameters", raw)?).map_err(|error| invalid(error.to_string()))
}

/// The sizes of a request; without any, everything fits.
pub(super) fn capacity_range(
    range: Option<&proto::CapacityRange>,
) -> Result<CapacityRange, Status> {
    let Some(range) = range else {
        return Ok(CapacityRange::default());
    };
    CapacityRange::parse(range.required_bytes, range.limit_bytes).map_err(|error| match error {
        SizeError::Negative { .. } => invalid(error.to_string()),
        SizeError::Inverted { .. } | SizeError::NoneFits { .. } => {
            Status::out_of_range(error.to_string())
        }
    })
}

fn access_mode(mode: Option<&proto::volume_capability::AccessMode>) -> Result<AccessMode, Status> {
    use proto::volume_capability::access_mode::Mode;
    let mode = mode.map(|mode| (mode.mode, Mode::try_from(mode.mode)));
    match mode {
        None | Some((_, Ok(Mode::Unknown))) => {
            Err(invalid("volume_capability.access_mode is missing"))
        }
        Some((number, Err(_))) => {
            Err(invalid(format!("volume_capability.access_mode {number} is not one of CSI 1.13")))
        }
        Some((_, Ok(Mode::SingleNodeWriter))) => Ok(AccessMode::SingleNodeWriter),
        Some((_, Ok(Mode::SingleNodeReaderOnly))) => Ok(AccessMode::SingleNodeReaderOnly),
        Some((_, Ok(Mode::MultiNodeReaderOnly))) => Ok(AccessMode::MultiNodeReaderOnly),
        Some((_, Ok(Mode::MultiNodeSingleWriter))) => Ok(AccessMode::MultiNodeSingleWriter),
        Some((_, Ok(Mode::MultiNodeMultiWriter))) => Ok(AccessMode::MultiNodeMultiWriter),
        Some((_, Ok(Mode::SingleNodeSingleWriter))) => Ok(AccessMode::SingleNodeSingleWriter),
        Some((_, Ok(Mode::SingleNodeMultiWriter))) => Ok(AccessMode::SingleNodeMultiWriter),
    }
}

/// One capability that must be there.
pub(super) fn capability(
    capability: Option<&proto::VolumeCapability>,
) -> Result<VolumeCapability, Status> {
    use proto::volume_capability::AccessType as Raw;
    let capability = capability.ok_or_else(|| invalid("volume_capability is missing"))?;
    let access = match &capability.access_type {
        None => {
            return Err(invalid("volume_capability.access_type is missing: mount or block"));
        }
        Some(Raw::Block(_)) => AccessType::Block,
        Some(Raw::Mount(mount)) => {
            if !mount.volume_mount_group.is_empty() {
                return Err(invalid(
                    "volume_mount_group is not supported; kubelet sets the group itself (fsGroupPolicy: File)",
                ));
            }
            if mount.fs_type.len() > STRING_LIMIT {
                return Err(invalid("fs_type is too long"));
            }
            let size: usize = mount.mount_flags.iter().map(String::len).sum();
            if size > MAP_LIMIT {
                return Err(invalid(format!(
                    "mount_flags have {size} bytes; at most {MAP_LIMIT} are allowed"
                )));
            }
            let flags = MountFlags::parse(&mount.mount_flags)
                .map_err(|error| invalid(error.to_string()))?;
            AccessType::Mount { filesystem: mount.fs_type.clone(), flags }
        }
    };
    Ok(VolumeCapability { access, mode: access_mode(capability.access_mode.as_ref())? })
}

/// All capabilities of a request, which must be there and agree on mount or block.
pub(super) fn capabilities(
    raw: &[proto::VolumeCapability],
) -> Result<Vec<VolumeCapability>, Status> {
    if raw.is_empty() {
        return Err(invalid("volume_capabilities are missing"));
    }
    let parsed = raw.iter().map(|raw| capability(Some(raw))).collect::<Result<Vec<_>, _>>()?;
    let blocks = parsed.iter().filter(|capability| capability.access.is_block()).count();
    if blocks != 0 && blocks != parsed.len() {
        return Err(invalid(
            "volume_capabilities ask for mount and block; a volume is one or the other",
        ));
    }
    Ok(parsed)
}

fn topology(raw: &proto::Topology) -> Topology {
    raw.segments.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The terms of which one must hold; none when the request does not say.
fn requisite(requirement: Option<&proto::TopologyRequirement>) -> Vec<Topology> {
    requirement.map_or_else(Vec::new, |requirement| {
        // Without requisite terms the preferred ones are all there is (CSI 1.13, TopologyRequirement).
        let terms = if requirement.requisite.is_empty() {
            &requirement.preferred
        } else {
            &requirement.requisite
        };
        terms.iter().map(topology).collect()
    })
}

/// A CO's name for something new.
fn name(text: &str) -> Result<&str, Status> {
    let name = required("name", text)?;
    // CSI 1.13 forbids these control characters in a name; tab, newline and carriage return it allows.
    let forbidden = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if name.chars().any(forbidden) {
        return Err(invalid("name has control characters"));
    }
    Ok(name)
}

/// The parameters that can be changed later.
pub(super) fn mutable_parameters(
    raw: &HashMap<String, String>,
) -> Result<MutableParameters, Status> {
    MutableParameters::parse(&map("mutable_parameters", raw)?)
        .map_err(|error| invalid(error.to_string()))
}

/// How many entries a page may have.
pub(super) fn page_length(max_entries: i32) -> Result<usize, Status> {
    match usize::try_from(max_entries) {
        Err(_negative) => Err(invalid("max_entries is negative")),
        Ok(0) => Ok(usize::MAX),
        Ok(most) => Ok(most),
    }
}

/// The last entry of the page before; CSI 1.13 wants ABORTED for a token that is none.
pub(super) fn token<T: FromStr>(text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_foreign| {
        Status::aborted("starting_token is not from this driver; list again from the start")
    })
}

/// A CreateVolume request.
pub(super) fn create(request: &proto::CreateVolumeRequest) -> Result<CreateSpec, Status> {
    let name = name(&request.name)?;
    let raw = map("parameters", &request.parameters)?;
    let mut parameters = parameters(&request.parameters)?;
    let change = mutable_parameters(&request.mutable_parameters)?;
    parameters.on_delete = change.on_delete.unwrap_or(parameters.on_delete);
    let capabilities = capabilities(&request.volume_capabilities)?;
    Ok(CreateSpec {
        name: name.to_owned(),
        key: Key::of_name(name),
        capacity: capacity_range(request.capacity_range.as_ref())?,
        capabilities,
        parameters,
        source: source(request.volume_content_source.as_ref())?,
        requisite: requisite(request.accessibility_requirements.as_ref()),
        pod: None,
        claim: Claim::of_parameters(&raw),
    })
}

/// A GetCapacity request.
pub(super) fn capacity(request: &proto::GetCapacityRequest) -> Result<CapacityQuery, Status> {
    let mut parameters = parameters(&request.parameters)?;
    let mut block = false;
    if !request.volume_capabilities.is_empty() {
        for capability in capabilities(&request.volume_capabilities)? {
            match capability.access {
                AccessType::Block => block = true,
                AccessType::Mount { filesystem, .. } => {
                    parameters.filesystem =
                        Filesystem::from_word(&filesystem).or(parameters.filesystem);
                }
            }
        }
    }
    let topology =
        request.accessible_topology.as_ref().map(topology).filter(|term| !term.is_empty());
    Ok(CapacityQuery { parameters, block, topology })
}

/// A ControllerPublishVolume request.
pub(super) fn attach(
    request: &proto::ControllerPublishVolumeRequest,
) -> Result<AttachRequest, Status> {
    required("volume_id", &request.volume_id)?;
    let node = node_id(&request.node_id)?.to_owned();
    let capability = capability(request.volume_capability.as_ref())?;
    map("volume_context", &request.volume_context)?;
    let id = volume_id(&request.volume_id)?;
    Ok(AttachRequest { id, node, capability, read_only: request.readonly })
}

/// A NodeStageVolume request.
pub(super) fn stage(request: &proto::NodeStageVolumeRequest) -> Result<StageRequest, Status> {
    // The order of the checks: what is missing before what is unknown.
    required("volume_id", &request.volume_id)?;
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    Ok(StageRequest { id: volume_id(&request.volume_id)?, staging, capability })
}

/// A NodePublishVolume request.
pub(super) fn publish(request: &proto::NodePublishVolumeRequest) -> Result<PublishRequest, Status> {
    required("volume_id", &request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    let id = volume_id(&request.volume_id).map_err(|status| inline::hint(request, status))?;
    if request.staging_target_path.is_empty() {
        // CSI 1.13, NodePublishVolume errors: FAILED_PRECONDITION when the staging path is needed and not set.
        return Err(Status::failed_precondition(
            "staging_target_path is missing; call NodeStageVolume first",
        ));
    }
    let staging = path("staging_target_path", &request.staging_target_path)?;
    Ok(PublishRequest { id, staging, target, capability, read_only: request.readonly })
}
