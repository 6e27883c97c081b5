//! `orlop volume show`: everything about one volume, also while the daemon is down.

use clap::Args;
use serde_json::{Value, json};

use super::{json_of, state};
use crate::cli::Failure;
use crate::cli::config::ListArgs;
use crate::cli::dial::{driver_at, refusal};
use crate::cli::table::{self, Output};
use crate::csi::Endpoint;
use crate::csi::proto::ControllerGetVolumeHealthRequest;
use crate::csi::proto::controller_client::ControllerClient;
use crate::csi::proto::volume_health::VolumeHealthEntry;
use crate::engine::offline::{self, Place, VolumeDetail};
use crate::host::LoopStatus;
use crate::store::Volume;
use crate::volume::VolumeId;

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// The volume's id or name, or the key of one with a damaged record
    volume: String,
    #[command(flatten)]
    list: ListArgs,
    /// The socket of the running driver, to ask for the volume's health; `CSI_ENDPOINT` is read as well
    #[arg(long, value_name = "unix:///PATH", env = "ORLOP_ENDPOINT")]
    endpoint: Option<String>,
}

/// A line of the table.
type Row = (&'static str, String);

/// What the driver says is wrong; `None` when it was not asked.
type Health = Option<Vec<VolumeHealthEntry>>;

pub(super) fn run(args: &ShowArgs) -> Result<(), Failure> {
    let detail = offline::detail(&args.list.pools.pools()?, &args.volume)?;
    let endpoint = args.endpoint.clone().or_else(|| std::env::var("CSI_ENDPOINT").ok());
    let health: Health = match (endpoint, &detail.line.id) {
        (Some(endpoint), Some(id)) => Some(ask(&endpoint.parse()?, id)?),
        (Some(_), None) | (None, _) => None,
    };
    if args.list.output == Output::Json {
        return Ok(table::print_json(&as_json(&detail, &health))?);
    }
    let mut rows = match &detail.line.record {
        Ok(volume) => rows_of(&detail, volume),
        Err(reason) => {
            vec![("key", detail.line.key.to_string()), ("state", format!("damaged: {reason}"))]
        }
    };
    rows.extend(place_rows(&detail));
    rows.extend(health_rows(&health));
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(field, value)| vec![field.to_owned(), value]).collect();
    Ok(table::print(&["FIELD", "VALUE"], &rows)?)
}

fn ask(endpoint: &Endpoint, id: &VolumeId) -> Result<Vec<VolumeHealthEntry>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = driver_at(endpoint.path()).await?;
        let volume_id = id.to_string();
        let request = ControllerGetVolumeHealthRequest {
            volume_id,
            ..ControllerGetVolumeHealthRequest::default()
        };
        let answer = ControllerClient::new(channel).controller_get_volume_health(request).await;
        let health = answer.map_err(|status| refusal(&status))?.into_inner().volume_health;
        Ok(health.unwrap_or_default().health_statuses)
    })
}

fn rows_of(detail: &VolumeDetail, volume: &Volume) -> Vec<Row> {
    let line = &detail.line;
    let used = line.used.map_or_else(
        || "not known".to_owned(),
        |used| {
            let inodes =
                used.inodes.map_or_else(String::new, |inodes| format!(", {inodes} inodes"));
            format!("{}{inodes} ({})", used.bytes, used.basis.as_str())
        },
    );
    let plain = |text: &str| text.escape_default().to_string();
    let mut rows = vec![
        ("id", line.id.as_ref().map_or_else(String::new, ToString::to_string)),
        ("name", plain(&volume.name)),
        ("state", state(line, volume)),
        ("created", volume.created.clone()),
        ("backend", backend(volume)),
        ("size", volume.size.to_string()),
        ("promised", volume.charged().total().to_string()),
        ("used", used),
        ("onDelete", volume.on_delete.to_string()),
        ("snapshots", detail.snapshots.to_string()),
    ];
    let limit = volume.limit.map(|limit| ("limit", limit.to_string()));
    let source = volume.request.source.as_ref().map(|source| ("began with", source.to_string()));
    let import = volume.import.as_ref().map(|import| ("imported", plain(&import.source)));
    let claim = volume.claim.as_ref();
    let claim = claim.map(|claim| ("claim", plain(&format!("{}/{}", claim.namespace, claim.name))));
    rows.extend([limit, source, import, claim].into_iter().flatten());
    rows.extend(volume.attachments.iter().map(|attachment| ("attached", plain(&attachment.node))));
    let parameters = volume.request.parameters.iter().filter(|(name, _)| *name != "backend");
    rows.extend(parameters.map(|(name, value)| ("parameter", format!("{name}={}", plain(value)))));
    rows
}

/// Where its data is, and where it is used.
fn place_rows(detail: &VolumeDetail) -> Vec<Row> {
    let mut rows = vec![
        ("pool", format!("{} ({})", detail.line.pool, detail.pool_kind)),
        ("directory", detail.directory.display().to_string()),
    ];
    rows.extend(detail.loops.iter().map(|status| ("loop", loop_words(status))));
    rows.extend(detail.mounts.iter().map(|place| ("mounted", place_words(place))));
    if detail.mounts.is_empty() {
        let nowhere = if detail.saw_all {
            "nowhere"
        } else {
            "nowhere in sight; pods in other mount namespaces may have it"
        };
        rows.push(("mounted", nowhere.to_owned()));
    }
    rows
}

fn health_rows(health: &Health) -> Vec<Row> {
    let Some(entries) = health else {
        let how = "not asked for: give the --endpoint of the running driver";
        return vec![("health", how.to_owned())];
    };
    if entries.is_empty() {
        return vec![("health", "nothing is wrong".to_owned())];
    }
    entries.iter().map(|entry| ("health", format!("{}: {}", entry.reason, entry.message))).collect()
}

/// What the data is, in words.
fn backend(volume: &Volume) -> String {
    let resolved = volume.resolved;
    let what = match resolved.filesystem() {
        Some(filesystem) => format!(", {filesystem}, {}", resolved.allocation()),
        None if resolved.is_block() => format!(", raw block, {}", resolved.allocation()),
        None => String::new(),
    };
    format!("{}{what}", resolved.backend())
}

fn loop_words(status: &LoopStatus) -> String {
    let flags = [
        (status.read_only, ", read-only"),
        (status.direct_io, ", direct I/O"),
        (status.backing_device.is_some(), ", a view of the volume's own"),
    ];
    let flags: String = flags.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
    format!("/dev/loop{}{flags}", status.number)
}

fn place_words(place: &Place) -> String {
    let pod = place.pod.as_ref().map_or_else(String::new, |uid| format!(", pod {uid}"));
    let read_only = if place.read_only { ", read-only" } else { "" };
    format!("{}{pod}{read_only}", place.path.display())
}

fn place_json(place: &Place) -> Value {
    json!({ "path": place.path, "podUid": place.pod, "readOnly": place.read_only })
}

fn loop_json(status: &LoopStatus) -> Value {
    json!({
        "device": format!("/dev/loop{}", status.number),
        "readOnly": status.read_only,
        "directIO": status.direct_io,
        "view": status.backing_device.is_some(),
    })
}

fn record_json(volume: &Volume) -> Value {
    json!({
        "promisedBytes": volume.charged().total().bytes(),
        "filesystem": volume.resolved.filesystem().map(|filesystem| filesystem.to_string()),
        "block": volume.resolved.is_block(),
        "allocation": volume.resolved.allocation().to_string(),
        "limit": volume.limit.map(|limit| limit.to_string()),
        "parameters": volume.request.parameters,
        "attachedTo": volume.attachments.iter().map(|to| to.node.as_str()).collect::<Vec<_>>(),
    })
}

/// What `orlop volume list` has of it, and more.
fn as_json(detail: &VolumeDetail, health: &Health) -> Value {
    let entry =
        |entry: &VolumeHealthEntry| json!({ "reason": entry.reason, "message": entry.message });
    let more = json!({
        "directory": detail.directory,
        "poolKind": detail.pool_kind,
        "snapshots": detail.snapshots,
        "mounts": detail.mounts.iter().map(place_json).collect::<Vec<_>>(),
        "sawAllMounts": detail.saw_all,
        "loopDevices": detail.loops.iter().map(loop_json).collect::<Vec<_>>(),
        "health": health.as_ref().map(|entries| entries.iter().map(entry).collect::<Vec<_>>()),
    });
    let mut value = json_of(&detail.line);
    let record = detail.line.record.as_ref().ok().map(record_json);
    for object in [Some(more), record].into_iter().flatten() {
        if let (Value::Object(all), Value::Object(some)) = (&mut value, object) {
            all.extend(some);
        }
    }
    value
}
