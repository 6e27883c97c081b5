//! Import: what lies outside becomes a volume's data by one rename, and what was kept becomes a volume again by one.
//!
//! Invariants:
//! - Data that moves is never below `incoming/`, which is wiped at start, nor below `trash/`. The volume's directory exists
//!   before, with a note in its record, and the note goes last.
//! - What is moved is the inode that the note names, whatever has its name by then.
//!
//! Must not: remove anything but the record that is left of a kept volume whose data has moved on.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::syncfs;

use super::charge::{Charge, Cost};
use super::death::{Grave, grave_cost, grave_name};
use super::outside::Outside;
use super::pool::{Pool, read_record, take_back, whole};
use super::promise::Promise;
use super::record::{RECORD, Record, Volume};
use super::{DATA, IMAGE, Kind, Name, StoreError, dir};
use crate::fault;

/// A volume that was deleted and whose data was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    grave: Grave,
    /// Which volume it was.
    pub itself: Name,
}

impl Kept {
    fn name(&self) -> String {
        format!("{}.{}", self.itself.key, self.itself.generation)
    }

    /// Relative to the pool.
    fn path(&self) -> String {
        format!("{}/{}", self.grave.directory(), self.name())
    }
}

impl Pool {
    /// The kept volume of this pool that a path names; `None` when it names something else. Whether it exists is another
    /// question.
    #[must_use]
    pub fn kept_at(&self, path: &Path) -> Option<Kept> {
        let (above, name) = (path.parent()?, path.file_name()?);
        let pool = above.parent()?;
        let same = |ours: &Path| pool == ours;
        if !same(self.path()) && !self.path().canonicalize().is_ok_and(|ours| same(&ours)) {
            return None;
        }
        let graves = [Grave::Archive, Grave::Retained];
        let grave = graves.into_iter().find(|grave| above.ends_with(grave.directory()))?;
        match grave_name(name)? {
            (Kind::Volume, itself) => Some(Kept { grave, itself }),
            (Kind::Snapshot | Kind::Group, _) => None,
        }
    }

    /// The record of a kept volume; `None` when there is no such volume.
    ///
    /// # Errors
    /// It is damaged, or a system call failed.
    pub fn kept_record(&self, kept: &Kept) -> Result<Option<Record>, StoreError> {
        let fd = dir::find_dir(self.directories().grave(kept.grave), kept.name())?;
        let Some(fd) = fd else { return Ok(None) };
        let has = |name: &str| dir::stat(fd.as_fd(), OsStr::new(name)).map(|stat| stat.is_some());
        if !has(RECORD)? && !has(DATA)? && !has(IMAGE)? {
            // What is left of one whose data has moved on.
            return Ok(None);
        }
        read_record(fd.as_fd(), &kept.itself.key).map(Some)
    }

    /// The data of a kept volume.
    ///
    /// # Errors
    /// It is not there, or a system call failed.
    pub fn kept_data(&self, kept: &Kept, volume: &Volume) -> Result<Outside, StoreError> {
        let above = dir::open_dir(self.directories().grave(kept.grave), kept.name())?;
        let name = volume.resolved.data_name();
        Outside::within(above, OsStr::new(name), &self.path().join(kept.path()).join(name))
    }

    /// Makes a kept volume exist again, as its record says now.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or a system call failed; then it is kept as before.
    pub fn revive(&self, kept: &Kept, record: &Record) -> Result<(), StoreError> {
        let (from, to) =
            (self.directories().grave(kept.grave), self.directories().of(Kind::Volume));
        let (name, key) = (kept.name(), OsStr::new(kept.itself.key.as_str()));
        let failed = |e: std::io::Error| StoreError::io("revive", &name, e);
        let fd = dir::open_dir(from, &name)?;
        dir::write_file(fd.as_fd(), RECORD, &record.to_text()?)?;
        fault::point!("store.import.reviving").map_err(failed)?;
        dir::rename_new(from, OsStr::new(&name), to, key)?;
        let flushed = fault::point!("store.import.revived")
            .map_err(failed)
            .and_then(|()| dir::sync(to, Kind::Volume.directory()))
            .and_then(|()| dir::sync(from, kept.grave.directory()));
        if let Err(error) = flushed {
            take_back(to, key, from, OsStr::new(&name));
            return Err(error);
        }
        let mut index = self.index();
        index.remove_grave(&kept.path());
        index.insert(kept.itself.key.clone(), whole(&record.volume));
        drop(index);
        Ok(())
    }

    /// Turns what is charged for a kept volume's size into a promise for the volume that its data will be.
    #[must_use]
    pub fn promise_of_kept(&self, kept: &Kept, volume: &Volume) -> Promise<'_> {
        let mut index = self.index();
        index.insert_grave(kept.path(), Cost::of_volume(Charge::NONE, &volume.shared));
        Promise::begin(self, &mut index, volume.charged())
    }

    /// Charges a kept volume again for what is there of it, when its data has not become another volume's after all.
    pub fn charge_kept(&self, kept: &Kept) {
        let grave = self.directories().grave(kept.grave);
        let name = kept.name();
        let cost = grave_cost(grave, OsStr::new(&name));
        let mut index = self.index();
        match dir::find_dir(grave, &name) {
            Ok(None) => drop(index.remove_grave(&kept.path())),
            Ok(Some(_)) | Err(_) => index.insert_grave(kept.path(), cost),
        }
    }

    /// Removes what is left of a kept volume whose data has become another volume's: its record and its directory.
    /// Somebody else's files in it stay.
    ///
    /// # Errors
    /// Its data is still there, or a system call failed.
    pub fn close_kept(&self, kept: &Kept) -> Result<(), StoreError> {
        let (grave, name) = (self.directories().grave(kept.grave), kept.name());
        if let Some(fd) = dir::find_dir(grave, &name)? {
            for data in [DATA, IMAGE] {
                if dir::stat(fd.as_fd(), OsStr::new(data))?.is_some() {
                    return Err(StoreError::Exists { path: Path::new(&kept.path()).join(data) });
                }
            }
            let leftover = format!("{RECORD}{}", dir::TEMPORARY_SUFFIX);
            dir::unlink(fd.as_fd(), OsStr::new(&leftover))?;
            dir::unlink(fd.as_fd(), OsStr::new(RECORD))?;
            fault::point!("store.import.closing")
                .map_err(|e| StoreError::io("remove the record of", &name, e))?;
            match dir::rmdir(grave, OsStr::new(&name)) {
                Err(error) if error.errno() == Some(Errno::ENOTEMPTY) => {
                    tracing::warn!(kept = kept.path(), "not empty; left as it is");
                }
                result => result?,
            }
            dir::sync(grave, kept.grave.directory())?;
        }
        self.index().remove_grave(&kept.path());
        Ok(())
    }

    /// The inode of what is in the place of a volume's data; `None` when nothing is.
    ///
    /// # Errors
    /// A system call failed.
    pub fn data_in_place(&self, volume: &Volume) -> Result<Option<u64>, StoreError> {
        let volume_dir = self.open_volume(&volume.key)?;
        let stat = dir::stat(volume_dir.as_fd(), OsStr::new(volume.resolved.data_name()))?;
        Ok(stat.map(|stat| stat.st_ino))
    }

    /// Moves what lies outside into the place of a volume's data, and flushes. The volume's record has a note of it.
    ///
    /// # Errors
    /// A system call failed (EXDEV: it is not on the same mount); [`Pool::data_in_place`] tells whether it was moved.
    pub fn take_in(&self, volume: &Volume, from: &Outside) -> Result<(), StoreError> {
        let failed = |e: std::io::Error| StoreError::io("move", from.path(), e);
        let volume_dir = self.open_volume(&volume.key)?;
        let to = volume_dir.as_fd();
        let name = OsStr::new(volume.resolved.data_name());
        fault::point!("store.import.taking").map_err(failed)?;
        match dir::rename_new(from.parent(), from.name(), to, name) {
            Err(StoreError::Io { source, .. }) => return Err(failed(source)),
            result => result?,
        }
        fault::point!("store.import.taken").map_err(failed)?;
        if dir::stat(to, name)?.map(|stat| stat.st_ino) != Some(from.identity().inode) {
            take_back(to, name, from.parent(), from.name());
            return Err(failed(Errno::ESTALE.into()));
        }
        // The new place first: a crash in between leaves two names or one, never none.
        dir::sync(to, volume.key.as_str())?;
        fault::point!("store.import.flushed").map_err(failed)?;
        dir::sync(from.parent(), from.path())
    }

    /// Flushes a move that an earlier run made: the directory that the data came from may be gone.
    ///
    /// # Errors
    /// A system call failed.
    pub fn flush_move(&self) -> Result<(), StoreError> {
        fault::step!("step.store.flush", syncfs(self.directory()))
            .map_err(|e| StoreError::io("flush", self.path(), e))
    }
}
