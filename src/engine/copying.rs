//! Copies of data, of one instant or refused: into snapshots, and into volumes that begin with something.
//!
//! Where blocks can be shared (or a subvolume snapshot made), the copy shows one instant whoever writes; a mounted
//! filesystem is frozen for that moment. Any other copy takes its time and is made only while nobody writes, and thrown
//! away when a Node call came in meanwhile.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::freeze::FreezePoint;
use super::observe::Writing;
use super::open_pool::OpenPool;
use super::{Engine, EngineError, Located, chain};
use crate::backend::{self, DirectoryCopy, ImageCopy, NewLimit, Progress};
use crate::host::{HeldMount, Host, HostError, MountEntry};
use crate::store::{DATA, Resolved, VolumeDir};
use crate::volume::{Allocation, ByteSize};

/// How often an instant copy begins again because the volume is just being mounted.
const LOOKS: usize = 3;
/// How often a long copy writes down how far it is.
const NOTE: Duration = Duration::from_secs(1);
/// How often it says so in the log.
const SAY: Duration = Duration::from_secs(10);

/// What a copy is to become.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopyTarget<'a> {
    /// The directory that is being born.
    pub(super) dir: &'a VolumeDir,
    /// The length of an image, at least that of the source.
    pub(super) size: ByteSize,
    /// Whether an image's blocks are reserved.
    pub(super) allocation: Allocation,
    /// Blocks may be shared with the source.
    pub(super) share: bool,
    /// Nobody will write to it.
    pub(super) read_only: bool,
    /// What a directory is held to.
    pub(super) limit: Option<NewLimit>,
}

/// Data that is copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopySource<'a> {
    /// The directory or image, open for reading.
    pub(super) data: &'a File,
    pub(super) resolved: Resolved,
    /// What it is, for the log.
    pub(super) name: &'a str,
}

/// Opens the data of a volume or snapshot for reading.
pub(super) fn open_data(dir: &VolumeDir, resolved: Resolved) -> Result<File, EngineError> {
    Ok(match resolved {
        Resolved::Hostpath => dir.directory(DATA)?.into(),
        Resolved::Loop { .. } => dir.image_to_read()?,
    })
}

impl OpenPool {
    /// Files of this pool can share blocks with each other.
    pub(super) fn shares_blocks(&self, host: &dyn Host) -> Result<bool, EngineError> {
        Ok(host.shares_blocks(self.store.directory())?)
    }
}

/// A copy whose source is in use although it must not be.
fn in_use(located: &Located, writing: &Writing, shares: bool) -> EngineError {
    if shares {
        return EngineError::Precondition(format!(
            "volume {} is in use ({}), and the copy that is asked for shares no blocks with it, so it takes its time (allocation=thick, onDelete=wipe, or another pool): end the pods that use it, or take a snapshot and restore that",
            located.id(),
            writing.describe()
        ));
    }
    EngineError::Precondition(format!(
        "volume {} is in use ({}), and pool {} cannot copy it at one instant: end the pods that use it, then repeat; or keep it on a pool on btrfs, or on XFS with reflink and backend=loop",
        located.id(),
        writing.describe(),
        located.pool.name
    ))
}

impl Engine {
    /// Copies what nobody writes to.
    pub(super) fn copy_still(
        &self,
        source: CopySource<'_>,
        target: CopyTarget<'_>,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let host = &*self.host;
        reporting(source.name, target.dir, progress, || {
            match source.resolved {
                Resolved::Hostpath => {
                    let CopyTarget { share, read_only, limit, .. } = target;
                    let copy = DirectoryCopy { share, read_only, limit };
                    backend::copy_directory(source.data.as_fd(), target.dir, copy, progress, host)?;
                }
                Resolved::Loop { .. } => {
                    let CopyTarget { size, allocation, share, .. } = target;
                    let copy = ImageCopy { size, allocation, share };
                    backend::copy_image(source.data, target.dir, copy, progress, host)?;
                }
            }
            Ok(())
        })
    }

    /// Copies a volume, in use or not.
    ///
    /// # Errors
    /// [`EngineError::Precondition`] when the copy would show no single instant.
    pub(super) fn copy_volume(
        &self,
        located: &Located,
        target: CopyTarget<'_>,
    ) -> Result<(), EngineError> {
        let has_filesystem =
            matches!(located.volume().resolved, Resolved::Loop { filesystem: Some(_), .. });
        for _ in 0..LOOKS {
            match self.freeze_point(located, target.share)? {
                Instantly::Frozen(point) => {
                    let point = std::slice::from_ref(&point);
                    return self.while_frozen(point, || self.copy_now(located, target));
                }
                // A filesystem needs no freeze only while it is not mounted; a stage may also repair it.
                Instantly::AsItIs if has_filesystem => match self.copy_quietly(located, target)? {
                    Quietly::Done => return Ok(()),
                    // It took no time to speak of, and now it is to be frozen.
                    Quietly::Interrupted => target.dir.remove_image()?,
                },
                Instantly::AsItIs => return self.copy_now(located, target),
                Instantly::Not => {
                    return match self.copy_quietly(located, target)? {
                        Quietly::Done => Ok(()),
                        Quietly::Interrupted => Err(backend::BackendError::Interrupted.into()),
                    };
                }
            }
        }
        Err(backend::BackendError::Interrupted.into())
    }

    /// How a volume is copied at one instant.
    ///
    /// # Errors
    /// It is in use in a way that cannot be told.
    pub(super) fn freeze_point(
        &self,
        located: &Located,
        share: bool,
    ) -> Result<Instantly, EngineError> {
        if !(share && self.copies_instantly(located)?) {
            return Ok(Instantly::Not);
        }
        match self.observe(located)?.writing() {
            Writing::Nobody | Writing::Directory(_) => Ok(Instantly::AsItIs),
            Writing::Filesystem(number, entries) => {
                let mount = self.hold_any(number, &entries);
                let mount = mount.map_err(EngineError::from)?.ok_or_else(|| {
                    EngineError::Precondition(format!(
                        "volume {} is just being mounted or unmounted (/dev/loop{number}); repeat",
                        located.id()
                    ))
                })?;
                Ok(Instantly::Frozen(FreezePoint { id: located.id(), mount }))
            }
            Writing::Device(number) => {
                // What the pod has written but not synced is in the cache of the device, above the image.
                self.host.sync_loop(number)?;
                Ok(Instantly::AsItIs)
            }
        }
    }

    /// Holds a mounted filesystem by whichever mount is not covered; by its device where none can be reached from here.
    fn hold_any(
        &self,
        number: u32,
        entries: &[MountEntry],
    ) -> Result<Option<Arc<dyn HeldMount>>, HostError> {
        for entry in entries {
            if let Some(mount) = self.host.hold_mount(entry)? {
                return Ok(Some(mount));
            }
        }
        match self.host.hold_device(number) {
            // It is being detached, or a program works on it.
            Err(error) if matches!(error.errno(), Some(Errno::EBUSY | Errno::ENXIO)) => Ok(None),
            held => held,
        }
    }

    /// The volume's pool can copy it at one instant, whoever writes.
    pub(super) fn copies_instantly(&self, located: &Located) -> Result<bool, EngineError> {
        let shares = located.pool.shares_blocks(&*self.host)?;
        Ok(match located.volume().resolved {
            // Elsewhere each file has an instant of its own.
            Resolved::Hostpath => {
                let space = self.host.space(located.pool.store.directory())?;
                shares && space.filesystem == crate::host::PoolFilesystem::Btrfs
            }
            Resolved::Loop { .. } => shares,
        })
    }

    /// A volume that is not copied at one instant is refused while somebody writes to it, before anything is counted.
    ///
    /// # Errors
    /// [`EngineError::Precondition`] when somebody does.
    pub(super) fn refuse_restless(&self, located: &Located) -> Result<(), EngineError> {
        if self.copies_instantly(located)? {
            return Ok(());
        }
        let writing = self.observe(located)?.writing();
        if writing.is_somebody() { Err(in_use(located, &writing, false)) } else { Ok(()) }
    }

    /// Copies a volume as it is now.
    pub(super) fn copy_now(
        &self,
        located: &Located,
        target: CopyTarget<'_>,
    ) -> Result<(), EngineError> {
        let dir = located.pool.store.open_volume(&located.volume().key)?;
        let name = located.id().to_string();
        let resolved = located.volume().resolved;
        let source = CopySource { data: &open_data(&dir, resolved)?, resolved, name: &name };
        self.copy_still(source, target, &Progress::default())
    }

    /// Copies a volume while nobody writes to it.
    fn copy_quietly(
        &self,
        located: &Located,
        target: CopyTarget<'_>,
    ) -> Result<Quietly, EngineError> {
        let progress = Arc::new(Progress::default());
        let key = &located.volume().key;
        let _copy = self.traffic.begin_copy(key, &progress).ok_or_else(|| {
            EngineError::Precondition(format!(
                "volume {} is just being mounted; end the pods that use it, then repeat",
                located.id()
            ))
        })?;
        // In this order: a Node call that comes in from here on interrupts the copy.
        let writing = self.observe(located)?.writing();
        if writing.is_somebody() {
            return Err(in_use(located, &writing, self.copies_instantly(located)?));
        }
        let dir = located.pool.store.open_volume(key)?;
        let name = located.id().to_string();
        let resolved = located.volume().resolved;
        let source = CopySource { data: &open_data(&dir, resolved)?, resolved, name: &name };
        let copied = self.copy_still(source, target, &progress);
        if progress.is_interrupted() {
            let (done, total) = progress.figures();
            tracing::warn!(volume = name, %done, %total, "a Node call came in; the copy is thrown away");
            return Ok(Quietly::Interrupted);
        }
        copied.map(|()| Quietly::Done)
    }

    /// What a copy of a volume will take of its pool.
    pub(super) fn measure(&self, located: &Located) -> Result<ByteSize, EngineError> {
        let dir = located.pool.store.open_volume(&located.volume().key)?;
        self.measure_in(&dir, located.volume().resolved)
    }

    /// What the data in a directory takes.
    pub(super) fn measure_in(
        &self,
        dir: &VolumeDir,
        resolved: Resolved,
    ) -> Result<ByteSize, EngineError> {
        Ok(match resolved {
            Resolved::Hostpath => backend::measure_directory(dir)?,
            Resolved::Loop { .. } => self.host.allocated(dir.image_to_read()?.as_fd())?,
        })
    }
}

/// What became of a copy that needs quiet.
enum Quietly {
    Done,
    /// A Node call came in.
    Interrupted,
}

/// How a volume can be copied at one instant.
#[derive(Debug)]
pub(super) enum Instantly {
    /// With its writers held up.
    Frozen(FreezePoint),
    /// Nothing has to be held up.
    AsItIs,
    /// It cannot.
    Not,
}

/// Does a copy while a second thread notes how far it is.
fn reporting(
    name: &str,
    dir: &VolumeDir,
    progress: &Progress,
    copy: impl FnOnce() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let done = (Mutex::new(false), Condvar::new());
    let result = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("copy-progress".to_owned());
        if let Err(error) = thread.spawn_scoped(scope, || report(name, dir, progress, &done)) {
            tracing::warn!(source = name, %error, "how far the copy is will not be seen");
        }
        // Also when the copy panics: the scope waits for its thread.
        let _ended = Ended(&done);
        copy()
    });
    dir.end_progress()?;
    result
}

/// Tells the thread that reports that there is nothing more to report, when it is dropped.
struct Ended<'a>(&'a (Mutex<bool>, Condvar));

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

fn report(name: &str, dir: &VolumeDir, progress: &Progress, done: &(Mutex<bool>, Condvar)) {
    let mut said = Instant::now();
    let mut is_done = done.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*is_done {
        let waited = done.1.wait_timeout(is_done, NOTE).unwrap_or_else(PoisonError::into_inner);
        is_done = waited.0;
        if *is_done {
            return;
        }
        let (copied, total) = progress.figures();
        if let Err(error) = dir.note_progress(name, copied, total) {
            tracing::warn!(source = name, error = chain(&error), "cannot note how far a copy is");
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            tracing::info!(source = name, %copied, %total, "copying");
        }
    }
}
