//! What metrics tell of pools and volumes.
//!
//! What is in memory is told as it is at that moment. What a disk has to be asked for is measured by a thread of its own
//! for each pool, when somebody asks and the last measurement is old: a scrape waits for a moment only, then it gets what
//! was measured before, and of a pool that hangs nothing after a while.
//!
//! Must not: be called but for a scrape, or begin to count files; who counts is asked what it knows.

mod cached;
mod measure;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use cached::Cached;
use measure::Measured;

use super::open_pool::OpenPool;
use super::pools::states::STATES;
use super::{Condition, Engine, chain};
use crate::store::{Entry, SnapshotEntry};
use crate::telemetry::{Figures, labels, metrics};
use crate::volume::{Backend, Claim, Key, VolumeId};

/// A scrape waits that long for all that is being measured.
const PATIENCE: Duration = Duration::from_secs(1);
/// How old what is told of space may be, and what is told of health, which costs the reading of every record.
const FRESH: Duration = Duration::from_secs(10);
const FRESH_HEALTH: Duration = Duration::from_secs(300);
/// So many snapshots are taken from the index at once, so that nobody waits for its lock.
const STRETCH: usize = 256;

/// What is measured of one pool.
#[derive(Debug, Default)]
pub(super) struct PoolFigures {
    space: Arc<Cached<Measured>>,
    health: Arc<Cached<Conditions>>,
}

/// What is wrong with a pool and with its volumes.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    pub(super) pool: Vec<Condition>,
    pub(super) volumes: Vec<(VolumeId, Vec<Condition>)>,
}

/// What is measured of the node.
#[derive(Debug, Default)]
pub(super) struct NodeFigures {
    /// Loop devices with the label of a volume; `None` when they cannot be listed.
    loops: Option<u64>,
    /// Volumes that are marked as frozen; `None` when that cannot be read.
    frozen: Option<u64>,
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Engine {
    /// Adds what there is to tell now. Waits for a second at most, whatever the disks do.
    pub fn figures(self: &Arc<Self>, figures: &mut Figures) {
        let deadline = Instant::now() + PATIENCE;
        let pools = self.pools.open_ones();
        self.refresh_figures(&pools);
        for (name, now) in self.pools.states() {
            for state in STATES {
                let value = u64::from(state == now);
                figures.set(&metrics::POOL_STATE, &labels(&[&name, state]), value);
            }
        }
        for pool in &pools {
            let measured = pool.figures.space.get(deadline);
            pool_figures(pool, measured.as_deref(), figures);
            volume_figures(pool, measured.as_deref(), figures);
            snapshot_figures(pool, figures);
            if let Some(conditions) = pool.figures.health.get(deadline) {
                condition_figures(pool, &conditions, figures);
            }
        }
        if let Some(node) = self.node_figures.get(deadline) {
            let told =
                [(&metrics::LOOP_DEVICES, node.loops), (&metrics::FROZEN_VOLUMES, node.frozen)];
            for (metric, value) in told {
                figures.set(metric, &labels(&[]), value);
            }
        }
    }

    /// Has measured what is old.
    fn refresh_figures(self: &Arc<Self>, pools: &[Arc<OpenPool>]) {
        let engine = Arc::clone(self);
        self.node_figures.refresh(FRESH, move || engine.measure_node());
        for pool in pools.iter().filter(|pool| !pool.answers.is_hung()) {
            let (engine, measured) = (Arc::clone(self), Arc::clone(pool));
            pool.figures.space.refresh(FRESH, move || measure::measure(&measured, &*engine.host));
            let (engine, looked_at) = (Arc::clone(self), Arc::clone(pool));
            pool.figures.health.refresh(FRESH_HEALTH, move || {
                engine.conditions(&looked_at).unwrap_or_else(|error| {
                    tracing::warn!(
                        pool = looked_at.name,
                        error = chain(&error),
                        "cannot look at the health of the pool"
                    );
                    Conditions::default()
                })
            });
        }
    }

    fn measure_node(&self) -> NodeFigures {
        let ours = |label: &str| label.parse::<VolumeId>().is_ok();
        let loops = self.host.loops().ok();
        NodeFigures {
            loops: loops
                .map(|loops| number(loops.iter().filter(|status| ours(&status.label)).count())),
            frozen: self.state.frozen().ok().map(|frozen| number(frozen.len())),
        }
    }
}

fn pool_figures(pool: &OpenPool, measured: Option<&Measured>, figures: &mut Figures) {
    let of = labels(&[&pool.name]);
    let promised = pool.store.charges().total();
    figures.set(&metrics::POOL_PROMISED, &of, promised.bytes());
    let Some(space) = measured.and_then(|measured| measured.space.as_ref()) else { return };
    for (metric, value) in [
        (&metrics::POOL_CAPACITY, space.capacity),
        (&metrics::POOL_AVAILABLE, space.available),
        (&metrics::POOL_USED, space.used),
        (&metrics::POOL_RESERVE, space.reserve),
        (&metrics::POOL_ROOM, space.room),
    ] {
        figures.set(metric, &of, value.bytes());
    }
}

/// How many there are, by backend and state. States that can be are told with zero, so that alerts on them can be.
#[derive(Debug)]
struct Census(BTreeMap<(&'static str, &'static str), u64>);

impl Census {
    fn new(states: &[&'static str]) -> Self {
        let backends = [Backend::Hostpath, Backend::Loop].map(Backend::as_str);
        let known = backends.iter().flat_map(|&backend| states.iter().map(move |&s| (backend, s)));
        let damaged = [("unknown", "damaged")];
        Self(known.chain(damaged).map(|key| (key, 0)).collect())
    }

    fn add(&mut self, backend: &'static str, state: &'static str) {
        *self.0.entry((backend, state)).or_default() += 1;
    }

    fn tell(self, metric: &'static metrics::Metric, pool: &OpenPool, figures: &mut Figures) {
        for ((backend, state), count) in self.0 {
            figures.set(metric, &labels(&[&pool.name, backend, state]), count);
        }
    }
}

fn volume_figures(pool: &OpenPool, measured: Option<&Measured>, figures: &mut Figures) {
    let mut census = Census::new(&["ready", "importing"]);
    for (key, entry) in pool.entries() {
        let Entry::Whole { generation, size, backend, moving, claim, .. } = entry else {
            census.add("unknown", "damaged");
            continue;
        };
        census.add(backend.as_str(), if moving { "importing" } else { "ready" });
        let used = measured.and_then(|measured| measured.volumes.get(&key)).copied();
        let id = VolumeId { pool: pool.tag(), key, generation }.to_string();
        let (namespace, name) = names(claim.as_deref());
        let of = labels(&[&id, &pool.name, backend.as_str(), namespace, name]);
        figures.set(&metrics::VOLUME_CAPACITY, &of, size.bytes());
        let used = used.unwrap_or_default();
        for (metric, value) in [
            (&metrics::VOLUME_USED, used.bytes),
            (&metrics::VOLUME_INODES, used.inodes),
            (&metrics::VOLUME_INODES_USED, used.inodes_used),
        ] {
            figures.set(metric, &of, value);
        }
    }
    census.tell(&metrics::VOLUMES, pool, figures);
}

fn names(claim: Option<&Claim>) -> (&str, &str) {
    claim.map_or(("", ""), |claim| (&claim.namespace, &claim.name))
}

fn snapshot_figures(pool: &OpenPool, figures: &mut Figures) {
    let mut census = Census::new(&["ready"]);
    let mut behind: Option<Key> = None;
    loop {
        let page = pool.store.snapshots_after(behind.as_ref(), None, STRETCH);
        let Some((last, _)) = page.last() else { break };
        behind = Some(last.clone());
        for (_, entry) in page {
            match entry {
                SnapshotEntry::Whole(snapshot) => {
                    census.add(snapshot.resolved.backend().as_str(), "ready");
                }
                SnapshotEntry::Damaged { .. } => census.add("unknown", "damaged"),
            }
        }
    }
    census.tell(&metrics::SNAPSHOTS, pool, figures);
}

fn condition_figures(pool: &OpenPool, conditions: &Conditions, figures: &mut Figures) {
    for condition in &conditions.pool {
        let reason = condition.help().reason;
        figures.set(&metrics::POOL_CONDITION, &labels(&[&pool.name, reason]), 1);
    }
    for (id, found) in &conditions.volumes {
        let id = id.to_string();
        for condition in found {
            let of = labels(&[&id, &pool.name, condition.help().reason]);
            figures.set(&metrics::VOLUME_CONDITION, &of, 1);
        }
    }
}
