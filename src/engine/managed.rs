//! Managed pools: a filesystem that the driver made itself, in an image or on a disk of its own.
//!
//! A managed pool belongs to the host and not to the process: it stays mounted when the driver stops, and the next one finds
//! it. So the kernel is asked first ([`observe`]), a pure function decides ([`plan`]), and one step after the other is
//! done, until there is nothing to do.
//!
//! Invariants: the pool's lock in `state/` is held by the caller, and the lock of the image from here on for as long as the
//! pool is open. What is made is written down before.
//!
//! Must not: unmount, detach or remove anything but an image that never had its name.

mod apply;
mod observe;
mod plan;
pub(super) mod propagation;
mod room;
mod settle;
mod unmount;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::system::System;
use super::{EngineError, PoolConfig};
use crate::backend::smallest;
use crate::host::{FileIdentity, Host, HostError};
use crate::store::{Images, Making, ManagedRecord, PoolImage, StateDir, open_directory};
use crate::volume::{Backend, ByteSize, Filesystem, FilesystemUuid};
use plan::{Plan, Wish, plan};
pub(super) use settle::thaw_left;
pub use unmount::unmount as unmount_pool;

/// How a managed pool is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatePool {
    /// What it is on.
    pub base: PoolBase,
    /// XFS or btrfs.
    pub filesystem: Filesystem,
}

/// What a managed pool is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolBase {
    /// `<root>/images/<name>.img`.
    Image {
        /// Its size in bytes, a multiple of 4096. A larger one makes the pool grow.
        size: ByteSize,
        /// Its blocks are not reserved: for trials only.
        sparse: bool,
    },
    /// A disk that was blank.
    Device(PathBuf),
}

/// How a managed pool is made, in words.
#[must_use]
pub fn create_word(create: &CreatePool) -> String {
    match &create.base {
        PoolBase::Image { size, sparse: false } => format!("{} image of {size}", create.filesystem),
        PoolBase::Image { size, sparse: true } => {
            format!("{} sparse image of {size} (DEGRADED)", create.filesystem)
        }
        PoolBase::Device(path) => format!("{} on {}", create.filesystem, path.display()),
    }
}

/// The numbers of the loop devices on an image.
pub(super) fn base_loops(host: &dyn Host, image: FileIdentity) -> Result<Vec<u32>, EngineError> {
    Ok(observe::loops_on(host, image)?.iter().map(|found| found.number).collect())
}

/// The smallest image of a managed pool. A filesystem is the same whoever has it, so it is that of a loop volume.
#[must_use]
pub const fn smallest_image(filesystem: Filesystem) -> ByteSize {
    smallest(Backend::Loop, Some(filesystem)).0
}

/// Why the image of a new managed pool could not be made, or its mount would not last; `None` when neither is in the way.
/// The root directory is there already. Only looks.
///
/// # Errors
/// A system call failed.
pub fn managed_pool_refusal(
    root_dir: &Path,
    kubelet_dir: &Path,
    config: &PoolConfig,
    host: &dyn Host,
) -> Result<Option<String>, EngineError> {
    let shown = |path: &Path| Ok::<_, HostError>(host.canonical(path)?.unwrap_or(path.to_owned()));
    let (root, path) = (shown(root_dir)?, shown(&config.path)?);
    if let Some(why) = propagation::refusal(&host.mounts()?, &root, &path) {
        return Ok(Some(why));
    }
    let Some(PoolBase::Image { size, sparse: false }) = config.create.as_ref().map(|c| &c.base)
    else {
        return Ok(None);
    };
    let directory = open_directory(root_dir)?;
    let images = room::Images { root_dir, directory: directory.as_fd() };
    Ok(room::refusal(images, *size, &config.name, &System::new(kubelet_dir), host)?)
}

/// A managed pool that is mounted.
#[derive(Debug)]
pub(super) struct Foundation {
    /// It was made here and never was a pool: its directory may become one.
    pub(super) is_new: bool,
    /// Its blocks are not reserved.
    pub(super) is_sparse: bool,
    /// Held for as long as the pool is open: a daemon with another root directory finds it here.
    #[expect(dead_code, reason = "what counts is that it is held")]
    image: Option<PoolImage>,
}

/// Where things are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) host: &'a dyn Host,
    pub(super) state: &'a StateDir,
    pub(super) root_dir: &'a Path,
    /// Its filesystems are not filled by an image.
    pub(super) system: &'a System,
}

/// So often a run looks again. Twice is enough: after the making, and after it was written down.
const ROUNDS: usize = 4;

/// Sees to it that the filesystem of a managed pool is mounted at the pool's path.
///
/// # Errors
/// Why it cannot be, and what to do; then nothing was changed that a repeat does not go on from.
pub(super) fn prepare(
    ground: &Ground<'_>,
    config: &PoolConfig,
    create: &CreatePool,
    known: bool,
) -> Result<Foundation, EngineError> {
    let images = Images::open(ground.root_dir)?;
    // A name that an earlier run gave is answered for from here on.
    images.sync()?;
    let wish = wish(config, create, &images);
    for _ in 0..ROUNDS {
        let mut sight = observe::observe(ground, config, create, &images, known)?;
        match plan(&wish, &sight.seen).map_err(EngineError::Away)? {
            Plan::Make(uuid) => apply::make(ground, config, create, &images, &sight, uuid)?,
            Plan::Remember(record) => {
                tracing::info!(pool = config.name, uuid = %record.uuid, making = ?record.making, "managed pool is there");
                ground.state.remember_managed(&config.name, &record)?;
            }
            Plan::Use { uuid, steps, notes } => {
                for note in notes {
                    tracing::warn!(pool = config.name, "{note}");
                }
                // Whatever else is to be done would wait for a pool that is frozen.
                settle::resume(ground, &config.name, &sight.path)?;
                apply::carry_out(ground, config, create, &mut sight, uuid, &steps)?;
                let made_here = sight.seen.record.is_some_and(|r| r.making == Making::Made);
                return Ok(Foundation {
                    is_new: made_here && !known,
                    is_sparse: wish.sparse,
                    image: sight.image,
                });
            }
        }
    }
    Err(EngineError::Away("it changes while it is looked at; try again".to_owned()))
}

fn wish(config: &PoolConfig, create: &CreatePool, images: &Images) -> Wish {
    let (base, size, sparse) = match &create.base {
        PoolBase::Image { size, sparse } => (images.path_of(&config.name), Some(*size), *sparse),
        PoolBase::Device(path) => (path.clone(), None, false),
    };
    Wish { name: config.name.clone(), base, filesystem: create.filesystem, size, sparse }
}

/// What is written down before anything is made.
fn begun(create: &CreatePool, uuid: FilesystemUuid) -> ManagedRecord {
    ManagedRecord {
        filesystem: create.filesystem,
        uuid,
        on_device: matches!(create.base, PoolBase::Device(_)),
        making: Making::Begun,
    }
}
