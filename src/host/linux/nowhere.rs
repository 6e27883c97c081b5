//! Mounts an image's filesystem in no tree: only this process reaches it, and a kill leaves nothing behind.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::loops::{self, Loops, wait_until};
use super::sys;
use crate::host::{HostError, LoopOptions, loop_path};
use crate::volume::{Allocation, DirectIo, Filesystem};

/// How long the kernel (or a program that looks at every new disk) may keep the device after its last use.
const DETACH_WAIT: Duration = Duration::from_secs(3);

/// How an image is mounted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nowhere<'a> {
    pub(super) image: BorrowedFd<'a>,
    pub(super) filesystem: Filesystem,
    pub(super) sector: u32,
    pub(super) allocation: Allocation,
    /// Mount beside a filesystem with the same UUID, which this one is a copy of.
    pub(super) is_copy: bool,
    /// Label of the loop device.
    pub(super) label: &'static str,
    /// What to do when this kernel does not mount it.
    pub(super) remedy: &'static str,
}

impl Nowhere<'_> {
    /// Mounts the filesystem, does the work on its root directory, and unmounts it; the loop device is gone when this
    /// returns.
    pub(super) fn with<T>(
        &self,
        loops: &Loops,
        work: impl FnOnce(BorrowedFd<'_>, u32) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        use std::os::fd::AsFd;
        let attached = loops.attach(
            self.image,
            LoopOptions {
                label: self.label,
                read_only: false,
                autoclear: true,
                direct_io: DirectIo::Off,
                sector: self.sector,
                allocation: self.allocation,
            },
        )?;
        let number = attached.number;
        let ours = loops::status(number)?.map(|status| status.backing);
        let mounted = mount(number, self.filesystem, self.is_copy, self.remedy);
        let result = mounted.and_then(|mount| {
            // The mount's own descriptor is O_PATH, on which nothing can be changed.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = openat(&mount, ".", flags, Mode::empty())
                .map_err(|e| HostError::call("open the filesystem on", loop_path(number), e))?;
            work(root.as_fd(), number)
        });
        attached.release();
        let result = result?;
        let gone = wait_until(DETACH_WAIT, || {
            // An error is no proof that it is gone.
            loops::status(number).is_ok_and(|now| now.map(|status| status.backing) != ours)
        });
        if gone {
            Ok(result)
        } else {
            Err(HostError::call("wait for the end of", loop_path(number), Errno::EBUSY))
        }
    }
}

/// Mounts the filesystem of a loop device in no tree.
pub(super) fn mount(
    number: u32,
    filesystem: Filesystem,
    is_copy: bool,
    remedy: &'static str,
) -> Result<OwnedFd, HostError> {
    let (name, flags): (_, &[&CStr]) = match (filesystem, is_copy) {
        // Without the background thread that zeroes inode tables: the mount is gone in a moment.
        (Filesystem::Ext4, _) => (c"ext4", &[c"noinit_itable"]),
        (Filesystem::Xfs, false) => (c"xfs", &[]),
        (Filesystem::Xfs, true) => (c"xfs", &[c"nouuid"]),
        (Filesystem::Btrfs, _) => (c"btrfs", &[]),
    };
    sys::mount_detached(name, &loop_path(number), flags).map_err(|(errno, message)| {
        if matches!(errno, Errno::EBUSY | Errno::ENXIO) {
            // A program works on the device, or it is just being detached.
            return HostError::call("mount the filesystem of", loop_path(number), errno);
        }
        let said =
            if message.is_empty() { errno.to_string() } else { format!("{errno}: {message}") };
        HostError::Unsupported {
            what: format!("this kernel does not mount the {filesystem} of the image ({said})"),
            remedy,
        }
    })
}
