//! The real machine: [`Host`] by system calls, and mkfs and e2fsck where there is no call.
//!
//! Split by noun: paths and mounts, loop devices, making filesystems, filesystems that exist, programs, and the
//! one place with `unsafe` in it.
//!
//! Invariants: nothing but the paths of programs is remembered; every failure names what was tried and where.

mod command;
mod copying;
mod counting;
mod disk;
mod errors;
mod filesystem;
mod format;
mod layout;
mod limits;
mod loops;
pub mod machine;
mod managed;
mod mounts;
mod nowhere;
mod renew;
mod sys;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use self::command::Programs;
use self::loops::Loops;
use super::{
    AttachedLoop, BindSource, FileIdentity, FilesystemMount, FormatRecipe, Host, HostError,
    LoopOptions, LoopStatus, MountEntry, MountPoint, MountTable, Node, Signature, Space,
};
use crate::volume::{Allocation, ByteSize, Filesystem, MountAttributes};

/// This machine.
#[derive(Debug)]
pub struct LinuxHost {
    programs: Programs,
    loops: Loops,
}

impl LinuxHost {
    /// Looks for the system's programs; one that is missing is an error only when it is needed.
    #[must_use]
    pub fn new() -> Self {
        Self { programs: Programs::find(), loops: Loops::default() }
    }
}

/// A program is where the driver looks for it.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    command::path_of(program).is_some()
}

/// This kernel certainly cannot mount such a filesystem, also not after it has looked for a module. Asks as root.
#[must_use]
pub fn lacks_filesystem(filesystem: Filesystem) -> bool {
    let name = match filesystem {
        Filesystem::Ext4 => c"ext4",
        Filesystem::Xfs => c"xfs",
        Filesystem::Btrfs => c"btrfs",
    };
    sys::begin_mount(name).is_err_and(|errno| errno == nix::errno::Errno::ENODEV)
}

impl Default for LinuxHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for LinuxHost {
    fn mounts(&self) -> Result<MountTable, HostError> {
        mounts::read_table()
    }

    fn mounts_in_sight(&self) -> Result<(Vec<MountTable>, bool), HostError> {
        mounts::tables_in_sight()
    }

    fn canonical(&self, path: &Path) -> Result<Option<PathBuf>, HostError> {
        mounts::canonical(path)
    }

    fn node(&self, path: &Path) -> Result<Option<Node>, HostError> {
        mounts::node(path)
    }

    fn make_mount_point(&self, path: &Path, kind: MountPoint) -> Result<(), HostError> {
        mounts::make_mount_point(path, kind)
    }

    fn remove_mount_point(&self, path: &Path) -> Result<(), HostError> {
        mounts::remove_mount_point(path)
    }

    fn bind(
        &self,
        source: BindSource<'_>,
        target: &Path,
        attributes: MountAttributes,
    ) -> Result<(), HostError> {
        mounts::bind(source, target, attributes)
    }

    fn mount(&self, request: &FilesystemMount<'_>) -> Result<(), HostError> {
        mounts::mount(request)
    }

    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        mounts::unmount(target)
    }

    fn loops(&self) -> Result<Vec<LoopStatus>, HostError> {
        loops::all()
    }

    fn loop_status(&self, number: u32) -> Result<Option<LoopStatus>, HostError> {
        loops::status(number)
    }

    fn attach(
        &self,
        image: BorrowedFd<'_>,
        options: LoopOptions<'_>,
    ) -> Result<AttachedLoop, HostError> {
        self.loops.attach(image, options)
    }

    fn attach_view(&self, below: u32, options: LoopOptions<'_>) -> Result<AttachedLoop, HostError> {
        let device = loops::open_to_read(below)?;
        self.loops.attach(device.as_fd(), LoopOptions { read_only: true, ..options })
    }

    fn hold(
        &self,
        number: u32,
        backing: FileIdentity,
        allocation: Allocation,
    ) -> Result<AttachedLoop, HostError> {
        loops::hold(number, backing, allocation)
    }

    fn detach(&self, number: u32, backing: FileIdentity) -> Result<(), HostError> {
        loops::detach(number, backing)
    }

    fn refresh_loop_size(&self, number: u32) -> Result<ByteSize, HostError> {
        loops::refresh_size(number)
    }

    fn probe(&self, file: BorrowedFd<'_>) -> Result<Option<Signature>, HostError> {
        filesystem::probe(file)
    }

    fn format(&self, image: BorrowedFd<'_>, recipe: &FormatRecipe<'_>) -> Result<(), HostError> {
        format::format(&self.programs, &self.loops, image, recipe)
    }

    fn repair(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError> {
        filesystem::repair(&self.programs, loop_number, filesystem)
    }

    fn grow(
        &self,
        filesystem: Filesystem,
        mount_point: &Path,
        device: ByteSize,
    ) -> Result<(), HostError> {
        filesystem::grow(filesystem, mount_point, device)
    }

    fn can_grow_mounted(&self, filesystem: Filesystem) -> bool {
        filesystem::can_grow_mounted(filesystem)
    }

    fn grow_unmounted(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError> {
        filesystem::grow_unmounted(&self.programs, loop_number, filesystem)
    }

    fn filesystem_errors(&self, mount: &MountEntry) -> u64 {
        errors::counted(mount)
    }

    fn space(&self, file: BorrowedFd<'_>) -> Result<Space, HostError> {
        filesystem::space(file)
    }

    fn settle_space(&self, directory: BorrowedFd<'_>, written: bool) -> Result<(), HostError> {
        filesystem::settle_space(directory, written)
    }

    fn space_at(&self, path: &Path) -> Result<Space, HostError> {
        filesystem::space_at(path)
    }

    fn make_subvolume(&self, parent: BorrowedFd<'_>, name: &str) -> Result<(), HostError> {
        filesystem::make_subvolume(parent, OsStr::new(name))
    }

    fn remove_subvolume(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, HostError> {
        filesystem::remove_subvolume(parent, name)
    }

    fn make_removable(&self, file: BorrowedFd<'_>) -> Result<(), HostError> {
        filesystem::make_removable(file)
    }

    fn disable_copy_on_write(&self, file: BorrowedFd<'_>) -> Result<(), HostError> {
        filesystem::disable_copy_on_write(file)
    }

    fn loop_limit(&self) -> Option<u32> {
        loops::limit()
    }
}
