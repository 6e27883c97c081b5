//! Qgroups of btrfs: for each volume one of level 1, which its subvolume is a member of.
//!
//! With simple quotas subvolumes that are made inside become members too, because the kernel lets them inherit what the
//! subvolume around them is a member of; with plain ones they do not.
//!
//! Must not: switch quotas on, but where it is asked to.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::tree::{QUOTA_TREE, ROOT_TREE, item, items};
use crate::fault;
use crate::host::linux::filesystem::{SUBVOLUME_ROOT, btrfs_commit};
use crate::host::linux::layout::{
    BTRFS_QGROUP_LIMIT_MAX_RFER, BTRFS_QUOTA_CTL_ENABLE, BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA,
    QgroupLimit,
};
use crate::host::linux::sys::quota as sys;
use crate::host::{Bounds, LimitState};
use crate::volume::{ByteSize, LimitKind};

/// `BTRFS_QGROUP_STATUS_KEY`: version, generation, flags.
const STATUS: u32 = 240;
/// `BTRFS_QGROUP_INFO_KEY`: generation, referenced bytes.
const INFO: u32 = 242;
/// `BTRFS_QGROUP_LIMIT_KEY`: flags, most referenced bytes.
const LIMIT: u32 = 244;
/// `BTRFS_QGROUP_RELATION_KEY`: between the object and the offset, once in each direction.
const RELATION: u32 = 246;
/// `BTRFS_ROOT_ITEM_KEY`: of a subvolume, until all of it is freed.
const ROOT_ITEM: u32 = 132;
/// `BTRFS_ORPHAN_ITEM_KEY` and `BTRFS_ORPHAN_OBJECTID`
const ORPHAN: (u32, u64) = (48, 5_u64.wrapping_neg());
/// `BTRFS_ROOT_BACKREF_KEY`: of a subvolume, by the subvolume that it lies in; until it is deleted.
const ROOT_BACKREF: u32 = 144;

/// `BTRFS_QGROUP_STATUS_FLAG_ON`
const STATUS_ON: u64 = 1 << 0;
/// `BTRFS_QGROUP_STATUS_FLAG_RESCAN`
const STATUS_RESCAN: u64 = 1 << 1;
/// `BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT`
const STATUS_INCONSISTENT: u64 = 1 << 2;
/// `BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE`, since Linux 6.7.
const STATUS_SIMPLE: u64 = 1 << 3;

/// `BTRFS_QGROUP_LEVEL_SHIFT`: the level is above these bits.
const LEVEL_SHIFT: u32 = 48;

/// The kernel's id of the qgroup of level 1 of that number.
const fn of_level_one(number: u64) -> u64 {
    (1 << LEVEL_SHIFT) | number
}

fn status(filesystem: BorrowedFd<'_>) -> nix::Result<u64> {
    Ok(item(filesystem, QUOTA_TREE, 0, STATUS, 0)?.map_or(0, |status| status.number(2)))
}

/// The kind of quota that is on.
pub(super) fn kind(filesystem: BorrowedFd<'_>) -> nix::Result<Option<LimitKind>> {
    let flags = match status(filesystem) {
        // A container without CAP_SYS_ADMIN may not look, and could not set anything either.
        Err(Errno::EPERM) => return Ok(None),
        other => other?,
    };
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
    let simple = sys::btrfs_quota_ctl(filesystem, BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA);
    match simple {
        Ok(()) => {}
        // What an older kernel says of a command that it does not know.
        Err(Errno::EINVAL) => {
            sys::btrfs_quota_ctl(filesystem, BTRFS_QUOTA_CTL_ENABLE)?;
            sys::btrfs_rescan_wait(filesystem)?;
        }
        Err(e) => return Err(e.into()),
    }
    fault::point!("host.quota.enabled")
}

/// A subvolume, and the number of the limit that is its own.
///
/// Its id alone will not do: after a mount the kernel gives the ids of the last subvolumes that are gone to new ones, and
/// what is left of the old ones would bound, or lift, the limits of these. So bits of the UUID are above the id.
fn subvolume_and_number(directory: BorrowedFd<'_>) -> nix::Result<(u64, u64)> {
    if fstat(directory)?.st_ino != SUBVOLUME_ROOT {
        return Err(Errno::ENOTSUP);
    }
    let (id, uuid) = sys::btrfs_subvolume(directory)?;
    let low = u32::try_from(id).map_err(|_overflow| Errno::EOVERFLOW)?;
    let [first, second, ..] = uuid;
    Ok((id, (u64::from(u16::from_le_bytes([first, second])) << 32) | u64::from(low)))
}

/// What a qgroup is related to, in either direction.
fn relations(filesystem: BorrowedFd<'_>, qgroup: u64) -> nix::Result<Vec<u64>> {
    match items(filesystem, QUOTA_TREE, qgroup, RELATION) {
        Ok(found) => Ok(found.into_iter().map(|relation| relation.offset).collect()),
        Err(Errno::ENOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// It is fine when a step has been taken before.
fn once(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// Makes the subvolume the member of a qgroup of its own; answers its number.
pub(super) fn begin(subvolume: BorrowedFd<'_>) -> std::io::Result<u64> {
    let (id, number) = subvolume_and_number(subvolume)?;
    let qgroup = of_level_one(number);
    fault::point!("host.limit.begin")?;
    once(sys::btrfs_qgroup(subvolume, qgroup, true))?;
    if relations(subvolume, qgroup)?.iter().any(|member| *member != id) {
        return Err(Errno::EADDRINUSE.into());
    }
    bound(subvolume, qgroup, None)?;
    fault::point!("host.limit.made")?;
    once(sys::btrfs_qgroup_member(subvolume, id, qgroup, true))?;
    // Plain qgroups have to count anew when a subvolume that shares anything becomes a member.
    if status(subvolume)? & (STATUS_SIMPLE | STATUS_RESCAN | STATUS_INCONSISTENT)
        == STATUS_INCONSISTENT
    {
        match sys::btrfs_rescan(subvolume) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    fault::point!("host.limit.begun")?;
    Ok(number)
}

fn bound(filesystem: BorrowedFd<'_>, qgroup: u64, bytes: Option<u64>) -> nix::Result<()> {
    let limit = QgroupLimit {
        qgroup,
        flags: BTRFS_QGROUP_LIMIT_MAX_RFER,
        max_referenced: bytes.unwrap_or(u64::MAX),
        others: [0; 3],
    };
    sys::btrfs_qgroup_limit(filesystem, &limit)
}

/// Bounds the referenced bytes, and commits.
pub(super) fn set(
    filesystem: BorrowedFd<'_>,
    number: u64,
    bytes: Option<ByteSize>,
) -> std::io::Result<()> {
    let bytes = bytes.map(ByteSize::bytes);
    fault::point!("host.limit.set")?;
    bound(filesystem, of_level_one(number), bytes)?;
    fault::point!("host.limit.commit")?;
    btrfs_commit(filesystem)?;
    let state = state(filesystem, number)?.ok_or(Errno::ENOENT)?;
    if state.bounds.map(|bounds| bounds.bytes.bytes()) != bytes {
        return Err(Errno::EIO.into());
    }
    Ok(())
}

pub(super) fn state(filesystem: BorrowedFd<'_>, number: u64) -> nix::Result<Option<LimitState>> {
    let qgroup = of_level_one(number);
    let Some(counted) = item(filesystem, QUOTA_TREE, 0, INFO, qgroup)? else {
        return Ok(None);
    };
    let limit = item(filesystem, QUOTA_TREE, 0, LIMIT, qgroup)?;
    let limit = limit.filter(|limit| limit.number(0) & BTRFS_QGROUP_LIMIT_MAX_RFER != 0);
    let bounds = limit.map(|limit| Bounds { bytes: ByteSize::new(limit.number(1)), inodes: None });
    Ok(Some(LimitState { bounds, used: ByteSize::new(counted.number(1)), inodes: None }))
}

/// The number of the limit of its own that the subvolume is under.
pub(super) fn number_of(directory: BorrowedFd<'_>) -> nix::Result<Option<u64>> {
    let (id, number) = match subvolume_and_number(directory) {
        // Not a subvolume.
        Err(Errno::ENOTSUP) => return Ok(None),
        other => other?,
    };
    let group = of_level_one(number);
    Ok(item(directory, QUOTA_TREE, id, RELATION, group)?.map(|_member| number))
}

/// The subvolume is there, or the last of its space is not free yet.
fn has_root(filesystem: BorrowedFd<'_>, id: u64) -> nix::Result<bool> {
    Ok(!items(filesystem, ROOT_TREE, id, ROOT_ITEM)?.is_empty())
}

/// Removes the qgroup and those of its members, unless one of the subvolumes is still there.
pub(super) fn end(filesystem: BorrowedFd<'_>, number: u64) -> std::io::Result<bool> {
    let qgroup = of_level_one(number);
    if item(filesystem, QUOTA_TREE, 0, INFO, qgroup)?.is_none() {
        return Ok(true);
    }
    let members = relations(filesystem, qgroup)?;
    for member in &members {
        if has_root(filesystem, *member)? {
            return Ok(false);
        }
    }
    for member in members {
        fault::point!("host.limit.unassign")?;
        gone(sys::btrfs_qgroup_member(filesystem, member, qgroup, false))?;
        match gone(sys::btrfs_qgroup(filesystem, member, false)) {
            // Simple quotas keep it while somebody shares bytes that it wrote.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(e) => return Err(e.into()),
        }
    }
    fault::point!("host.limit.end")?;
    gone(sys::btrfs_qgroup(filesystem, qgroup, false))?;
    fault::point!("host.limit.ended")?;
    Ok(true)
}

/// It is fine when what is to go is not there: the kernel removes qgroups by itself too.
fn gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// The subvolumes that nothing leads to any more and that the kernel is still to free. Asks it to begin.
pub(super) fn being_freed(filesystem: BorrowedFd<'_>) -> nix::Result<Vec<u64>> {
    let (kind, object) = ORPHAN;
    let mut found = Vec::new();
    for orphan in items(filesystem, ROOT_TREE, object, kind)? {
        let id = orphan.offset;
        // An orphan of the root tree may also be a file of the free space cache of old, whatever its number.
        let linked = !items(filesystem, ROOT_TREE, id, ROOT_BACKREF)?.is_empty();
        if !linked && has_root(filesystem, id)? {
            found.push(id);
        }
    }
    if !found.is_empty() {
        // A commit wakes the thread of the kernel that frees them.
        sys::btrfs_start_sync(filesystem)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #[test]
    fn qgroups_of_level_one_are_above_those_of_subvolumes() {
        assert_eq!(super::of_level_one(0x1234_0000_0100), 0x0001_1234_0000_0100);
    }
}
