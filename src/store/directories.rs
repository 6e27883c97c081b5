//! The directories of a pool, opened once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::death::Grave;
use super::{Kind, StoreError, dir, marker};

/// The directories of a pool, opened once.
#[derive(Debug)]
pub(super) struct Directories {
    pub(super) incoming: OwnedFd,
    volumes: OwnedFd,
    snapshots: OwnedFd,
    groups: OwnedFd,
    trash: OwnedFd,
    archive: OwnedFd,
    retained: OwnedFd,
}

impl Directories {
    pub(super) fn open(pool: BorrowedFd<'_>) -> Result<Self, StoreError> {
        for name in marker::DIRECTORIES {
            dir::make_dir(pool, name)?;
        }
        Ok(Self {
            incoming: dir::open_dir(pool, "incoming")?,
            volumes: dir::open_dir(pool, Kind::Volume.directory())?,
            snapshots: dir::open_dir(pool, Kind::Snapshot.directory())?,
            groups: dir::open_dir(pool, Kind::Group.directory())?,
            trash: dir::open_dir(pool, Grave::Trash.directory())?,
            archive: dir::open_dir(pool, Grave::Archive.directory())?,
            retained: dir::open_dir(pool, Grave::Retained.directory())?,
        })
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        dir::sync(&self.incoming, "incoming")?;
        for kind in Kind::ALL {
            dir::sync(self.of(kind), kind.directory())?;
        }
        for grave in Grave::ALL {
            dir::sync(self.grave(grave), grave.directory())?;
        }
        Ok(())
    }

    /// Where the things of a kind live.
    pub(super) fn of(&self, kind: Kind) -> BorrowedFd<'_> {
        match kind {
            Kind::Volume => self.volumes.as_fd(),
            Kind::Snapshot => self.snapshots.as_fd(),
            Kind::Group => self.groups.as_fd(),
        }
    }

    pub(super) fn grave(&self, grave: Grave) -> BorrowedFd<'_> {
        match grave {
            Grave::Trash => self.trash.as_fd(),
            Grave::Archive => self.archive.as_fd(),
            Grave::Retained => self.retained.as_fd(),
        }
    }
}
