//! Carries out what was planned for a managed pool, one step after the other. Each may be the last before a crash.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::observe::Sight;
use super::plan::Step;
use super::{CreatePool, Ground, PoolBase, begun, room, settle};
use crate::engine::pools::random;
use crate::engine::{EngineError, PoolConfig, chain};
use crate::fault;
use crate::host::{AttachedLoop, HostError, LoopOptions, PoolMount, loop_path};
use crate::store::{Images, PoolImage};
use crate::volume::{Allocation, ByteSize, DirectIo, Filesystem, FilesystemUuid};

/// Makes the filesystem. The next look finds it.
pub(super) fn make(
    ground: &Ground<'_>,
    config: &PoolConfig,
    create: &CreatePool,
    images: &Images,
    sight: &Sight,
    uuid: Option<FilesystemUuid>,
) -> Result<(), EngineError> {
    let uuid = match uuid {
        Some(uuid) => uuid,
        None => new_uuid()?,
    };
    // Before anything is made: only so can a later run tell what it may go on with.
    ground.state.remember_managed(&config.name, &begun(create, uuid))?;
    point(fault::point!("managed.make.remembered"), &config.path)?;
    tracing::info!(pool = config.name, %uuid, filesystem = %create.filesystem, "making a managed pool");
    match &create.base {
        PoolBase::Image { size, sparse } => {
            images.remove_leftover(&config.name)?;
            if !sparse {
                check_room(ground, images, *size, config)?;
            }
            let made = make_image(ground, create, images, config, *size, *sparse, uuid);
            if made.is_err()
                && let Err(error) = images.remove_leftover(&config.name)
            {
                tracing::warn!(pool = config.name, %error, "cannot remove an unfinished image; the next try does");
            }
            made
        }
        PoolBase::Device(path) => {
            let gone = || HostError::call("open", path, nix::errno::Errno::ENOENT);
            let disk = sight.disk.as_ref().ok_or_else(gone)?;
            if sight.seen.content == Some(crate::host::Content::Blank) {
                ground.host.claim_disk(disk, uuid)?;
                point(fault::point!("managed.make.claimed"), path)?;
            }
            Ok(ground.host.make_on_disk(disk, create.filesystem, uuid)?)
        }
    }
}

fn new_uuid() -> Result<FilesystemUuid, EngineError> {
    let mut bits = [0; 16];
    random(&mut bits)?;
    Ok(FilesystemUuid::from_bits(bits))
}

pub(super) fn point(hit: std::io::Result<()>, path: &std::path::Path) -> Result<(), HostError> {
    hit.map_err(|e| HostError::call("prepare the managed pool", path, e))
}

fn check_room(
    ground: &Ground<'_>,
    images: &Images,
    more: ByteSize,
    config: &PoolConfig,
) -> Result<(), EngineError> {
    let place = room::Images { root_dir: ground.root_dir, directory: images.directory() };
    match room::refusal(place, more, &config.name, ground.system, ground.host)? {
        None => Ok(()),
        Some(why) => Err(EngineError::Away(why)),
    }
}

fn make_image(
    ground: &Ground<'_>,
    create: &CreatePool,
    images: &Images,
    config: &PoolConfig,
    size: ByteSize,
    sparse: bool,
    uuid: FilesystemUuid,
) -> Result<(), EngineError> {
    let image = images.begin(&config.name)?;
    // Only an empty file can become NODATACOW.
    ground.host.disable_copy_on_write(image.as_fd())?;
    image.extend(size, sparse)?;
    ground.host.make_in_image(image.as_fd(), create.filesystem, uuid)?;
    Ok(images.commit(&config.name)?)
}

/// What a run of steps has in its hands.
struct Run<'a> {
    ground: &'a Ground<'a>,
    config: &'a PoolConfig,
    create: &'a CreatePool,
    sight: &'a mut Sight,
    uuid: FilesystemUuid,
    /// Keeps the loop device until it is mounted.
    attached: Option<AttachedLoop>,
}

pub(super) fn carry_out(
    ground: &Ground<'_>,
    config: &PoolConfig,
    create: &CreatePool,
    sight: &mut Sight,
    uuid: FilesystemUuid,
    steps: &[Step],
) -> Result<(), EngineError> {
    let mut run = Run { ground, config, create, sight, uuid, attached: None };
    for step in steps {
        tracing::debug!(pool = config.name, ?step, "managed pool");
        run.step(*step)?;
    }
    Ok(())
}

impl Run<'_> {
    fn step(&mut self, step: Step) -> Result<(), EngineError> {
        let host = self.ground.host;
        match step {
            Step::Extend(size) => self.extend(size),
            Step::FillHoles => {
                // What it has stays usable without them.
                let image = self.image()?;
                let images = Images::open(self.ground.root_dir)?;
                let more = image.length()?.saturating_sub(image.allocated()?);
                let room = check_room(self.ground, &images, more, self.config);
                if let Err(error) = room.and_then(|()| Ok(image.fill_holes()?)) {
                    tracing::error!(
                        pool = self.config.name,
                        error = chain(&error),
                        "the image has holes and the blocks for them cannot be reserved: free some space below it, or writers will fail"
                    );
                }
                Ok(())
            }
            Step::Attach => self.attach(),
            Step::Hold(number) => {
                let identity = self.image()?.identity()?;
                self.attached = Some(host.hold(number, identity, Allocation::Thick)?);
                Ok(())
            }
            Step::RefreshLoop(number) => {
                point(fault::point!("managed.grow.loop"), &self.config.path)?;
                host.refresh_loop_size(number)?;
                Ok(())
            }
            Step::Mount => self.mount(),
            Step::EnableQuota => self.enable_quota(),
            Step::GrowFilesystem => {
                // A btrfs that is being balanced, say, cannot be grown now, and works as it is.
                match self.grow_filesystem() {
                    Ok(()) if self.create.filesystem == Filesystem::Xfs => {
                        settle::end(self.ground, &self.config.name, &self.sight.path)?;
                    }
                    Ok(()) => {}
                    Err(error) => tracing::error!(
                        pool = self.config.name,
                        error = chain(&error),
                        "the pool's filesystem does not grow; it is used as it is until the next start"
                    ),
                }
                Ok(())
            }
        }
    }

    fn grow_filesystem(&self) -> Result<(), EngineError> {
        let host = self.ground.host;
        let size = host.device_size(&self.device()?)?;
        point(fault::point!("managed.grow.filesystem"), &self.config.path)?;
        let (name, path) = (&self.config.name, &self.sight.path);
        if self.create.filesystem == Filesystem::Xfs {
            settle::begin(self.ground, name, path)?;
        }
        host.grow(self.create.filesystem, path, size)?;
        tracing::info!(pool = self.config.name, %size, "managed pool has grown");
        Ok(point(fault::point!("managed.grow.done"), &self.config.path)?)
    }

    fn attach(&mut self) -> Result<(), EngineError> {
        let label = format!("orlop-pool-{}", self.config.name);
        let options = LoopOptions {
            label: &label,
            read_only: false,
            autoclear: true,
            direct_io: DirectIo::Auto,
            sector: 4096,
            allocation: Allocation::Thick,
        };
        let file = self.image()?.without_lock()?;
        point(fault::point!("managed.attach.start"), &self.config.path)?;
        self.attached = Some(self.ground.host.attach(file.as_fd(), options)?);
        Ok(point(fault::point!("managed.attach.done"), &self.config.path)?)
    }

    fn enable_quota(&self) -> Result<(), EngineError> {
        let root = crate::store::open_directory(&self.sight.path)?;
        if let Some(kind) = self.ground.host.enable_quota(root.as_fd())? {
            tracing::info!(pool = self.config.name, %kind, "quotas are on");
        } else {
            tracing::warn!(
                pool = self.config.name,
                "this kernel has no quotas for its filesystem: directories in this pool have no limits"
            );
        }
        Ok(point(fault::point!("managed.quota.on"), &self.config.path)?)
    }

    fn image(&self) -> Result<&PoolImage, EngineError> {
        let gone =
            || HostError::call("open the image of", &self.config.path, nix::errno::Errno::ENOENT);
        Ok(self.sight.image.as_ref().ok_or_else(gone)?)
    }

    /// The block device of the filesystem.
    fn device(&self) -> Result<PathBuf, EngineError> {
        if let Some(disk) = &self.sight.disk {
            return Ok(disk.path.clone());
        }
        let gone = || {
            HostError::call("find the loop device of", &self.config.path, nix::errno::Errno::ENXIO)
        };
        Ok(self.attached.as_ref().map(|attached| loop_path(attached.number)).ok_or_else(gone)?)
    }

    fn extend(&self, size: ByteSize) -> Result<(), EngineError> {
        let PoolBase::Image { sparse, .. } = &self.create.base else { return Ok(()) };
        let image = self.image()?;
        let images = Images::open(self.ground.root_dir)?;
        let more = size.saturating_sub(image.allocated()?);
        point(fault::point!("managed.grow.start"), &self.config.path)?;
        let room =
            if *sparse { Ok(()) } else { check_room(self.ground, &images, more, self.config) };
        let extended = room.and_then(|()| Ok(image.extend(size, *sparse)?));
        if let Err(error) = extended {
            // It stays as large as it is, and is used so.
            tracing::error!(
                pool = self.config.name,
                error = chain(&error),
                "the pool does not grow"
            );
        }
        Ok(())
    }

    fn mount(&self) -> Result<(), EngineError> {
        let (host, target) = (self.ground.host, &self.sight.path);
        if !host.seal_mount_point(target)? {
            tracing::info!(pool = self.config.name, path = %target.display(), "the mount point cannot be made immutable; keep away from it while the pool is not mounted");
        }
        let device = self.device()?;
        point(fault::point!("managed.mount.sealed"), target)?;
        let filesystem = self.create.filesystem;
        if !host.mount_pool(&PoolMount { device: &device, filesystem, target })? {
            tracing::warn!(
                pool = self.config.name,
                "this kernel's XFS has no quotas, so directories in this pool have no limits"
            );
        }
        // Before anything is written to it.
        settle::resume(self.ground, &self.config.name, target)?;
        point(fault::point!("managed.mount.done"), target)?;
        let mounted = host.mounted_uuid(target)?;
        if mounted != Some(self.uuid) {
            return Err(EngineError::Away(format!(
                "what was mounted from {} has another UUID than the pool's filesystem ({})",
                device.display(),
                self.uuid
            )));
        }
        Ok(())
    }
}
