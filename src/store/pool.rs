//! An open pool: birth, change and death of its volumes.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{fstat, stat};

use super::index::{Charges, Entry, Index};
use super::marker::{self, Marker, PoolLook};
use super::record::{RECORD, Record};
use super::remove::{self, Disposal};
use super::volume_dir::VolumeDir;
use super::{IMAGE, StoreError, dir};
use crate::fault;
use crate::host::Host;
use crate::volume::{ByteSize, Key, OnDelete, PoolUuid};

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

/// The directories of a pool, opened once.
#[derive(Debug)]
struct Directories {
    incoming: OwnedFd,
    volumes: OwnedFd,
    trash: OwnedFd,
    archive: OwnedFd,
    retained: OwnedFd,
}

impl Directories {
    fn open(pool: BorrowedFd<'_>) -> Result<Self, StoreError> {
        for name in marker::DIRECTORIES {
            dir::make_dir(pool, name)?;
        }
        Ok(Self {
            incoming: dir::open_dir(pool, "incoming")?,
            volumes: dir::open_dir(pool, "volumes")?,
            trash: dir::open_dir(pool, Grave::Trash.directory())?,
            archive: dir::open_dir(pool, Grave::Archive.directory())?,
            retained: dir::open_dir(pool, Grave::Retained.directory())?,
        })
    }

    fn sync(&self) -> Result<(), StoreError> {
        for (fd, name) in [
            (&self.incoming, "incoming"),
            (&self.volumes, "volumes"),
            (&self.trash, "trash"),
            (&self.archive, "archive"),
            (&self.retained, "retained"),
        ] {
            dir::sync(fd, name)?;
        }
        Ok(())
    }

    fn grave(&self, grave: Grave) -> BorrowedFd<'_> {
        match grave {
            Grave::Trash => self.trash.as_fd(),
            Grave::Archive => self.archive.as_fd(),
            Grave::Retained => self.retained.as_fd(),
        }
    }
}

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
        pool.scan()?;
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

    fn index(&self) -> MutexGuard<'_, Index> {
        // Every change of the index is one call that leaves it whole, so a panic elsewhere does not poison it.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Reads a volume's record; `None` when there is no such volume.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::TooNew`], or a failed system call.
    pub fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        match dir::find_dir(self.directories.volumes.as_fd(), key.as_str())? {
            None => {
                // Somebody removed it by hand; the disk is right.
                self.index().remove(key);
                Ok(None)
            }
            Some(fd) => read_record(fd.as_fd(), key).map(Some),
        }
    }

    /// Opens a volume's directory.
    ///
    /// # Errors
    /// There is none, or a system call failed.
    pub fn open_volume(&self, key: &Key) -> Result<VolumeDir, StoreError> {
        Ok(dir::open_dir(self.directories.volumes.as_fd(), key.as_str())?.into())
    }

    /// Begins a volume: an empty `incoming/<key>`, whatever a dead run left there.
    ///
    /// # Errors
    /// A system call failed.
    pub fn begin(&self, key: &Key, host: &dyn Host) -> Result<Incoming<'_>, StoreError> {
        let incoming = self.directories.incoming.as_fd();
        remove::tree(incoming, OsStr::new(key.as_str()), Disposal::Remove, host)?;
        dir::make_dir(incoming, key.as_str())?;
        fault::point!("store.begin.made").map_err(|e| StoreError::io("begin", key.as_str(), e))?;
        let fd = dir::open_dir(incoming, key.as_str())?;
        Ok(Incoming { pool: self, key: key.clone(), dir: fd.into() })
    }

    /// Replaces a volume's record.
    ///
    /// # Errors
    /// A system call failed; the old record still holds.
    pub fn update(&self, record: &Record) -> Result<(), StoreError> {
        let volume = &record.volume;
        let fd = dir::open_dir(self.directories.volumes.as_fd(), volume.key.as_str())?;
        dir::write_file(fd.as_fd(), RECORD, &record.to_text()?)?;
        self.index().insert(volume.key.clone(), whole(record));
        Ok(())
    }

    /// Takes a volume out of `volumes/`: from then on it does not exist. Answers its name in the grave's directory.
    ///
    /// # Errors
    /// A system call failed; then the volume may or may not be gone, and a repeat finds out.
    pub fn bury(&self, record: &Record, grave: Grave) -> Result<String, StoreError> {
        let volume = &record.volume;
        let name = format!("{}.{}", volume.key, volume.generation);
        let (from, to) = (self.directories.volumes.as_fd(), self.directories.grave(grave));
        fault::point!("store.bury.start").map_err(|e| StoreError::io("bury", &name, e))?;
        let (key, grave_name) = (OsStr::new(volume.key.as_str()), OsStr::new(&name));
        dir::rename_new(from, key, to, grave_name)?;
        let flushed = fault::point!("store.bury.renamed")
            .map_err(|e| StoreError::io("bury", &name, e))
            .and_then(|()| dir::sync(to, grave.directory()))
            .and_then(|()| dir::sync(from, "volumes"));
        if let Err(error) = flushed {
            // Not durable, so it must not be answered for: the repeat does it again.
            take_back(to, grave_name, from, key);
            return Err(error);
        }
        let mut index = self.index();
        index.remove(&volume.key);
        index.insert_grave(format!("{}/{name}", grave.directory()), volume.size);
        drop(index);
        Ok(name)
    }

    /// What the driver has put into `trash/`; anything else there is somebody else's and left alone.
    ///
    /// # Errors
    /// A system call failed.
    pub fn trash(&self) -> Result<Vec<OsString>, StoreError> {
        let mut names = dir::names(self.directories.trash.as_fd())?;
        let index = self.index();
        // One that the index does not know yet is being buried, and may still be taken back.
        names.retain(|name| {
            grave_key(name).is_some() && index.has_grave(&format!("trash/{}", name.display()))
        });
        Ok(names)
    }

    /// Removes one entry of `trash/`; it is overwritten first when its record asks for that, or cannot be read.
    ///
    /// # Errors
    /// Something in it cannot be removed; what is left stays in `trash/`.
    pub fn dispose(&self, name: &OsStr, host: &dyn Host) -> Result<(), StoreError> {
        let trash = self.directories.trash.as_fd();
        let disposal = match grave_record(trash, name) {
            Some(record) if record.volume.on_delete != OnDelete::Wipe => Disposal::Remove,
            Some(_) | None => Disposal::Overwrite,
        };
        remove::tree(trash, name, disposal, host)?;
        dir::sync(trash, "trash")?;
        self.index().remove_grave(&format!("trash/{}", name.to_string_lossy()));
        Ok(())
    }

    fn wipe_incoming(&self, host: &dyn Host) -> Result<(), StoreError> {
        let incoming = self.directories.incoming.as_fd();
        for name in dir::names(incoming)? {
            if name.to_str().and_then(|name| name.parse::<Key>().ok()).is_none() {
                tracing::warn!(pool = %self.path.display(), entry = %name.display(), "not ours; left alone");
                continue;
            }
            // What cannot be removed now (a full or broken disk) is in nobody's way: `begin` tries again.
            if let Err(error) = remove::tree(incoming, &name, Disposal::Remove, host) {
                tracing::warn!(pool = %self.path.display(), entry = %name.display(), %error, "cannot remove what was not born");
            }
        }
        Ok(())
    }

    fn scan(&self) -> Result<(), StoreError> {
        let mut index = Index::default();
        let volumes = self.directories.volumes.as_fd();
        for name in dir::names(volumes)? {
            let Some(key) = name.to_str().and_then(|name| name.parse::<Key>().ok()) else {
                tracing::warn!(pool = %self.path.display(), entry = %name.display(), "not a volume; left alone");
                continue;
            };
            index.insert(key.clone(), scan_one(volumes, &key));
        }
        for grave in Grave::ALL {
            for name in dir::names(self.directories.grave(grave))? {
                let record = grave_record(self.directories.grave(grave), &name);
                let size = record.map_or(ByteSize::ZERO, |record| record.volume.size);
                index.insert_grave(format!("{}/{}", grave.directory(), name.display()), size);
            }
        }
        *self.index() = index;
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

/// Undoes a rename that could not be flushed.
fn take_back(from: BorrowedFd<'_>, old: &OsStr, to: BorrowedFd<'_>, new: &OsStr) {
    if let Err(error) = dir::rename_new(from, old, to, new) {
        tracing::error!(entry = %old.display(), %error, "cannot take back a rename that could not be flushed");
    }
}

fn whole(record: &Record) -> Entry {
    let volume = &record.volume;
    let inline = volume.pod.is_some();
    Entry::Whole { generation: volume.generation.clone(), size: volume.size, inline }
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

/// The key in the name of a grave, `<key>.<generation>`; `None` when it is not one of ours.
fn grave_key(name: &OsStr) -> Option<Key> {
    let (key, generation) = name.to_str()?.split_once('.')?;
    generation.parse::<crate::volume::Generation>().ok()?;
    key.parse().ok()
}

/// The record in a grave; `None` when it cannot be read.
pub(super) fn grave_record(parent: BorrowedFd<'_>, name: &OsStr) -> Option<Record> {
    let fd = dir::open_dir(parent, name).ok()?;
    read_record(fd.as_fd(), &grave_key(name)?).ok()
}

fn scan_one(volumes: BorrowedFd<'_>, key: &Key) -> Entry {
    let damaged = |error: &StoreError, size| Entry::Damaged { reason: error.to_string(), size };
    let fd = match dir::open_dir(volumes, key.as_str()) {
        Ok(fd) => fd,
        Err(error) => return damaged(&error, ByteSize::ZERO),
    };
    match read_record(fd.as_fd(), key) {
        Ok(record) => whole(&record),
        Err(error) => {
            let image = dir::stat(fd.as_fd(), OsStr::new(IMAGE)).ok().flatten();
            let size = image.and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0);
            damaged(&error, ByteSize::new(size))
        }
    }
}

/// A volume that is being born in `incoming/`. Dropped without [`Incoming::commit`], it is removed by the next
/// [`Pool::begin`] of its key or the next start.
#[derive(Debug)]
pub struct Incoming<'a> {
    pool: &'a Pool,
    key: Key,
    dir: VolumeDir,
}

impl Incoming<'_> {
    /// Its directory, to be filled.
    #[must_use]
    pub const fn dir(&self) -> &VolumeDir {
        &self.dir
    }

    /// Makes the volume exist. What is in it has been flushed by whoever wrote it.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or a system call failed; then the volume does not exist.
    pub fn commit(&self, record: &Record) -> Result<(), StoreError> {
        let directories = &self.pool.directories;
        let (from, to) = (directories.incoming.as_fd(), directories.volumes.as_fd());
        let name = OsStr::new(self.key.as_str());
        let failed = |e: std::io::Error| StoreError::io("commit", name, e);
        dir::write_file(self.dir.as_fd(), RECORD, &record.to_text()?)?;
        fault::point!("store.commit.written").map_err(failed)?;
        dir::rename_new(from, name, to, name)?;
        let flushed = fault::point!("store.commit.renamed")
            .map_err(failed)
            .and_then(|()| dir::sync(to, "volumes"));
        if let Err(error) = flushed {
            // Not durable, so it must not be seen: a retry would answer OK for it without flushing.
            take_back(to, name, from, name);
            return Err(error);
        }
        self.pool.index().insert(self.key.clone(), whole(record));
        dir::sync(from, "incoming")
    }

    /// Removes what there is of it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn abandon(self, host: &dyn Host) -> Result<(), StoreError> {
        let incoming = self.pool.directories.incoming.as_fd();
        remove::tree(incoming, OsStr::new(self.key.as_str()), Disposal::Remove, host)
    }
}
