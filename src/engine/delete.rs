//! DeleteVolume: refuse what is in use, then one rename. What is removed is removed in the background.

use std::path::PathBuf;

use super::{Engine, EngineError, reaper};
use crate::store::Grave;
use crate::volume::{OnDelete, VolumeId};

/// What became of a volume that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The name that it had.
    pub name: String,
    /// What was to become of its data.
    pub on_delete: OnDelete,
    /// Where its data is, when it is kept.
    pub kept: Option<PathBuf>,
}

impl Engine {
    /// Ends a volume, by its `onDelete`. One that does not exist is fine.
    ///
    /// # Errors
    /// It is attached or in use, data is on its way into it, its record is damaged, or its pool is away (and it was not given up).
    pub fn delete(&self, id: &VolumeId) -> Result<(), EngineError> {
        self.delete_if_there(id).map(drop)
    }

    /// The same for somebody who means this very volume.
    ///
    /// # Errors
    /// As [`Engine::delete`], and when it does not exist.
    pub fn delete_existing(&self, id: &VolumeId) -> Result<Deleted, EngineError> {
        self.delete_if_there(id)?.ok_or_else(|| EngineError::no_volume(id))
    }

    fn delete_if_there(&self, id: &VolumeId) -> Result<Option<Deleted>, EngineError> {
        let Some(located) = self.find_unless_forgotten(id)? else {
            return Ok(None);
        };
        let volume = located.volume();
        let mut deleted =
            Deleted { name: volume.name.clone(), on_delete: volume.on_delete, kept: None };
        if volume.is_moving() {
            self.give_up_import(&located)?;
            return Ok(Some(deleted));
        }
        self.refuse_attached(&located)?;
        if let Some(user) = self.user_of(&located)? {
            return Err(EngineError::Precondition(format!(
                "volume {id} is in use: {user}; unpublish and unstage it first"
            )));
        }
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
                deleted.kept = Some(located.pool.store.path().join(grave.directory()).join(name));
            }
        }
        Ok(Some(deleted))
    }
}
