//! Loop devices of raw block volumes that nobody has any more.
//!
//! Such a device has no AUTOCLEAR: a bound device node does not hold its loop device, and the number would be handed to
//! somebody else's image while a pod has the node. So it stays until it is detached, and where an unstage was cut off behind
//! its unmount, nobody may ever come again for it; its volume could then not be deleted either.
//!
//! Invariants:
//! - A device is detached only when its label says that it is the volume's, an unstage of the volume was seen (there is a
//!   mark in `state/`, which a stage takes away), no mount shows it, and nobody else's loop device lies on it.
//! - A device whose unstage was not seen is only told of (`orlop pool check`): a pod may have a node of it that no mount shows.
//!
//! Must not: unmount anything. Kubelet finds by itself what it has mounted, and only kubelet knows which pod needs it.

use super::{Engine, EngineError, chain};
use crate::fault;
use crate::host::{DeviceNumber, HostError, LoopStatus, MountTable};
use crate::volume::VolumeId;

/// The raw-block loop devices of a volume, by their numbers.
#[derive(Debug, Default)]
struct Devices {
    detached: Vec<u32>,
    /// Somebody has them, so they were left alone.
    used: Vec<u32>,
}

impl Devices {
    fn has(&self, number: u32) -> bool {
        self.detached.contains(&number) || self.used.contains(&number)
    }
}

/// Why a device that carries a volume's label is left alone.
fn user_of_device(status: &LoopStatus, table: &MountTable, loops: &[LoopStatus]) -> Option<String> {
    let shows = |number| {
        let entry = table.iter().find(|entry| {
            table.bound_loop_node(entry).or_else(|| entry.mounted_loop()) == Some(number)
        })?;
        Some(format!("shown at {}", entry.mount_point.display()))
    };
    let number = status.number;
    let below = DeviceNumber::of_loop(number);
    let mut above = loops.iter().filter(|other| other.backing_device == Some(below));
    // Kubelet has one of its own on the device of a pod.
    let foreign = above.find(|other| other.label != status.label);
    shows(number).or_else(|| Some(format!("the base of /dev/loop{}", foreign?.number)))
}

impl Engine {
    /// Notes that an unstage has begun. Teardown needs nothing: where it cannot be noted, only a sweep will not know.
    pub(super) fn mark_unstaged(&self, id: Option<&VolumeId>) {
        let Some(id) = id else { return };
        if let Err(error) = self.state.mark_unstaged(id) {
            tracing::warn!(volume = %id, error = chain(&error), "cannot note that its device is unstaged; were the driver killed now, nothing but another unstage would detach it");
        }
    }

    /// Detaches the devices of a volume that was unmounted at its staging path.
    pub(super) fn detach_unstaged(
        &self,
        id: &VolumeId,
        staged: Option<u32>,
    ) -> Result<(), EngineError> {
        fault::point!("engine.unstage.unmounted")
            .map_err(|e| HostError::call("detach the device of", id.to_string(), e))?;
        let devices = self.detach_devices_of(id)?;
        if let Some(number) = staged.filter(|number| !devices.has(*number)) {
            tracing::warn!(
                volume = %id,
                device = number,
                "the staged loop device is not this volume's any more; left alone"
            );
        }
        // A filesystem volume was not marked; what is in use still is looked at again.
        if devices.used.is_empty() && (staged.is_some() || !devices.detached.is_empty()) {
            self.state.unmark_unstaged(id)?;
        }
        Ok(())
    }

    /// Detaches the raw-block loop devices that carry the volume's label and that nobody has. The label, not the number,
    /// says whose they are: a number is handed to somebody else's image as soon as it is free.
    fn detach_devices_of(&self, id: &VolumeId) -> Result<Devices, EngineError> {
        let (table, all) = (self.host.mounts()?, self.host.loops()?);
        let label = id.to_string();
        let mut ours: Vec<&LoopStatus> =
            all.iter().filter(|status| status.label == label && !status.autoclear).collect();
        // Views before what they lie on.
        ours.sort_by_key(|status| status.backing_device.is_none());
        let mut devices = Devices::default();
        for status in ours {
            if let Some(user) = user_of_device(status, &table, &all) {
                tracing::warn!(volume = %id, device = status.number, user, "a loop device is still in use; left attached");
                devices.used.push(status.number);
                continue;
            }
            self.host.detach(status.number, status.backing)?;
            devices.detached.push(status.number);
        }
        Ok(devices)
    }

    /// The volumes whose unstage was seen, and perhaps not its end.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn unstaged(&self) -> Result<Vec<VolumeId>, EngineError> {
        Ok(self.state.unstaged()?)
    }

    /// Ends what an unstage has begun. The caller has the volume's key, so that no stage or unstage runs meanwhile.
    ///
    /// # Errors
    /// The kernel does not show its mounts or loop devices, or does not detach one.
    pub fn detach_orphans(&self, id: &VolumeId) -> Result<(), EngineError> {
        let devices = self.detach_devices_of(id)?;
        for number in &devices.detached {
            tracing::info!(volume = %id, device = number, "loop device detached: its volume was unstaged, and nobody has it");
        }
        if devices.used.is_empty() { Ok(self.state.unmark_unstaged(id)?) } else { Ok(()) }
    }
}
