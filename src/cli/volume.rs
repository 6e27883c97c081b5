//! `orlop volume`: list volumes, import, describe and delete them, and give up what will not come back.

mod delete;
mod import;
mod manifest;
mod show;

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Failure;
use super::config::{ListArgs, PoolArgs};
use super::table::{self, Output};
use crate::engine::offline::{self, CopyLine, VolumeLine};
use crate::store::{Import, Kind, Volume};
use crate::volume::VolumeId;

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// List the volumes of the configured pools, also while the daemon is down
    List(VolumeListArgs),
    /// Show everything about one volume, also while the daemon is down
    Show(show::ShowArgs),
    /// Make a volume of a directory or disk image, and print the PersistentVolume for it
    Import(import::ImportArgs),
    /// Print the PersistentVolume of a volume, for static provisioning
    Manifest(manifest::ManifestArgs),
    /// Delete a volume by its onDelete, through the running driver; refused while it is in use
    Delete(delete::DeleteArgs),
    /// Give up a volume whose pool will not come back, so that Kubernetes can delete it
    Forget(ForgetArgs),
}

#[derive(Debug, Args)]
pub(super) struct VolumeListArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Count the files of directories whose use no limit tells; reads all of them
    #[arg(long)]
    count: bool,
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    #[command(flatten)]
    pools: PoolArgs,
    /// The volume's id
    id: VolumeId,
}

pub(super) fn run(command: &VolumeCommand) -> Result<(), Failure> {
    match command {
        VolumeCommand::List(args) => list(args),
        VolumeCommand::Show(args) => show::run(args),
        VolumeCommand::Import(args) => import::run(args),
        VolumeCommand::Manifest(args) => manifest::run(args),
        VolumeCommand::Delete(args) => delete::run(args),
        VolumeCommand::Forget(args) => {
            offline::forget(&args.pools.root_dir, &args.pools.pools()?, &args.id, &args.id.pool)?;
            writeln!(
                std::io::stdout(),
                "volume {} is given up: its deletion now succeeds without its pool",
                args.id
            )?;
            Ok(())
        }
    }
}

fn list(args: &VolumeListArgs) -> Result<(), Failure> {
    let pools = args.list.pools.pools()?;
    let (volumes, away) = offline::volumes(&pools, args.count);
    print(args.list.output, &volumes, &offline::copies(&pools, Kind::Volume))?;
    if away.is_empty() {
        Ok(())
    } else {
        Err(format!("{}; its volumes are not listed", away.join("; ")).into())
    }
}

/// An inline volume says whose it is: Kubernetes has no object for it.
fn state(line: &VolumeLine, volume: &Volume) -> String {
    if let Some(Import { source, moving: Some(_) }) = &volume.import {
        return format!("half imported from {}; repeat that", source.escape_default());
    }
    if let Some(lost) = &line.lost {
        return lost.clone();
    }
    match &volume.pod {
        Some(pod) => {
            let pod = format!("{}/{}", pod.namespace(), pod.name());
            format!("ready, inline volume of pod {}", pod.escape_default())
        }
        None => "ready".to_owned(),
    }
}

/// The state in one word.
fn state_word(line: &VolumeLine, volume: &Volume) -> &'static str {
    if volume.is_moving() {
        "importing"
    } else if line.lost.is_some() {
        "damaged"
    } else {
        "ready"
    }
}

fn json_of(volume: &VolumeLine) -> serde_json::Value {
    match &volume.record {
        Ok(record) => json!({
            "id": volume.id.as_ref().map(ToString::to_string),
            "name": record.name,
            "pool": volume.pool,
            "state": state_word(volume, record),
            "reason": volume.lost,
            "importedFrom": record.import.as_ref().map(|import| import.source.as_str()),
            "backend": record.resolved.backend().as_str(),
            "sizeBytes": record.size.bytes(),
            "usedBytes": volume.used.map(|used| used.bytes.bytes()),
            "usedInodes": volume.used.and_then(|used| used.inodes),
            "usedBasis": volume.used.map(|used| used.basis.as_str()),
            "created": record.created,
            "onDelete": record.on_delete.as_str(),
            "source": record.request.source.as_ref().map(ToString::to_string),
            "claim": record.claim.as_ref().map(|claim| json!({
                "namespace": claim.namespace,
                "name": claim.name,
            })),
            "inline": record.pod.as_ref().map(|pod| json!({
                "podUid": pod.uid(),
                "podNamespace": pod.namespace(),
                "podName": pod.name(),
                "target": pod.target(),
            })),
        }),
        Err(reason) => json!({
            "key": volume.key.as_str(),
            "pool": volume.pool,
            "state": "damaged",
            "reason": reason,
        }),
    }
}

fn row_of(volume: &VolumeLine) -> Vec<String> {
    match &volume.record {
        Ok(record) => vec![
            volume.id.as_ref().map_or_else(String::new, ToString::to_string),
            record.name.escape_default().to_string(),
            volume.pool.clone(),
            record.resolved.backend().to_string(),
            record.size.to_string(),
            volume.used.map_or_else(|| "-".to_owned(), |used| used.bytes.to_string()),
            state(volume, record),
        ],
        Err(reason) => vec![
            volume.key.to_string(),
            String::new(),
            volume.pool.clone(),
            String::new(),
            String::new(),
            String::new(),
            reason.clone(),
        ],
    }
}

fn print(output: Output, volumes: &[VolumeLine], copies: &[CopyLine]) -> Result<(), Failure> {
    if output == Output::Json {
        let listed = volumes.iter().map(json_of).chain(copies.iter().map(table::copy_json));
        return Ok(table::print_json(&listed.collect())?);
    }
    let copy = |copy: &CopyLine| {
        let [key, pool, state] = table::copy_cells(copy);
        let empty = String::new;
        vec![key, empty(), pool, empty(), empty(), empty(), state]
    };
    let rows: Vec<_> = volumes.iter().map(row_of).chain(copies.iter().map(copy)).collect();
    Ok(table::print(&["ID", "NAME", "POOL", "BACKEND", "SIZE", "USED", "STATE"], &rows)?)
}
