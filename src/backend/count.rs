//! Counts what a directory takes where its filesystem does not know: the bytes and inodes of everything in it.
//!
//! A pod may build its tree as deep and as wide as it likes: the walk has one directory open, and a bounded number of
//! names in memory beside those of the directories on its way. A file with several names counts in equal parts under each,
//! so that nothing has to be remembered of it. Nothing is followed: no link, no mount. What a pod changes meanwhile is
//! counted or not.
//!
//! Must not: change anything, or go on when the watcher says stop.

use std::collections::BinaryHeap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use super::BackendError;
use super::tree::{Cursor, DIRECTORY, failed, how, kind};
use crate::store::{DATA, VolumeDir};
use crate::volume::ByteSize;

/// So many names of one directory are in memory at once, and so many of all directories on the way.
const BATCH: usize = 1024;
const MOST: usize = 16 * BATCH;

/// Bits behind the point of a sum.
const FRACTION: u32 = 32;

/// What there is in a directory, itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Allocated bytes. Blocks that several files share count for each of them.
    pub bytes: ByteSize,
    /// Inodes.
    pub inodes: u64,
}

/// Who has something counted.
pub trait Watcher {
    /// Asked before every entry: whether to go on. It may take its time.
    fn goes_on(&mut self) -> bool;

    /// Something was found; the directory itself where the count began is not shown.
    fn found(&mut self, found: &Found<'_>);
}

/// Has it done without a pause.
#[derive(Debug)]
pub struct AtOnce;

impl Watcher for AtOnce {
    fn goes_on(&mut self) -> bool {
        true
    }

    fn found(&mut self, _found: &Found<'_>) {}
}

/// Something in a directory that is counted.
#[derive(Debug)]
pub struct Found<'a> {
    directory: BorrowedFd<'a>,
    name: &'a CStr,
    kind: SFlag,
    levels: &'a [Level],
}

impl Found<'_> {
    /// Opens it for reading, without waiting for anybody and without a trace; `None` when it is neither a regular file nor a
    /// directory, or gone: opening a device or a pipe does something to it.
    #[must_use]
    pub fn open(&self) -> Option<OwnedFd> {
        let flags = match self.kind {
            SFlag::S_IFDIR => DIRECTORY,
            SFlag::S_IFREG => OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME,
            _ => return None,
        };
        openat2(self.directory, self.name, how(flags)).ok()
    }

    /// Its inode and how many names that has; `None` when it is gone.
    #[must_use]
    pub fn names(&self) -> Option<(u64, u64)> {
        let stat = fstatat(self.directory, self.name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_ino, stat.st_nlink))
    }

    /// It is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind == SFlag::S_IFDIR
    }

    /// Where it is, relative to where the count began.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let above = self.levels.iter().filter_map(|level| level.last.as_deref());
        let names = above.chain([self.name]).filter(|name| *name != c".");
        names.map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }
}

/// A directory on the way, and which of the directories in it have still to be visited. They are visited in the order of
/// their names, so that a directory can be listed again from where the walk was.
#[derive(Debug, Default)]
struct Level {
    /// The next ones, the first one last.
    names: Vec<CString>,
    /// The last one that was visited.
    last: Option<CString>,
    /// There may be more behind `names`.
    more: bool,
}

/// Sums with a fraction.
#[derive(Debug, Default)]
struct Sum {
    bytes: u128,
    inodes: u128,
}

impl Sum {
    fn add(&mut self, stat: &FileStat) {
        // The links of a directory are those in it (stat(2)).
        let names = if kind(stat) == SFlag::S_IFDIR { 1 } else { u128::from(stat.st_nlink.max(1)) };
        let bytes = u128::from(u64::try_from(stat.st_blocks).unwrap_or(0)) * 512;
        self.bytes += (bytes << FRACTION) / names;
        self.inodes += (1 << FRACTION) / names;
    }

    fn count(&self) -> Count {
        let rounded = |sum: u128| {
            u64::try_from((sum + (1 << (FRACTION - 1))) >> FRACTION).unwrap_or(u64::MAX)
        };
        Count { bytes: ByteSize::new(rounded(self.bytes)), inodes: rounded(self.inodes) }
    }
}

/// Why a walk ended early.
enum End {
    /// The watcher said stop.
    Stopped,
    Failed(BackendError),
}

impl From<BackendError> for End {
    fn from(error: BackendError) -> Self {
        Self::Failed(error)
    }
}

struct Walk<'a> {
    cursor: Cursor,
    levels: Vec<Level>,
    /// Names in all levels, and how many there may be.
    pending: usize,
    most: usize,
    sum: Sum,
    watcher: &'a mut dyn Watcher,
}

impl Walk<'_> {
    fn ask(&mut self) -> Result<(), End> {
        if self.watcher.goes_on() { Ok(()) } else { Err(End::Stopped) }
    }

    fn show(&mut self, name: &CStr, kind: SFlag) {
        let directory = self.cursor.here.as_fd();
        self.watcher.found(&Found { directory, name, kind, levels: &self.levels });
    }

    /// Counts the directory that the walk has come to, and what is in it but directories.
    fn enter(&mut self) -> Result<(), End> {
        let stat = fstat(&self.cursor.here).map_err(failed("look at", c"."))?;
        self.sum.add(&stat);
        if !self.levels.is_empty() {
            self.show(c".", SFlag::S_IFDIR);
        }
        let level = self.list(Some(stat.st_dev), None)?;
        self.push(level);
        Ok(())
    }

    fn push(&mut self, level: Level) {
        self.pending += level.names.len();
        // The uppermost can be listed again when the walk is back there.
        let mut uppermost = self.levels.iter_mut();
        while self.pending > self.most
            && let Some(level) = uppermost.next()
        {
            self.pending -= level.names.len();
            level.more |= !level.names.is_empty();
            level.names.clear();
        }
        self.levels.push(level);
    }

    /// The first directories behind a name in the directory where the walk is. With a device everything else in it is
    /// counted, as far as it lies on that device.
    fn list(&mut self, count_on: Option<u64>, behind: Option<CString>) -> Result<Level, End> {
        // A descriptor of its own: reading a directory moves its position.
        let listing = openat2(&self.cursor.here, c".", how(DIRECTORY)).and_then(Dir::from_fd);
        let (mut first, mut more) = (BinaryHeap::new(), false);
        for entry in listing.map_err(failed("list", c"."))? {
            let entry = entry.map_err(failed("list", c"."))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.ask()?;
            let mut is_directory = entry.file_type() == Some(Type::Directory);
            if !is_directory && (count_on.is_some() || entry.file_type().is_none()) {
                let stat = match fstatat(&self.cursor.here, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Err(Errno::ENOENT) => continue,
                    stat => stat.map_err(failed("look at", name))?,
                };
                is_directory = kind(&stat) == SFlag::S_IFDIR;
                // A file of another device is mounted there.
                if !is_directory && count_on == Some(stat.st_dev) {
                    self.sum.add(&stat);
                    self.show(name, kind(&stat));
                }
            }
            if is_directory && behind.as_deref().is_none_or(|behind| name > behind) {
                first.push(name.to_owned());
                if first.len() > BATCH {
                    first.pop();
                    more = true;
                }
            }
        }
        let mut names = first.into_sorted_vec();
        names.reverse();
        Ok(Level { names, last: behind, more })
    }

    /// Goes into a directory; `false` when it is a mount, or not there any more.
    fn down(&mut self, name: &CStr) -> Result<bool, BackendError> {
        match self.cursor.down(name) {
            Ok(()) => Ok(true),
            Err(BackendError::Host(error))
                if matches!(
                    error.errno(),
                    // The first: something is mounted there. The others: it was replaced.
                    Some(Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Visits everything below the directory that was entered last.
    fn run(&mut self) -> Result<(), End> {
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.names.pop() {
                level.last = Some(name.clone());
                self.pending -= 1;
                self.ask()?;
                if self.down(&name)? {
                    self.enter()?;
                }
                continue;
            }
            let (more, last) = (level.more, level.last.take());
            self.levels.pop();
            if more {
                let level = self.list(None, last)?;
                self.push(level);
            } else if !self.levels.is_empty() {
                self.cursor.up()?;
            }
        }
        Ok(())
    }
}

/// What a volume's directory takes; `None` when the watcher said stop.
///
/// # Errors
/// A system call failed, or [`BackendError::Interrupted`]: the directory that the walk was in has been moved.
pub fn count_directory(
    volume: &VolumeDir,
    watcher: &mut dyn Watcher,
) -> Result<Option<Count>, BackendError> {
    count_tree(volume.directory(DATA)?.as_fd(), watcher)
}

/// The same of a directory that is open.
///
/// # Errors
/// As [`count_directory`].
pub fn count_tree(
    directory: BorrowedFd<'_>,
    watcher: &mut dyn Watcher,
) -> Result<Option<Count>, BackendError> {
    count(directory, MOST, watcher)
}

fn count(
    root: BorrowedFd<'_>,
    most: usize,
    watcher: &mut dyn Watcher,
) -> Result<Option<Count>, BackendError> {
    let cursor = Cursor::new(root)?;
    let mut walk =
        Walk { cursor, levels: Vec::new(), pending: 0, most, sum: Sum::default(), watcher };
    match walk.enter().and_then(|()| walk.run()) {
        Ok(()) => Ok(Some(walk.sum.count())),
        Err(End::Stopped) => Ok(None),
        Err(End::Failed(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::Path;

    /// Lets so many entries pass, and notes what it is shown.
    struct Until(usize, Vec<PathBuf>);

    impl Watcher for Until {
        fn goes_on(&mut self) -> bool {
            self.0 = self.0.saturating_sub(1);
            self.0 > 0
        }

        fn found(&mut self, found: &Found<'_>) {
            self.1.push(found.path());
            let opened = found.open().map(|file| fstat(&file).unwrap());
            assert_eq!(opened.is_some(), matches!(found.kind, SFlag::S_IFDIR | SFlag::S_IFREG));
            assert!(opened.is_none_or(|stat| kind(&stat) == found.kind));
        }
    }

    fn counted(root: &Path, most: usize, entries: usize) -> (Option<Count>, Vec<PathBuf>) {
        let mut watcher = Until(entries, Vec::new());
        let count = count(File::open(root).unwrap().as_fd(), most, &mut watcher).unwrap();
        watcher.1.sort();
        (count, watcher.1)
    }

    #[test]
    fn everything_counts_once_and_nothing_is_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let (root, outside) = (temporary.path().join("root"), temporary.path().join("outside"));
        std::fs::create_dir_all(root.join("sub/deeper")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        File::create(outside.join("big")).unwrap().write_all_at(&vec![1; 1 << 20], 0).unwrap();
        let sparse = File::create(root.join("sub/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all_at(&vec![1; 1 << 16], 1 << 29).unwrap();
        sparse.sync_all().unwrap();
        for name in ["one", "two", "sub/deeper/three"] {
            std::fs::hard_link(root.join("sub/sparse"), root.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        nix::unistd::mkfifo(&root.join("sub/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let (count, shown) = counted(&root, MOST, usize::MAX);
        let names = [
            "link",
            "one",
            "sub",
            "sub/deeper",
            "sub/deeper/three",
            "sub/pipe",
            "sub/sparse",
            "two",
        ];
        assert_eq!(shown, names.map(PathBuf::from));
        let each = ["", "sub", "sub/deeper", "sub/sparse", "sub/pipe", "link"];
        let blocks: u64 = each
            .iter()
            .map(|name| std::fs::symlink_metadata(root.join(name)).unwrap().blocks())
            .sum();
        let bytes = ByteSize::new(blocks * 512);
        assert_eq!(count, Some(Count { bytes, inodes: 6 }));
        assert!(bytes < ByteSize::mib(1), "holes take nothing");
    }

    #[test]
    fn neither_depth_nor_width_is_a_limit() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        // In two directories more of them than are in memory at once, and below one of those very deep.
        for number in 0..=BATCH {
            std::fs::create_dir_all(root.join(format!("a/{number}"))).unwrap();
            std::fs::create_dir(root.join(number.to_string())).unwrap();
        }
        let mut deep = root.join("7");
        for _ in 0..200 {
            deep.push("deeper");
            std::fs::create_dir(&deep).unwrap();
        }
        File::create(deep.join("leaf")).unwrap();
        let (count, shown) = counted(root, MOST, usize::MAX);
        let inodes = 2 * (BATCH as u64 + 1) + 203;
        assert_eq!(count.unwrap().inodes, inodes);
        assert!(shown.contains(&deep.strip_prefix(root).unwrap().join("leaf")));
        let distinct: std::collections::BTreeSet<_> = shown.iter().collect();
        assert_eq!((distinct.len(), shown.len() as u64), (shown.len(), inodes - 1));
        assert_eq!(counted(root, BATCH / 2, usize::MAX), (count, shown), "with fewer in memory");
        for entries in [0, 1, 100, 3000] {
            assert_eq!(counted(root, MOST, entries).0, None, "stopped after {entries}");
        }
    }
}
