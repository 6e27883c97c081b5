//! Death: one rename takes a thing out of its place; what is removed is removed later, from `trash/`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};

use super::charge::Cost;
use super::pool::{Pool, read_record, take_back};
use super::record::Record;
use super::remove::{self, Disposal};
use super::snapshot::{Group, Snapshot};
use super::{Kind, Name, StoreError, dir};
use crate::fault;
use crate::host::Host;
use crate::volume::{Generation, Key, Limit, OnDelete};

/// Where the data of a deleted volume goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grave {
    /// To be removed.
    Trash,
    /// Kept by onDelete: archive.
    Archive,
    /// Kept by onDelete: retain.
    Retained,
}

impl Grave {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Trash, Self::Archive, Self::Retained];

    /// The directory of the pool.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Trash => "trash",
            Self::Archive => "archive",
            Self::Retained => "retained",
        }
    }
}

impl Pool {
    /// Takes a volume out of `volumes/`: from then on it does not exist. Answers its name in the grave's directory.
    ///
    /// # Errors
    /// A system call failed; then the volume may or may not be gone, and a repeat finds out.
    pub fn bury(&self, record: &Record, grave: Grave) -> Result<String, StoreError> {
        let volume = &record.volume;
        let name = self.rename_to(Kind::Volume, &volume.itself(), grave)?;
        let mut index = self.index();
        index.remove(&volume.key);
        let cost = Cost::of_volume(volume.charged(), &volume.shared);
        index.insert_grave(format!("{}/{name}", grave.directory()), cost);
        drop(index);
        Ok(name)
    }

    /// Takes a snapshot out of `snapshots/`, to be removed.
    ///
    /// # Errors
    /// As [`Pool::bury`].
    pub fn bury_snapshot(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let name = self.rename_to(Kind::Snapshot, &snapshot.itself, Grave::Trash)?;
        let mut index = self.index();
        index.remove_snapshot(&snapshot.itself.key);
        index.insert_grave(format!("trash/{name}"), Cost::of_snapshot(snapshot));
        drop(index);
        Ok(())
    }

    /// Takes a group with all its members out of `groups/`, to be removed.
    ///
    /// # Errors
    /// As [`Pool::bury`].
    pub fn bury_group(&self, group: &Group) -> Result<(), StoreError> {
        let name = self.rename_to(Kind::Group, &group.itself, Grave::Trash)?;
        let mut index = self.index();
        let cost = index.remove_group(&group.itself.key);
        index.insert_grave(format!("trash/{name}"), cost);
        drop(index);
        Ok(())
    }

    fn rename_to(&self, kind: Kind, itself: &Name, grave: Grave) -> Result<String, StoreError> {
        let name = format!("{}{}.{}", kind.prefix(), itself.key, itself.generation);
        let (from, to) = (self.directories().of(kind), self.directories().grave(grave));
        fault::point!("store.bury.start").map_err(|e| StoreError::io("bury", &name, e))?;
        let (key, grave_name) = (OsStr::new(itself.key.as_str()), OsStr::new(&name));
        dir::rename_new(from, key, to, grave_name)?;
        let flushed = fault::point!("store.bury.renamed")
            .map_err(|e| StoreError::io("bury", &name, e))
            .and_then(|()| dir::sync(to, grave.directory()))
            .and_then(|()| dir::sync(from, kind.directory()));
        if let Err(error) = flushed {
            // Not durable, so it must not be answered for: the repeat does it again.
            take_back(to, grave_name, from, key);
            return Err(error);
        }
        Ok(name)
    }

    /// What the driver has put into `trash/`; anything else there is somebody else's and left alone.
    ///
    /// # Errors
    /// A system call failed.
    pub fn trash(&self) -> Result<Vec<OsString>, StoreError> {
        let mut names = dir::names(self.directories().grave(Grave::Trash))?;
        let index = self.index();
        // One that the index does not know yet is being buried, and may still be taken back.
        names.retain(|name| {
            grave_key(name).is_some() && index.has_grave(&format!("trash/{}", name.display()))
        });
        drop(index);
        Ok(names)
    }

    /// The limit that an entry of `trash/` is under: of a volume what its record says.
    #[must_use]
    pub fn grave_limit(&self, name: &OsStr) -> Option<Limit> {
        grave_record(self.directories().grave(Grave::Trash), name)?.volume.limit
    }

    /// Removes what is in one entry of `trash/`, but for the records; a volume is overwritten first when its record asks
    /// for that, or cannot be read.
    ///
    /// # Errors
    /// Something in it cannot be removed; what is left stays in `trash/`.
    pub fn empty_grave(&self, name: &OsStr, host: &dyn Host) -> Result<(), StoreError> {
        let trash = self.directories().grave(Grave::Trash);
        let disposal = match grave_key(name) {
            // No volume that is to be overwritten has snapshots.
            Some((Kind::Snapshot | Kind::Group, _)) => Disposal::Remove,
            Some((Kind::Volume, _)) | None => match grave_record(trash, name) {
                Some(record) if record.volume.on_delete != OnDelete::Wipe => Disposal::Remove,
                Some(_) | None => Disposal::Overwrite,
            },
        };
        remove::contents(trash, name, disposal, host).map(drop)
    }

    /// Removes what [`Pool::empty_grave`] has left of an entry of `trash/`. Nothing is charged for it from then on. Answers
    /// the volumes that wrote what it shared.
    ///
    /// # Errors
    /// A system call failed; what is left stays in `trash/`.
    pub fn close_grave(&self, name: &OsStr, host: &dyn Host) -> Result<Vec<Name>, StoreError> {
        let trash = self.directories().grave(Grave::Trash);
        remove::tree(trash, name, Disposal::Remove, host)?;
        dir::sync(trash, "trash")?;
        Ok(self.index().remove_grave(&format!("trash/{}", name.to_string_lossy())))
    }
}

/// What a grave's name says is in it, e.g. `<key>.<generation>`; `None` when it is not one of ours.
pub(super) fn grave_name(name: &OsStr) -> Option<(Kind, Name)> {
    let (kind, rest) = Kind::of_name(name.to_str()?);
    let (key, generation) = rest.split_once('.')?;
    let generation = generation.parse::<Generation>().ok()?;
    Some((kind, Name { key: key.parse().ok()?, generation }))
}

/// The same, whichever of the name's volumes it was.
pub(super) fn grave_key(name: &OsStr) -> Option<(Kind, Key)> {
    grave_name(name).map(|(kind, name)| (kind, name.key))
}

/// The record of a volume in a grave; `None` when it cannot be read.
fn grave_record(parent: BorrowedFd<'_>, name: &OsStr) -> Option<Record> {
    let fd = dir::open_dir(parent, name).ok()?;
    let (kind, key) = grave_key(name)?;
    if kind != Kind::Volume {
        return None;
    }
    read_record(fd.as_fd(), &key).ok()
}

/// What the thing in a grave costs; nothing when that cannot be read.
pub(super) fn grave_cost(parent: BorrowedFd<'_>, name: &OsStr) -> Cost {
    let cost = || {
        let (kind, key) = grave_key(name)?;
        let fd = dir::open_dir(parent, name).ok()?;
        match kind {
            Kind::Volume => grave_record(parent, name)
                .map(|record| Cost::of_volume(record.volume.charged(), &record.volume.shared)),
            Kind::Snapshot => snapshot_cost(fd.as_fd(), &key),
            Kind::Group => {
                let keys = dir::names(fd.as_fd()).ok()?;
                let keys = keys.iter().filter_map(|name| name.to_str()?.parse::<Key>().ok());
                let costs = keys.filter_map(|key| {
                    let member = dir::open_dir(fd.as_fd(), key.as_str()).ok()?;
                    snapshot_cost(member.as_fd(), &key)
                });
                Some(costs.fold(Cost::default(), Cost::and))
            }
        }
    };
    cost().unwrap_or_default()
}

fn snapshot_cost(directory: BorrowedFd<'_>, key: &Key) -> Option<Cost> {
    let content = dir::read_file(directory, Kind::Snapshot.record()).ok()??;
    Snapshot::parse(key, &content).ok().map(|snapshot| Cost::of_snapshot(&snapshot))
}
