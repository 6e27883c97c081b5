//! Copies a directory tree file by file: contents with their holes, owners, modes, times, extended attributes (ACLs
//! among them), hard links, symbolic links, devices, pipes and sockets.
//!
//! A pod may build its tree as deep and as wide as it likes: the walk has one directory open on each side, and in memory
//! the names of those directories that it has not been to yet, of the directories on its way. Nothing is followed: no
//! link, no mount.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use super::copy::copy_data;
use super::{BackendError, Progress};
use crate::fault;
use crate::host::{Host, HostError};
use crate::volume::ByteSize;

pub(super) const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

fn path(name: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(name.to_bytes()))
}

pub(super) fn failed(operation: &'static str, name: &CStr) -> impl Fn(Errno) -> BackendError {
    move |e| HostError::call(operation, path(name), e).into()
}

pub(super) fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    )
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & 0o7777)
}

/// A place in a tree: one open directory, and which ones lie above it.
pub(super) struct Cursor {
    pub(super) here: OwnedFd,
    above: Vec<(u64, u64)>,
}

impl Cursor {
    pub(super) fn new(root: BorrowedFd<'_>) -> Result<Self, BackendError> {
        let here = openat2(root, c".", how(DIRECTORY)).map_err(failed("open", c"."))?;
        Ok(Self { here, above: Vec::new() })
    }

    fn identity(&self) -> Result<(u64, u64), BackendError> {
        let stat = fstat(&self.here).map_err(failed("look at", c"."))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    pub(super) fn down(&mut self, name: &CStr) -> Result<(), BackendError> {
        let below = openat2(&self.here, name, how(DIRECTORY)).map_err(failed("open", name))?;
        self.above.push(self.identity()?);
        self.here = below;
        Ok(())
    }

    /// Back to where the last [`Cursor::down`] was; somebody who moves directories meanwhile leads nowhere else.
    pub(super) fn up(&mut self) -> Result<(), BackendError> {
        let flags = DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let above =
            openat(&self.here, c"..", flags, Mode::empty()).map_err(failed("open", c".."))?;
        self.here = above;
        let wanted = self.above.pop();
        if Some(self.identity()?) == wanted { Ok(()) } else { Err(BackendError::Interrupted) }
    }
}

/// Something in the directory that a walk is in.
struct Entry<'a> {
    parent: BorrowedFd<'a>,
    name: &'a CStr,
    stat: FileStat,
}

/// What a walk is for.
trait Visitor {
    /// Something in the directory, before any directory in it is visited.
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), BackendError>;

    /// The walk goes into that directory.
    fn down(&mut self, name: &CStr) -> Result<(), BackendError>;

    /// All in this directory is visited; `is_root` when it is where the walk began.
    fn done(&mut self, directory: BorrowedFd<'_>, is_root: bool) -> Result<(), BackendError>;

    /// The walk goes back up.
    fn up(&mut self) -> Result<(), BackendError>;

    /// What vanishes during the walk does not matter.
    fn is_tolerant(&self) -> bool;
}

fn is_gone(error: &BackendError) -> bool {
    matches!(error, BackendError::Host(error) if error.errno() == Some(Errno::ENOENT))
}

/// Shows a directory's entries; answers those that are directories.
fn list(
    directory: BorrowedFd<'_>,
    device: u64,
    visitor: &mut dyn Visitor,
) -> Result<Vec<CString>, BackendError> {
    // A descriptor of its own: reading a directory moves its position.
    let listing = openat2(directory, c".", how(DIRECTORY))
        .and_then(Dir::from_fd)
        .map_err(failed("list", c"."))?;
    let mut directories = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed("list", c"."))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) if visitor.is_tolerant() => continue,
            stat => stat.map_err(failed("look at", name))?,
        };
        if stat.st_dev != device {
            return Err(BackendError::Inner);
        }
        visitor.entry(&Entry { parent: directory, name, stat })?;
        if kind(&stat) == SFlag::S_IFDIR {
            directories.push(name.to_owned());
        }
    }
    Ok(directories)
}

/// Walks a tree, parents before what is in them.
fn walk(root: BorrowedFd<'_>, visitor: &mut dyn Visitor) -> Result<(), BackendError> {
    let mut cursor = Cursor::new(root)?;
    let (device, _) = cursor.identity()?;
    let mut pending = vec![list(cursor.here.as_fd(), device, visitor)?];
    while let Some(names) = pending.last_mut() {
        if let Some(name) = names.pop() {
            match cursor.down(&name) {
                Err(error) if visitor.is_tolerant() && is_gone(&error) => continue,
                result => result?,
            }
            visitor.down(&name)?;
            pending.push(list(cursor.here.as_fd(), device, visitor)?);
            continue;
        }
        pending.pop();
        visitor.done(cursor.here.as_fd(), pending.is_empty())?;
        if !pending.is_empty() {
            cursor.up()?;
            visitor.up()?;
        }
    }
    Ok(())
}

/// Adds up what files take.
struct Sum(u64);

impl Visitor for Sum {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), BackendError> {
        let blocks = u64::try_from(entry.stat.st_blocks).unwrap_or(0);
        self.0 = self.0.saturating_add(blocks.saturating_mul(512));
        Ok(())
    }

    fn down(&mut self, _name: &CStr) -> Result<(), BackendError> {
        Ok(())
    }

    fn done(&mut self, _directory: BorrowedFd<'_>, _is_root: bool) -> Result<(), BackendError> {
        Ok(())
    }

    fn up(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn is_tolerant(&self) -> bool {
        true
    }
}

/// What the files in a tree take; each hard link counts.
pub(super) fn measure(root: BorrowedFd<'_>) -> Result<ByteSize, BackendError> {
    let mut sum = Sum(0);
    walk(root, &mut sum)?;
    Ok(ByteSize::new(sum.0))
}

/// Copies the tree at `from` into the empty directory `to`, which gets the attributes of `from` as well.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    share: bool,
    progress: &Progress,
    host: &dyn Host,
) -> Result<(), BackendError> {
    let mut copy =
        Copy { root: to, to: Cursor::new(to)?, links: free_name(from)?, share, progress, host };
    mkdirat(to, copy.links.as_c_str(), Mode::S_IRWXU).map_err(failed("make", &copy.links))?;
    walk(from, &mut copy)
}

/// A name that nothing in the directory has.
fn free_name(directory: BorrowedFd<'_>) -> Result<CString, BackendError> {
    for number in 0..u32::MAX {
        let name = CString::new(format!(".orlop-links-{number}")).unwrap_or_default();
        match fstatat(directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(name),
            Err(e) => return Err(failed("look at", &name)(e)),
            Ok(_) => {}
        }
    }
    Err(BackendError::Inner)
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    to: Cursor,
    /// A directory in the root of the copy, for as long as it is made: a further name of each file that has several, by
    /// its inode number in the original. The disk has room for as many as there are.
    links: CString,
    share: bool,
    progress: &'a Progress,
    host: &'a dyn Host,
}

impl Visitor for Copy<'_> {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), BackendError> {
        if self.progress.is_interrupted() {
            return Err(BackendError::Interrupted);
        }
        let Entry { parent, name, stat } = entry;
        let here = self.to.here.as_fd();
        fault::point!("step.backend.entry").map_err(|e| HostError::call("copy", path(name), e))?;
        match kind(stat) {
            SFlag::S_IFDIR => {
                return mkdirat(here, *name, Mode::S_IRWXU).map_err(failed("make", name));
            }
            SFlag::S_IFREG if stat.st_nlink > 1 => {
                let known = self.links()?;
                let number = CString::new(stat.st_ino.to_string()).unwrap_or_default();
                match linkat(&known, number.as_c_str(), here, *name, AtFlags::empty()) {
                    Err(Errno::ENOENT) => {}
                    // The original has as many names as a file can have; this is the last one.
                    Err(Errno::EMLINK) => {
                        return renameat(&known, number.as_c_str(), here, *name)
                            .map_err(failed("link", name));
                    }
                    result => return result.map_err(failed("link", name)),
                }
                self.file(*parent, name)?;
                linkat(here, *name, &known, number.as_c_str(), AtFlags::empty())
                    .map_err(failed("link", name))?;
            }
            SFlag::S_IFREG => self.file(*parent, name)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(*parent, *name).map_err(failed("read the link", name))?;
                symlinkat(target.as_os_str(), here, *name)
                    .map_err(failed("make the link", name))?;
            }
            other => {
                mknodat(here, *name, other, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)
                    .map_err(failed("make the node", name))?;
            }
        }
        attributes(*parent, name, here, stat)
    }

    fn down(&mut self, name: &CStr) -> Result<(), BackendError> {
        self.to.down(name)
    }

    fn done(&mut self, directory: BorrowedFd<'_>, is_root: bool) -> Result<(), BackendError> {
        if is_root {
            self.remove_links()?;
        }
        // Last, because making files in it changes its times.
        let stat = fstat(directory).map_err(failed("look at", c"."))?;
        attributes(directory, c".", self.to.here.as_fd(), &stat)
    }

    fn up(&mut self) -> Result<(), BackendError> {
        self.to.up()
    }

    fn is_tolerant(&self) -> bool {
        false
    }
}

impl Copy<'_> {
    fn links(&self) -> Result<OwnedFd, BackendError> {
        openat2(self.root, self.links.as_c_str(), how(DIRECTORY))
            .map_err(failed("open", &self.links))
    }

    fn remove_links(&self) -> Result<(), BackendError> {
        let links = self.links()?;
        let listing = openat2(&links, c".", how(DIRECTORY)).and_then(Dir::from_fd);
        for entry in listing.map_err(failed("list", &self.links))? {
            let entry = entry.map_err(failed("list", &self.links))?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                unlinkat(&links, name, UnlinkatFlags::NoRemoveDir)
                    .map_err(failed("remove", name))?;
            }
        }
        unlinkat(self.root, self.links.as_c_str(), UnlinkatFlags::RemoveDir)
            .map_err(failed("remove", &self.links))
    }

    fn file(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), BackendError> {
        let read = how(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME);
        let from = openat2(parent, name, read).map_err(failed("open", name))?;
        let create = how(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL);
        let create = create.mode(Mode::S_IRUSR | Mode::S_IWUSR);
        let to = openat2(&self.to.here, name, create).map_err(failed("create", name))?;
        if self.share {
            self.host.share_file(from.as_fd(), to.as_fd())?;
            return Ok(());
        }
        let (from, to) = (std::fs::File::from(from), std::fs::File::from(to));
        let io = |e: std::io::Error| HostError::call("copy", path(name), e);
        to.set_len(from.metadata().map_err(io)?.len()).map_err(io)?;
        copy_data(&from, &to, self.progress)
    }
}

/// Gives the copy `name` in `here` the owner, mode, extended attributes and times of the original in `from`. The order
/// matters: a new owner clears set-id bits and capabilities, and an ACL carries the mode's group bits.
fn attributes(
    from: BorrowedFd<'_>,
    name: &CStr,
    here: BorrowedFd<'_>,
    stat: &FileStat,
) -> Result<(), BackendError> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(here, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(failed("set the owner of", name))?;
    if kind(stat) != SFlag::S_IFLNK {
        // A link has no mode. What lies here was made by this copy, so nothing can be a link that was none.
        fchmodat(here, name, mode(stat), FchmodatFlags::FollowSymlink)
            .map_err(failed("set the mode of", name))?;
    }
    extended_attributes(from, name, here)?;
    utimensat(
        here,
        name,
        &TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        &TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        UtimensatFlags::NoFollowSymlink,
    )
    .map_err(failed("set the times of", name))
}

/// A path to this very inode that also works for links, pipes and devices.
fn inode_path(directory: BorrowedFd<'_>, name: &CStr) -> Result<(OwnedFd, PathBuf), BackendError> {
    let opened = openat2(directory, name, how(OFlag::O_PATH)).map_err(failed("open", name))?;
    let shown = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    Ok((opened, shown))
}

fn extended_attributes(
    from: BorrowedFd<'_>,
    name: &CStr,
    here: BorrowedFd<'_>,
) -> Result<(), BackendError> {
    let io = |operation: &'static str| {
        move |e: std::io::Error| BackendError::from(HostError::call(operation, path(name), e))
    };
    let (_source, source) = inode_path(from, name)?;
    let names: Vec<_> = xattr::list_deref(&source).map_err(io("list the attributes of"))?.collect();
    if names.is_empty() {
        return Ok(());
    }
    let (_target, target) = inode_path(here, name)?;
    for attribute in names {
        let value = xattr::get_deref(&source, &attribute).map_err(io("read an attribute of"))?;
        let Some(value) = value else { continue };
        match xattr::set_deref(&target, &attribute, &value) {
            // A property of btrfs, which means nothing on another filesystem.
            Err(e)
                if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32)
                    && attribute.as_bytes().starts_with(b"btrfs.") => {}
            result => result.map_err(io("set an attribute of"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

    fn copied(from: &Path, to: &Path) -> Result<(), BackendError> {
        std::fs::create_dir(to).unwrap();
        let open = |path: &Path| std::fs::File::open(path).unwrap();
        copy(open(from).as_fd(), open(to).as_fd(), false, &Progress::default(), &FakeHost::new())
    }

    #[test]
    fn a_copy_has_all_that_the_original_has() {
        let temporary = tempfile::tempdir().unwrap();
        let (from, to) = (temporary.path().join("from"), temporary.path().join("to"));
        std::fs::create_dir_all(from.join("sub/deeper")).unwrap();
        let file = std::fs::File::create(from.join("sub/sparse")).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"here", 32 << 20).unwrap();
        std::fs::set_permissions(from.join("sub/sparse"), PermissionsExt::from_mode(0o4751))
            .unwrap();
        std::fs::hard_link(from.join("sub/sparse"), from.join("linked")).unwrap();
        std::os::unix::fs::symlink("../outside", from.join("sub/link")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), Mode::from_bits_truncate(0o640)).unwrap();
        std::fs::set_permissions(&from, PermissionsExt::from_mode(0o1770)).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
        std::fs::File::open(from.join("sub")).unwrap().set_modified(old).unwrap();
        copied(&from, &to).unwrap();
        let meta = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(meta("sub/sparse").mode() & 0o7777, 0o4751);
        assert_eq!(meta("sub/sparse").ino(), meta("linked").ino());
        assert_eq!(meta("sub/sparse").len(), 64 << 20);
        assert!(meta("sub/sparse").blocks() < 2048, "holes stay holes");
        let mut content = [0; 4];
        let copy = std::fs::File::open(to.join("linked")).unwrap();
        copy.read_exact_at(&mut content, 32 << 20).unwrap();
        assert_eq!(&content, b"here");
        assert_eq!(std::fs::read_link(to.join("sub/link")).unwrap(), Path::new("../outside"));
        assert_eq!(meta("pipe").mode(), std::fs::metadata(from.join("pipe")).unwrap().mode());
        assert_eq!(meta("").mode() & 0o7777, 0o1770);
        assert_eq!(meta("sub").modified().unwrap(), old);
    }

    #[test]
    fn depth_is_no_limit() {
        let temporary = tempfile::tempdir().unwrap();
        let (from, to) = (temporary.path().join("from"), temporary.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        let name = "d".repeat(200);
        let mut here = std::fs::File::open(&from).unwrap();
        for _ in 0..60 {
            mkdirat(&here, name.as_str(), Mode::S_IRWXU).unwrap();
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            here = openat(&here, name.as_str(), flags, Mode::empty()).unwrap().into();
        }
        openat(&here, "leaf", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap();
        copied(&from, &to).unwrap();
        let mut cursor = Cursor::new(std::fs::File::open(&to).unwrap().as_fd()).unwrap();
        let name = CString::new(name).unwrap();
        for _ in 0..60 {
            cursor.down(&name).unwrap();
        }
        assert!(fstatat(&cursor.here, "leaf", AtFlags::empty()).is_ok());
        let names = std::fs::read_dir(&to).unwrap().count();
        assert_eq!(names, 1, "nothing of the copy's own is left");
    }

    #[test]
    fn an_interrupted_copy_says_so() {
        let temporary = tempfile::tempdir().unwrap();
        std::fs::File::create(temporary.path().join("f")).unwrap();
        let progress = Progress::default();
        progress.interrupt();
        let to = tempfile::tempdir().unwrap();
        let open = |path: &Path| std::fs::File::open(path).unwrap();
        let result = copy(
            open(temporary.path()).as_fd(),
            open(to.path()).as_fd(),
            false,
            &progress,
            &FakeHost::new(),
        );
        assert!(matches!(result, Err(BackendError::Interrupted)));
    }
}
