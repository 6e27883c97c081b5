//! A pool for reading only: no lock, no recovery, no change. For listings beside a running daemon or without one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::death::{Grave, grave_cost};
use super::index::{Index, SnapshotEntry};
use super::marker::{self, Marker};
use super::pool::{read_record, whole};
use super::record::Volume;
use super::scan::{read_group, read_snapshot};
use super::snapshot::{Group, Snapshot};
use super::taken::Taken;
use super::volume_dir::{CopyProgress, PROGRESS, VolumeDir};
use super::{Kind, StoreError, dir};
use crate::host::Host;
use crate::volume::{Key, PoolUuid};

/// A volume's key, and its record or what is wrong with it.
pub type ViewedVolume = (Key, Result<Volume, StoreError>);

/// A snapshot's key, and its record or what is wrong with it.
pub type ViewedSnapshot = (Key, Result<Snapshot, StoreError>);

/// A group's key, and its record or what is wrong with it.
pub type ViewedGroup = (Key, Result<Group, StoreError>);

/// A pool that is only looked at.
#[derive(Debug)]
pub struct PoolView {
    root: OwnedFd,
    marker: Marker,
}

impl PoolView {
    /// Opens the pool at a path.
    ///
    /// # Errors
    /// It is no pool, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let absent = |what| StoreError::io(what, path, nix::errno::Errno::ENOENT);
        let root = marker::open_path(path)?.ok_or_else(|| absent("open the pool"))?;
        let marker = marker::read(root.as_fd())?;
        let marker = marker.ok_or_else(|| absent("find the marker pool.json of a pool in"))?;
        Ok(Self { root, marker })
    }

    /// The pool's identity.
    #[must_use]
    pub const fn uuid(&self) -> &PoolUuid {
        &self.marker.uuid
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a volume's directory.
    ///
    /// # Errors
    /// There is none, or a system call failed.
    pub fn open_volume(&self, key: &Key) -> Result<VolumeDir, StoreError> {
        let volumes = dir::open_dir(self.root.as_fd(), "volumes")?;
        Ok(dir::open_dir(volumes.as_fd(), key.as_str())?.into())
    }

    /// The record of a volume; `None` when there is no such volume.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn volume(&self, key: &Key) -> Result<Option<Volume>, StoreError> {
        let volumes = dir::open_dir(self.root.as_fd(), "volumes")?;
        let fd = dir::find_dir(volumes.as_fd(), key.as_str())?;
        fd.map(|fd| read_record(fd.as_fd(), key).map(|record| record.volume)).transpose()
    }

    /// Every volume in the order of the keys, with its record or what is wrong with it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn volumes(&self) -> Result<Vec<ViewedVolume>, StoreError> {
        let volumes = dir::open_dir(self.root.as_fd(), "volumes")?;
        let mut keys: Vec<Key> = dir::names(volumes.as_fd())?
            .iter()
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect();
        keys.sort();
        let mut listed = Vec::new();
        for key in keys {
            let record = match dir::find_dir(volumes.as_fd(), key.as_str()) {
                // One that was deleted meanwhile is not there any more.
                Ok(None) => continue,
                Ok(Some(fd)) => read_record(fd.as_fd(), &key).map(|record| record.volume),
                // Something else lies there under its name.
                Err(error) => Err(error),
            };
            listed.push((key, record));
        }
        Ok(listed)
    }

    /// Every snapshot in the order of the keys, those in groups included, with its record or what is wrong with it.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn snapshots(&self) -> Result<Vec<ViewedSnapshot>, StoreError> {
        let mut listed = Vec::new();
        let mut parents = Vec::new();
        // A pool of an earlier release has no groups, and one that is just being made neither.
        for kind in [Kind::Snapshot, Kind::Group] {
            let Some(parent) = dir::find_dir(self.root.as_fd(), kind.directory())? else {
                continue;
            };
            if kind == Kind::Snapshot {
                parents.push(parent);
                continue;
            }
            for name in dir::names(parent.as_fd())? {
                // What cannot be opened is no group, or a damaged one, which `groups` tells.
                parents.extend(dir::find_dir(parent.as_fd(), &name).ok().flatten());
            }
        }
        for parent in parents {
            for name in dir::names(parent.as_fd())? {
                let Some(key) = name.to_str().and_then(|name| name.parse::<Key>().ok()) else {
                    continue;
                };
                let record = match dir::find_dir(parent.as_fd(), key.as_str()) {
                    Ok(None) => continue,
                    Ok(Some(fd)) => read_snapshot(fd.as_fd(), &key),
                    Err(error) => Err(error),
                };
                listed.push((key, record));
            }
        }
        listed.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(listed)
    }

    /// Every group of snapshots, with its record or what is wrong with it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn groups(&self) -> Result<Vec<ViewedGroup>, StoreError> {
        let Some(parent) = dir::find_dir(self.root.as_fd(), Kind::Group.directory())? else {
            return Ok(Vec::new());
        };
        let names = dir::names(parent.as_fd())?;
        let keys = names.iter().filter_map(|name| name.to_str()?.parse::<Key>().ok());
        Ok(keys.map(|key| (key.clone(), read_group(parent.as_fd(), &key))).collect())
    }

    /// A group has the directory of that member.
    #[must_use]
    pub fn has_member(&self, group: &Key, member: &Key) -> bool {
        let place = Path::new(Kind::Group.directory()).join(group.as_str()).join(member.as_str());
        dir::open_dir(self.root.as_fd(), place).is_ok()
    }

    /// Opens a snapshot's directory.
    ///
    /// # Errors
    /// There is none, or a system call failed.
    pub fn open_snapshot(&self, snapshot: &Snapshot) -> Result<VolumeDir, StoreError> {
        let place = match &snapshot.group {
            None => Path::new(Kind::Snapshot.directory()).to_owned(),
            Some(group) => Path::new(Kind::Group.directory()).join(group.key.as_str()),
        };
        let key = snapshot.itself.key.as_str();
        Ok(dir::open_dir(self.root.as_fd(), place.join(key))?.into())
    }

    /// The copies that are being made, of a kind, and how far they are; what a killed driver left counts until the next
    /// start.
    #[must_use]
    pub fn copies(&self, kind: Kind) -> Vec<(Key, CopyProgress)> {
        let Ok(incoming) = dir::open_dir(self.root.as_fd(), "incoming") else { return Vec::new() };
        let names = dir::names(incoming.as_fd()).unwrap_or_default();
        let copy = |name: &std::ffi::OsString| {
            let (its_kind, key) = Kind::of_name(name.to_str()?);
            let key = key.parse().ok().filter(|_| its_kind == kind)?;
            let fd = dir::find_dir(incoming.as_fd(), name).ok()??;
            let note = dir::read_file(fd.as_fd(), PROGRESS).ok()??;
            Some((key, serde_json::from_slice(&note).ok()?))
        };
        names.iter().filter_map(copy).collect()
    }

    /// What the pool has promised, given what [`PoolView::volumes`] and [`PoolView::snapshots`] have told, and what of that
    /// is taken; what cannot be read counts nothing.
    #[must_use]
    pub fn taken(
        &self,
        volumes: &[ViewedVolume],
        snapshots: &[ViewedSnapshot],
        host: &dyn Host,
    ) -> Taken {
        let mut index = Index::default();
        for (key, volume) in volumes {
            if let Ok(volume) = volume {
                index.insert(key.clone(), whole(volume));
            }
        }
        for (key, snapshot) in snapshots {
            if let Ok(snapshot) = snapshot {
                let entry = SnapshotEntry::Whole(Arc::new(snapshot.clone()));
                index.insert_snapshot(key.clone(), entry);
            }
        }
        for grave in Grave::ALL {
            let Ok(graves) = dir::open_dir(self.root.as_fd(), grave.directory()) else { continue };
            for name in dir::names(graves.as_fd()).unwrap_or_default() {
                let cost = grave_cost(graves.as_fd(), &name);
                index.insert_grave(format!("{}/{}", grave.directory(), name.display()), cost);
            }
        }
        Taken::of(&index, self.directory(), host)
    }
}
