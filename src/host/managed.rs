//! What a managed pool needs of the machine: a filesystem made once on an image or a blank disk, mounted the right way.
//!
//! Invariants: a filesystem is made only where everything reads as zeroes, or on a disk that carries the claim of this very
//! making; what is being looked at is never written to.
//!
//! Must not: decide whether anything is to be made, or use a force flag.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::{DeviceNumber, HostError, Signature};
use crate::volume::{ByteSize, Filesystem, FilesystemUuid};

/// A superblock with the filesystem's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// What it is.
    pub signature: Signature,
    /// Which one it is.
    pub uuid: FilesystemUuid,
    /// Its label says that it was made for a managed pool.
    pub is_ours: bool,
}

/// What lies on a disk or in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeroes, wherever it was looked: the beginning, the end and many places between.
    Blank,
    /// A filesystem is being made, or its making was interrupted. It will have this UUID.
    Claimed(FilesystemUuid),
    /// A filesystem that a managed pool can be on.
    Filesystem(Superblock),
    /// Anything else, in words.
    Foreign(String),
}

/// An open block device, for looking at. It is locked (flock) as programs that change partition tables and filesystems
/// lock it, so that udev and others keep away.
#[derive(Debug)]
pub struct Disk {
    /// Open for reading, and locked.
    pub(super) file: Flock<std::fs::File>,
    /// Where it was found.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Its size.
    pub size: ByteSize,
}

/// How a pool's filesystem is mounted.
#[derive(Debug, Clone, Copy)]
pub struct PoolMount<'a> {
    /// The block device.
    pub device: &'a Path,
    /// What is on it.
    pub filesystem: Filesystem,
    /// Where it goes; exists.
    pub target: &'a Path,
}

/// Managed pools, beside [`super::Host`]. Every call blocks and may be repeated.
pub trait ManagedPools {
    /// Opens and locks a block device; `None` when there is nothing at the path. Links are followed: /dev/disk/by-id has
    /// nothing else.
    ///
    /// # Errors
    /// It is no block device, or another program has the lock (EWOULDBLOCK).
    fn open_disk(&self, path: &Path) -> Result<Option<Disk>, HostError>;

    /// What uses a disk, in words: it is mounted, has partitions, is part of an array or volume group; `None` when nothing
    /// does.
    fn disk_user(&self, disk: &Disk) -> Result<Option<String>, HostError>;

    /// What lies on a disk. Only when the making of a filesystem there was begun, and its end not seen, does a claim count
    /// beside a filesystem.
    fn disk_content(&self, disk: &Disk, begun: bool) -> Result<Content, HostError>;

    /// What lies in an image.
    fn image_content(&self, image: BorrowedFd<'_>) -> Result<Content, HostError>;

    /// Writes the claim on a blank disk, durably: from now on it is one that a filesystem of this UUID is being made on.
    fn claim_disk(&self, disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError>;

    /// Makes the filesystem on a disk that carries the claim, over what an interrupted making left, and takes the claim
    /// away when all of it is on the disk.
    fn make_on_disk(
        &self,
        disk: &Disk,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError>;

    /// Makes the filesystem in a new image that reads as zeroes, and flushes it. Reserved blocks stay reserved. `image` is
    /// locked; the program that does it keeps the lock to its end, whatever becomes of this process.
    fn make_in_image(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError>;

    /// Makes a mount point that only root may enter, and nothing can be written into while nothing is mounted there
    /// (FS_IMMUTABLE_FL). It must be empty. `false` when the filesystem below has no such flag.
    fn seal_mount_point(&self, path: &Path) -> Result<bool, HostError>;

    /// Mounts a pool's filesystem: no access times, no discards, project quotas where the kernel has them. Answers whether
    /// it has (XFS; true for filesystems that do not need a mount option for them).
    fn mount_pool(&self, request: &PoolMount<'_>) -> Result<bool, HostError>;

    /// The UUID of the filesystem mounted at a path; `None` when it has none that can be asked for.
    fn mounted_uuid(&self, path: &Path) -> Result<Option<FilesystemUuid>, HostError>;

    /// A loop device hands blocks back to the filesystem of its image when it is told to discard them.
    fn takes_discards(&self, loop_number: u32) -> bool;

    /// The size of a block device.
    fn device_size(&self, path: &Path) -> Result<ByteSize, HostError>;
}
