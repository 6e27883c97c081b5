//! What is to be imported, looked at: what it is, how large, and whether somebody uses it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use super::kept::Place;
use crate::backend::{self, Count, Found, STEP, Watcher};
use crate::engine::limits::smallest_held;
use crate::engine::{Engine, EngineError};
use crate::host::{DeviceNumber, HostError, MountTable};
use crate::store::{Outside, PoolView, Resolved, StoreError, Volume};
use crate::volume::{Allocation, Backend, ByteSize, DirectIo, LimitKind, VolumeId};

/// The sector size that every image can have: of a filesystem it is not known what it was made with.
const SECTOR: u32 = 512;
/// Sizes that nobody chose are multiples of this.
const ROUND: u64 = 64 << 20;

/// What is to become a volume's data.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) outside: Outside,
    pub(super) resolved: Resolved,
    /// What its files are; of an image one.
    pub(super) count: Count,
    /// The length of an image in whole blocks, zero for a directory.
    length: ByteSize,
    /// Its filesystem says that it found errors in itself.
    pub(super) has_errors: bool,
}

/// The path as it is compared and noted: absolute, without `..` and double slashes.
pub(super) fn plain(path: &Path) -> Result<PathBuf, EngineError> {
    let dots = path.components().any(|part| part == Component::ParentDir);
    let plain: PathBuf = path.components().collect();
    if !path.is_absolute() || dots || plain.file_name().is_none() || plain.to_str().is_none() {
        return Err(EngineError::Invalid(format!(
            "{} cannot be imported: give an absolute path in UTF-8, without \"..\", that ends in a name",
            path.display()
        )));
    }
    Ok(plain)
}

/// Why a path could not be opened, in words.
fn unopened(path: &Path, error: StoreError) -> EngineError {
    let shown = path.display();
    match error.errno() {
        Some(Errno::ELOOP) => EngineError::Invalid(format!(
            "{shown} is a symbolic link or lies below one; give the path that it leads to (realpath {shown})"
        )),
        Some(Errno::EXDEV) => EngineError::Precondition(format!(
            "{shown} is a mount point; unmount it and import what was mounted there, or copy its files into a new volume"
        )),
        Some(Errno::EINVAL) => EngineError::Invalid(format!(
            "{shown} is neither a directory nor a regular file; only those become volumes"
        )),
        Some(Errno::ENOENT | Errno::ENOTDIR) => {
            EngineError::NotFound(format!("{shown} does not exist; nothing was imported"))
        }
        _ => error.into(),
    }
}

/// What is wrong with the data of a kept volume that cannot be opened.
pub(super) fn missing(id: &VolumeId, error: StoreError) -> EngineError {
    let source = match error.errno() {
        Some(Errno::ENOENT) => StoreError::Damaged {
            path: id.to_string().into(),
            reason: "its data is not there".to_owned(),
        },
        _ => error,
    };
    EngineError::Damaged { what: format!("the kept volume {id}"), source }
}

/// The data of a kept volume is of its kind, and not less than it.
pub(super) fn sound(data: &Outside, volume: &Volume) -> Result<(), EngineError> {
    let metadata = data.file().metadata().map_err(|e| looked_at(data, e))?;
    let directory = volume.resolved.backend() == Backend::Hostpath;
    if metadata.is_dir() == directory && (directory || metadata.len() >= volume.size.bytes()) {
        return Ok(());
    }
    Err(EngineError::Precondition(format!(
        "{} is not what the record beside it says (a {} volume of {}); restore it, or move it out of the pool and import that",
        data.path().display(),
        volume.resolved.backend(),
        volume.size
    )))
}

fn looked_at(data: &Outside, error: std::io::Error) -> EngineError {
    HostError::call("look at", data.path(), error).into()
}

impl Engine {
    /// Opens what a path names, and refuses what is in use or somebody's.
    pub(super) fn look_at_source(
        &self,
        path: &Path,
        place: &Place,
        (copy, unused): (bool, bool),
    ) -> Result<Source, EngineError> {
        let outside = match place {
            Place::Outside => {
                self.refuse_in_pool(path)?;
                Outside::open(path).map_err(|error| unopened(path, error))?
            }
            Place::Kept(pool, kept) => {
                let volume = Self::kept_record(pool, kept)?.volume;
                let id = kept.itself.volume_id(pool.tag());
                let data = pool.store.kept_data(kept, &volume).map_err(|e| missing(&id, e))?;
                sound(&data, &volume)?;
                data
            }
        };
        self.refuse_used(&outside, unused)?;
        let metadata = outside.file().metadata().map_err(|e| looked_at(&outside, e))?;
        if metadata.is_dir() {
            return Self::directory(outside, copy);
        }
        if metadata.nlink() > 1 && !copy {
            return Err(EngineError::Precondition(format!(
                "{} has {} names (hard links), and would be written to under the others; remove those, or import it with --copy",
                path.display(),
                metadata.nlink()
            )));
        }
        self.image(outside, metadata.len(), copy)
    }

    fn directory(outside: Outside, copy: bool) -> Result<Source, EngineError> {
        let mut links = Links::default();
        let count = backend::count_tree(outside.file().as_fd(), &mut links)?.unwrap_or_default();
        let elsewhere = links.0.values().filter(|(seen, names)| seen < names).count();
        if elsewhere > 0 && !copy {
            return Err(EngineError::Precondition(format!(
                "{} files of {} have names (hard links) outside of it, and would be written to, limited and wiped under those; import it with --copy",
                elsewhere,
                outside.path().display()
            )));
        }
        let (resolved, length) = (Resolved::Hostpath, ByteSize::ZERO);
        Ok(Source { outside, resolved, count, length, has_errors: false })
    }

    fn image(&self, outside: Outside, length: u64, copy: bool) -> Result<Source, EngineError> {
        let shown = outside.path().display();
        if length == 0 {
            return Err(EngineError::Invalid(format!(
                "{shown} is empty; there is nothing to import"
            )));
        }
        if !length.is_multiple_of(STEP) && !copy {
            return Err(EngineError::Invalid(format!(
                "{shown} has {length} bytes, which is not a multiple of {STEP}; make it longer (truncate -s %{STEP} {shown}), or import it with --copy, which extends the copy"
            )));
        }
        let fd = outside.file().as_fd();
        let signature = self.host.probe(fd)?;
        let count = Count { bytes: self.host.allocated(fd)?, inodes: 1 };
        let length = ByteSize::new(length).round_up(STEP).unwrap_or(ByteSize::new(length));
        let resolved = Resolved::Loop {
            filesystem: signature.map(|signature| signature.filesystem),
            sector: SECTOR,
            allocation: Allocation::Thin,
            direct_io: DirectIo::Auto,
        };
        let has_errors = signature.is_some_and(|signature| signature.has_errors);
        Ok(Source { outside, resolved, count, length, has_errors })
    }

    /// A pool's files are moved by its driver only.
    fn refuse_in_pool(&self, path: &Path) -> Result<(), EngineError> {
        let overlaps = |other: &Path| other.starts_with(path) || path.starts_with(other);
        let own = self.pools.paths().chain([self.pools.root_dir()]);
        let mut own = own.filter(|own| {
            overlaps(own) || own.canonicalize().is_ok_and(|canonical| overlaps(&canonical))
        });
        let foreign = || path.ancestors().find(|above| PoolView::open(above).is_ok());
        match own.next().or_else(foreign) {
            None => Ok(()),
            Some(pool) => Err(EngineError::Invalid(format!(
                "{} and {}, a pool or the driver's own directory, overlap: move what is to be imported out of it; only what a pool that is here has kept is imported from it, as <pool>/retained/<key>.<generation> or <pool>/archive/…",
                path.display(),
                pool.display()
            ))),
        }
    }

    /// Nobody uses what lies there, as far as the mount tables and the loop devices show. Who says that it is `unused`
    /// vouches for what cannot be seen.
    pub(super) fn refuse_used(&self, outside: &Outside, unused: bool) -> Result<(), EngineError> {
        let path =
            self.host.canonical(outside.path())?.unwrap_or_else(|| outside.path().to_owned());
        let in_use = |how: String| {
            EngineError::Precondition(format!(
                "{} is in use: {how}; end that first, then repeat",
                path.display()
            ))
        };
        let (tables, is_all) = self.host.mounts_in_sight()?;
        if !is_all && !unused {
            return Err(EngineError::Precondition(format!(
                "whether {} is in use cannot be seen from here, because this process does not see those of the node (it is in a container without hostPID, or lacks CAP_SYS_PTRACE); make sure that no pod and no program uses it, and repeat with --unused",
                path.display()
            )));
        }
        let own = tables.first().cloned().unwrap_or_default();
        if let Some(entry) = own.iter().find(|entry| entry.mount_point.starts_with(&path)) {
            return Err(in_use(format!("something is mounted at {}", entry.mount_point.display())));
        }
        if let Some((device, location)) = location(&own, &path) {
            for (number, table) in tables.iter().enumerate() {
                let is_part =
                    |device_of, root: &Path| device_of == device && root.starts_with(&location);
                let shown = table.iter().find(|entry| is_part(entry.device, &entry.root));
                if let Some(entry) = shown {
                    let whose = if number == 0 { "" } else { " in a container" };
                    let place = entry.mount_point.display();
                    return Err(in_use(format!("it is mounted at {place}{whose}")));
                }
            }
        }
        let loops = backend::loops_on(outside.identity(), &*self.host)?;
        match loops.first() {
            None => Ok(()),
            Some(status) => Err(in_use(format!("/dev/loop{} is on it", status.number))),
        }
    }
}

/// Where a path is in its filesystem, as mount tables name it.
fn location(table: &MountTable, path: &Path) -> Option<(DeviceNumber, PathBuf)> {
    let entry = table.containing(path)?;
    let below = path.strip_prefix(&entry.mount_point).ok()?;
    Some((entry.device, entry.root.join(below)))
}

/// Of each file with several names how many were seen, and how many there are, by its inode.
#[derive(Default)]
struct Links(BTreeMap<u64, (u64, u64)>);

impl Watcher for Links {
    fn goes_on(&mut self) -> bool {
        true
    }

    fn found(&mut self, found: &Found<'_>) {
        if found.is_directory() {
            return;
        }
        if let Some((inode, names)) = found.names().filter(|(_, names)| *names > 1) {
            let (seen, of) = self.0.entry(inode).or_insert((0, names));
            (*seen, *of) = (*seen + 1, names);
        }
    }
}

impl Source {
    /// The size of the volume.
    ///
    /// # Errors
    /// The source has more than was asked for.
    pub(super) fn size(&self, wish: Option<ByteSize>) -> Result<ByteSize, EngineError> {
        let is_directory = self.resolved == Resolved::Hostpath;
        let (least, proposed) = if is_directory {
            let held = smallest_held(self.count);
            let room = held.saturating_add(ByteSize::new(held.bytes() / 10));
            (self.count.bytes, room.round_up(ROUND).unwrap_or(room))
        } else {
            (self.length, self.length)
        };
        let size = wish.map_or(Some(proposed), |wish| wish.round_up(STEP));
        let size = size
            .filter(|size| i64::try_from(size.bytes()).is_ok())
            .ok_or_else(|| EngineError::Size("--size is more than a volume can have".to_owned()))?;
        let smallest = if is_directory {
            backend::smallest(Backend::Hostpath, None).0
        } else {
            ByteSize::new(STEP)
        };
        if size < least.max(smallest) {
            return Err(EngineError::Size(format!(
                "--size {size} is too small: {} needs {} bytes at least",
                self.outside.path().display(),
                least.max(smallest).bytes()
            )));
        }
        Ok(size)
    }

    /// The files fit a limit of that size, which bounds their number as well.
    ///
    /// # Errors
    /// They do not.
    pub(super) fn fits(&self, size: ByteSize, kind: Option<LimitKind>) -> Result<(), EngineError> {
        let needed = smallest_held(self.count);
        if kind != Some(LimitKind::Project) || self.resolved != Resolved::Hostpath || size >= needed
        {
            return Ok(());
        }
        Err(EngineError::Size(format!(
            "--size {size} is too small for the {} files of {}: its limit would allow fewer; give {} bytes at least",
            self.count.inodes,
            self.outside.path().display(),
            needed.bytes()
        )))
    }
}
