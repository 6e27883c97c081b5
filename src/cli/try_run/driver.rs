//! A driver in a process of its own.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place::Place;
use crate::cli::Failure;

/// A driver that has nothing to do starts and stops within a moment; this is for machines that are very busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// The driver's command line, for one that works in a place.
fn command(place: &Place) -> Result<Command, Failure> {
    let log = OpenOptions::new().create(true).append(true).open(&place.log)?;
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
        .arg(format!("unix://{}", place.socket.display()))
        .arg("--config")
        .arg(&place.config)
        .arg("--root-dir")
        .arg(&place.root)
        .arg("--kubelet-dir")
        .arg(&place.kubelet)
        // Ctrl-C is for this process only: it needs the driver to clean up.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// A running driver. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Driver {
    child: Child,
}

impl Driver {
    pub(super) fn start(place: &Place) -> Result<Self, Failure> {
        let child = command(place)?.spawn();
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
