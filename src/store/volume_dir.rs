//! The directory of one volume: what the backends may do in it.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use serde::{Deserialize, Serialize};

use super::{IMAGE, StoreError, dir};
use crate::fault;
use crate::volume::ByteSize;

/// The directory of a volume, or of one that is being born.
#[derive(Debug)]
pub struct VolumeDir {
    fd: OwnedFd,
}

impl From<OwnedFd> for VolumeDir {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl VolumeDir {
    /// Its descriptor.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a directory in it.
    ///
    /// # Errors
    /// It is missing or not a directory.
    pub fn directory(&self, name: &str) -> Result<OwnedFd, StoreError> {
        dir::open_dir(self.as_fd(), name)
    }

    /// Opens the image for reading.
    ///
    /// # Errors
    /// It is missing or not a regular file.
    pub fn image_to_read(&self) -> Result<std::fs::File, StoreError> {
        self.image(OFlag::O_RDONLY)
    }

    /// Opens the image for reading and writing.
    ///
    /// # Errors
    /// It is missing or not a regular file, or the pool is read-only.
    pub fn image_to_write(&self) -> Result<std::fs::File, StoreError> {
        self.image(OFlag::O_RDWR)
    }

    fn image(&self, access: OFlag) -> Result<std::fs::File, StoreError> {
        let fd = dir::open(self.as_fd(), IMAGE, access | OFlag::O_NONBLOCK)?;
        let stat = fstat(&fd).map_err(|e| StoreError::io("look at", IMAGE, e))?;
        if dir::is_kind(&stat, SFlag::S_IFREG) {
            Ok(fd.into())
        } else {
            let reason = "it is not a regular file".to_owned();
            Err(StoreError::Damaged { path: IMAGE.into(), reason })
        }
    }

    /// Makes a new regular file in it.
    ///
    /// # Errors
    /// It exists, or a system call failed.
    pub fn create_file(&self, name: &str) -> Result<std::fs::File, StoreError> {
        dir::create_file(self.as_fd(), name)
    }

    /// Removes an image that is being born; nothing there is fine.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remove_image(&self) -> Result<(), StoreError> {
        dir::unlink(self.as_fd(), IMAGE.as_ref())
    }

    /// Makes a new directory in it that only root may enter, and opens it.
    ///
    /// # Errors
    /// A system call failed.
    pub fn create_directory(&self, name: &str) -> Result<OwnedFd, StoreError> {
        dir::make_dir(self.as_fd(), name)?;
        self.directory(name)
    }

    /// Notes how far a copy into it is, for those who look into `incoming/`. Not flushed: it means nothing after a crash.
    ///
    /// # Errors
    /// A system call failed.
    pub fn note_progress(
        &self,
        source: &str,
        done: ByteSize,
        total: ByteSize,
    ) -> Result<(), StoreError> {
        let progress = CopyProgress {
            source: source.to_owned(),
            done_bytes: done.bytes(),
            total_bytes: total.bytes(),
        };
        let io = |e: std::io::Error| StoreError::io("write", PROGRESS, e);
        let text = serde_json::to_vec(&progress).map_err(|e| io(e.into()))?;
        let new = format!("{PROGRESS}{}", dir::TEMPORARY_SUFFIX);
        dir::unlink(self.as_fd(), new.as_ref())?;
        dir::create_file(self.as_fd(), &new)?.write_all(&text).map_err(io)?;
        let (here, name) = (self.as_fd(), new.as_str());
        fault::step!("step.store.progress", nix::fcntl::renameat(here, name, here, PROGRESS))
            .map_err(|e| io(e.into()))
    }

    /// Takes the note away.
    ///
    /// # Errors
    /// A system call failed.
    pub fn end_progress(&self) -> Result<(), StoreError> {
        dir::unlink(self.as_fd(), PROGRESS.as_ref())
    }
}

/// How far a copy into a directory of `incoming/` is, as it is noted there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyProgress {
    /// What is copied.
    pub source: String,
    /// How much of it is there.
    pub done_bytes: u64,
    /// How much there will be.
    pub total_bytes: u64,
}

/// The note's file name.
pub(super) const PROGRESS: &str = "copying.json";
