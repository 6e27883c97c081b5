//! Health, as CSI 1.13 tells it, and the Node service's half of it.

use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Response, Status};

use super::node::{Node, key_and_lane};
use super::proto::node_get_storage_health_response::StorageBackendHealth;
use super::proto::volume_health::VolumeHealthEntry;
use super::proto::{
    NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest, NodeGetVolumeHealthResponse,
    StorageHealthErrorType, VolumeHealth, VolumeHealthErrorType,
};
use super::{reply, request, rpc};
use crate::engine::{Finding, StorageTrouble, VolumeTrouble};

pub(super) fn volume_health(volume_id: String, findings: Vec<Finding>) -> VolumeHealth {
    let entry = |finding: Finding| {
        let help = finding.condition.help();
        let status = match help.volume {
            VolumeTrouble::Degraded => VolumeHealthErrorType::Degraded,
            VolumeTrouble::Inaccessible => VolumeHealthErrorType::Inaccessible,
            VolumeTrouble::DataLoss => VolumeHealthErrorType::DataLoss,
        };
        VolumeHealthEntry {
            status: status.into(),
            reason: help.reason.to_owned(),
            message: reply::short(&finding.message, help.remedy),
        }
    };
    VolumeHealth { volume_id, health_statuses: findings.into_iter().map(entry).collect() }
}

/// `None` for what is not told of storage.
fn backend_health(finding: &Finding) -> Option<StorageBackendHealth> {
    let help = finding.condition.help();
    let status = match help.storage? {
        StorageTrouble::Degraded => StorageHealthErrorType::StorageDegraded,
        StorageTrouble::Unreachable => StorageHealthErrorType::StorageUnreachable,
    };
    Some(StorageBackendHealth {
        status: status.into(),
        reason: help.reason.to_owned(),
        message: reply::short(&finding.message, help.remedy),
        volume_capability: None,
    })
}

impl Node {
    pub(super) async fn volume_health(
        &self,
        request: NodeGetVolumeHealthRequest,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        rpc::logged("NodeGetVolumeHealth", &request.volume_id, async {
            let id = request::any_volume_id(&request.volume_id)?.to_owned();
            let given = [
                ("staging_target_path", &request.staging_target_path),
                ("volume_publish_path", &request.volume_publish_path),
            ];
            let given = given.into_iter().filter(|(_, path)| !path.is_empty());
            let paths: Vec<PathBuf> =
                given.map(|(field, path)| request::path(field, path)).collect::<Result<_, _>>()?;
            let (engine, (_, lane)) = (Arc::clone(&self.engine), key_and_lane(&id, &self.engine));
            let volume_id = id.clone();
            let findings = self
                .jobs
                .read(&lane, move || {
                    let paths: Vec<_> = paths.iter().map(PathBuf::as_path).collect();
                    engine.node_volume_health(&id, &paths)
                })
                .await?;
            let volume_health = Some(volume_health(volume_id, findings));
            Ok(NodeGetVolumeHealthResponse { volume_health })
        })
        .await
    }

    pub(super) async fn storage_health(
        &self,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        rpc::logged("NodeGetStorageHealth", "", async {
            let engine = Arc::clone(&self.engine);
            let findings =
                self.jobs.read("storage health", move || engine.storage_health()).await?;
            let backend_health = findings.iter().filter_map(backend_health).collect();
            Ok(NodeGetStorageHealthResponse { backend_health })
        })
        .await
    }
}
