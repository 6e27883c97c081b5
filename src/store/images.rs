//! `<root>/images/`: the images of managed pools. `<name>.img` is a pool's; `<name>.img.new` is being made and nobody's yet.
//!
//! Invariants: a rename makes an image, never over another one; an image that has its name is never removed or truncated;
//! who works on one holds its lock, also while it has no name yet.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate};
use nix::sys::stat::SFlag;
use nix::unistd::ftruncate;

use super::{StoreError, dir, marker};
use crate::fault;
use crate::host::FileIdentity;
use crate::telemetry::{self, Reason};
use crate::volume::ByteSize;

/// The images of a root directory.
#[derive(Debug)]
pub struct Images {
    path: PathBuf,
    fd: OwnedFd,
}

/// An open image, locked. The lock is given up when this is dropped.
#[derive(Debug)]
pub struct PoolImage {
    file: Flock<OwnedFd>,
    path: PathBuf,
}

fn image_name(pool: &str) -> String {
    format!("{pool}.img")
}

fn new_name(pool: &str) -> String {
    format!("{pool}.img{}", dir::TEMPORARY_SUFFIX)
}

impl Images {
    /// Opens `<root>/images`, making it when it is not there.
    ///
    /// # Errors
    /// A system call failed.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("images");
        marker::make_path(&path)?;
        Self::find(root)?.ok_or_else(|| StoreError::io("open", &path, Errno::ENOENT))
    }

    /// The same without making it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn find(root: &Path) -> Result<Option<Self>, StoreError> {
        let path = root.join("images");
        Ok(marker::open_path(&path)?.map(|fd| Self { path, fd }))
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the image of a pool is.
    #[must_use]
    pub fn path_of(&self, pool: &str) -> PathBuf {
        self.path.join(image_name(pool))
    }

    fn open_file(&self, name: &str, flags: OFlag) -> Result<Option<OwnedFd>, StoreError> {
        let path = self.path.join(name);
        match dir::stat(self.fd.as_fd(), OsStr::new(name))? {
            None => return Ok(None),
            Some(stat) if dir::is_kind(&stat, SFlag::S_IFREG) => {}
            Some(_) => {
                return Err(StoreError::io("use (it is not a regular file)", path, Errno::EINVAL));
            }
        }
        match dir::open(self.fd.as_fd(), name, flags | OFlag::O_NONBLOCK) {
            Ok(fd) => Ok(Some(fd)),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn lock(&self, fd: OwnedFd, name: &str) -> Result<PoolImage, StoreError> {
        let path = self.path.join(name);
        match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(PoolImage { file, path }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StoreError::Locked { path }),
            Err((_, e)) => Err(StoreError::io("lock", path, e)),
        }
    }

    /// Opens and locks a pool's image; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process works on it.
    pub fn image(&self, pool: &str) -> Result<Option<PoolImage>, StoreError> {
        let name = image_name(pool);
        let fd = self.open_file(&name, OFlag::O_RDWR)?;
        fd.map(|fd| self.lock(fd, &name)).transpose()
    }

    /// Opens a pool's image for looking at it, without a lock.
    ///
    /// # Errors
    /// A system call failed.
    pub fn image_to_read(&self, pool: &str) -> Result<Option<OwnedFd>, StoreError> {
        self.open_file(&image_name(pool), OFlag::O_RDONLY)
    }

    /// What an interrupted making left is there.
    ///
    /// # Errors
    /// A system call failed.
    pub fn has_leftover(&self, pool: &str) -> Result<bool, StoreError> {
        Ok(dir::stat(self.fd.as_fd(), OsStr::new(&new_name(pool)))?.is_some())
    }

    /// Removes what an interrupted making left. It never had the name of an image, so it never was anybody's.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when a program that an earlier run started is still at work on it.
    pub fn remove_leftover(&self, pool: &str) -> Result<(), StoreError> {
        let name = new_name(pool);
        let Some(fd) = self.open_file(&name, OFlag::O_RDONLY)? else { return Ok(()) };
        let _mine = self.lock(fd, &name)?;
        dir::unlink(self.fd.as_fd(), OsStr::new(&name))?;
        telemetry::cleanup(Reason::ManagedPool);
        Ok(())
    }

    /// Makes an empty image that has no name yet.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when a program that an earlier run started is still at work on the one before.
    pub fn begin(&self, pool: &str) -> Result<PoolImage, StoreError> {
        self.remove_leftover(pool)?;
        let name = new_name(pool);
        let file = dir::create_file(self.fd.as_fd(), &name)?;
        fault::point!("managed.image.created").map_err(|e| StoreError::io("create", &name, e))?;
        self.lock(file.into(), &name)
    }

    /// Gives a finished image its name. From here on it is the pool's.
    ///
    /// # Errors
    /// [`StoreError::Exists`], or a system call failed.
    pub fn commit(&self, pool: &str) -> Result<(), StoreError> {
        let (new, name) = (new_name(pool), image_name(pool));
        let fd = self.fd.as_fd();
        fault::point!("managed.image.finished").map_err(|e| StoreError::io("rename", &new, e))?;
        dir::rename_new(fd, OsStr::new(&new), fd, OsStr::new(&name))?;
        fault::point!("managed.image.renamed").map_err(|e| StoreError::io("flush", &name, e))?;
        dir::sync(fd, &self.path)
    }

    /// Flushes names: what an earlier run renamed is on disk from here on.
    ///
    /// # Errors
    /// A system call failed.
    pub fn sync(&self) -> Result<(), StoreError> {
        dir::sync(self.fd.as_fd(), &self.path)
    }
}

impl AsFd for PoolImage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PoolImage {
    fn io(&self, operation: &'static str) -> impl Fn(std::io::Error) -> StoreError {
        move |e| StoreError::io(operation, &self.path, e)
    }

    fn metadata(&self) -> Result<std::fs::Metadata, StoreError> {
        let look = self.io("look at");
        let file = self.file.try_clone().map(std::fs::File::from).map_err(&look)?;
        file.metadata().map_err(&look)
    }

    /// What identifies it to the kernel.
    ///
    /// # Errors
    /// A system call failed.
    pub fn identity(&self) -> Result<FileIdentity, StoreError> {
        Ok(FileIdentity::of(&self.metadata()?))
    }

    /// Its length.
    ///
    /// # Errors
    /// A system call failed.
    pub fn length(&self) -> Result<ByteSize, StoreError> {
        Ok(ByteSize::new(self.metadata()?.len()))
    }

    /// What it takes of its filesystem.
    ///
    /// # Errors
    /// A system call failed.
    pub fn allocated(&self) -> Result<ByteSize, StoreError> {
        Ok(ByteSize::new(self.metadata()?.blocks().saturating_mul(512)))
    }

    /// Another description of the same file, without the lock: a loop device keeps what it is given.
    ///
    /// # Errors
    /// A system call failed.
    pub fn without_lock(&self) -> Result<OwnedFd, StoreError> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
        file.map(OwnedFd::from).map_err(self.io("open"))
    }

    /// Makes it longer, its new blocks reserved before it is; a longer one stays. Repeated after a kill it goes on.
    ///
    /// # Errors
    /// A system call failed; then it is as long as it was, and keeps nothing beyond.
    pub fn extend(&self, to: ByteSize, sparse: bool) -> Result<(), StoreError> {
        let from = self.length()?;
        if from >= to {
            return Ok(());
        }
        if !sparse {
            let beyond = to.saturating_sub(from);
            let reserved = fallocate(
                self.file.as_fd(),
                FallocateFlags::FALLOC_FL_KEEP_SIZE,
                from.as_i64(),
                beyond.as_i64(),
            );
            let reserved = reserved.map_err(std::io::Error::from);
            if let Err(error) = reserved.and(fault::point!("managed.image.reserved")) {
                // To the length that it has: only what was reserved behind its end is given back.
                ftruncate(self.file.as_fd(), from.as_i64())
                    .map_err(|e| self.io("give back")(e.into()))?;
                return Err(self.io("reserve the blocks of")(error));
            }
        }
        // Longer, never shorter: the lock keeps others from it, and this process has one thread for a pool.
        ftruncate(self.file.as_fd(), to.as_i64()).map_err(|e| self.io("extend")(e.into()))?;
        fault::point!("managed.image.extended").map_err(self.io("extend"))?;
        dir::sync(self.file.as_fd(), &self.path)
    }

    /// Reserves the blocks of its holes; what is written stays.
    ///
    /// # Errors
    /// A system call failed.
    pub fn fill_holes(&self) -> Result<(), StoreError> {
        let length = self.length()?;
        fault::point!("managed.image.holes").map_err(self.io("reserve the blocks of"))?;
        fallocate(self.file.as_fd(), FallocateFlags::empty(), 0, length.as_i64())
            .map_err(|e| self.io("reserve the blocks of")(e.into()))?;
        dir::sync(self.file.as_fd(), &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_gets_its_name_last_and_only_once() {
        let home = tempfile::tempdir().unwrap();
        assert!(Images::find(home.path()).unwrap().is_none());
        let images = Images::open(home.path()).unwrap();
        assert!(images.image("p").unwrap().is_none());
        let begun = images.begin("p").unwrap();
        assert!(matches!(images.begin("p"), Err(StoreError::Locked { .. })), "it is at work");
        drop(begun);
        let begun = images.begin("p").unwrap();
        begun.extend(ByteSize::mib(1), false).unwrap();
        assert_eq!(begun.length().unwrap(), ByteSize::mib(1));
        assert!(begun.allocated().unwrap() >= ByteSize::mib(1));
        images.commit("p").unwrap();
        assert!(matches!(images.image("p"), Err(StoreError::Locked { .. })), "the lock stays");
        let identity = begun.identity().unwrap();
        drop(begun);
        let image = images.image("p").unwrap().unwrap();
        assert_eq!(image.identity().unwrap(), identity);
        let _second = images.begin("p").unwrap();
        assert!(matches!(images.commit("p"), Err(StoreError::Exists { .. })), "never over one");
    }

    #[test]
    fn an_image_never_gets_shorter_and_holes_are_filled() {
        let home = tempfile::tempdir().unwrap();
        let images = Images::open(home.path()).unwrap();
        let image = images.begin("p").unwrap();
        image.extend(ByteSize::mib(2), true).unwrap();
        assert!(image.allocated().unwrap() < ByteSize::mib(2));
        image.extend(ByteSize::mib(1), false).unwrap();
        assert_eq!(image.length().unwrap(), ByteSize::mib(2));
        image.fill_holes().unwrap();
        assert!(image.allocated().unwrap() >= ByteSize::mib(2));
        let other = image.without_lock().unwrap();
        drop(image);
        assert!(images.begin("p").is_ok(), "{other:?} does not hold the lock");
    }
}
