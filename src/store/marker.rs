//! `pool.json`: what makes a directory a pool.
//!
//! Becoming a pool is an explicit act ([`init`]); nothing else ever makes a marker. An unmounted disk looks exactly
//! like an empty directory, so an absent marker is never a reason to make one.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::merge::text_over;
use super::snapshot::{readable, typed};
use super::{StoreError, dir};
use crate::fault;
use crate::volume::{IdError, PoolUuid};

/// The marker's file name.
pub(super) const MARKER: &str = "pool.json";

/// The directories of a pool.
pub(super) const DIRECTORIES: [&str; 7] =
    ["incoming", "volumes", "snapshots", "groups", "archive", "retained", "trash"];

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The pool's identity.
    pub uuid: PoolUuid,
    /// The name it was made under; the configuration may give it another.
    pub name: String,
    /// The identity that `orlop pool new-uuid` took from it; `state/` may still know it by that.
    pub previous: Option<PoolUuid>,
}

impl Marker {
    /// The pool has this identity, or had it before its last change.
    #[must_use]
    pub fn is_or_was(&self, uuid: &PoolUuid) -> bool {
        self.uuid == *uuid || self.previous.as_ref() == Some(uuid)
    }
}

/// What a directory looks like to somebody who wants a pool there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolLook {
    /// There is no such directory.
    Absent,
    /// Nothing is in it, or only what an interrupted [`init`] leaves.
    Empty,
    /// A pool.
    Pool(Marker),
    /// Something else; one name that is in it.
    Foreign(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarkerFile {
    format: u32,
    min_reader: u32,
    uuid: String,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous_uuid: Option<String>,
}

/// Reads the marker in a directory.
pub(super) fn read(pool: BorrowedFd<'_>) -> Result<Option<Marker>, StoreError> {
    let Some(content) = dir::read_file(pool, MARKER)? else {
        return Ok(None);
    };
    parse(&content).map(Some)
}

/// Reads the text of a marker.
pub(super) fn parse(content: &[u8]) -> Result<Marker, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: MARKER.into(), reason };
    let raw = readable(MARKER.as_ref(), content)?;
    let file: MarkerFile = typed(raw).map_err(damaged)?;
    let uuid = |field: &'static str, text: &str| {
        text.parse().map_err(|e: IdError| damaged(format!("{field}: {e}")))
    };
    let previous = file.previous_uuid.as_deref();
    let previous = previous.map(|text| uuid("previousUuid", text)).transpose()?;
    Ok(Marker { uuid: uuid("uuid", &file.uuid)?, name: file.name, previous })
}

/// Writes the marker. Fields of the one that it replaces that this release does not know are kept.
pub(super) fn write(pool: BorrowedFd<'_>, marker: &Marker) -> Result<(), StoreError> {
    let file = MarkerFile {
        format: 1,
        min_reader: 1,
        uuid: marker.uuid.to_string(),
        name: marker.name.clone(),
        previous_uuid: marker.previous.as_ref().map(ToString::to_string),
    };
    let before = dir::read_file(pool, MARKER)?;
    let raw = before.map(|content| readable(MARKER.as_ref(), &content)).transpose()?;
    dir::write_file(pool, MARKER, &text_over(raw.unwrap_or_default(), &file, MARKER)?)
}

/// Opens the directory of a pool by its path; the one place where a path from outside is followed.
pub(super) fn open_path(path: &Path) -> Result<Option<OwnedFd>, StoreError> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match open(path, flags, nix::sys::stat::Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(e) => Err(StoreError::io("open", path, e)),
    }
}

/// Opens a directory that must be there.
///
/// # Errors
/// It is not, or a system call failed.
pub fn open_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    open_path(path)?.ok_or_else(|| StoreError::io("open", path, nix::errno::Errno::ENOENT))
}

/// What lies at a path.
///
/// # Errors
/// It cannot be read, or a marker is there and damaged.
pub(super) fn look(path: &Path) -> Result<PoolLook, StoreError> {
    let Some(pool) = open_path(path)? else {
        return Ok(PoolLook::Absent);
    };
    if let Some(marker) = read(pool.as_fd())? {
        return Ok(PoolLook::Pool(marker));
    }
    for name in dir::names(pool.as_fd())? {
        if !is_leftover_of_init(pool.as_fd(), &name)? {
            return Ok(PoolLook::Foreign(name.to_string_lossy().into_owned()));
        }
    }
    Ok(PoolLook::Empty)
}

/// An empty directory with one of our names, a marker that was not finished, or what mkfs.ext4 leaves.
fn is_leftover_of_init(pool: BorrowedFd<'_>, name: &OsStr) -> Result<bool, StoreError> {
    let name_text = name.to_string_lossy();
    if name_text == format!("{MARKER}{}", dir::TEMPORARY_SUFFIX) {
        return Ok(true);
    }
    if name_text != "lost+found" && !DIRECTORIES.contains(&name_text.as_ref()) {
        return Ok(false);
    }
    match dir::find_dir(pool, name)? {
        Some(inside) => Ok(dir::names(inside.as_fd())?.is_empty()),
        None => Ok(true),
    }
}

/// Makes a pool of an empty or absent directory. The marker comes last: until it is there, this can be repeated.
///
/// # Errors
/// The directory is not empty, or a system call failed.
pub(super) fn init(path: &Path, marker: &Marker) -> Result<(), StoreError> {
    if let PoolLook::Foreign(found) = look(path)? {
        return Err(StoreError::NotEmpty { path: path.to_owned(), found });
    }
    make_path(path)?;
    let pool =
        open_path(path)?.ok_or_else(|| StoreError::io("open", path, nix::errno::Errno::ENOENT))?;
    for name in DIRECTORIES {
        dir::make_dir(pool.as_fd(), name)?;
    }
    dir::sync(pool.as_fd(), path)?;
    fault::point!("store.init.directories")
        .map_err(|e| StoreError::io("make a pool in", path, e))?;
    write(pool.as_fd(), marker)
}

/// Makes a directory with its parents, mode 0700, and flushes each that is new into its parent.
///
/// # Errors
/// A system call failed.
pub fn make_path(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_path(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(StoreError::io("create the directory", path, e));
        }
        Ok(()) | Err(_) => {}
    }
    match path.parent().map(open_path).transpose()?.flatten() {
        Some(parent) => dir::sync(parent, path),
        None => Ok(()),
    }
}
