//! The process that is measured.

#![expect(
    clippy::disallowed_methods,
    reason = "starts the real binary and writes its configuration"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop::csi::proto::ProbeRequest;
use orlop::csi::proto::identity_client::IdentityClient;
use tonic::transport::{Channel, Endpoint};

use crate::privileged::Sandbox;

#[derive(Debug)]
pub(crate) struct Driver {
    child: Child,
    pub(crate) socket: PathBuf,
    /// From its start until it was ready.
    pub(crate) start: Duration,
}

/// A connection of its own.
pub(crate) fn dial(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

impl Driver {
    /// Starts a driver on the configuration that is in the sandbox, and waits until it is ready.
    pub(crate) async fn start(sandbox: &Sandbox, binary: &Path) -> Self {
        let socket = sandbox.path("csi.sock");
        let log = || File::options().create(true).append(true).open(sandbox.path("driver.log"));
        let begin = Instant::now();
        let child = Command::new(binary)
            .args(["serve", "--node-id", "n1", "--init-pools", "--endpoint"])
            .arg(format!("unix://{}", socket.display()))
            .args(["--root-dir".as_ref(), sandbox.path("root").as_os_str()])
            .args(["--config".as_ref(), sandbox.path("orlop.toml").as_os_str()])
            .args(["--kubelet-dir".as_ref(), sandbox.path("kubelet").as_os_str()])
            .stdin(Stdio::null())
            .stdout(log().unwrap())
            .stderr(log().unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", binary.display()));
        let mut driver = Self { child, socket, start: Duration::ZERO };
        while !driver.is_ready().await {
            let ended = driver.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the driver has ended: see {}",
                sandbox.path("driver.log").display()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        driver.start = begin.elapsed();
        driver
    }

    async fn is_ready(&self) -> bool {
        let mut identity = IdentityClient::new(dial(&self.socket));
        let probed = identity.probe(ProbeRequest {}).await;
        probed.is_ok_and(|reply| reply.into_inner().ready == Some(true))
    }

    /// A line of /proc/PID/status: memory in KiB, or a count.
    pub(crate) fn status(&self, name: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}
