//! What there is of a managed pool: its image or disk, loop devices, mounts, and what was written down.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::plan::{LoopSeen, MountSeen, Seen};
use super::{CreatePool, Ground, PoolBase, propagation};
use crate::engine::{EngineError, PoolConfig};
use crate::host::{
    Content, DeviceNumber, Disk, FileIdentity, Host, HostError, MountEntry, MountTable, NodeKind,
    loop_path,
};
use crate::store::{Images, Making, PoolImage};

/// What was seen, with what was opened to see it.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) seen: Seen,
    /// The image, locked.
    pub(super) image: Option<PoolImage>,
    /// The disk, locked.
    pub(super) disk: Option<Disk>,
    /// Where the pool is to be, as the mount table shows it.
    pub(super) path: PathBuf,
}

/// The block device that a mount's filesystem is on. btrfs shows a device number of its own, so there the name tells.
pub(super) fn device_of(entry: &MountEntry, host: &dyn Host) -> Option<DeviceNumber> {
    if entry.filesystem != "btrfs" {
        return Some(entry.device);
    }
    let source = Path::new(&entry.source);
    let source = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    // In the model of the tests there is no such node.
    match host.node(&source).ok().flatten().map(|node| node.kind) {
        Some(NodeKind::BlockDevice(number)) => Some(number),
        Some(NodeKind::Directory | NodeKind::File | NodeKind::Other) | None => {
            entry.mounted_loop().map(DeviceNumber::of_loop)
        }
    }
}

/// The block devices that the pool's filesystem can be mounted from.
#[derive(Debug)]
struct Devices(Vec<DeviceNumber>);

impl Devices {
    fn has(&self, entry: &MountEntry, host: &dyn Host) -> bool {
        device_of(entry, host).is_some_and(|device| self.0.contains(&device))
    }
}

pub(super) fn observe(
    ground: &Ground<'_>,
    config: &PoolConfig,
    create: &CreatePool,
    images: &Images,
    known: bool,
) -> Result<Sight, EngineError> {
    let host = ground.host;
    let path = mount_path(host, &config.path)?;
    let record = ground.state.managed(&config.name)?;
    let mut seen = Seen { record, known, ..Seen::default() };
    let (mut image, mut disk) = (None, None);
    let devices = match &create.base {
        PoolBase::Image { .. } => {
            image = images.image(&config.name)?;
            match &image {
                Some(image) => see_image(host, image, &mut seen)?,
                None => Devices(Vec::new()),
            }
        }
        PoolBase::Device(place) => {
            disk = host.open_disk(place)?;
            match &disk {
                Some(disk) => see_disk(host, disk, &mut seen)?,
                None => Devices(Vec::new()),
            }
        }
    };
    let table = host.mounts()?;
    see_mounts(host, &table, &path, &devices, &mut seen)?;
    let root = ground.root_dir.canonicalize();
    let root = root.unwrap_or_else(|_| ground.root_dir.to_owned());
    seen.private = propagation::refusal(&table, &root, &path);
    Ok(Sight { seen, image, disk, path })
}

/// The pool's path as the mount table shows it. Its parents are made.
fn mount_path(host: &dyn Host, path: &Path) -> Result<PathBuf, EngineError> {
    if let Some(parent) = path.parent() {
        crate::store::make_directories(parent)?;
    }
    let absent = || HostError::call("find the parent of", path, nix::errno::Errno::ENOENT);
    Ok(host.canonical(path)?.ok_or_else(absent)?)
}

fn see_image(host: &dyn Host, image: &PoolImage, seen: &mut Seen) -> Result<Devices, EngineError> {
    seen.length = image.length()?;
    seen.allocated = image.allocated()?;
    seen.content = Some(host.image_content(image.as_fd())?);
    seen.loops = loops_on(host, image.identity()?)?;
    Ok(Devices(seen.loops.iter().map(|one| DeviceNumber::of_loop(one.number)).collect()))
}

/// The loop devices on an image.
pub(super) fn loops_on(host: &dyn Host, image: FileIdentity) -> Result<Vec<LoopSeen>, HostError> {
    let mut found = Vec::new();
    for status in host.loops()?.into_iter().filter(|status| status.is_on(image)) {
        let number = status.number;
        found.push(LoopSeen {
            number,
            is_whole: !status.partial && !status.read_only,
            size: host.device_size(&loop_path(number))?,
        });
    }
    Ok(found)
}

fn see_disk(host: &dyn Host, disk: &Disk, seen: &mut Seen) -> Result<Devices, EngineError> {
    seen.length = disk.size;
    let begun = seen.record.is_some_and(|record| record.making == Making::Begun);
    let content = host.disk_content(disk, begun)?;
    if matches!(content, Content::Blank | Content::Claimed(_)) {
        seen.user = host.disk_user(disk)?;
    }
    seen.content = Some(content);
    Ok(Devices(vec![disk.number]))
}

fn see_mounts(
    host: &dyn Host,
    table: &MountTable,
    path: &Path,
    devices: &Devices,
    seen: &mut Seen,
) -> Result<(), EngineError> {
    if let Some(entry) = table.top_at(path) {
        seen.mounted = Some(MountSeen {
            uuid: host.mounted_uuid(path)?,
            is_base: devices.has(entry, host) && entry.root == Path::new("/"),
            source: format!("{} on {}", entry.filesystem, entry.source.display()),
        });
    }
    let whole = |entry: &&MountEntry| {
        entry.root == Path::new("/") && entry.mount_point != path && devices.has(entry, host)
    };
    seen.elsewhere = table.iter().find(whole).map(|entry| entry.mount_point.clone());
    Ok(())
}
