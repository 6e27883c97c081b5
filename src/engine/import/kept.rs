//! What `onDelete` kept comes back as the volume that it was.

use std::path::Path;
use std::sync::Arc;

use super::source::{missing, sound};
use super::{Described, ImportRequest, name_is_taken, unfinished};
use crate::engine::open_pool::OpenPool;
use crate::engine::{Engine, EngineError, Located};
use crate::store::{Kept, Record, StoreError};
use crate::volume::{PoolChoice, VolumeId};

/// What kind of place a path names.
pub(super) enum Place {
    /// Anywhere but in a pool.
    Outside,
    /// Below `retained/` or `archive/` of a pool.
    Kept(Arc<OpenPool>, Kept),
}

impl Engine {
    pub(super) fn place(&self, path: &Path) -> Place {
        let kept = |pool: Arc<OpenPool>| {
            let kept = pool.store.kept_at(path)?;
            Some(Place::Kept(pool, kept))
        };
        self.pools.here().into_iter().find_map(kept).unwrap_or(Place::Outside)
    }

    /// The record of a kept volume, which must be there and whole.
    pub(super) fn kept_record(pool: &OpenPool, kept: &Kept) -> Result<Record, EngineError> {
        let id = id(pool, kept);
        let record = match pool.store.kept_record(kept) {
            Err(source @ (StoreError::Damaged { .. } | StoreError::TooNew { .. })) => {
                return Err(EngineError::Damaged { what: format!("the kept volume {id}"), source });
            }
            record => record?,
        };
        record.filter(|record| record.volume.generation == kept.itself.generation).ok_or_else(
            || {
                EngineError::NotFound(format!(
                    "pool {} has kept no volume {id}; look below its retained/ and archive/",
                    pool.name
                ))
            },
        )
    }

    /// Makes a kept volume exist again, with its name and id. A volume that came back before is answered as it is.
    pub(super) fn revive(
        &self,
        request: &ImportRequest,
        pool: &Arc<OpenPool>,
        kept: &Kept,
    ) -> Result<Described, EngineError> {
        let id = id(pool, kept);
        if let Some(existing) = self.find_by_name(&id.key, &PoolChoice::Named(pool.name.clone()))? {
            return match existing.id() == id {
                true if !existing.volume().is_moving() => Ok(Described::of(&existing)),
                true => Err(unfinished(&existing)),
                false => Err(name_is_taken(&existing)),
            };
        }
        check_wishes(request, pool)?;
        let mut record = Self::kept_record(pool, kept)?;
        let data = pool.store.kept_data(kept, &record.volume).map_err(|e| missing(&id, e))?;
        self.refuse_used(&data, request.unused)?;
        sound(&data, &record.volume)?;
        self.check_on_delete(request, pool, record.volume.resolved)?;
        if let Some(on_delete) = request.on_delete {
            record.volume.on_delete = on_delete;
        }
        // Of the life before; nobody has told the nodes of this one.
        record.volume.attachments.clear();
        pool.store.revive(kept, &record)?;
        let located = Located { pool: Arc::clone(pool), record };
        self.hold_to_size(&located)?;
        Ok(Described::of(&located))
    }
}

fn id(pool: &OpenPool, kept: &Kept) -> VolumeId {
    kept.itself.volume_id(pool.tag())
}

/// What was kept stays in its pool and keeps its size.
pub(super) fn check_wishes(request: &ImportRequest, pool: &OpenPool) -> Result<(), EngineError> {
    let elsewhere = match &request.pool {
        PoolChoice::Named(name) => *name != pool.name,
        PoolChoice::Any => false,
    };
    if elsewhere {
        return Err(EngineError::Invalid(format!(
            "--to: what pool {} has kept comes back in that pool; give --copy to have it in another one",
            pool.name
        )));
    }
    if request.size.is_some() {
        return Err(EngineError::Invalid(
            "--size: what was kept comes back with the size that it had; expand it afterwards"
                .to_owned(),
        ));
    }
    Ok(())
}
