//! Quotas: ioctls of btrfs on its quota tree.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::host::linux::layout::{QuotaControl, TreeSearch};

mod raw {
    use crate::host::linux::layout::{QuotaControl, TreeSearch};

    nix::ioctl_readwrite!(btrfs_tree_search, 0x94, 17, TreeSearch);
    nix::ioctl_readwrite!(btrfs_quota_ctl, 0x94, 40, QuotaControl);
    nix::ioctl_none!(btrfs_rescan_wait, 0x94, 46);
}

/// As many items of one object and kind as fit, from an offset on.
pub(in crate::host::linux) fn btrfs_search(
    directory: BorrowedFd<'_>,
    tree: u64,
    object: u64,
    kind: u32,
    offsets: (u64, u64),
) -> nix::Result<Box<TreeSearch>> {
    let mut search = Box::new(TreeSearch {
        tree,
        least_object: object,
        greatest_object: object,
        least_offset: offsets.0,
        greatest_offset: offsets.1,
        least_transaction: 0,
        greatest_transaction: u64::MAX,
        least_kind: kind,
        greatest_kind: kind,
        items: u32::MAX,
        unused: 0,
        unused_too: [0; 4],
        found: [0; 3992],
    });
    // SAFETY: `search` is a live `struct btrfs_ioctl_search_args`, every bit pattern of which is valid.
    unsafe { raw::btrfs_tree_search(directory.as_raw_fd(), &raw mut *search) }?;
    Ok(search)
}

/// Switches quotas of a btrfs on (`BTRFS_QUOTA_CTL_*`).
pub(in crate::host::linux) fn btrfs_quota_ctl(
    filesystem: BorrowedFd<'_>,
    command: u64,
) -> nix::Result<()> {
    let mut control = QuotaControl { command, status: 0 };
    // SAFETY: `control` is a live `struct btrfs_ioctl_quota_ctl_args`.
    unsafe { raw::btrfs_quota_ctl(filesystem.as_raw_fd(), &raw mut control) }.map(drop)
}

/// Waits until a scan of all extents for qgroups is over; none under way is fine.
pub(in crate::host::linux) fn btrfs_rescan_wait(filesystem: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::btrfs_rescan_wait(filesystem.as_raw_fd()) }.map(drop)
}
