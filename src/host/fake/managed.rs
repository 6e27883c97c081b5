//! Managed pools in the model: images get a superblock with their UUID; there are no disks.

use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;

use super::FakeHost;
use super::model::{owned_file, path_of, write_superblock};
use crate::host::{
    Content, Disk, FilesystemMount, Host, HostError, ManagedPools, MountPoint, POOL_LABEL,
    PoolMount,
};
use crate::volume::{ByteSize, Filesystem, FilesystemUuid, MountAttributes};

fn no_disks<T>(path: &Path) -> Result<T, HostError> {
    Err(HostError::call("open", path, Errno::ENXIO))
}

impl ManagedPools for FakeHost {
    fn open_disk(&self, _path: &Path) -> Result<Option<Disk>, HostError> {
        Ok(None)
    }

    fn disk_user(&self, disk: &Disk) -> Result<Option<String>, HostError> {
        no_disks(&disk.path)
    }

    fn disk_content(&self, disk: &Disk, _begun: bool) -> Result<Content, HostError> {
        no_disks(&disk.path)
    }

    fn image_content(&self, image: BorrowedFd<'_>) -> Result<Content, HostError> {
        drop(self.look("image_content", &path_of(image))?);
        self.real.image_content(image)
    }

    fn claim_disk(&self, disk: &Disk, _uuid: FilesystemUuid) -> Result<(), HostError> {
        no_disks(&disk.path)
    }

    fn make_on_disk(
        &self,
        disk: &Disk,
        _filesystem: Filesystem,
        _uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        no_disks(&disk.path)
    }

    fn make_in_image(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        uuid: FilesystemUuid,
    ) -> Result<(), HostError> {
        drop(self.enter("make_in_image", &path_of(image))?);
        let failed = |e: std::io::Error| HostError::call("format", path_of(image), e);
        let file = owned_file(image)?;
        let size = ByteSize::new(file.metadata().map_err(failed)?.len());
        write_superblock(&file, filesystem, size).map_err(failed)?;
        let (uuid_at, label_at) = match filesystem {
            Filesystem::Btrfs => (0x1_0020, 0x1_012b),
            Filesystem::Xfs | Filesystem::Ext4 => (32, 108),
        };
        file.write_all_at(uuid.bytes(), uuid_at).map_err(failed)?;
        file.write_all_at(POOL_LABEL.as_bytes(), label_at).map_err(failed)
    }

    fn seal_mount_point(&self, path: &Path) -> Result<bool, HostError> {
        drop(self.enter("seal_mount_point", path)?);
        // Not sealed: what is mounted in the model lies in this very directory. So it need not be empty either.
        if !path.is_dir() {
            self.real.make_mount_point(path, MountPoint::Directory)?;
        }
        Ok(false)
    }

    fn mount_pool(&self, request: &PoolMount<'_>) -> Result<bool, HostError> {
        let number = request.device.to_str().and_then(|path| path.strip_prefix("/dev/loop"));
        let Some(loop_number) = number.and_then(|number| number.parse().ok()) else {
            return no_disks(request.device);
        };
        let attributes = MountAttributes { no_atime: true, ..MountAttributes::default() };
        self.mount(&FilesystemMount {
            loop_number,
            filesystem: request.filesystem,
            target: request.target,
            attributes,
            options: &[],
        })?;
        Ok(request.filesystem == Filesystem::Btrfs)
    }

    fn mounted_uuid(&self, path: &Path) -> Result<Option<FilesystemUuid>, HostError> {
        let model = self.look("mounted_uuid", path)?;
        let place = self.real.canonical(path)?;
        let mount = place.and_then(|place| model.top_at(&place).cloned());
        let Some(number) = mount.and_then(|mount| mount.keeps) else { return Ok(None) };
        let image = model.device(number)?.backing.try_clone();
        drop(model);
        let image = image.map_err(|e| HostError::call("open", path, e))?;
        match self.real.image_content(std::os::fd::AsFd::as_fd(&image))? {
            Content::Filesystem(found) => Ok(Some(found.uuid)),
            Content::Blank | Content::Claimed(_) | Content::Foreign(_) => Ok(None),
        }
    }

    fn takes_discards(&self, _loop_number: u32) -> bool {
        false
    }

    fn device_size(&self, path: &Path) -> Result<ByteSize, HostError> {
        let model = self.look("device_size", path)?;
        let number = path.to_str().and_then(|path| path.strip_prefix("/dev/loop")?.parse().ok());
        match number.map(|number| model.device(number)) {
            Some(device) => Ok(device?.size),
            None => no_disks(path),
        }
    }
}
