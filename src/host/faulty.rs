//! A host in which every step that changes the disk or the kernel is a fault point, before it and after it.
//!
//! The binary of the tests runs on it (feature `fault`). A verb that is added to the seam does not compile until it is
//! here: either it only looks, and is passed on, or it is a step.
//!
//! Must not: exist in a release build, or do anything else than the host that it wraps.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::linux::LinuxHost;
use super::{
    AttachedLoop, BindSource, Bounds, Content, Copying, Counting, Disk, Extent, FileIdentity,
    FilesystemMount, FormatRecipe, HeldMount, Host, HostError, LimitState, Limits, LoopOptions,
    LoopStatus, ManagedPools, MountEntry, MountPoint, MountTable, Node, PoolMount, Signature,
    Space,
};
use crate::fault;
use crate::volume::{
    Allocation, ByteSize, Filesystem, FilesystemUuid, Limit, LimitKind, MountAttributes,
};

/// The real machine with fault points.
#[derive(Debug, Default)]
pub struct Faulty(LinuxHost);

impl Faulty {
    /// Wraps the real machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Does a step between two fault points of one name.
macro_rules! step {
    ($name:literal, $step:expr) => {{
        let failed = |e: std::io::Error| HostError::call("go on with", $name, e);
        fault::point!($name).map_err(failed)?;
        let done = $step?;
        fault::hit_behind($name);
        Ok(done)
    }};
}

impl Host for Faulty {
    fn mounts(&self) -> Result<MountTable, HostError> {
        self.0.mounts()
    }

    fn mounts_in_sight(&self) -> Result<(Vec<MountTable>, bool), HostError> {
        self.0.mounts_in_sight()
    }

    fn canonical(&self, path: &Path) -> Result<Option<PathBuf>, HostError> {
        self.0.canonical(path)
    }

    fn node(&self, path: &Path) -> Result<Option<Node>, HostError> {
        self.0.node(path)
    }

    fn make_mount_point(&self, path: &Path, kind: MountPoint) -> Result<(), HostError> {
        step!("step.host.make_mount_point", self.0.make_mount_point(path, kind))
    }

    fn remove_mount_point(&self, path: &Path) -> Result<(), HostError> {
        step!("step.host.remove_mount_point", self.0.remove_mount_point(path))
    }

    fn bind(
        &self,
        source: BindSource<'_>,
        target: &Path,
        attributes: MountAttributes,
    ) -> Result<(), HostError> {
        step!("step.host.bind", self.0.bind(source, target, attributes))
    }

    fn mount(&self, request: &FilesystemMount<'_>) -> Result<(), HostError> {
        step!("step.host.mount", self.0.mount(request))
    }

    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        step!("step.host.unmount", self.0.unmount(target))
    }

    fn loops(&self) -> Result<Vec<LoopStatus>, HostError> {
        self.0.loops()
    }

    fn loop_status(&self, number: u32) -> Result<Option<LoopStatus>, HostError> {
        self.0.loop_status(number)
    }

    fn attach(
        &self,
        image: BorrowedFd<'_>,
        options: LoopOptions<'_>,
    ) -> Result<AttachedLoop, HostError> {
        step!("step.host.attach", self.0.attach(image, options))
    }

    fn attach_view(&self, below: u32, options: LoopOptions<'_>) -> Result<AttachedLoop, HostError> {
        step!("step.host.attach_view", self.0.attach_view(below, options))
    }

    fn hold(
        &self,
        number: u32,
        backing: FileIdentity,
        allocation: Allocation,
    ) -> Result<AttachedLoop, HostError> {
        self.0.hold(number, backing, allocation)
    }

    fn detach(&self, number: u32, backing: FileIdentity) -> Result<(), HostError> {
        step!("step.host.detach", self.0.detach(number, backing))
    }

    fn refresh_loop_size(&self, number: u32) -> Result<ByteSize, HostError> {
        step!("step.host.refresh_loop_size", self.0.refresh_loop_size(number))
    }

    fn probe(&self, file: BorrowedFd<'_>) -> Result<Option<Signature>, HostError> {
        self.0.probe(file)
    }

    fn format(&self, image: BorrowedFd<'_>, recipe: &FormatRecipe<'_>) -> Result<(), HostError> {
        step!("step.host.format", self.0.format(image, recipe))
    }

    fn repair(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError> {
        step!("step.host.repair", self.0.repair(loop_number, filesystem))
    }

    fn grow(
        &self,
        filesystem: Filesystem,
        mount_point: &Path,
        device: ByteSize,
    ) -> Result<(), HostError> {
        step!("step.host.grow", self.0.grow(filesystem, mount_point, device))
    }

    fn can_grow_mounted(&self, filesystem: Filesystem) -> bool {
        self.0.can_grow_mounted(filesystem)
    }

    fn grow_unmounted(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError> {
        step!("step.host.grow_unmounted", self.0.grow_unmounted(loop_number, filesystem))
    }

    fn filesystem_errors(&self, mount: &MountEntry) -> u64 {
        self.0.filesystem_errors(mount)
    }

    fn space(&self, file: BorrowedFd<'_>) -> Result<Space, HostError> {
        self.0.space(file)
    }

    fn settle_space(&self, directory: BorrowedFd<'_>, written: bool) -> Result<(), HostError> {
        self.0.settle_space(directory, written)
    }

    fn space_at(&self, path: &Path) -> Result<Space, HostError> {
        self.0.space_at(path)
    }

    fn make_subvolume(&self, parent: BorrowedFd<'_>, name: &str) -> Result<(), HostError> {
        step!("step.host.make_subvolume", self.0.make_subvolume(parent, name))
    }

    fn remove_subvolume(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, HostError> {
        step!("step.host.remove_subvolume", self.0.remove_subvolume(parent, name))
    }

    fn make_removable(&self, file: BorrowedFd<'_>) -> Result<(), HostError> {
        step!("step.host.make_removable", self.0.make_removable(file))
    }

    fn disable_copy_on_write(&self, file: BorrowedFd<'_>) -> Result<(), HostError> {
        step!("step.host.disable_copy_on_write", self.0.disable_copy_on_write(file))
    }

    fn loop_limit(&self) -> Option<u32> {
        self.0.loop_limit()
    }
}

impl Copying for Faulty {
    fn shares_blocks(&self, directory: BorrowedFd<'_>) -> Result<bool, HostError> {
        self.0.shares_blocks(directory)
    }

    fn share_file(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), HostError> {
        step!("step.host.share_file", self.0.share_file(source, target))
    }

    fn extents(
        &self,
        file: BorrowedFd<'_>,
        from: u64,
        to: u64,
    ) -> Result<Option<Vec<Extent>>, HostError> {
        self.0.extents(file, from, to)
    }

    fn snapshot_subvolume(
        &self,
        subvolume: BorrowedFd<'_>,
        parent: BorrowedFd<'_>,
        name: &str,
        read_only: bool,
    ) -> Result<(), HostError> {
        step!(
            "step.host.snapshot_subvolume",
            self.0.snapshot_subvolume(subvolume, parent, name, read_only)
        )
    }

    fn has_inner_subvolumes(&self, subvolume: BorrowedFd<'_>) -> Result<bool, HostError> {
        self.0.has_inner_subvolumes(subvolume)
    }

    fn sync_loop(&self, number: u32) -> Result<(), HostError> {
        step!("step.host.sync_loop", self.0.sync_loop(number))
    }

    /// What is held is frozen and thawed between points of `engine/freeze.rs`.
    fn hold_mount(&self, seen: &MountEntry) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        self.0.hold_mount(seen)
    }

    fn hold_device(&self, loop_number: u32) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        self.0.hold_device(loop_number)
    }

    fn renew(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        sector: u32,
        made_elsewhere: bool,
    ) -> Result<(), HostError> {
        step!("step.host.renew", self.0.renew(image, filesystem, sector, made_elsewhere))
    }

    fn match_copy_on_write(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
    ) -> Result<(), HostError> {
        step!("step.host.match_copy_on_write", self.0.match_copy_on_write(source, target))
    }

    fn allocated(&self, file: BorrowedFd<'_>) -> Result<ByteSize, HostError> {
        self.0.allocated(file)
    }
}

impl Counting for Faulty {
    fn yield_disk(&self) -> Result<(), HostError> {
        self.0.yield_disk()
    }

    fn project_of(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, HostError> {
        self.0.project_of(file)
    }
}

impl Limits for Faulty {
    fn limit_kind(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        self.0.limit_kind(filesystem)
    }

    fn enable_quota(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        step!("step.host.enable_quota", self.0.enable_quota(filesystem))
    }

    fn begin_limit(&self, directory: BorrowedFd<'_>, kind: LimitKind) -> Result<Limit, HostError> {
        step!("step.host.begin_limit", self.0.begin_limit(directory, kind))
    }

    fn join_limit(&self, file: BorrowedFd<'_>, limit: Limit) -> Result<(), HostError> {
        step!("step.host.join_limit", self.0.join_limit(file, limit))
    }

    fn set_bounds(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
        bounds: Option<Bounds>,
    ) -> Result<(), HostError> {
        step!("step.host.set_bounds", self.0.set_bounds(filesystem, limit, bounds))
    }

    fn limit_state(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
    ) -> Result<Option<LimitState>, HostError> {
        self.0.limit_state(filesystem, limit)
    }

    fn limit_of(&self, directory: BorrowedFd<'_>) -> Result<Option<Limit>, HostError> {
        self.0.limit_of(directory)
    }

    fn end_limit(&self, filesystem: BorrowedFd<'_>, limit: Limit) -> Result<bool, HostError> {
        step!("step.host.end_limit", self.0.end_limit(filesystem, limit))
    }

    fn being_freed(&self, filesystem: BorrowedFd<'_>) -> Result<Vec<u64>, HostError> {
        self.0.being_freed(filesystem)
    }

    fn free_now(&self, filesystem: BorrowedFd<'_>) -> Result<(), HostError> {
        self.0.free_now(filesystem)
    }
}

impl ManagedPools for Faulty {
    fn open_disk(&self, path: &Path) -> Result<Option<Disk>, HostError> {
        self.0.open_disk(path)
    }

    fn disk_user(&self, disk: &Disk) -> Result<Option<String>, HostError> {
        self.0.disk_user(disk)
    }

    fn disk_content(&self, disk: &Disk, begun: bool) -> Result<Content, HostError> {
        self.0.disk_content(disk, begun)
    }

    fn image_content(&self, image: BorrowedFd<'_>) -> Result<Content, HostError> {
        self.0.image_content(image)
    }

    fn claim_disk(&self, disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError> {
        step!("step.pool.claim_disk", self.0.claim_disk(disk, uuid))
    }

    fn make_on_disk(
        &self,
        disk: &Disk,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        step!("step.pool.make_on_disk", self.0.make_on_disk(disk, filesystem, uuid))
    }

    fn make_in_image(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        step!("step.pool.make_in_image", self.0.make_in_image(image, filesystem, uuid))
    }

    fn seal_mount_point(&self, path: &Path) -> Result<bool, HostError> {
        step!("step.pool.seal_mount_point", self.0.seal_mount_point(path))
    }

    fn mount_pool(&self, request: &PoolMount<'_>) -> Result<bool, HostError> {
        step!("step.pool.mount_pool", self.0.mount_pool(request))
    }

    fn mounted_uuid(&self, path: &Path) -> Result<Option<FilesystemUuid>, HostError> {
        self.0.mounted_uuid(path)
    }

    fn takes_discards(&self, loop_number: u32) -> bool {
        self.0.takes_discards(loop_number)
    }

    fn device_size(&self, path: &Path) -> Result<ByteSize, HostError> {
        self.0.device_size(path)
    }
}
