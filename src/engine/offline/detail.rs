//! Everything about one volume, for `orlop volume show`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{VolumeLine, volumes};
use crate::engine::{EngineError, PoolConfig, create_word};
use crate::host::linux::LinuxHost;
use crate::host::{Host, LoopStatus, MountEntry, MountTable};
use crate::store::{DATA, Kind, PoolView, Resolved, ViewedSnapshot};
use crate::volume::{Key, VolumeId};

/// A volume, and what the kernel shows of it.
#[derive(Debug)]
pub struct VolumeDetail {
    /// What a listing shows.
    pub line: VolumeLine,
    /// The directory of the volume, with its record and its data.
    pub directory: PathBuf,
    /// What its pool is.
    pub pool_kind: String,
    /// How many snapshots of it there are.
    pub snapshots: usize,
    /// Where it is mounted.
    pub mounts: Vec<Place>,
    /// All mounts of the node were seen; otherwise pods in other mount namespaces may have it as well.
    pub saw_all: bool,
    /// Its loop devices, views on them included.
    pub loops: Vec<LoopStatus>,
}

/// A mount of a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Where.
    pub path: PathBuf,
    /// The UID of the pod that it is for, when it is in a directory that kubelet makes for one.
    pub pod: Option<String>,
    /// It cannot be written through.
    pub read_only: bool,
}

/// The volume of an id, or of a name, or with a damaged record that of a key.
///
/// # Errors
/// There is none, there are several, or the kernel does not show its mounts or loop devices.
pub fn detail(configured: &[PoolConfig], wanted: &str) -> Result<VolumeDetail, EngineError> {
    let (lines, away) = volumes(configured, false);
    let is_it = |line: &VolumeLine| {
        line.id.as_ref().is_some_and(|id| id.to_string() == wanted)
            || line.record.as_ref().is_ok_and(|volume| volume.name == wanted)
            || line.key.as_str() == wanted
    };
    let mut found: Vec<VolumeLine> = lines.into_iter().filter(is_it).collect();
    match (found.pop(), found.len()) {
        (Some(line), 0) => seen(configured, line),
        (Some(_), more) => Err(EngineError::Conflict(format!(
            "{} volumes have the name {wanted:?}; give an id (orlop volume list)",
            more + 1
        ))),
        (None, _) if away.is_empty() => Err(EngineError::NotFound(format!(
            "no volume has the id or name {wanted:?}; orlop volume list has all"
        ))),
        (None, _) => Err(EngineError::Away(format!(
            "no volume that can be seen has the id or name {wanted:?}, and {}",
            away.join("; ")
        ))),
    }
}

/// Adds what the kernel shows.
fn seen(configured: &[PoolConfig], line: VolumeLine) -> Result<VolumeDetail, EngineError> {
    let host = LinuxHost::new();
    let config = configured.iter().find(|config| config.name == line.pool);
    let (pool, pool_kind) = config.map_or_else(Default::default, |config| {
        let kind = config.create.as_ref().map_or_else(|| "directory".to_owned(), create_word);
        (config.path.clone(), kind)
    });
    let loops = line.id.as_ref().map(|id| loops_of(id, &host)).transpose()?.unwrap_or_default();
    let (mut tables, saw_all) = host.mounts_in_sight()?;
    tables.push(host.mounts()?);
    let is_directory =
        line.record.as_ref().is_ok_and(|volume| volume.resolved == Resolved::Hostpath);
    let numbers: BTreeSet<u32> = loops.iter().map(|status| status.number).collect();
    let places = tables.iter().flat_map(|table| {
        let is_it = |entry: &&MountEntry| {
            is_on(table, entry, &numbers) || (is_directory && shows(entry, &line.key))
        };
        table.iter().filter(is_it).map(place).collect::<Vec<_>>()
    });
    let places: BTreeSet<Place> = places.collect();
    Ok(VolumeDetail {
        directory: pool.join(Kind::Volume.directory()).join(line.key.as_str()),
        pool_kind,
        snapshots: snapshots_of(&pool, &line),
        mounts: places.into_iter().collect(),
        saw_all,
        loops,
        line,
    })
}

fn loops_of(id: &VolumeId, host: &dyn Host) -> Result<Vec<LoopStatus>, EngineError> {
    let label = id.to_string();
    let mut loops = host.loops()?;
    loops.retain(|status| status.label == label);
    Ok(loops)
}

fn is_on(table: &MountTable, entry: &MountEntry, numbers: &BTreeSet<u32>) -> bool {
    let number = table.shown_loop(entry);
    number.is_some_and(|number| numbers.contains(&number))
}

/// What is mounted is the data of that key: nothing else has a path that ends like that.
fn shows(entry: &MountEntry, key: &Key) -> bool {
    entry.root.ends_with(Path::new(Kind::Volume.directory()).join(key.as_str()).join(DATA))
}

fn place(entry: &MountEntry) -> Place {
    let path = entry.mount_point.clone();
    Place { pod: pod_of(&path), path, read_only: entry.is_read_only() }
}

/// Kubelet's targets are `…/pods/<uid>/volumes/…` and `…/pods/<uid>/volumeDevices/…`; a raw block volume's are
/// `…/volumeDevices/publish/…/<uid>`.
fn pod_of(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let pod = parts.windows(3).find_map(|parts| match parts {
        ["pods", uid, "volumes" | "volumeDevices"] => Some(*uid),
        _ => None,
    });
    let published = parts.windows(4).find_map(|parts| match parts {
        ["volumeDevices", "publish", _, uid] => Some(*uid),
        _ => None,
    });
    pod.or(published).map(str::to_owned)
}

fn snapshots_of(pool: &Path, line: &VolumeLine) -> usize {
    let Ok(volume) = &line.record else { return 0 };
    let itself = volume.itself();
    let listed = PoolView::open(pool).and_then(|view| view.snapshots()).unwrap_or_default();
    let is_its = |(_, snapshot): &&ViewedSnapshot| {
        snapshot.as_ref().is_ok_and(|snapshot| snapshot.source == itself)
    };
    listed.iter().filter(is_its).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_s_targets_name_their_pod() {
        let block = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices";
        for (path, pod) in [
            ("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/pvc/mount", Some("u-1")),
            ("/var/lib/kubelet/pods/u-2/volumeDevices/kubernetes.io~csi/x", Some("u-2")),
            (&format!("{block}/publish/pvc-1/u-3"), Some("u-3")),
            (&format!("{block}/staging/pvc-1/device"), None),
            ("/var/lib/kubelet/plugins/kubernetes.io/csi/d/abc/globalmount", None),
            ("/srv/pods/u-4", None),
        ] {
            assert_eq!(pod_of(Path::new(path)).as_deref(), pod, "{path}");
        }
    }
}
