//! Volumes that begin with something: restores of snapshots and clones of volumes.
//!
//! A copy keeps the filesystem and the sector size of its source, gets a UUID of its own, and is grown to its size at
//! birth. Its root directory keeps the source's owner and mode: they are content.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::copying::{CopySource, CopyTarget, open_data};
use super::create::{Filled, Plan, check_flags, size_error, wanted_filesystem};
use super::open_pool::OpenPool;
use super::snapshot::no_snapshot;
use super::{Engine, EngineError, Located};
use crate::backend::{self, Progress};
use crate::store::{Name, Resolved, Shared, Snapshot, VolumeDir};
use crate::volume::{
    Allocation, ByteSize, CapacityRange, CreateSpec, Filesystem, LimitKind, OnDelete, Source,
};

/// So many generations of copies of directories share what the first of them wrote.
const GENERATIONS: usize = 32;

/// What a volume begins with.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) pool: Arc<OpenPool>,
    pub(super) resolved: Resolved,
    pub(super) size: ByteSize,
    kind: OriginKind,
}

#[derive(Debug)]
enum OriginKind {
    Snapshot(Arc<Snapshot>),
    Volume(Box<Located>),
}

impl Origin {
    /// How many copies of copies it is, where that is kept.
    fn generations(&self) -> usize {
        match &self.kind {
            OriginKind::Snapshot(snapshot) => snapshot.shared.len(),
            OriginKind::Volume(located) => located.volume().shared.len(),
        }
    }

    /// The volume itself, when it is one.
    pub(super) fn volume(&self) -> Option<&Located> {
        match &self.kind {
            OriginKind::Snapshot(_) => None,
            OriginKind::Volume(located) => Some(located),
        }
    }

    fn dir(&self) -> Result<VolumeDir, EngineError> {
        Ok(match &self.kind {
            OriginKind::Snapshot(snapshot) => self.pool.store.open_snapshot(snapshot)?,
            OriginKind::Volume(located) => self.pool.store.open_volume(&located.volume().key)?,
        })
    }
}

fn incompatible(text: &str) -> EngineError {
    EngineError::Invalid(format!("volume_content_source: {text}"))
}

impl Engine {
    /// What a source names.
    ///
    /// # Errors
    /// It does not exist, may not be copied, or its pool is away.
    pub(super) fn origin(&self, source: &Source) -> Result<Origin, EngineError> {
        match source {
            Source::Snapshot(id) => {
                let (pool, snapshot) = self.find_snapshot(id)?.ok_or_else(|| no_snapshot(id))?;
                let (resolved, size) = (snapshot.resolved, snapshot.size);
                Ok(Origin { pool, resolved, size, kind: OriginKind::Snapshot(snapshot) })
            }
            Source::Volume(id) => {
                let located = self.locate(id)?;
                self.may_be_copied(&located)?;
                let (resolved, size) = (located.volume().resolved, located.volume().size);
                let pool = Arc::clone(&located.pool);
                Ok(Origin { pool, resolved, size, kind: OriginKind::Volume(Box::new(located)) })
            }
        }
    }

    /// What a request for a copy comes to.
    ///
    /// # Errors
    /// The source cannot become what is asked for.
    pub(super) fn plan_copy(
        &self,
        spec: &CreateSpec,
        origin: &Origin,
    ) -> Result<Plan, EngineError> {
        let (has, wants) = (origin.resolved.backend(), spec.parameters.backend);
        if has != wants {
            return Err(incompatible(&format!(
                "the source's backend is {has}, the class asks for {wants}; use a class with backend={has}"
            )));
        }
        let resolved = match origin.resolved {
            Resolved::Hostpath if spec.is_block() => {
                return Err(incompatible(
                    "it is a directory; backend=hostpath has no raw block volumes",
                ));
            }
            Resolved::Hostpath => Resolved::Hostpath,
            Resolved::Loop { filesystem, sector, .. } => Resolved::Loop {
                filesystem: self.filesystem_of_copy(spec, origin, filesystem)?,
                sector,
                allocation: spec.parameters.allocation,
                direct_io: spec.parameters.direct_io,
            },
        };
        check_flags(spec, resolved)?;
        Ok(Plan { size: size_of_copy(spec, origin)?, resolved, mkfs_options: Vec::new() })
    }

    /// The filesystem that a copy of an image has; `None` for raw block, which may well have one in it.
    fn filesystem_of_copy(
        &self,
        spec: &CreateSpec,
        origin: &Origin,
        has: Option<Filesystem>,
    ) -> Result<Option<Filesystem>, EngineError> {
        if spec.is_block() {
            return Ok(None);
        }
        let found = if let Some(filesystem) = has {
            filesystem
        } else {
            let image = origin.dir()?.image_to_read()?;
            let signature = self.host.probe(image.as_fd())?.ok_or_else(|| {
                incompatible(
                    "it is a raw block device without a filesystem (ext4, xfs, btrfs) on it; ask for volumeMode: Block",
                )
            })?;
            signature.filesystem
        };
        match wanted_filesystem(spec)? {
            Some(wanted) if wanted != found => Err(incompatible(&format!(
                "it has {found}, the request asks for {wanted}; a copy keeps its source's filesystem"
            ))),
            Some(_) | None => Ok(Some(found)),
        }
    }

    /// The copy shares blocks with what it is made of.
    fn shares(
        &self,
        spec: &CreateSpec,
        pool: &OpenPool,
        origin: &Origin,
    ) -> Result<bool, EngineError> {
        // Shared blocks are neither reserved nor overwritten in place. A line of copies ends somewhere: the last is whole.
        let may = origin.generations() < GENERATIONS
            && pool.tag() == origin.pool.tag()
            && (origin.resolved == Resolved::Hostpath
                || spec.parameters.allocation == Allocation::Thin)
            && spec.parameters.on_delete != OnDelete::Wipe;
        Ok(may && pool.shares_blocks(&*self.host)?)
    }

    /// How much a copy will share at most that is to be charged beside its size. What a snapshot shares is charged already,
    /// to the snapshot.
    pub(super) fn most_shared_with(
        &self,
        spec: &CreateSpec,
        pool: &OpenPool,
        origin: Option<&Origin>,
    ) -> Result<ByteSize, EngineError> {
        match origin {
            Some(Origin { kind: OriginKind::Volume(located), .. })
                if located.volume().resolved == Resolved::Hostpath
                    && origin.map_or(Ok(false), |origin| self.shares(spec, pool, origin))? =>
            {
                self.most_shared(located)
            }
            Some(_) | None => Ok(ByteSize::ZERO),
        }
    }

    /// Fills the directory of a new volume with a copy and flushes it.
    pub(super) fn fill_copy(
        &self,
        dir: &VolumeDir,
        spec: &CreateSpec,
        plan: &Plan,
        pool: &OpenPool,
        origin: &Origin,
        itself: Name,
    ) -> Result<Filled, EngineError> {
        let (allocation, limit) = match plan.resolved {
            Resolved::Hostpath => {
                let quota = spec.parameters.quota;
                (Allocation::Thin, pool.new_limit(quota, plan.size, &*self.host)?)
            }
            Resolved::Loop { allocation, .. } => (allocation, None),
        };
        let share = self.shares(spec, pool, origin)?;
        let target =
            CopyTarget { dir, size: plan.size, allocation, share, read_only: false, limit };
        match &origin.kind {
            OriginKind::Volume(located) => {
                self.copy_volume(located, target)?;
            }
            OriginKind::Snapshot(snapshot) => {
                let from = origin.dir()?;
                let name = snapshot.id(origin.pool.tag()).to_string();
                let (resolved, data) = (origin.resolved, open_data(&from, origin.resolved)?);
                let source = CopySource { data: &data, resolved, name: &name };
                self.copy_still(source, target, &Progress::default())?;
            }
        }
        match plan.resolved {
            Resolved::Hostpath => self.directory_filled(dir, itself, target, origin),
            Resolved::Loop { filesystem, sector, .. } => {
                self.finish_image(dir, plan.size, origin, filesystem, sector)?;
                Ok(Filled { limit: None, shared: Vec::new() })
            }
        }
    }

    /// What a copied directory is under, and what it shares where bytes belong to who wrote them first.
    fn directory_filled(
        &self,
        dir: &VolumeDir,
        itself: Name,
        target: CopyTarget<'_>,
        origin: &Origin,
    ) -> Result<Filled, EngineError> {
        let limit = match target.limit {
            Some(_) => backend::limit_of_new(dir, &*self.host)?,
            None => None,
        };
        let kind = self.host.limit_kind(dir.as_fd())?;
        if !(target.share && kind.is_some_and(LimitKind::charges_first_writer)) {
            return Ok(Filled { limit, shared: Vec::new() });
        }
        let (own, began) = match &origin.kind {
            OriginKind::Snapshot(snapshot) => {
                let (writer, origin) = (snapshot.source.clone(), snapshot.itself.clone());
                (Shared { size: snapshot.charge, writer, origin }, &snapshot.shared)
            }
            OriginKind::Volume(located) => {
                let size = self.charge_for(located, dir)?;
                let (writer, origin) = (located.volume().itself(), itself);
                (Shared { size, writer, origin }, &located.volume().shared)
            }
        };
        let shared = std::iter::once(own).chain(began.iter().cloned()).collect();
        Ok(Filled { limit, shared })
    }

    /// Gives the filesystem of a copied image a UUID of its own, grows it, and flushes the image.
    fn finish_image(
        &self,
        dir: &VolumeDir,
        size: ByteSize,
        origin: &Origin,
        filesystem: Option<Filesystem>,
        sector: u32,
    ) -> Result<(), EngineError> {
        if let Some(filesystem) = filesystem {
            let image = dir.image_to_write()?;
            // What lies on a raw device was made by a pod.
            let made_elsewhere = origin.resolved.is_block();
            self.host.renew(image.as_fd(), filesystem, sector, made_elsewhere)?;
        }
        if backend::seal_image(dir)? > size {
            return Err(EngineError::Precondition(
                "the source was grown while it was copied; repeat".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The size of a copy: at least that of its source.
fn size_of_copy(spec: &CreateSpec, origin: &Origin) -> Result<ByteSize, EngineError> {
    let range = spec.capacity;
    if range.limit.is_some_and(|limit| limit < origin.size) {
        return Err(EngineError::Size(format!(
            "the source has {}, which is above limit_bytes; ask for at least as much",
            origin.size
        )));
    }
    if range.required <= origin.size {
        return Ok(origin.size);
    }
    let filesystem = origin.resolved.filesystem();
    let (minimum, step) = backend::smallest(origin.resolved.backend(), filesystem);
    let range = CapacityRange { required: range.required.max(origin.size), limit: range.limit };
    range.choose(minimum, step).map_err(|error| size_error(&error))
}
