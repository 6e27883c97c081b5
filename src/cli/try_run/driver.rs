//! A driver in a process of its own, and the directory that it and the demonstration work in.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::Failure;

/// A driver that has nothing to do starts and stops within a moment; this is for machines that are very busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// The address of a unix socket has 108 bytes, the last one NUL (unix(7)).
const SOCKET_LIMIT: usize = 107;

/// The paths below the temporary directory.
#[derive(Debug)]
pub(super) struct Place {
    /// Unlike any other's.
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) pool: PathBuf,
    pub(super) kubelet: PathBuf,
    pub(super) log: PathBuf,
    root: PathBuf,
    config: PathBuf,
}

impl Place {
    /// Makes the temporary directory.
    pub(super) fn new() -> Result<Self, Failure> {
        // As the mount table shows it.
        let parent = std::env::temp_dir();
        let failed =
            |error| format!("the directory for temporary files {}: {error}", parent.display());
        let parent = parent.canonicalize().map_err(failed)?;
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).map_err(|e| format!("read random numbers: {e}"))?;
        let name = format!("orlop-try-{:016x}", u64::from_ne_bytes(bits));
        let dir = parent.join(&name);
        let socket = dir.join("csi.sock");
        if dir.to_str().is_none() || socket.as_os_str().len() > SOCKET_LIMIT {
            let parent = parent.display();
            return Err(format!("the path {parent} is too long for a socket, or not UTF-8; set TMPDIR to another directory").into());
        }
        let make = |dir: &Path| {
            let made = DirBuilder::new().mode(0o700).create(dir);
            made.map_err(|e| format!("make the directory {}: {e}", dir.display()))
        };
        make(&dir)?;
        Ok(Self {
            name,
            socket,
            pool: dir.join("pool"),
            kubelet: dir.join("kubelet"),
            log: dir.join("driver.log"),
            root: dir.join("root"),
            config: dir.join("config.toml"),
            dir,
        })
    }

    /// Makes what the driver expects to be there.
    pub(super) fn fill(&self) -> Result<(), Failure> {
        DirBuilder::new().mode(0o700).create(&self.kubelet)?;
        // A JSON string is a TOML string. Without a reserve this runs on a machine that is nearly full.
        let pool = serde_json::to_string(&self.pool)?;
        let mut config = File::create_new(&self.config)?;
        writeln!(config, "[[pool]]\nname = \"try\"\npath = {pool}\nreserve = \"0\"")?;
        Ok(())
    }

    fn command(&self) -> Result<Command, Failure> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the driver itself is started, with fixed arguments; host::linux::command is for the programs that a driver runs"
        )]
        let mut command = Command::new(std::env::current_exe()?);
        // Variables that are meant for another driver would change this one.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CSI_") || (text.starts_with("ORLOP_") && text != "ORLOP_LOG") {
                command.env_remove(name);
            }
        }
        command
            .arg("serve")
            .args(["--node-id", "try", "--init-pools"])
            .arg("--endpoint")
            .arg(format!("unix://{}", self.socket.display()))
            .arg("--config")
            .arg(&self.config)
            .arg("--root-dir")
            .arg(&self.root)
            .arg("--kubelet-dir")
            .arg(&self.kubelet)
            // Ctrl-C is for this process only: it needs the driver to clean up.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

/// A running driver. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Driver {
    child: Child,
}

impl Driver {
    pub(super) fn start(place: &Place) -> Result<Self, Failure> {
        let child = place.command()?.spawn();
        let child = child.map_err(|e| format!("start the driver: {e}"))?;
        Ok(Self { child })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait()?)
    }

    /// Waits a moment for a condition that is not there yet.
    ///
    /// # Errors
    /// It has taken too long, or the driver has ended.
    pub(super) async fn wait(&mut self, since: Instant) -> Result<(), Failure> {
        if let Some(status) = self.ended()? {
            return Err(format!("the driver has ended by itself ({status})").into());
        }
        if since.elapsed() > PATIENCE {
            return Err(format!("the driver is not ready after {} s", PATIENCE.as_secs()).into());
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// SIGKILL: nothing of it runs on.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; it must end with exit code 0.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        if self.ended()?.is_none() {
            kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(format!("the driver did not stop cleanly ({status})").into());
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(format!("the driver does not stop within {} s of SIGTERM", PATIENCE.as_secs()).into())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // One that has ended is no error; nothing more can be done about the others.
        let _done = self.kill();
    }
}
