//! DeleteVolume: refuse what is in use, then one rename. What is removed is removed in the background.

use super::{Engine, EngineError, reaper};
use crate::store::Grave;
use crate::volume::{OnDelete, VolumeId};

impl Engine {
    /// Ends a volume, by its `onDelete`. One that does not exist is fine.
    ///
    /// # Errors
    /// It is attached or in use, data is on its way into it, its record is damaged, or its pool is away (and it was not given up).
    pub fn delete(&self, id: &VolumeId) -> Result<(), EngineError> {
        let Some(located) = self.find_unless_forgotten(id)? else {
            return Ok(());
        };
        if located.volume().is_moving() {
            return self.give_up_import(&located);
        }
        self.refuse_attached(&located)?;
        if let Some(user) = self.user_of(&located)? {
            return Err(EngineError::Precondition(format!(
                "volume {id} is in use: {user}; unpublish and unstage it first"
            )));
        }
        let volume = located.volume();
        let grave = match volume.on_delete {
            OnDelete::Delete | OnDelete::Wipe => Grave::Trash,
            OnDelete::Archive => Grave::Archive,
            OnDelete::Retain => Grave::Retained,
        };
        let visit = located.pool.answers.visit();
        let name = located.pool.store.bury(&located.record, grave)?;
        drop(visit);
        located.pool.counts.forget(&volume.itself());
        match grave {
            Grave::Trash => reaper::wake(&located.pool, &self.host),
            Grave::Archive | Grave::Retained => {
                tracing::info!(volume = %id, pool = located.pool.name, kept = format!("{}/{name}", grave.directory()), "data kept");
            }
        }
        Ok(())
    }
}
