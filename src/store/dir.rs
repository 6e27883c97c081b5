//! Directory descriptors: every path of a pool is resolved beneath one, without links and without crossing a mount.
//!
//! Names given here come from `store`'s own constants, keys and generations, or from a directory's listing.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use super::StoreError;
use crate::fault;

/// The suffix of a file that is being written. Whatever ends so is a leftover: never read, replaced by the next write.
pub(super) const TEMPORARY_SUFFIX: &str = ".new";

/// A record larger than this is not one of ours.
const RECORD_LIMIT: u64 = 1 << 20;

fn how(flags: OFlag, mode: Mode) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    )
}

/// Why a name could not be opened. A link, or something that is no directory, under one of our names is damage of what has
/// that name; the kernel's word for it sounds like a broken disk.
fn unopened(name: &Path, error: Errno) -> StoreError {
    let reasons = [
        (Errno::ELOOP, "a symbolic link lies there, which is not followed"),
        (Errno::ENOTDIR, "what lies there is not a directory"),
        (Errno::EXDEV, "a filesystem is mounted there"),
    ];
    match reasons.into_iter().find(|(known, _)| *known == error) {
        Some((_, reason)) => {
            StoreError::Damaged { path: name.to_owned(), reason: reason.to_owned() }
        }
        None => StoreError::io("open", name, error),
    }
}

/// Opens a file or directory beneath `parent`; the error is the kernel's.
pub(super) fn beneath(parent: BorrowedFd<'_>, name: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    openat2(parent, name, how(flags, Mode::empty()))
}

/// Opens a file or directory beneath `parent`.
pub(super) fn open(
    parent: BorrowedFd<'_>,
    name: impl AsRef<Path>,
    flags: OFlag,
) -> Result<OwnedFd, StoreError> {
    let name = name.as_ref();
    beneath(parent, name, flags).map_err(|e| unopened(name, e))
}

/// Opens a directory beneath `parent`.
pub(super) fn open_dir(
    parent: BorrowedFd<'_>,
    name: impl AsRef<Path>,
) -> Result<OwnedFd, StoreError> {
    open(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// The same; `None` when there is nothing of that name.
pub(super) fn find_dir(
    parent: BorrowedFd<'_>,
    name: impl AsRef<Path>,
) -> Result<Option<OwnedFd>, StoreError> {
    let name = name.as_ref();
    match openat2(parent, name, how(OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(unopened(name, e)),
    }
}

/// Makes a new regular file beneath `parent`; it must not exist.
pub(super) fn create_file(parent: BorrowedFd<'_>, name: &str) -> Result<std::fs::File, StoreError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    fault::step!("step.store.create", openat2(parent, name, how(flags, mode)))
        .map(Into::into)
        .map_err(|e| StoreError::io("create", name, e))
}

/// Makes a directory that only root may enter; one that exists is fine.
pub(super) fn make_dir(parent: BorrowedFd<'_>, name: &str) -> Result<(), StoreError> {
    match fault::step!("step.store.mkdir", mkdirat(parent, name, Mode::S_IRWXU)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(e) => Err(StoreError::io("create the directory", name, e)),
    }
}

/// Flushes a file or directory.
pub(super) fn sync(fd: impl AsFd, name: impl AsRef<Path>) -> Result<(), StoreError> {
    fault::step!("step.store.flush", fsync(fd)).map_err(|e| StoreError::io("flush", name, e))
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, StoreError> {
    some_names(dir, usize::MAX)
}

/// At most `most` of them.
pub(super) fn some_names(dir: BorrowedFd<'_>, most: usize) -> Result<Vec<OsString>, StoreError> {
    // A descriptor of its own: reading a directory moves its position.
    let listing = open_dir(dir, ".")
        .and_then(|fd| Dir::from_fd(fd).map_err(|e| StoreError::io("list", ".", e)))?;
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|e| StoreError::io("list", ".", e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
        if names.len() >= most {
            break;
        }
    }
    Ok(names)
}

/// What a name is, links not followed; `None` when there is nothing.
pub(super) fn stat(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileStat>, StoreError> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(StoreError::io("look at", name, e)),
    }
}

/// The type bits of a mode are those of `kind`.
pub(super) fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

/// Removes a name that is not a directory.
pub(super) fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
    match fault::step!("step.store.unlink", unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(StoreError::io("remove", name, e)),
    }
}

/// Removes an empty directory.
pub(super) fn rmdir(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
    match fault::step!("step.store.rmdir", unlinkat(parent, name, UnlinkatFlags::RemoveDir)) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(StoreError::io("remove the directory", name, e)),
    }
}

/// Renames, never over anything. `EEXIST` is [`StoreError::Exists`].
pub(super) fn rename_new(
    from: BorrowedFd<'_>,
    old: &OsStr,
    to: BorrowedFd<'_>,
    new: &OsStr,
) -> Result<(), StoreError> {
    let how = RenameFlags::RENAME_NOREPLACE;
    match fault::step!("step.store.rename", renameat2(from, old, to, new, how)) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => Err(StoreError::Exists { path: new.into() }),
        Err(e) => Err(StoreError::io("rename", old, e)),
    }
}

/// Reads a small file whole; `None` when it does not exist.
pub(super) fn read_file(parent: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file: std::fs::File = match openat2(parent, name, how(flags, Mode::empty())) {
        Ok(fd) => fd.into(),
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(unopened(name.as_ref(), e)),
    };
    let stat = fstat(&file).map_err(|e| StoreError::io("look at", name, e))?;
    if !is_kind(&stat, SFlag::S_IFREG) {
        let reason = "it is not a regular file".to_owned();
        return Err(StoreError::Damaged { path: name.into(), reason });
    }
    let mut content = Vec::new();
    let read = file.take(RECORD_LIMIT + 1).read_to_end(&mut content);
    read.map_err(|e| StoreError::io("read", name, e))?;
    if content.len() as u64 > RECORD_LIMIT {
        let reason = format!("it is longer than {RECORD_LIMIT} bytes");
        return Err(StoreError::Damaged { path: name.into(), reason });
    }
    Ok(Some(content))
}

/// Replaces a file so that after a crash at any instant either the old or the new content is there, whole.
pub(super) fn write_file(
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
) -> Result<(), StoreError> {
    let io = |operation: &'static str| move |e: std::io::Error| StoreError::io(operation, name, e);
    let temporary = format!("{name}{TEMPORARY_SUFFIX}");
    // A leftover of a crash; its content was never promised to anybody.
    unlink(dir, OsStr::new(&temporary))?;
    let mut file = create_file(dir, &temporary)?;
    fault::point!("store.write.created").map_err(io("write"))?;
    fault::step!("step.store.write", file.write_all(content)).map_err(io("write"))?;
    // The content must be on disk before the name leads to it, or a power cut leaves an empty file.
    fault::step!("step.store.flush", file.sync_all()).map_err(io("flush"))?;
    fault::point!("store.write.flushed").map_err(io("flush"))?;
    fault::step!("step.store.replace", renameat(dir, temporary.as_str(), dir, name))
        .map_err(|e| StoreError::io("rename", name, e))?;
    fault::point!("store.write.renamed").map_err(io("rename"))?;
    // The rename itself lives in the directory.
    sync(dir, name)
}
