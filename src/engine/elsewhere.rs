//! What is refused because of what this node is, while another node may have it.
//!
//! With a topology in the request, "no room" (RESOURCE_EXHAUSTED) has the scheduler look for another node. Any other code
//! keeps the claim, and the pod that waits for it, on this one.
//!
//! Must not: say so where this node may have the volume already, in a pool that is away.

use super::pools::Pools;
use super::{Engine, EngineError};
use crate::volume::{CreateSpec, PoolChoice, PoolTag, Source};

/// What this node lacks for a new volume, as the caller is told.
pub(super) fn lacking(spec: &CreateSpec, error: EngineError) -> EngineError {
    let is_of_this_node = matches!(error, EngineError::Invalid(_) | EngineError::Away(_));
    if spec.requisite.is_empty() || !is_of_this_node {
        return error;
    }
    EngineError::NoSpace(format!("{error}; another node may have it"))
}

impl Pools {
    /// This node is configured with what is chosen.
    pub(super) fn has(&self, choice: &PoolChoice) -> bool {
        match choice {
            PoolChoice::Any => true,
            PoolChoice::Named(name) => self.names().any(|one| one == name),
        }
    }
}

impl Engine {
    /// The same for the source of a copy: a pool that this node has never had is another node's, or lost.
    pub(super) fn lacking_source(&self, spec: &CreateSpec, error: EngineError) -> EngineError {
        let is_away = matches!(error, EngineError::Away(_));
        match spec.source.as_ref() {
            Some(source) if is_away && self.pools.missing(pool_of(source)).is_none() => {
                lacking(spec, error)
            }
            Some(_) | None => error,
        }
    }
}

fn pool_of(source: &Source) -> &PoolTag {
    match source {
        Source::Snapshot(id) => &id.pool,
        Source::Volume(id) => &id.pool,
    }
}
