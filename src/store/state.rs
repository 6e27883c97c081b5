//! `<root>/state/`: what must be known while a pool is away.
//!
//! `<name>.lock` is held by the one daemon that writes to the pool of that name. `<name>.pool.json` holds its UUID: an
//! unmounted disk looks exactly like an empty directory, and only this tells them apart. `<name>.managed.json` says which
//! filesystem a managed pool is on (see `managed`), and `<name>.growing` is there while that grows. `forgotten/<id>` is the operator's word that a volume will never come
//! back. `frozen/<id>` says that the driver has frozen, or is about to freeze, the filesystem of a volume. `unstaged/<id>`
//! says that a raw block volume was unstaged here, and that its loop device may still be attached.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use super::snapshot::typed;
use super::{StoreError, dir, marker};
use crate::host::{DeviceNumber, FileIdentity};
use crate::volume::{IdError, PoolUuid, VolumeId};

/// The state directory of a root directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    fd: OwnedFd,
}

/// The exclusive right to write to the pool of a name; given up when dropped.
#[derive(Debug)]
pub struct PoolLock {
    _file: Flock<OwnedFd>,
}

/// A lock on the marks of frozen volumes; given up when dropped.
#[derive(Debug)]
pub struct MarksLock {
    _directory: Flock<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KnownPool {
    format: u32,
    uuid: String,
    path: PathBuf,
}

fn growing(pool: &str) -> String {
    format!("{pool}{GROWING}")
}

/// Reads which image a volume was on that was unstaged.
fn parse_mark(content: &[u8]) -> Option<FileIdentity> {
    let mut words = std::str::from_utf8(content).ok()?.split(' ');
    let device =
        DeviceNumber { major: words.next()?.parse().ok()?, minor: words.next()?.parse().ok()? };
    let inode = words.next()?.parse().ok()?;
    words.next().is_none().then_some(FileIdentity { device, inode })
}

/// Reads what is known of a pool.
pub(super) fn parse_known(content: &[u8]) -> Result<PoolUuid, String> {
    let raw = serde_json::from_slice(content).map_err(|e| e.to_string())?;
    let known: KnownPool = typed(raw)?;
    known.uuid.parse().map_err(|e: IdError| format!("uuid: {e}"))
}

const FORGOTTEN: &str = "forgotten";
const FROZEN: &str = "frozen";
const UNSTAGED: &str = "unstaged";
/// The end of the name of a pool's mark.
const GROWING: &str = ".growing";

impl StateDir {
    /// Opens `<root>/state`, making it when it is not there.
    ///
    /// # Errors
    /// A system call failed.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("state");
        marker::make_path(&path)?;
        let fd = marker::open_path(&path)?
            .ok_or_else(|| StoreError::io("open", &path, nix::errno::Errno::ENOENT))?;
        for name in [FORGOTTEN, FROZEN, UNSTAGED] {
            dir::make_dir(fd.as_fd(), name)?;
        }
        dir::sync(&fd, &path)?;
        Ok(Self { path, fd })
    }

    /// Opens `<root>/state` to look at it; `None` when no driver has made it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn find(root: &Path) -> Result<Option<Self>, StoreError> {
        let path = root.join("state");
        Ok(marker::open_path(&path)?.map(|fd| Self { path, fd }))
    }

    /// Where it is, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the lock of a pool name.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has it.
    pub fn lock(&self, pool: &str) -> Result<PoolLock, StoreError> {
        let name = format!("{pool}.lock");
        if dir::stat(self.fd.as_fd(), name.as_ref())?.is_none() {
            match dir::create_file(self.fd.as_fd(), &name) {
                Ok(_) => {}
                // Another process was first; the lock below decides.
                Err(StoreError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        let file = dir::open(self.fd.as_fd(), &name, OFlag::O_RDWR)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(PoolLock { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(StoreError::Locked { path: self.path.join(name) })
            }
            Err((_, e)) => Err(StoreError::io("lock", self.path.join(name), e)),
        }
    }

    /// The UUID that the pool of this name had when it was last here.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn known(&self, pool: &str) -> Result<Option<PoolUuid>, StoreError> {
        let name = format!("{pool}.pool.json");
        let Some(content) = dir::read_file(self.fd.as_fd(), &name)? else {
            return Ok(None);
        };
        let damaged = |reason: String| StoreError::Damaged { path: self.path.join(&name), reason };
        parse_known(&content).map(Some).map_err(damaged)
    }

    /// Remembers the UUID and place of a pool.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remember(&self, pool: &str, uuid: &PoolUuid, path: &Path) -> Result<(), StoreError> {
        let name = format!("{pool}.pool.json");
        let known = KnownPool { format: 1, uuid: uuid.to_string(), path: path.to_owned() };
        let text = serde_json::to_vec_pretty(&known)
            .map_err(|e| StoreError::io("write", &name, std::io::Error::from(e)))?;
        dir::write_file(self.fd.as_fd(), &name, &text)
    }

    /// Records that a volume, snapshot or group whose pool is away is given up: its deletion then succeeds.
    ///
    /// # Errors
    /// A system call failed.
    pub fn forget(&self, id: &impl std::fmt::Display) -> Result<(), StoreError> {
        let forgotten = dir::open_dir(self.fd.as_fd(), FORGOTTEN)?;
        dir::write_file(forgotten.as_fd(), &id.to_string(), b"")
    }

    /// The volume was given up.
    ///
    /// # Errors
    /// A system call failed.
    pub fn is_forgotten(&self, id: &impl std::fmt::Display) -> Result<bool, StoreError> {
        let path = Path::new(FORGOTTEN).join(id.to_string());
        match dir::open(self.fd.as_fd(), &path, OFlag::O_PATH) {
            Ok(_) => Ok(true),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Records that the volume's filesystem is about to be frozen.
    ///
    /// # Errors
    /// A system call failed; then nothing may be frozen.
    pub fn mark_frozen(&self, id: &VolumeId) -> Result<(), StoreError> {
        let frozen = dir::open_dir(self.fd.as_fd(), FROZEN)?;
        dir::write_file(frozen.as_fd(), &id.to_string(), b"")
    }

    /// The volume is marked.
    ///
    /// # Errors
    /// A system call failed.
    pub fn is_marked(&self, id: &VolumeId) -> Result<bool, StoreError> {
        let frozen = dir::open_dir(self.fd.as_fd(), FROZEN)?;
        Ok(dir::stat(frozen.as_fd(), id.to_string().as_ref())?.is_some())
    }

    /// Takes the mark away.
    ///
    /// # Errors
    /// A system call failed; the next start then looks whether the volume is frozen.
    pub fn unmark_frozen(&self, id: &VolumeId) -> Result<(), StoreError> {
        // Not flushed: a mark that comes back after a power cut is about a filesystem that is not mounted any more.
        let frozen = dir::open_dir(self.fd.as_fd(), FROZEN)?;
        dir::unlink(frozen.as_fd(), id.to_string().as_ref())
    }

    /// Records that the filesystem of a managed pool is about to grow, and to be frozen for a moment.
    ///
    /// # Errors
    /// A system call failed; then it may not grow.
    pub fn mark_growing(&self, pool: &str) -> Result<(), StoreError> {
        dir::write_file(self.fd.as_fd(), &growing(pool), b"")
    }

    /// That was recorded, and is not known to have ended.
    ///
    /// # Errors
    /// A system call failed.
    pub fn is_growing(&self, pool: &str) -> Result<bool, StoreError> {
        Ok(dir::stat(self.fd.as_fd(), growing(pool).as_ref())?.is_some())
    }

    /// The pools for which that is recorded, with the paths that they were known to be mounted at.
    ///
    /// # Errors
    /// A system call failed.
    pub fn growing(&self) -> Result<Vec<(String, PathBuf)>, StoreError> {
        let mut found = Vec::new();
        for name in dir::names(self.fd.as_fd())? {
            let Some(pool) = name.to_str().and_then(|name| name.strip_suffix(GROWING)) else {
                continue;
            };
            let known = dir::read_file(self.fd.as_fd(), &format!("{pool}.pool.json"))?;
            let known = known.and_then(|text| serde_json::from_slice::<KnownPool>(&text).ok());
            found.extend(known.map(|known| (pool.to_owned(), known.path)));
        }
        Ok(found)
    }

    /// It has grown, and is not frozen.
    ///
    /// # Errors
    /// A system call failed; the next start then writes the superblock again.
    pub fn unmark_growing(&self, pool: &str) -> Result<(), StoreError> {
        // Not flushed, as with the marks of volumes.
        dir::unlink(self.fd.as_fd(), growing(pool).as_ref())
    }

    /// Says that a living process has marks, until the answer is dropped.
    ///
    /// # Errors
    /// A system call failed.
    pub fn hold_marks(&self) -> Result<MarksLock, StoreError> {
        let lock = self.lock_marks(FlockArg::LockShared)?;
        lock.ok_or_else(|| StoreError::Locked { path: self.path.join(FROZEN) })
    }

    /// Makes sure that no living process has marks, until the answer is dropped; `None` when one has.
    ///
    /// # Errors
    /// A system call failed.
    pub fn own_marks(&self) -> Result<Option<MarksLock>, StoreError> {
        self.lock_marks(FlockArg::LockExclusiveNonblock)
    }

    fn lock_marks(&self, how: FlockArg) -> Result<Option<MarksLock>, StoreError> {
        let frozen = dir::open_dir(self.fd.as_fd(), FROZEN)?;
        match Flock::lock(frozen, how) {
            Ok(lock) => Ok(Some(MarksLock { _directory: lock })),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(StoreError::io("lock", self.path.join(FROZEN), e)),
        }
    }

    /// The volumes that are marked.
    ///
    /// # Errors
    /// A system call failed.
    pub fn frozen(&self) -> Result<Vec<VolumeId>, StoreError> {
        self.marked(FROZEN)
    }

    /// Records that a raw block volume is unstaged, and on which image its loop device is. Not flushed: it outlives the
    /// process, and no loop device outlives the machine.
    ///
    /// # Errors
    /// A system call failed.
    pub fn mark_unstaged(&self, id: &VolumeId, image: FileIdentity) -> Result<(), StoreError> {
        let unstaged = dir::open_dir(self.fd.as_fd(), UNSTAGED)?;
        let name = id.to_string();
        dir::unlink(unstaged.as_fd(), name.as_ref())?;
        let DeviceNumber { major, minor } = image.device;
        let text = format!("{major} {minor} {}", image.inode);
        let mut mark = dir::create_file(unstaged.as_fd(), &name)?;
        mark.write_all(text.as_bytes()).map_err(|e| StoreError::io("write", name, e))
    }

    /// The image that the mark names; `None` when there is no mark. One that was not written to its end tells nothing, and is
    /// taken away.
    ///
    /// # Errors
    /// A system call failed.
    pub fn unstaged_image(&self, id: &VolumeId) -> Result<Option<FileIdentity>, StoreError> {
        let Some(unstaged) = dir::find_dir(self.fd.as_fd(), UNSTAGED)? else { return Ok(None) };
        let name = id.to_string();
        let Some(content) = dir::read_file(unstaged.as_fd(), &name)? else { return Ok(None) };
        let image = parse_mark(&content);
        if image.is_none() {
            dir::unlink(unstaged.as_fd(), name.as_ref())?;
        }
        Ok(image)
    }

    /// Takes that mark away; none is fine.
    ///
    /// # Errors
    /// A system call failed.
    pub fn unmark_unstaged(&self, id: &VolumeId) -> Result<(), StoreError> {
        let Some(unstaged) = dir::find_dir(self.fd.as_fd(), UNSTAGED)? else { return Ok(()) };
        let name = id.to_string();
        match dir::stat(unstaged.as_fd(), name.as_ref())? {
            Some(_) => dir::unlink(unstaged.as_fd(), name.as_ref()),
            None => Ok(()),
        }
    }

    /// The volumes whose loop devices an unstage may have left.
    ///
    /// # Errors
    /// A system call failed.
    pub fn unstaged(&self) -> Result<Vec<VolumeId>, StoreError> {
        self.marked(UNSTAGED)
    }

    fn marked(&self, directory: &str) -> Result<Vec<VolumeId>, StoreError> {
        let marks = dir::open_dir(self.fd.as_fd(), directory)?;
        let names = dir::names(marks.as_fd())?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }
}
