//! What the command line does without a daemon: make pools, list what is there, give up what is gone.
//!
//! Reading takes no lock and changes nothing, so it works while a daemon runs and on a half-broken node.

mod detail;

use std::path::{Path, PathBuf};

pub use detail::{Place, VolumeDetail, detail};

use super::check::{in_words, lost};
use super::pools::{new_marker, random};
use super::room::{Terms, least_available};
use super::system::{KUBELET_DIR, System};
use super::usable::terms;
use super::{Described, EngineError, PoolConfig, Used, chain, create_word, usage};
use crate::host::linux::LinuxHost;
use crate::host::{Copying as _, Host, PoolFilesystem, Space};
use crate::store::{
    Charge, CopyProgress, Kind, Pool, PoolView, Snapshot, StateDir, StoreError, ViewedSnapshot,
    ViewedVolume, Volume,
};
use crate::volume::{Allocation, ByteSize, Key, PoolTag, PoolUuid, VolumeId};

/// A pool as a listing shows it.
#[derive(Debug, Clone)]
pub struct PoolLine {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its identity; `None` when it cannot be read.
    pub uuid: Option<PoolUuid>,
    /// `ready`, `nearly full`, or what is wrong with it.
    pub state: String,
    /// How many volumes it has, damaged ones included.
    pub volumes: usize,
    /// How many records cannot be read.
    pub damaged: usize,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// Its files can share blocks, so that copies of loop volumes are instant; `None` when that cannot be told.
    pub shares_blocks: Option<bool>,
    /// Its directories are subvolumes, so that copies of hostpath volumes are instant.
    pub has_subvolumes: bool,
    /// What a managed pool is made as, or `directory`.
    pub kind: String,
    /// What its volumes were promised, deleted ones that are still there included.
    pub promised: ByteSize,
    /// The size of its filesystem.
    pub total: Option<ByteSize>,
    /// What is left of it.
    pub available: Option<ByteSize>,
    /// What volumes may never take of it.
    pub reserve: Option<ByteSize>,
    /// What can still be promised to thin volumes and directories; without a driver's memory of what others have on the
    /// filesystem, so at most that.
    pub room: Option<ByteSize>,
}

/// A volume as a listing shows it.
#[derive(Debug)]
pub struct VolumeLine {
    /// The pool's name in the configuration.
    pub pool: String,
    /// Its directory.
    pub key: Key,
    /// Its id; `None` when the record cannot be read.
    pub id: Option<VolumeId>,
    /// Its record, or why it cannot be read.
    pub record: Result<Volume, String>,
    /// Its data is not there, or not all of it: what is wrong, and what to do.
    pub lost: Option<String>,
    /// What is in use of it; `None` when nothing tells.
    pub used: Option<Used>,
}

/// A snapshot as a listing shows it.
#[derive(Debug)]
pub struct SnapshotLine {
    /// The pool's name in the configuration.
    pub pool: String,
    /// The first part of its pool's UUID.
    pub tag: PoolTag,
    /// Its directory.
    pub key: Key,
    /// Its record, or why it cannot be read.
    pub record: Result<Snapshot, String>,
}

/// A copy that is being made.
#[derive(Debug)]
pub struct CopyLine {
    /// The pool's name in the configuration.
    pub pool: String,
    /// The key of what it will be.
    pub key: Key,
    /// How far it is.
    pub progress: CopyProgress,
}

/// Makes a pool of an empty or absent directory.
///
/// # Errors
/// The directory is not empty, or is a pool already.
pub fn init_pool(path: &Path, name: &str) -> Result<PoolUuid, EngineError> {
    if let crate::store::PoolLook::Pool(marker) = Pool::look(path)? {
        return Err(EngineError::Conflict(format!(
            "{} is a pool already ({}); nothing was changed",
            path.display(),
            marker.uuid
        )));
    }
    let marker = new_marker(name)?;
    Pool::init(path, &marker)?;
    Ok(marker.uuid)
}

/// Gives a pool a new identity; answers the old and the new one.
///
/// # Errors
/// It is no pool, or a daemon has it open.
pub fn new_uuid(path: &Path) -> Result<(PoolUuid, PoolUuid), EngineError> {
    let mut bits = [0; 16];
    random(&mut bits)?;
    let new = PoolUuid::from_bits(bits);
    let old = Pool::replace_uuid(path, &new)?;
    Ok((old, new))
}

/// What there is to say of each pool.
#[must_use]
pub fn pools(configured: &[PoolConfig]) -> Vec<PoolLine> {
    let host = LinuxHost::new();
    let system = System::new(Path::new(KUBELET_DIR));
    let line = |config: &PoolConfig| {
        let mut line = PoolLine {
            name: config.name.clone(),
            path: config.path.clone(),
            uuid: None,
            state: "ready".to_owned(),
            volumes: 0,
            damaged: 0,
            snapshots: 0,
            shares_blocks: None,
            has_subvolumes: false,
            kind: config.create.as_ref().map_or_else(|| "directory".to_owned(), create_word),
            promised: ByteSize::ZERO,
            total: None,
            available: None,
            reserve: None,
            room: None,
        };
        match PoolView::open(&config.path) {
            Err(error) => line.state = format!("away: {}", chain(&error)),
            Ok(view) => {
                line.uuid = Some(view.uuid().clone());
                line.shares_blocks = host.shares_blocks(view.directory()).ok();
                let volumes = view.volumes().unwrap_or_default();
                let snapshots = view.snapshots().unwrap_or_default();
                line.volumes = volumes.len();
                line.damaged = volumes.iter().filter(|(_, record)| record.is_err()).count();
                line.snapshots = snapshots.len();
                let taken = view.taken(&volumes, &snapshots, &host);
                line.promised = taken.charges.total();
                if let Ok(space) = host.space(view.directory()) {
                    let reserve =
                        config.reserve.unwrap_or_else(|| system.reserve(&config.path, &host));
                    let terms = terms(&taken, &space, reserve, config.overcommit);
                    line.measured(&space, &terms, taken.charges.promised());
                }
            }
        }
        line
    };
    configured.iter().map(line).collect()
}

impl PoolLine {
    /// Adds what there is to say of its space.
    fn measured(&mut self, space: &Space, terms: &Terms, promised: Charge) {
        self.has_subvolumes = space.filesystem == PoolFilesystem::Btrfs;
        self.total = Some(space.total);
        self.available = Some(space.available);
        self.reserve = Some(terms.reserve);
        self.room = Some(terms.room(promised, Allocation::Thin));
        let to_come = promised.thin.saturating_sub(terms.written);
        // See `Condition::PoolNearlyFull`.
        if space.available < least_available(space, terms.reserve, to_come) {
            "nearly full".clone_into(&mut self.state);
        }
    }
}

/// What of each pool that can be read, in the order of the configuration, and what is wrong with the other pools.
fn of_each<T>(
    configured: &[PoolConfig],
    read: impl Fn(&PoolConfig, &PoolView) -> Result<Vec<T>, StoreError>,
) -> (Vec<T>, Vec<String>) {
    let (mut lines, mut away) = (Vec::new(), Vec::new());
    for config in configured {
        match PoolView::open(&config.path).and_then(|view| read(config, &view)) {
            Ok(more) => lines.extend(more),
            Err(error) => {
                let (name, path) = (&config.name, config.path.display());
                away.push(format!("pool {name} ({path}) is away: {}", chain(&error)));
            }
        }
    }
    (lines, away)
}

/// The volumes of all pools that can be read, by pool and key, and what is wrong with the other pools. With `count` the
/// files of directories are counted that no limit counts, which takes its time.
#[must_use]
pub fn volumes(configured: &[PoolConfig], count: bool) -> (Vec<VolumeLine>, Vec<String>) {
    let host = LinuxHost::new();
    of_each(configured, |config, view| {
        let line = |(key, record): ViewedVolume| {
            let record = record.map_err(|error| in_words(&error));
            let id = record.as_ref().ok().map(|volume| volume.id(view.uuid().tag()));
            // One that is just being deleted, or cannot be looked at, takes nothing that could be told.
            let used = record.as_ref().ok();
            let used = used.and_then(|volume| usage::used(view, volume, count, &host).ok()?);
            let lost = record.as_ref().ok().and_then(|volume| lost_data(view, volume));
            VolumeLine { pool: config.name.clone(), key, id, record, lost, used }
        };
        Ok(view.volumes()?.into_iter().map(line).collect())
    })
}

/// What is wrong with a volume whose data is not there.
fn lost_data(view: &PoolView, volume: &Volume) -> Option<String> {
    let dir = view.open_volume(&volume.key);
    if dir.as_ref().is_err_and(StoreError::is_absent) {
        // It was deleted meanwhile.
        return None;
    }
    let (condition, detail) = lost(&dir, volume.resolved, volume.size)?;
    let help = condition.help();
    Some(format!("{}: {detail}; {}", help.reason, help.remedy))
}

/// The volume of an id, for those who use it by that.
///
/// # Errors
/// It is not there, damaged, half imported or a pod's own, or its pool cannot be read.
pub fn volume(configured: &[PoolConfig], id: &VolumeId) -> Result<Described, EngineError> {
    let views = configured.iter().filter_map(|config| PoolView::open(&config.path).ok());
    let view = views.into_iter().find(|view| view.uuid().tag() == id.pool).ok_or_else(|| {
        EngineError::Away(format!(
            "the pool {} of volume {id} is none of those that are configured and here",
            id.pool
        ))
    })?;
    let volume = view
        .volume(&id.key)
        .map_err(|source| EngineError::Damaged { what: format!("volume {id}"), source })?;
    let volume = volume.filter(|volume| volume.generation == id.generation && volume.pod.is_none());
    match volume {
        Some(volume) if volume.is_moving() => Err(EngineError::Precondition(format!(
            "the import of volume {id} has not ended; repeat it first (orlop volume list says from where)"
        ))),
        Some(volume) => Ok(Described::new(id.clone(), &volume)),
        None => Err(EngineError::no_volume(id)),
    }
}

/// The snapshots of all pools that can be read, by pool and key, and what is wrong with the other pools.
#[must_use]
pub fn snapshots(configured: &[PoolConfig]) -> (Vec<SnapshotLine>, Vec<String>) {
    of_each(configured, |config, view| {
        let line = |(key, record): ViewedSnapshot| SnapshotLine {
            pool: config.name.clone(),
            tag: view.uuid().tag(),
            key,
            record: record.map_err(|error| in_words(&error)),
        };
        Ok(view.snapshots()?.into_iter().map(line).collect())
    })
}

/// The volumes or snapshots that are being copied.
#[must_use]
pub fn copies(configured: &[PoolConfig], kind: Kind) -> Vec<CopyLine> {
    // Which pools are away is said with what they have.
    let (lines, _away) = of_each(configured, |config, view| {
        let copies = view.copies(kind).into_iter();
        let line = |(key, progress)| CopyLine { pool: config.name.clone(), key, progress };
        Ok(copies.map(line).collect())
    });
    lines
}

/// Records that a volume, snapshot or group is given up.
///
/// # Errors
/// Its pool is here: then it can be deleted.
pub fn forget(
    root_dir: &Path,
    configured: &[PoolConfig],
    id: &impl std::fmt::Display,
    tag: &PoolTag,
) -> Result<(), EngineError> {
    let here = configured
        .iter()
        .find(|config| PoolView::open(&config.path).is_ok_and(|view| view.uuid().tag() == *tag));
    if let Some(pool) = here {
        return Err(EngineError::Precondition(format!(
            "the pool {} of {id} is here; delete it instead",
            pool.name
        )));
    }
    if !root_dir.join("state").is_dir() {
        return Err(EngineError::Precondition(format!(
            "no driver has used the root directory {}; give the --root-dir of the driver",
            root_dir.display()
        )));
    }
    Ok(StateDir::open(root_dir)?.forget(id)?)
}
