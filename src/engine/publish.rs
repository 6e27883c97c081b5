//! NodePublishVolume and NodeUnpublishVolume.

use std::path::{Path, PathBuf};

use super::apply::{Target, in_the_way, refusal};
use super::observe::{DEVICE, loop_seen};
use super::plan::{self, PublishView};
use super::stage::{check_capability, flags, no_parent};
use super::{Engine, EngineError};
use crate::volume::{VolumeCapability, VolumeId};

/// What NodePublishVolume asks for.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// Which volume.
    pub id: VolumeId,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where the pod will see it.
    pub target: PathBuf,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// The pod may not write.
    pub read_only: bool,
}

impl Engine {
    /// Shows a staged volume at a target path.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing is left half done.
    pub fn publish(&self, request: &PublishRequest) -> Result<(), EngineError> {
        let located = self.locate(&request.id)?;
        check_capability(located.volume(), &request.capability)?;
        let attached_read_only = self.is_attached_read_only(&located)?;
        let not_staged = || {
            EngineError::Precondition(format!(
                "{} is not a staging path; call NodeStageVolume first",
                request.staging.display()
            ))
        };
        let staging = self.mount_path(&request.staging)?.ok_or_else(not_staged)?;
        let target = self.mount_path(&request.target)?.ok_or_else(|| no_parent(&request.target))?;
        // From here on somebody may write.
        let _call = self.traffic.enter(&request.id.key);
        let observed = self.observe(&located)?;
        let block = located.volume().resolved.is_block();
        let staged_at = if block { staging.join(DEVICE) } else { staging };
        let flags = flags(&request.capability);
        let mode = request.capability.mode;
        let staged_device = observed.table.loop_node_at(&staged_at);
        let view = PublishView {
            staging: staged_at.clone(),
            kind: observed.data.kind(),
            staged: self.seen(&observed, &staged_at)?,
            device: staged_device.and_then(|number| Some(loop_seen(observed.device(number)?.0))),
            attributes: flags
                .attributes
                .or_read_only(request.read_only || mode.reads_only() || attached_read_only),
            seen: self.seen(&observed, &target)?,
            exclusive: mode.is_exclusive(),
            one_writer: mode.has_one_writer(),
            others: observed.other_targets(&[&staged_at, &target]),
            target,
        };
        let steps = plan::publish(&view).map_err(refusal)?;
        if steps.is_empty() {
            return Ok(());
        }
        let target = Target {
            located: &located,
            data: &observed.data,
            staged: Some(&staged_at),
            options: &flags.options,
        };
        self.apply(&target, &steps)
    }

    /// Undoes a publish from the path, the mount table and the loop devices alone. What is not there is fine.
    ///
    /// # Errors
    /// The kernel refuses to unmount, or the path holds files that are not the volume's.
    pub fn unpublish(&self, target: &Path) -> Result<(), EngineError> {
        let Some(target) = self.mount_path(target)? else {
            return Ok(());
        };
        let table = self.host.mounts()?;
        let bound = table.loop_node_at(&target);
        self.unmount_all(&target)?;
        if let Some(number) = bound {
            self.detach_view(number)?;
        }
        self.host.remove_mount_point(&target).map_err(in_the_way)
    }

    /// Detaches a read-only view that this driver made for one target path; other loop devices are left alone.
    fn detach_view(&self, number: u32) -> Result<(), EngineError> {
        let Some(status) = self.host.loop_status(number)? else {
            return Ok(());
        };
        let ours = status.label.parse::<VolumeId>().is_ok();
        if ours && status.read_only && status.backing_device.is_some() {
            self.host.detach(number, status.backing)?;
        }
        Ok(())
    }
}
