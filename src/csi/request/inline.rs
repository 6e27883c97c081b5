//! Inline volumes: a NodePublishVolume whose context says that the volume is the pod's own.
//!
//! Kubelet puts what it knows of the pod over the attributes that the pod's author wrote, so nobody can pretend to be
//! another pod. Of the attributes, those are allowed that a StorageClass may have, but for what would outlive the pod.

use std::collections::{BTreeMap, HashMap};

use tonic::Status;

use super::super::proto::NodePublishVolumeRequest;
use super::{capability, invalid, map, path, required};
use crate::engine::InlineRequest;
use crate::volume::{
    CapacityRange, CreateSpec, Key, OnDelete, Parameters, Pod, VolumeId, parse_quantity,
};

/// Kubelet's word that the volume is inline.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
/// The attribute that a claim has elsewhere.
const SIZE: &str = "size";

/// The context says that the volume is inline.
fn is_inline(context: &HashMap<String, String>) -> bool {
    context.get(EPHEMERAL).is_some_and(|word| word == "true")
}

fn attributes(mut raw: BTreeMap<String, String>) -> Result<(CapacityRange, Parameters), Status> {
    let size = raw.remove(SIZE).map(|text| parse_quantity(&text)).transpose();
    let size = size.map_err(|error| invalid(format!("attribute {SIZE}: {error}")))?;
    let parameters = Parameters::parse(&raw).map_err(|error| {
        invalid(format!(
            "volumeAttributes: {error}; an inline volume has the parameters of a StorageClass and {SIZE}"
        ))
    })?;
    if parameters.on_delete != OnDelete::Delete {
        return Err(invalid(format!(
            "attribute onDelete has the value \"{}\"; an inline volume goes with its pod: leave it out, or use a claim",
            parameters.on_delete
        )));
    }
    Ok((CapacityRange { required: size.unwrap_or_default(), limit: None }, parameters))
}

fn pod(request: &NodePublishVolumeRequest) -> Result<Pod, Status> {
    let word = |key: &str| request.volume_context.get(key).map_or("", String::as_str);
    if word(POD_UID).is_empty() {
        return Err(invalid(format!(
            "volume_context has no {POD_UID}; the CSIDriver object needs podInfoOnMount: true"
        )));
    }
    Pod::new(word(POD_UID), word(POD_NAMESPACE), word(POD_NAME), &request.target_path)
        .map_err(|error| invalid(error.to_string()))
}

/// A NodePublishVolume request for an inline volume; `None` when it is for another one.
pub(in super::super) fn inline(
    request: &NodePublishVolumeRequest,
) -> Result<Option<InlineRequest>, Status> {
    if !is_inline(&request.volume_context) {
        return Ok(None);
    }
    let id = required("volume_id", &request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    if id.parse::<VolumeId>().is_ok() || id.chars().any(char::is_control) {
        return Err(invalid(format!(
            "volume_id {id:?} is not one that kubelet makes for an inline volume"
        )));
    }
    let (capacity, parameters) = attributes(map("volume_context", &request.volume_context)?)?;
    let spec = CreateSpec {
        name: id.to_owned(),
        key: Key::of_inline(id),
        capacity,
        capabilities: vec![capability.clone()],
        parameters,
        requisite: Vec::new(),
        source: None,
        pod: Some(pod(request)?),
        claim: None,
    };
    Ok(Some(InlineRequest { spec, target, capability, read_only: request.readonly }))
}

/// Without being told of the pod nobody can tell an inline volume from one that does not exist.
pub(super) fn hint(request: &NodePublishVolumeRequest, status: Status) -> Status {
    if !request.volume_id.starts_with("csi-") || request.volume_context.contains_key(EPHEMERAL) {
        return status;
    }
    let message = status.message();
    Status::new(
        status.code(),
        format!(
            "{message}; if it is an inline volume, the CSIDriver object needs podInfoOnMount: true"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Backend, ByteSize};

    fn parse(raw: &[(&str, &str)]) -> Result<(CapacityRange, Parameters), Status> {
        attributes(raw.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn attributes_are_a_size_and_the_parameters_of_a_class() {
        let (capacity, parameters) =
            parse(&[("size", "100Mi"), ("backend", "loop"), (EPHEMERAL, "true")]).unwrap();
        assert_eq!(capacity.required, ByteSize::mib(100));
        assert_eq!(parameters.backend, Backend::Loop);
        assert_eq!(parse(&[]).unwrap(), (CapacityRange::default(), Parameters::default()));
        parse(&[("onDelete", "delete")]).unwrap();
    }

    #[test]
    fn what_is_refused_names_the_attribute() {
        for (raw, in_message) in [
            (vec![("sise", "1Gi")], "\"sise\""),
            (vec![("size", "much")], "attribute size"),
            (vec![("size", "0")], "above zero"),
            (vec![("onDelete", "retain")], "\"retain\""),
            (vec![("onDelete", "wipe")], "\"wipe\""),
            (vec![("backend", "zfs")], "hostpath, loop"),
        ] {
            let status = parse(&raw).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(in_message), "{raw:?}: {}", status.message());
        }
    }
}
