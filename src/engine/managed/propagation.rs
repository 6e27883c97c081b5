//! Whether a mount that is made below the root directory reaches the host.
//!
//! In a container the root directory is a mount of its own. Unless that one is shared, what is mounted below it is seen by
//! the container only, and goes away with it under the volumes.

use std::path::Path;

use crate::host::MountTable;

/// Filesystems of containers and of memory.
const PASSING: [&str; 4] = ["overlay", "tmpfs", "ramfs", "rootfs"];

/// Why a mount at `path` would not last; `None` when it would. Both paths are as the mount table shows them. On a plain
/// host it does not matter whether `/` is shared.
pub(in crate::engine) fn refusal(
    table: &MountTable,
    root_dir: &Path,
    path: &Path,
) -> Option<String> {
    let parent = path.parent()?;
    // What the image and the state lie on ends with the container as well, or with the machine's next start.
    let passing = [root_dir, parent].into_iter().filter_map(|place| {
        let mount = table.containing(place)?;
        PASSING.contains(&mount.filesystem.as_str()).then_some((place, mount))
    });
    if let Some((place, mount)) = passing.into_iter().next() {
        return Some(format!(
            "{} lies on {}, which does not last: put it on a disk (in a container: a hostPath volume with mountPropagation: Bidirectional)",
            place.display(),
            mount.filesystem
        ));
    }
    let mount = table.containing(parent)?;
    // A directory of the host, mounted into a container, shows where in its filesystem it is. So does a subvolume of
    // btrfs on any host.
    let is_bind = mount.root != Path::new("/") && mount.filesystem != "btrfs";
    let is_own = mount.mount_point == root_dir;
    let lasts = mount.shared || mount.mount_point == Path::new("/") || !(is_own || is_bind);
    (!lasts).then(|| {
        format!(
            "{} is a mount that is not shared: a pool mounted below it would end with this process's mount namespace; mount it with mountPropagation: Bidirectional (on a host without containers: mount --make-shared {})",
            mount.mount_point.display(),
            mount.mount_point.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_its_own_has_to_be_shared() {
        let table = |lines: &str| MountTable::parse(lines.as_bytes()).unwrap();
        let root = Path::new("/var/lib/orlop");
        for (lines, lasts) in [
            ("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n", true),
            ("1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n", true),
            (
                "1 0 0:9 / / rw - overlay o rw\n2 1 8:1 /var/lib/orlop /var/lib/orlop rw - ext4 d rw\n",
                false,
            ),
            (
                "1 0 0:9 / / rw - overlay o rw\n2 1 8:1 /var/lib/orlop /var/lib/orlop rw shared:3 - ext4 d rw\n",
                true,
            ),
            ("1 0 0:9 / / rw - overlay o rw\n2 1 8:1 /var/lib /var/lib rw - ext4 d rw\n", false),
            ("1 0 0:9 / / rw - overlay o rw\n", false),
            ("1 0 0:9 / / rw shared:1 - tmpfs o rw\n", false),
            ("1 0 8:1 / / rw - ext4 d rw\n2 1 8:2 / /var rw - ext4 d rw\n", true),
            ("1 0 8:1 / / rw - ext4 d rw\n2 1 8:2 /@var /var rw - btrfs d rw\n", true),
            ("1 0 8:1 / / rw - ext4 d rw\n2 1 8:2 / /var/lib/orlop rw - ext4 d rw\n", false),
        ] {
            assert_eq!(
                refusal(&table(lines), root, &root.join("pools/p")).is_none(),
                lasts,
                "{lines}"
            );
        }
    }
}
