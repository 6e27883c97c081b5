//! The data of one volume: made, grown and measured, as a directory or as a disk image.
//!
//! Invariants: a volume's data is formatted at birth only, inside `incoming/`; an image only ever grows; whatever is
//! made here is flushed before the caller commits it.
//!
//! Must not: know pools, records, mounts or requests; write outside the directory it is given.

mod copy;
mod count;
mod hostpath;
mod image;
mod progress;
mod tree;

use crate::host::HostError;
use crate::store::StoreError;
use crate::volume::{Backend, ByteSize, Filesystem};

pub use copy::{
    DirectoryCopy, ImageCopy, copy_directory, copy_image, measure_directory, seal_image,
};
pub use count::{AtOnce, Count, Found, Watcher, count_directory, count_tree};
pub use hostpath::{NewLimit, create as create_directory, limit_of_new, put_under_limit};
pub use image::{
    ImageSpec, create as create_image, fill_holes, grow as grow_image, identity, lacks, loops_on,
    missing_blocks,
};
pub use progress::Progress;

/// A failure with a volume's data. `Display` leaves out the source; whoever prints it prints the chain.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The kernel or a program refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The pool's directory refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source of a copy came into use, so that the copy would show no single instant.
    #[error("the volume came into use while it was copied")]
    Interrupted,
    /// Something in the volume cannot be copied with it.
    #[error("another filesystem or subvolume lies in the volume, which a copy would not have")]
    Inner,
}

/// Sizes are multiples of this: the block size of every filesystem that is made, and of most pools.
pub const STEP: u64 = 4096;

/// The smallest volume of a kind, and the step between sizes, in bytes. `filesystem` is `None` for raw block.
#[must_use]
pub const fn smallest(backend: Backend, filesystem: Option<Filesystem>) -> (ByteSize, u64) {
    match (backend, filesystem) {
        // A limit counts whole blocks, and btrfs takes some of it while it changes anything.
        (Backend::Hostpath, _) => (ByteSize::mib(1), STEP),
        (Backend::Loop, None) => (ByteSize::new(STEP), STEP),
        // Below this mke2fs makes no journal, and ext4 without one loses files at a power cut.
        (Backend::Loop, Some(Filesystem::Ext4)) => (ByteSize::mib(16), STEP),
        // mkfs.xfs refuses less since xfsprogs 5.19.
        (Backend::Loop, Some(Filesystem::Xfs)) => (ByteSize::mib(300), STEP),
        // The kernel refuses to resize a btrfs to less (btrfs_ioctl_resize), so a smaller one could never grow.
        (Backend::Loop, Some(Filesystem::Btrfs)) => (ByteSize::mib(256), STEP),
    }
}
