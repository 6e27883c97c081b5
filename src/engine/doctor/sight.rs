//! What there is to see of a node. Whatever cannot be looked at says why; nothing is left out.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Patient;
use super::pools::{self, PoolSight};
use crate::engine::managed::propagation;
use crate::engine::{EngineError, chain};
use crate::host::linux::LinuxHost;
use crate::host::linux::machine::Machine;
use crate::host::{DeviceNumber, Host, LoopStatus, MountTable};
use crate::store::StateDir;
use crate::volume::{PoolTag, PoolUuid, VolumeId};

/// Everything that is judged.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    pub(super) machine: Machine,
    pub(super) pools: Vec<PoolSight>,
    /// Loop devices with the label of a volume that no mount in sight shows: number and label.
    pub(super) idle_loops: Result<Vec<(u32, String)>, String>,
    pub(super) kubelet: Place,
    pub(super) root: Place,
    /// Why a managed pool's mount would not last, for each of those.
    pub(super) passing: Vec<(String, String)>,
    /// Volumes that are marked as frozen.
    pub(super) frozen: Result<Vec<VolumeId>, String>,
    pub(super) socket: Option<SocketSight>,
    pub(super) now: Timestamp,
}

/// A directory, and how what is mounted below it spreads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
    /// It is a mount of its own, as it is in a container.
    pub(super) is_mount: bool,
    pub(super) shared: bool,
}

/// The driver's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SocketSight {
    pub(super) path: PathBuf,
    /// Mode and owner; `None` when nothing is there.
    pub(super) file: Option<SocketFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SocketFile {
    pub(super) is_socket: bool,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) answers: bool,
}

/// Looks at everything.
pub(super) fn look(patient: &Patient, host: &LinuxHost) -> Sight {
    let table = host.mounts().ok();
    let place = |path: &Path| place(path, table.as_ref());
    let words = |error: &dyn std::error::Error| chain(error);
    let pools = pools::look(patient, host);
    let tags: BTreeSet<PoolTag> =
        pools.iter().flat_map(PoolSight::identities).map(PoolUuid::tag).collect();
    Sight {
        machine: host.machine(),
        idle_loops: idle_loops(host, &tags).map_err(|error| words(&error)),
        pools,
        kubelet: place(&patient.kubelet_dir),
        root: place(&patient.root_dir),
        passing: passing(patient, table.as_ref()),
        frozen: frozen(&patient.root_dir).map_err(|error| words(&error)),
        socket: patient.socket.as_deref().map(socket),
        now: Timestamp::now(),
    }
}

fn place(path: &Path, table: Option<&MountTable>) -> Place {
    let canonical = path.canonicalize();
    let shown = canonical.as_deref().unwrap_or(path);
    let own = table.and_then(|table| table.top_at(shown));
    let containing = table.and_then(|table| table.containing(shown));
    Place {
        path: path.to_owned(),
        exists: canonical.is_ok(),
        is_mount: own.is_some(),
        shared: own.or(containing).is_some_and(|mount| mount.shared),
    }
}

fn passing(patient: &Patient, table: Option<&MountTable>) -> Vec<(String, String)> {
    let managed = patient.pools.iter().filter(|pool| pool.create.is_some());
    let refusal = |pool: &crate::engine::PoolConfig| {
        let reason = propagation::refusal(table?, &patient.root_dir, &pool.path)?;
        Some((pool.name.clone(), reason))
    };
    managed.filter_map(refusal).collect()
}

/// Loop devices of volumes of these pools that nothing shows, neither as a filesystem nor as a device. Those of other pools
/// are another driver's.
fn idle_loops(
    host: &dyn Host,
    pools: &BTreeSet<PoolTag>,
) -> Result<Vec<(u32, String)>, EngineError> {
    let loops = host.loops()?;
    let (mut tables, _all) = host.mounts_in_sight()?;
    tables.push(host.mounts()?);
    let mut used: BTreeSet<u32> = BTreeSet::new();
    for table in &tables {
        used.extend(table.iter().filter_map(|entry| table.shown_loop(entry)));
    }
    // What a view lies on is used by it.
    let below: Vec<DeviceNumber> =
        loops.iter().filter_map(|status| status.backing_device).collect();
    used.extend(below.iter().filter_map(|device| device.loop_number()));
    let idle = |status: &LoopStatus| {
        let volume = status.label.parse::<VolumeId>();
        volume.is_ok_and(|id| pools.contains(&id.pool)) && !used.contains(&status.number)
    };
    Ok(loops.into_iter().filter(idle).map(|status| (status.number, status.label)).collect())
}

fn frozen(root_dir: &Path) -> Result<Vec<VolumeId>, EngineError> {
    match StateDir::find(root_dir)? {
        Some(state) => Ok(state.frozen()?),
        None => Ok(Vec::new()),
    }
}

fn socket(path: &Path) -> SocketSight {
    let file = std::fs::symlink_metadata(path).ok().map(|metadata| SocketFile {
        is_socket: metadata.file_type().is_socket(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        answers: UnixStream::connect(path).is_ok(),
    });
    SocketSight { path: path.to_owned(), file }
}
