//! The command line: flags, environment and configuration file become one checked configuration.
//!
//! Must not: do what the engine does. Commands that only read work while the daemon runs and while it is down.

mod complete;
mod config;
mod create;
mod dial;
mod doctor;
mod pool;
mod serve;
mod snapshot;
mod table;
mod try_run;
mod volume;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A CSI driver for the disks that a Kubernetes node already has.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the CSI services on a unix socket
    Serve(Box<serve::ServeArgs>),
    /// Make and list pools
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// List, show, import, delete and describe volumes, and give up what will not come back
    #[command(subcommand)]
    Volume(Box<volume::VolumeCommand>),
    /// List snapshots, and give up what will not come back
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Look whether this node is ready, and say what to do where it is not. Exit status 1: something failed
    Doctor(doctor::DoctorArgs),
    /// Show on this machine what the driver does, and leave nothing behind
    Try(try_run::TryArgs),
    /// Print what a shell needs to complete commands and flags
    Completions(complete::CompletionsArgs),
    /// Write the manual pages to a directory
    #[command(hide = true)]
    Man(complete::ManArgs),
}

/// What a command ends with when it fails; printed with its causes.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command line of this process.
///
/// Exit status: 0 success, 1 failure, 2 wrong usage.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Pool(command) => pool::run(&command),
        Command::Volume(command) => volume::run(&command),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => complete::completions(&args),
        Command::Man(args) => complete::man(&args),
        Command::Try(args) => try_run::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = crate::engine::chain(&*error);
            // Nobody is left to tell when standard error is closed.
            let _unheard = writeln!(std::io::stderr(), "orlop: {text}");
            ExitCode::FAILURE
        }
    }
}
