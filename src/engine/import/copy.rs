//! A copy of a source becomes the volume's data. It is made in `incoming/` and exists with one rename; the source is read
//! only.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::source::Source;
use super::{Described, ImportRequest};
use crate::backend::{self, Progress};
use crate::engine::copying::{CopySource, CopyTarget};
use crate::engine::create::full;
use crate::engine::open_pool::OpenPool;
use crate::engine::{Engine, EngineError, Located};
use crate::host::PoolFilesystem;
use crate::store::{Kind, Resolved, VolumeDir};
use crate::volume::{Allocation, ByteSize, Limit, OnDelete, Quota};

impl Engine {
    /// Makes a volume of a copy.
    pub(super) fn import_copy(
        &self,
        request: &ImportRequest,
        name: &str,
        source: &Source,
    ) -> Result<Described, EngineError> {
        let pools = self.most_room_first(self.pools.chosen(&request.pool)?)?;
        let size = source.size(request.size)?;
        let (pool, mut promise) = self.reserve_in_first(&pools, &request.pool, |_| Ok(size))?;
        if source.resolved == Resolved::Hostpath {
            source.fits(size, pool.limit_for(Quota::Auto, &*self.host)?)?;
        }
        self.check_on_delete(request, pool, source.resolved)?;
        let mut record = Self::imported(request, name, source, size, false)?;
        let full = |error| full(error, pool, size);
        let incoming = pool.store.begin(Kind::Volume, &record.volume.key, &*self.host);
        let incoming = incoming.map_err(|e| full(e.into()))?;
        let made = self.fill_from(incoming.dir(), request, pool, source, size).and_then(|limit| {
            record.volume.limit = limit;
            // Whoever began to use it meanwhile may have written to one half of the copy only.
            self.refuse_used(&source.outside, request.unused)?;
            incoming.commit(&record, &mut promise).map_err(EngineError::from)
        });
        if let Err(error) = made {
            return Err(full(error).with_undo(incoming.abandon(&*self.host)));
        }
        let located = Located { pool: Arc::clone(pool), record };
        tracing::info!(volume = %located.id(), pool = pool.name, "imported");
        Ok(Described::of(&located))
    }

    /// Fills the directory of a new volume with a copy, and flushes it.
    fn fill_from(
        &self,
        dir: &VolumeDir,
        request: &ImportRequest,
        pool: &OpenPool,
        source: &Source,
        size: ByteSize,
    ) -> Result<Option<Limit>, EngineError> {
        let host = &*self.host;
        let limit = match source.resolved {
            Resolved::Hostpath => pool.new_limit(Quota::Auto, size, host)?,
            Resolved::Loop { .. } => None,
        };
        let share = self.may_share_with(request, pool, source)?;
        let target =
            CopyTarget { dir, size, allocation: Allocation::Thin, share, read_only: false, limit };
        let (name, data) = (source.outside.path().to_string_lossy(), source.outside.file());
        let from = CopySource { data, resolved: source.resolved, name: &name };
        self.copy_still(from, target, &Progress::default())?;
        if let Resolved::Loop { filesystem, sector, .. } = source.resolved {
            // Two filesystems of one UUID are in each other's way. One that has errors is for its owner to repair.
            if let Some(filesystem) = filesystem.filter(|_| !source.has_errors) {
                host.renew(dir.image_to_write()?.as_fd(), filesystem, sector, true)?;
            }
            backend::seal_image(dir)?;
        }
        Ok(match limit {
            Some(_) => backend::limit_of_new(dir, host)?,
            None => None,
        })
    }

    /// The copy may share blocks with the source. On btrfs not that of a directory: simple quotas would not count for the
    /// volume what it shares.
    fn may_share_with(
        &self,
        request: &ImportRequest,
        pool: &OpenPool,
        source: &Source,
    ) -> Result<bool, EngineError> {
        let on_btrfs = self.host.space(pool.store.directory())?.filesystem == PoolFilesystem::Btrfs;
        Ok(request.on_delete != Some(OnDelete::Wipe)
            && !(on_btrfs && source.resolved == Resolved::Hostpath)
            && source.outside.is_beside(pool.store.directory())?
            && pool.shares_blocks(&*self.host)?)
    }
}
