//! The filesystems that the system itself lives on: kubelet evicts pods when one of them is nearly full, so pools and
//! images of pools leave more of it alone.

use std::path::{Path, PathBuf};

use super::open_pool::Reserve;
use crate::host::Host;

/// The system and its containers; kubelet's directory comes with the configuration.
const PATHS: [&str; 4] = ["/", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker"];

/// Where kubelet is when nobody says otherwise.
pub const KUBELET_DIR: &str = "/var/lib/kubelet";

/// Directories of the system.
#[derive(Debug)]
pub(super) struct System(Vec<PathBuf>);

impl System {
    pub(super) fn new(kubelet_dir: &Path) -> Self {
        Self(PATHS.iter().map(Path::new).chain([kubelet_dir]).map(Path::to_owned).collect())
    }

    /// The filesystem at a path is one of the system's.
    pub(super) fn is_at(&self, path: &Path, host: &dyn Host) -> bool {
        let device = |path: &Path| Some(host.node(path).ok()??.identity.device);
        // Each subvolume of a btrfs has a device number of its own.
        let uuid = |path: &Path| host.mounted_uuid(path).ok()?;
        let (own_device, own_uuid) = (device(path), uuid(path));
        self.0.iter().any(|path| {
            (own_device.is_some() && device(path) == own_device)
                || (own_uuid.is_some() && uuid(path) == own_uuid)
        })
    }

    /// What a pool at a path keeps when nobody says how much: kubelet evicts pods at 10 to 15 % free.
    pub(super) fn reserve(&self, path: &Path, host: &dyn Host) -> Reserve {
        Reserve::Percent(if self.is_at(path, host) { 20 } else { 5 })
    }
}
