//! Copies of a volume's data: of an image by shared blocks or block by block, of a directory as a subvolume snapshot or
//! file by file.
//!
//! Invariants: the source is only read; holes stay holes; a copy is flushed before the caller commits it. Shared blocks
//! and subvolume snapshots show one instant. The other copies do so only while nobody writes: the caller sees to that.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, fsync, lseek64, syncfs};

use super::image::{call, extend};
use super::{BackendError, NewLimit, Progress, tree};
use crate::fault;
use crate::host::{Host, HostError, PoolFilesystem};
use crate::store::{DATA, IMAGE, VolumeDir};
use crate::volume::{Allocation, ByteSize};

/// Bytes that are copied in one go.
const PIECE: usize = 1 << 20;

/// How an image is copied.
#[derive(Debug, Clone, Copy)]
pub struct ImageCopy {
    /// Its length, at least that of the source.
    pub size: ByteSize,
    /// Whether its blocks are reserved, which shared ones are not.
    pub allocation: Allocation,
    /// Share the blocks of the source.
    pub share: bool,
}

/// Makes an image in `dir` with the content of another one, at least as long. Not flushed yet: see [`seal_image`].
///
/// # Errors
/// A system call failed, or [`BackendError::Interrupted`].
pub fn copy_image(
    from: &File,
    dir: &VolumeDir,
    copy: ImageCopy,
    progress: &Progress,
    host: &dyn Host,
) -> Result<(), BackendError> {
    let to = dir.create_file(IMAGE)?;
    if copy.share {
        host.match_copy_on_write(from.as_fd(), to.as_fd())?;
        fault::point!("backend.copy.created").map_err(call("copy"))?;
        host.share_file(from.as_fd(), to.as_fd())?;
        // Asked now: the source may have grown since it was looked at.
        let length = ByteSize::new(to.metadata().map_err(call("look at"))?.len());
        progress.expect(length);
        progress.advance(length.bytes());
        if length < copy.size {
            extend(&to, length, copy.size, Allocation::Thin)?;
        }
    } else {
        host.disable_copy_on_write(to.as_fd())?;
        fault::point!("backend.copy.created").map_err(call("copy"))?;
        let length = ByteSize::new(from.metadata().map_err(call("look at"))?.len());
        progress.expect(host.allocated(from.as_fd())?);
        extend(&to, ByteSize::ZERO, copy.size.max(length), copy.allocation)?;
        copy_data(from, &to, progress)?;
    }
    fault::point!("backend.copy.filled").map_err(call("copy"))?;
    Ok(())
}

/// Flushes a copied image; answers its length, which is that of the source at the instant of the copy or more.
///
/// # Errors
/// A system call failed.
pub fn seal_image(dir: &VolumeDir) -> Result<ByteSize, BackendError> {
    let image = dir.image_to_write()?;
    fault::step!("step.backend.flush", image.sync_all()).map_err(call("flush"))?;
    fault::step!("step.backend.flush", fsync(dir.as_fd()))
        .map_err(|e| HostError::call("flush", IMAGE, e))?;
    Ok(ByteSize::new(image.metadata().map_err(call("look at"))?.len()))
}

/// Copies what is allocated of a file to the same places of another one.
pub(super) fn copy_data(from: &File, to: &File, progress: &Progress) -> Result<(), BackendError> {
    let failed = |e: Errno| HostError::call("find the data of", IMAGE, e);
    let mut buffer = vec![0_u8; PIECE];
    let mut at = 0_i64;
    loop {
        let start = match lseek64(from, at, Whence::SeekData) {
            Ok(start) => start,
            // No data behind `at`.
            Err(Errno::ENXIO) => return Ok(()),
            Err(e) => return Err(failed(e).into()),
        };
        let end = lseek64(from, start, Whence::SeekHole).map_err(failed)?;
        let (mut place, end_place) = (start.unsigned_abs(), end.unsigned_abs());
        while place < end_place {
            if progress.is_interrupted() {
                return Err(BackendError::Interrupted);
            }
            let wanted = usize::try_from(end_place - place).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            let read = from.read_at(piece, place).map_err(call("read"))?;
            if read == 0 {
                return Ok(());
            }
            let piece = piece.get(..read).unwrap_or_default();
            fault::step!("step.backend.write", to.write_all_at(piece, place))
                .map_err(call("write"))?;
            let read = u64::try_from(read).unwrap_or(u64::MAX);
            place += read;
            progress.advance(read);
        }
        at = end;
    }
}

/// How a directory is copied.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryCopy {
    /// Share the blocks of the source.
    pub share: bool,
    /// Nobody will write to it.
    pub read_only: bool,
    /// What it is held to.
    pub limit: Option<NewLimit>,
}

/// Makes the directory `data` in `dir` with the content of another one, and flushes it. On btrfs it is a snapshot of the
/// subvolume, elsewhere every file is copied, with shared blocks where the filesystem can and `share` allows.
///
/// # Errors
/// A system call failed, [`BackendError::Interrupted`], or [`BackendError::Inner`].
pub fn copy_directory(
    from: BorrowedFd<'_>,
    dir: &VolumeDir,
    copy: DirectoryCopy,
    progress: &Progress,
    host: &dyn Host,
) -> Result<(), BackendError> {
    let DirectoryCopy { share, read_only, limit } = copy;
    let failed = |operation: &'static str| move |e: Errno| HostError::call(operation, DATA, e);
    let on_btrfs = host.space(dir.as_fd())?.filesystem == PoolFilesystem::Btrfs;
    if on_btrfs && share {
        // Looked for twice: one that is made or goes meanwhile would be an empty directory in the copy.
        let check = || match host.has_inner_subvolumes(from) {
            Ok(true) => Err(BackendError::Inner),
            Ok(false) => Ok(()),
            Err(error) => Err(error.into()),
        };
        check()?;
        host.snapshot_subvolume(from, dir.as_fd(), DATA, read_only)?;
        check()?;
        fault::point!("backend.copy.snapshotted").map_err(|e| HostError::call("copy", DATA, e))?;
        limit.map(|limit| limit.hold(dir, host)).transpose()?;
    } else {
        let to = if on_btrfs {
            host.make_subvolume(dir.as_fd(), DATA)?;
            dir.directory(DATA)?
        } else {
            dir.create_directory(DATA)?
        };
        // Before there is anything in it: what is made later is under the limit of its directory.
        let begun = limit.map(|limit| limit.begin(dir, host)).transpose()?;
        progress.expect(tree::measure(from)?);
        tree::copy(from, to.as_fd(), share, progress, host)?;
        // Only now: the directories of a copy may take a block more than those of a source that is full to the brim.
        if let (Some(limit), Some(begun)) = (limit, begun) {
            limit.bound(begun, dir, host)?;
        }
        fault::point!("backend.copy.walked").map_err(|e| HostError::call("copy", DATA, e))?;
    }
    // All files at once; also what a btrfs snapshot is made of is on disk only then.
    fault::step!("step.backend.flush", syncfs(dir.as_fd())).map_err(failed("flush"))?;
    Ok(())
}

/// What the files of a volume's directory take.
///
/// # Errors
/// A system call failed.
pub fn measure_directory(source: &VolumeDir) -> Result<ByteSize, BackendError> {
    tree::measure(source.directory(DATA)?.as_fd())
}
