//! NodeGetVolumeStats.

use std::path::Path;

use super::observe::MountedAs;
use super::usage::{Basis, VolumeUsage, of_filesystem};
use super::{Engine, EngineError, Located};
use crate::volume::VolumeId;

impl Engine {
    /// What a volume takes, seen at one of its mounts.
    ///
    /// # Errors
    /// The path is not one of the volume's mounts.
    pub fn stats(&self, id: &VolumeId, path: &Path) -> Result<VolumeUsage, EngineError> {
        self.usage(&self.locate(id)?, path)
    }

    pub(super) fn usage(&self, located: &Located, path: &Path) -> Result<VolumeUsage, EngineError> {
        match self.mounted_as(located, path)? {
            MountedAs::Directory => self.directory_usage(located),
            MountedAs::Filesystem { mount_point, .. } => {
                Ok(of_filesystem(self.host.space_at(&mount_point)?, Basis::Filesystem))
            }
            MountedAs::Device { .. } => Ok(VolumeUsage::Device { total: located.volume().size }),
        }
    }

    /// How many volumes this node can have published: half of its loop devices, because kubelet puts one of its own on
    /// each raw block volume, and a sixteenth of the mounts that a mount namespace may have, because a volume has a
    /// stage, some targets, and copies of each in other namespaces. `--max-volumes` lowers it.
    #[must_use]
    pub fn volume_limit(&self) -> u32 {
        let mounts = std::fs::read_to_string("/proc/sys/fs/mount-max").ok();
        // The kernel's default (Documentation/admin-guide/sysctl/fs.rst).
        let mounts = mounts.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(100_000);
        let loops = self.host.loop_limit().map_or(u32::MAX, |limit| limit / 2);
        loops.min(mounts / 16).min(self.max_volumes.unwrap_or(u32::MAX)).max(1)
    }
}
