//! Health: what is wrong with volumes and pools, from what the disk and the kernel show when they are asked.
//!
//! Invariants: a condition is told while it holds and no longer; nothing is remembered and nothing is changed. What seems
//! wrong with a volume is looked at twice, because a volume may be deleted or unmounted under the first look. What takes a
//! look at every file is looked for once a day and told as it was then.
//!
//! Must not: run programs, or wait for anything but the disks themselves.

mod condition;
mod limit;
mod pool;
mod volume;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub(super) use self::limit::not_in_force;
pub(super) use self::volume::unopened;
pub use condition::{Condition, Finding, HEALTH, HealthHelp, StorageTrouble, VolumeTrouble};

use self::condition::Findings;
use super::figures::Conditions;
use super::open_pool::OpenPool;
use super::{Engine, EngineError, Located, chain};
use crate::host::{LoopStatus, MountTable};
use crate::store::{Entry, Resolved, StoreError};
use crate::volume::{Allocation, Generation, Key, PoolTag, VolumeId};

/// One page of the list looks at no more volumes than that, however few of them have something wrong: each costs the
/// reading of a record and of the beginning of an image.
const LOOKED_AT_PER_PAGE: usize = 256;

/// What is wrong with a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHealth {
    /// Its id.
    pub id: VolumeId,
    /// Each condition at most once; never empty in a list.
    pub findings: Vec<Finding>,
}

/// What the kernel showed at one moment, read once for any number of volumes.
#[derive(Debug)]
struct Round {
    table: MountTable,
    loops: Vec<LoopStatus>,
    pools: RefCell<BTreeMap<PoolTag, Findings>>,
}

impl Engine {
    /// What is wrong with a volume, and at the paths where the CO has it or tried to have it. Nothing: it is well.
    ///
    /// # Errors
    /// There is no such volume, no configured pool ever was its pool, or a path is none that a volume can be mounted at.
    pub fn volume_health(
        &self,
        id: &VolumeId,
        paths: &[&Path],
    ) -> Result<Vec<Finding>, EngineError> {
        let look = || self.look(&self.round()?, id, paths);
        let first = look()?;
        let findings = if first.is_about_the_volume() { look()? } else { first };
        Ok(findings.into_vec())
    }

    /// The same as a node sees it, which knows inline volumes by kubelet's ids.
    ///
    /// # Errors
    /// As [`Engine::volume_health`].
    pub fn node_volume_health(
        &self,
        id: &str,
        paths: &[&Path],
    ) -> Result<Vec<Finding>, EngineError> {
        let known = id.parse().ok().or_else(|| self.inline_id(id));
        let known = known.ok_or_else(|| {
            EngineError::NotFound(format!(
                "volume {id:?} does not exist: it is not an id of this driver"
            ))
        })?;
        self.volume_health(&known, paths)
    }

    /// At most `count` volumes behind `after` that have something wrong, in the order of pool tags and keys, and where the
    /// next page begins; there may be a next page after one with few volumes or none.
    ///
    /// A damaged record that does not tell its generation any more is listed with the generation 00000000, under which
    /// it can be asked for. The volumes of a pool that is away cannot be seen; [`Engine::storage_health`] tells of it.
    ///
    /// # Errors
    /// The kernel does not show its mounts or loop devices.
    pub fn list_volume_health(
        &self,
        after: Option<&VolumeId>,
        count: Option<usize>,
    ) -> Result<(Vec<VolumeHealth>, Option<VolumeId>), EngineError> {
        let (count, mut left) = match count {
            Some(count) => (count, LOOKED_AT_PER_PAGE),
            None => (usize::MAX, usize::MAX),
        };
        let round = self.round()?;
        let mut listed = Vec::new();
        let mut last = None;
        for (pool, key, entry) in self.walk(after) {
            if listed.len() >= count || left == 0 {
                return Ok((listed, last));
            }
            left -= 1;
            let (id, inline) = named(&pool, key, &entry);
            last = Some(id.clone());
            // A pod's, not the CO's.
            if inline {
                continue;
            }
            let findings = match self.look(&round, &id, &[]) {
                Ok(findings) if findings.is_about_the_volume() => self.volume_health(&id, &[]),
                Ok(findings) => Ok(findings.into_vec()),
                Err(error) => Err(error),
            };
            match findings {
                Ok(findings) if findings.is_empty() => {}
                Ok(findings) => listed.push(VolumeHealth { id, findings }),
                // Deleted since, or its pool went away.
                Err(EngineError::NotFound(_) | EngineError::Away(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((listed, None))
    }

    /// What is wrong with a pool, and with each of its volumes beside that.
    ///
    /// # Errors
    /// The kernel does not show its mounts or loop devices.
    pub(super) fn conditions(&self, pool: &Arc<OpenPool>) -> Result<Conditions, EngineError> {
        let round = self.round()?;
        let own = |findings: &[Finding]| -> Vec<Condition> {
            let conditions = findings.iter().map(|finding| finding.condition);
            conditions.filter(|condition| condition.help().storage.is_none()).collect()
        };
        let found = self.pool_findings_once(pool, &round).into_vec();
        let mut conditions = Conditions {
            pool: found.iter().map(|finding| finding.condition).collect(),
            volumes: Vec::new(),
        };
        for (key, entry) in pool.entries() {
            let (id, _) = named(pool, key, &entry);
            // One that was deleted since, or whose pool went away, has nothing that could be told.
            let Ok(seen) = self.look(&round, &id, &[]) else { continue };
            if seen.is_about_the_volume()
                && let Ok(findings) = self.volume_health(&id, &[])
                && let found @ [_, ..] = own(&findings).as_slice()
            {
                conditions.volumes.push((id, found.to_vec()));
            }
        }
        Ok(conditions)
    }

    /// What is wrong with the configured pools. One condition of several pools is told once, with all their names.
    ///
    /// # Errors
    /// The kernel does not show its mounts.
    pub fn storage_health(&self) -> Result<Vec<Finding>, EngineError> {
        let round = self.round()?;
        let mut findings = Findings::default();
        for pool in self.pools.each() {
            match pool {
                Ok(pool) => findings.append(&self.pool_findings(&pool, &round), |_| true),
                Err(error) => findings.add(Condition::PoolAway, &chain(&error)),
            }
        }
        Ok(findings.into_vec())
    }

    fn round(&self) -> Result<Round, EngineError> {
        let loops = self.host.loops()?;
        Ok(Round { table: self.host.mounts()?, loops, pools: RefCell::default() })
    }

    /// One look at a volume.
    fn look(&self, round: &Round, id: &VolumeId, paths: &[&Path]) -> Result<Findings, EngineError> {
        let mut findings = Findings::default();
        if let Some(pool) = self.hung(id) {
            findings.append(&self.pool_findings_once(&pool, round), |_| true);
            return Ok(findings);
        }
        match self.find(id) {
            Ok(None) => return Err(EngineError::no_volume(id)),
            Ok(Some(located)) => {
                let grows = takes_blocks_later(&located);
                let wanted = |condition| {
                    condition != Condition::PoolSparse
                        && (grows || condition != Condition::PoolNearlyFull)
                };
                findings.append(&self.pool_findings_once(&located.pool, round), wanted);
                self.volume_findings(&located, round, &mut findings);
                self.path_findings(&located, paths, &mut findings)?;
            }
            Err(EngineError::Away(reason)) => {
                let known = self.pools.missing(&id.pool);
                findings.add(Condition::PoolAway, &chain(&known.ok_or(EngineError::Away(reason))?));
            }
            Err(EngineError::Damaged { source: source @ StoreError::TooNew { .. }, .. }) => {
                findings.add(Condition::RecordTooNew, &chain(&source));
            }
            Err(EngineError::Damaged { source: StoreError::Damaged { path, reason }, .. }) => {
                findings.add(Condition::RecordDamaged, &format!("{}: {reason}", path.display()));
            }
            Err(error @ (EngineError::Store(_) | EngineError::Host(_))) => {
                findings.add(Condition::DataUnreadable, &chain(&error));
            }
            Err(error) => return Err(error),
        }
        Ok(findings)
    }

    /// The pool of a volume that exists, when the pool does not answer: who read more of it would wait as well.
    fn hung(&self, id: &VolumeId) -> Option<Arc<OpenPool>> {
        let mut pools = self.pools.open_ones().into_iter();
        let pool = pools.find(|pool| pool.tag() == id.pool && pool.answers.is_hung())?;
        pool.store.entry(&id.key).is_some().then_some(pool)
    }

    fn pool_findings_once(&self, pool: &OpenPool, round: &Round) -> Findings {
        let mut seen = round.pools.borrow_mut();
        seen.entry(pool.tag()).or_insert_with(|| self.pool_findings(pool, round)).clone()
    }
}

/// The id of a volume, and whether it is inline.
fn named(pool: &OpenPool, key: Key, entry: &Entry) -> (VolumeId, bool) {
    let (generation, inline) = match entry {
        Entry::Whole { generation, inline, .. } => (Some(generation.clone()), *inline),
        Entry::Damaged { .. } => (pool.store.salvaged_generation(&key), false),
    };
    let generation = generation.unwrap_or_else(|| Generation::from_bits([0; 4]));
    (VolumeId { pool: pool.tag(), key, generation }, inline)
}

/// The volume gets blocks of the pool when it is written to, and fails when there are none.
fn takes_blocks_later(located: &Located) -> bool {
    match located.volume().resolved {
        Resolved::Hostpath => true,
        Resolved::Loop { allocation, .. } => allocation == Allocation::Thin,
    }
}
