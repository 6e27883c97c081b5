//! What the disk has to be asked for, of one pool: its space, and what each volume takes.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::Count;
use crate::engine::open_pool::OpenPool;
use crate::engine::usage::{self, Basis, VolumeUsage};
use crate::engine::{EngineError, chain};
use crate::host::{Host, LoopStatus, MountEntry, Space};
use crate::store::Entry;
use crate::volume::{Allocation, Backend, ByteSize, Key, VolumeId};

/// A pool as it was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// `None` when its filesystem cannot be asked.
    pub(super) space: Option<PoolSpace>,
    pub(super) volumes: BTreeMap<Key, VolumeMeasure>,
}

/// The space of a pool.
#[derive(Debug)]
pub(super) struct PoolSpace {
    pub(super) capacity: ByteSize,
    pub(super) available: ByteSize,
    pub(super) used: ByteSize,
    pub(super) reserve: ByteSize,
    pub(super) room: ByteSize,
}

/// What a volume takes, as far as something tells.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct VolumeMeasure {
    pub(super) bytes: Option<u64>,
    pub(super) inodes: Option<u64>,
    pub(super) inodes_used: Option<u64>,
}

/// What is looked at once for all volumes of a pool.
struct Look<'a> {
    host: &'a dyn Host,
    space: Space,
    mounted: BTreeMap<String, PathBuf>,
}

/// Asks the pool's filesystem, and each volume.
pub(super) fn measure(pool: &Arc<OpenPool>, host: &dyn Host) -> Measured {
    let space = measure_space(pool, host).map_err(|error| failed(pool, &error)).ok();
    let volumes = measure_volumes(pool, host).map_err(|error| failed(pool, &error));
    Measured { space, volumes: volumes.unwrap_or_default() }
}

fn failed(pool: &OpenPool, error: &EngineError) {
    tracing::debug!(pool = pool.name, error = chain(error), "cannot measure for the metrics");
}

fn measure_space(pool: &OpenPool, host: &dyn Host) -> Result<PoolSpace, EngineError> {
    let capacity = host.space(pool.store.directory())?.total;
    let terms = pool.terms(host, false)?;
    Ok(PoolSpace {
        capacity,
        available: terms.available,
        used: terms.usable.saturating_sub(terms.available),
        reserve: terms.reserve,
        room: terms.room(pool.store.charges().promised(), Allocation::Thin),
    })
}

/// Where the filesystem of each loop volume is mounted, by the volume's id.
fn mounted(host: &dyn Host) -> Result<BTreeMap<String, PathBuf>, EngineError> {
    let table = host.mounts()?;
    let places: BTreeMap<u32, &MountEntry> =
        table.iter().filter_map(|entry| Some((entry.mounted_loop()?, entry))).collect();
    let loops = host.loops()?.into_iter().filter(|status| status.backing_device.is_none());
    let place =
        |status: LoopStatus| Some((status.label, places.get(&status.number)?.mount_point.clone()));
    Ok(loops.filter_map(place).collect())
}

fn measure_volumes(
    pool: &Arc<OpenPool>,
    host: &dyn Host,
) -> Result<BTreeMap<Key, VolumeMeasure>, EngineError> {
    let look = Look { host, space: host.space(pool.store.directory())?, mounted: mounted(host)? };
    let mut volumes = BTreeMap::new();
    for (key, entry) in pool.entries() {
        // Of one that is just being deleted there is nothing to tell.
        if let Ok(Some(measure)) = measure_volume(pool, &key, &entry, &look) {
            volumes.insert(key, measure);
        }
    }
    Ok(volumes)
}

fn measure_volume(
    pool: &Arc<OpenPool>,
    key: &Key,
    entry: &Entry,
    look: &Look<'_>,
) -> Result<Option<VolumeMeasure>, EngineError> {
    let host = look.host;
    let Entry::Whole { generation, backend, moving: false, .. } = entry else { return Ok(None) };
    if *backend == Backend::Loop {
        let id = VolumeId { pool: pool.tag(), key: key.clone(), generation: generation.clone() };
        if let Some(place) = look.mounted.get(&id.to_string()) {
            return Ok(Some(of_usage(usage::of_filesystem(
                host.space_at(place)?,
                Basis::Filesystem,
            ))));
        }
        let image = pool.store.open_volume(key)?.image_to_read()?;
        let bytes = Some(host.allocated(image.as_fd())?.bytes());
        return Ok(Some(VolumeMeasure { bytes, ..VolumeMeasure::default() }));
    }
    let Some(record) = pool.store.read(key)? else { return Ok(None) };
    if let Some(usage) = usage::of_limit(pool, &record.volume, look.space, host)? {
        return Ok(Some(of_usage(usage)));
    }
    let counted = |count: Count| VolumeMeasure {
        bytes: Some(count.bytes.bytes()),
        inodes: None,
        inodes_used: Some(count.inodes),
    };
    Ok(pool.counts.known(&record.volume.itself()).map(counted))
}

fn of_usage(usage: VolumeUsage) -> VolumeMeasure {
    match usage {
        VolumeUsage::Mounted { bytes, inodes, .. } => VolumeMeasure {
            bytes: Some(bytes.used),
            inodes: inodes.map(|inodes| inodes.total),
            inodes_used: inodes.map(|inodes| inodes.used),
        },
        VolumeUsage::Device { .. } => VolumeMeasure::default(),
    }
}
