//! Copying in the model: files are copied for real, freezes are counted.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use super::FakeHost;
use super::model::{Model, lock, owned_file, path_of, write_superblock};
use crate::host::{Copying, Extent, Frozen, HostError, PoolFilesystem, loop_path};
use crate::volume::{ByteSize, Filesystem};

/// A freeze of the model.
#[derive(Debug)]
struct FakeFrozen {
    model: Arc<Mutex<Model>>,
    mount_point: PathBuf,
}

impl Frozen for FakeFrozen {
    fn thaw(&self) -> Result<bool, HostError> {
        Ok(lock(&self.model).frozen.remove(&self.mount_point))
    }
}

/// Copies a tree as a snapshot shows it; subvolumes are plain directories in the model.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    std::fs::set_permissions(to, std::fs::metadata(from)?.permissions())
}

impl FakeHost {
    /// The mount points that are frozen now.
    #[must_use]
    pub fn frozen(&self) -> Vec<PathBuf> {
        lock(&self.model).frozen.iter().cloned().collect()
    }

    /// Freezes a filesystem as another program would.
    pub fn freeze_elsewhere(&self, mount_point: &Path) {
        lock(&self.model).frozen.insert(mount_point.to_owned());
    }

    /// Every subvolume has another one in it from now on.
    pub fn make_inner_subvolumes(&self) {
        lock(&self.model).inner_subvolumes = true;
    }
}

impl Copying for FakeHost {
    fn shares_blocks(&self, directory: BorrowedFd<'_>) -> Result<bool, HostError> {
        let model = self.look("shares_blocks", &path_of(directory))?;
        Ok(matches!(model.space.filesystem, PoolFilesystem::Btrfs | PoolFilesystem::Xfs))
    }

    fn share_file(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), HostError> {
        let model = self.enter("share_file", &path_of(source))?;
        let failed = |e: std::io::Error| HostError::call("share the blocks of", path_of(source), e);
        if !matches!(model.space.filesystem, PoolFilesystem::Btrfs | PoolFilesystem::Xfs) {
            return Err(failed(Errno::EOPNOTSUPP.into()));
        }
        drop(model);
        let (mut from, mut to) = (owned_file(source)?, owned_file(target)?);
        let length = from.metadata().map_err(failed)?.len();
        to.set_len(length).map_err(failed)?;
        // Holes stay holes.
        let mut at = 0;
        while let Ok(start) = lseek64(&from, at, Whence::SeekData) {
            let end = lseek64(&from, start, Whence::SeekHole).map_err(|e| failed(e.into()))?;
            from.seek(SeekFrom::Start(start.unsigned_abs())).map_err(failed)?;
            to.seek(SeekFrom::Start(start.unsigned_abs())).map_err(failed)?;
            std::io::copy(&mut (&from).take((end - start).unsigned_abs()), &mut to)
                .map_err(failed)?;
            at = end;
        }
        Ok(())
    }

    fn extents(
        &self,
        _file: BorrowedFd<'_>,
        _from: u64,
        _to: u64,
    ) -> Result<Option<Vec<Extent>>, HostError> {
        // As a filesystem that does not tell.
        Ok(None)
    }

    fn snapshot_subvolume(
        &self,
        subvolume: BorrowedFd<'_>,
        parent: BorrowedFd<'_>,
        name: &str,
        _read_only: bool,
    ) -> Result<(), HostError> {
        drop(self.enter("snapshot_subvolume", &path_of(subvolume))?);
        copy_tree(&path_of(subvolume), &path_of(parent).join(name))
            .map_err(|e| HostError::call("snapshot the subvolume", path_of(subvolume), e))
    }

    fn has_inner_subvolumes(&self, subvolume: BorrowedFd<'_>) -> Result<bool, HostError> {
        Ok(self.look("has_inner_subvolumes", &path_of(subvolume))?.inner_subvolumes)
    }

    fn sync_at(&self, mount_point: &Path) -> Result<(), HostError> {
        self.enter("sync_at", mount_point).map(drop)
    }

    fn sync_loop(&self, number: u32) -> Result<(), HostError> {
        self.enter("sync_loop", &loop_path(number)).map(drop)
    }

    fn freeze(&self, mount_point: &Path) -> Result<Option<Box<dyn Frozen>>, HostError> {
        let mut model = self.enter("freeze", mount_point)?;
        if !model.frozen.insert(mount_point.to_owned()) {
            return Ok(None);
        }
        let (model, mount_point) = (Arc::clone(&self.model), mount_point.to_owned());
        Ok(Some(Box::new(FakeFrozen { model, mount_point })))
    }

    fn thaw_at(&self, mount_point: &Path) -> Result<bool, HostError> {
        Ok(self.enter("thaw_at", mount_point)?.frozen.remove(mount_point))
    }

    fn renew(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        _sector: u32,
    ) -> Result<(), HostError> {
        drop(self.enter("renew", &path_of(image))?);
        let failed = |e: std::io::Error| HostError::call("renew", path_of(image), e);
        let found = self.real_probe(image)?;
        if found != Some(filesystem) {
            return Err(failed(Errno::EINVAL.into()));
        }
        let file = owned_file(image)?;
        let size = ByteSize::new(file.metadata().map_err(failed)?.len());
        write_superblock(&file, filesystem, size).map_err(failed)
    }

    fn allocated(&self, file: BorrowedFd<'_>) -> Result<ByteSize, HostError> {
        let metadata = owned_file(file)?.metadata();
        let metadata = metadata.map_err(|e| HostError::call("look at", path_of(file), e))?;
        Ok(ByteSize::new(metadata.blocks() * 512))
    }
}
