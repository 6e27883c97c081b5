//! What counting the files of a volume needs of the machine.
//!
//! Must not: change anything but the calling thread's turn at the disk.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use super::HostError;

/// Counting, beside [`super::Host`].
pub trait Counting: Debug {
    /// The calling thread has the disk only when nobody else wants it (I/O priority "idle"), where the disk's scheduler has
    /// such a thing.
    fn yield_disk(&self) -> Result<(), HostError>;

    /// The project id of an open file or directory, which its owner may have changed; `None` where files have none.
    fn project_of(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, HostError>;
}
