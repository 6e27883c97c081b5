//! The calls of external-provisioner, external-resizer and kubelet, over the driver's socket.

use std::path::Path;
use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use super::volume::Volume;
use crate::cli::Failure;
use crate::cli::dial::dial;
use crate::csi::proto::controller_client::ControllerClient;
use crate::csi::proto::identity_client::IdentityClient;
use crate::csi::proto::node_client::NodeClient;
use crate::csi::proto::volume_capability::{AccessMode, access_mode::Mode};
use crate::csi::proto::volume_content_source::{SnapshotSource, Type as Source};
use crate::csi::proto::{
    self, CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest,
    ListVolumesRequest, NodeExpandVolumeRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, ProbeRequest, Topology, TopologyRequirement, VolumeCapability,
    VolumeContentSource, VolumeUsage,
};

/// No call of this demonstration takes longer on a machine that is well.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to a driver that is ready.
#[derive(Debug)]
pub(super) struct Client {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    topology: Topology,
}

/// The refusal of a call, as a message.
fn refused(status: &Status) -> Failure {
    format!("{:?}: {}", status.code(), status.message()).into()
}

/// How a volume is used: as ReadWriteOnce is in Kubernetes when the driver has SINGLE_NODE_MULTI_WRITER.
fn capability(volume: &Volume) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(volume.kind.access()),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
    }
}

fn text(path: &Path) -> String {
    // The session's directory is UTF-8: it was checked when it was made.
    path.to_string_lossy().into_owned()
}

impl Client {
    /// A connection to the driver at a socket; `None` while it does not answer or is not ready.
    pub(super) async fn connect(socket: &Path) -> Result<Option<Self>, Failure> {
        let Ok(channel) = dial(socket.to_owned(), Some(DEADLINE)).await else {
            return Ok(None);
        };
        let probe = IdentityClient::new(channel.clone()).probe(ProbeRequest {}).await;
        if probe.map_err(|s| refused(&s))?.into_inner().ready != Some(true) {
            return Ok(None);
        }
        let controller = ControllerClient::new(channel.clone());
        let node = NodeClient::new(channel);
        let info =
            node.clone().node_get_info(NodeGetInfoRequest {}).await.map_err(|s| refused(&s))?;
        let topology = info.into_inner().accessible_topology;
        Ok(Some(Self {
            controller,
            node,
            topology: topology.ok_or("NodeGetInfo: the topology is missing")?,
        }))
    }

    /// A new volume, asked for on this node; from a snapshot when one is named.
    pub(super) async fn create(
        &self,
        volume: &Volume,
        bytes: i64,
        snapshot: Option<&str>,
    ) -> Result<proto::Volume, Failure> {
        let term = vec![self.topology.clone()];
        let source = snapshot.map(|id| VolumeContentSource {
            r#type: Some(Source::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })),
        });
        let request = CreateVolumeRequest {
            name: volume.name(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability(volume)],
            parameters: volume.parameters(),
            volume_content_source: source.clone(),
            accessibility_requirements: Some(TopologyRequirement {
                requisite: term.clone(),
                preferred: term,
            }),
            ..CreateVolumeRequest::default()
        };
        let reply = self.controller.clone().create_volume(request).await;
        let created = reply.map_err(|s| refused(&s))?.into_inner().volume;
        let created = created.ok_or("the reply has no volume")?;
        if created.content_source != source {
            Err("the volume does not say what it was made of".into())
        } else if created.accessible_topology == [self.topology.clone()] {
            Ok(created)
        } else {
            Err("the volume is not on this node".into())
        }
    }

    /// A snapshot of the volume; its id.
    pub(super) async fn snapshot(&self, volume: &Volume) -> Result<String, Failure> {
        let request = CreateSnapshotRequest {
            name: format!("snapshot-of-{}", volume.name()),
            source_volume_id: volume.id.clone(),
            ..CreateSnapshotRequest::default()
        };
        let reply = self.controller.clone().create_snapshot(request).await;
        let taken = reply.map_err(|s| refused(&s))?.into_inner().snapshot;
        let ready = taken.filter(|snapshot| snapshot.ready_to_use);
        Ok(ready.ok_or("the snapshot is not ready")?.snapshot_id)
    }

    pub(super) async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.controller.clone().delete_snapshot(request).await?;
        Ok(())
    }

    pub(super) async fn delete(&self, volume: &Volume) -> Result<(), Status> {
        let request =
            DeleteVolumeRequest { volume_id: volume.id.clone(), ..DeleteVolumeRequest::default() };
        self.controller.clone().delete_volume(request).await?;
        Ok(())
    }

    /// The ids of all volumes that the driver has.
    pub(super) async fn list(&self) -> Result<Vec<String>, Failure> {
        let request = ListVolumesRequest::default();
        let reply = self.controller.clone().list_volumes(request).await;
        let entries = reply.map_err(|s| refused(&s))?.into_inner().entries;
        let ids = entries.into_iter().filter_map(|entry| entry.volume);
        Ok(ids.map(|volume| volume.volume_id).collect())
    }

    pub(super) async fn stage(&self, volume: &Volume) -> Result<(), Failure> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: text(&volume.staging()),
            volume_capability: Some(capability(volume)),
            ..NodeStageVolumeRequest::default()
        };
        let reply = self.node.clone().node_stage_volume(request).await;
        reply.map_err(|s| refused(&s))?;
        Ok(())
    }

    pub(super) async fn publish(
        &self,
        volume: &Volume,
        target: &Path,
        readonly: bool,
    ) -> Result<(), Failure> {
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: text(&volume.staging()),
            target_path: text(target),
            volume_capability: Some(capability(volume)),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        let reply = self.node.clone().node_publish_volume(request).await;
        reply.map_err(|s| refused(&s))?;
        Ok(())
    }

    pub(super) async fn unpublish(&self, volume: &Volume, target: &Path) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: text(target) };
        self.node.clone().node_unpublish_volume(request).await?;
        Ok(())
    }

    pub(super) async fn unstage(&self, volume: &Volume) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: text(&volume.staging()),
        };
        self.node.clone().node_unstage_volume(request).await?;
        Ok(())
    }

    pub(super) async fn stats(&self, volume: &Volume) -> Result<Vec<VolumeUsage>, Failure> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: text(&volume.target()),
            staging_target_path: text(&volume.staging()),
        };
        let reply = self.node.clone().node_get_volume_stats(request).await;
        Ok(reply.map_err(|s| refused(&s))?.into_inner().usage)
    }

    fn grown(volume: &Volume) -> CapacityRange {
        CapacityRange { required_bytes: volume.kind.sizes().1, limit_bytes: 0 }
    }

    pub(super) async fn controller_expand(
        &self,
        volume: &Volume,
    ) -> Result<ControllerExpandVolumeResponse, Failure> {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(Self::grown(volume)),
            volume_capability: Some(capability(volume)),
            ..ControllerExpandVolumeRequest::default()
        };
        let reply = self.controller.clone().controller_expand_volume(request).await;
        Ok(reply.map_err(|s| refused(&s))?.into_inner())
    }

    /// The size that the node reports after the growth.
    pub(super) async fn node_expand(&self, volume: &Volume) -> Result<i64, Failure> {
        let request = NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: text(&volume.target()),
            staging_target_path: text(&volume.staging()),
            capacity_range: Some(Self::grown(volume)),
            volume_capability: Some(capability(volume)),
            ..NodeExpandVolumeRequest::default()
        };
        let reply = self.node.clone().node_expand_volume(request).await;
        Ok(reply.map_err(|s| refused(&s))?.into_inner().capacity_bytes)
    }
}

/// Turns the answer of a teardown into this module's errors.
pub(super) fn done(answer: Result<(), Status>) -> Result<(), Failure> {
    answer.map_err(|status| refused(&status))
}
