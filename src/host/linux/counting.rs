//! I/O priority and project ids.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::mounts::fd_path;
use super::{LinuxHost, sys};
use crate::host::{Counting, HostError};

impl Counting for LinuxHost {
    fn yield_disk(&self) -> Result<(), HostError> {
        sys::set_io_idle().map_err(|e| HostError::call("lower the I/O priority of", "a thread", e))
    }

    fn project_of(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, HostError> {
        match sys::quota::attributes(file) {
            Ok(attributes) => Ok(Some(u64::from(attributes.project))),
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(HostError::call("ask for the project of", fd_path(file), e)),
        }
    }
}
