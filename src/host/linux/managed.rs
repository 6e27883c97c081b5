//! Makes, mounts and asks the filesystems of managed pools.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use nix::unistd::fsync;
use sys_mount::MountFlags;

use super::format::{pool_command, reserve_again};
use super::mounts::{self, fd_path};
use super::{LinuxHost, disk, loops, sys};
use crate::fault;
use crate::host::{Content, Disk, HostError, ManagedPools, MountPoint, PoolMount};
use crate::volume::{ByteSize, Filesystem, FilesystemUuid};

/// `FS_IMMUTABLE_FL`
const IMMUTABLE: u32 = 0x10;
const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl LinuxHost {
    /// Runs mkfs on an open file or device, which is locked. The program keeps the lock to its end.
    fn make_on(
        &self,
        target: BorrowedFd<'_>,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        let failed = |e| HostError::call("format", fd_path(target), e);
        let (program, mut arguments) =
            pool_command(&self.programs, filesystem, uuid).ok_or_else(|| {
                HostError::Unsupported {
                    what: format!("a managed pool has no filesystem {filesystem}"),
                    remedy: "use xfs or btrfs",
                }
            })?;
        fault::point!("managed.format.start").map_err(failed)?;
        // A path to this very inode, wherever it is by now.
        arguments.push(format!("/proc/{}/fd/{}", std::process::id(), target.as_raw_fd()));
        program.run_holding(&arguments, target.try_clone_to_owned().map_err(failed)?)?;
        fault::point!("managed.format.done").map_err(failed)
    }
}

fn image_file(image: BorrowedFd<'_>) -> Result<(File, u64), HostError> {
    let failed = |e| HostError::call("look at", fd_path(image), e);
    let file = File::from(image.try_clone_to_owned().map_err(failed)?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(HostError::Unexpected {
            what: "not an image file".to_owned(),
            path: fd_path(image),
        });
    }
    Ok((file, metadata.len()))
}

impl ManagedPools for LinuxHost {
    fn open_disk(&self, path: &Path) -> Result<Option<Disk>, HostError> {
        disk::open(path)
    }

    fn disk_user(&self, disk: &Disk) -> Result<Option<String>, HostError> {
        disk::user(disk)
    }

    fn disk_content(&self, disk: &Disk, begun: bool) -> Result<Content, HostError> {
        disk::content(&disk.file, disk.size.bytes(), begun, &disk.path)
    }

    fn image_content(&self, image: BorrowedFd<'_>) -> Result<Content, HostError> {
        let (file, length) = image_file(image)?;
        disk::content(&file, length, false, &fd_path(image))
    }

    fn claim_disk(&self, disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError> {
        disk::claim(disk, uuid)
    }

    fn make_on_disk(
        &self,
        disk: &Disk,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        disk::clear(disk, uuid)?;
        self.make_on(disk.file.as_fd(), filesystem, uuid)?;
        disk::flush(disk)?;
        fault::point!("managed.disk.flushed")
            .map_err(|e| HostError::call("flush", &disk.path, e))?;
        disk::release(disk, uuid)
    }

    fn make_in_image(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        let failed = |e| HostError::call("format", fd_path(image), e);
        let (file, length) = image_file(image)?;
        if self.image_content(image)? != Content::Blank {
            return Err(HostError::Unexpected {
                what: "the image is not blank, so it is not formatted".to_owned(),
                path: fd_path(image),
            });
        }
        let blocks = |file: &File| {
            file.metadata().map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata))
        };
        let reserved = blocks(&file).map_err(failed)?.saturating_mul(512) >= length;
        self.make_on(image, filesystem, uuid)?;
        if reserved {
            reserve_again(&file, length).map_err(|e| failed(e.into()))?;
        }
        file.sync_all().map_err(failed)
    }

    fn seal_mount_point(&self, path: &Path) -> Result<bool, HostError> {
        mounts::make_mount_point(path, MountPoint::Directory)?;
        let failed = |e: Errno| HostError::call("seal the mount point", path, e);
        let directory = open(path, DIRECTORY, Mode::empty()).map_err(failed)?;
        let flags = match sys::file_flags(directory.as_fd()) {
            Ok(flags) => flags,
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL) => return Ok(false),
            Err(e) => return Err(failed(e)),
        };
        if flags & IMMUTABLE != 0 {
            return Ok(true);
        }
        // Under the flag the mode cannot be changed any more.
        if fstat(&directory).map_err(failed)?.st_mode & 0o7777 != 0o700 {
            fchmod(&directory, Mode::S_IRWXU).map_err(failed)?;
        }
        fault::point!("managed.seal.start").map_err(|e| HostError::call("seal", path, e))?;
        match sys::set_file_flags(directory.as_fd(), flags | IMMUTABLE) {
            Ok(()) => fsync(&directory).map(|()| true).map_err(failed),
            // No such flag there, or no CAP_LINUX_IMMUTABLE.
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    fn mount_pool(&self, request: &PoolMount<'_>) -> Result<bool, HostError> {
        let mount = |data: &str| {
            mounts::mount_device(
                request.device,
                request.filesystem,
                request.target,
                MountFlags::NOATIME,
                data,
            )
        };
        match request.filesystem {
            Filesystem::Xfs => match mount("nodiscard,prjquota") {
                Ok(()) => Ok(true),
                // So says a kernel whose XFS was built without quotas. Whatever else is wrong, the second try tells.
                Err(e) if e.errno() == Some(Errno::EINVAL) => mount("nodiscard").map(|()| false),
                Err(e) => Err(e),
            },
            Filesystem::Btrfs => mount("nodiscard").map(|()| true),
            Filesystem::Ext4 => Err(HostError::Unsupported {
                what: "a managed pool has no filesystem ext4".to_owned(),
                remedy: "use xfs or btrfs",
            }),
        }
    }

    fn mounted_uuid(&self, path: &Path) -> Result<Option<FilesystemUuid>, HostError> {
        let failed = |e: Errno| HostError::call("ask for the UUID of the filesystem at", path, e);
        let mount: OwnedFd = open(path, DIRECTORY, Mode::empty()).map_err(failed)?;
        let uuid = match fstatfs(&mount).map_err(failed)?.filesystem_type() {
            XFS_SUPER_MAGIC => sys::xfs_geometry(mount.as_fd()).map(|geometry| geometry.uuid),
            BTRFS_SUPER_MAGIC => sys::btrfs_info(mount.as_fd()).map(|info| info.uuid),
            _ => return Ok(None),
        };
        uuid.map(|bytes| Some(FilesystemUuid::from_bytes(bytes))).map_err(failed)
    }

    fn takes_discards(&self, loop_number: u32) -> bool {
        loops::takes_discards(loop_number)
    }

    fn device_size(&self, path: &Path) -> Result<ByteSize, HostError> {
        let failed = |e: Errno| HostError::call("ask the size of", path, e);
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let device: OwnedFd = open(path, flags, Mode::empty()).map_err(failed)?;
        sys::device_size(device.as_fd()).map(ByteSize::new).map_err(failed)
    }
}
