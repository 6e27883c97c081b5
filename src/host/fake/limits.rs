//! Limits in the model: kept beside the directories, with usage as a test sets it.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::FakeHost;
use super::model::{lock, owned_file, path_of};
use crate::host::{Bounds, FileIdentity, HostError, LimitState, Limits};
use crate::volume::{ByteSize, Limit, LimitKind};

/// The limits of the one filesystem of the model.
#[derive(Debug, Default)]
pub(super) struct FakeLimits {
    kind: Option<LimitKind>,
    last: u64,
    states: BTreeMap<u64, LimitState>,
    members: BTreeMap<FileIdentity, u64>,
    being_freed: Vec<u64>,
    /// Of files whose owners have changed it.
    projects: BTreeMap<PathBuf, u64>,
    slow: Option<u64>,
}

impl FakeLimits {
    /// A subvolume is removed.
    pub(super) fn removed(&mut self) {
        self.being_freed.extend(self.slow.take());
    }

    pub(super) fn set_project(&mut self, file: &Path, project: u64) {
        self.projects.insert(file.to_owned(), project);
    }

    /// Its own, or that of the nearest directory above it that has one; zero is that of all others.
    pub(super) fn project_at(&self, path: &Path) -> Option<u64> {
        self.kind.filter(|kind| *kind == LimitKind::Project)?;
        let of = |path: &Path| {
            let own = self.projects.get(path).copied();
            own.or_else(|| self.members.get(&identity_at(path)?).copied())
        };
        Some(path.ancestors().find_map(of).unwrap_or(0))
    }
}

fn identity_at(path: &Path) -> Option<FileIdentity> {
    std::fs::symlink_metadata(path).ok().map(|metadata| FileIdentity::of(&metadata))
}

fn identity(directory: BorrowedFd<'_>) -> Result<FileIdentity, HostError> {
    let metadata = owned_file(directory)?.metadata();
    let metadata = metadata.map_err(|e| HostError::call("look at", path_of(directory), e))?;
    Ok(FileIdentity::of(&metadata))
}

impl FakeHost {
    /// How every filesystem holds directories from now on.
    pub fn set_limit_kind(&self, kind: Option<LimitKind>) {
        lock(&self.model).limits.kind = kind;
    }

    /// What is in use under a limit.
    pub fn set_limit_usage(&self, limit: Limit, used: ByteSize, inodes: Option<u64>) {
        if let Some(state) = lock(&self.model).limits.states.get_mut(&limit.number) {
            (state.used, state.inodes) = (used, inodes);
        }
    }

    /// How many limits there are.
    #[must_use]
    pub fn limits(&self) -> usize {
        lock(&self.model).limits.states.len()
    }

    /// The space of the next subvolume that is removed is not free until [`FakeHost::free`].
    pub fn free_slowly(&self, subvolume: u64) {
        lock(&self.model).limits.slow = Some(subvolume);
    }

    /// All space is free now.
    pub fn free(&self) {
        lock(&self.model).limits.being_freed.clear();
    }
}

impl Limits for FakeHost {
    fn limit_kind(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        Ok(self.look("limit_kind", &path_of(filesystem))?.limits.kind)
    }

    fn enable_quota(&self, filesystem: BorrowedFd<'_>) -> Result<Option<LimitKind>, HostError> {
        let mut model = self.enter("enable_quota", &path_of(filesystem))?;
        Ok(Some(*model.limits.kind.get_or_insert(LimitKind::SimpleQuota)))
    }

    fn begin_limit(&self, directory: BorrowedFd<'_>, kind: LimitKind) -> Result<Limit, HostError> {
        let directory_identity = identity(directory)?;
        let mut model = self.enter("begin_limit", &path_of(directory))?;
        if model.limits.kind != Some(kind) {
            return Err(HostError::call("limit", path_of(directory), Errno::ENOTSUP));
        }
        model.limits.last += 1;
        let number = model.limits.last;
        let inodes = (kind == LimitKind::Project).then_some(0);
        let state = LimitState { bounds: None, used: ByteSize::ZERO, inodes };
        model.limits.states.insert(number, state);
        model.limits.members.insert(directory_identity, number);
        Ok(Limit { kind, number })
    }

    fn join_limit(&self, file: BorrowedFd<'_>, limit: Limit) -> Result<(), HostError> {
        let path = path_of(file);
        let mut model = self.enter("join_limit", &path)?;
        model.limits.projects.insert(path, limit.number);
        Ok(())
    }

    fn set_bounds(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
        bounds: Option<Bounds>,
    ) -> Result<(), HostError> {
        let mut model = self.enter("set_bounds", &path_of(filesystem))?;
        let state = model.limits.states.get_mut(&limit.number);
        let state = state.ok_or_else(|| {
            HostError::call("set the bounds of", path_of(filesystem), Errno::ENOENT)
        })?;
        state.bounds = bounds;
        Ok(())
    }

    fn limit_state(
        &self,
        filesystem: BorrowedFd<'_>,
        limit: Limit,
    ) -> Result<Option<LimitState>, HostError> {
        let model = self.look("limit_state", &path_of(filesystem))?;
        Ok(model.limits.states.get(&limit.number).copied())
    }

    fn limit_of(&self, directory: BorrowedFd<'_>) -> Result<Option<Limit>, HostError> {
        let identity = identity(directory)?;
        let model = self.look("limit_of", &path_of(directory))?;
        let number = model.limits.members.get(&identity).copied();
        let number = number.filter(|number| model.limits.states.contains_key(number));
        Ok(number.zip(model.limits.kind).map(|(number, kind)| Limit { kind, number }))
    }

    fn end_limit(&self, filesystem: BorrowedFd<'_>, limit: Limit) -> Result<bool, HostError> {
        let mut model = self.enter("end_limit", &path_of(filesystem))?;
        model.limits.states.remove(&limit.number);
        model.limits.members.retain(|_, number| *number != limit.number);
        Ok(true)
    }

    fn being_freed(&self, filesystem: BorrowedFd<'_>) -> Result<Vec<u64>, HostError> {
        Ok(self.look("being_freed", &path_of(filesystem))?.limits.being_freed.clone())
    }

    fn free_now(&self, filesystem: BorrowedFd<'_>) -> Result<(), HostError> {
        self.enter("free_now", &path_of(filesystem)).map(drop)
    }
}
