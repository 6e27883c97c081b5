//! Copying in the model: files are copied for real, freezes are counted.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use super::FakeHost;
use super::model::{lock, owned_file, path_of, write_superblock};
use crate::host::{Copying, Extent, HeldMount, HostError, MountEntry, PoolFilesystem, loop_path};
use crate::volume::{ByteSize, Filesystem};

/// A filesystem of the model: that of a loop device.
#[derive(Debug)]
struct FakeHeld {
    host: FakeHost,
    number: u32,
}

impl HeldMount for FakeHeld {
    fn sync(&self) -> Result<(), HostError> {
        self.host.enter("sync", &loop_path(self.number)).map(drop)
    }

    fn freeze(&self) -> Result<bool, HostError> {
        Ok(self.host.enter("freeze", &loop_path(self.number))?.frozen.insert(self.number))
    }

    fn thaw(&self) -> Result<bool, HostError> {
        Ok(self.host.enter("thaw", &loop_path(self.number))?.frozen.remove(&self.number))
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
    /// The loop devices whose filesystem is frozen now.
    #[must_use]
    pub fn frozen(&self) -> Vec<u32> {
        lock(&self.model).frozen.iter().copied().collect()
    }

    /// Freezes a filesystem as another program would.
    pub fn freeze_elsewhere(&self, loop_number: u32) {
        lock(&self.model).frozen.insert(loop_number);
    }

    /// Thaws a filesystem as another program would.
    pub fn thaw_elsewhere(&self, loop_number: u32) {
        lock(&self.model).frozen.remove(&loop_number);
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

    fn sync_loop(&self, number: u32) -> Result<(), HostError> {
        self.enter("sync_loop", &loop_path(number)).map(drop)
    }

    fn hold_mount(&self, seen: &MountEntry) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        let model = self.enter("hold_mount", &seen.mount_point)?;
        let number = model.top_at(&seen.mount_point).and_then(|mount| mount.keeps);
        drop(model);
        let held = number.filter(|number| seen.mounted_loop() == Some(*number));
        Ok(held.map(|number| -> Arc<dyn HeldMount> {
            Arc::new(FakeHeld { host: self.clone(), number })
        }))
    }

    fn hold_device(&self, loop_number: u32) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        drop(self.enter("hold_device", &loop_path(loop_number))?);
        Ok(Some(Arc::new(FakeHeld { host: self.clone(), number: loop_number })))
    }

    fn match_copy_on_write(
        &self,
        source: BorrowedFd<'_>,
        _target: BorrowedFd<'_>,
    ) -> Result<(), HostError> {
        drop(self.enter("match_copy_on_write", &path_of(source))?);
        Ok(())
    }

    fn renew(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        _sector: u32,
        _made_elsewhere: bool,
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
