//! An open pool: what is in it, and changes of what lives. `birth` and `death` have the beginning and the end.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{fstat, stat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::charge::Charges;
use super::directories::Directories;
use super::index::{Entry, GroupEntry, Index, SnapshotEntry};
use super::marker::{self, Marker, PoolLook};
use super::promise::Promise;
use super::record::{RECORD, Record, Volume};
use super::snapshot::Snapshot;
use super::volume_dir::VolumeDir;
use super::{Kind, Name, StoreError, dir, scan};
use crate::host::Host;
use crate::telemetry::{self, Reason};
use crate::volume::{ByteSize, Generation, Key, PoolUuid};

/// A pool that this process may write to.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    marker: Marker,
    /// Locked for as long as the pool is open: a second daemon under another root directory finds it here.
    root: Flock<OwnedFd>,
    directories: Directories,
    index: Mutex<Index>,
}

impl Pool {
    /// What lies at a path.
    ///
    /// # Errors
    /// It cannot be read, or a marker is there and damaged.
    pub fn look(path: &Path) -> Result<PoolLook, StoreError> {
        marker::look(path)
    }

    /// Makes a pool of an empty or absent directory. Interrupted, it can be repeated.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`], or a failed system call.
    pub fn init(path: &Path, marker: &Marker) -> Result<(), StoreError> {
        marker::init(path, marker)
    }

    /// Gives a pool another identity; answers the old one.
    ///
    /// # Errors
    /// It is no pool, or a daemon has it open.
    pub fn replace_uuid(path: &Path, uuid: &PoolUuid) -> Result<PoolUuid, StoreError> {
        let (root, marker) = lock(path)?;
        let previous = Some(marker.uuid.clone());
        let new = Marker { uuid: uuid.clone(), name: marker.name, previous };
        marker::write(root.as_fd(), &new)?;
        Ok(marker.uuid)
    }

    /// Opens a pool for writing, removes what was not born, and reads every record.
    ///
    /// # Errors
    /// It is no pool, another daemon has it, or a system call failed. A damaged record is not an error.
    pub fn open(path: &Path, host: &dyn Host) -> Result<Self, StoreError> {
        let (root, marker) = lock(path)?;
        let directories = Directories::open(root.as_fd())?;
        let pool =
            Self { path: path.to_owned(), marker, root, directories, index: Mutex::default() };
        // A run that was killed between a rename and its flush must not be answered for: what is seen from here on is on
        // disk.
        pool.directories.sync()?;
        pool.wipe_incoming(host)?;
        *pool.index() = scan::read(&pool.directories, path)?;
        Ok(pool)
    }

    /// The pool's identity.
    #[must_use]
    pub const fn uuid(&self) -> &PoolUuid {
        &self.marker.uuid
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The path still leads to the directory that was opened. It does not after an unmount.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        match (stat(&self.path), fstat(self.root.as_fd())) {
            (Ok(there), Ok(here)) => {
                (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) && here.st_nlink > 0
            }
            _ => false,
        }
    }

    /// Its filesystem takes no writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let figures = fstatvfs(self.root.as_fd());
        figures.is_ok_and(|figures| figures.flags().contains(FsFlags::ST_RDONLY))
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        // Every change of the index is one call that leaves it whole, so a panic elsewhere does not poison it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn directories(&self) -> &Directories {
        &self.directories
    }

    /// The volume of that key in short.
    #[must_use]
    pub fn entry(&self, key: &Key) -> Option<Entry> {
        self.index().get(key).cloned()
    }

    /// At most `count` volumes in the order of their keys, beginning behind `after`.
    #[must_use]
    pub fn entries_after(&self, after: Option<&Key>, count: usize) -> Vec<(Key, Entry)> {
        let index = self.index();
        index.after(after).take(count).map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// The inline volumes.
    #[must_use]
    pub fn inline(&self) -> Vec<Key> {
        self.index().inline().cloned().collect()
    }

    /// What the pool has promised.
    #[must_use]
    pub fn charges(&self) -> Charges {
        self.index().charges()
    }

    /// How much of what a volume wrote others have as well, in bytes: snapshots, volumes that began with it, and what is
    /// not yet removed of either.
    #[must_use]
    pub fn shared_by_others(&self, writer: &Name) -> ByteSize {
        self.index().shared_by_others(writer)
    }

    /// The volumes of whose writing others have something.
    #[must_use]
    pub fn writers(&self) -> Vec<Name> {
        self.index().writers().cloned().collect()
    }

    /// How many volumes are attached to a node, or promised to it.
    #[must_use]
    pub fn attached(&self, node: &str) -> usize {
        self.index().attachments().of(node)
    }

    /// Counts a volume as attached to a node until [`Pool::update`] has written that it is, or until
    /// [`Pool::take_back_attachment`].
    pub fn promise_attachment(&self, key: &Key, node: &str) {
        self.index().attachments().promise(key, node);
    }

    /// Ends a promise that was not kept.
    pub fn take_back_attachment(&self, key: &Key, node: &str) {
        self.index().attachments().take_back(key, node);
    }

    /// Reads a volume's record; `None` when there is no such volume.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::TooNew`], or a failed system call.
    pub fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        match dir::find_dir(self.directories.of(Kind::Volume), key.as_str())? {
            None => {
                // Somebody removed it by hand; the disk is right.
                self.index().remove(key);
                Ok(None)
            }
            Some(fd) => {
                let record = read_record(fd.as_fd(), key)?;
                let mut index = self.index();
                // Somebody has mended it by hand.
                if matches!(index.get(key), Some(Entry::Damaged { .. })) {
                    index.insert(key.clone(), whole(&record.volume));
                }
                Ok(Some(record))
            }
        }
    }

    /// The generation in a damaged record, where it can still be made out: enough to name the volume.
    #[must_use]
    pub fn salvaged_generation(&self, key: &Key) -> Option<Generation> {
        let volume = self.open_volume(key).ok()?;
        let content = dir::read_file(volume.as_fd(), RECORD).ok()??;
        let text = String::from_utf8_lossy(&content);
        let (_, behind) = text.split_once("\"generation\"")?;
        let digits = behind.trim_start_matches([':', ' ', '"']).get(..8)?;
        digits.parse().ok()
    }

    /// Opens a volume's directory.
    ///
    /// # Errors
    /// There is none, or a system call failed.
    pub fn open_volume(&self, key: &Key) -> Result<VolumeDir, StoreError> {
        Ok(dir::open_dir(self.directories.of(Kind::Volume), key.as_str())?.into())
    }

    /// The snapshot of that key.
    #[must_use]
    pub fn snapshot(&self, key: &Key) -> Option<SnapshotEntry> {
        self.index().snapshot(key).cloned()
    }

    /// At most `count` snapshots in the order of their keys, beginning behind `after`; only those of a volume when one is
    /// named.
    #[must_use]
    pub fn snapshots_after(
        &self,
        after: Option<&Key>,
        source: Option<&Name>,
        count: usize,
    ) -> Vec<(Key, SnapshotEntry)> {
        let index = self.index();
        let owned = |(key, entry): (&Key, &SnapshotEntry)| (key.clone(), entry.clone());
        match source {
            None => index.snapshots_after(after).take(count).map(owned).collect(),
            Some(source) => {
                let keys = index.snapshots_of(source, after).take(count);
                keys.filter_map(|key| Some(owned((key, index.snapshot(key)?)))).collect()
            }
        }
    }

    /// The volume has snapshots.
    #[must_use]
    pub fn has_snapshots(&self, source: &Name) -> bool {
        self.index().snapshots_of(source, None).next().is_some()
    }

    /// The group of that key.
    #[must_use]
    pub fn group(&self, key: &Key) -> Option<GroupEntry> {
        self.index().group(key).cloned()
    }

    /// Opens a snapshot's directory.
    ///
    /// # Errors
    /// There is none, or a system call failed.
    pub fn open_snapshot(&self, snapshot: &Snapshot) -> Result<VolumeDir, StoreError> {
        let key = snapshot.itself.key.as_str();
        Ok(match &snapshot.group {
            None => dir::open_dir(self.directories.of(Kind::Snapshot), key)?.into(),
            Some(group) => {
                let path = Path::new(group.key.as_str()).join(key);
                dir::open_dir(self.directories.of(Kind::Group), path)?.into()
            }
        })
    }

    /// Replaces a volume's record.
    ///
    /// # Errors
    /// A system call failed; the old record still holds.
    pub fn update(&self, record: &Record) -> Result<(), StoreError> {
        self.grow(record, &mut self.no_promise())
    }

    /// The same for a volume that is larger now: what was promised for that is counted as its own from then on.
    ///
    /// # Errors
    /// As [`Pool::update`]; the promise still holds.
    pub fn grow(&self, record: &Record, promise: &mut Promise<'_>) -> Result<(), StoreError> {
        let volume = &record.volume;
        let fd = dir::open_dir(self.directories.of(Kind::Volume), volume.key.as_str())?;
        dir::write_file(fd.as_fd(), RECORD, &record.to_text()?)?;
        let mut index = self.index();
        index.insert(volume.key.clone(), whole(volume));
        promise.settle(&mut index);
        drop(index);
        Ok(())
    }

    fn wipe_incoming(&self, host: &dyn Host) -> Result<(), StoreError> {
        let incoming = self.directories.incoming.as_fd();
        for name in dir::names(incoming)? {
            let key = name.to_str().and_then(|name| Kind::of_name(name).1.parse::<Key>().ok());
            if key.is_none() {
                tracing::warn!(pool = %self.path.display(), entry = %name.display(), "not ours; left alone");
                continue;
            }
            // What cannot be removed now (a full or broken disk) is in nobody's way: `begin` tries again.
            match self.discard(&name, host) {
                Ok(()) => {
                    tracing::info!(pool = %self.path.display(), entry = %name.display(), "removed what an earlier run was killed over");
                    telemetry::cleanup(Reason::Incoming);
                }
                Err(error) => {
                    tracing::warn!(pool = %self.path.display(), entry = %name.display(), %error, "cannot remove what was not born");
                }
            }
        }
        Ok(())
    }
}

/// Takes the exclusive lock on a pool's directory, then reads its marker: before, another process could still change it.
fn lock(path: &Path) -> Result<(Flock<OwnedFd>, Marker), StoreError> {
    let absent = || StoreError::io("open the pool", path, nix::errno::Errno::ENOENT);
    let fd = marker::open_path(path)?.ok_or_else(absent)?;
    let root = match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
        Ok(root) => root,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            return Err(StoreError::Locked { path: path.to_owned() });
        }
        Err((_, e)) => return Err(StoreError::io("lock", path, e)),
    };
    let marker = marker::read(root.as_fd())?.ok_or_else(absent)?;
    Ok((root, marker))
}

pub(super) fn whole(volume: &Volume) -> Entry {
    Entry::Whole {
        generation: volume.generation.clone(),
        size: volume.size,
        backend: volume.resolved.backend(),
        moving: volume.is_moving(),
        claim: volume.claim.clone().map(Arc::new),
        allocation: volume.resolved.allocation(),
        footprint: volume.footprint(),
        shared: volume.shared.clone(),
        inline: volume.pod.is_some(),
        nodes: volume.attachments.iter().map(|attachment| attachment.node.clone()).collect(),
    }
}

pub(super) fn read_record(volume: BorrowedFd<'_>, key: &Key) -> Result<Record, StoreError> {
    match dir::read_file(volume, RECORD)? {
        Some(content) => Record::parse(key, &content),
        None => Err(StoreError::Damaged {
            path: Path::new("volumes").join(key.as_str()).join(RECORD),
            reason: "it is missing".to_owned(),
        }),
    }
}

/// Undoes a rename that could not be flushed.
pub(super) fn take_back(from: BorrowedFd<'_>, old: &OsStr, to: BorrowedFd<'_>, new: &OsStr) {
    if let Err(error) = dir::rename_new(from, old, to, new) {
        tracing::error!(entry = %old.display(), %error, "cannot take back a rename that could not be flushed");
    }
}
