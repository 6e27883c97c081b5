//! What the modelled kernel knows: mounts and loop devices, and how they look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::gate::Gate;
use crate::host::linux::LinuxHost;
use crate::host::{
    AttachedLoop, DeviceNumber, FileIdentity, FilesystemMount, Host, HostError, LoopOptions,
    LoopStatus, MountEntry, Node, NodeKind, Space, loop_path,
};
use crate::volume::{ByteSize, DirectIo, Filesystem, MountAttributes};

#[derive(Debug)]
pub(super) struct Model {
    pub(super) mounts: Vec<FakeMount>,
    pub(super) loops: BTreeMap<u32, FakeLoop>,
    pub(super) space: Space,
    /// Images take of it.
    pub(super) is_metered: bool,
    pub(super) faults: Vec<(&'static str, Errno)>,
    pub(super) gates: Vec<(&'static str, Arc<Gate>)>,
    pub(super) calls: Vec<&'static str>,
    pub(super) attachments: u64,
    pub(super) grows_mounted_ext4: bool,
    pub(super) most_loops: usize,
    /// Loop devices whose filesystem is frozen.
    pub(super) frozen: BTreeSet<u32>,
    pub(super) inner_subvolumes: bool,
    /// By source.
    pub(super) troubles: BTreeMap<String, FilesystemTrouble>,
    pub(super) limits: super::limits::FakeLimits,
}

/// What has become of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilesystemTrouble {
    /// It is read-only.
    pub read_only: bool,
    /// The kernel has stopped it.
    pub stopped: bool,
    /// The kernel has counted errors.
    pub errors: u64,
}

#[derive(Debug, Clone)]
pub(super) struct FakeMount {
    pub(super) entry: MountEntry,
    /// What `stat` answers at the mount point.
    pub(super) root: Node,
    /// The loop device whose filesystem this is.
    pub(super) keeps: Option<u32>,
}

#[derive(Debug)]
pub(super) struct FakeLoop {
    pub(super) status: LoopStatus,
    pub(super) backing: File,
    pub(super) size: ByteSize,
    pub(super) holds: usize,
    /// Which attachment this is: numbers are used again.
    pub(super) serial: u64,
}

/// What an [`AttachedLoop`] of the model holds.
#[derive(Debug)]
struct Hold {
    model: Arc<Mutex<Model>>,
    number: u32,
    serial: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut model = lock(&self.model);
        if let Some(device) = model.loops.get_mut(&self.number)
            && device.serial == self.serial
        {
            device.holds = device.holds.saturating_sub(1);
        }
        model.reap();
    }
}

pub(super) fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    /// Loop devices with AUTOCLEAR go when nobody uses them.
    pub(super) fn reap(&mut self) {
        let mounts = &self.mounts;
        self.loops.retain(|number, device| {
            let mounted = mounts.iter().any(|mount| mount.keeps == Some(*number));
            !device.status.autoclear || device.holds > 0 || mounted
        });
    }

    /// LOOP_CLR_FD; the kernel defers it to the last use, too.
    pub(super) fn detach(&mut self, number: u32, backing: FileIdentity) {
        if let Some(device) = self.loops.get_mut(&number)
            && device.status.backing == backing
        {
            device.status.autoclear = true;
        }
        self.reap();
    }

    /// An entry as the table shows it after what has become of its filesystem.
    pub(super) fn shown(&self, mut entry: MountEntry) -> MountEntry {
        let trouble = self.trouble(&entry);
        entry.filesystem_read_only |= trouble.read_only;
        entry.filesystem_stopped |= trouble.stopped;
        entry
    }

    pub(super) fn trouble(&self, entry: &MountEntry) -> FilesystemTrouble {
        let source = entry.source.to_str().and_then(|source| self.troubles.get(source));
        source.copied().unwrap_or_default()
    }

    pub(super) fn is_mounted(&self, number: u32) -> bool {
        self.mounts.iter().any(|mount| mount.keeps == Some(number))
    }

    pub(super) fn top_at(&self, path: &Path) -> Option<&FakeMount> {
        let at = |mount: &&FakeMount| mount.entry.mount_point == path;
        self.mounts.iter().rev().find(at)
    }

    /// The mount of the model that a path lies on; not the machine's own.
    pub(super) fn containing(&self, path: &Path) -> Option<&FakeMount> {
        path.ancestors().find_map(|place| self.top_at(place))
    }

    pub(super) fn device(&self, number: u32) -> Result<&FakeLoop, HostError> {
        self.loops
            .get(&number)
            .ok_or_else(|| HostError::call("open", loop_path(number), Errno::ENXIO))
    }

    pub(super) fn add_hold(
        &mut self,
        model: &Arc<Mutex<Self>>,
        number: u32,
    ) -> Option<AttachedLoop> {
        let device = self.loops.get_mut(&number)?;
        device.holds += 1;
        let hold = Hold { model: Arc::clone(model), number, serial: device.serial };
        Some(AttachedLoop::new(number, Box::new(hold)))
    }
}

/// The machine's own mount, below everything in the model.
pub(super) fn root_entry() -> MountEntry {
    MountEntry {
        id: 1,
        device: DeviceNumber { major: 8, minor: 1 },
        root: PathBuf::from("/"),
        mount_point: PathBuf::from("/"),
        options: vec!["rw".to_owned(), "relatime".to_owned()],
        shared: true,
        filesystem: "ext4".to_owned(),
        source: "/dev/sda1".into(),
        filesystem_read_only: false,
        filesystem_stopped: false,
    }
}

/// The machine's /dev.
pub(super) fn dev_entry() -> MountEntry {
    MountEntry {
        device: DeviceNumber { major: 0, minor: 6 },
        mount_point: PathBuf::from("/dev"),
        filesystem: "devtmpfs".to_owned(),
        source: "devtmpfs".into(),
        ..root_entry()
    }
}

/// Options as mountinfo shows them, on top of those of the mount that is bound.
pub(super) fn option_words(attributes: MountAttributes, source_read_only: bool) -> Vec<String> {
    let read_only = attributes.read_only || source_read_only;
    let words = [
        (!read_only, "rw"),
        (read_only, "ro"),
        (attributes.no_suid, "nosuid"),
        (attributes.no_dev, "nodev"),
        (attributes.no_exec, "noexec"),
        (attributes.no_atime, "noatime"),
        (attributes.no_dir_atime, "nodiratime"),
        (!attributes.no_atime && !attributes.strict_atime, "relatime"),
        (attributes.no_symlink_follow, "nosymfollow"),
    ];
    let given = words.iter().filter(|(given, _)| *given);
    given.map(|(_, word)| (*word).to_owned()).collect()
}

/// The mount that a bind of this path makes, not yet at its place.
pub(super) fn tree_at(
    host: &LinuxHost,
    model: &Model,
    path: &Path,
) -> Result<FakeMount, HostError> {
    let failed = |errno| HostError::call("copy the mount of", path, errno);
    if let Some(number) = node_number(path) {
        model.device(number)?;
        let entry = MountEntry { root: PathBuf::from(format!("/loop{number}")), ..dev_entry() };
        let root = Node {
            identity: FileIdentity { device: entry.device, inode: 1000 + u64::from(number) },
            kind: NodeKind::BlockDevice(DeviceNumber::of_loop(number)),
        };
        let keeps = None;
        return Ok(FakeMount { entry, root, keeps });
    }
    let path = host.canonical(path)?.ok_or_else(|| failed(Errno::ENOENT))?;
    if let Some(mount) = model.top_at(&path) {
        return Ok(mount.clone());
    }
    let root = host.node(&path)?.ok_or_else(|| failed(Errno::ENOENT))?;
    if root.kind == NodeKind::Other {
        return Err(failed(Errno::EINVAL));
    }
    let Some(mount) = model.containing(&path) else {
        let entry = MountEntry { root: path, ..root_entry() };
        let keeps = None;
        return Ok(FakeMount { entry, root, keeps });
    };
    let mut inner = FakeMount { root, ..mount.clone() };
    let below = path.strip_prefix(&mount.entry.mount_point);
    inner.entry.root = mount.entry.root.join(below.unwrap_or(&path));
    Ok(inner)
}

/// N of `/dev/loopN`.
fn node_number(path: &Path) -> Option<u32> {
    path.to_str()?.strip_prefix("/dev/loop")?.parse().ok()
}

/// The filesystem of a loop device as the table shows it; btrfs has a device number of its own.
pub(super) fn filesystem_mount(request: &FilesystemMount<'_>, place: PathBuf) -> FakeMount {
    let number = request.loop_number;
    let (device, inode) = match request.filesystem {
        Filesystem::Ext4 => (DeviceNumber::of_loop(number), 2),
        Filesystem::Xfs => (DeviceNumber::of_loop(number), 128),
        Filesystem::Btrfs => {
            let minor = 500 + number;
            (DeviceNumber { major: 0, minor }, 256)
        }
    };
    FakeMount {
        entry: MountEntry {
            device,
            mount_point: place,
            options: option_words(request.attributes, false),
            filesystem: request.filesystem.as_str().to_owned(),
            source: loop_path(number).into(),
            filesystem_read_only: request.attributes.read_only,
            ..root_entry()
        },
        root: Node { identity: FileIdentity { device, inode }, kind: NodeKind::Directory },
        keeps: Some(number),
    }
}

/// Writes as much of a superblock as `probe_signature` reads.
pub(super) fn write_superblock(
    file: &File,
    filesystem: Filesystem,
    size: ByteSize,
) -> std::io::Result<()> {
    let blocks = size.bytes() / 4096;
    let [b0, b1, b2, b3, high @ ..] = blocks.to_le_bytes();
    match filesystem {
        Filesystem::Ext4 => {
            file.write_all_at(&[b0, b1, b2, b3], 0x404)?;
            file.write_all_at(&2_u32.to_le_bytes(), 0x418)?;
            file.write_all_at(&[0x53, 0xef, 1, 0], 0x438)?;
            file.write_all_at(&0x80_u32.to_le_bytes(), 0x460)?;
            file.write_all_at(&high, 0x550)
        }
        Filesystem::Xfs => {
            file.write_all_at(b"XFSB", 0)?;
            file.write_all_at(&4096_u32.to_be_bytes(), 4)?;
            file.write_all_at(&blocks.to_be_bytes(), 8)
        }
        Filesystem::Btrfs => {
            file.write_all_at(b"_BHRfS_M", 0x1_0040)?;
            file.write_all_at(&size.bytes().to_le_bytes(), 0x1_0070)
        }
    }
}

pub(super) fn owned_file(fd: BorrowedFd<'_>) -> Result<File, HostError> {
    let file = fd.try_clone_to_owned().map(File::from);
    file.map_err(|e| HostError::call("duplicate", path_of(fd), e))
}

pub(super) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    std::fs::read_link(&link).unwrap_or(link)
}

pub(super) fn status_for(
    number: u32,
    metadata: &std::fs::Metadata,
    options: LoopOptions<'_>,
) -> LoopStatus {
    LoopStatus {
        number,
        backing: FileIdentity::of(metadata),
        backing_device: metadata
            .file_type()
            .is_block_device()
            .then(|| DeviceNumber::of_stat(metadata.rdev())),
        read_only: options.read_only,
        autoclear: options.autoclear,
        direct_io: options.direct_io != DirectIo::Off,
        partial: false,
        label: options.label.to_owned(),
    }
}
