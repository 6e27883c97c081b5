//! Data that is not, or not yet, a volume's: looked up by its path once, then held by descriptors.
//!
//! Invariant: no link is followed on the way to it, so its path is the one under which the mount table knows it.
//!
//! Must not: write to it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};

use super::{StoreError, dir};
use crate::host::FileIdentity;

/// A directory or regular file outside of `volumes/`.
#[derive(Debug)]
pub struct Outside {
    path: PathBuf,
    parent: OwnedFd,
    name: OsString,
    file: File,
    identity: FileIdentity,
}

impl Outside {
    /// Opens what lies at an absolute path that ends in a name, for reading.
    ///
    /// # Errors
    /// A link is on the way (ELOOP), it is a mount point (EXDEV), neither a directory nor a regular file, or a system call
    /// failed.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |e| StoreError::io("open", path, e);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(Errno::EINVAL));
        };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let parent = openat2(AT_FDCWD, above, how).map_err(failed)?;
        Self::within(parent, name, path)
    }

    /// The same of a name in a directory that is open.
    pub(super) fn within(parent: OwnedFd, name: &OsStr, path: &Path) -> Result<Self, StoreError> {
        let failed = |e| StoreError::io("open", path, e);
        let absent = || failed(Errno::ENOENT);
        let stat = dir::stat(parent.as_fd(), name)?.ok_or_else(absent)?;
        // Before it is opened: to open a device or a pipe does something to it.
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR | SFlag::S_IFREG => {}
            SFlag::S_IFLNK => return Err(failed(Errno::ELOOP)),
            _ => return Err(failed(Errno::EINVAL)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let file = dir::beneath(parent.as_fd(), name.as_ref(), flags).map_err(failed)?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|e| StoreError::io("look at", path, e))?;
        let identity = FileIdentity::of(&metadata);
        Ok(Self { path: path.to_owned(), parent, name: name.to_owned(), file, identity })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory or file, open for reading.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Which inode it is.
    #[must_use]
    pub const fn identity(&self) -> FileIdentity {
        self.identity
    }

    pub(super) fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_fd()
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// It lies on the filesystem of that directory, as far as the device number tells: on btrfs in the same subvolume.
    ///
    /// # Errors
    /// A system call failed.
    pub fn is_beside(&self, directory: BorrowedFd<'_>) -> Result<bool, StoreError> {
        let failed = |e| StoreError::io("look at", &self.path, e);
        let (here, there) = (fstat(&self.file).map_err(failed)?, fstat(directory).map_err(failed)?);
        Ok(here.st_dev == there.st_dev)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_and_files_are_opened_and_no_link_is_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/inner")).unwrap();
        File::create(root.join("real/file")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for good in ["real", "real/inner", "real/file"] {
            let found = Outside::open(&root.join(good)).unwrap();
            let metadata = std::fs::metadata(root.join(good)).unwrap();
            assert_eq!(found.identity(), FileIdentity::of(&metadata));
            assert!(found.is_beside(File::open(&root).unwrap().as_fd()).unwrap());
        }
        for (bad, errno) in [
            ("link", Errno::ELOOP),
            ("link/inner", Errno::ELOOP),
            ("pipe", Errno::EINVAL),
            ("none", Errno::ENOENT),
            ("none/deeper", Errno::ENOENT),
        ] {
            let error = Outside::open(&root.join(bad)).unwrap_err();
            assert_eq!(error.errno(), Some(errno), "{bad}");
        }
        assert_eq!(Outside::open(Path::new("/proc")).unwrap_err().errno(), Some(Errno::EXDEV));
        assert_eq!(Outside::open(Path::new("/")).unwrap_err().errno(), Some(Errno::EINVAL));
    }
}
