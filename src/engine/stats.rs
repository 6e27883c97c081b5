//! NodeGetVolumeStats.

use std::path::Path;

use super::observe::MountedAs;
use super::{Engine, EngineError, Located};
use crate::host::Space;
use crate::volume::{ByteSize, VolumeId};

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In all.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// For ordinary users to take.
    pub available: u64,
}

/// What a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeUsage {
    /// A mounted volume. A hostpath volume without a limit shows its pool's filesystem, which it may fill.
    Mounted {
        /// Bytes.
        bytes: Usage,
        /// Inodes; `None` where the filesystem does not count them.
        inodes: Option<Usage>,
    },
    /// A raw block device: only its size can be known.
    Device {
        /// Bytes.
        total: ByteSize,
    },
}

fn mounted(space: Space) -> VolumeUsage {
    VolumeUsage::Mounted {
        bytes: Usage {
            total: space.total.bytes(),
            used: space.total.saturating_sub(space.free).bytes(),
            available: space.available.bytes(),
        },
        inodes: (space.inodes > 0).then(|| Usage {
            total: space.inodes,
            used: space.inodes.saturating_sub(space.inodes_free),
            available: space.inodes_free,
        }),
    }
}

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
            MountedAs::Directory => Ok(mounted(self.host.space_at(path)?)),
            MountedAs::Filesystem { mount_point, .. } => {
                Ok(mounted(self.host.space_at(&mount_point)?))
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
