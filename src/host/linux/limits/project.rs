//! Project quotas of ext4 and XFS: for each volume a project id of its own, which its directory hands on to all that is
//! made in it.
//!
//! Invariants: an id is given out only while no file carries it and nothing bounds it.
//!
//! Must not: take quotas that are only counted for limits. An ext4 with the features `quota` and `project` counts also
//! when it is mounted without `prjquota`, and holds nobody.

use std::fs::File;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, futimens};
use nix::sys::statfs::fstatfs;
use nix::sys::time::TimeSpec;

use crate::fault;
use crate::host::linux::layout::{FS_QUOTA_PDQ_ENFD, FS_XFLAG_PROJINHERIT, QIF_LIMITS, QuotaBlock};
use crate::host::linux::sys::quota as sys;
use crate::host::{Bounds, LimitState};
use crate::volume::ByteSize;

/// Ids of this driver: far from those that people write into /etc/projid, and positive where a program has them signed.
const IDS: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x7fff_ffff;
/// `if_dqblk` counts the space that is bounded in these units.
const BLOCK: u64 = 1024;
/// How often an id is drawn that is taken. Two draws are one too many already, unless something is wrong.
const DRAWS: usize = 64;

/// No such call (before Linux 5.14, or a container may not), no quotas in this filesystem or kernel, or none of projects.
const fn is_off(errno: Errno) -> bool {
    use Errno::{EINVAL, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM, ESRCH};
    matches!(errno, ENOSYS | ESRCH | EINVAL | ENOTTY | EOPNOTSUPP | EPERM)
}

/// Project quotas are in force.
pub(super) fn is_enforced(filesystem: BorrowedFd<'_>) -> nix::Result<bool> {
    match sys::quota_flags(filesystem) {
        Ok(flags) => Ok(flags & FS_QUOTA_PDQ_ENFD != 0),
        Err(errno) if is_off(errno) => Ok(false),
        Err(e) => Err(e),
    }
}

/// What the filesystem knows of a project; all zeroes when that is nothing.
fn quota(filesystem: BorrowedFd<'_>, id: u32) -> nix::Result<QuotaBlock> {
    match sys::project_quota(filesystem, id) {
        // XFS says it of an id that it has not met.
        Err(Errno::ENOENT) => Ok(QuotaBlock::default()),
        other => other,
    }
}

fn is_unused(quota: &QuotaBlock) -> bool {
    let QuotaBlock { hard_blocks, soft_blocks, space, hard_inodes, soft_inodes, inodes, .. } =
        quota;
    [hard_blocks, soft_blocks, space, hard_inodes, soft_inodes, inodes].iter().all(|n| **n == 0)
}

fn draw(filesystem: BorrowedFd<'_>) -> std::io::Result<u32> {
    for _ in 0..DRAWS {
        let bits = getrandom::u32().map_err(std::io::Error::other)?;
        let id = IDS.start() | (bits & (IDS.end() - IDS.start()));
        if is_unused(&quota(filesystem, id)?) {
            return Ok(id);
        }
    }
    Err(Errno::EADDRINUSE.into())
}

/// The id of this driver that a directory hands on.
pub(super) fn id_of(directory: BorrowedFd<'_>) -> nix::Result<Option<u32>> {
    let attributes = sys::attributes(directory)?;
    let hands_on = attributes.flags & FS_XFLAG_PROJINHERIT != 0;
    Ok(Some(attributes.project).filter(|id| hands_on && IDS.contains(id)))
}

/// Gives an empty directory an id of its own.
pub(super) fn begin(directory: BorrowedFd<'_>) -> std::io::Result<u32> {
    if let Some(id) = id_of(directory)? {
        // It has been begun before, when nothing else carries the id: a pool in a volume of another driver inherits one.
        if quota(directory, id)?.inodes == 1 {
            write(directory, id, &QuotaBlock::default())?;
            return Ok(id);
        }
    }
    let id = draw(directory)?;
    let mut attributes = sys::attributes(directory)?;
    attributes.project = id;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    fault::point!("host.project.begin")?;
    sys::set_attributes(directory, &attributes)?;
    fault::point!("host.project.begun")?;
    if id_of(directory)? != Some(id) {
        return Err(Errno::EIO.into());
    }
    Ok(id)
}

/// Gives a file or directory that exists the id of the directory above it.
pub(super) fn join(file: BorrowedFd<'_>, id: u32) -> std::io::Result<()> {
    let mut attributes = sys::attributes(file)?;
    let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
    let hands_on = if kind == SFlag::S_IFDIR { FS_XFLAG_PROJINHERIT } else { 0 };
    if (attributes.project, attributes.flags & hands_on) == (id, hands_on) {
        return Ok(());
    }
    attributes.project = id;
    attributes.flags |= hands_on;
    fault::point!("host.project.join")?;
    Ok(sys::set_attributes(file, &attributes)?)
}

fn write(filesystem: BorrowedFd<'_>, id: u32, quota: &QuotaBlock) -> nix::Result<()> {
    sys::set_project_quota(filesystem, id, &QuotaBlock { valid: QIF_LIMITS, ..*quota })
}

/// Has everything in the journal that was written to it before. A file that has not changed since the last commit would
/// be synced without one, so the directory is changed first.
fn commit(filesystem: BorrowedFd<'_>) -> std::io::Result<()> {
    futimens(filesystem, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW)?;
    File::from(filesystem.try_clone_to_owned()?).sync_all()
}

/// Bounds a project, and commits. Bytes are rounded down to whole blocks, of which one is left at least, because the
/// filesystem would round them up.
pub(super) fn set(
    filesystem: BorrowedFd<'_>,
    id: u32,
    bounds: Option<Bounds>,
) -> std::io::Result<()> {
    let block = u64::try_from(fstatfs(filesystem)?.block_size()).map_err(|_e| Errno::EINVAL)?;
    let block = block.max(BLOCK);
    // Zero would be no bound at all.
    let blocks = |bytes: ByteSize| (bytes.bytes() / block).max(1) * (block / BLOCK);
    let blocks = bounds.map_or(0, |bounds| blocks(bounds.bytes));
    let inodes = bounds.and_then(|bounds| bounds.inodes).map_or(0, |inodes| inodes.max(1));
    let asked = QuotaBlock {
        hard_blocks: blocks,
        soft_blocks: blocks,
        hard_inodes: inodes,
        soft_inodes: inodes,
        ..QuotaBlock::default()
    };
    fault::point!("host.project.set")?;
    write(filesystem, id, &asked)?;
    fault::point!("host.project.commit")?;
    commit(filesystem)?;
    let found = quota(filesystem, id)?;
    if (found.hard_blocks, found.hard_inodes) != (blocks, inodes) {
        return Err(Errno::EIO.into());
    }
    Ok(())
}

pub(super) fn state(filesystem: BorrowedFd<'_>, id: u32) -> nix::Result<Option<LimitState>> {
    let quota = match quota(filesystem, id) {
        Ok(quota) if !is_unused(&quota) => quota,
        Ok(_unused) => return Ok(None),
        Err(errno) if is_off(errno) => return Ok(None),
        Err(e) => return Err(e),
    };
    let inodes = Some(quota.hard_inodes).filter(|inodes| *inodes != 0);
    let bytes = ByteSize::new(quota.hard_blocks.saturating_mul(BLOCK));
    let bounds = (quota.hard_blocks != 0).then_some(Bounds { bytes, inodes });
    let used = ByteSize::new(quota.space);
    Ok(Some(LimitState { bounds, used, inodes: Some(quota.inodes) }))
}

/// Lifts the bounds of a project that no file carries any more, so that its id is free.
pub(super) fn end(filesystem: BorrowedFd<'_>, id: u32) -> std::io::Result<bool> {
    let quota = match quota(filesystem, id) {
        // What is written of it counts nothing while quotas are off, and its id is drawn no more when they are on again.
        Err(errno) if is_off(errno) => return Ok(true),
        other => other?,
    };
    if quota.inodes != 0 || quota.space != 0 {
        return Ok(false);
    }
    if !is_unused(&quota) {
        fault::point!("host.project.end")?;
        write(filesystem, id, &QuotaBlock::default())?;
    }
    Ok(true)
}
