//! A pool for reading only: no lock, no recovery, no change. For listings beside a running daemon or without one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::death::{Grave, grave_charge};
use super::marker::{self, Marker};
use super::pool::read_record;
use super::record::Volume;
use super::{StoreError, dir};
use crate::volume::{ByteSize, Key, PoolUuid};

/// A volume's key, and its record or what is wrong with it.
pub type ViewedVolume = (Key, Result<Volume, StoreError>);

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
        let absent = || StoreError::io("open the pool", path, nix::errno::Errno::ENOENT);
        let root = marker::open_path(path)?.ok_or_else(absent)?;
        let marker = marker::read(root.as_fd())?.ok_or_else(absent)?;
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
            // One that was deleted meanwhile is not there any more.
            let Some(fd) = dir::find_dir(volumes.as_fd(), key.as_str())? else {
                continue;
            };
            let record = read_record(fd.as_fd(), &key).map(|record| record.volume);
            listed.push((key, record));
        }
        Ok(listed)
    }

    /// The sizes of what is deleted, archived or retained and still there; what cannot be read counts nothing.
    #[must_use]
    pub fn graves_size(&self) -> ByteSize {
        let mut sum = ByteSize::ZERO;
        for grave in Grave::ALL {
            let Ok(graves) = dir::open_dir(self.root.as_fd(), grave.directory()) else { continue };
            for name in dir::names(graves.as_fd()).unwrap_or_default() {
                sum = sum.saturating_add(grave_charge(graves.as_fd(), &name));
            }
        }
        sum
    }
}
