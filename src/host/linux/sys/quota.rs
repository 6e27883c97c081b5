//! Quotas: ioctls of btrfs on its quota tree, and what goes with them; project ids and quotactl_fd of ext4 and XFS.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::host::linux::layout::{
    FileAttributes, GET_PROJECT_QUOTA, GET_QUOTA_STATE, QgroupAssign, QgroupCreate, QgroupLimit,
    QgroupRescan, QuotaBlock, QuotaControl, QuotaState, SET_PROJECT_QUOTA, SubvolumeInfo,
    TreeSearch,
};

mod raw {
    use crate::host::linux::layout::{
        FileAttributes, QgroupAssign, QgroupCreate, QgroupLimit, QgroupRescan, QuotaControl,
        SubvolumeInfo, TreeSearch,
    };

    nix::ioctl_none!(btrfs_sync, 0x94, 8);
    nix::ioctl_readwrite!(btrfs_tree_search, 0x94, 17, TreeSearch);
    nix::ioctl_write_ptr!(btrfs_wait_sync, 0x94, 22, u64);
    nix::ioctl_read!(btrfs_start_sync, 0x94, 24, u64);
    nix::ioctl_readwrite!(btrfs_quota_ctl, 0x94, 40, QuotaControl);
    nix::ioctl_write_ptr!(btrfs_qgroup_assign, 0x94, 41, QgroupAssign);
    nix::ioctl_write_ptr!(btrfs_qgroup_create, 0x94, 42, QgroupCreate);
    // The header says that the kernel writes it; it reads it.
    nix::ioctl_write_ptr_bad!(
        btrfs_qgroup_limit,
        nix::request_code_read!(0x94, 43, size_of::<QgroupLimit>()),
        QgroupLimit
    );
    nix::ioctl_write_ptr!(btrfs_rescan, 0x94, 44, QgroupRescan);
    nix::ioctl_none!(btrfs_rescan_wait, 0x94, 46);
    nix::ioctl_read!(get_attributes, b'X', 31, FileAttributes);
    nix::ioctl_write_ptr!(set_attributes, b'X', 32, FileAttributes);
    nix::ioctl_read!(btrfs_subvolume_info, 0x94, 60, SubvolumeInfo);
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

/// The subvolume that a file or directory is in: its id and UUID.
pub(in crate::host::linux) fn btrfs_subvolume(
    file: BorrowedFd<'_>,
) -> nix::Result<(u64, [u8; 16])> {
    let mut info = Box::new(SubvolumeInfo {
        id: 0,
        name: [0; 256],
        parent: 0,
        directory: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        other_uuids: [[0; 16]; 2],
        transactions: [0; 4],
        times: [[0; 2]; 4],
        reserved: [0; 8],
    });
    // SAFETY: `info` is a live `struct btrfs_ioctl_get_subvol_info_args`, every bit pattern of which is valid.
    unsafe { raw::btrfs_subvolume_info(file.as_raw_fd(), &raw mut *info) }?;
    Ok((info.id, info.uuid))
}

/// Begins to commit what has been changed so far, without data that is still to be written; answers which commit it is.
pub(in crate::host::linux) fn btrfs_start_sync(filesystem: BorrowedFd<'_>) -> nix::Result<u64> {
    let mut transaction = 0_u64;
    // SAFETY: the kernel writes 64 bits into a live u64.
    unsafe { raw::btrfs_start_sync(filesystem.as_raw_fd(), &raw mut transaction) }?;
    Ok(transaction)
}

/// Waits until a commit is on the disk.
pub(in crate::host::linux) fn btrfs_wait_sync(
    filesystem: BorrowedFd<'_>,
    transaction: u64,
) -> nix::Result<()> {
    // SAFETY: the kernel reads 64 bits from a live u64.
    unsafe { raw::btrfs_wait_sync(filesystem.as_raw_fd(), &raw const transaction) }.map(drop)
}

/// Writes all that is dirty, and wakes the thread that frees deleted subvolumes.
pub(in crate::host::linux) fn btrfs_sync(filesystem: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the ioctl takes no argument.
    unsafe { raw::btrfs_sync(filesystem.as_raw_fd()) }.map(drop)
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

/// Makes a qgroup, or removes it.
pub(in crate::host::linux) fn btrfs_qgroup(
    filesystem: BorrowedFd<'_>,
    qgroup: u64,
    create: bool,
) -> nix::Result<()> {
    let args = QgroupCreate { create: create.into(), qgroup };
    // SAFETY: `args` is a live `struct btrfs_ioctl_qgroup_create_args`.
    unsafe { raw::btrfs_qgroup_create(filesystem.as_raw_fd(), &raw const args) }.map(drop)
}

/// Makes a qgroup a member of another one, or no longer.
pub(in crate::host::linux) fn btrfs_qgroup_member(
    filesystem: BorrowedFd<'_>,
    member: u64,
    group: u64,
    assign: bool,
) -> nix::Result<()> {
    let args = QgroupAssign { assign: assign.into(), member, group };
    // SAFETY: `args` is a live `struct btrfs_ioctl_qgroup_assign_args`.
    unsafe { raw::btrfs_qgroup_assign(filesystem.as_raw_fd(), &raw const args) }.map(drop)
}

/// Bounds what a qgroup may refer to.
pub(in crate::host::linux) fn btrfs_qgroup_limit(
    filesystem: BorrowedFd<'_>,
    limit: &QgroupLimit,
) -> nix::Result<()> {
    // SAFETY: `limit` is a live `struct btrfs_ioctl_qgroup_limit_args`, which the kernel only reads.
    unsafe { raw::btrfs_qgroup_limit(filesystem.as_raw_fd(), limit) }.map(drop)
}

/// Begins to count anew what all qgroups refer to.
pub(in crate::host::linux) fn btrfs_rescan(filesystem: BorrowedFd<'_>) -> nix::Result<()> {
    let args = QgroupRescan { flags: 0, progress: 0, reserved: [0; 6] };
    // SAFETY: `args` is a live `struct btrfs_ioctl_quota_rescan_args`.
    unsafe { raw::btrfs_rescan(filesystem.as_raw_fd(), &raw const args) }.map(drop)
}

/// Waits until a scan of all extents for qgroups is over; none under way is fine.
pub(in crate::host::linux) fn btrfs_rescan_wait(filesystem: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::btrfs_rescan_wait(filesystem.as_raw_fd()) }.map(drop)
}

/// `FS_IOC_FSGETXATTR`
pub(in crate::host::linux) fn attributes(file: BorrowedFd<'_>) -> nix::Result<FileAttributes> {
    let mut attributes = FileAttributes::default();
    // SAFETY: `attributes` is a live `struct fsxattr`, every bit pattern of which is valid.
    unsafe { raw::get_attributes(file.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes)
}

/// `FS_IOC_FSSETXATTR`
pub(in crate::host::linux) fn set_attributes(
    file: BorrowedFd<'_>,
    attributes: &FileAttributes,
) -> nix::Result<()> {
    // SAFETY: `attributes` is a live `struct fsxattr`, which the kernel only reads.
    unsafe { raw::set_attributes(file.as_raw_fd(), attributes) }.map(drop)
}

/// What is bounded and in use of a project (`quotactl_fd(2)`, Linux 5.14).
pub(in crate::host::linux) fn project_quota(
    filesystem: BorrowedFd<'_>,
    project: u32,
) -> nix::Result<QuotaBlock> {
    let mut quota = QuotaBlock::default();
    // SAFETY: `quota` is a live `struct if_dqblk`, every bit pattern of which is valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            filesystem.as_raw_fd(),
            GET_PROJECT_QUOTA,
            project,
            &raw mut quota,
        )
    };
    Errno::result(result)?;
    Ok(quota)
}

/// Bounds a project.
pub(in crate::host::linux) fn set_project_quota(
    filesystem: BorrowedFd<'_>,
    project: u32,
    quota: &QuotaBlock,
) -> nix::Result<()> {
    // SAFETY: `quota` is a live `struct if_dqblk`, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            filesystem.as_raw_fd(),
            SET_PROJECT_QUOTA,
            project,
            std::ptr::from_ref(quota),
        )
    };
    Errno::result(result).map(drop)
}

/// Which quotas of a filesystem are counted and enforced: `FS_QUOTA_*`.
pub(in crate::host::linux) fn quota_flags(filesystem: BorrowedFd<'_>) -> nix::Result<u16> {
    let mut state = QuotaState { version: 1, ..QuotaState::default() };
    // SAFETY: `state` is a live `struct fs_quota_statv`, every bit pattern of which is valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            filesystem.as_raw_fd(),
            GET_QUOTA_STATE,
            0,
            &raw mut state,
        )
    };
    Errno::result(result)?;
    Ok(state.flags)
}
