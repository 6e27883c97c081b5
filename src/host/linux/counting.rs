//! I/O priority and project ids.

use std::os::fd::BorrowedFd;

use super::{LinuxHost, sys};
use crate::host::{Counting, HostError};

impl Counting for LinuxHost {
    fn yield_disk(&self) -> Result<(), HostError> {
        sys::set_io_idle().map_err(|e| HostError::call("lower the I/O priority of", "a thread", e))
    }

    fn project_of(&self, _file: BorrowedFd<'_>) -> Result<Option<u64>, HostError> {
        Ok(None)
    }
}
