//! What lies in a pool beside its volumes, snapshots and groups: what others put there, and what runs left behind.
//!
//! Must not: change anything, or take a damaged thing for a foreign one. What has a key is ours, whatever it looks like.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::SFlag;

use super::death::{Grave, grave_key};
use super::view::PoolView;
use super::{DATA, IMAGE, Kind, StoreError, dir, marker};
use crate::volume::Key;

/// Something that is no volume, snapshot or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Where, relative to the pool.
    pub place: PathBuf,
    /// What.
    pub kind: StrayKind,
}

/// Why it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayKind {
    /// Nothing of the driver's; it leaves it alone.
    Foreign,
    /// A directory of the pool itself is not there, or not a directory.
    NoDirectory,
    /// Being born, or left by a run that was killed.
    Unborn,
    /// Deleted, and not removed yet.
    Dead,
}

/// Whether a name in a directory of the pool is one of the driver's.
type IsOurs = fn(&str) -> bool;

impl PoolView {
    /// Everything in the pool that is no volume, snapshot or group.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn strays(&self) -> Result<Vec<Stray>, StoreError> {
        let mut strays = Vec::new();
        let mut add = |place: PathBuf, kind| strays.push(Stray { place, kind });
        for name in dir::names(self.directory())? {
            let text = name.to_string_lossy();
            let ours = text == marker::MARKER || marker::DIRECTORIES.contains(&&*text);
            // mkfs.ext4 made that, and a filesystem needs it.
            if !ours && text != "lost+found" && !is_leftover(&name) {
                add(name.into(), StrayKind::Foreign);
            }
        }
        for directory in marker::DIRECTORIES {
            if !is_directory(self.directory(), directory.as_ref())? {
                add(directory.into(), StrayKind::NoDirectory);
                continue;
            }
            let fd = dir::open_dir(self.directory(), directory)?;
            let (is_ours, left) = expected_in(directory);
            for name in dir::names(fd.as_fd())? {
                let place = Path::new(directory).join(&name);
                let ours = name.to_str().is_some_and(is_ours);
                match left {
                    _ if !ours => add(place, StrayKind::Foreign),
                    Some(left) => add(place, left),
                    None => {}
                }
            }
        }
        strays.extend(self.beside_records()?);
        strays.sort_by(|one, other| one.place.cmp(&other.place));
        Ok(strays)
    }

    /// What lies in the directories of volumes and snapshots beside record and data.
    fn beside_records(&self) -> Result<Vec<Stray>, StoreError> {
        let mut found = Vec::new();
        for kind in Kind::ALL {
            let parent = Path::new(kind.directory());
            for key in keys_in(self.directory(), parent)? {
                let own = parent.join(key.as_str());
                for name in names_in(self.directory(), &own)? {
                    if kind == Kind::Group && name.to_str().is_some_and(is_key) {
                        let member = own.join(&name);
                        let inside = names_in(self.directory(), &member)?.into_iter();
                        let foreign = inside.filter(|name| !belongs(Kind::Snapshot, name));
                        found.extend(foreign.map(|name| member.join(name)));
                    } else if !belongs(kind, &name) {
                        found.push(own.join(name));
                    }
                }
            }
        }
        let foreign = |place| Stray { place, kind: StrayKind::Foreign };
        Ok(found.into_iter().map(foreign).collect())
    }

    /// A driver has the pool open now. Takes its lock for a moment when none has.
    ///
    /// # Errors
    /// A system call failed.
    pub fn is_in_use(&self) -> Result<bool, StoreError> {
        let own = dir::open_dir(self.directory(), ".")?;
        match Flock::lock(own, FlockArg::LockSharedNonblock) {
            Ok(_lock) => Ok(false),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, e)) => Err(StoreError::io("lock", ".", e)),
        }
    }
}

/// What the driver puts into a directory of the pool, and what it is when it lies there.
fn expected_in(directory: &str) -> (IsOurs, Option<StrayKind>) {
    let is_grave: IsOurs = |name| grave_key(OsStr::new(name)).is_some();
    match directory {
        "incoming" => (|name| is_key(Kind::of_name(name).1), Some(StrayKind::Unborn)),
        "trash" => (is_grave, Some(StrayKind::Dead)),
        _ if Grave::ALL.iter().any(|grave| grave.directory() == directory) => (is_grave, None),
        _ => (is_key, None),
    }
}

fn is_key(name: &str) -> bool {
    name.parse::<Key>().is_ok()
}

/// A file that was being written when a run was killed: never read, and replaced by the next write.
fn is_leftover(name: &OsStr) -> bool {
    name.to_string_lossy().ends_with(dir::TEMPORARY_SUFFIX)
}

/// A name that the driver gives to what lies in the directory of a thing.
fn belongs(kind: Kind, name: &OsStr) -> bool {
    let data = kind != Kind::Group && (name == DATA || name == IMAGE);
    data || name == kind.record() || is_leftover(name)
}

fn is_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, StoreError> {
    let stat = dir::stat(parent, name)?;
    Ok(stat.is_some_and(|stat| dir::is_kind(&stat, SFlag::S_IFDIR)))
}

/// The keys in a directory of the pool.
fn keys_in(pool: BorrowedFd<'_>, directory: &Path) -> Result<Vec<Key>, StoreError> {
    let names = names_in(pool, directory)?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// The names in a directory beneath the pool; none where there is no directory, of which others tell.
fn names_in(pool: BorrowedFd<'_>, directory: &Path) -> Result<Vec<OsString>, StoreError> {
    match dir::find_dir(pool, directory) {
        Ok(Some(fd)) => dir::names(fd.as_fd()),
        Ok(None) | Err(_) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Marker, Pool};
    use crate::volume::PoolUuid;

    #[test]
    fn what_others_put_into_a_pool_is_found_at_every_depth() {
        let temporary = tempfile::tempdir().unwrap();
        let uuid = PoolUuid::from_bits([1; 16]);
        let marker = Marker { uuid, name: "p".to_owned(), previous: None };
        Pool::init(temporary.path(), &marker).unwrap();
        let key = Key::of_name("a");
        let other = Key::of_name("b");
        let directories = [
            format!("volumes/{key}/data"),
            format!("volumes/{key}/mine"),
            format!("groups/{key}/{other}/data"),
            format!("groups/{key}/{other}/mine"),
            format!("incoming/s-{key}"),
            "incoming/mine".to_owned(),
            format!("trash/g-{key}.01020304"),
            format!("archive/{key}.01020304"),
            "archive/mine".to_owned(),
            "volumes/mine".to_owned(),
            "lost+found".to_owned(),
        ];
        for directory in directories {
            std::fs::create_dir_all(temporary.path().join(directory)).unwrap();
        }
        for file in ["mine", "pool.json.new", &format!("volumes/{key}/volume.json.new")] {
            std::fs::File::create(temporary.path().join(file)).unwrap();
        }
        std::fs::remove_dir(temporary.path().join("retained")).unwrap();
        std::os::unix::fs::symlink("volumes", temporary.path().join("retained")).unwrap();
        let view = PoolView::open(temporary.path()).unwrap();
        let told: Vec<_> = view.strays().unwrap().into_iter().map(|s| (s.place, s.kind)).collect();
        let expected = [
            ("archive/mine".to_owned(), StrayKind::Foreign),
            (format!("groups/{key}/{other}/mine"), StrayKind::Foreign),
            ("incoming/mine".to_owned(), StrayKind::Foreign),
            (format!("incoming/s-{key}"), StrayKind::Unborn),
            ("mine".to_owned(), StrayKind::Foreign),
            ("retained".to_owned(), StrayKind::NoDirectory),
            (format!("trash/g-{key}.01020304"), StrayKind::Dead),
            (format!("volumes/{key}/mine"), StrayKind::Foreign),
            ("volumes/mine".to_owned(), StrayKind::Foreign),
        ];
        assert_eq!(told, expected.map(|(place, kind)| (PathBuf::from(place), kind)));
        assert!(!view.is_in_use().unwrap());
    }
}
