//! `orlop try`: what the driver does, shown on this machine with real mounts and loop devices.
//!
//! It starts a driver of its own on a private socket with a managed pool in a temporary directory, plays
//! external-provisioner and kubelet over gRPC, checks every answer against the kernel, and takes everything away again,
//! also when a step fails or when it is interrupted.

mod client;
mod content;
mod copies;
mod driver;
mod kind;
mod leftovers;
mod limit;
mod place;
mod preflight;
mod report;
mod scenario;
mod session;
mod step;
mod volume;

use std::io::Write;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use kind::Kind;
use session::Session;

#[derive(Debug, Args)]
pub(super) struct TryArgs {
    /// Show only these kinds of volumes
    #[arg(long, value_name = "KIND", value_delimiter = ',', default_values_t = Kind::ALL)]
    only: Vec<Kind>,
}

pub(super) fn run(args: &TryArgs) -> Result<(), Failure> {
    let mut kinds = args.only.clone();
    kinds.sort_unstable();
    kinds.dedup();
    preflight::check(&kinds)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(&kinds))
}

async fn show(kinds: &[Kind]) -> Result<(), Failure> {
    // Before anything is made, so that no interruption can come in between.
    let mut interruptions = Interruptions::new()?;
    let mut session = Session::new(kinds)?;
    let outcome = tokio::select! {
        outcome = scenario::run(&mut session) => outcome,
        signal = interruptions.next() => Err(format!("interrupted by {signal}").into()),
    };
    let Err(mut failure) = outcome else {
        return session.finish();
    };
    if let Some(end) = session.end_of_driver() {
        failure = format!("{failure}: {end}").into();
    }
    // The log goes away with the directory; standard error may be closed.
    let _unheard = write!(std::io::stderr(), "{}", session.log_tail());
    match session.clean_up().await {
        Ok(()) => Err(format!("{failure}\nEverything was cleaned up.").into()),
        Err(left) => Err(format!("{failure}\nCleaning up failed as well: {left}").into()),
    }
}

/// The signals that end the demonstration early.
struct Interruptions {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interruptions {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
