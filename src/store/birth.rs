//! Birth: fill `incoming/`, write the record, and one rename that makes it exist.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::index::{GroupEntry, SnapshotEntry};
use super::pool::{Pool, take_back, whole};
use super::promise::Promise;
use super::record::Record;
use super::remove::{self, Disposal};
use super::snapshot::{Group, Snapshot};
use super::volume_dir::VolumeDir;
use super::{DATA, Kind, StoreError, dir};
use crate::fault;
use crate::host::Host;
use crate::volume::{Key, Limit};

/// Something that is being born in `incoming/`. Dropped without a commit, it is removed by the next [`Pool::begin`] of
/// its key or the next start.
#[derive(Debug)]
pub struct Incoming<'a> {
    pool: &'a Pool,
    kind: Kind,
    key: Key,
    name: String,
    dir: VolumeDir,
}

impl Pool {
    /// Begins a birth: an empty directory in `incoming/`, whatever a dead run left there.
    ///
    /// # Errors
    /// A system call failed.
    pub fn begin(
        &self,
        kind: Kind,
        key: &Key,
        host: &dyn Host,
    ) -> Result<Incoming<'_>, StoreError> {
        let incoming = self.directories().incoming.as_fd();
        let name = format!("{}{key}", kind.prefix());
        self.discard(OsStr::new(&name), host)?;
        dir::make_dir(incoming, &name)?;
        fault::point!("store.begin.made").map_err(|e| StoreError::io("begin", &name, e))?;
        let fd = dir::open_dir(incoming, &name)?;
        Ok(Incoming { pool: self, kind, key: key.clone(), name, dir: fd.into() })
    }

    /// Removes what was not born, with its limit; nothing there is fine.
    pub(super) fn discard(&self, name: &OsStr, host: &dyn Host) -> Result<(), StoreError> {
        let incoming = self.directories().incoming.as_fd();
        let limit = unborn_limit(incoming, name, host);
        if let Some(limit) = limit {
            // A full directory may need room to become empty.
            host.set_bounds(incoming, limit, None)?;
        }
        remove::tree(incoming, name, Disposal::Remove, host)?;
        if let Some(limit) = limit
            && !end_soon(incoming, limit, host)?
        {
            // Nothing will ever be put under it again.
            tracing::info!(%limit, "the limit of what was not born stays: the filesystem is still freeing it");
        }
        Ok(())
    }
}

impl Incoming<'_> {
    /// Its directory, to be filled.
    #[must_use]
    pub const fn dir(&self) -> &VolumeDir {
        &self.dir
    }

    /// A new directory in it for a member of the group.
    ///
    /// # Errors
    /// A system call failed.
    pub fn member(&self, key: &Key) -> Result<VolumeDir, StoreError> {
        Ok(self.dir.create_directory(key.as_str())?.into())
    }

    /// Makes the volume exist. What is in it has been flushed by whoever wrote it. What was promised for it is counted as
    /// its own from then on.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or a system call failed; then the volume does not exist, and the promise still holds.
    pub fn commit(&self, record: &Record, promise: &mut Promise<'_>) -> Result<(), StoreError> {
        self.make_exist(&record.to_text()?)?;
        let mut index = self.pool.index();
        index.insert(self.key.clone(), whole(&record.volume));
        promise.settle(&mut index);
        drop(index);
        self.flush_incoming()
    }

    /// Makes the snapshot exist. What is in it has been flushed by whoever wrote it.
    ///
    /// # Errors
    /// As [`Incoming::commit`].
    pub fn commit_snapshot(
        &self,
        snapshot: Snapshot,
        promise: &mut Promise<'_>,
    ) -> Result<Arc<Snapshot>, StoreError> {
        self.make_exist(&snapshot.to_text()?)?;
        let snapshot = Arc::new(snapshot);
        let entry = SnapshotEntry::Whole(Arc::clone(&snapshot));
        let mut index = self.pool.index();
        index.insert_snapshot(self.key.clone(), entry);
        promise.settle(&mut index);
        drop(index);
        self.flush_incoming()?;
        Ok(snapshot)
    }

    /// Makes a group and all its members exist, with one rename.
    ///
    /// # Errors
    /// As [`Incoming::commit`].
    pub fn commit_group(
        &self,
        group: Group,
        members: Vec<Snapshot>,
        promise: &mut Promise<'_>,
    ) -> Result<(), StoreError> {
        for member in &members {
            let key = member.itself.key.as_str();
            let fd = dir::open_dir(self.dir.as_fd(), key)?;
            dir::write_file(fd.as_fd(), Kind::Snapshot.record(), &member.to_text()?)?;
        }
        self.make_exist(&group.to_text()?)?;
        let mut index = self.pool.index();
        for member in members {
            let key = member.itself.key.clone();
            index.insert_snapshot(key, SnapshotEntry::Whole(Arc::new(member)));
        }
        index.insert_group(self.key.clone(), GroupEntry::Whole(Arc::new(group)));
        promise.settle(&mut index);
        drop(index);
        self.flush_incoming()
    }

    fn make_exist(&self, record: &[u8]) -> Result<(), StoreError> {
        let directories = self.pool.directories();
        let (from, to) = (directories.incoming.as_fd(), directories.of(self.kind));
        let (name, key) = (OsStr::new(&self.name), OsStr::new(self.key.as_str()));
        let failed = |e: std::io::Error| StoreError::io("commit", name, e);
        dir::write_file(self.dir.as_fd(), self.kind.record(), record)?;
        fault::point!("store.commit.written").map_err(failed)?;
        dir::rename_new(from, name, to, key)?;
        let flushed = fault::point!("store.commit.renamed")
            .map_err(failed)
            .and_then(|()| dir::sync(to, self.kind.directory()));
        if let Err(error) = flushed {
            // Not durable, so it must not be seen: a retry would answer OK for it without flushing.
            take_back(to, key, from, name);
            return Err(error);
        }
        Ok(())
    }

    fn flush_incoming(&self) -> Result<(), StoreError> {
        dir::sync(&self.pool.directories().incoming, "incoming")
    }

    /// Removes what there is of it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn abandon(self, host: &dyn Host) -> Result<(), StoreError> {
        self.pool.discard(OsStr::new(&self.name), host)
    }
}

/// How long, and how often, the end of a limit is tried: the kernel frees what was under it in the background.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Ends a limit as soon as what was under it is freed; `false` when that takes long.
fn end_soon(filesystem: BorrowedFd<'_>, limit: Limit, host: &dyn Host) -> Result<bool, StoreError> {
    let start = Instant::now();
    while !host.end_limit(filesystem, limit)? {
        if start.elapsed() > PATIENCE {
            return Ok(false);
        }
        // Has the kernel begin.
        host.being_freed(filesystem)?;
        std::thread::park_timeout(PAUSE);
    }
    Ok(true)
}

/// The limit that the data of something unborn is under. No pod has been near it, so what the filesystem says is so.
fn unborn_limit(incoming: BorrowedFd<'_>, name: &OsStr, host: &dyn Host) -> Option<Limit> {
    let data = dir::find_dir(incoming, Path::new(name).join(DATA)).ok()??;
    host.limit_of(data.as_fd()).ok()?
}
