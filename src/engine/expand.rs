//! Expansion: the image grows first, then the record; a crash in between is finished by the repeat.

use std::path::Path;

use super::create::size_error;
use super::freeze::FreezePoint;
use super::limits::not_held;
use super::observe::MountedAs;
use super::stage::check_whole;
use super::{Engine, EngineError, Located, chain};
use crate::backend;
use crate::store::Resolved;
use crate::volume::{Allocation, ByteSize, CapacityRange, Filesystem, VolumeId};

/// A volume that has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expanded {
    /// Its size now.
    pub size: ByteSize,
    /// The node has something left to do (tell the loop device, grow the filesystem).
    pub node_expansion_required: bool,
}

impl Engine {
    /// Grows a volume, mounted or not. One that is large enough stays as it is.
    ///
    /// # Errors
    /// No possible size lies in the range, or there is no room: [`EngineError::Size`] in both cases, because
    /// Kubernetes can take back a request that is out of range, but not one that is short of resources.
    pub fn expand(&self, id: &VolumeId, range: CapacityRange) -> Result<Expanded, EngineError> {
        let mut located = self.locate(id)?;
        self.grow_data(&mut located, range)?;
        Ok(Expanded {
            size: located.volume().size,
            node_expansion_required: matches!(located.volume().resolved, Resolved::Loop { .. }),
        })
    }

    /// Lets a node's loop device and filesystem have what their volume grew by; grows the volume first if it is smaller
    /// than asked.
    ///
    /// # Errors
    /// The path is not one of the volume's mounts, and as for [`Engine::expand`].
    pub fn node_expand(
        &self,
        id: &VolumeId,
        path: &Path,
        range: CapacityRange,
    ) -> Result<ByteSize, EngineError> {
        let mut located = self.locate(id)?;
        let mounted = self.mounted_as(&located, path)?;
        let _call = self.traffic.enter(&id.key);
        self.grow_data(&mut located, range)?;
        let size = located.volume().size;
        match (located.volume().resolved, mounted) {
            (Resolved::Hostpath, _) => {}
            (
                Resolved::Loop { filesystem, .. },
                MountedAs::Filesystem { number, writable_at, .. },
            ) => {
                let device = self.host.refresh_loop_size(number)?;
                let filesystem = filesystem.ok_or_else(|| EngineError::no_volume(id))?;
                match writable_at {
                    // Mounted read-only everywhere, it grows when it is next staged for writing.
                    None => {
                        tracing::info!(volume = %id, "mounted read-only: grows when it is next writable");
                    }
                    Some(mount) if self.grows_mounted(&located) => {
                        self.grow_filesystem(&located, filesystem, &mount, device)?;
                    }
                    Some(_) if self.is_outgrown(&located)? => return Err(cannot_grow_mounted(id)),
                    Some(_) => {}
                }
            }
            (Resolved::Loop { .. }, MountedAs::Device { numbers }) => {
                for number in numbers {
                    self.host.refresh_loop_size(number)?;
                }
            }
            (Resolved::Loop { .. }, MountedAs::Directory) => {
                return Err(EngineError::NotFound(format!(
                    "{} is not a mount of volume {id}",
                    path.display()
                )));
            }
        }
        Ok(size)
    }

    /// Grows a mounted filesystem to the size of its device.
    ///
    /// XFS writes its superblock back before anything is answered: recovery of its log, after a power cut, does not know
    /// the new size and refuses blocks beyond the old one (seen on Linux 6.1, after new space was written to). A freeze has
    /// it written; it waits for no more than what is dirty.
    pub(super) fn grow_filesystem(
        &self,
        located: &Located,
        filesystem: Filesystem,
        path: &Path,
        device: ByteSize,
    ) -> Result<(), EngineError> {
        self.host.grow(filesystem, path, device)?;
        if filesystem != Filesystem::Xfs {
            return Ok(());
        }
        let table = self.host.mounts()?;
        let seen = table.top_at(path).map(|entry| self.host.hold_mount(entry));
        // Unmounted meanwhile, it has been written back.
        let Some(mount) = seen.transpose()?.flatten() else { return Ok(()) };
        let id = located.id();
        let written = self.while_frozen(&[FreezePoint { id: id.clone(), mount }], || Ok(()));
        written.map_err(|error| {
            EngineError::Precondition(format!(
                "the filesystem of volume {id} has grown, but its superblock could not be written back ({}); repeat the request",
                chain(&error)
            ))
        })
    }

    /// Makes the image and the record as large as asked.
    fn grow_data(&self, located: &mut Located, range: CapacityRange) -> Result<(), EngineError> {
        let id = located.id();
        let volume = located.volume();
        let current = volume.size;
        if range.limit.is_some_and(|limit| current > limit) {
            return Err(EngineError::Size(format!(
                "volume {id} has {current} already, which is above limit_bytes; volumes never shrink"
            )));
        }
        if range.required <= current {
            // An expansion that was cut off may have left another bound.
            return self.hold_to_size(located);
        }
        let (filesystem, allocation) = match volume.resolved {
            Resolved::Hostpath => (None, Allocation::Thin),
            Resolved::Loop { filesystem, allocation, .. } => (filesystem, allocation),
        };
        let (minimum, step) = backend::smallest(volume.resolved.backend(), filesystem);
        let size = range.choose(minimum, step).map_err(|error| size_error(&error))?;
        check_whole(located)?;
        let more = size.saturating_sub(current);
        let pool = &located.pool;
        let promise = pool.reserve(more, allocation, &*self.host)?;
        let mut promise = promise.map_err(|room| {
            EngineError::Size(format!(
                "no room for {more} more in pool {}: {room} can still be promised",
                pool.name
            ))
        })?;
        if matches!(volume.resolved, Resolved::Loop { .. }) {
            let dir = pool.store.open_volume(&volume.key)?;
            backend::grow_image(&dir, size, allocation)
                .map_err(|error| full(error.into(), &pool.name))?;
        }
        let mut record = located.record.clone();
        record.volume.size = size;
        let updated = pool.hold_and_update(&record, volume, &mut promise, &*self.host);
        if !updated.map_err(|error| full(error, &pool.name))? {
            return Err(not_held(&id, &pool.name));
        }
        located.record = record;
        Ok(())
    }
}

fn cannot_grow_mounted(id: &VolumeId) -> EngineError {
    EngineError::Precondition(format!(
        "the filesystem of volume {id} cannot grow while it is mounted: the driver lacks CAP_SYS_RESOURCE; run it privileged, or end the pods that use the volume: it grows when it is staged again"
    ))
}

fn full(error: EngineError, pool: &str) -> EngineError {
    error.when_full(|cause| {
        EngineError::Size(format!("the filesystem of pool {pool} is full: {cause}"))
    })
}
