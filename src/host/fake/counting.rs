//! Counting in the model: real files, whose project id is that of the limited directory above them until a test changes it.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::FakeHost;
use super::model::{lock, path_of};
use crate::host::{Counting, HostError};

impl FakeHost {
    /// The owner of a file gives it another project id.
    pub fn set_project(&self, file: &Path, project: u64) {
        lock(&self.model).limits.set_project(file, project);
    }
}

impl Counting for FakeHost {
    fn yield_disk(&self) -> Result<(), HostError> {
        self.look("yield_disk", Path::new("a thread")).map(drop)
    }

    fn project_of(&self, file: BorrowedFd<'_>) -> Result<Option<u64>, HostError> {
        let path = path_of(file);
        Ok(self.look("project_of", &path)?.limits.project_at(&path))
    }
}
