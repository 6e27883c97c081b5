//! What can go wrong with a pool.

use std::io;
use std::path::{Path, PathBuf};

/// A failure in a pool. `Display` leaves out the source; whoever prints it prints the chain.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what, relative to the pool where it lies in one.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A record or marker cannot be read or does not belong where it lies.
    #[error("{} is damaged: {reason}; nothing was changed: {}", path.display(), remedy(path))]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A record or marker was written by a later release in a way that this one cannot read.
    #[error("{} needs a later release of orlop (it asks for reader {needs}, this one is reader {reader}); nothing was changed: run that release", path.display())]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// The reader it asks for.
        needs: u32,
        /// The reader this is.
        reader: u32,
    },
    /// The directory cannot become a pool.
    #[error("{} cannot become a pool: it holds {found:?}; choose an empty or absent directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One name that is in it.
        found: String,
    },
    /// Another daemon writes to the pool.
    #[error("{} is locked by another orlop process; stop it first", path.display())]
    Locked {
        /// The lock file or directory.
        path: PathBuf,
    },
    /// A file's flags cannot be changed.
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    /// Something already lies where a new volume is to go.
    #[error("{} exists already", path.display())]
    Exists {
        /// The place.
        path: PathBuf,
    },
}

/// What to do about a file that is damaged.
fn remedy(path: &Path) -> &'static str {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name == super::marker::MARKER {
        "restore it from a copy, or write it anew with the uuid that state/ in the driver's root directory has for the pool"
    } else if name.ends_with(".pool.json") {
        "restore it from a copy, or, while the pool's disk is mounted, remove it: then the pool that lies there is taken over"
    } else if name.ends_with(".managed.json") {
        "restore it from a copy"
    } else {
        "restore it from a copy, or move its directory out of the pool to give it up"
    }
}

impl StoreError {
    /// The kernel's error number, when a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        match self {
            Self::Io { source, .. } => source.raw_os_error().map(nix::errno::Errno::from_raw),
            Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::NotEmpty { .. }
            | Self::Locked { .. }
            | Self::Exists { .. }
            | Self::Host(_) => None,
        }
    }

    /// What failed, and what the kernel said.
    pub(super) fn with_cause(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }

    /// There is nothing of that name.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::NotEmpty { .. }
            | Self::Locked { .. }
            | Self::Exists { .. }
            | Self::Host(_) => false,
        }
    }

    /// The kernel said that this is not permitted (not: that permission is lacking).
    pub(super) fn is_not_permitted(&self) -> bool {
        self.errno() == Some(nix::errno::Errno::EPERM)
    }

    /// A failed system call.
    pub fn io(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// The kernel said that there is no room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Damaged { .. }
            | Self::TooNew { .. }
            | Self::NotEmpty { .. }
            | Self::Locked { .. }
            | Self::Exists { .. }
            | Self::Host(_) => false,
        }
    }
}
