//! One volume from its creation to its deletion, as external-provisioner and kubelet call.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use orlop::csi::proto::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, NodeGetVolumeStatsRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource,
};
use tonic::transport::Channel;

use crate::driver::dial;
use crate::privileged::Sandbox;
use crate::report::Samples;

/// What is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    backend: &'static str,
    /// Empty for a raw block volume.
    filesystem: &'static str,
    pub(crate) mebibytes: i64,
}

pub(crate) const HOSTPATH: Kind =
    Kind { name: "hostpath", backend: "hostpath", filesystem: "ext4", mebibytes: 1 };
pub(crate) const KINDS: [Kind; 4] = [
    HOSTPATH,
    Kind { name: "loop/ext4", backend: "loop", filesystem: "ext4", mebibytes: 64 },
    Kind { name: "loop/xfs", backend: "loop", filesystem: "xfs", mebibytes: 320 },
    BLOCK,
];
pub(crate) const BLOCK: Kind =
    Kind { name: "block", backend: "loop", filesystem: "", mebibytes: 64 };

impl Kind {
    pub(crate) fn of_size(self, mebibytes: i64) -> Self {
        Self { mebibytes, ..self }
    }

    fn capability(self) -> VolumeCapability {
        let access = if self.filesystem.is_empty() {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.filesystem.to_owned(),
                ..MountVolume::default()
            })
        };
        let mode = AccessMode { mode: Mode::SingleNodeMultiWriter.into() };
        VolumeCapability { access_mode: Some(mode), access_type: Some(access) }
    }
}

/// How long each call took, by its name.
pub(crate) type Calls = BTreeMap<&'static str, Samples>;

/// One caller with a connection of its own.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    place: PathBuf,
    pub(crate) calls: Calls,
}

/// Awaits a call and notes how long it took.
macro_rules! timed {
    ($self:ident, $name:literal, $call:expr) => {{
        let start = Instant::now();
        let reply = $call.await.unwrap_or_else(|status| panic!("{}: {status:?}", $name));
        $self.calls.entry($name).or_default().add(start.elapsed());
        reply.into_inner()
    }};
}

impl Caller {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        let channel = dial(&sandbox.path("csi.sock"));
        Self {
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            place: sandbox.make_dir("kubelet"),
            calls: Calls::new(),
        }
    }

    pub(crate) async fn create(
        &mut self,
        kind: Kind,
        name: &str,
        from: Option<VolumeContentSource>,
    ) -> String {
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: kind.mebibytes << 20,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![kind.capability()],
            parameters: [("backend".to_owned(), kind.backend.to_owned())].into(),
            volume_content_source: from,
            ..CreateVolumeRequest::default()
        };
        let reply = timed!(self, "CreateVolume", self.controller.create_volume(request));
        reply.volume.unwrap().volume_id
    }

    pub(crate) async fn delete(&mut self, volume_id: String) {
        let request = DeleteVolumeRequest { volume_id, ..Default::default() };
        timed!(self, "DeleteVolume", self.controller.delete_volume(request));
    }

    /// Stages and publishes; the target path.
    pub(crate) async fn up(&mut self, kind: Kind, id: &str) -> PathBuf {
        let staging = self.place.join(format!("s-{id}"));
        let target = self.place.join(format!("t-{id}"));
        std::fs::create_dir(&staging).unwrap();
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let request = NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(&staging),
            volume_capability: Some(kind.capability()),
            ..Default::default()
        };
        timed!(self, "NodeStageVolume", self.node.node_stage_volume(request));
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(&staging),
            target_path: text(&target),
            volume_capability: Some(kind.capability()),
            ..Default::default()
        };
        timed!(self, "NodePublishVolume", self.node.node_publish_volume(request));
        target
    }

    pub(crate) async fn stats(&mut self, id: &str) {
        let target = self.place.join(format!("t-{id}"));
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: target.to_str().unwrap().to_owned(),
            ..Default::default()
        };
        timed!(self, "NodeGetVolumeStats", self.node.node_get_volume_stats(request));
    }

    pub(crate) async fn down(&mut self, id: &str) {
        let [staging, target] = ["s", "t"]
            .map(|what| self.place.join(format!("{what}-{id}")).to_str().unwrap().to_owned());
        let request = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: target };
        timed!(self, "NodeUnpublishVolume", self.node.node_unpublish_volume(request));
        let request = NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: staging.clone(),
        };
        timed!(self, "NodeUnstageVolume", self.node.node_unstage_volume(request));
        std::fs::remove_dir(staging).unwrap();
    }

    pub(crate) async fn life(&mut self, kind: Kind, name: &str) {
        let id = self.create(kind, name, None).await;
        self.up(kind, &id).await;
        self.stats(&id).await;
        self.down(&id).await;
        self.delete(id).await;
    }
}

/// So many lives by so many callers at once, and how long each call took.
pub(crate) async fn lives(sandbox: &Sandbox, kind: Kind, count: usize, at_once: usize) -> Calls {
    let next = Arc::new(AtomicUsize::new(0));
    let workers = (0..at_once).map(|_| {
        let (next, mut caller) = (Arc::clone(&next), Caller::new(sandbox));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return caller.calls;
                }
                caller.life(kind, &format!("life-{}-{at_once}-{number}", kind.name)).await;
            }
        })
    });
    let mut all = Calls::new();
    for worker in workers.collect::<Vec<_>>() {
        for (name, samples) in worker.await.unwrap() {
            all.entry(name).or_default().extend(samples);
        }
    }
    all
}
