//! The state of a demonstration: its directory, its driver, its volumes, and how to be rid of them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tonic::Code;

use super::client::Client;
use super::driver::Driver;
use super::kind::Kind;
use super::leftovers::{self, Leftovers};
use super::limit;
use super::place::{Base, Place};
use super::report::{Report, milliseconds};
use super::step::{Step, Tools, grows_mounted};
use super::volume::{Hold, Volume};
use crate::cli::Failure;
use crate::engine::unmount_pool;
use crate::host::linux::LinuxHost;
use crate::host::{Host, Limits};

/// How long the removal of dead volumes, and the kernel's release of loop devices, may take in the background: btrfs frees
/// the space of subvolumes when it comes to it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a teardown by calls may take before it is done without the driver.
const TEARDOWN: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Lines of the driver's log that are shown after a failure.
const TAIL: usize = 20;

/// A way to look for leftovers.
type Look = fn(&Place, &dyn Host) -> Result<Leftovers, Failure>;

/// A demonstration.
#[derive(Debug)]
pub(super) struct Session {
    place: Place,
    base: Base,
    host: LinuxHost,
    driver: Option<Driver>,
    client: Option<Client>,
    volumes: Vec<Volume>,
    pub(super) report: Report,
}

impl Session {
    pub(super) fn new(kinds: &[Kind]) -> Result<Self, Failure> {
        let (place, host) = (Place::new()?, LinuxHost::new());
        let base = match place.fill(kinds, &host) {
            Ok(base) => base,
            Err(error) => {
                leftovers::remove(&place, &host)?;
                return Err(error);
            }
        };
        let volume = |kind: &Kind| Volume::new(*kind, &place.kubelet, &place.name);
        Ok(Self {
            volumes: kinds.iter().map(volume).collect(),
            place,
            base,
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
                let time = start.elapsed();
                self.client = Some(client);
                self.look_at_pool()?;
                return Ok(time);
            }
            driver.wait(start).await?;
        }
    }

    /// Checks that the pool is there, and looks how it holds directories.
    fn look_at_pool(&mut self) -> Result<(), Failure> {
        let is_managed = matches!(self.base, Base::Managed(..));
        if is_managed && !leftovers::has_pool(&self.place, &self.host)? {
            return Err("the driver has not mounted its managed pool; its log says why".into());
        }
        let directory = File::open(&self.place.pool).map_err(|e| format!("open the pool: {e}"))?;
        let hold = match self.host.limit_kind(directory.as_fd())? {
            Some(kind) if is_managed && kind.is_hard() => Hold::Required,
            Some(_) => Hold::Offered,
            None => Hold::None,
        };
        for volume in &mut self.volumes {
            volume.hold = hold;
        }
        Ok(())
    }

    /// Says what the pool is.
    pub(super) fn note_pool(&mut self) {
        let is_held = self.volumes.iter().any(|volume| volume.hold == Hold::Required);
        let place = self.place.dir.parent().unwrap_or(&self.place.dir).display();
        self.report.note(match &self.base {
            Base::Managed(_, size) => {
                let limits = if is_held {
                    "hostpath volumes have hard limits (quota: required)"
                } else {
                    "this kernel has no simple quotas (Linux 6.7), so no hard limit of hostpath is shown"
                };
                format!("pool: a managed one, btrfs in an image of {size} in {place}; {limits}")
            }
            Base::Directory(why) => format!(
                "pool: a directory in {place}, so no hard limit of hostpath is shown; a managed pool cannot be made: {why}"
            ),
        });
    }

    /// Says how much went into the volumes.
    pub(super) fn note_taken(&mut self) {
        let taken: Vec<_> = self.volumes.iter().filter_map(limit::taken).collect();
        if !taken.is_empty() {
            self.report.note(format!("written until no more was taken: {}", taken.join(", ")));
        }
    }

    /// Says what a restart of the machine took.
    pub(super) fn note_reboot(&mut self, ready: &str) {
        let pool = if matches!(self.base, Base::Managed(..)) { ", also the pool" } else { "" };
        self.report.note(format!(
            "killed, all unmounted and detached{pool}, started again: ready after {ready} ms"
        ));
    }

    /// Ends the driver as a crash would.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.client = None;
        let driver = self.driver.take();
        driver.ok_or("the driver is not running")?.kill()
    }

    /// Takes away all mounts and loop devices, as a restart of the machine does. The driver must be down.
    pub(super) async fn release(&self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            // Another program that looks at a loop device just now, or one that a killed driver ran, holds it for a moment.
            let outcome = leftovers::release(&self.place, &self.host);
            let left = Leftovers::held(&self.place, &self.host)?;
            if left.is_empty() {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let why = outcome.map_or_else(|error| format!(" ({error})"), |()| String::new());
                return Err(format!("cannot be unmounted or detached: {left}{why}").into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Each step in turn with every volume.
    pub(super) async fn all(&mut self, steps: &[Step]) -> Result<(), Failure> {
        for step in steps {
            self.report.begin(step.label());
            let tools =
                Tools { client: self.client.as_ref(), host: &self.host, pool: &self.place.pool };
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
        self.end_pool().await
    }

    /// Unmounts a managed pool, which a driver leaves to the next one.
    async fn end_pool(&mut self) -> Result<(), Failure> {
        let Base::Managed(config, _) = &self.base else { return Ok(()) };
        if !leftovers::has_pool(&self.place, &self.host)? {
            return Err("the pool did not stay mounted when the driver stopped".into());
        }
        let start = Instant::now();
        unmount_pool(&self.place.root, config, &self.host)?;
        let time = milliseconds(start.elapsed());
        let left = self.settle(Leftovers::held).await?;
        if !left.is_empty() {
            return Err(format!("left behind by the unmount of the pool: {left}").into());
        }
        self.report.note(format!(
            "the pool was mounted still; unmounted (orlop pool unmount) in {time} ms"
        ));
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
            tokio::time::sleep(PAUSE).await;
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
