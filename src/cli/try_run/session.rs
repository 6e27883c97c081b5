//! The state of a demonstration: its directory, its driver, its volumes, and how to be rid of them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use tonic::Code;

use super::client::Client;
use super::driver::{Driver, Place};
use super::kind::Kind;
use super::leftovers::{self, Leftovers};
use super::report::{Report, milliseconds};
use super::step::{Step, Tools, grows_mounted};
use super::volume::Volume;
use crate::cli::Failure;
use crate::host::Host;
use crate::host::linux::LinuxHost;

/// How long the removal of dead volumes, and the kernel's release of loop devices, may take in the background.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a teardown by calls may take before it is done without the driver.
const TEARDOWN: Duration = Duration::from_secs(30);
/// Lines of the driver's log that are shown after a failure.
const TAIL: usize = 20;

/// A way to look for leftovers.
type Look = fn(&Place, &dyn Host) -> Result<Leftovers, Failure>;

/// A demonstration.
#[derive(Debug)]
pub(super) struct Session {
    place: Place,
    host: LinuxHost,
    driver: Option<Driver>,
    client: Option<Client>,
    volumes: Vec<Volume>,
    pub(super) report: Report,
}

impl Session {
    pub(super) fn new(kinds: &[Kind]) -> Result<Self, Failure> {
        let (place, host) = (Place::new()?, LinuxHost::new());
        if let Err(error) = place.fill() {
            leftovers::remove(&place, &host)?;
            return Err(error);
        }
        let volume = |kind: &Kind| Volume::new(*kind, &place.kubelet, &place.name);
        Ok(Self {
            volumes: kinds.iter().map(volume).collect(),
            place,
            host,
            driver: None,
            client: None,
            report: Report::new(kinds),
        })
    }

    /// Starts the driver; answers how long it took to be ready.
    pub(super) async fn start(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        let driver = self.driver.insert(Driver::start(&self.place)?);
        loop {
            if let Some(client) = Client::connect(&self.place.socket).await? {
                self.client = Some(client);
                return Ok(start.elapsed());
            }
            driver.wait(start).await?;
        }
    }

    /// Ends the driver as a crash would.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.client = None;
        let driver = self.driver.take();
        driver.ok_or("the driver is not running")?.kill()
    }

    /// Takes away all mounts and loop devices, as a restart of the machine does. The driver must be down.
    pub(super) async fn release(&self) -> Result<(), Failure> {
        leftovers::release(&self.place, &self.host)?;
        // Another program that looks at a loop device just now holds it for a moment.
        let left = self.settle(Leftovers::held).await?;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("cannot be unmounted or detached: {left}").into())
        }
    }

    /// Each step in turn with every volume.
    pub(super) async fn all(&mut self, steps: &[Step]) -> Result<(), Failure> {
        for step in steps {
            self.report.begin(step.label());
            let tools = Tools { client: self.client.as_ref(), host: &self.host };
            for volume in &mut self.volumes {
                let kind = volume.kind;
                let outcome = step.perform(tools, volume).await;
                let time = outcome
                    .map_err(|error| format!("{}: {}: {error}", kind.heading(), step.label()))?;
                if let Some(time) = time {
                    self.report.add(kind, time);
                }
            }
        }
        Ok(())
    }

    /// Says which volumes could not grow while a pod used them.
    pub(super) fn note_limits(&mut self) {
        for kind in self.volumes.iter().map(|volume| volume.kind) {
            if !grows_mounted(&self.host, kind) {
                let heading = kind.heading();
                self.report.note(format!(
                    "{heading} was unmounted to grow: this process lacks CAP_SYS_RESOURCE"
                ));
            }
        }
    }

    /// Waits until nothing of any volume is left, then stops the driver.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        let left = self.settle(Leftovers::find).await?;
        if !left.is_empty() {
            return Err(format!("left behind: {left}").into());
        }
        self.client = None;
        let mut driver = self.driver.take().ok_or("the driver is not running")?;
        let start = Instant::now();
        driver.stop().await?;
        let time = milliseconds(start.elapsed());
        self.report.note(format!("SIGTERM: stopped after {time} ms, exit code 0"));
        if self.place.socket.exists() {
            return Err("the driver has left its socket behind".into());
        }
        Ok(())
    }

    /// Looks until nothing is left or patience ends; answers what is left.
    async fn settle(&self, look: Look) -> Result<Leftovers, Failure> {
        let start = Instant::now();
        loop {
            let left = look(&self.place, &self.host)?;
            if left.is_empty() || start.elapsed() > PATIENCE {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How the driver ended, when it has ended without being told to.
    pub(super) fn end_of_driver(&mut self) -> Option<String> {
        let status = self.driver.as_mut()?.ended().ok()??;
        Some(format!("the driver has ended by itself ({status})"))
    }

    /// Removes the directory and prints what was done.
    pub(super) fn finish(self) -> Result<(), Failure> {
        leftovers::remove(&self.place, &self.host)?;
        self.report.print()?;
        let mut out = std::io::stdout().lock();
        writeln!(out)?;
        for note in self.report.notes() {
            writeln!(out, "{note}")?;
        }
        writeln!(out, "nothing left behind: no mounts, no loop devices, no files")?;
        Ok(out.flush()?)
    }

    /// The last lines of the driver's log.
    pub(super) fn log_tail(&self) -> String {
        let Ok(log) = std::fs::read_to_string(&self.place.log) else {
            return String::new();
        };
        let skip = log.lines().count().saturating_sub(TAIL);
        let mut tail = "the last lines of the driver's log:\n".to_owned();
        for line in log.lines().skip(skip) {
            // Writing to a string does not fail.
            let _written = writeln!(tail, "  {line}");
        }
        tail
    }

    /// Takes everything away, with the driver's help as far as it goes.
    pub(super) async fn clean_up(mut self) -> Result<(), Failure> {
        if let Some(client) = &self.client {
            // What this does not do is done below, without the driver.
            let _rest = tokio::time::timeout(TEARDOWN, tear_down(client, &self.volumes)).await;
        }
        self.client = None;
        if let Some(mut driver) = self.driver.take() {
            // One that does not stop is killed when it is dropped.
            let _stopped = driver.stop().await;
        }
        self.release().await?;
        leftovers::remove(&self.place, &self.host)
    }
}

/// Takes the volumes away by calls, as kubelet and external-provisioner would; a failure does not stop it.
async fn tear_down(client: &Client, volumes: &[Volume]) {
    let copies = volumes.iter().filter_map(|volume| volume.copy.as_deref());
    for volume in copies.chain(volumes).filter(|volume| !volume.id.is_empty()) {
        for target in [volume.reader(), volume.target()] {
            again(async || client.unpublish(volume, &target).await).await;
        }
        again(async || client.unstage(volume).await).await;
        again(async || client.delete(volume).await).await;
    }
    for volume in volumes.iter().filter(|volume| !volume.snapshot.is_empty()) {
        again(async || client.delete_snapshot(&volume.snapshot).await).await;
    }
}

/// Repeats a call while an interrupted one still runs.
async fn again(call: impl AsyncFn() -> Result<(), tonic::Status>) {
    for _ in 0..50 {
        match call().await {
            Err(status) if status.code() == Code::Aborted => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(()) | Err(_) => return,
        }
    }
}
