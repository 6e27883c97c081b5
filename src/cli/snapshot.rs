//! `orlop snapshot`: list snapshots, and give up what will not come back.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Failure;
use super::config::{ListArgs, PoolArgs};
use super::table::{self, Output};
use crate::engine::offline::{self, CopyLine, SnapshotLine};
use crate::store::Kind;
use crate::volume::{GroupId, SnapshotId};

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// List the snapshots of the configured pools, also while the daemon is down
    List(ListArgs),
    /// Give up a snapshot or group whose pool will not come back, so that Kubernetes can delete it
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    #[command(flatten)]
    pools: PoolArgs,
    /// The id of the snapshot (s-…) or group (g-…)
    id: String,
}

pub(super) fn run(command: &SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::List(args) => list(args),
        SnapshotCommand::Forget(args) => forget(args),
    }
}

fn forget(args: &ForgetArgs) -> Result<(), Failure> {
    let (root, pools) = (&args.pools.root_dir, args.pools.pools()?);
    let id = match (args.id.parse::<SnapshotId>(), args.id.parse::<GroupId>()) {
        (Ok(id), _) => {
            offline::forget(root, &pools, &id, &id.pool)?;
            format!("snapshot {id}")
        }
        (_, Ok(id)) => {
            offline::forget(root, &pools, &id, &id.pool)?;
            format!("group {id}")
        }
        (Err(error), Err(_)) => return Err(error.into()),
    };
    writeln!(std::io::stdout(), "{id} is given up: its deletion now succeeds without its pool")?;
    Ok(())
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let pools = args.pools.pools()?;
    let (snapshots, away) = offline::snapshots(&pools);
    let copies = offline::copies(&pools, Kind::Snapshot);
    if args.output == Output::Json {
        let listed = snapshots.iter().map(json_of).chain(copies.iter().map(table::copy_json));
        table::print_json(&listed.collect())?;
    } else {
        let copy = |copy: &CopyLine| {
            let [key, pool, state] = table::copy_cells(copy);
            vec![key, String::new(), pool, String::new(), String::new(), state]
        };
        let rows: Vec<_> = snapshots.iter().map(row_of).chain(copies.iter().map(copy)).collect();
        table::print(&["ID", "NAME", "POOL", "SOURCE", "CHARGED", "STATE"], &rows)?;
    }
    if away.is_empty() {
        Ok(())
    } else {
        Err(format!("{}; its snapshots are not listed", away.join("; ")).into())
    }
}

fn json_of(line: &SnapshotLine) -> serde_json::Value {
    match &line.record {
        Ok(snapshot) => json!({
            "id": snapshot.id(line.tag.clone()).to_string(),
            "name": snapshot.name,
            "pool": line.pool,
            "state": "ready",
            "source": snapshot.source.volume_id(line.tag.clone()).to_string(),
            "group": snapshot.group.as_ref().map(|group| group.group_id(line.tag.clone()).to_string()),
            "sizeBytes": snapshot.size.bytes(),
            "chargedBytes": snapshot.charge.bytes(),
            "created": snapshot.created,
        }),
        Err(reason) => json!({
            "key": line.key.as_str(),
            "pool": line.pool,
            "state": "damaged",
            "reason": reason,
        }),
    }
}

fn row_of(line: &SnapshotLine) -> Vec<String> {
    match &line.record {
        Ok(snapshot) => vec![
            snapshot.id(line.tag.clone()).to_string(),
            snapshot.name.escape_default().to_string(),
            line.pool.clone(),
            snapshot.source.volume_id(line.tag.clone()).to_string(),
            snapshot.charge.to_string(),
            "ready".to_owned(),
        ],
        Err(reason) => vec![
            line.key.to_string(),
            String::new(),
            line.pool.clone(),
            String::new(),
            String::new(),
            reason.clone(),
        ],
    }
}
