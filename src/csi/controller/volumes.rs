//! Volumes: create, delete, list, look up, grow.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Response, Status};

use super::super::proto::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetVolumeRequest,
    ControllerGetVolumeResponse, ControllerModifyVolumeRequest, ControllerModifyVolumeResponse,
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    GetCapacityRequest, GetCapacityResponse, ListVolumesRequest, ListVolumesResponse, Volume,
    controller_get_volume_response, list_volumes_response,
};
use super::super::{Claims, reply, request, rpc};
use super::{Controller, copy_lane, snapshot_key};
use crate::volume::{ByteSize, Source, VolumeId};

impl Controller {
    fn volume(&self, id: &VolumeId, size: ByteSize, source: Option<&Source>) -> Volume {
        Volume {
            capacity_bytes: size.as_i64(),
            volume_id: id.to_string(),
            // The record has all that the node needs; a context could contradict it later.
            volume_context: HashMap::new(),
            content_source: source.map(request::content_source),
            accessible_topology: vec![reply::topology(self.engine.topology())],
        }
    }

    pub(super) async fn create(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        rpc::logged("CreateVolume", &request.name, async {
            let spec = request::create(&request)?;
            let engine = Arc::clone(&self.engine);
            let source = spec.source.clone();
            let claims = Claims::whole(spec.key.to_string());
            let (claims, lane) = match &source {
                // A class that names its pool does not wait behind another pool's hung disk.
                None => (claims, format!("create in {}", spec.parameters.pool)),
                Some(Source::Volume(id)) => {
                    (claims.pinning([id.key.to_string()]), copy_lane(&id.pool))
                }
                Some(Source::Snapshot(id)) => {
                    (claims.pinning([snapshot_key(&id.key)]), copy_lane(&id.pool))
                }
            };
            let created = self.jobs.change(claims, &lane, move || engine.create(&spec)).await?;
            let volume = self.volume(&created.id, created.size, source.as_ref());
            Ok(CreateVolumeResponse { volume: Some(volume) })
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

    pub(super) async fn list(
        &self,
        request: ListVolumesRequest,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        rpc::logged("ListVolumes", "", async {
            let count = request::page_length(request.max_entries)?;
            let after = request::token::<VolumeId>(&request.starting_token)?;
            let engine = Arc::clone(&self.engine);
            let (listed, more) =
                self.jobs.read("list", move || Ok(engine.list(after.as_ref(), count))).await?;
            let last = listed.last().map(|volume| volume.id.to_string());
            let entries = listed.iter().map(|volume| list_volumes_response::Entry {
                volume: Some(self.volume(&volume.id, volume.size, None)),
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
                volume: Some(self.volume(&id, volume.size, volume.request.source.as_ref())),
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

    pub(super) async fn modify(
        &self,
        request: ControllerModifyVolumeRequest,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        rpc::logged("ControllerModifyVolume", &request.volume_id, async {
            request::any_volume_id(&request.volume_id)?;
            let change = request::mutable_parameters(&request.mutable_parameters)?;
            let id = request::volume_id(&request.volume_id)?;
            let (engine, key, lane) =
                (Arc::clone(&self.engine), id.key.to_string(), id.pool.to_string());
            self.jobs.change(&key, &lane, move || engine.modify(&id, change)).await?;
            Ok(ControllerModifyVolumeResponse {})
        })
        .await
    }
}
