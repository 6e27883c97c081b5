//! A model of the kernel for tests without root.
//!
//! Directories and files are real (in the test's own temporary directory); mounts and loop devices exist in the
//! model only, and look as the real ones do: in the mount table, in a node's identity, in what AUTOCLEAR does.
//! Image files get a real superblock, so that `probe_signature` knows them.
//!
//! Must not: need root, or be lenient where the kernel is not.

mod copying;
mod counting;
mod gate;
mod limits;
mod managed;
mod meter;
mod model;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;

pub use self::gate::Blocked;
pub use self::model::FilesystemTrouble;
use self::model::{
    FakeLoop, FakeMount, Model, dev_entry, filesystem_mount, lock, option_words, owned_file,
    path_of, root_entry, status_for, tree_at, write_superblock,
};
use super::linux::LinuxHost;
use super::{
    AttachedLoop, BindSource, DeviceNumber, FileIdentity, FilesystemMount, FormatRecipe, Host,
    HostError, LoopOptions, LoopStatus, MountEntry, MountPoint, MountTable, Node, NodeKind,
    PoolFilesystem, Signature, Space, loop_path,
};
use crate::volume::{Allocation, ByteSize, Filesystem, MountAttributes};

/// The model; clones share it.
#[derive(Debug, Clone)]
pub struct FakeHost {
    /// Does what needs no root: paths, mount points, probing.
    real: Arc<LinuxHost>,
    model: Arc<Mutex<Model>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A machine without mounts and loop devices, and with 100 GiB of free ext4.
    #[must_use]
    pub fn new() -> Self {
        let space = Space {
            filesystem: PoolFilesystem::Ext,
            total: ByteSize::gib(100),
            free: ByteSize::gib(100),
            available: ByteSize::gib(100),
            inodes: 1 << 20,
            inodes_free: 1 << 20,
        };
        let model = Model {
            mounts: Vec::new(),
            loops: BTreeMap::new(),
            space,
            is_metered: false,
            faults: Vec::new(),
            gates: Vec::new(),
            calls: Vec::new(),
            attachments: 0,
            grows_mounted_ext4: true,
            most_loops: 0,
            frozen: std::collections::BTreeSet::new(),
            inner_subvolumes: false,
            troubles: BTreeMap::new(),
            limits: limits::FakeLimits::default(),
        };
        Self { real: Arc::new(LinuxHost::new()), model: Arc::new(Mutex::new(model)) }
    }

    /// What every filesystem answers about its space from now on. With btrfs there are subvolumes.
    pub fn set_space(&self, space: Space) {
        lock(&self.model).space = space;
    }

    /// From now on the images below a directory take their blocks of what its filesystem says is available.
    pub fn meter_images(&self) {
        lock(&self.model).is_metered = true;
    }

    /// What becomes of the filesystem on a device, `/dev/sda1` for the machine's own.
    pub fn set_trouble(&self, source: &str, trouble: FilesystemTrouble) {
        lock(&self.model).troubles.insert(source.to_owned(), trouble);
    }

    /// Takes the capability away without which ext4 does not grow while mounted.
    pub fn refuse_to_grow_mounted_ext4(&self) {
        lock(&self.model).grows_mounted_ext4 = false;
    }

    /// The next call of this verb (a method of [`Host`] by its name) fails with this error.
    pub fn fail_next(&self, verb: &'static str, errno: Errno) {
        lock(&self.model).faults.push((verb, errno));
    }

    /// Forgets every fault that has not struck yet.
    pub fn clear_faults(&self) {
        lock(&self.model).faults.clear();
    }

    /// The next call of this verb waits, before it does anything, until the handle is released or dropped: a disk that
    /// takes its time.
    pub fn block_next(&self, verb: &'static str) -> Blocked {
        let (blocked, gate) = Blocked::new();
        lock(&self.model).gates.push((verb, gate));
        blocked
    }

    /// The most loop devices that one image ever had. More than one would destroy it; the kernel does not refuse it.
    #[must_use]
    pub fn max_loops_per_image(&self) -> usize {
        lock(&self.model).most_loops
    }

    /// Takes all mounts and loop devices away, as a power cut does. Files stay.
    pub fn reboot(&self) {
        let mut model = lock(&self.model);
        model.mounts.clear();
        model.loops.clear();
    }

    /// The verbs that were called since the last time this was asked, reading ones left out.
    #[must_use]
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut lock(&self.model).calls)
    }

    /// Where something is mounted in the model, in mount order.
    #[must_use]
    pub fn mount_points(&self) -> Vec<PathBuf> {
        let model = lock(&self.model);
        let points = model.mounts.iter().map(|m| m.entry.mount_point.clone());
        points.collect()
    }

    /// Begins a verb that only reads.
    fn look(&self, verb: &'static str, path: &Path) -> Result<MutexGuard<'_, Model>, HostError> {
        let mut model = lock(&self.model);
        if let Some(index) = model.gates.iter().position(|(closed, _)| *closed == verb) {
            let (_, gate) = model.gates.remove(index);
            drop(model);
            gate.pass();
            model = lock(&self.model);
        }
        match model.faults.iter().position(|(armed, _)| *armed == verb) {
            None => Ok(model),
            Some(index) => {
                let (verb, errno) = model.faults.remove(index);
                Err(HostError::call(verb, path, errno))
            }
        }
    }

    /// Begins a verb that changes something.
    fn enter(&self, verb: &'static str, path: &Path) -> Result<MutexGuard<'_, Model>, HostError> {
        let mut model = self.look(verb, path)?;
        model.calls.push(verb);
        Ok(model)
    }

    fn real_probe(&self, file: BorrowedFd<'_>) -> Result<Option<Filesystem>, HostError> {
        Ok(self.real.probe(file)?.map(|signature| signature.filesystem))
    }

    /// A mount point's path as the table shows it, and its kind below whatever is mounted there.
    fn place(&self, path: &Path) -> Result<(PathBuf, NodeKind), HostError> {
        let absent = || HostError::call("mount at", path, Errno::ENOENT);
        let place = self.real.canonical(path)?.ok_or_else(absent)?;
        let kind = self.real.node(&place)?.ok_or_else(absent)?.kind;
        Ok((place, kind))
    }
}

impl Host for FakeHost {
    fn mounts(&self) -> Result<MountTable, HostError> {
        let model = self.look("mounts", Path::new("/proc/self/mountinfo"))?;
        let mounts = model.mounts.iter().map(|mount| mount.entry.clone());
        let all = [root_entry(), dev_entry()].into_iter().chain(mounts);
        Ok(MountTable::new(all.map(|entry| model.shown(entry)).collect()))
    }

    fn mounts_in_sight(&self) -> Result<(Vec<MountTable>, bool), HostError> {
        drop(self.look("mounts_in_sight", Path::new("/proc"))?);
        Ok((vec![self.mounts()?], true))
    }

    fn canonical(&self, path: &Path) -> Result<Option<PathBuf>, HostError> {
        drop(self.look("canonical", path)?);
        self.real.canonical(path)
    }

    fn node(&self, path: &Path) -> Result<Option<Node>, HostError> {
        let model = self.look("node", path)?;
        let place = self.real.canonical(path)?;
        match place.and_then(|place| model.top_at(&place).map(|mount| mount.root)) {
            Some(root) => Ok(Some(root)),
            None => self.real.node(path),
        }
    }

    fn make_mount_point(&self, path: &Path, kind: MountPoint) -> Result<(), HostError> {
        drop(self.enter("make_mount_point", path)?);
        self.real.make_mount_point(path, kind)
    }

    fn remove_mount_point(&self, path: &Path) -> Result<(), HostError> {
        let model = self.enter("remove_mount_point", path)?;
        let place = self.real.canonical(path)?;
        if place.is_some_and(|place| model.top_at(&place).is_some()) {
            return Err(HostError::call("remove the mount point", path, Errno::EBUSY));
        }
        self.real.remove_mount_point(path)
    }

    fn bind(
        &self,
        source: BindSource<'_>,
        target: &Path,
        attributes: MountAttributes,
    ) -> Result<(), HostError> {
        let mut model = self.enter("bind", target)?;
        let from = match source {
            BindSource::Fd(fd) => path_of(fd),
            BindSource::Path(path) => path.to_owned(),
        };
        let mut tree = tree_at(&self.real, &model, &from)?;
        let (place, kind) = self.place(target)?;
        let is_directory = |kind| kind == NodeKind::Directory;
        if is_directory(kind) != is_directory(tree.root.kind) || kind == NodeKind::Other {
            return Err(HostError::call("bind to", target, Errno::ENOTDIR));
        }
        tree.entry.options = option_words(attributes, tree.entry.has_option("ro"));
        tree.entry.mount_point = place;
        model.mounts.push(tree);
        Ok(())
    }

    fn mount(&self, request: &FilesystemMount<'_>) -> Result<(), HostError> {
        let mut model = self.enter("mount", request.target)?;
        let failed = |errno| HostError::call("mount the filesystem on", request.target, errno);
        let device = model.device(request.loop_number)?;
        let found = self.real.probe(device.backing.as_fd())?;
        if found.map(|signature| signature.filesystem) != Some(request.filesystem) {
            return Err(failed(Errno::EINVAL));
        }
        if device.status.read_only && !request.attributes.read_only {
            return Err(failed(Errno::EACCES));
        }
        let (place, kind) = self.place(request.target)?;
        if kind != NodeKind::Directory {
            return Err(failed(Errno::ENOTDIR));
        }
        model.mounts.push(filesystem_mount(request, place));
        Ok(())
    }

    fn unmount(&self, target: &Path) -> Result<(), HostError> {
        let mut model = self.enter("unmount", target)?;
        let failed = |errno| HostError::call("unmount", target, errno);
        let place = self.real.canonical(target)?;
        let place = place.ok_or_else(|| failed(Errno::ENOENT))?;
        let at = |mount: &FakeMount| mount.entry.mount_point == place;
        let index = model.mounts.iter().rposition(at);
        let index = index.ok_or_else(|| failed(Errno::EINVAL))?;
        let inside = |mount: &FakeMount| !at(mount) && mount.entry.mount_point.starts_with(&place);
        if model.mounts.iter().skip(index).any(inside) {
            return Err(failed(Errno::EBUSY));
        }
        model.mounts.remove(index);
        model.reap();
        Ok(())
    }

    fn loops(&self) -> Result<Vec<LoopStatus>, HostError> {
        let model = self.look("loops", Path::new("/sys/block"))?;
        Ok(model.loops.values().map(|device| device.status.clone()).collect())
    }

    fn loop_status(&self, number: u32) -> Result<Option<LoopStatus>, HostError> {
        let model = self.look("loop_status", &loop_path(number))?;
        Ok(model.loops.get(&number).map(|device| device.status.clone()))
    }

    fn attach(
        &self,
        image: BorrowedFd<'_>,
        options: LoopOptions<'_>,
    ) -> Result<AttachedLoop, HostError> {
        let mut model = self.enter("attach", &path_of(image))?;
        let failed = |e: std::io::Error| HostError::call("set up", path_of(image), e);
        let backing = owned_file(image)?;
        let metadata = backing.metadata().map_err(failed)?;
        let free = (0..1 << 20).find(|number| !model.loops.contains_key(number));
        let number = free.ok_or_else(|| failed(Errno::ENOSPC.into()))?;
        model.attachments += 1;
        let device = FakeLoop {
            status: status_for(number, &metadata, options),
            backing,
            size: ByteSize::new(metadata.len()),
            holds: 0,
            serial: model.attachments,
        };
        let identity = device.status.backing;
        model.loops.insert(number, device);
        let on_image = model.loops.values().filter(|other| other.status.backing == identity);
        model.most_loops = model.most_loops.max(on_image.count());
        let held = model.add_hold(&self.model, number);
        held.ok_or_else(|| failed(Errno::ENXIO.into()))
    }

    fn attach_view(&self, below: u32, options: LoopOptions<'_>) -> Result<AttachedLoop, HostError> {
        let image = owned_file(lock(&self.model).device(below)?.backing.as_fd())?;
        let view = self.attach(image.as_fd(), LoopOptions { read_only: true, ..options })?;
        let mut model = lock(&self.model);
        if let Some(device) = model.loops.get_mut(&view.number) {
            // As the kernel shows it: its file is the node of the device below.
            device.status.backing = FileIdentity {
                device: DeviceNumber { major: 0, minor: 6 },
                inode: 1000 + u64::from(below),
            };
            device.status.backing_device = Some(DeviceNumber::of_loop(below));
        }
        drop(model);
        Ok(view)
    }

    fn hold(
        &self,
        number: u32,
        backing: FileIdentity,
        _allocation: Allocation,
    ) -> Result<AttachedLoop, HostError> {
        let mut model = self.enter("hold", &loop_path(number))?;
        let refused = || HostError::call("hold", loop_path(number), Errno::ENXIO);
        if model.device(number)?.status.backing != backing {
            return Err(refused());
        }
        let held = model.add_hold(&self.model, number);
        held.ok_or_else(refused)
    }

    fn detach(&self, number: u32, backing: FileIdentity) -> Result<(), HostError> {
        self.enter("detach", &loop_path(number))?.detach(number, backing);
        Ok(())
    }

    fn refresh_loop_size(&self, number: u32) -> Result<ByteSize, HostError> {
        let mut model = self.enter("refresh_loop_size", &loop_path(number))?;
        let failed = |e| HostError::call("refresh the size of", loop_path(number), e);
        let metadata = model.device(number)?.backing.metadata().map_err(failed)?;
        let size = ByteSize::new(metadata.len());
        if let Some(device) = model.loops.get_mut(&number) {
            device.size = size;
        }
        Ok(size)
    }

    fn probe(&self, file: BorrowedFd<'_>) -> Result<Option<Signature>, HostError> {
        drop(self.look("probe", &path_of(file))?);
        self.real.probe(file)
    }

    fn format(&self, image: BorrowedFd<'_>, recipe: &FormatRecipe<'_>) -> Result<(), HostError> {
        drop(self.enter("format", &path_of(image))?);
        let failed = |e: std::io::Error| HostError::call("format", path_of(image), e);
        if self.real.probe(image)?.is_some() {
            return Err(failed(Errno::EEXIST.into()));
        }
        let file = owned_file(image)?;
        let size = ByteSize::new(file.metadata().map_err(failed)?.len());
        write_superblock(&file, recipe.filesystem, size).map_err(failed)
    }

    fn repair(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError> {
        let model = self.enter("repair", &loop_path(loop_number))?;
        let device = model.device(loop_number)?;
        if filesystem == Filesystem::Ext4 {
            // s_state: clean
            let cleaned = device.backing.write_all_at(&[1, 0], 0x43a);
            cleaned.map_err(|e| HostError::call("repair", loop_path(loop_number), e))?;
        }
        Ok(())
    }

    fn grow(
        &self,
        filesystem: Filesystem,
        mount_point: &Path,
        device: ByteSize,
    ) -> Result<(), HostError> {
        let model = self.enter("grow", mount_point)?;
        let failed = |e| HostError::call("grow the filesystem at", mount_point, e);
        let refused = |errno: Errno| failed(errno.into());
        let place = self.real.canonical(mount_point)?;
        let mount = place.and_then(|place| model.top_at(&place));
        let mount = mount.ok_or_else(|| refused(Errno::ENOTTY))?;
        if mount.entry.is_read_only() {
            return Err(refused(Errno::EROFS));
        }
        let number = mount.keeps.ok_or_else(|| refused(Errno::ENOTTY))?;
        if filesystem == Filesystem::Ext4 && !model.grows_mounted_ext4 {
            return Err(refused(Errno::EPERM));
        }
        let target = model.device(number)?;
        if device > target.size || mount.entry.filesystem != filesystem.as_str() {
            return Err(refused(Errno::EINVAL));
        }
        write_superblock(&target.backing, filesystem, device).map_err(failed)
    }

    fn can_grow_mounted(&self, filesystem: Filesystem) -> bool {
        filesystem != Filesystem::Ext4 || lock(&self.model).grows_mounted_ext4
    }

    fn grow_unmounted(&self, loop_number: u32, filesystem: Filesystem) -> Result<(), HostError> {
        let model = self.enter("grow_unmounted", &loop_path(loop_number))?;
        let failed = |e| HostError::call("grow the filesystem on", loop_path(loop_number), e);
        if model.is_mounted(loop_number) {
            return Err(failed(Errno::EBUSY.into()));
        }
        let device = model.device(loop_number)?;
        match filesystem {
            Filesystem::Ext4 => {
                write_superblock(&device.backing, filesystem, device.size).map_err(failed)
            }
            Filesystem::Xfs | Filesystem::Btrfs => Ok(()),
        }
    }

    fn filesystem_errors(&self, mount: &MountEntry) -> u64 {
        lock(&self.model).trouble(mount).errors
    }

    fn space(&self, file: BorrowedFd<'_>) -> Result<Space, HostError> {
        let place = path_of(file);
        Ok(meter::left(self.look("space", &place)?, &place))
    }

    fn settle_space(&self, _directory: BorrowedFd<'_>, _written: bool) -> Result<(), HostError> {
        Ok(())
    }

    fn space_at(&self, path: &Path) -> Result<Space, HostError> {
        Ok(self.look("space_at", path)?.space)
    }

    fn make_subvolume(&self, parent: BorrowedFd<'_>, name: &str) -> Result<(), HostError> {
        let model = self.enter("make_subvolume", &path_of(parent))?;
        if model.space.filesystem != PoolFilesystem::Btrfs {
            return Err(HostError::Unsupported {
                what: format!("{} is not on btrfs", path_of(parent).display()),
                remedy: "subvolumes exist on btrfs only",
            });
        }
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o755);
        nix::sys::stat::mkdirat(parent, name, mode)
            .map_err(|e| HostError::call("make the subvolume", path_of(parent).join(name), e))
    }

    fn remove_subvolume(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, HostError> {
        self.enter("remove_subvolume", &path_of(parent).join(name))?.limits.removed();
        Ok(false)
    }

    fn make_removable(&self, file: BorrowedFd<'_>) -> Result<(), HostError> {
        drop(self.enter("make_removable", &path_of(file))?);
        Ok(())
    }

    fn disable_copy_on_write(&self, file: BorrowedFd<'_>) -> Result<(), HostError> {
        drop(self.enter("disable_copy_on_write", &path_of(file))?);
        Ok(())
    }

    fn loop_limit(&self) -> Option<u32> {
        None
    }
}
