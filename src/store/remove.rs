//! Removal of what is dead: below `incoming/` and `trash/`, by descriptor, never across a mount or through a link.
//!
//! A pod may have built anything in its volume: a tree of any depth, subvolumes, files by the million. The depth is
//! bounded by lifting what lies too deep to the top of the entry, so that neither the stack nor the number of open
//! files grows with it. A record is removed last: it says whether the data must be overwritten, also after a crash.

use std::ffi::{OsStr, OsString};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;
use nix::unistd::{Whence, lseek64};

use super::{Kind, StoreError, dir};
use crate::fault;
use crate::host::Host;

/// Deeper directories are lifted to the top of the entry.
const DEPTH_LIMIT: usize = 32;

/// What happens to file contents before they are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposal {
    /// Nothing.
    Remove,
    /// They are overwritten with zeroes in place. This proves nothing about flash, which writes elsewhere.
    Overwrite,
}

/// So many names of a directory are in memory at once, whatever a pod has put into it.
const BATCH: usize = 4096;

struct Remover<'a> {
    /// The directory of the entry, to which deep directories are lifted.
    top: BorrowedFd<'a>,
    lifted: u64,
    disposal: Disposal,
    host: &'a dyn Host,
}

/// Removes the directory `name` in `parent` with all that is in it; nothing there is fine.
///
/// # Errors
/// Something cannot be removed, e.g. because a filesystem is mounted there; all the rest is gone then, but the record.
pub(super) fn tree(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    disposal: Disposal,
    host: &dyn Host,
) -> Result<(), StoreError> {
    let Some(top) = contents(parent, name, disposal, host)? else { return Ok(()) };
    fault::point!("store.remove.emptied").map_err(|e| StoreError::io("remove", name, e))?;
    // What is left are records.
    for member in directories_in(top.as_fd())? {
        let directory = dir::open_dir(top.as_fd(), &member)?;
        dir::unlink(directory.as_fd(), OsStr::new(Kind::Snapshot.record()))?;
        dir::rmdir(top.as_fd(), &member)?;
    }
    let (kind, _) = Kind::of_name(name.to_str().unwrap_or_default());
    dir::unlink(top.as_fd(), OsStr::new(kind.record()))?;
    dir::rmdir(parent, name)
}

/// The names of the directories in a directory.
fn directories_in(parent: BorrowedFd<'_>) -> Result<Vec<OsString>, StoreError> {
    let mut found = Vec::new();
    for name in dir::names(parent)? {
        if dir::stat(parent, &name)?.is_some_and(|stat| dir::is_kind(&stat, SFlag::S_IFDIR)) {
            found.push(name);
        }
    }
    Ok(found)
}

/// The same, but the records stay: that of the entry, and those of the members of a group. Answers the entry's directory,
/// where there is one.
///
/// # Errors
/// As [`tree`].
pub(super) fn contents(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    disposal: Disposal,
    host: &dyn Host,
) -> Result<Option<OwnedFd>, StoreError> {
    let Some(stat) = dir::stat(parent, name)? else { return Ok(None) };
    if !dir::is_kind(&stat, SFlag::S_IFDIR) {
        dir::unlink(parent, name)?;
        return Ok(None);
    }
    let top = dir::open_dir(parent, name)?;
    let mut remover = Remover { top: top.as_fd(), lifted: 0, disposal, host };
    let (kind, _) = Kind::of_name(name.to_str().unwrap_or_default());
    let members = if kind == Kind::Group { directories_in(top.as_fd())? } else { Vec::new() };
    for member in &members {
        let directory = dir::open_dir(top.as_fd(), member)?;
        remover.empty(directory.as_fd(), &[Kind::Snapshot.record().into()], 1)?;
    }
    let mut keep = members;
    keep.push(kind.record().into());
    remover.empty(top.as_fd(), &keep, 0)?;
    Ok(Some(top))
}

impl Remover<'_> {
    /// Removes what is in a directory, batch by batch. What cannot be removed does not save its siblings; the first
    /// failure is reported at the end.
    fn empty(
        &mut self,
        directory: BorrowedFd<'_>,
        keep: &[OsString],
        depth: usize,
    ) -> Result<(), StoreError> {
        loop {
            // What is kept must not fill a batch.
            let mut names = dir::some_names(directory, BATCH + keep.len())?;
            names.retain(|name| !keep.contains(name));
            if names.is_empty() {
                return Ok(());
            }
            let mut failure = None;
            for name in &names {
                if let Err(error) = self.remove(directory, name, depth) {
                    failure.get_or_insert(error);
                }
            }
            // The next batch would hold the same names again.
            if let Some(error) = failure {
                return Err(error);
            }
        }
    }

    fn remove(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        depth: usize,
    ) -> Result<(), StoreError> {
        let Some(stat) = dir::stat(parent, name)? else { return Ok(()) };
        if dir::is_kind(&stat, SFlag::S_IFDIR) {
            return self.remove_directory(parent, name, depth);
        }
        let regular = dir::is_kind(&stat, SFlag::S_IFREG);
        // Under another name it is, or may be, somebody else's: it is overwritten with its last one.
        if self.disposal == Disposal::Overwrite && regular && stat.st_nlink <= 1 {
            self.make_removable(parent, name)?;
            overwrite(parent, name)?;
        }
        match dir::unlink(parent, name) {
            // Immutable or append-only, the file or the directory that it lies in.
            Err(error) if error.is_not_permitted() => {
                if regular {
                    self.make_removable(parent, name)?;
                }
                self.host.make_removable(parent)?;
                dir::unlink(parent, name)
            }
            result => result,
        }
    }

    fn make_removable(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
        let file = dir::open(parent, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        Ok(self.host.make_removable(file.as_fd())?)
    }

    fn remove_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        depth: usize,
    ) -> Result<(), StoreError> {
        // A whole subvolume goes in one call, unless its files have to be overwritten or it holds another subvolume.
        if self.disposal == Disposal::Remove
            && matches!(self.host.remove_subvolume(parent, name), Ok(true))
        {
            return Ok(());
        }
        if depth >= DEPTH_LIMIT {
            return self.lift(parent, name);
        }
        let directory = dir::open_dir(parent, name)?;
        self.empty(directory.as_fd(), &[], depth + 1)?;
        match dir::rmdir(parent, name) {
            Err(error) if error.is_not_permitted() => {
                self.host.make_removable(directory.as_fd())?;
                self.host.make_removable(parent)?;
                dir::rmdir(parent, name)
            }
            result => result,
        }
    }

    fn lift(&mut self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
        loop {
            self.lifted += 1;
            let new = OsString::from(format!(".deep-{}", self.lifted));
            match dir::rename_new(parent, name, self.top, &new) {
                // Somebody's file of that name: try the next one.
                Err(StoreError::Exists { .. }) => {}
                other => return other,
            }
        }
    }
}

/// Overwrites what is allocated of a file; holes stay holes.
fn overwrite(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), StoreError> {
    static ZEROES: [u8; 1 << 18] = [0; 1 << 18];
    let failed = |e: std::io::Error| StoreError::io("overwrite", name, e);
    let mut file: std::fs::File =
        dir::open(parent, name, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?.into();
    let mut at = 0_i64;
    loop {
        let start = match lseek64(&file, at, Whence::SeekData) {
            Ok(start) => start,
            // No data behind `at`.
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(StoreError::io("overwrite", name, e)),
        };
        let end = lseek64(&file, start, Whence::SeekHole)
            .map_err(|e| StoreError::io("overwrite", name, e))?;
        file.seek(SeekFrom::Start(start.unsigned_abs())).map_err(failed)?;
        let mut left = usize::try_from(end - start).unwrap_or(0);
        while left > 0 {
            let piece = ZEROES.get(..left.min(ZEROES.len())).unwrap_or(&ZEROES);
            file.write_all(piece).map_err(failed)?;
            left -= piece.len();
        }
        at = end;
    }
    fault::step!("step.store.overwrite", file.sync_data()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;
    use crate::store::record::RECORD;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    fn remove(path: &Path, disposal: Disposal) -> Result<(), StoreError> {
        let parent = std::fs::File::open(path.parent().unwrap()).unwrap();
        tree(parent.as_fd(), path.file_name().unwrap(), disposal, &FakeHost::new())
    }

    #[test]
    fn a_deep_tree_goes_without_a_deep_stack() {
        let temporary = tempfile::tempdir().unwrap();
        let entry = temporary.path().join("entry");
        let mut deep = entry.join("data");
        for _ in 0..300 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::File::create(deep.join("f")).unwrap();
        std::fs::File::create(entry.join(".deep-1")).unwrap();
        std::fs::File::create(entry.join(RECORD)).unwrap();
        remove(&entry, Disposal::Remove).unwrap();
        assert!(!entry.exists());
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let outside = temporary.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let file = std::fs::File::create(outside.join("f")).unwrap();
        file.write_all_at(b"keep", 0).unwrap();
        let entry = temporary.path().join("entry");
        std::fs::create_dir(&entry).unwrap();
        std::os::unix::fs::symlink(&outside, entry.join("dir")).unwrap();
        std::os::unix::fs::symlink(outside.join("f"), entry.join("file")).unwrap();
        remove(&entry, Disposal::Overwrite).unwrap();
        assert_eq!(std::fs::read(outside.join("f")).unwrap(), b"keep");
        assert!(!entry.exists());
    }

    #[test]
    fn overwriting_reaches_the_blocks_of_a_file_before_it_goes() {
        let temporary = tempfile::tempdir().unwrap();
        let entry = temporary.path().join("entry");
        std::fs::create_dir(&entry).unwrap();
        let file = std::fs::File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(entry.join("f"))
            .unwrap();
        // Two names of one file: it is reached by the last of them.
        std::fs::hard_link(entry.join("f"), entry.join("g")).unwrap();
        let outside = temporary.path().join("outside");
        std::fs::File::create(&outside).unwrap().write_all_at(b"keep", 0).unwrap();
        std::fs::hard_link(&outside, entry.join("h")).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"secret", 8192).unwrap();
        remove(&entry, Disposal::Overwrite).unwrap();
        let mut content = [1_u8; 6];
        file.read_exact_at(&mut content, 8192).unwrap();
        assert_eq!(content, [0; 6]);
        assert_eq!(std::fs::read(&outside).unwrap(), b"keep", "it is not the volume's alone");
    }
}
