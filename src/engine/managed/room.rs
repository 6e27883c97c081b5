//! Whether a filesystem has room for the image of a managed pool, and keeps what others need of it.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::engine::system::System;
use crate::host::{Host, HostError};
use crate::volume::ByteSize;

/// Filesystems of the system keep so many percent available: kubelet evicts pods below that (nodefs.available<10%).
const KEPT_PERCENT: u64 = 10;
/// As much any other filesystem keeps for its own books.
const KEPT: ByteSize = ByteSize::mib(16);

/// Where images of pools are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Images<'a> {
    pub(super) root_dir: &'a Path,
    /// Open, on the filesystem that the images are on.
    pub(super) directory: BorrowedFd<'a>,
}

/// Why the image of a pool cannot take so much more; `None` when it can. It goes where other things are as well, and is
/// filled at once.
pub(super) fn refusal(
    images: Images<'_>,
    more: ByteSize,
    pool: &str,
    system: &System,
    host: &dyn Host,
) -> Result<Option<String>, HostError> {
    let space = host.space(images.directory)?;
    let shared = system.is_at(images.root_dir, host);
    let share = ByteSize::new(space.total.bytes() / 100 * KEPT_PERCENT);
    let kept = if shared { share } else { KEPT };
    if space.available >= more.saturating_add(kept) {
        return Ok(None);
    }
    let why = if shared { ", 10 % of a filesystem that the system uses" } else { "" };
    Ok(Some(format!(
        "its image needs {more} more below {}, where {} are available and {kept} must stay{why}; free some space, choose a smaller size for the pool {pool}, or put --root-dir on another filesystem",
        images.root_dir.display(),
        space.available,
    )))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn the_system_keeps_its_tenth() {
        let home = tempfile::tempdir().unwrap();
        let directory = std::fs::File::open(home.path()).unwrap();
        let host = FakeHost::new();
        let mut space = host.space(directory.as_fd()).unwrap();
        (space.total, space.available) = (ByteSize::mib(1000), ByteSize::mib(500));
        host.set_space(space);
        let refused = |root_dir: &Path, kubelet_dir: &Path, more: u64| {
            let images = Images { root_dir, directory: directory.as_fd() };
            let system = System::new(kubelet_dir);
            refusal(images, ByteSize::mib(more), "p", &system, &host).unwrap()
        };
        assert_eq!(refused(home.path(), home.path(), 400), None);
        let why = refused(home.path(), home.path(), 401).unwrap();
        assert!(why.contains("401 MiB") && why.contains("10 %"), "{why}");
        // A filesystem of its own keeps less.
        let own = Path::new("/proc");
        assert_eq!(refused(own, home.path(), 484), None);
        assert!(refused(own, home.path(), 485).is_some());
    }
}
