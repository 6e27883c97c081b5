//! System calls and ioctls that nix has no wrapper for. The only place of the crate with `unsafe` in it: this file and
//! those below it.
//!
//! Every function is safe to call with any arguments: structures are built here, sizes are those of the kernel's
//! own headers (see `layout`), and descriptors come in borrowed and go out owned.
//!
//! Must not: decide anything, or turn an errno into something else.
#![expect(
    unsafe_code,
    reason = "system calls and ioctls without a safe wrapper; kept in this one place"
)]

pub(super) mod quota;

use std::ffi::{CStr, CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::layout::{
    BTRFS_NAME, BTRFS_SUBVOL_RDONLY, BtrfsArgs, BtrfsFsInfo, BtrfsInner, BtrfsSnapshotArgs,
    FIEMAP_EXTENTS, FIEMAP_FLAG_SYNC, FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC, Fiemap, LoopConfig, LoopInfo, MOVE_MOUNT_F_EMPTY_PATH,
    MountAttr, OPEN_TREE_CLONE, XfsGeometry, XfsGrow,
};

mod raw {
    use super::{
        BtrfsArgs, BtrfsFsInfo, BtrfsInner, BtrfsSnapshotArgs, Fiemap, LoopConfig, LoopInfo,
        XfsGeometry, XfsGrow,
    };
    use crate::host::linux::layout::FIEMAP_HEADER;

    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo);
    nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
    nix::ioctl_write_int_bad!(loop_ctl_add, 0x4C80);
    nix::ioctl_write_int_bad!(loop_ctl_remove, 0x4C81);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
    // The header says size_t and int or long, the kernel moves 64 and 32 bits.
    nix::ioctl_read_bad!(blk_get_size, nix::request_code_read!(0x12, 114, size_of::<usize>()), u64);
    nix::ioctl_read_bad!(
        fs_get_flags,
        nix::request_code_read!(b'f', 1, size_of::<libc::c_long>()),
        u32
    );
    nix::ioctl_write_ptr_bad!(
        fs_set_flags,
        nix::request_code_write!(b'f', 2, size_of::<libc::c_long>()),
        u32
    );
    nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);
    nix::ioctl_read!(xfs_geometry, b'X', 126, XfsGeometry);
    nix::ioctl_write_ptr!(xfs_grow, b'X', 110, XfsGrow);
    nix::ioctl_write_ptr!(btrfs_resize, 0x94, 3, BtrfsArgs);
    nix::ioctl_write_ptr!(btrfs_subvol_create, 0x94, 14, BtrfsArgs);
    nix::ioctl_write_ptr!(btrfs_snap_destroy, 0x94, 15, BtrfsArgs);
    nix::ioctl_read!(btrfs_get_flags, 0x94, 25, u64);
    nix::ioctl_write_ptr!(btrfs_set_flags, 0x94, 26, u64);
    nix::ioctl_write_ptr!(btrfs_snapshot, 0x94, 23, BtrfsSnapshotArgs);
    nix::ioctl_readwrite!(btrfs_inner, 0x94, 61, BtrfsInner);
    nix::ioctl_read!(btrfs_fs_info, 0x94, 31, BtrfsFsInfo);
    nix::ioctl_write_int_bad!(clone_file, nix::request_code_write!(0x94, 9, size_of::<i32>()));
    nix::ioctl_write_int_bad!(freeze, nix::request_code_readwrite!(b'X', 119, size_of::<i32>()));
    nix::ioctl_write_int_bad!(thaw, nix::request_code_readwrite!(b'X', 120, size_of::<i32>()));
    nix::ioctl_readwrite_bad!(
        fiemap,
        nix::request_code_readwrite!(b'f', 11, FIEMAP_HEADER),
        Fiemap
    );
}

fn c_path(path: &Path) -> nix::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_nul| Errno::EINVAL)
}

/// What a system call answered: a new descriptor.
fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let number = Errno::result(result)?;
    let number = i32::try_from(number).map_err(|_overflow| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn clone_tree(dir: libc::c_int, path: &CStr, extra: libc::c_int) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_NO_AUTOMOUNT | extra;
    // SAFETY: `path` is a NUL-terminated string that outlives the call; the other arguments are plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// A detached mount of the tree at an open file or directory (`open_tree(2)`).
pub(super) fn clone_tree_of(file: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    clone_tree(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

/// The same for a path; a link at its end is not followed.
pub(super) fn clone_tree_at(path: &Path) -> nix::Result<OwnedFd> {
    clone_tree(libc::AT_FDCWD, &c_path(path)?, libc::AT_SYMLINK_NOFOLLOW)
}

/// `mount_setattr(2)` on a detached mount.
pub(super) fn set_attributes(tree: BorrowedFd<'_>, attributes: &MountAttr) -> nix::Result<()> {
    // SAFETY: `attributes` is a live `struct mount_attr` of the size that is told, and the path is a literal.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Puts a detached mount at a path (`move_mount(2)`); a link at its end is not followed.
pub(super) fn move_mount(tree: BorrowedFd<'_>, target: &Path) -> nix::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both paths are NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

fn fsconfig(
    context: BorrowedFd<'_>,
    command: libc::c_int,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> nix::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are NUL-terminated strings that outlive the call, or null where the command takes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// A context for a mount of that filesystem, which does nothing yet; ENODEV when neither the kernel nor a module has it.
pub(super) fn begin_mount(filesystem: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, filesystem.as_ptr(), FSOPEN_CLOEXEC) })
}

/// Mounts a filesystem nowhere: it is reachable through the descriptor only and goes with it. On failure also what
/// the kernel has to say.
pub(super) fn mount_detached(
    filesystem: &CStr,
    device: &Path,
    flags: &[&CStr],
) -> Result<OwnedFd, (Errno, String)> {
    let quiet = |errno| (errno, String::new());
    let device = c_path(device).map_err(quiet)?;
    let context = begin_mount(filesystem).map_err(quiet)?;
    let made = (|| {
        let fd = context.as_fd();
        fsconfig(fd, FSCONFIG_SET_STRING, Some(c"source"), Some(&device))?;
        for flag in flags {
            fsconfig(fd, FSCONFIG_SET_FLAG, Some(flag), None)?;
        }
        fsconfig(fd, FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: all arguments are plain numbers.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, fd.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
    })();
    made.map_err(|errno| (errno, kernel_message(context)))
}

/// The first message in the log of a filesystem context, without its severity.
fn kernel_message(context: OwnedFd) -> String {
    let mut buffer = [0_u8; 512];
    let length = std::fs::File::from(context).read(&mut buffer).unwrap_or_default();
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    let text = text.trim();
    text.split_once(' ').map_or(text, |(_severity, message)| message).to_owned()
}

/// The number of a loop device without a backing file, made if need be.
pub(super) fn loop_get_free(control: BorrowedFd<'_>) -> nix::Result<u32> {
    // SAFETY: takes no argument.
    let number = unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_overflow| Errno::ENODEV)
}

/// Makes a free loop device anew, with the settings of a new one; one in use answers EBUSY and stays.
pub(super) fn loop_renew(control: BorrowedFd<'_>, number: u32) -> nix::Result<()> {
    let number = i32::try_from(number).map_err(|_overflow| Errno::ENODEV)?;
    // SAFETY: takes a plain number.
    unsafe { raw::loop_ctl_remove(control.as_raw_fd(), number) }?;
    // SAFETY: takes a plain number.
    unsafe { raw::loop_ctl_add(control.as_raw_fd(), number) }.map(drop)
}

/// Gives a loop device its backing file, and all settings at once.
pub(super) fn loop_configure(
    device: BorrowedFd<'_>,
    image: BorrowedFd<'_>,
    block_size: u32,
    info: LoopInfo,
) -> nix::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(image.as_raw_fd()).map_err(|_overflow| Errno::EBADF)?,
        block_size,
        info,
        reserved: [0; 8],
    };
    // SAFETY: `config` is a live `struct loop_config`, which the kernel only reads.
    unsafe { raw::loop_configure(device.as_raw_fd(), &raw const config) }.map(drop)
}

/// `LOOP_GET_STATUS64`
pub(super) fn loop_status(device: BorrowedFd<'_>) -> nix::Result<LoopInfo> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: `info` is a live `struct loop_info64`, every bit pattern of which is valid.
    unsafe { raw::loop_get_status64(device.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// `LOOP_CLR_FD`
pub(super) fn loop_clear(device: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::loop_clr_fd(device.as_raw_fd()) }.map(drop)
}

/// `LOOP_SET_CAPACITY`
pub(super) fn loop_set_capacity(device: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: takes no argument.
    unsafe { raw::loop_set_capacity(device.as_raw_fd()) }.map(drop)
}

/// The size of a block device in bytes.
pub(super) fn device_size(device: BorrowedFd<'_>) -> nix::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 writes 64 bits into a live u64.
    unsafe { raw::blk_get_size(device.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// `FS_*_FL` of a file.
pub(super) fn file_flags(file: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut flags = 0_u32;
    // SAFETY: FS_IOC_GETFLAGS writes 32 bits into a live u32, whatever its number says.
    unsafe { raw::fs_get_flags(file.as_raw_fd(), &raw mut flags) }?;
    Ok(flags)
}

/// Sets `FS_*_FL` of a file.
pub(super) fn set_file_flags(file: BorrowedFd<'_>, flags: u32) -> nix::Result<()> {
    // SAFETY: FS_IOC_SETFLAGS reads 32 bits from a live u32.
    unsafe { raw::fs_set_flags(file.as_raw_fd(), &raw const flags) }.map(drop)
}

/// Grows a mounted ext4 to that many blocks.
pub(super) fn ext4_resize(mount: BorrowedFd<'_>, blocks: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads 64 bits from a live u64.
    unsafe { raw::ext4_resize(mount.as_raw_fd(), &raw const blocks) }.map(drop)
}

/// The geometry of a mounted XFS.
pub(super) fn xfs_geometry(mount: BorrowedFd<'_>) -> nix::Result<XfsGeometry> {
    let mut geometry = XfsGeometry::EMPTY;
    // SAFETY: `geometry` is a live `struct xfs_fsop_geom`, every bit pattern of which is valid.
    unsafe { raw::xfs_geometry(mount.as_raw_fd(), &raw mut geometry) }?;
    Ok(geometry)
}

/// Grows a mounted XFS to that many blocks.
pub(super) fn xfs_grow(
    mount: BorrowedFd<'_>,
    new_blocks: u64,
    inode_max_percent: u32,
) -> nix::Result<()> {
    let request = XfsGrow { new_blocks, inode_max_percent };
    // SAFETY: `request` is a live `struct xfs_growfs_data`, which the kernel only reads.
    unsafe { raw::xfs_grow(mount.as_raw_fd(), &raw const request) }.map(drop)
}

/// The argument of the btrfs ioctls that take a name; the last byte stays NUL.
fn btrfs_args(name: &OsStr) -> nix::Result<BtrfsArgs> {
    let mut args = BtrfsArgs { fd: 0, name: [0; BTRFS_NAME] };
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 255 || bytes.contains(&0) {
        return Err(Errno::EINVAL);
    }
    for (place, byte) in args.name.iter_mut().zip(bytes) {
        *place = *byte;
    }
    Ok(args)
}

/// Grows a mounted btrfs of one device to the size of that device.
pub(super) fn btrfs_grow(mount: BorrowedFd<'_>) -> nix::Result<()> {
    let args = btrfs_args(OsStr::new("max"))?;
    // SAFETY: `args` is a live `struct btrfs_ioctl_vol_args` with a NUL-terminated name.
    unsafe { raw::btrfs_resize(mount.as_raw_fd(), &raw const args) }.map(drop)
}

/// Makes a subvolume.
pub(super) fn btrfs_create(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let args = btrfs_args(name)?;
    // SAFETY: `args` is a live `struct btrfs_ioctl_vol_args` with a NUL-terminated name.
    unsafe { raw::btrfs_subvol_create(parent.as_raw_fd(), &raw const args) }.map(drop)
}

/// Destroys a subvolume or snapshot.
pub(super) fn btrfs_destroy(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let args = btrfs_args(name)?;
    // SAFETY: `args` is a live `struct btrfs_ioctl_vol_args` with a NUL-terminated name.
    unsafe { raw::btrfs_snap_destroy(parent.as_raw_fd(), &raw const args) }.map(drop)
}

/// Makes a read-only subvolume writable.
pub(super) fn btrfs_make_writable(subvolume: BorrowedFd<'_>) -> nix::Result<()> {
    let mut flags = 0_u64;
    // SAFETY: the kernel writes 64 bits into a live u64.
    unsafe { raw::btrfs_get_flags(subvolume.as_raw_fd(), &raw mut flags) }?;
    if flags & BTRFS_SUBVOL_RDONLY == 0 {
        return Ok(());
    }
    flags &= !BTRFS_SUBVOL_RDONLY;
    // SAFETY: the kernel reads 64 bits from a live u64.
    unsafe { raw::btrfs_set_flags(subvolume.as_raw_fd(), &raw const flags) }.map(drop)
}

/// Makes a snapshot of a subvolume.
pub(super) fn btrfs_snapshot(
    subvolume: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    read_only: bool,
) -> nix::Result<()> {
    let named = btrfs_args(name)?;
    let mut args = BtrfsSnapshotArgs {
        fd: i64::from(subvolume.as_raw_fd()),
        transid: 0,
        flags: if read_only { BTRFS_SUBVOL_RDONLY } else { 0 },
        unused: [0; 4],
        name: [0; 4040],
    };
    for (place, byte) in args.name.iter_mut().zip(named.name) {
        *place = byte;
    }
    // SAFETY: `args` is a live `struct btrfs_ioctl_vol_args_v2` with a NUL-terminated name.
    unsafe { raw::btrfs_snapshot(parent.as_raw_fd(), &raw const args) }.map(drop)
}

/// How many subvolumes lie in a subvolume, up to 255.
pub(super) fn btrfs_inner(subvolume: BorrowedFd<'_>) -> nix::Result<u8> {
    let mut args = BtrfsInner { least_tree: 0, trees: [[0; 2]; 255], count: 0, align: [0; 7] };
    // SAFETY: `args` is a live `struct btrfs_ioctl_get_subvol_rootref_args`, every bit pattern of which is valid.
    match unsafe { raw::btrfs_inner(subvolume.as_raw_fd(), &raw mut args) } {
        // More than one call would tell.
        Ok(_) | Err(Errno::EOVERFLOW) => Ok(args.count),
        Err(e) => Err(e),
    }
}

/// What a mounted btrfs says of itself.
pub(super) fn btrfs_info(mount: BorrowedFd<'_>) -> nix::Result<BtrfsFsInfo> {
    let mut info = BtrfsFsInfo::EMPTY;
    // SAFETY: `info` is a live `struct btrfs_ioctl_fs_info_args`, every bit pattern of which is valid.
    unsafe { raw::btrfs_fs_info(mount.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

/// `FICLONE`
pub(super) fn clone_file(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the argument is a plain number, that of a live descriptor.
    unsafe { raw::clone_file(target.as_raw_fd(), source.as_raw_fd()) }.map(drop)
}

/// `FIFREEZE`
pub(super) fn freeze(mount: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the kernel ignores the argument.
    unsafe { raw::freeze(mount.as_raw_fd(), 0) }.map(drop)
}

/// `FITHAW`
pub(super) fn thaw(mount: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the kernel ignores the argument.
    unsafe { raw::thaw(mount.as_raw_fd(), 0) }.map(drop)
}

/// `FS_IOC_FIEMAP` after a flush of the file: the first extents that touch the range.
pub(super) fn fiemap(file: BorrowedFd<'_>, start: u64, length: u64) -> nix::Result<Box<Fiemap>> {
    let mut map = Box::new(Fiemap::EMPTY);
    (map.start, map.length, map.flags) = (start, length, FIEMAP_FLAG_SYNC);
    map.count = u32::try_from(FIEMAP_EXTENTS).unwrap_or(0);
    // SAFETY: `map` is a live `struct fiemap` with room for as many extents as it says.
    unsafe { raw::fiemap(file.as_raw_fd(), &raw mut *map) }?;
    Ok(map)
}

/// Puts the calling thread into the idle class of I/O priorities (include/uapi/linux/ioprio.h).
pub(super) fn set_io_idle() -> nix::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: all arguments are plain numbers; zero is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    Errno::result(result).map(drop)
}
