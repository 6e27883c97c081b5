//! NodeStageVolume and NodeUnstageVolume.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::apply::{Target, refusal};
use super::create::loop_filesystem;
use super::observe::{DEVICE, Data, loop_seen};
use super::plan::{self, StageView};
use super::{Engine, EngineError, Located, chain};
use crate::backend;
use crate::host::{DeviceNumber, HostError, MountTable, NodeKind};
use crate::store::{IMAGE, Resolved, Volume};
use crate::telemetry::{self, Recovery};
use crate::volume::{AccessType, Allocation, ByteSize, MountFlags, VolumeCapability, VolumeId};

/// What NodeStageVolume asks for.
#[derive(Debug, Clone)]
pub struct StageRequest {
    /// Which volume.
    pub id: VolumeId,
    /// Where.
    pub staging: PathBuf,
    /// How it will be used.
    pub capability: VolumeCapability,
}

/// The mount flags of a capability; a device has none.
pub(super) fn flags(capability: &VolumeCapability) -> MountFlags {
    match &capability.access {
        AccessType::Mount { flags, .. } => flags.clone(),
        AccessType::Block => MountFlags::default(),
    }
}

/// The volume can be used in that way.
///
/// # Errors
/// [`EngineError::Precondition`] when it is of another kind, [`EngineError::Invalid`] for a flag that it does not take.
pub(super) fn check_capability(
    volume: &Volume,
    capability: &VolumeCapability,
) -> Result<(), EngineError> {
    let mismatch = |text: String| Err(EngineError::Precondition(text));
    match (&capability.access, volume.resolved) {
        (AccessType::Block, Resolved::Loop { filesystem: None, .. }) => Ok(()),
        (AccessType::Block, Resolved::Hostpath | Resolved::Loop { .. }) => {
            mismatch("the volume has a filesystem; it cannot be used as a raw block device".to_owned())
        }
        (AccessType::Mount { .. }, Resolved::Loop { filesystem: None, .. }) => mismatch(
            "the volume is a raw block device without a filesystem; it is never formatted after its birth".to_owned(),
        ),
        (AccessType::Mount { flags, .. }, Resolved::Hostpath) => {
            flags.check(None).map_err(|e| EngineError::Invalid(e.to_string()))
        }
        (AccessType::Mount { filesystem, flags }, Resolved::Loop { filesystem: Some(has), .. }) => {
            match loop_filesystem(filesystem)? {
                Some(asked) if asked != has => {
                    mismatch(format!("the volume has {has}, the request asks for {asked}; a volume keeps its filesystem"))
                }
                Some(_) | None => {
                    flags.check(Some(has)).map_err(|e| EngineError::Invalid(e.to_string()))
                }
            }
        }
    }
}

impl Engine {
    /// Makes a volume ready on this node: binds its directory, mounts its filesystem, or attaches its device.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing is left half done.
    pub fn stage(&self, request: &StageRequest) -> Result<(), EngineError> {
        let located = self.locate(&request.id)?;
        check_capability(located.volume(), &request.capability)?;
        self.hold_to_size(&located)?;
        let read_only =
            self.is_attached_read_only(&located)? || request.capability.mode.reads_only();
        let staging =
            self.mount_path(&request.staging)?.ok_or_else(|| no_parent(&request.staging))?;
        self.show(&located, staging, &flags(&request.capability), read_only)
    }

    /// Makes a volume's data appear: binds its directory, mounts its filesystem, or attaches its device.
    pub(super) fn show(
        &self,
        located: &Located,
        staging: PathBuf,
        flags: &MountFlags,
        read_only: bool,
    ) -> Result<(), EngineError> {
        // From here on somebody may write.
        let _call = self.traffic.enter(&located.volume().key);
        let block = located.volume().resolved.is_block();
        if block {
            // What an unstage has left is no device to go on with: it may be one for readers.
            self.detach_orphans(&located.id())?;
        }
        let observed = self.observe(located)?;
        let path = if block { staging.join(DEVICE) } else { staging.clone() };
        let loops = match &observed.data {
            Data::Directory { .. } => Vec::new(),
            Data::Image { loops, .. } => loops.iter().map(loop_seen).collect(),
        };
        let grows_mounted = self.grows_mounted(located);
        let view = StageView {
            kind: observed.data.kind(),
            seen: self.seen(&observed, &path)?,
            path,
            staging,
            attributes: flags.attributes.or_read_only(read_only),
            loops,
            // Before a mount it grows only when no other stage has it mounted.
            outgrown: self.is_outgrown(located)? && (grows_mounted || !observed.is_mounted()),
            grows_mounted,
        };
        let steps = plan::stage(&view).map_err(refusal)?;
        if !read_only {
            if !steps.is_empty() {
                located.pool.check_writable()?;
            }
            check_whole(located)?;
            keep_thick(located)?;
        }
        let target =
            Target { located, data: &observed.data, staged: None, options: &flags.options };
        self.apply(&target, &steps)
    }

    /// The filesystem of the volume can grow while it is mounted.
    pub(super) fn grows_mounted(&self, located: &Located) -> bool {
        match located.volume().resolved {
            Resolved::Loop { filesystem: Some(filesystem), .. } => {
                self.host.can_grow_mounted(filesystem)
            }
            Resolved::Loop { filesystem: None, .. } | Resolved::Hostpath => true,
        }
    }

    /// The filesystem of the volume is smaller than the volume.
    pub(super) fn is_outgrown(&self, located: &Located) -> Result<bool, EngineError> {
        let Resolved::Loop { filesystem: Some(_), .. } = located.volume().resolved else {
            return Ok(false);
        };
        let file = located.pool.store.open_volume(&located.volume().key)?.image_to_read()?;
        let signature = self.host.probe(file.as_fd())?;
        // The record's size, not the image's length: an expansion that was cut off has not been promised yet.
        Ok(signature.is_some_and(|signature| signature.size < located.volume().size))
    }

    /// Undoes a stage from the path, the mount table and the loop devices alone. What is not there is fine.
    ///
    /// # Errors
    /// The volume is still published as a device, or the kernel refuses to unmount.
    pub fn unstage(&self, id: &str, staging: &Path) -> Result<(), EngineError> {
        let Some(staging) = self.mount_path(staging)? else {
            return Ok(());
        };
        // Only what is labelled with an id of this driver can be this driver's device.
        let ours = id.parse::<VolumeId>().ok();
        let table = self.host.mounts()?;
        let device = staging.join(DEVICE);
        let number = table.loop_node_at(&device);
        if let Some(number) = number {
            self.refuse_published_device(&table, number, &device)?;
            self.mark_unstaged(ours.as_ref(), number)?;
            if let Err(error) = self.unmount_all(&device) {
                // Somebody has it still.
                self.unmark_unstaged(ours.as_ref());
                return Err(error);
            }
        }
        let was_mounted = table.top_at(&staging).is_some();
        self.unmount_all(&staging)?;
        // In a mounted volume a file of this name is the user's.
        if number.is_some() || (!was_mounted && self.is_leftover_file(&device)?) {
            self.host.remove_mount_point(&device)?;
        }
        match ours {
            Some(id) => self.detach_unstaged(&id, number),
            None => Ok(()),
        }
    }

    /// A file that a killed stage made to bind a device on.
    fn is_leftover_file(&self, device: &Path) -> Result<bool, EngineError> {
        let node = self.host.node(device)?;
        Ok(node.is_some_and(|node| node.kind == NodeKind::File))
    }

    /// A pod that still has the device would lose it.
    fn refuse_published_device(
        &self,
        table: &MountTable,
        number: u32,
        staged: &Path,
    ) -> Result<(), EngineError> {
        let views = self.views_of(number)?;
        let published = table.iter().find(|entry| {
            let bound = table.bound_loop_node(entry);
            entry.mount_point != staged && bound.is_some_and(|n| n == number || views.contains(&n))
        });
        match published {
            None => Ok(()),
            Some(entry) => Err(EngineError::Precondition(format!(
                "the device is still published at {}; unpublish it first",
                entry.mount_point.display()
            ))),
        }
    }

    /// The read-only loop devices on a loop device.
    fn views_of(&self, number: u32) -> Result<Vec<u32>, EngineError> {
        let below = DeviceNumber::of_loop(number);
        let loops = self.host.loops()?;
        let views = loops.iter().filter(|status| status.backing_device == Some(below));
        Ok(views.map(|status| status.number).collect())
    }

    /// Unmounts whatever is mounted at exactly this path, the topmost first.
    pub(super) fn unmount_all(&self, path: &Path) -> Result<(), EngineError> {
        // Bounded: whoever mounts there faster than this unmounts is not kubelet.
        for _ in 0..64 {
            if self.host.mounts()?.top_at(path).is_none() {
                return Ok(());
            }
            self.host.unmount(path).map_err(|error| busy(path, error))?;
        }
        Err(EngineError::Precondition(format!("{} keeps being mounted on", path.display())))
    }
}

/// An image that has lost its end is neither written to nor made longer: what is lost would look like zeroes, and be taken
/// for good data.
///
/// # Errors
/// [`EngineError::Precondition`], or the image cannot be opened.
pub(super) fn check_whole(located: &Located) -> Result<(), EngineError> {
    let (id, volume) = (located.id(), located.volume());
    if volume.resolved == Resolved::Hostpath {
        return Ok(());
    }
    let image = located.pool.store.open_volume(&volume.key)?.image_to_read()?;
    let metadata = image.metadata().map_err(|e| HostError::call("look at", IMAGE, e))?;
    let length = ByteSize::new(metadata.len());
    if length >= volume.size {
        return Ok(());
    }
    Err(EngineError::Precondition(format!(
        "volume {id} has lost data: its image has {length}, and should have {} (ImageTruncated); it is not written to: restore it from a copy",
        volume.size
    )))
}

/// A thick volume has all its blocks before anybody writes to it: somebody may have copied its image without them, or
/// punched holes into it.
fn keep_thick(located: &Located) -> Result<(), EngineError> {
    let (id, volume, pool) = (located.id(), located.volume(), &located.pool);
    if volume.resolved.allocation() == Allocation::Thin {
        return Ok(());
    }
    let dir = pool.store.open_volume(&volume.key)?;
    let missing = backend::missing_blocks(&dir)?;
    if missing == ByteSize::ZERO {
        return Ok(());
    }
    let filled = dir.image_to_write().map_err(EngineError::from);
    let filled = filled.and_then(|image| Ok(backend::fill_holes(image.as_fd())?));
    filled.map_err(|error| {
        error.when_full(|cause| {
            EngineError::Precondition(format!(
                "volume {id} has allocation=thick and lacks {missing} of its blocks, and pool {} has no room for them ({cause}): free some space in the pool's filesystem, or make it larger; a read-only mount does not need them",
                pool.name
            ))
        })
    })?;
    tracing::warn!(volume = %id, pool = pool.name, %missing, "a thick volume had lost blocks; they are reserved again");
    telemetry::recovery(Recovery::Blocks);
    Ok(())
}

fn busy(path: &Path, error: HostError) -> EngineError {
    if error.errno() == Some(nix::errno::Errno::EBUSY) {
        EngineError::Precondition(format!(
            "{} is in use by a process ({}); end it, then repeat",
            path.display(),
            chain(&error)
        ))
    } else {
        error.into()
    }
}

pub(super) fn no_parent(path: &Path) -> EngineError {
    EngineError::Precondition(format!(
        "the directory above {} does not exist; the CO makes it before the call",
        path.display()
    ))
}
