//! The Node service: parse, run one job, reply. Teardown takes any id and needs no record.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::legacy::NodeGetVolumeStatsResponse;
use super::proto::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetStorageHealthRequest, NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest,
    NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeStageVolumeRequest, NodeStageVolumeResponse,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, Topology, VolumeUsage, node_server, volume_usage::Unit,
};
use super::{Claims, Features, Jobs, capability, legacy, request, rpc};
use crate::engine::{self, Engine};
use crate::volume::{Key, VolumeId};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) engine: Arc<Engine>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) name: String,
    pub(super) features: Features,
}

/// What a call locks whose id may not be ours, and its pool. An id that kubelet made is an inline volume's, or nobody's.
pub(super) fn key_and_lane(id: &str, engine: &Engine) -> (String, String) {
    if let Ok(id) = id.parse::<VolumeId>() {
        return (id.key.to_string(), id.pool.to_string());
    }
    let pool = engine.inline_pool(id);
    (Key::of_inline(id).to_string(), pool.map_or_else(String::new, |pool| pool.to_string()))
}

fn usage(unit: Unit, usage: engine::Usage) -> VolumeUsage {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    VolumeUsage {
        unit: unit.into(),
        total: number(usage.total),
        used: number(usage.used),
        available: number(usage.available),
    }
}

fn usages(volume: engine::VolumeUsage) -> Vec<VolumeUsage> {
    match volume {
        engine::VolumeUsage::Mounted { bytes, inodes, .. } => {
            let inodes = inodes.map(|inodes| usage(Unit::Inodes, inodes));
            [Some(usage(Unit::Bytes, bytes)), inodes].into_iter().flatten().collect()
        }
        engine::VolumeUsage::Device { total } => {
            let total = total.as_i64();
            vec![VolumeUsage { unit: Unit::Bytes.into(), total, used: 0, available: 0 }]
        }
    }
}

#[tonic::async_trait]
impl node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("NodeStageVolume", &request.volume_id, async {
            let stage = request::stage(&request)?;
            let engine = Arc::clone(&self.engine);
            let (key, lane) = (stage.id.key.to_string(), stage.id.pool.to_string());
            self.jobs.change(Claims::node(key), &lane, move || engine.stage(&stage)).await?;
            Ok(NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("NodeUnstageVolume", &request.volume_id, async {
            let id = request::any_volume_id(&request.volume_id)?.to_owned();
            let path = request::path("staging_target_path", &request.staging_target_path)?;
            let (engine, (key, lane)) = (Arc::clone(&self.engine), key_and_lane(&id, &self.engine));
            self.jobs.change(Claims::node(key), &lane, move || engine.unstage(&id, &path)).await?;
            Ok(NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("NodePublishVolume", &request.volume_id, async {
            let engine = Arc::clone(&self.engine);
            if let Some(inline) = request::inline(&request)? {
                let lane = format!("create in {}", inline.spec.parameters.pool);
                let key = inline.spec.key.to_string();
                self.jobs.change(&key, &lane, move || engine.publish_inline(&inline)).await?;
                return Ok(NodePublishVolumeResponse {});
            }
            let publish = request::publish(&request)?;
            let (key, lane) = (publish.id.key.to_string(), publish.id.pool.to_string());
            self.jobs.change(Claims::node(key), &lane, move || engine.publish(&publish)).await?;
            Ok(NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("NodeUnpublishVolume", &request.volume_id, async {
            let id = request::any_volume_id(&request.volume_id)?.to_owned();
            let path = request::path("target_path", &request.target_path)?;
            let (engine, (key, lane)) = (Arc::clone(&self.engine), key_and_lane(&id, &self.engine));
            let unpublish = move || match id.parse::<VolumeId>() {
                Ok(_) => engine.unpublish(&path),
                Err(_) => engine.unpublish_inline(&id, &path),
            };
            self.jobs.change(Claims::node(key), &lane, unpublish).await?;
            Ok(NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("NodeGetVolumeStats", &request.volume_id, async {
            let id = request::any_volume_id(&request.volume_id)?.to_owned();
            let path = request::path("volume_path", &request.volume_path)?;
            let (engine, (_, lane)) = (Arc::clone(&self.engine), key_and_lane(&id, &self.engine));
            let with_condition = self.features.legacy_volume_condition;
            let stats = move || {
                let usage = match id.parse::<VolumeId>() {
                    Ok(id) => engine.stats(&id, &path),
                    Err(_) => engine.stats_inline(&id, &path),
                };
                let usage = usage.map(usages);
                if with_condition {
                    legacy::reply(usage, engine.node_volume_health(&id, &[&path]))
                } else {
                    Ok(NodeGetVolumeStatsResponse { usage: usage?, volume_condition: None })
                }
            };
            self.jobs.read(&lane, stats).await
        })
        .await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        self.volume_health(request.into_inner()).await
    }

    async fn node_get_storage_health(
        &self,
        _request: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        self.storage_health().await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("NodeExpandVolume", &request.volume_id, async {
            request::any_volume_id(&request.volume_id)?;
            let path = request::path("volume_path", &request.volume_path)?;
            let range = request::capacity_range(request.capacity_range.as_ref())?;
            if request.volume_capability.is_some() {
                request::capability(request.volume_capability.as_ref())?;
            }
            let id = request::volume_id(&request.volume_id)?;
            let (engine, key, lane) =
                (Arc::clone(&self.engine), id.key.to_string(), id.pool.to_string());
            let size = self
                .jobs
                .change(Claims::node(key), &lane, move || engine.node_expand(&id, &path, range))
                .await?;
            Ok(NodeExpandVolumeResponse { capacity_bytes: size.as_i64() })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let reply = NodeGetCapabilitiesResponse { capabilities: capability::node(self.features) };
        rpc::logged("NodeGetCapabilities", "", async { Ok(reply) }).await
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let reply = NodeGetInfoResponse {
            node_id: self.name.clone(),
            max_volumes_per_node: i64::from(self.engine.volume_limit()),
            accessible_topology: Some(Topology {
                segments: self.engine.topology().clone().into_iter().collect(),
            }),
        };
        rpc::logged("NodeGetInfo", "", async { Ok(reply) }).await
    }
}
