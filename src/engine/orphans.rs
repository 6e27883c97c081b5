//! Loop devices of raw block volumes that nobody has any more.
//!
//! Such a device has no AUTOCLEAR: a bound device node does not hold its loop device, and the number would be handed to
//! somebody else's image while a pod has the node. So it stays until it is detached, and where an unstage was cut off behind
//! its unmount, nobody may ever come again for it; its volume could then not be deleted either.
//!
//! Invariants:
//! - A sweep detaches a device only when an unstage of the volume was seen (there is a mark in `state/` that names the image),
//!   its label says that it is the volume's, it is on that image, no mount shows it, and no other loop device lies on it.
//! - A mark whose device is shown again is taken away: somebody has it.
//! - A device whose unstage was not seen is only told of (`orlop pool check`): a pod may have a node of it that no mount shows.
//!
//! Must not: unmount anything. Kubelet finds by itself what it has mounted, and only kubelet knows which pod needs it.

use super::{Engine, EngineError, chain};
use crate::fault;
use crate::host::{DeviceNumber, FileIdentity, HostError, LoopStatus, MountEntry, MountTable};
use crate::telemetry::{self, Reason};
use crate::volume::VolumeId;

/// The raw-block loop devices of a volume.
#[derive(Debug, Default)]
struct Devices {
    detached: Vec<u32>,
    /// Those that were left alone.
    used: Vec<LoopStatus>,
    /// One of these is mounted or bound.
    shown: bool,
}

impl Devices {
    fn has(&self, number: u32) -> bool {
        self.detached.contains(&number) || self.used.iter().any(|status| status.number == number)
    }
}

/// Why a device that carries a volume's label is left alone.
enum User {
    Mount(String),
    Device(u32),
}

impl User {
    fn of(
        status: &LoopStatus,
        table: &MountTable,
        loops: &[LoopStatus],
        used: &[LoopStatus],
    ) -> Option<Self> {
        let number = status.number;
        let shows = |entry: &&MountEntry| table.shown_loop(entry) == Some(number);
        if let Some(entry) = table.iter().find(shows) {
            return Some(Self::Mount(entry.mount_point.display().to_string()));
        }
        // Kubelet has one of its own on the device of a pod. A view of ours has been looked at before.
        let below = DeviceNumber::of_loop(number);
        let lies_on = |other: &&LoopStatus| other.backing_device == Some(below);
        let foreign = loops.iter().filter(lies_on).find(|other| other.label != status.label);
        let above = foreign.or_else(|| used.iter().find(lies_on));
        above.map(|other| Self::Device(other.number))
    }

    fn describe(&self) -> String {
        match self {
            Self::Mount(at) => format!("shown at {at}"),
            Self::Device(number) => format!("the base of /dev/loop{number}"),
        }
    }
}

impl Engine {
    /// Notes that the unstage of a device has begun, if it is the volume's. Teardown needs nothing: where that cannot be
    /// noted, only a sweep will not know.
    pub(super) fn mark_unstaged(
        &self,
        id: Option<&VolumeId>,
        number: u32,
    ) -> Result<(), EngineError> {
        let (Some(id), Some(status)) = (id, self.host.loop_status(number)?) else { return Ok(()) };
        if status.label == id.to_string()
            && let Err(error) = self.state.mark_unstaged(id, status.backing)
        {
            tracing::warn!(volume = %id, error = chain(&error), "cannot note that its device is unstaged; were the driver killed now, nothing but another unstage would detach it");
        }
        Ok(())
    }

    /// The unstage is over, or did not come about.
    pub(super) fn unmark_unstaged(&self, id: Option<&VolumeId>) {
        if let Some(id) = id
            && let Err(error) = self.state.unmark_unstaged(id)
        {
            tracing::warn!(volume = %id, error = chain(&error), "cannot take away the note that it was unstaged; the next sweep does");
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
        let devices = self.detach_devices_of(id, None)?;
        if let Some(number) = staged.filter(|number| !devices.has(*number)) {
            tracing::warn!(
                volume = %id,
                device = number,
                "the staged loop device is not this volume's any more; left alone"
            );
        }
        match devices.used.first() {
            // Nobody calls again once this is answered: the sweep has it when the other one has let go of it.
            Some(status) if !devices.shown => self.mark_unstaged(Some(id), status.number)?,
            // A filesystem volume has no mark.
            None if staged.is_some() || !devices.detached.is_empty() => {
                self.unmark_unstaged(Some(id));
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Detaches the raw-block loop devices that carry the volume's label and that nobody has, on whatever image or on one
    /// only. The label, not the number, says whose they are: a number is handed to somebody else's image as soon as it is
    /// free.
    fn detach_devices_of(
        &self,
        id: &VolumeId,
        image: Option<FileIdentity>,
    ) -> Result<Devices, EngineError> {
        let (table, all) = (self.host.mounts()?, self.host.loops()?);
        let label = id.to_string();
        let mut ours: Vec<&LoopStatus> =
            all.iter().filter(|status| status.label == label && !status.autoclear).collect();
        // Views before what they lie on.
        ours.sort_by_key(|status| status.backing_device.is_none());
        let mut devices = Devices::default();
        for status in ours {
            let user = User::of(status, &table, &all, &devices.used);
            let elsewhere =
                status.backing_device.is_none() && image.is_some_and(|image| !status.is_on(image));
            if let Some(user) = user {
                let user_in_words = user.describe();
                tracing::warn!(volume = %id, device = status.number, user = user_in_words, "a loop device is still in use; left attached");
                devices.shown |= matches!(user, User::Mount(_));
                devices.used.push(status.clone());
            } else if elsewhere {
                tracing::warn!(volume = %id, device = status.number, "a loop device has the volume's label and another image; left attached");
            } else {
                self.host.detach(status.number, status.backing)?;
                devices.detached.push(status.number);
            }
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

    /// Ends what an unstage has begun, if it is not ended yet. The caller has the volume's key, so that no stage or unstage
    /// runs meanwhile.
    ///
    /// # Errors
    /// The kernel does not show its mounts or loop devices, or does not detach one.
    pub fn detach_orphans(&self, id: &VolumeId) -> Result<(), EngineError> {
        let Some(image) = self.state.unstaged_image(id)? else { return Ok(()) };
        let devices = self.detach_devices_of(id, Some(image))?;
        for number in &devices.detached {
            tracing::info!(volume = %id, device = number, "loop device detached: its volume was unstaged, and nobody has it");
            telemetry::cleanup(Reason::LoopDevice);
        }
        if devices.used.is_empty() || devices.shown {
            self.state.unmark_unstaged(id)?;
        }
        Ok(())
    }
}
