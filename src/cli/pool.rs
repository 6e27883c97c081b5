//! `orlop pool`: make pools, and list them.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Failure;
use super::config::{ListArgs, PoolArgs, check_name, check_path};
use super::table::{self, Output};
use crate::engine::offline::{self, PoolLine};
use crate::engine::{PoolConfig, check_pool, check_side_by_side, unmount_pool};
use crate::host::linux::LinuxHost;
use crate::volume::ByteSize;

#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// Make a pool of an empty or absent directory
    Init(InitArgs),
    /// List the configured pools, also while the daemon is down
    List(ListArgs),
    /// Look whether pools are as they should be, also while the daemon runs. Exit status 1: something was found
    Check(CheckArgs),
    /// Unmount a managed pool. Its driver must be stopped, and no volume of it in use
    Unmount(UnmountArgs),
    /// Give a pool that is a copy of another one an identity of its own. Its volumes get new ids
    NewUuid(NewUuidArgs),
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The name it is to have
    #[arg(long, default_value = "default")]
    name: String,
    /// The directory
    path: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The name of a pool in the configuration; without it, all of them
    name: Option<String>,
    /// Mend what cannot lose anything: missing blocks of images, discards, unfinished images
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    pools: PoolArgs,
}

#[derive(Debug, Args)]
pub(super) struct UnmountArgs {
    /// The name of the pool in the configuration
    name: String,
    #[command(flatten)]
    pools: PoolArgs,
}

#[derive(Debug, Args)]
pub(super) struct NewUuidArgs {
    /// The pool's directory. No daemon may have it open
    path: PathBuf,
}

pub(super) fn run(command: &PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::Init(args) => {
            check_name(&args.name)?;
            check_path(&args.path)?;
            let uuid = offline::init_pool(&args.path, &args.name)?;
            writeln!(
                std::io::stdout(),
                "pool {} ({uuid}) made in {}",
                args.name,
                args.path.display()
            )?;
            Ok(())
        }
        PoolCommand::NewUuid(args) => {
            let (old, new) = offline::new_uuid(&args.path)?;
            writeln!(std::io::stdout(), "pool {old} in {} is now {new}", args.path.display())?;
            Ok(())
        }
        PoolCommand::List(args) => list(args),
        PoolCommand::Check(args) => check(args),
        PoolCommand::Unmount(args) => {
            let pools = args.pools.pools()?;
            let pool = named(&pools, &args.name)?;
            let said = unmount_pool(&args.pools.root_dir, pool, &LinuxHost::new())?;
            writeln!(std::io::stdout(), "{said}")?;
            Ok(())
        }
    }
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let pools = args.pools.pools()?;
    let chosen = match &args.name {
        Some(name) => vec![named(&pools, name)?],
        None => pools.iter().collect(),
    };
    let host = LinuxHost::new();
    let mut found = 0;
    let mut out = std::io::stdout().lock();
    for pool in chosen {
        let report = check_pool(&args.pools.root_dir, pool, &host, args.repair)?;
        writeln!(out, "pool {} ({})", pool.name, pool.path.display())?;
        let lines =
            [("ok", &report.good), ("mended", &report.repaired), ("WRONG", &report.findings)];
        for (word, texts) in lines {
            for text in texts {
                writeln!(out, "  {word:6}  {text}")?;
            }
        }
        found += report.findings.len();
    }
    if args.name.is_none() {
        let wrong = check_side_by_side(&pools);
        for text in &wrong {
            writeln!(out, "all pools\n  WRONG   {text}")?;
        }
        found += wrong.len();
    }
    out.flush()?;
    if found == 0 { Ok(()) } else { Err(format!("{found} findings").into()) }
}

/// The pool of a name.
fn named<'a>(pools: &'a [PoolConfig], name: &str) -> Result<&'a PoolConfig, Failure> {
    pools.iter().find(|pool| pool.name == name).ok_or_else(|| {
        let names: Vec<_> = pools.iter().map(|pool| pool.name.as_str()).collect();
        format!("no pool {name:?} is configured; there are: {}", names.join(", ")).into()
    })
}

/// Which volumes are copied at one instant in a pool.
const fn copies(pool: &PoolLine) -> &'static str {
    match (pool.shares_blocks, pool.has_subvolumes) {
        (Some(true), true) => "instant",
        (Some(true), false) => "instant for loop",
        (Some(false), _) => "full",
        (None, _) => "-",
    }
}

/// A pool for programs.
fn as_json(pool: &PoolLine) -> serde_json::Value {
    json!({
        "name": pool.name,
        "path": pool.path,
        "uuid": pool.uuid.as_ref().map(ToString::to_string),
        "kind": pool.kind,
        "state": pool.state,
        "volumes": pool.volumes,
        "damaged": pool.damaged,
        "snapshots": pool.snapshots,
        "sharesBlocks": pool.shares_blocks,
        "promisedBytes": pool.promised.bytes(),
        "totalBytes": pool.total.map(ByteSize::bytes),
        "availableBytes": pool.available.map(ByteSize::bytes),
        "reserveBytes": pool.reserve.map(ByteSize::bytes),
        "roomBytes": pool.room.map(ByteSize::bytes),
    })
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let size =
        |size: Option<ByteSize>| size.map_or_else(|| "-".to_owned(), |size| size.to_string());
    let pools = offline::pools(&args.pools.pools()?);
    if args.output == Output::Json {
        let pools = pools.iter().map(as_json);
        return Ok(table::print_json(&pools.collect())?);
    }
    let row = |pool: &PoolLine| {
        vec![
            pool.name.clone(),
            pool.path.display().to_string(),
            pool.kind.clone(),
            pool.state.clone(),
            pool.volumes.to_string(),
            pool.damaged.to_string(),
            copies(pool).to_owned(),
            pool.promised.to_string(),
            size(pool.room),
            size(pool.reserve),
            size(pool.available),
            size(pool.total),
        ]
    };
    let rows: Vec<Vec<String>> = pools.iter().map(row).collect();
    let heading = [
        "NAME",
        "PATH",
        "KIND",
        "STATE",
        "VOLUMES",
        "DAMAGED",
        "COPIES",
        "PROMISED",
        "ROOM",
        "RESERVE",
        "AVAILABLE",
        "TOTAL",
    ];
    Ok(table::print(&heading, &rows)?)
}
