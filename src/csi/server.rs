//! The socket, and the life of the server on it.
//!
//! The socket is private (mode 0600 from its first moment). A stop ends the listening, lets running jobs finish, and
//! touches no mount.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::controller::Controller;
use super::group::GroupController;
use super::http::{self, HttpListener, Told};
use super::identity::Identity;
use super::metadata::SnapshotMetadata;
use super::node::Node;
use super::operator::Operator;
use super::proto::{
    controller_server, group_controller_server, identity_server, node_server,
    operator::operator_server, snapshot_metadata_server,
};
use super::{Features, Jobs, sweep};
use crate::engine::Engine;

/// Time between two looks at a pool: one that is away, trash that could not be emptied, inline volumes without a pod.
pub const RETRY: Duration = Duration::from_secs(10);

/// After a stop, and after the last job: time for the last replies to reach their clients.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often, and how far apart, it is looked whether a socket is still listened at.
const LOOKS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);

/// Where the server listens: a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

/// Why a text is no endpoint, or why nobody can listen there.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// It is not a unix socket's address.
    #[error("{0:?} is not an endpoint; give unix:///path/to/csi.sock")]
    Syntax(String),
    /// Something that is not a socket lies there.
    #[error("{} exists and is not a socket; it is left as it is", .0.display())]
    NotASocket(PathBuf),
    /// Another process answers there.
    #[error("another process listens at {}; stop it first", .0.display())]
    InUse(PathBuf),
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody can listen at the address for metrics.
    #[error(
        "listen for metrics at {address:?}; give --metrics-address HOST:PORT with an address of this machine and a free port"
    )]
    Address {
        /// As it was given.
        address: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The server ended.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let path =
            text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        if path.starts_with('/') && !path.ends_with('/') {
            Ok(Self(PathBuf::from(path)))
        } else {
            Err(EndpointError::Syntax(text.to_owned()))
        }
    }
}

impl Endpoint {
    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Binds the socket; a stale one is removed.
    ///
    /// # Errors
    /// Something else is there, or a system call failed.
    pub fn bind(&self) -> Result<Listener, EndpointError> {
        let path = &self.0;
        let failed =
            |operation| move |source| EndpointError::Io { operation, path: path.clone(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed("create the directory of"))?;
        }
        self.remove_stale()?;
        // The mode must be right from the first moment. Nothing else makes files yet: this runs before the jobs.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = std::os::unix::net::UnixListener::bind(path);
        umask(before);
        let socket = bound.map_err(failed("listen at"))?;
        socket.set_nonblocking(true).map_err(failed("listen at"))?;
        let file = SocketFile { path: path.clone(), inode: inode(path) };
        Ok(Listener { socket, file, http: None })
    }

    fn remove_stale(&self) -> Result<(), EndpointError> {
        let path = &self.0;
        let failed = |source| EndpointError::Io {
            operation: "remove the stale socket",
            path: path.clone(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                Err(EndpointError::NotASocket(path.clone()))
            }
            Ok(_) if is_answered(path) => Err(EndpointError::InUse(path.clone())),
            Ok(_) => std::fs::remove_file(path).map_err(failed),
        }
    }
}

/// Somebody listens there, and goes on to. A program that a killed driver was just starting has its socket until it is
/// started, and must not keep the next driver from listening.
fn is_answered(path: &Path) -> bool {
    for _ in 0..LOOKS {
        if std::os::unix::net::UnixStream::connect(path).is_err() {
            return false;
        }
        std::thread::park_timeout(PAUSE);
    }
    true
}

/// A bound socket; its file is removed when the server ends.
#[derive(Debug)]
pub struct Listener {
    socket: std::os::unix::net::UnixListener,
    file: SocketFile,
    http: Option<HttpListener>,
}

impl Listener {
    /// Answers HTTP there as well: metrics and probes.
    #[must_use]
    pub fn with_http(self, http: HttpListener) -> Self {
        Self { http: Some(http), ..self }
    }
}

/// The socket's file, by its inode: by the time this server ends, its successor may listen at the same path.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl SocketFile {
    fn remove(&self) {
        if self.inode.is_none() || inode(&self.path) != self.inode {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The name of the CSI driver.
    pub driver_name: String,
    /// The name of this node.
    pub node_id: String,
    /// What is turned on.
    pub features: Features,
    /// Time between two looks at a pool; [`RETRY`] but for tests.
    pub retry: Duration,
}

/// Serves until `stop` ends, then lets running jobs finish.
///
/// # Errors
/// The transport failed.
pub async fn serve(
    listener: Listener,
    config: ServerConfig,
    engine: Arc<Engine>,
    stop: impl Future<Output = ()>,
) -> Result<(), EndpointError> {
    let Listener { socket, file, http } = listener;
    let failed =
        |source| EndpointError::Io { operation: "listen at", path: file.path.clone(), source };
    let incoming = UnixListenerStream::new(UnixListener::from_std(socket).map_err(failed)?);
    let jobs = Arc::new(Jobs::default());
    let mut watchers = watch_pools(&engine, &jobs, config.retry);
    let told = Told { engine: Arc::clone(&engine), jobs: Arc::clone(&jobs) };
    watchers.extend(http.map(|http| tokio::spawn(http::answer(http, told))));
    let ServerConfig { driver_name, node_id: name, features, .. } = config;
    let operator = Operator {
        engine: Arc::clone(&engine),
        jobs: Arc::clone(&jobs),
        driver_name: driver_name.clone(),
    };
    let identity = Identity { driver_name, engine: Arc::clone(&engine) };
    let controller = Controller { engine: Arc::clone(&engine), jobs: Arc::clone(&jobs), features };
    let group = GroupController { engine: Arc::clone(&engine), jobs: Arc::clone(&jobs) };
    let metadata = SnapshotMetadata { engine: Arc::clone(&engine), jobs: Arc::clone(&jobs) };
    let node = Node { engine, jobs: Arc::clone(&jobs), name, features };
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let stop = async move {
        stop.await;
        // Nobody may be listening any more; then nobody has to be told.
        let _told = stopping.send(true);
    };
    let serving = Server::builder()
        .add_service(identity_server::IdentityServer::new(identity))
        .add_service(controller_server::ControllerServer::new(controller))
        .add_service(node_server::NodeServer::new(node))
        .add_service(group_controller_server::GroupControllerServer::new(group))
        .add_service(snapshot_metadata_server::SnapshotMetadataServer::new(metadata))
        .add_service(operator_server::OperatorServer::new(operator))
        .serve_with_incoming_shutdown(incoming, stop);
    let served = tokio::select! {
        served = serving => served,
        // A client that keeps its connection and says nothing would hold up the end for ever.
        () = async {
            // An error means that the other side has ended, which is a stop as well.
            let _ended = stopped.wait_for(|stopping| *stopping).await.is_ok();
            jobs.idle().await;
            tokio::time::sleep(FAREWELL).await;
        } => Ok(()),
    };
    for watcher in watchers {
        watcher.abort();
    }
    tracing::info!("no new requests; waiting for running jobs");
    jobs.idle().await;
    file.remove();
    Ok(served?)
}

/// One task for each pool, and one for the node.
fn watch_pools(engine: &Arc<Engine>, jobs: &Arc<Jobs>, retry: Duration) -> Vec<JoinHandle<()>> {
    let watch = |name| tokio::spawn(watch_pool(Arc::clone(engine), Arc::clone(jobs), name, retry));
    let mut watchers: Vec<_> = engine.pool_names().into_iter().map(watch).collect();
    watchers.push(tokio::spawn(watch_devices(Arc::clone(engine), Arc::clone(jobs), retry)));
    watchers
}

/// Looks now and then for loop devices that nobody comes for. Their pools may be away.
async fn watch_devices(engine: Arc<Engine>, jobs: Arc<Jobs>, retry: Duration) {
    let mut tick = tokio::time::interval(retry);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = BTreeSet::new();
    loop {
        tick.tick().await;
        seen = sweep::loop_devices(&engine, &jobs, seen).await;
    }
}

/// Opens a pool now and looks at it again from time to time. One task each: a hung disk holds up only its own pool.
async fn watch_pool(engine: Arc<Engine>, jobs: Arc<Jobs>, name: String, retry: Duration) {
    let mut tick = tokio::time::interval(retry);
    // Two scans are never closer than that, also behind one that took long.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (opener, pool) = (Arc::clone(&engine), name.clone());
        if let Err(panic) = tokio::task::spawn_blocking(move || opener.retry_pool(&pool)).await {
            tracing::error!(%panic, "looking at a pool panicked; this is a bug of orlop");
        }
        sweep::inline_volumes(&engine, &jobs, &name).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for text in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().path(), Path::new("/csi/csi.sock"));
        }
        for text in ["", "tcp://1.2.3.4:5", "unix://relative", "csi.sock", "unix:///dir/"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_left() {
        let temporary = tempfile::tempdir().unwrap();
        let endpoint = Endpoint(temporary.path().join("made/csi.sock"));
        let first = endpoint.bind().unwrap();
        assert!(matches!(endpoint.bind(), Err(EndpointError::InUse(_))));
        drop(first);
        endpoint.bind().unwrap();
        let mode = std::fs::metadata(endpoint.path()).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
        let file = Endpoint(temporary.path().join("file"));
        std::fs::File::create(file.path()).unwrap();
        assert!(matches!(file.bind(), Err(EndpointError::NotASocket(_))));
        assert!(file.path().exists());
    }
}
