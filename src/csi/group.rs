//! The GroupController service: snapshots of several volumes at one instant.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::controller::{copy_lane, snapshot_key};
use super::proto::{
    CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse,
    DeleteVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotResponse,
    GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
    GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse,
    VolumeGroupSnapshot, group_controller_server,
};
use super::{Claims, Jobs, capability, reply, request, rpc};
use crate::engine::{Engine, FoundGroup};
use crate::volume::Key;

#[derive(Debug)]
pub(super) struct GroupController {
    pub(super) engine: Arc<Engine>,
    pub(super) jobs: Arc<Jobs>,
}

fn group_key(key: &Key) -> String {
    format!("group {}", snapshot_key(key))
}

impl GroupController {
    fn group(&self, found: &FoundGroup) -> VolumeGroupSnapshot {
        let here = Some(self.engine.topology());
        VolumeGroupSnapshot {
            group_snapshot_id: found.id.to_string(),
            snapshots: found.members.iter().map(|found| reply::snapshot(found, here)).collect(),
            creation_time: Some(reply::timestamp(&found.created)),
            ready_to_use: true,
        }
    }
}

#[tonic::async_trait]
impl group_controller_server::GroupController for GroupController {
    async fn group_controller_get_capabilities(
        &self,
        _request: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let reply =
            GroupControllerGetCapabilitiesResponse { capabilities: capability::group_controller() };
        rpc::logged("GroupControllerGetCapabilities", "", async { Ok(reply) }).await
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("CreateVolumeGroupSnapshot", &request.name, async {
            let spec = request::create_group(&request)?;
            let engine = Arc::clone(&self.engine);
            let lane = spec.sources.first().map(|source| copy_lane(&source.pool));
            let claims = Claims::whole(group_key(&spec.key))
                .pinning(spec.sources.iter().map(|source| source.key.to_string()));
            let found = self
                .jobs
                .change(claims, &lane.unwrap_or_default(), move || engine.create_group(&spec))
                .await?;
            Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(self.group(&found)) })
        })
        .await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("DeleteVolumeGroupSnapshot", &request.group_snapshot_id, async {
            if let Some(id) = request::group_id_or_unknown(&request.group_snapshot_id)? {
                let members = request::members(&request.snapshot_ids)?;
                let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
                // A restore pins the member that it copies.
                let ended = self.engine.group_members(&id).into_iter();
                let claims =
                    Claims::whole(group_key(&id.key)).with(ended.map(|id| snapshot_key(&id.key)));
                self.jobs.change(claims, &lane, move || engine.delete_group(&id, &members)).await?;
            }
            Ok(DeleteVolumeGroupSnapshotResponse {})
        })
        .await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("GetVolumeGroupSnapshot", &request.group_snapshot_id, async {
            let id = request::group_id(&request.group_snapshot_id)?;
            let members = request::members(&request.snapshot_ids)?;
            let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
            let found = self
                .jobs
                .read(&lane, move || {
                    let found = engine.get_group(&id)?;
                    Engine::check_members(&found, &members).map(|()| found)
                })
                .await?;
            Ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(self.group(&found)) })
        })
        .await
    }
}
