//! What is in a pool when it is opened, read from its directories.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use super::death::{Grave, grave_cost};
use super::directories::Directories;
use super::index::{Entry, GroupEntry, Index, SnapshotEntry};
use super::pool::{Pool, read_record, whole};
use super::snapshot::{Group, Snapshot};
use super::{IMAGE, Kind, StoreError, dir};
use crate::volume::{ByteSize, Key};

/// Reads every record of a pool. A damaged one is not an error.
pub(super) fn read(directories: &Directories, pool: &Path) -> Result<Index, StoreError> {
    let mut index = Index::default();
    let volumes = directories.of(Kind::Volume);
    for key in keys(volumes, Kind::Volume, pool)? {
        let entry = volume(volumes, &key);
        if let Entry::Damaged { reason, .. } = &entry {
            tracing::warn!(pool = %pool.display(), volume = %key, reason, "damaged; left as it is");
        }
        index.insert(key.clone(), entry);
    }
    let snapshots = directories.of(Kind::Snapshot);
    for key in keys(snapshots, Kind::Snapshot, pool)? {
        let entry = snapshot(snapshots, &key);
        if let SnapshotEntry::Damaged { reason, .. } = &entry {
            tracing::warn!(pool = %pool.display(), snapshot = %key, reason, "damaged; left as it is");
        }
        index.insert_snapshot(key.clone(), entry);
    }
    let groups = directories.of(Kind::Group);
    for key in keys(groups, Kind::Group, pool)? {
        if let Err(error) = group(groups, &key, &mut index) {
            tracing::error!(pool = %pool.display(), group = %key, %error, "a group of snapshots cannot be read");
            index.insert_group(key, GroupEntry::Damaged { reason: error.with_cause() });
        }
    }
    for grave in Grave::ALL {
        let parent = directories.grave(grave);
        for name in dir::names(parent)? {
            let cost = grave_cost(parent, &name);
            index.insert_grave(format!("{}/{}", grave.directory(), name.display()), cost);
        }
    }
    Ok(index)
}

impl Pool {
    /// Reads a snapshot's record again, and remembers what it says: somebody may have mended or damaged it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn mend_snapshot(&self, key: &Key) -> Result<Arc<Snapshot>, StoreError> {
        let snapshot = Arc::new(self.snapshot_on_disk(key)?);
        self.index().insert_snapshot(key.clone(), SnapshotEntry::Whole(Arc::clone(&snapshot)));
        Ok(snapshot)
    }

    fn snapshot_on_disk(&self, key: &Key) -> Result<Snapshot, StoreError> {
        let directories = self.directories();
        if let Some(fd) = dir::find_dir(directories.of(Kind::Snapshot), key.as_str())? {
            return read_snapshot(fd.as_fd(), key);
        }
        let groups = directories.of(Kind::Group);
        for name in dir::names(groups)? {
            let place = Path::new(&name).join(key.as_str());
            // What cannot be opened is no group, or not the one.
            if let Ok(Some(fd)) = dir::find_dir(groups, place) {
                return read_snapshot(fd.as_fd(), key);
            }
        }
        Err(StoreError::Damaged { path: key.as_str().into(), reason: "it has vanished".to_owned() })
    }

    /// The same for a group; its members are known.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn mend_group(&self, key: &Key) -> Result<Arc<Group>, StoreError> {
        let group = Arc::new(read_group(self.directories().of(Kind::Group), key)?);
        self.index().insert_group(key.clone(), GroupEntry::Whole(Arc::clone(&group)));
        Ok(group)
    }
}

/// The keys in a directory; what is none is somebody else's.
fn keys(directory: BorrowedFd<'_>, kind: Kind, pool: &Path) -> Result<Vec<Key>, StoreError> {
    let mut keys = Vec::new();
    for name in dir::names(directory)? {
        match name.to_str().and_then(|name| name.parse::<Key>().ok()) {
            Some(key) => keys.push(key),
            None => {
                tracing::warn!(pool = %pool.display(), place = kind.directory(), entry = %name.display(), "not ours; left alone");
            }
        }
    }
    Ok(keys)
}

/// What the image in a directory may take.
fn image_size(directory: BorrowedFd<'_>) -> ByteSize {
    let image = dir::stat(directory, OsStr::new(IMAGE)).ok().flatten();
    ByteSize::new(image.and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0))
}

fn volume(parent: BorrowedFd<'_>, key: &Key) -> Entry {
    let damaged = |error: &StoreError, size| Entry::Damaged { reason: error.with_cause(), size };
    let fd = match dir::open_dir(parent, key.as_str()) {
        Ok(fd) => fd,
        Err(error) => return damaged(&error, ByteSize::ZERO),
    };
    match read_record(fd.as_fd(), key) {
        Ok(record) => whole(&record.volume),
        Err(error) => damaged(&error, image_size(fd.as_fd())),
    }
}

fn snapshot(parent: BorrowedFd<'_>, key: &Key) -> SnapshotEntry {
    let damaged =
        |error: &StoreError, size| SnapshotEntry::Damaged { reason: error.with_cause(), size };
    let fd = match dir::open_dir(parent, key.as_str()) {
        Ok(fd) => fd,
        Err(error) => return damaged(&error, ByteSize::ZERO),
    };
    match read_snapshot(fd.as_fd(), key) {
        Ok(snapshot) => SnapshotEntry::Whole(Arc::new(snapshot)),
        Err(error) => damaged(&error, image_size(fd.as_fd())),
    }
}

/// Reads the record of the group of that key in `groups`.
pub(super) fn read_group(groups: BorrowedFd<'_>, key: &Key) -> Result<Group, StoreError> {
    let fd = dir::open_dir(groups, key.as_str())?;
    Group::parse(key, &record(fd.as_fd(), Kind::Group, key)?)
}

pub(super) fn read_snapshot(directory: BorrowedFd<'_>, key: &Key) -> Result<Snapshot, StoreError> {
    let content = record(directory, Kind::Snapshot, key)?;
    Snapshot::parse(key, &content)
}

fn record(directory: BorrowedFd<'_>, kind: Kind, key: &Key) -> Result<Vec<u8>, StoreError> {
    dir::read_file(directory, kind.record())?.ok_or_else(|| StoreError::Damaged {
        path: Path::new(kind.directory()).join(key.as_str()).join(kind.record()),
        reason: "it is missing".to_owned(),
    })
}

/// Reads a group and its members; their directories lie in its own.
fn group(parent: BorrowedFd<'_>, key: &Key, index: &mut Index) -> Result<(), StoreError> {
    let fd = dir::open_dir(parent, key.as_str())?;
    for name in dir::names(fd.as_fd())? {
        if let Some(member) = name.to_str().and_then(|name| name.parse::<Key>().ok()) {
            index.insert_snapshot(member.clone(), snapshot(fd.as_fd(), &member));
        }
    }
    let group = Arc::new(read_group(parent, key)?);
    index.insert_group(key.clone(), GroupEntry::Whole(group));
    Ok(())
}
