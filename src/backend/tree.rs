//! Copies a directory tree file by file: contents with their holes, owners, modes, times, extended attributes (ACLs
//! among them), hard links, symbolic links, devices, pipes and sockets.
//!
//! The walk needs two open directories, however deep the tree is: a pod may build it as deep as it likes. Nothing is
//! followed: no link, no mount.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::copy::copy_data;
use super::{BackendError, Progress};
use crate::host::{Host, HostError};
use crate::volume::ByteSize;

/// A path is opened in pieces of less than this: PATH_MAX is 4096.
const HOP: usize = 3000;

/// What the walk is at.
enum Visit<'a> {
    /// A directory begins; its entries follow before any directory in it begins.
    Enter(&'a Path),
    /// Something in that directory.
    Entry(&'a Entry<'a>),
    /// All that is in the directory is done.
    Leave(BorrowedFd<'a>, &'a Path),
}

/// Something in a directory.
struct Entry<'a> {
    parent: BorrowedFd<'a>,
    /// The path of the parent from the root of the walk.
    at: &'a Path,
    name: &'a CStr,
    stat: FileStat,
}

enum Step {
    Enter(PathBuf),
    Leave(PathBuf),
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(Errno) -> BackendError {
    move |e| HostError::call(operation, path, e).into()
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    )
}

/// Opens what lies at a path of any length beneath a directory.
fn open_deep(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, BackendError> {
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut here: Option<OwnedFd> = None;
    let mut hop = PathBuf::new();
    for part in path {
        if hop.as_os_str().len() + part.len() > HOP {
            let from = here.as_ref().map_or(root, AsFd::as_fd);
            let next = openat2(from, &hop, how(directory)).map_err(failed("open", path))?;
            here = Some(next);
            hop.clear();
        }
        hop.push(part);
    }
    if hop.as_os_str().is_empty() {
        hop.push(".");
    }
    let from = here.as_ref().map_or(root, AsFd::as_fd);
    openat2(from, &hop, how(flags)).map_err(failed("open", path))
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & 0o7777)
}

/// Walks a tree, parents before what is in them.
fn walk(
    root: BorrowedFd<'_>,
    visit: &mut dyn FnMut(Visit<'_>) -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    let device = fstat(root).map_err(failed("look at", Path::new(".")))?.st_dev;
    let mut steps = vec![Step::Enter(PathBuf::new())];
    while let Some(step) = steps.pop() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let path = match step {
            Step::Leave(path) => {
                let directory = open_deep(root, &path, flags)?;
                visit(Visit::Leave(directory.as_fd(), &path))?;
                continue;
            }
            Step::Enter(path) => path,
        };
        let directory = open_deep(root, &path, flags)?;
        visit(Visit::Enter(&path))?;
        steps.push(Step::Leave(path.clone()));
        // A descriptor of its own: reading a directory moves its position.
        let listing = openat(&directory, ".", flags | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(Dir::from_fd)
            .map_err(failed("list", &path))?;
        for entry in listing {
            let entry = entry.map_err(failed("list", &path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(failed("look at", &path))?;
            let below = || path.join(OsStr::from_bytes(name.to_bytes()));
            if stat.st_dev != device {
                return Err(BackendError::Inner);
            }
            visit(Visit::Entry(&Entry { parent: directory.as_fd(), at: &path, name, stat }))?;
            if kind(&stat) == SFlag::S_IFDIR {
                steps.push(Step::Enter(below()));
            }
        }
    }
    Ok(())
}

/// What the files in a tree take; hard links count once each.
pub(super) fn measure(root: BorrowedFd<'_>) -> Result<ByteSize, BackendError> {
    let mut sum = 0_u64;
    walk(root, &mut |visit| {
        if let Visit::Entry(entry) = visit {
            let blocks = u64::try_from(entry.stat.st_blocks).unwrap_or(0);
            sum = sum.saturating_add(blocks.saturating_mul(512));
        }
        Ok(())
    })?;
    Ok(ByteSize::new(sum))
}

/// Copies the tree at `from` into the empty directory `to`, which gets the attributes of `from` as well.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    share: bool,
    progress: &Progress,
    host: &dyn Host,
) -> Result<(), BackendError> {
    let mut copy = Copy { to, here: None, links: HashMap::new(), share, progress, host };
    walk(from, &mut |visit| copy.visit(&visit))
}

struct Copy<'a> {
    to: BorrowedFd<'a>,
    /// The copy of the directory that the walk is in.
    here: Option<OwnedFd>,
    /// Where the first of several hard links went.
    links: HashMap<u64, PathBuf>,
    share: bool,
    progress: &'a Progress,
    host: &'a dyn Host,
}

impl Copy<'_> {
    fn visit(&mut self, visit: &Visit<'_>) -> Result<(), BackendError> {
        if self.progress.is_interrupted() {
            return Err(BackendError::Interrupted);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        match visit {
            Visit::Enter(path) => {
                self.here = Some(open_deep(self.to, path, flags)?);
                Ok(())
            }
            Visit::Entry(entry) => self.entry(entry),
            Visit::Leave(from, path) => {
                // Last, because making files in it changes its times.
                let to = open_deep(self.to, path, flags)?;
                let stat = fstat(from).map_err(failed("look at", path))?;
                attributes(*from, c".", to.as_fd(), &stat, path)
            }
        }
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), BackendError> {
        let Entry { parent, at, name, stat } = entry;
        let path = at.join(OsStr::from_bytes(name.to_bytes()));
        let here = self.here.as_ref().ok_or(BackendError::Inner)?.as_fd();
        match kind(stat) {
            SFlag::S_IFDIR => {
                return mkdirat(here, *name, Mode::S_IRWXU).map_err(failed("make", &path));
            }
            SFlag::S_IFREG => {
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&stat.st_ino) {
                        return link(self.to, first, here, name, &path);
                    }
                    self.links.insert(stat.st_ino, path.clone());
                }
                self.file(*parent, name, here, &path)?;
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(*parent, *name).map_err(failed("read the link", &path))?;
                symlinkat(target.as_os_str(), here, *name)
                    .map_err(failed("make the link", &path))?;
            }
            other => {
                mknodat(here, *name, other, Mode::S_IRUSR | Mode::S_IWUSR, stat.st_rdev)
                    .map_err(failed("make the node", &path))?;
            }
        }
        attributes(*parent, name, here, stat, &path)
    }

    fn file(
        &self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        here: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<(), BackendError> {
        let read = how(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME);
        let from = openat2(parent, name, read).map_err(failed("open", path))?;
        let create = how(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL);
        let create = create.mode(Mode::S_IRUSR | Mode::S_IWUSR);
        let to = openat2(here, name, create).map_err(failed("create", path))?;
        if self.share {
            self.host.share_file(from.as_fd(), to.as_fd())?;
            return Ok(());
        }
        let (from, to) = (std::fs::File::from(from), std::fs::File::from(to));
        let io = |e: std::io::Error| HostError::call("copy", path, e);
        to.set_len(from.metadata().map_err(io)?.len()).map_err(io)?;
        copy_data(&from, &to, self.progress)
    }
}

/// Makes another hard link to a file that is copied already.
fn link(
    root: BorrowedFd<'_>,
    first: &Path,
    here: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
) -> Result<(), BackendError> {
    let (directory, file) = (first.parent().unwrap_or(Path::new("")), first.file_name());
    let file = file.ok_or(BackendError::Inner)?;
    let directory = open_deep(root, directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    linkat(&directory, file, here, name, AtFlags::empty()).map_err(failed("link", path))
}

/// Gives the copy `name` in `here` the owner, mode, extended attributes and times of the original in `from`. The order
/// matters: a new owner clears set-id bits and capabilities, and an ACL carries the mode's group bits.
fn attributes(
    from: BorrowedFd<'_>,
    name: &CStr,
    here: BorrowedFd<'_>,
    stat: &FileStat,
    path: &Path,
) -> Result<(), BackendError> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(here, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(failed("set the owner of", path))?;
    if kind(stat) != SFlag::S_IFLNK {
        // A link has no mode. What lies here was made by this copy, so nothing can be a link that was none.
        fchmodat(here, name, mode(stat), nix::sys::stat::FchmodatFlags::FollowSymlink)
            .map_err(failed("set the mode of", path))?;
    }
    extended_attributes(from, name, here, path)?;
    utimensat(
        here,
        name,
        &TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
        &TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        UtimensatFlags::NoFollowSymlink,
    )
    .map_err(failed("set the times of", path))
}

/// A path to this very inode that also works for links, pipes and devices.
fn inode_path(
    directory: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
) -> Result<(OwnedFd, PathBuf), BackendError> {
    let opened = openat2(directory, name, how(OFlag::O_PATH)).map_err(failed("open", path))?;
    let shown = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    Ok((opened, shown))
}

fn extended_attributes(
    from: BorrowedFd<'_>,
    name: &CStr,
    here: BorrowedFd<'_>,
    path: &Path,
) -> Result<(), BackendError> {
    let io = |operation: &'static str| {
        move |e: std::io::Error| BackendError::from(HostError::call(operation, path, e))
    };
    let (_source, source) = inode_path(from, name, path)?;
    let names: Vec<_> = xattr::list_deref(&source).map_err(io("list the attributes of"))?.collect();
    if names.is_empty() {
        return Ok(());
    }
    let (_target, target) = inode_path(here, name, path)?;
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
        let leaf: PathBuf = std::iter::repeat_n(name.as_str(), 60).chain(["leaf"]).collect();
        open_deep(std::fs::File::open(&to).unwrap().as_fd(), &leaf, OFlag::O_RDONLY).unwrap();
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
