//! Structures and numbers of the kernel's own headers (`include/uapi/linux`: `mount.h`, `loop.h`, `fs.h`, `fiemap.h`,
//! `btrfs.h`; `xfs_fs.h`), for the system calls in `sys`.
//!
//! Must not: have anything but layouts and constants.

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(super) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(super) clear: u64,
    /// `MS_PRIVATE` and the like; zero leaves it.
    pub(super) propagation: u64,
    pub(super) userns_fd: u64,
}

pub(super) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(super) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(super) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(super) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// All bits of the choice between relatime, noatime and strictatime.
pub(super) const MOUNT_ATTR_ATIME: u64 = 0x70;
pub(super) const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub(super) const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub(super) const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
pub(super) const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

pub(super) const OPEN_TREE_CLONE: libc::c_int = 1;
pub(super) const MOVE_MOUNT_F_EMPTY_PATH: libc::c_int = 0x4;
pub(super) const FSOPEN_CLOEXEC: libc::c_int = 1;
pub(super) const FSMOUNT_CLOEXEC: libc::c_int = 1;
pub(super) const FSCONFIG_SET_FLAG: libc::c_int = 0;
pub(super) const FSCONFIG_SET_STRING: libc::c_int = 1;
pub(super) const FSCONFIG_CMD_CREATE: libc::c_int = 6;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct LoopInfo {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) rdevice: u64,
    pub(super) offset: u64,
    pub(super) size_limit: u64,
    pub(super) number: u32,
    pub(super) encrypt_type: u32,
    pub(super) encrypt_key_size: u32,
    pub(super) flags: u32,
    /// A name for people; the kernel never reads it.
    pub(super) file_name: [u8; 64],
    pub(super) crypt_name: [u8; 64],
    pub(super) encrypt_key: [u8; 32],
    pub(super) init: [u64; 2],
}

impl LoopInfo {
    pub(super) const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

pub(super) const LO_FLAGS_READ_ONLY: u32 = 1;
pub(super) const LO_FLAGS_AUTOCLEAR: u32 = 4;
pub(super) const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct LoopConfig {
    pub(super) fd: u32,
    pub(super) block_size: u32,
    pub(super) info: LoopInfo,
    pub(super) reserved: [u64; 8],
}

/// `struct xfs_fsop_geom`, of which only the beginning matters here.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct XfsGeometry {
    pub(super) block_size: u32,
    pub(super) rt_extent_size: u32,
    pub(super) ag_blocks: u32,
    pub(super) ag_count: u32,
    pub(super) log_blocks: u32,
    pub(super) sector_size: u32,
    pub(super) inode_size: u32,
    pub(super) inode_max_percent: u32,
    pub(super) data_blocks: u64,
    pub(super) realtime: [u64; 2],
    pub(super) log_start: u64,
    pub(super) uuid: [u8; 16],
    pub(super) stripe: [u32; 2],
    pub(super) version: i32,
    pub(super) flags: u32,
    pub(super) rest: [u64; 20],
}

impl XfsGeometry {
    pub(super) const EMPTY: Self = Self {
        block_size: 0,
        rt_extent_size: 0,
        ag_blocks: 0,
        ag_count: 0,
        log_blocks: 0,
        sector_size: 0,
        inode_size: 0,
        inode_max_percent: 0,
        data_blocks: 0,
        realtime: [0; 2],
        log_start: 0,
        uuid: [0; 16],
        stripe: [0; 2],
        version: 0,
        flags: 0,
        rest: [0; 20],
    };
}

/// `XFS_FSOP_GEOM_FLAGS_REFLINK`
pub(super) const XFS_REFLINK: u32 = 1 << 20;

/// `struct xfs_growfs_data`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct XfsGrow {
    pub(super) new_blocks: u64,
    pub(super) inode_max_percent: u32,
}

pub(super) const BTRFS_NAME: usize = 4088;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct BtrfsArgs {
    pub(super) fd: i64,
    pub(super) name: [u8; BTRFS_NAME],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct BtrfsSnapshotArgs {
    pub(super) fd: i64,
    pub(super) transid: u64,
    pub(super) flags: u64,
    pub(super) unused: [u64; 4],
    pub(super) name: [u8; 4040],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct BtrfsInner {
    pub(super) least_tree: u64,
    pub(super) trees: [[u64; 2]; 255],
    pub(super) count: u8,
    pub(super) align: [u8; 7],
}

/// `struct btrfs_ioctl_fs_info_args`, of which only the identity matters here.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct BtrfsFsInfo {
    pub(super) max_id: u64,
    pub(super) devices: u64,
    pub(super) uuid: [u8; 16],
    pub(super) rest: [u64; 124],
}

impl BtrfsFsInfo {
    pub(super) const EMPTY: Self = Self { max_id: 0, devices: 0, uuid: [0; 16], rest: [0; 124] };
}

/// How many extents one call of FS_IOC_FIEMAP asks for.
pub(super) const FIEMAP_EXTENTS: usize = 256;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct FiemapExtent {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    pub(super) reserved64: [u64; 2],
    pub(super) flags: u32,
    pub(super) reserved: [u32; 3],
}

/// `struct fiemap` with room for its extents.
#[repr(C)]
#[derive(Debug, Clone)]
pub(super) struct Fiemap {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) flags: u32,
    pub(super) mapped: u32,
    pub(super) count: u32,
    pub(super) reserved: u32,
    pub(super) extents: [FiemapExtent; FIEMAP_EXTENTS],
}

impl Fiemap {
    pub(super) const EMPTY: Self = Self {
        start: 0,
        length: 0,
        flags: 0,
        mapped: 0,
        count: 0,
        reserved: 0,
        extents: [FiemapExtent {
            logical: 0,
            physical: 0,
            length: 0,
            reserved64: [0; 2],
            flags: 0,
            reserved: [0; 3],
        }; FIEMAP_EXTENTS],
    };
}

/// The length of `struct fiemap` without extents, which is what its ioctl number is made of.
pub(super) const FIEMAP_HEADER: usize = 32;
pub(super) const FIEMAP_FLAG_SYNC: u32 = 1;
pub(super) const FIEMAP_EXTENT_LAST: u32 = 0x1;
pub(super) const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
pub(super) const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// `FIEMAP_EXTENT_UNKNOWN`, `DELALLOC`, `ENCODED`, `DATA_ENCRYPTED`, `NOT_ALIGNED`, `DATA_INLINE`, `DATA_TAIL`: the
/// bytes do not lie at the physical place as they are.
pub(super) const FIEMAP_NOT_PLAIN: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);
const _: () = assert!(size_of::<XfsGeometry>() == 256);
const _: () = assert!(size_of::<BtrfsArgs>() == 4096);
const _: () = assert!(size_of::<BtrfsSnapshotArgs>() == 4096);
const _: () = assert!(size_of::<BtrfsInner>() == 4096);
const _: () = assert!(size_of::<BtrfsFsInfo>() == 1024);
const _: () = assert!(size_of::<FiemapExtent>() == 56);

pub(super) const BTRFS_SUBVOL_RDONLY: u64 = 2;

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct QuotaControl {
    pub(super) command: u64,
    pub(super) status: u64,
}

pub(super) const BTRFS_QUOTA_CTL_ENABLE: u64 = 1;
/// Since Linux 6.7.
pub(super) const BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA: u64 = 4;

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct QgroupCreate {
    /// 1 makes it, 0 removes it.
    pub(super) create: u64,
    pub(super) qgroup: u64,
}

/// `struct btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct QgroupAssign {
    /// 1 makes the member one of the group, 0 no longer.
    pub(super) assign: u64,
    pub(super) member: u64,
    pub(super) group: u64,
}

pub(super) const BTRFS_QGROUP_LIMIT_MAX_RFER: u64 = 1;

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct QgroupLimit {
    pub(super) qgroup: u64,
    /// Which of the following are told.
    pub(super) flags: u64,
    /// Referenced bytes; all bits set lift it.
    pub(super) max_referenced: u64,
    pub(super) others: [u64; 3],
}

/// `struct btrfs_ioctl_quota_rescan_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct QgroupRescan {
    pub(super) flags: u64,
    pub(super) progress: u64,
    pub(super) reserved: [u64; 6],
}

/// `struct btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct SubvolumeInfo {
    pub(super) id: u64,
    pub(super) name: [u8; 256],
    pub(super) parent: u64,
    pub(super) directory: u64,
    pub(super) generation: u64,
    pub(super) flags: u64,
    pub(super) uuid: [u8; 16],
    pub(super) other_uuids: [[u8; 16]; 2],
    pub(super) transactions: [u64; 4],
    pub(super) times: [[u64; 2]; 4],
    pub(super) reserved: [u64; 8],
}

/// `struct btrfs_ioctl_search_args` with its key (`struct btrfs_ioctl_search_key`): items of a btrfs tree.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct TreeSearch {
    pub(super) tree: u64,
    pub(super) least_object: u64,
    pub(super) greatest_object: u64,
    pub(super) least_offset: u64,
    pub(super) greatest_offset: u64,
    pub(super) least_transaction: u64,
    pub(super) greatest_transaction: u64,
    pub(super) least_kind: u32,
    pub(super) greatest_kind: u32,
    /// Wanted at most; answered.
    pub(super) items: u32,
    pub(super) unused: u32,
    pub(super) unused_too: [u64; 4],
    /// For each item a `struct btrfs_ioctl_search_header` (transaction, object, offset, kind, length), then its bytes.
    pub(super) found: [u8; 3992],
}

const _: () = assert!(size_of::<TreeSearch>() == 4096);
const _: () = assert!(size_of::<QgroupLimit>() == 48);
const _: () = assert!(size_of::<SubvolumeInfo>() == 504);

/// `struct fsxattr` of `fs.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FileAttributes {
    /// `FS_XFLAG_*`
    pub(super) flags: u32,
    pub(super) extent_size: u32,
    pub(super) extents: u32,
    pub(super) project: u32,
    pub(super) copied_extent_size: u32,
    pub(super) pad: [u8; 8],
}

/// What is made in the directory gets its project.
pub(super) const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// `struct if_dqblk` of `quota.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QuotaBlock {
    /// In units of 1024 bytes; zero is no limit.
    pub(super) hard_blocks: u64,
    pub(super) soft_blocks: u64,
    /// In bytes.
    pub(super) space: u64,
    pub(super) hard_inodes: u64,
    pub(super) soft_inodes: u64,
    pub(super) inodes: u64,
    pub(super) times: [u64; 2],
    /// Which of them are told.
    pub(super) valid: u32,
    pub(super) pad: u32,
}

/// `QIF_BLIMITS` and `QIF_ILIMITS`
pub(super) const QIF_LIMITS: u32 = 1 | 4;
/// `QCMD(…, PRJQUOTA)`
const fn of_projects(command: libc::c_int) -> libc::c_int {
    (command << 8) | 2
}
/// `Q_GETQUOTA`
pub(super) const GET_PROJECT_QUOTA: libc::c_int = of_projects(0x0080_0007);
/// `Q_SETQUOTA`
pub(super) const SET_PROJECT_QUOTA: libc::c_int = of_projects(0x0080_0008);
/// `Q_XGETQSTATV` of `dqblk_xfs.h`, which ext4 answers too.
pub(super) const GET_QUOTA_STATE: libc::c_int = of_projects(0x5808);

/// `struct fs_quota_statv` of `dqblk_xfs.h`, of which only the beginning matters here.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QuotaState {
    /// 1 is what the kernel answers.
    pub(super) version: i8,
    pub(super) pad: u8,
    /// `FS_QUOTA_*`
    pub(super) flags: u16,
    pub(super) in_memory: u32,
    pub(super) rest: [u64; 19],
}

/// Project quotas are enforced, not only counted.
pub(super) const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;

const _: () = assert!(size_of::<FileAttributes>() == 28);
const _: () = assert!(size_of::<QuotaBlock>() == 72);
const _: () = assert!(size_of::<QuotaState>() == 160);
