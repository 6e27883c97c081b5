//! A CSI client that blocks, over the driver's socket.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use orlop::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeHealthRequest,
    ControllerListVolumeHealthRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest,
    NodeExpandVolumeRequest, NodeGetStorageHealthRequest, NodeGetVolumeHealthRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, ProbeRequest, Volume, VolumeCapability,
    VolumeHealth, VolumeUsage,
    controller_client::ControllerClient,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A raw block device, in an access mode.
pub(crate) fn block(mode: Mode) -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), mode)
}

/// A mounted filesystem, in an access mode.
pub(crate) fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() };
    capability(AccessType::Mount(mount), mode)
}

fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(crate) fn range(bytes: u64) -> CapacityRange {
    CapacityRange { required_bytes: i64::try_from(bytes).unwrap(), limit_bytes: 0 }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn reasons(health: VolumeHealth) -> Vec<String> {
    health.health_statuses.into_iter().map(|entry| entry.reason).collect()
}

/// What CreateVolume is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Create {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) capability: VolumeCapability,
    pub(crate) parameters: Vec<(&'static str, &'static str)>,
}

impl Create {
    pub(crate) fn request(&self) -> CreateVolumeRequest {
        let parameters = self.parameters.iter();
        CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(range(self.bytes)),
            volume_capabilities: vec![self.capability.clone()],
            parameters: parameters.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..CreateVolumeRequest::default()
        }
    }
}

/// One connection to the driver.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) runtime: Runtime,
    pub(crate) channel: Channel,
}

impl Client {
    /// A client of the driver at a socket; it connects with the first call.
    pub(crate) fn new(socket: PathBuf) -> Self {
        // A thread of its own: a client answers the driver (that it is about to stop) also between calls.
        let builder = &mut tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let connect = tower::service_fn(move |_uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = {
            let _entered = runtime.enter();
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
        };
        Self { runtime, channel }
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub(crate) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub(crate) fn is_ready(&self) -> bool {
        let mut identity = IdentityClient::new(self.channel.clone());
        let probed = self.runtime.block_on(identity.probe(ProbeRequest {}));
        probed.is_ok_and(|reply| reply.into_inner().ready == Some(true))
    }

    pub(crate) fn create(&self, create: &Create) -> Result<Volume, Status> {
        self.create_as(create.request())
    }

    /// The same with more in the request.
    pub(crate) fn create_as(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let reply = self.runtime.block_on(self.controller().create_volume(request))?;
        Ok(reply.into_inner().volume.unwrap())
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.runtime.block_on(self.controller().delete_volume(request)).map(drop)
    }

    pub(crate) fn attach(
        &self,
        id: &str,
        capability: &VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: "n1".to_owned(),
            volume_capability: Some(capability.clone()),
            readonly,
            ..Default::default()
        };
        self.runtime.block_on(self.controller().controller_publish_volume(request)).map(drop)
    }

    pub(crate) fn detach(&self, id: &str) -> Result<(), Status> {
        let request =
            ControllerUnpublishVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.runtime.block_on(self.controller().controller_unpublish_volume(request)).map(drop)
    }

    /// The reasons why a volume is not well.
    pub(crate) fn health(&self, id: &str) -> Vec<String> {
        let request =
            ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let reply = self.runtime.block_on(self.controller().controller_get_volume_health(request));
        reasons(reply.unwrap().into_inner().volume_health.unwrap())
    }

    /// The same as the list of all volumes tells it; `None` when it is not in it.
    pub(crate) fn listed_health(&self, id: &str) -> Option<Vec<String>> {
        self.all_health().into_iter().find(|(other, _)| other == id).map(|(_, reasons)| reasons)
    }

    /// Every volume that is not well.
    pub(crate) fn all_health(&self) -> Vec<(String, Vec<String>)> {
        let request = ControllerListVolumeHealthRequest::default();
        let reply = self.runtime.block_on(self.controller().controller_list_volume_health(request));
        let entries = reply.unwrap().into_inner().entries.into_iter();
        entries.map(|entry| (entry.volume_id.clone(), reasons(entry))).collect()
    }

    /// The same as the node sees it at these paths.
    pub(crate) fn node_health(&self, id: &str, staging: &Path, target: &Path) -> Vec<String> {
        let request = NodeGetVolumeHealthRequest {
            volume_id: id.to_owned(),
            volume_publish_path: text(target),
            staging_target_path: text(staging),
        };
        let reply = self.runtime.block_on(self.node().node_get_volume_health(request));
        reasons(reply.unwrap().into_inner().volume_health.unwrap())
    }

    /// The reasons why the pools are not well.
    pub(crate) fn storage_health(&self) -> Vec<String> {
        let request = NodeGetStorageHealthRequest::default();
        let reply = self.runtime.block_on(self.node().node_get_storage_health(request));
        let told = reply.unwrap().into_inner().backend_health;
        told.into_iter().map(|entry| entry.reason).collect()
    }

    pub(crate) fn expand(&self, id: &str, bytes: u64) -> Result<(), Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(range(bytes)),
            ..Default::default()
        };
        self.runtime.block_on(self.controller().controller_expand_volume(request)).map(drop)
    }

    pub(crate) fn stage(
        &self,
        id: &str,
        staging: &Path,
        capability: &VolumeCapability,
    ) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(staging),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        self.runtime.block_on(self.node().node_stage_volume(request)).map(drop)
    }

    pub(crate) fn unstage(&self, id: &str, staging: &Path) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(staging),
        };
        self.runtime.block_on(self.node().node_unstage_volume(request)).map(drop)
    }

    pub(crate) fn publish(
        &self,
        id: &str,
        paths: (&Path, &Path),
        capability: &VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(paths.0),
            target_path: text(paths.1),
            volume_capability: Some(capability.clone()),
            readonly,
            ..Default::default()
        };
        self.runtime.block_on(self.node().node_publish_volume(request)).map(drop)
    }

    pub(crate) fn publish_inline(&self, request: &NodePublishVolumeRequest) -> Result<(), Status> {
        self.runtime.block_on(self.node().node_publish_volume(request.clone())).map(drop)
    }

    pub(crate) fn unpublish(&self, id: &str, target: &Path) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: text(target) };
        self.runtime.block_on(self.node().node_unpublish_volume(request)).map(drop)
    }

    pub(crate) fn node_expand(&self, id: &str, path: &Path, bytes: u64) -> Result<(), Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: text(path),
            capacity_range: Some(range(bytes)),
            ..Default::default()
        };
        self.runtime.block_on(self.node().node_expand_volume(request)).map(drop)
    }

    pub(crate) fn stats(&self, id: &str, path: &Path) -> Result<Vec<VolumeUsage>, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: text(path),
            ..Default::default()
        };
        let reply = self.runtime.block_on(self.node().node_get_volume_stats(request))?;
        Ok(reply.into_inner().usage)
    }
}
