//! The driver's process: started, killed, restarted; and calls that survive its death.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "starts the real binary and writes its configuration"
)]

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;

use crate::client::Client;
use crate::privileged::{Sandbox, poll};

/// A child of a fork has every open file until it execs, and a file that is open in a volume makes it busy. So nothing
/// is forked by one thread while another has such a file open.
static FORKS: RwLock<()> = RwLock::new(());

/// Keeps other threads from starting processes.
pub(crate) fn no_forks() -> RwLockReadGuard<'static, ()> {
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// A driver with one pool, `<sandbox>/pool`. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    sandbox: Sandbox,
    flags: &'static [&'static str],
    child: Arc<Mutex<Child>>,
    pub(crate) client: Client,
    /// How often it was found dead.
    pub(crate) deaths: usize,
    /// Calls that failed because of an armed errno, with their answers.
    pub(crate) injected: Vec<(&'static str, Status)>,
    /// An errno is armed.
    armed: bool,
    /// A dead driver's e2fsck or resize2fs may still be at work, which keeps its device busy: repeat as kubelet does.
    pub(crate) patient: bool,
}

impl Driver {
    /// Starts a driver and waits until it is ready.
    pub(crate) fn start(sandbox: &Sandbox) -> Self {
        Self::start_armed(sandbox, None)
    }

    /// The same with a fault point armed, as `NAME:abort`. One that dies while it starts is started again without.
    pub(crate) fn start_armed(sandbox: &Sandbox, fault: Option<&str>) -> Self {
        Self::start_as(sandbox, &[], fault)
    }

    /// A driver with more flags than others.
    pub(crate) fn start_with_flags(sandbox: &Sandbox, flags: &'static [&'static str]) -> Self {
        Self::start_as(sandbox, flags, None)
    }

    fn start_as(sandbox: &Sandbox, flags: &'static [&'static str], fault: Option<&str>) -> Self {
        sandbox.make_dir("pool");
        // No reserve: a disk that is rather full must not decide about a test.
        let pool = sandbox.path("pool");
        let config = format!("[[pool]]\nname = \"p\"\npath = {pool:?}\nreserve = \"0\"\n");
        std::fs::write(sandbox.path("orlop.toml"), config).unwrap();
        Self::begin(sandbox, flags, fault)
    }

    /// A driver with the configuration that is in `<sandbox>/orlop.toml`.
    pub(crate) fn start_configured(sandbox: &Sandbox, fault: Option<&str>) -> Self {
        Self::begin(sandbox, &[], fault)
    }

    fn begin(sandbox: &Sandbox, flags: &'static [&'static str], fault: Option<&str>) -> Self {
        sandbox.make_dir("kubelet");
        let child = Arc::new(Mutex::new(spawn(sandbox, flags, fault)));
        let client = Client::new(socket(sandbox));
        let mut driver = Self {
            sandbox: sandbox.clone(),
            flags,
            child,
            client,
            deaths: 0,
            injected: Vec::new(),
            armed: false,
            patient: false,
        };
        driver.armed = fault.is_some_and(|fault| !fault.ends_with(":abort"));
        driver.wait_until_ready();
        driver
    }

    fn wait_until_ready(&mut self) {
        let mut dead = false;
        poll("the driver is ready or dead", || {
            dead = self.is_dead();
            dead || self.client.is_ready()
        });
        if dead {
            self.deaths += 1;
            assert!(self.deaths < 10, "the driver does not start: {}", self.log());
            self.restart();
        }
    }

    /// Kills the driver as a crash would, if it still runs, and starts it without a fault.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.start_again(None);
    }

    /// Starts the driver again after [`Driver::kill`] or [`Driver::terminate`].
    pub(crate) fn start_again(&mut self, fault: Option<&str>) {
        self.armed = fault.is_some_and(|fault| !fault.ends_with(":abort"));
        *self.child.lock().unwrap() = spawn(&self.sandbox, self.flags, fault);
        self.client = Client::new(socket(&self.sandbox));
        self.wait_until_ready();
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.lock().unwrap().id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        poll("the driver stopped", || self.is_dead());
        self.child.lock().unwrap().wait().unwrap()
    }

    /// Where the Nth point to be passed is armed, as `N:abort`.
    pub(crate) fn plan(&self) -> PathBuf {
        plan(&self.sandbox)
    }

    /// The name of the point at which the plan struck.
    pub(crate) fn struck(&self) -> PathBuf {
        self.plan().with_extension("struck")
    }

    /// The process, for a thread that kills it at some moment.
    pub(crate) fn process(&self) -> Arc<Mutex<Child>> {
        Arc::clone(&self.child)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// What the driver printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.sandbox.path("driver.log")).unwrap_or_default()
    }

    /// Calls the driver; when it dies in the middle, starts it again without a fault and repeats the same call.
    pub(crate) fn survive<T>(
        &mut self,
        call: impl Fn(&Client) -> Result<T, Status>,
    ) -> Result<T, Status> {
        for _ in 0..10 {
            let result = call(&self.client);
            let Err(status) = result else { return result };
            if !is_hang_up(&status) {
                return Err(status);
            }
            poll("a driver that hung up has ended", || self.is_dead());
            self.deaths += 1;
            self.restart();
        }
        panic!("the driver dies again and again: {}", self.log());
    }

    /// A call that must succeed, if need be in a driver without the fault that is armed now.
    pub(crate) fn insist<T>(
        &mut self,
        step: &'static str,
        call: impl Fn(&Client) -> Result<T, Status>,
    ) -> T {
        let mut result = self.survive(&call);
        let planned = self.struck().exists();
        if let (Err(status), true) = (&result, self.armed || planned) {
            self.injected.push((step, status.clone()));
            // What was planned strikes once: the same process has to get on with it.
            if !planned {
                self.restart();
            }
            result = self.survive(&call);
        }
        if result.is_err() && self.patient && (self.deaths > 0 || planned) {
            println!("{step} is repeated: {:?}", result.as_ref().err());
            poll("a repeated call succeeds", || {
                result = self.survive(&call);
                result.is_ok()
            });
        }
        result.unwrap_or_else(|status| panic!("{step}: {status:?}"))
    }
}

/// The connection broke. A status that the driver sent has no source.
pub(crate) fn is_hang_up(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.lock() {
            let _ended = child.kill().and_then(|()| child.wait());
        }
        if std::thread::panicking() {
            println!("--- log of the driver ---\n{}", self.log());
        }
    }
}

pub(crate) fn socket(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("csi.sock")
}

fn plan(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("fault.plan")
}

fn log_file(sandbox: &Sandbox) -> File {
    let path = sandbox.path("driver.log");
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

fn spawn(sandbox: &Sandbox, flags: &[&str], fault: Option<&str>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command
        .args(["serve", "--node-id", "n1", "--init-pools", "--endpoint"])
        .arg(format!("unix://{}", socket(sandbox).display()))
        .args(["--root-dir".as_ref(), sandbox.path("root").as_os_str()])
        .args(["--config".as_ref(), sandbox.path("orlop.toml").as_os_str()])
        .args(["--kubelet-dir".as_ref(), sandbox.path("kubelet").as_os_str()])
        .args(flags)
        .env("ORLOP_LOG", "info")
        .env("ORLOP_FAULT_PLAN", plan(sandbox))
        .stdin(Stdio::null())
        .stdout(log_file(sandbox))
        .stderr(log_file(sandbox));
    match fault {
        Some(fault) => command.env("ORLOP_FAULT", fault),
        None => command.env_remove("ORLOP_FAULT"),
    };
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}
