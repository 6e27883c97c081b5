//! What the kernel shows of a volume: where it is mounted, which loop devices are on its image, who uses it.
//!
//! A directory is recognised by the mount's root and the inode, a filesystem by the loop device below it and that
//! device's backing file. Nothing is remembered from one call to the next.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::fstat;

use super::plan::{Kind, LoopSeen, OtherTarget, Seen};
use super::{Engine, EngineError, Located};
use crate::backend;
use crate::host::{
    DeviceNumber, FileIdentity, HostError, LoopStatus, MountEntry, MountTable, Node, NodeKind,
    loop_path,
};
use crate::store::{DATA, Resolved};
use crate::volume::{Key, MountAttributes};

/// The file beneath the staging path of a raw block volume that its device node is bound on.
pub(super) const DEVICE: &str = "device";

/// How long, and how often, it is looked whether a loop device that nobody mounts has gone.
const CLOSING: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// What a mounted path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MountedAs {
    /// The volume's directory.
    Directory,
    /// Its filesystem.
    Filesystem {
        /// N of /dev/loopN.
        number: u32,
        /// The path as the mount table shows it.
        mount_point: PathBuf,
        /// A mount of the same filesystem that can be written through, perhaps another one; `None` when it has none.
        writable_at: Option<PathBuf>,
    },
    /// Its device node.
    Device {
        /// The loop devices, from the image outwards: the volume's own, then a read-only view of it.
        numbers: Vec<u32>,
    },
}

/// How somebody may be writing to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Writing {
    /// It is not mounted or attached, or only read.
    Nobody,
    /// Its directory is mounted there.
    Directory(PathBuf),
    /// Its filesystem is on this loop device and mounted there.
    Filesystem(u32, Vec<MountEntry>),
    /// It is a raw block device with this loop device.
    Device(u32),
}

impl Writing {
    /// Somebody may write.
    pub(super) fn is_somebody(&self) -> bool {
        *self != Self::Nobody
    }

    /// The same in words.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Nobody => "not in use".to_owned(),
            Self::Directory(path) => format!("mounted at {}", path.display()),
            Self::Filesystem(number, entries) => match entries.first() {
                Some(entry) => format!("mounted at {}", entry.mount_point.display()),
                None => format!("attached to /dev/loop{number}"),
            },
            Self::Device(number) => format!("attached to /dev/loop{number}"),
        }
    }
}

/// A volume's data as the kernel knows it.
#[derive(Debug)]
pub(super) enum Data {
    /// A directory, opened.
    Directory { fd: OwnedFd, identity: FileIdentity },
    /// An image and the loop devices that have to do with it.
    Image {
        filesystem: bool,
        /// On the image itself.
        loops: Vec<LoopStatus>,
        /// On one of those.
        views: Vec<LoopStatus>,
    },
}

/// The mount table and a volume's data, read once for a job.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) table: MountTable,
    pub(super) data: Data,
    /// Where the volume's directory is in its filesystem, as mountinfo shows roots.
    directory: Option<(DeviceNumber, PathBuf)>,
}

impl Data {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Directory { .. } => Kind::Directory,
            Self::Image { filesystem: true, .. } => Kind::Filesystem,
            Self::Image { filesystem: false, .. } => Kind::Device,
        }
    }
}

/// The attributes that the mount table shows.
fn attributes(entry: &MountEntry) -> MountAttributes {
    MountAttributes {
        read_only: entry.is_read_only(),
        no_suid: entry.has_option("nosuid"),
        no_dev: entry.has_option("nodev"),
        no_exec: entry.has_option("noexec"),
        no_atime: entry.has_option("noatime"),
        no_dir_atime: entry.has_option("nodiratime"),
        strict_atime: false,
        no_symlink_follow: entry.has_option("nosymfollow"),
    }
}

/// What is mounted, in words.
fn describe(entry: &MountEntry) -> String {
    format!("{} ({} from {})", entry.root.display(), entry.filesystem, entry.source.display())
}

pub(super) fn loop_seen(status: &LoopStatus) -> LoopSeen {
    LoopSeen {
        number: status.number,
        read_only: status.read_only,
        autoclear: status.autoclear,
        partial: status.partial,
    }
}

impl Observed {
    /// What is mounted is the volume's directory, or something in it (`inside`). The end of the path alone would not tell:
    /// a pod can make directories of any name in its own volume.
    fn is_directory(&self, entry: &MountEntry, inside: bool) -> bool {
        let Some((device, root)) = &self.directory else { return false };
        entry.device == *device && (entry.root == *root || (inside && entry.root.starts_with(root)))
    }

    /// The volume is what this entry mounts; its attributes.
    fn same(&self, entry: &MountEntry) -> Option<MountAttributes> {
        match &self.data {
            Data::Directory { .. } => self.is_directory(entry, false).then(|| attributes(entry)),
            Data::Image { filesystem: true, loops, .. } => {
                let number = entry.mounted_loop()?;
                let ours = loops.iter().any(|status| status.number == number);
                (ours && entry.root == Path::new("/")).then(|| attributes(entry))
            }
            Data::Image { filesystem: false, .. } => {
                let (status, _) = self.device(self.table.bound_loop_node(entry)?)?;
                Some(MountAttributes { read_only: status.read_only, ..MountAttributes::default() })
            }
        }
    }

    /// The loop device of that number if it shows the volume, and the one below it if it is a view.
    pub(super) fn device(&self, number: u32) -> Option<(&LoopStatus, Option<u32>)> {
        let Data::Image { loops, views, .. } = &self.data else {
            return None;
        };
        let own = loops.iter().find(|status| status.number == number).map(|status| (status, None));
        own.or_else(|| {
            let view = views.iter().find(|status| status.number == number)?;
            Some((view, view.backing_device.and_then(DeviceNumber::loop_number)))
        })
    }

    /// What lies at a path.
    pub(super) fn seen(&self, path: &Path, node: Option<Node>) -> Seen {
        let Some(entry) = self.table.top_at(path) else {
            return Seen::Nothing;
        };
        let right_inode = match (&self.data, node) {
            (Data::Directory { identity, .. }, Some(node)) => node.identity == *identity,
            (Data::Image { filesystem: false, .. }, Some(node)) => {
                let bound = self.table.bound_loop_node(entry).map(DeviceNumber::of_loop);
                matches!(node.kind, NodeKind::BlockDevice(number) if Some(number) == bound)
            }
            (Data::Image { .. }, Some(_)) => true,
            (_, None) => false,
        };
        match self.same(entry) {
            Some(attributes) if right_inode => Seen::Same(attributes),
            Some(_) | None => Seen::Other(describe(entry)),
        }
    }

    /// Every mount of the whole volume except those at the given paths.
    pub(super) fn other_targets(&self, except: &[&Path]) -> Vec<OtherTarget> {
        let entries =
            self.table.iter().filter(|entry| !except.contains(&entry.mount_point.as_path()));
        entries
            .filter_map(|entry| {
                let read_only = self.same(entry)?.read_only;
                Some(OtherTarget { path: entry.mount_point.clone(), read_only })
            })
            .collect()
    }

    /// The whole volume is mounted anywhere.
    pub(super) fn is_mounted(&self) -> bool {
        self.table.iter().any(|entry| self.same(entry).is_some())
    }

    /// A mount of the whole volume that can be written through.
    fn writable_mount(&self) -> Option<PathBuf> {
        let mut entries = self.table.iter();
        let entry = entries.find(|entry| self.same(entry).is_some_and(|has| !has.read_only))?;
        Some(entry.mount_point.clone())
    }

    /// How somebody may be writing to the volume now.
    pub(super) fn writing(&self) -> Writing {
        let writable = |entry: &&MountEntry| match &self.data {
            Data::Directory { .. } => self.is_directory(entry, true) && !entry.is_read_only(),
            Data::Image { .. } => self.same(entry).is_some(),
        };
        let entries: Vec<&MountEntry> = self.table.iter().filter(writable).collect();
        let Data::Image { filesystem, loops, .. } = &self.data else {
            return entries
                .first()
                .map_or(Writing::Nobody, |entry| Writing::Directory(entry.mount_point.clone()));
        };
        // The journal was replayed when it was mounted read-only; nothing is written any more.
        let is_still =
            !entries.is_empty() && entries.iter().all(|entry| entry.filesystem_read_only);
        match (loops.iter().find(|status| !status.read_only), filesystem) {
            (None, _) => Writing::Nobody,
            (Some(status), false) => Writing::Device(status.number),
            (Some(_), true) if is_still => Writing::Nobody,
            (Some(status), true) => {
                Writing::Filesystem(status.number, entries.into_iter().cloned().collect())
            }
        }
    }

    /// A mount of the volume or of a part of it.
    fn mount(&self) -> Option<&MountEntry> {
        self.table.iter().find(|entry| match &self.data {
            Data::Directory { .. } => self.is_directory(entry, true),
            Data::Image { .. } => {
                let number = self.table.shown_loop(entry);
                number.is_some_and(|number| self.device(number).is_some())
            }
        })
    }

    /// Nothing of the image is mounted in sight, and its loop devices go away when they are closed.
    fn is_closing(&self) -> bool {
        let Data::Image { loops, .. } = &self.data else { return false };
        loops.iter().all(|status| status.autoclear) && self.mount().is_none()
    }

    /// Who uses the volume, in words: any mount of it or of a part of it, any loop device on its image.
    fn user(&self) -> Option<String> {
        if let Some(entry) = self.mount() {
            return Some(format!("mounted at {}", entry.mount_point.display()));
        }
        match &self.data {
            Data::Directory { .. } => None,
            Data::Image { loops, .. } => {
                let status = loops.first()?;
                let device = loop_path(status.number).display().to_string();
                Some(if status.autoclear {
                    format!("attached to {device}")
                } else {
                    format!(
                        "attached to {device}, which no mount shows (when no pod has the device: `losetup -d {device}`)"
                    )
                })
            }
        }
    }
}

/// Where a hostpath volume's directory is in the filesystem of its pool.
fn directory_root(table: &MountTable, pool: &Path, key: &Key) -> Option<(DeviceNumber, PathBuf)> {
    let pool = pool.canonicalize().ok()?;
    let entry = table.containing(&pool)?;
    let below = pool.strip_prefix(&entry.mount_point).ok()?;
    let root = entry.root.join(below).join("volumes").join(key.as_str()).join(DATA);
    Some((entry.device, root))
}

impl Engine {
    /// Reads the mount table and the volume's data.
    pub(super) fn observe(&self, located: &Located) -> Result<Observed, EngineError> {
        let volume = located.volume();
        let dir = located.pool.store.open_volume(&volume.key)?;
        let data = match volume.resolved {
            Resolved::Hostpath => {
                let fd = dir.directory(DATA)?;
                let stat = fstat(fd.as_fd()).map_err(|e| HostError::call("look at", DATA, e))?;
                let device = DeviceNumber::of_stat(stat.st_dev);
                Data::Directory { fd, identity: FileIdentity { device, inode: stat.st_ino } }
            }
            Resolved::Loop { filesystem, .. } => {
                let image = backend::identity(&dir)?;
                let (loops, others): (Vec<_>, Vec<_>) =
                    self.host.loops()?.into_iter().partition(|status| status.is_on(image));
                let is_view = |status: &LoopStatus| {
                    let below = status.backing_device.and_then(DeviceNumber::loop_number);
                    below.is_some_and(|below| loops.iter().any(|own| own.number == below))
                };
                let views = others.into_iter().filter(is_view).collect();
                Data::Image { filesystem: filesystem.is_some(), loops, views }
            }
        };
        let table = self.host.mounts()?;
        let directory = directory_root(&table, located.pool.store.path(), &volume.key);
        Ok(Observed { table, data, directory })
    }

    /// What lies at a path as far as the volume is concerned.
    pub(super) fn seen(&self, observed: &Observed, path: &Path) -> Result<Seen, EngineError> {
        Ok(observed.seen(path, self.host.node(path)?))
    }

    /// Who uses the volume, in words. A loop device goes away with the last program that has it open, and others look into
    /// one for a moment (udev does, after every change); that is waited for.
    pub(super) fn user_of(&self, located: &Located) -> Result<Option<String>, EngineError> {
        let start = Instant::now();
        loop {
            let observed = self.observe(located)?;
            let user = observed.user();
            if user.is_none() || !observed.is_closing() || start.elapsed() > CLOSING {
                return Ok(user);
            }
            std::thread::park_timeout(PAUSE);
        }
    }

    /// As what the volume is mounted at a path.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when it is not.
    pub(super) fn mounted_as(
        &self,
        located: &Located,
        path: &Path,
    ) -> Result<MountedAs, EngineError> {
        let not_here = || {
            EngineError::NotFound(format!(
                "volume {} is not mounted at {}",
                located.id(),
                path.display()
            ))
        };
        // csi-sanity asks for the path "some/path" and expects NOT_FOUND.
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(not_here());
        }
        let Some(path) = self.host.canonical(path)? else {
            return Err(not_here());
        };
        let observed = self.observe(located)?;
        // The staging path of a raw block volume is a directory; its device is in it.
        let candidates = [path.clone(), path.join(DEVICE)];
        for candidate in candidates {
            if !matches!(self.seen(&observed, &candidate)?, Seen::Same(_)) {
                continue;
            }
            let Some(entry) = observed.table.top_at(&candidate) else {
                continue;
            };
            let bound = observed.table.bound_loop_node(entry);
            return match (observed.data.kind(), entry.mounted_loop(), bound) {
                (Kind::Directory, _, _) => Ok(MountedAs::Directory),
                (Kind::Filesystem, Some(number), _) => Ok(MountedAs::Filesystem {
                    number,
                    writable_at: observed.writable_mount(),
                    mount_point: candidate,
                }),
                (Kind::Device, _, Some(number)) => {
                    let below = observed.device(number).and_then(|(_, below)| below);
                    Ok(MountedAs::Device { numbers: below.into_iter().chain([number]).collect() })
                }
                (Kind::Filesystem | Kind::Device, _, _) => Err(not_here()),
            };
        }
        Err(not_here())
    }
}
