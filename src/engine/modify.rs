//! ControllerModifyVolume: all of what is asked for, or nothing.

use super::{Engine, EngineError};
use crate::volume::{MutableParameters, OnDelete, VolumeId};

impl Engine {
    /// Changes what can be changed of a volume.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: the volume cannot have it; then nothing is changed.
    pub fn modify(&self, id: &VolumeId, change: MutableParameters) -> Result<(), EngineError> {
        let located = self.locate(id)?;
        let Some(on_delete) = change.on_delete else { return Ok(()) };
        let volume = located.volume();
        if volume.on_delete == on_delete {
            return Ok(());
        }
        if on_delete == OnDelete::Wipe {
            self.check_wipe(&located.pool, volume.resolved)?;
            // What is shared is not overwritten: the other one keeps it.
            if volume.request.source.is_some() || located.pool.store.has_snapshots(&volume.itself())
            {
                return Err(EngineError::Invalid(format!(
                    "parameter onDelete=wipe: volume {id} has snapshots or is a copy, so that its blocks may be shared and are not overwritten in place; delete its snapshots, or copy its content into a new volume"
                )));
            }
        }
        let mut record = located.record.clone();
        record.volume.on_delete = on_delete;
        Ok(located.pool.store.update(&record)?)
    }
}
