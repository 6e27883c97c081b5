//! A loop volume: a disk image. It is formatted once, at birth; later it only grows.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::unistd::fsync;

use super::BackendError;
use crate::fault;
use crate::host::{DeviceNumber, FileIdentity, FormatRecipe, Host, HostError, LoopStatus};
use crate::store::{IMAGE, VolumeDir};
use crate::volume::{Allocation, ByteSize};

/// What a new image is to be.
#[derive(Debug, Clone, Copy)]
pub struct ImageSpec<'a> {
    /// Its length, a multiple of [`super::STEP`].
    pub size: ByteSize,
    /// Whether its blocks are reserved.
    pub allocation: Allocation,
    /// How it is formatted; `None` for raw block.
    pub format: Option<FormatRecipe<'a>>,
}

pub(super) fn call(operation: &'static str) -> impl Fn(std::io::Error) -> HostError {
    move |e| HostError::call(operation, IMAGE, e)
}

/// Makes the image and flushes it.
///
/// # Errors
/// A system call or mkfs failed; no room is a system call that failed with ENOSPC.
pub fn create(dir: &VolumeDir, spec: &ImageSpec<'_>, host: &dyn Host) -> Result<(), BackendError> {
    let file = dir.create_file(IMAGE)?;
    // Only an empty file can become NODATACOW. Without it a btrfs pool grows the image to far more than its size.
    host.disable_copy_on_write(file.as_fd())?;
    extend(&file, ByteSize::ZERO, spec.size, spec.allocation)?;
    fault::point!("backend.image.sized").map_err(call("size"))?;
    if let Some(recipe) = &spec.format {
        host.format(file.as_fd(), recipe)?;
    }
    fault::point!("backend.image.formatted").map_err(call("format"))?;
    fault::step!("step.backend.flush", file.sync_all()).map_err(call("flush"))?;
    fault::step!("step.backend.flush", fsync(dir.as_fd()))
        .map_err(|e| HostError::call("flush", IMAGE, e))?;
    Ok(())
}

/// Grows the image to at least `size` and flushes it; a longer one is left as it is.
///
/// # Errors
/// A system call failed; the data is untouched, and a repeat goes on.
pub fn grow(dir: &VolumeDir, size: ByteSize, allocation: Allocation) -> Result<(), BackendError> {
    let file = dir.image_to_write()?;
    let length = ByteSize::new(file.metadata().map_err(call("look at"))?.len());
    if length < size {
        extend(&file, length, size, allocation)?;
        fault::point!("backend.image.grown").map_err(call("grow"))?;
    }
    fault::step!("step.backend.flush", file.sync_all()).map_err(call("flush"))?;
    Ok(())
}

/// What a thick image lacks of the blocks that were reserved for it. Costs one `fstat`.
///
/// # Errors
/// It is missing, or a system call failed.
pub fn missing_blocks(dir: &VolumeDir) -> Result<ByteSize, BackendError> {
    let metadata = dir.image_to_read()?.metadata().map_err(call("look at"))?;
    Ok(lacks(&metadata, ByteSize::new(metadata.len())))
}

/// What a file lacks of that many bytes of blocks.
#[must_use]
pub fn lacks(metadata: &Metadata, size: ByteSize) -> ByteSize {
    // Always in units of 512 bytes (stat(2)).
    size.saturating_sub(ByteSize::new(metadata.blocks().saturating_mul(512)))
}

/// Makes the file longer; blocks of a thick image are reserved for the new part.
pub(super) fn extend(
    file: &File,
    from: ByteSize,
    to: ByteSize,
    allocation: Allocation,
) -> Result<(), HostError> {
    match allocation {
        Allocation::Thin => {
            fault::step!("step.backend.size", file.set_len(to.bytes())).map_err(call("size"))
        }
        Allocation::Thick => {
            let (from, length) = (from.as_i64(), to.saturating_sub(from).as_i64());
            let none = FallocateFlags::empty();
            fault::step!("step.backend.reserve", fallocate(file, none, from, length))
                .map_err(|e| HostError::call("reserve blocks of", IMAGE, e))
        }
    }
}

/// Reserves the blocks that an image lacks; what is written stays.
///
/// # Errors
/// A system call failed; no room is ENOSPC.
pub fn fill_holes(image: BorrowedFd<'_>) -> Result<(), BackendError> {
    let failed = |e| HostError::call("reserve blocks of", IMAGE, e);
    let length = ByteSize::new(u64::try_from(fstat(image).map_err(failed)?.st_size).unwrap_or(0));
    fault::point!("backend.image.reserving").map_err(call("reserve blocks of"))?;
    let (none, length) = (FallocateFlags::empty(), length.as_i64());
    fault::step!("step.backend.reserve", fallocate(image, none, 0, length)).map_err(failed)?;
    Ok(fault::step!("step.backend.flush", fsync(image)).map_err(failed)?)
}

/// What identifies the image to the kernel.
///
/// # Errors
/// It is missing, or a system call failed.
pub fn identity(dir: &VolumeDir) -> Result<FileIdentity, BackendError> {
    // Read only: a pool that turned read-only still has to tell who uses its volumes.
    let file = dir.image_to_read()?;
    let stat = fstat(&file).map_err(|e| HostError::call("look at", IMAGE, e))?;
    Ok(FileIdentity { device: DeviceNumber::of_stat(stat.st_dev), inode: stat.st_ino })
}

/// The loop devices on an image. One is right; two would destroy it.
///
/// # Errors
/// The loop devices cannot be read.
pub fn loops_on(image: FileIdentity, host: &dyn Host) -> Result<Vec<LoopStatus>, BackendError> {
    let mut loops = host.loops()?;
    loops.retain(|status| status.is_on(image));
    Ok(loops)
}
