//! Runs the program: for a moment, or as a daemon that ends with the test.

use std::fs::{self, OpenOptions};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};
use orlop::csi::proto::controller_client::ControllerClient;
use orlop::csi::proto::identity_client::IdentityClient;
use orlop::csi::proto::volume_capability::{
    AccessMode, AccessType, MountVolume, access_mode::Mode,
};
use orlop::csi::proto::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteVolumeRequest, ProbeRequest,
    VolumeCapability,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

const PATIENCE: Duration = Duration::from_secs(30);

/// The program, without the variables that would configure it.
pub(crate) fn orlop() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("ORLOP_") || text == "CSI_ENDPOINT" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    orlop().args(arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it and answers what it printed; it must succeed.
pub(crate) fn prints(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs it and answers its complaint; it must fail with that status.
pub(crate) fn fails(status: i32, arguments: &[&str]) -> String {
    let output = run(arguments);
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {complaint}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    complaint
}

pub(crate) fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Directories of one test, and the daemons on them.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn pool(&self) -> String {
        format!("default={}", self.text("pool"))
    }

    /// A configuration file with the one pool of this test. It keeps nothing back: a disk that is rather full must not
    /// decide about a test.
    fn config(&self) -> String {
        let path = self.text("orlop.toml");
        // A JSON string is a TOML string.
        let pool = Value::from(self.text("pool"));
        let text = format!("[[pool]]\nname = \"default\"\npath = {pool}\nreserve = \"0\"\n");
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a daemon and waits until it is ready.
    pub(crate) fn serve(&self, name: &str, more: &[&str]) -> Daemon {
        let daemon = self.start(name, more);
        daemon.wait_until_ready();
        daemon
    }

    /// Starts a daemon with a socket and a log of that name, on the one pool of this test.
    pub(crate) fn start(&self, name: &str, more: &[&str]) -> Daemon {
        let socket = self.path(&format!("{name}.sock"));
        let log = self.path(&format!("{name}.log"));
        let sink = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = orlop()
            .args(["serve", "--node-id", "n1", "--init-pools", "--endpoint"])
            .arg(format!("unix://{}", socket.display()))
            .args(["--config", &self.config(), "--root-dir", &self.text("root")])
            .args(["--kubelet-dir", &self.text("kubelet")])
            .args(more)
            .stdout(Stdio::null())
            .stderr(sink)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child, socket, log };
        daemon.wait_until_listening();
        daemon
    }
}

/// A running daemon; killed when the test ends.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
}

impl Daemon {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn wait_until_listening(&mut self) {
        let (child, socket, log) = (&mut self.child, &self.socket, &self.log);
        poll("the socket", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("it ended ({status}): {}", fs::read_to_string(log).unwrap());
            }
            BlockingStream::connect(socket).ok()
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(id), signal).unwrap();
    }

    pub(crate) fn ends(&mut self) -> ExitStatus {
        let child = &mut self.child;
        poll("the end of the daemon", || child.try_wait().unwrap())
    }

    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ends();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Calls it on a connection of its own.
    pub(crate) fn call<T>(&self, work: impl AsyncFnOnce(Channel) -> T) -> T {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(PATIENCE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            work(endpoint.connect_with_connector(connector).await.unwrap()).await
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.call(async |channel| {
            let probe = IdentityClient::new(channel).probe(ProbeRequest {}).await;
            probe.unwrap().into_inner().ready.unwrap()
        })
    }

    pub(crate) fn wait_until_ready(&self) {
        poll("readiness", || self.is_ready().then_some(()));
    }

    /// Makes a small directory volume and answers its id.
    pub(crate) fn create(&self, name: &str) -> String {
        self.create_with(name, &[])
    }

    /// The same with more parameters.
    pub(crate) fn create_with(&self, name: &str, more: &[(&str, &str)]) -> String {
        // Who is not root can give files to nobody else.
        let (uid, gid) = (geteuid().to_string(), getegid().to_string());
        let parameters = [("quota", "off"), ("uid", uid.as_str()), ("gid", gid.as_str())];
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
            volume_capabilities: vec![VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }],
            parameters: parameters
                .iter()
                .chain(more)
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..CreateVolumeRequest::default()
        };
        self.call(async |channel| {
            let created = ControllerClient::new(channel).create_volume(request).await;
            created.unwrap().into_inner().volume.unwrap().volume_id
        })
    }

    /// Takes a snapshot and answers its id.
    pub(crate) fn snapshot(&self, name: &str, volume: &str) -> String {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume.to_owned(),
            ..CreateSnapshotRequest::default()
        };
        self.call(async |channel| {
            let taken = ControllerClient::new(channel).create_snapshot(request).await;
            taken.unwrap().into_inner().snapshot.unwrap().snapshot_id
        })
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), tonic::Status> {
        let request =
            DeleteVolumeRequest { volume_id: id.to_owned(), ..DeleteVolumeRequest::default() };
        self.call(async |channel| ControllerClient::new(channel).delete_volume(request).await)?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

pub(crate) fn json(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn put(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The names in a directory, sorted.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
