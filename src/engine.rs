//! The use cases, blocking and plain: create, delete, expand, list, stage, publish, stats, and their opposites.
//!
//! Invariants:
//! - Every use case may be repeated, and may follow a run of itself that was killed at any instant.
//! - What is mounted and attached is asked of the kernel each time; a pure function ([`plan`]) turns the request and
//!   what was seen into steps, and no steps when all is as it should be.
//! - Teardown works from the path, the mount table and the loop devices alone.
//! - The caller (`csi::jobs`) runs at most one use case per volume at a time.
//!
//! Must not: be async, know gRPC, or write to a pool other than through `store` and `backend`.

mod answers;
mod apply;
mod attach;
mod capacity;
mod check;
mod copying;
mod counting;
mod create;
mod delete;
mod delta;
pub mod doctor;
mod elsewhere;
mod error;
mod expand;
mod figures;
mod freeze;
mod group;
mod health;
mod import;
mod inline;
mod limits;
mod list;
mod managed;
mod metadata;
mod modify;
mod observe;
pub mod offline;
mod open_pool;
mod orphans;
pub mod plan;
mod pools;
mod publish;
mod reaper;
mod room;
mod snapshot;
mod source;
mod stage;
mod stats;
mod strays;
mod system;
mod traffic;
mod usable;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

pub use attach::AttachRequest;
pub use capacity::{Capacity, CapacityQuery};
pub use check::{CheckReport, check_pool, check_side_by_side};
pub use create::Created;
pub use delete::Deleted;
pub use delta::Range;
pub use error::{EngineError, chain};
pub use expand::Expanded;
pub use group::{FoundGroup, GroupSpec};
pub use health::{
    Condition, Finding, HEALTH, HealthHelp, StorageTrouble, VolumeHealth, VolumeTrouble,
};
pub use import::{Described, ImportRequest};
pub use inline::InlineRequest;
pub use list::Listed;
pub use managed::{
    CreatePool, PoolBase, create_word, managed_pool_refusal, smallest_image, unmount_pool,
};
pub use metadata::{Metadata, MetadataQuery};
pub use open_pool::Reserve;
pub use pools::{PoolConfig, PoolReport, PoolStatus};
pub use publish::PublishRequest;
pub use snapshot::{FoundSnapshot, SnapshotSpec};
pub use stage::StageRequest;
pub use system::KUBELET_DIR;
pub use usage::{Basis, Usage, Used, VolumeUsage};

use crate::host::Host;
use crate::store::{Entry, Record, Resolved, StateDir, StoreError, Volume};
use crate::volume::{Allocation, OnDelete, Topology, VolumeId};
use freeze::Freezes;
use open_pool::OpenPool;
use pools::Pools;
use traffic::Traffic;

/// What the engine is told once, at start.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where `state/` is.
    pub root_dir: PathBuf,
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolConfig>,
    /// Empty or absent directories become pools.
    pub init_pools: bool,
    /// Kubelet's directory: a pool on its filesystem keeps a larger reserve, and inline volumes whose pod has no directory
    /// in it are swept.
    pub kubelet_dir: PathBuf,
    /// Where this node is.
    pub topology: Topology,
    /// The name of this node.
    pub node_id: String,
    /// Volumes must be attached to this node before they are used.
    pub attach: bool,
    /// At most so many volumes on this node, even where it could have more.
    pub max_volumes: Option<u32>,
}

/// All use cases on the pools of one node.
#[derive(Debug)]
pub struct Engine {
    host: Arc<dyn Host>,
    pools: Pools,
    state: Arc<StateDir>,
    kubelet_dir: PathBuf,
    topology: Topology,
    node_id: String,
    attach: bool,
    max_volumes: Option<u32>,
    /// Held, for a moment only, while a place for an attachment is looked for and promised.
    attaching: Mutex<()>,
    traffic: Traffic,
    freezes: Freezes,
    /// What metrics tell of the node.
    node_figures: Arc<figures::Cached<figures::NodeFigures>>,
    /// What a killed run may have left frozen was not looked for yet.
    thaw_pending: AtomicBool,
}

/// A volume together with the pool that it lives in.
#[derive(Debug)]
struct Located {
    pool: Arc<OpenPool>,
    record: Record,
}

impl Located {
    const fn volume(&self) -> &Volume {
        &self.record.volume
    }

    fn id(&self) -> VolumeId {
        self.volume().id(self.pool.tag())
    }

    /// How its loop device treats discards. One that is to be wiped keeps its blocks as well: what a discard gave back
    /// cannot be overwritten any more.
    const fn allocation(&self) -> Allocation {
        match self.volume().resolved {
            Resolved::Loop { allocation: Allocation::Thin, .. }
                if !matches!(self.volume().on_delete, OnDelete::Wipe) =>
            {
                Allocation::Thin
            }
            Resolved::Loop { .. } | Resolved::Hostpath => Allocation::Thick,
        }
    }
}

impl Engine {
    /// Reads the root directory, and thaws what a killed run has left frozen. Pools are opened when they are first asked for, or by [`Engine::retry_pool`].
    ///
    /// # Errors
    /// Only the root directory itself.
    pub fn new(config: EngineConfig, host: Arc<dyn Host>) -> Result<Self, StoreError> {
        let state = Arc::new(StateDir::open(&config.root_dir)?);
        let pools = Pools::new(&config, Arc::clone(&host), Arc::clone(&state));
        let engine = Self {
            host,
            pools,
            state,
            kubelet_dir: config.kubelet_dir,
            topology: config.topology,
            node_id: config.node_id,
            attach: config.attach,
            max_volumes: config.max_volumes,
            attaching: Mutex::default(),
            traffic: Traffic::default(),
            freezes: Freezes::default(),
            node_figures: Arc::default(),
            thaw_pending: AtomicBool::new(true),
        };
        engine.thaw_marked(true);
        if let Err(error) = managed::thaw_left(&engine.state, &*engine.host) {
            tracing::error!(
                error = chain(&error),
                "cannot look for pools that an earlier run left frozen"
            );
        }
        Ok(engine)
    }

    /// Every pool is either open or known to be away; none waits for another process to let go of it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pools.is_ready()
    }

    /// What the driver waits for before it is ready, for people; empty when it is.
    #[must_use]
    pub fn waits_for(&self) -> Vec<String> {
        let states = self.pools.states().into_iter();
        states.filter(|(_, state)| *state == "waiting").map(|(pool, _)| pool).collect()
    }

    /// The names of the configured pools.
    #[must_use]
    pub fn pool_names(&self) -> Vec<String> {
        self.pools.names().map(str::to_owned).collect()
    }

    /// Opens a pool if it is away, and has another try at its trash. A pool that cannot be opened is reported by
    /// [`Engine::pool_reports`] and harms no other.
    pub fn retry_pool(&self, name: &str) {
        self.thaw_marked(false);
        self.pools.retry(name);
    }

    /// What there is to say of each pool.
    #[must_use]
    pub fn pool_reports(&self) -> Vec<PoolReport> {
        self.pools.reports()
    }

    /// Waits until the trash of every open pool is empty or cannot be emptied. For the tests of the layers above; the daemon empties it in the background.
    pub fn drain_trash(&self) {
        self.pools.drain_trash();
    }

    /// Waits until the files of every volume that somebody asked for are counted. For the tests of the layers above; who
    /// asks gets what is known.
    pub fn settle_counts(&self) {
        for pool in self.pools.here() {
            pool.counts.settle();
        }
    }

    /// Where this node is.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The volume of an id, to be used: its data is in its place.
    fn locate(&self, id: &VolumeId) -> Result<Located, EngineError> {
        let located = self.locate_any(id)?;
        refuse_unfinished(&located)?;
        Ok(located)
    }

    /// The volume of an id. Inline volumes have another one for kubelet (see `inline`), and none for the controller.
    fn locate_any(&self, id: &VolumeId) -> Result<Located, EngineError> {
        let made = self.find(id)?.filter(|located| located.volume().pod.is_none());
        made.ok_or_else(|| EngineError::no_volume(id))
    }

    /// The volume of an id; `None` when its pool is here and has no such volume (or only a successor of that name).
    fn find(&self, id: &VolumeId) -> Result<Option<Located>, EngineError> {
        let pool = self.pools.by_tag(&id.pool)?;
        match pool.store.entry(&id.key) {
            None => Ok(None),
            Some(Entry::Whole { generation, .. }) if generation != id.generation => Ok(None),
            Some(Entry::Whole { .. } | Entry::Damaged { .. }) => {
                // One that was damaged had no generation to tell, and may be mended by now.
                let found = read(pool, id)?;
                Ok(found.filter(|located| located.volume().generation == id.generation))
            }
        }
    }

    /// The same for what ends a volume's life or part of it: one that was given up with `orlop volume forget` is not
    /// missed while its pool is away.
    fn find_unless_forgotten(&self, id: &VolumeId) -> Result<Option<Located>, EngineError> {
        match self.find(id) {
            Err(EngineError::Away(_)) if self.state.is_forgotten(id)? => Ok(None),
            found => found,
        }
    }

    /// A path that a CO named for a mount, as the mount table shows it; `None` when its parent does not exist.
    fn mount_path(&self, path: &Path) -> Result<Option<PathBuf>, EngineError> {
        if !path.is_absolute() {
            return Err(EngineError::Invalid(format!(
                "the path {} is not absolute",
                path.display()
            )));
        }
        if path.file_name().is_none() {
            return Err(EngineError::Invalid(format!(
                "the path {} does not end in a name",
                path.display()
            )));
        }
        let Some(path) = self.host.canonical(path)? else { return Ok(None) };
        // A mistake here would unmount a pool, remove a directory of it, or bury it under a volume.
        let overlaps = |pool: &Path| pool.starts_with(&path) || path.starts_with(pool);
        let pool = self
            .pools
            .paths()
            .find(|pool| overlaps(pool) || pool.canonicalize().is_ok_and(|pool| overlaps(&pool)));
        if let Some(pool) = pool {
            return Err(EngineError::Invalid(format!(
                "the path {} and the pool {} overlap; a volume cannot be mounted there",
                path.display(),
                pool.display()
            )));
        }
        Ok(Some(path))
    }
}

/// The data of a volume that is being imported may not be in its place.
fn refuse_unfinished(located: &Located) -> Result<(), EngineError> {
    if located.volume().is_moving() { Err(import::unfinished(located)) } else { Ok(()) }
}

/// Reads the record of a volume; `None` when it was removed by hand since it was listed.
fn read(pool: Arc<OpenPool>, id: &VolumeId) -> Result<Option<Located>, EngineError> {
    match pool.store.read(&id.key) {
        Ok(record) => Ok(record.map(|record| Located { pool, record })),
        Err(source @ (StoreError::Damaged { .. } | StoreError::TooNew { .. })) => {
            Err(EngineError::Damaged { what: format!("volume {id}"), source })
        }
        Err(error) => Err(error.into()),
    }
}
