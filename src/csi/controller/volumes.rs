//! Volumes: create, delete, list, look up, grow.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Response, Status};

use super::super::proto::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetVolumeRequest,
    ControllerGetVolumeResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest,
    ListVolumesResponse, Topology, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, Volume, controller_get_volume_response,
    list_volumes_response, validate_volume_capabilities_response::Confirmed,
};
use super::super::{request, rpc};
use super::Controller;
use crate::volume::{ByteSize, VolumeId};

impl Controller {
    fn volume(&self, id: &VolumeId, size: ByteSize) -> Volume {
        Volume {
            capacity_bytes: size.as_i64(),
            volume_id: id.to_string(),
            // The record has all that the node needs; a context could contradict it later.
            volume_context: HashMap::new(),
            content_source: None,
            accessible_topology: vec![Topology {
                segments: self.engine.topology().clone().into_iter().collect(),
            }],
        }
    }

    pub(super) async fn create(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        rpc::logged("CreateVolume", &request.name, async {
            let spec = request::create(&request)?;
            let (engine, key) = (Arc::clone(&self.engine), spec.key.to_string());
            // A class that names its pool does not wait behind another pool's hung disk.
            let lane = format!("create in {}", spec.parameters.pool);
            let created = self.jobs.change(&key, &lane, move || engine.create(&spec)).await?;
            Ok(CreateVolumeResponse { volume: Some(self.volume(&created.id, created.size)) })
        })
        .await
    }

    pub(super) async fn delete(
        &self,
        request: DeleteVolumeRequest,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        rpc::logged("DeleteVolume", &request.volume_id, async {
            if let Some(id) = request::volume_id_or_unknown(&request.volume_id)? {
                let (engine, key, lane) =
                    (Arc::clone(&self.engine), id.key.to_string(), id.pool.to_string());
                self.jobs.change(&key, &lane, move || engine.delete(&id)).await?;
            }
            Ok(DeleteVolumeResponse {})
        })
        .await
    }

    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        rpc::logged("ValidateVolumeCapabilities", &request.volume_id, async {
            request::any_volume_id(&request.volume_id)?;
            let capabilities = request::capabilities(&request.volume_capabilities)?;
            let id = request::volume_id(&request.volume_id)?;
            let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
            let refusal =
                self.jobs.read(&lane, move || engine.validate(&id, &capabilities)).await?;
            Ok(match refusal {
                Some(message) => ValidateVolumeCapabilitiesResponse { confirmed: None, message },
                None => ValidateVolumeCapabilitiesResponse {
                    confirmed: Some(Confirmed {
                        volume_context: request.volume_context,
                        volume_capabilities: request.volume_capabilities,
                        parameters: request.parameters,
                        mutable_parameters: request.mutable_parameters,
                    }),
                    message: String::new(),
                },
            })
        })
        .await
    }

    pub(super) async fn list(
        &self,
        request: ListVolumesRequest,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        rpc::logged("ListVolumes", "", async {
            let most = match u32::try_from(request.max_entries) {
                Err(_) => return Err(Status::invalid_argument("max_entries is negative")),
                Ok(0) => u32::MAX,
                Ok(most) => most,
            };
            let after = (!request.starting_token.is_empty())
                .then(|| request.starting_token.parse::<VolumeId>());
            let after = after.transpose().map_err(|_foreign| {
                Status::aborted("starting_token is not from this driver; list again from the start")
            })?;
            let engine = Arc::clone(&self.engine);
            let count = usize::try_from(most).unwrap_or(usize::MAX);
            let (listed, more) =
                self.jobs.read("list", move || Ok(engine.list(after.as_ref(), count))).await?;
            let last = listed.last().map(|volume| volume.id.to_string());
            let entries = listed.iter().map(|volume| list_volumes_response::Entry {
                volume: Some(self.volume(&volume.id, volume.size)),
                status: self.engine.attaches().then(|| list_volumes_response::VolumeStatus {
                    published_node_ids: volume.nodes.clone(),
                }),
            });
            Ok(ListVolumesResponse {
                entries: entries.collect(),
                next_token: last.filter(|_| more).unwrap_or_default(),
            })
        })
        .await
    }

    pub(super) async fn get(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        rpc::logged("ControllerGetVolume", &request.volume_id, async {
            let id = request::volume_id(&request.volume_id)?;
            let (engine, lane, wanted) =
                (Arc::clone(&self.engine), id.pool.to_string(), id.clone());
            let volume = self.jobs.read(&lane, move || engine.get(&wanted)).await?;
            let nodes = volume.attachments.into_iter().map(|attachment| attachment.node);
            let shown = nodes.filter(|_| self.engine.attaches());
            Ok(ControllerGetVolumeResponse {
                volume: Some(self.volume(&id, volume.size)),
                status: Some(controller_get_volume_response::VolumeStatus {
                    published_node_ids: shown.collect(),
                }),
            })
        })
        .await
    }

    pub(super) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        rpc::logged("GetCapacity", "", async {
            let query = request::capacity(&request)?;
            let engine = Arc::clone(&self.engine);
            let capacity = self.jobs.read("capacity", move || engine.capacity(&query)).await?;
            Ok(GetCapacityResponse {
                available_capacity: capacity.available.as_i64(),
                maximum_volume_size: Some(capacity.maximum.as_i64()),
                minimum_volume_size: Some(capacity.minimum.as_i64()),
            })
        })
        .await
    }

    pub(super) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        rpc::logged("ControllerExpandVolume", &request.volume_id, async {
            if !self.features.controller_expand {
                return Err(Status::unimplemented(
                    "this driver runs with --controller-expand=off; the node expands",
                ));
            }
            request::any_volume_id(&request.volume_id)?;
            if request.capacity_range.is_none() {
                return Err(Status::invalid_argument("capacity_range is missing"));
            }
            let range = request::capacity_range(request.capacity_range.as_ref())?;
            let id = request::volume_id(&request.volume_id)?;
            let (engine, key, lane) =
                (Arc::clone(&self.engine), id.key.to_string(), id.pool.to_string());
            let expanded = self.jobs.change(&key, &lane, move || engine.expand(&id, range)).await?;
            Ok(ControllerExpandVolumeResponse {
                capacity_bytes: expanded.size.as_i64(),
                node_expansion_required: expanded.node_expansion_required,
            })
        })
        .await
    }
}
