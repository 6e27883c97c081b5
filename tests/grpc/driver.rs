//! A driver on a socket of its own, and the calls that the tests make.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::identity_client::IdentityClient;
use orlop::csi::proto::node_client::NodeClient;
use orlop::csi::proto::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode,
};
use orlop::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, GetCapacityRequest,
    GetCapacityResponse, ListVolumesRequest, ListVolumesResponse, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Volume, VolumeCapability, VolumeUsage,
};
use orlop::csi::{self, Endpoint, Features, HttpListener, ServerConfig};
use orlop::engine::Engine;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Status};

use super::common::{Machine, NODE};
use super::logs;

pub(crate) const GIB: i64 = 1 << 30;
pub(crate) const MIB: i64 = 1 << 20;

/// What is turned on without any flag.
pub(crate) const DEFAULT: Features =
    Features { controller_expand: true, legacy_volume_condition: false };

/// A kind of volume: its parameters, and whether it is a raw block device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) parameters: &'static [(&'static str, &'static str)],
    pub(crate) block: bool,
}

pub(crate) const HOSTPATH: Kind = Kind { parameters: &[], block: false };
pub(crate) const LOOP: Kind = Kind { parameters: &[("backend", "loop")], block: false };
pub(crate) const BLOCK: Kind = Kind { parameters: &[("backend", "loop")], block: true };
pub(crate) const KINDS: [Kind; 3] = [HOSTPATH, LOOP, BLOCK];

impl Kind {
    pub(crate) fn capability(self, mode: Mode) -> VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume::default())
        };
        VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    /// As ReadWriteOnce arrives from Kubernetes.
    pub(crate) fn shared(self) -> VolumeCapability {
        self.capability(Mode::SingleNodeMultiWriter)
    }

    /// A request that succeeds.
    pub(crate) fn create(self, name: &str) -> CreateVolumeRequest {
        CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(range(GIB, 0)),
            volume_capabilities: vec![self.shared()],
            parameters: self.class(),
            ..CreateVolumeRequest::default()
        }
    }

    /// Its parameters. A directory belongs to whoever runs the tests, because only root can give it away.
    fn class(self) -> HashMap<String, String> {
        let mut parameters = map(self.parameters);
        if parameters.is_empty() {
            parameters.insert("uid".to_owned(), nix::unistd::geteuid().to_string());
            parameters.insert("gid".to_owned(), nix::unistd::getegid().to_string());
        }
        parameters
    }
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) const fn range(required_bytes: i64, limit_bytes: i64) -> CapacityRange {
    CapacityRange { required_bytes, limit_bytes }
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The code of a refusal, which must say something and carry no details (CSI 1.13, "Error Scheme").
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, result: Result<T, Status>) -> Code {
    let status = result.expect_err(what);
    assert!(!status.message().is_empty(), "{what}: {:?} without a message", status.code());
    assert!(status.details().is_empty(), "{what}: details");
    status.code()
}

/// A running driver.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) machine: Machine,
    pub(crate) engine: Arc<Engine>,
    pub(crate) channel: Channel,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), csi::EndpointError>>,
}

async fn dial(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.unwrap()
}

impl Driver {
    /// A driver on a new machine with one pool.
    pub(crate) async fn start() -> Self {
        Self::start_on(Machine::new(), &["default"], true).await
    }

    /// A driver with one pool that it looks at as often as that.
    pub(crate) async fn start_with(machine: Machine, retry: Duration) -> Self {
        Self::start_as(machine, &["default"], DEFAULT, retry).await
    }

    pub(crate) async fn start_on(
        machine: Machine,
        pools: &[&str],
        controller_expand: bool,
    ) -> Self {
        Self::start_as(machine, pools, Features { controller_expand, ..DEFAULT }, csi::RETRY).await
    }

    pub(crate) async fn start_as(
        machine: Machine,
        pools: &[&str],
        features: Features,
        retry: Duration,
    ) -> Self {
        Self::start_at(machine, pools, features, retry, None).await
    }

    /// A driver with one pool that answers HTTP as well.
    pub(crate) async fn start_with_http(machine: Machine, http: HttpListener) -> Self {
        Self::start_at(machine, &["default"], DEFAULT, csi::RETRY, Some(http)).await
    }

    async fn start_at(
        machine: Machine,
        pools: &[&str],
        features: Features,
        retry: Duration,
        http: Option<HttpListener>,
    ) -> Self {
        logs::capture();
        let engine = machine.engine(pools);
        let socket = machine.path("csi.sock");
        let endpoint: Endpoint = text(&socket).parse().unwrap();
        let listener = endpoint.bind().unwrap();
        let listener = match http {
            Some(http) => listener.with_http(http),
            None => listener,
        };
        let config = ServerConfig {
            driver_name: "orlop.csi.local".to_owned(),
            node_id: NODE.to_owned(),
            features,
            retry,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let until = async move {
            // A driver that is dropped stops as well.
            let _asked_or_dropped = stopped.await;
        };
        let served = tokio::spawn(csi::serve(listener, config, Arc::clone(&engine), until));
        let channel = dial(&socket).await;
        Self { machine, engine, channel, stop, served }
    }

    /// Stops the driver when its jobs have ended; the machine stays.
    pub(crate) async fn stop(self) -> Machine {
        let Self { machine, engine, channel, stop, served } = self;
        drop(channel);
        stop.send(()).unwrap();
        served.await.unwrap().unwrap();
        engine.drain_trash();
        machine
    }

    /// Stops the driver, and starts another one on the same machine.
    pub(crate) async fn restart(self) -> Self {
        Self::start_on(self.stop().await, &["default"], true).await
    }

    pub(crate) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub(crate) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub(crate) fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub(crate) async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let reply = self.controller().create_volume(request).await?;
        Ok(reply.into_inner().volume.unwrap())
    }

    /// The id of a new volume of 1 GiB.
    pub(crate) async fn make(&self, kind: Kind, name: &str) -> String {
        self.create(kind.create(name)).await.unwrap().volume_id
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), Status> {
        let request =
            DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
        self.controller().delete_volume(request).await.map(drop)
    }

    pub(crate) async fn get(&self, id: &str) -> Result<Volume, Status> {
        let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
        let reply = self.controller().controller_get_volume(request).await?;
        Ok(reply.into_inner().volume.unwrap())
    }

    pub(crate) async fn list(&self, most: i32, token: &str) -> Result<ListVolumesResponse, Status> {
        let request = ListVolumesRequest { max_entries: most, starting_token: token.to_owned() };
        self.controller().list_volumes(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, Status> {
        self.controller().get_capacity(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn expand(
        &self,
        id: &str,
        range: CapacityRange,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(range),
            ..ControllerExpandVolumeRequest::default()
        };
        let reply = self.controller().controller_expand_volume(request).await?;
        Ok(reply.into_inner())
    }

    pub(crate) async fn stage(
        &self,
        id: &str,
        staging: &Path,
        capability: VolumeCapability,
    ) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(staging),
            volume_capability: Some(capability),
            ..NodeStageVolumeRequest::default()
        };
        self.node().node_stage_volume(request).await.map(drop)
    }

    pub(crate) async fn unstage(&self, id: &str, staging: &Path) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(staging),
        };
        self.node().node_unstage_volume(request).await.map(drop)
    }

    /// Publishes from `staging`.
    pub(crate) async fn publish(
        &self,
        id: &str,
        (staging, target): (&Path, &Path),
        capability: VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: text(staging),
            target_path: text(target),
            volume_capability: Some(capability),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        self.node().node_publish_volume(request).await.map(drop)
    }

    pub(crate) async fn unpublish(&self, id: &str, target: &Path) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: text(target) };
        self.node().node_unpublish_volume(request).await.map(drop)
    }

    pub(crate) async fn stats(&self, id: &str, path: &Path) -> Result<Vec<VolumeUsage>, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: text(path),
            ..NodeGetVolumeStatsRequest::default()
        };
        let reply = self.node().node_get_volume_stats(request).await?;
        Ok(reply.into_inner().usage)
    }

    pub(crate) async fn node_expand(
        &self,
        id: &str,
        path: &Path,
        range: CapacityRange,
    ) -> Result<i64, Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: text(path),
            capacity_range: Some(range),
            ..NodeExpandVolumeRequest::default()
        };
        let reply = self.node().node_expand_volume(request).await?;
        Ok(reply.into_inner().capacity_bytes)
    }

    /// The mount at a path cannot be written through; `None` when there is none.
    pub(crate) fn read_only(&self, path: &Path) -> Option<bool> {
        use orlop::host::Host as _;
        let table = self.machine.host.mounts().unwrap();
        table.top_at(path).map(orlop::host::MountEntry::is_read_only)
    }

    /// Nothing is mounted or attached, and no image ever had two loop devices.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        use orlop::host::Host as _;
        let host = &self.machine.host;
        assert_eq!(host.mount_points(), Vec::<std::path::PathBuf>::new());
        assert_eq!(host.loops().unwrap(), []);
        assert!(host.max_loops_per_image() <= 1);
    }
}
