//! `orlop pool`: make pools, and list them.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Failure;
use super::config::{ListArgs, check_name, check_path};
use super::table::{self, Output};
use crate::engine::offline::{self, PoolLine};
use crate::volume::ByteSize;

#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// Make a pool of an empty or absent directory
    Init(InitArgs),
    /// List the configured pools, also while the daemon is down
    List(ListArgs),
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
    }
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

fn list(args: &ListArgs) -> Result<(), Failure> {
    let size =
        |size: Option<ByteSize>| size.map_or_else(|| "-".to_owned(), |size| size.to_string());
    let pools = offline::pools(&args.pools.pools()?);
    if args.output == Output::Json {
        let pools = pools.iter().map(|pool| {
            json!({
                "name": pool.name,
                "path": pool.path,
                "uuid": pool.uuid.as_ref().map(ToString::to_string),
                "state": pool.state,
                "volumes": pool.volumes,
                "damaged": pool.damaged,
                "snapshots": pool.snapshots,
                "sharesBlocks": pool.shares_blocks,
                "promisedBytes": pool.promised.bytes(),
                "totalBytes": pool.total.map(ByteSize::bytes),
                "availableBytes": pool.available.map(ByteSize::bytes),
            })
        });
        return Ok(table::print_json(&pools.collect())?);
    }
    let rows: Vec<Vec<String>> = pools
        .iter()
        .map(|pool| {
            vec![
                pool.name.clone(),
                pool.path.display().to_string(),
                pool.state.clone(),
                pool.volumes.to_string(),
                pool.damaged.to_string(),
                copies(pool).to_owned(),
                pool.promised.to_string(),
                size(pool.available),
                size(pool.total),
            ]
        })
        .collect();
    let heading =
        ["NAME", "PATH", "STATE", "VOLUMES", "DAMAGED", "COPIES", "PROMISED", "AVAILABLE", "TOTAL"];
    Ok(table::print(&heading, &rows)?)
}
