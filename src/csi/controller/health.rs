//! Health of volumes: one by its id, and all that have something wrong.

use std::sync::Arc;

use tonic::{Response, Status};

use super::super::health::volume_health;
use super::super::proto::{
    ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse,
    ControllerListVolumeHealthRequest, ControllerListVolumeHealthResponse,
};
use super::super::{request, rpc};
use super::Controller;
use crate::volume::VolumeId;

impl Controller {
    pub(super) async fn get_health(
        &self,
        request: ControllerGetVolumeHealthRequest,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        rpc::logged("ControllerGetVolumeHealth", &request.volume_id, async {
            let id = request::volume_id(&request.volume_id)?;
            let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
            let findings = self.jobs.read(&lane, move || engine.volume_health(&id, &[])).await?;
            let volume_health = Some(volume_health(request.volume_id.clone(), findings));
            Ok(ControllerGetVolumeHealthResponse { volume_health })
        })
        .await
    }

    pub(super) async fn list_health(
        &self,
        request: ControllerListVolumeHealthRequest,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        rpc::logged("ControllerListVolumeHealth", "", async {
            let most = request::page_length(request.max_entries)?;
            let after = request::token::<VolumeId>(&request.starting_token)?;
            // Who sets no limit wants all of them.
            let count = (request.max_entries > 0).then_some(most);
            let engine = Arc::clone(&self.engine);
            let (listed, next) = self
                .jobs
                .read("list health", move || engine.list_volume_health(after.as_ref(), count))
                .await?;
            let entry = |volume: crate::engine::VolumeHealth| {
                volume_health(volume.id.to_string(), volume.findings)
            };
            Ok(ControllerListVolumeHealthResponse {
                entries: listed.into_iter().map(entry).collect(),
                next_token: next.map(|id| id.to_string()).unwrap_or_default(),
            })
        })
        .await
    }
}
