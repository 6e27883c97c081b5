//! ControllerModifyVolume: all of what is asked for, or nothing.

use std::os::fd::AsFd;

use super::{Engine, EngineError, Located};
use crate::host::HostError;
use crate::store::{IMAGE, Resolved};
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
            if self.may_share(&located)? {
                return Err(EngineError::Invalid(format!(
                    "parameter onDelete=wipe: blocks of volume {id} are, or may be, shared with snapshots or copies, and are not overwritten in place; copy its content into a new volume that has onDelete=wipe from its birth"
                )));
            }
        }
        let mut record = located.record.clone();
        record.volume.on_delete = on_delete;
        Ok(located.pool.store.update(&record)?)
    }

    /// Another file may have blocks of the volume as well; then it keeps what is overwritten here.
    fn may_share(&self, located: &Located) -> Result<bool, EngineError> {
        let volume = located.volume();
        if located.pool.store.has_snapshots(&volume.itself()) {
            return Ok(true);
        }
        if !located.pool.shares_blocks(&*self.host)? {
            return Ok(false);
        }
        let Resolved::Loop { .. } = volume.resolved else {
            // To look at every file would take long, and a pod could make more of them meanwhile.
            return Ok(true);
        };
        let image = located.pool.store.open_volume(&volume.key)?.image_to_read()?;
        let length = image.metadata().map_err(|e| HostError::call("look at", IMAGE, e))?.len();
        let extents = self.host.extents(image.as_fd(), 0, length)?;
        Ok(extents.is_none_or(|extents| extents.iter().any(|extent| extent.shared)))
    }
}
