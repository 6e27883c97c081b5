//! Qgroups of btrfs: for each volume one of level 1, which its subvolume is a member of.
//!
//! With simple quotas subvolumes that are made inside become members too, because the kernel lets them inherit what the
//! subvolume around them is a member of; with plain ones they do not.
//!
//! Must not: switch quotas on, but where it is asked to.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::tree::{QUOTA_TREE, item};
use crate::fault;
use crate::host::linux::layout::{BTRFS_QUOTA_CTL_ENABLE, BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA};
use crate::host::linux::sys;
use crate::volume::LimitKind;

/// `BTRFS_QGROUP_STATUS_KEY`: version, generation, flags.
const STATUS: u32 = 240;
/// `BTRFS_QGROUP_STATUS_FLAG_ON`
const STATUS_ON: u64 = 1 << 0;
/// `BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE`, since Linux 6.7.
const STATUS_SIMPLE: u64 = 1 << 3;

fn status(filesystem: BorrowedFd<'_>) -> nix::Result<u64> {
    Ok(item(filesystem, QUOTA_TREE, 0, STATUS, 0)?.map_or(0, |status| status.number(2)))
}

/// The kind of quota that is on.
pub(super) fn kind(filesystem: BorrowedFd<'_>) -> nix::Result<Option<LimitKind>> {
    let flags = status(filesystem)?;
    Ok(match (flags & STATUS_ON != 0, flags & STATUS_SIMPLE != 0) {
        (false, _) => None,
        (true, true) => Some(LimitKind::SimpleQuota),
        (true, false) => Some(LimitKind::Qgroup),
    })
}

/// Switches quotas on, which commits.
pub(super) fn enable(filesystem: BorrowedFd<'_>) -> std::io::Result<()> {
    if kind(filesystem)?.is_some() {
        return Ok(());
    }
    fault::point!("host.quota.enable")?;
    let simple = sys::quota::btrfs_quota_ctl(filesystem, BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA);
    match simple {
        Ok(()) => {}
        // What an older kernel says of a command that it does not know.
        Err(Errno::EINVAL) => {
            sys::quota::btrfs_quota_ctl(filesystem, BTRFS_QUOTA_CTL_ENABLE)?;
            sys::quota::btrfs_rescan_wait(filesystem)?;
        }
        Err(e) => return Err(e.into()),
    }
    fault::point!("host.quota.enabled")
}
