//! The one seam to the kernel: mounts, loop devices, filesystems and the programs that make them.
//!
//! [`Host`] is what the layers above may ask of a machine. [`linux::LinuxHost`] does it; `fake::FakeHost` is a
//! model of it for tests without root. Everything blocks.
//!
//! Invariants:
//! - What the kernel knows (mounts, loop devices) is asked each time and never remembered.
//! - A loop device is identified by its backing file's (device, inode), never by a remembered number.
//! - Removing a mount point is rmdir, or unlink of an empty regular file; nothing here removes recursively.
//!
//! Must not: know volumes, pools' layouts, records or gRPC.

mod copying;
mod counting;
mod error;
#[cfg(any(test, feature = "fake-host"))]
pub mod fake;
#[cfg(feature = "fault")]
pub mod faulty;
mod limits;
pub mod linux;
mod managed;
mod mount_table;
mod signature;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use copying::{Copying, Extent, HeldMount};
pub use counting::Counting;
pub use error::{CommandError, HostError};
pub use limits::{Bounds, LimitState, Limits};
pub use managed::{Content, Disk, ManagedPools, PoolMount, Superblock};
pub use mount_table::{DeviceNumber, MountEntry, MountTable};
pub use signature::{POOL_LABEL, PROBE_LENGTH, Signature, probe as probe_signature, probe_pool};

use crate::volume::{Allocation, ByteSize, DirectIo, Filesystem, MkfsOption, MountAttributes};

/// The machine that this process runs on. In a binary for tests, with a fault point around every step.
#[must_use]
pub fn this_machine() -> Arc<dyn Host> {
    #[cfg(not(feature = "fault"))]
    return Arc::new(linux::LinuxHost::new());
    #[cfg(feature = "fault")]
    return Arc::new(faulty::Faulty::new());
}

/// The identity of a file: it survives renames, and no path can pretend to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    /// `st_dev`, as major and minor number.
    pub device: DeviceNumber,
    /// `st_ino`.
    pub inode: u64,
}

impl FileIdentity {
    /// That of an open file or a path that was looked at.
    #[must_use]
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { device: DeviceNumber::of_stat(metadata.dev()), inode: metadata.ino() }
    }
}

/// What lies at a path, links not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A block device with its number.
    BlockDevice(DeviceNumber),
    /// Anything else: a link, a socket, a character device.
    Other,
}

/// A path's inode and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Which inode.
    pub identity: FileIdentity,
    /// What it is.
    pub kind: NodeKind,
}

/// A loop device that has a backing file, as LOOP_GET_STATUS64 tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent LO_FLAGS_* bit of the kernel"
)]
pub struct LoopStatus {
    /// N of /dev/loopN.
    pub number: u32,
    /// The backing file.
    pub backing: FileIdentity,
    /// The backing file is this block device (a loop device on a loop device).
    pub backing_device: Option<DeviceNumber>,
    /// `LO_FLAGS_READ_ONLY`
    pub read_only: bool,
    /// `LO_FLAGS_AUTOCLEAR`
    pub autoclear: bool,
    /// `LO_FLAGS_DIRECT_IO`
    pub direct_io: bool,
    /// The device begins or ends within the file: not a loop device that this driver made.
    pub partial: bool,
    /// `lo_file_name`: the label that [`Host::attach`] was given, or whatever another program wrote there.
    pub label: String,
}

impl LoopStatus {
    /// The device is on that file itself, not on another device.
    #[must_use]
    pub fn is_on(&self, file: FileIdentity) -> bool {
        self.backing == file && self.backing_device.is_none()
    }
}

/// Major number of loop devices (Documentation/admin-guide/devices.txt of the kernel).
pub const LOOP_MAJOR: u32 = 7;

/// The path of a loop device.
#[must_use]
pub fn loop_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// How a loop device is to be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions<'a> {
    /// At most 63 bytes, kept by the kernel with the device: the volume's id, so that a device can be told to be ours
    /// when its pool is away.
    pub label: &'a str,
    /// Refuse writes.
    pub read_only: bool,
    /// Detach when the last user closes it.
    pub autoclear: bool,
    /// Bypass the page cache of the filesystem below.
    pub direct_io: DirectIo,
    /// Logical sector size in bytes: 512 or 4096.
    pub sector: u32,
    /// Thick images take no discards, or their blocks would go back to the pool.
    pub allocation: Allocation,
}

/// A loop device that stays attached at least as long as this value lives.
pub struct AttachedLoop {
    /// N of /dev/loopN.
    pub number: u32,
    /// Keeps the device open.
    hold: Box<dyn Send>,
}

impl AttachedLoop {
    /// A device, and what keeps it open.
    #[must_use]
    pub fn new(number: u32, hold: Box<dyn Send>) -> Self {
        Self { number, hold }
    }

    /// Lets go of the device: one with AUTOCLEAR that nobody mounted goes away.
    pub fn release(self) {
        drop(self.hold);
    }
}

impl Debug for AttachedLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachedLoop").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Where a bind mount takes its tree from.
#[derive(Debug, Clone, Copy)]
pub enum BindSource<'a> {
    /// An open directory or file, whatever its path is by now.
    Fd(BorrowedFd<'a>),
    /// A path: a staging path or a device node.
    Path(&'a Path),
}

/// A filesystem mount.
#[derive(Debug, Clone)]
pub struct FilesystemMount<'a> {
    /// N of /dev/loopN.
    pub loop_number: u32,
    /// What is on it.
    pub filesystem: Filesystem,
    /// Where it goes; exists.
    pub target: &'a Path,
    /// Attributes of the mount; `read_only` makes the filesystem itself read-only.
    pub attributes: MountAttributes,
    /// Checked options of the filesystem (see `volume::MountFlags`).
    pub options: &'a [String],
}

/// Owner and mode of a volume's root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootOwner {
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How a new image is to be formatted.
#[derive(Debug, Clone, Copy)]
pub struct FormatRecipe<'a> {
    /// The filesystem.
    pub filesystem: Filesystem,
    /// Logical sector size in bytes: part of the format of XFS.
    pub sector: u32,
    /// Checked options from the StorageClass.
    pub options: &'a [MkfsOption],
    /// The root directory's owner and mode.
    pub root: RootOwner,
}

/// Which filesystem a pool lies on, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolFilesystem {
    /// ext2, ext3 and ext4 share one magic number.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// Another one, by its statfs(2) magic number.
    Other(i64),
}

/// Space and inodes of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The kind of filesystem.
    pub filesystem: PoolFilesystem,
    /// All of it.
    pub total: ByteSize,
    /// Not in use, including what only root may use.
    pub free: ByteSize,
    /// What an ordinary user may still write.
    pub available: ByteSize,
    /// All inodes; zero where the filesystem does not count them.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// What a mount point is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountPoint {
    /// A directory.
    Directory,
    /// An empty regular file, for a device node.
    File,
}

/// What the layers above may ask of the machine. Every call blocks and may be repeated.
pub trait Host: Copying + Counting + Limits + ManagedPools + Debug + Send + Sync + 'static {
    /// All mounts of this mount namespace, in the order of /proc/self/mountinfo.
    fn mounts(&self) -> Result<MountTable, HostError>;

    /// The mounts of every mount namespace that a program in sight is in, those of this one first: a container's mounts are
    /// in a namespace of its own. Paths are those of the namespace. `false` when programs of this machine may be out of
    /// sight.
    fn mounts_in_sight(&self) -> Result<(Vec<MountTable>, bool), HostError>;

    /// The path as the mount table shows it: links in its parent resolved, its last component kept. `None` when the
    /// parent does not exist.
    fn canonical(&self, path: &Path) -> Result<Option<PathBuf>, HostError>;

    /// What lies at a path, links not followed; `None` when nothing does. On a mount point: the mounted root.
    fn node(&self, path: &Path) -> Result<Option<Node>, HostError>;

    /// Makes a mount point. Its parent must exist (CSI: the CO makes it). One that is there already is fine when
    /// it is of the right kind; a directory must be empty and not a link.
    fn make_mount_point(&self, path: &Path, kind: MountPoint) -> Result<(), HostError>;

    /// Removes an empty directory with rmdir, or an empty regular file with unlink; nothing there is fine.
    fn remove_mount_point(&self, path: &Path) -> Result<(), HostError>;

    /// Binds a tree at `target`, built detached (open_tree, mount_setattr, move_mount), so that its attributes hold
    /// in every mount namespace from the first moment on. Not recursive.
    fn bind(
        &self,
        source: BindSource<'_>,
        target: &Path,
        attributes: MountAttributes,
    ) -> Result<(), HostError>;

    /// Mounts the filesystem of a loop device.
    fn mount(&self, request: &FilesystemMount<'_>) -> Result<(), HostError>;

    /// Unmounts the topmost mount at exactly this path (UMOUNT_NOFOLLOW, never lazily, never by force).
    fn unmount(&self, target: &Path) -> Result<(), HostError>;

    /// Every loop device that has a backing file.
    fn loops(&self) -> Result<Vec<LoopStatus>, HostError>;

    /// The loop device of that number; `None` when it has no backing file or does not exist.
    fn loop_status(&self, number: u32) -> Result<Option<LoopStatus>, HostError>;

    /// Sets up a free loop device on a file with LOOP_CONFIGURE; the caller has looked for an existing one.
    /// `image` must not be a descriptor that holds a lock: the kernel keeps it open.
    fn attach(
        &self,
        image: BorrowedFd<'_>,
        options: LoopOptions,
    ) -> Result<AttachedLoop, HostError>;

    /// Sets up a read-only loop device on top of another one: a view of a raw block volume.
    fn attach_view(&self, below: u32, options: LoopOptions<'_>) -> Result<AttachedLoop, HostError>;

    /// Opens a loop device that is set up already, so that it stays, and makes sure through the opened device that it is
    /// the one on `backing`: the number may have changed hands since it was seen. Discards are refused as by `attach`.
    fn hold(
        &self,
        number: u32,
        backing: FileIdentity,
        allocation: Allocation,
    ) -> Result<AttachedLoop, HostError>;

    /// Detaches a loop device (LOOP_CLR_FD) that is on `backing`; one that is not set up, or on another file by now, is
    /// nobody's business here.
    fn detach(&self, number: u32, backing: FileIdentity) -> Result<(), HostError>;

    /// Tells a loop device that its file grew (LOOP_SET_CAPACITY); answers its size.
    fn refresh_loop_size(&self, number: u32) -> Result<ByteSize, HostError>;

    /// What a block device or image begins with; `None` when nothing is known there.
    fn probe(&self, file: BorrowedFd<'_>) -> Result<Option<Signature>, HostError>;

    /// Makes a filesystem in a new image file of ours that is all zeroes, with the root directory as asked and empty.
    fn format(&self, image: BorrowedFd<'_>, recipe: &FormatRecipe<'_>) -> Result<(), HostError>;

    /// Repairs what a filesystem's own superblock says is broken, in the way that never asks and never guesses
    /// (`e2fsck -p`). `Err` when that is not enough.
    fn repair(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError>;

    /// Grows a mounted filesystem to the size of its device, by ioctl.
    fn grow(
        &self,
        filesystem: Filesystem,
        mount_point: &Path,
        device: ByteSize,
    ) -> Result<(), HostError>;

    /// Whether [`Host::grow`] may be called here. ext4 asks for CAP_SYS_RESOURCE, which a container may lack.
    fn can_grow_mounted(&self, filesystem: Filesystem) -> bool;

    /// Grows the filesystem of a loop device that is not mounted, where it cannot grow while mounted.
    fn grow_unmounted(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError>;

    /// How many errors the kernel has counted on a mounted filesystem; zero also where it does not count (XFS) or tell.
    /// Reads /sys only: no disk is asked.
    fn filesystem_errors(&self, mount: &MountEntry) -> u64;

    /// Space of the filesystem that an open file or directory lies on.
    fn space(&self, file: BorrowedFd<'_>) -> Result<Space, HostError>;

    /// Makes what [`Host::space`] and limits tell true for what was done until now: btrfs counts what was freed when it
    /// commits, and for whom something was written when it has been written, which takes as long as there is to write.
    fn settle_space(&self, directory: BorrowedFd<'_>, written: bool) -> Result<(), HostError>;

    /// Space of the filesystem mounted at a path.
    fn space_at(&self, path: &Path) -> Result<Space, HostError>;

    /// Makes a btrfs subvolume `name` in `parent`.
    fn make_subvolume(&self, parent: BorrowedFd<'_>, name: &str) -> Result<(), HostError>;

    /// Destroys the btrfs subvolume `name` in `parent`, with its files; `false` when `name` is not a subvolume or the
    /// filesystem is not btrfs. Subvolumes inside it make it fail with ENOTEMPTY.
    fn remove_subvolume(
        &self,
        parent: BorrowedFd<'_>,
        name: &std::ffi::OsStr,
    ) -> Result<bool, HostError>;

    /// Takes the flags immutable and append-only off a file or directory that is to be removed.
    fn make_removable(&self, file: BorrowedFd<'_>) -> Result<(), HostError>;

    /// Sets NODATACOW on an empty file of a btrfs filesystem; elsewhere nothing.
    fn disable_copy_on_write(&self, file: BorrowedFd<'_>) -> Result<(), HostError>;

    /// How many loop devices this machine can have; `None` when there is no bound.
    fn loop_limit(&self) -> Option<u32>;
}
