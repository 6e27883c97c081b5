//! Carries out a plan step by step; when one fails, takes back those before it and reports both errors.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::observe::Data;
use super::plan::{Refusal, Step};
use super::{Engine, EngineError, Located, chain};
use crate::backend;
use crate::host::{
    AttachedLoop, BindSource, FilesystemMount, HostError, LoopOptions, MountEntry, MountPoint,
    NodeKind, loop_path,
};
use crate::store::Resolved;
use crate::telemetry::{self, Recovery};
use crate::volume::{Allocation, ByteSize, DirectIo, Filesystem, MountAttributes};

/// What a plan is carried out on.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) located: &'a Located,
    pub(super) data: &'a Data,
    /// Where the volume is staged, for a publish.
    pub(super) staged: Option<&'a Path>,
    /// Options of the filesystem.
    pub(super) options: &'a [String],
}

/// A refusal of the planner as the use cases report it.
pub(super) fn refusal(refusal: Refusal) -> EngineError {
    match refusal {
        Refusal::Conflict(text) => EngineError::Conflict(text),
        Refusal::Precondition(text) => EngineError::Precondition(text),
    }
}

/// How to take a step back.
#[derive(Debug)]
enum Undo {
    RemoveMountPoint(PathBuf),
    Unmount(PathBuf),
    Detach(u32),
}

/// What earlier steps of the same plan left for later ones.
#[derive(Debug, Default)]
struct Progress {
    device: Option<AttachedLoop>,
    undo: Vec<Undo>,
}

fn missing(what: &str) -> EngineError {
    EngineError::Precondition(format!("the plan has no {what}; repeat the request"))
}

impl Progress {
    fn number(&self) -> Result<u32, EngineError> {
        self.device.as_ref().map(|device| device.number).ok_or_else(|| missing("loop device"))
    }

    /// Replaces the device that is kept open. The old one stays attached: it is mounted, staged, or below the new one.
    fn keep(&mut self, device: AttachedLoop) {
        if let Some(old) = self.device.replace(device) {
            old.release();
        }
    }
}

impl Engine {
    /// Carries out a plan.
    ///
    /// # Errors
    /// The first step that failed, with the steps before it taken back.
    pub(super) fn apply(&self, target: &Target<'_>, steps: &[Step]) -> Result<(), EngineError> {
        let mut progress = Progress::default();
        for step in steps {
            if let Err(error) = self.carry_out(target, step, &mut progress) {
                return Err(error.with_undo(self.take_back(progress)));
            }
        }
        Ok(())
    }

    fn take_back(&self, progress: Progress) -> Result<(), HostError> {
        let mut result = Ok(());
        let mut device = progress.device;
        for undo in progress.undo.into_iter().rev() {
            let undone = match undo {
                Undo::RemoveMountPoint(path) => self.host.remove_mount_point(&path),
                Undo::Unmount(path) => self.host.unmount(&path),
                Undo::Detach(number) => {
                    // While it is held, nobody else can get the number.
                    let seen = self.host.loop_status(number);
                    if let Some(device) = device.take() {
                        device.release();
                    }
                    seen.and_then(|seen| match seen {
                        Some(seen) => self.host.detach(number, seen.backing),
                        None => Ok(()),
                    })
                }
            };
            result = result.and(undone);
        }
        result
    }

    fn carry_out(
        &self,
        target: &Target<'_>,
        step: &Step,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        match step {
            Step::MakeDirectory(path) => {
                self.make_mount_point(path, MountPoint::Directory, progress)
            }
            Step::EnsureDirectory(path) => match self.host.node(path)? {
                Some(node) if node.kind == NodeKind::Directory => Ok(()),
                Some(_) | None => self.make_mount_point(path, MountPoint::Directory, progress),
            },
            Step::MakeFile(path) => self.make_mount_point(path, MountPoint::File, progress),
            Step::BindData(path, attributes) => {
                let Data::Directory { fd, .. } = target.data else {
                    return Err(missing("directory"));
                };
                self.bind(BindSource::Fd(fd.as_fd()), path, *attributes, progress)
            }
            Step::BindStaged(path, attributes) => {
                let staged = target.staged.ok_or_else(|| missing("staging path"))?;
                self.bind(BindSource::Path(staged), path, *attributes, progress)
            }
            Step::BindDevice(path) => {
                let node = loop_path(progress.number()?);
                self.bind(BindSource::Path(&node), path, MountAttributes::default(), progress)
            }
            Step::Hold(number) => self.hold_loop(target.located, *number, progress),
            Step::Attach { read_only, autoclear } => {
                self.attach_image(target.located, *read_only, *autoclear, progress)
            }
            Step::AttachView => self.attach_view(target.located, progress),
            Step::Check => self.check_filesystem(target.located, progress.number()?),
            Step::GrowUnmounted => {
                let number = progress.number()?;
                let grown = self.host.grow_unmounted(number, filesystem(target.located)?);
                grown.map_err(still_at_work)
            }
            Step::MountFilesystem(path, attributes) => {
                self.mount_filesystem(target, path, *attributes, progress)
            }
            Step::Grow(path) => {
                // The data can be reached as it is; NodeExpandVolume says why it does not grow.
                if let Err(error) = self.grow_mounted(target.located, path) {
                    let error = chain(&error);
                    tracing::warn!(volume = %target.located.id(), error, "the filesystem does not grow to its image");
                }
                Ok(())
            }
        }
    }

    fn hold_loop(
        &self,
        located: &Located,
        number: u32,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let dir = located.pool.store.open_volume(&located.volume().key)?;
        let image = backend::identity(&dir)?;
        let held = self.host.hold(number, image, located.allocation());
        progress.keep(held.map_err(changed_hands)?);
        Ok(())
    }

    fn mount_filesystem(
        &self,
        target: &Target<'_>,
        path: &Path,
        attributes: MountAttributes,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let mounted = self.host.mount(&FilesystemMount {
            loop_number: progress.number()?,
            filesystem: filesystem(target.located)?,
            target: path,
            attributes,
            options: target.options,
        });
        match self.note_mount(path, mounted, progress) {
            Err(EngineError::Host(error)) => Err(still_at_work(error)),
            noted => noted,
        }
    }

    /// Remembers to unmount should a later step fail, or this one have failed after all was done: the plan saw nothing
    /// mounted at the path.
    fn note_mount(
        &self,
        path: &Path,
        result: Result<(), HostError>,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        if result.is_ok() || self.host.mounts()?.top_at(path).is_some() {
            progress.undo.push(Undo::Unmount(path.to_owned()));
        }
        Ok(result?)
    }

    fn make_mount_point(
        &self,
        path: &Path,
        kind: MountPoint,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let existed = self.host.node(path)?.is_some();
        self.host.make_mount_point(path, kind).map_err(in_the_way)?;
        if !existed {
            progress.undo.push(Undo::RemoveMountPoint(path.to_owned()));
        }
        Ok(())
    }

    fn bind(
        &self,
        source: BindSource<'_>,
        path: &Path,
        attributes: MountAttributes,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let bound = self.host.bind(source, path, attributes);
        self.note_mount(path, bound, progress)
    }

    /// Looks for a loop device on the image and sets one up if there is none, under a lock on the image: two on one
    /// image would destroy it.
    fn attach_image(
        &self,
        located: &Located,
        read_only: bool,
        autoclear: bool,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let volume = located.volume();
        let Resolved::Loop { sector, direct_io, .. } = volume.resolved else {
            return Err(missing("image"));
        };
        let dir = located.pool.store.open_volume(&volume.key)?;
        // A descriptor of its own: the kernel keeps the one that it is given, and with it any lock on it.
        let _lock = Flock::lock(dir.image_to_read()?, FlockArg::LockExclusiveNonblock).map_err(
            |(_, e)| {
                EngineError::Precondition(format!(
                    "the image of volume {} is locked by another process ({e})",
                    located.id()
                ))
            },
        )?;
        if let Some(other) = backend::loops_on(backend::identity(&dir)?, &*self.host)?.first() {
            return Err(EngineError::Precondition(format!(
                "/dev/loop{} appeared on the image meanwhile; repeat the request",
                other.number
            )));
        }
        let label = located.id().to_string();
        let allocation = located.allocation();
        let options =
            LoopOptions { label: &label, read_only, autoclear, direct_io, sector, allocation };
        let device = self.host.attach(dir.image_to_write()?.as_fd(), options)?;
        if !autoclear {
            progress.undo.push(Undo::Detach(device.number));
        }
        progress.keep(device);
        Ok(())
    }

    /// A read-only loop device on top of the one that is kept; it lives until its target is unpublished.
    fn attach_view(&self, located: &Located, progress: &mut Progress) -> Result<(), EngineError> {
        let label = located.id().to_string();
        let options = LoopOptions {
            label: &label,
            read_only: true,
            autoclear: false,
            direct_io: DirectIo::Off,
            sector: 512,
            allocation: Allocation::Thin,
        };
        let view = self.host.attach_view(progress.number()?, options)?;
        progress.undo.push(Undo::Detach(view.number));
        progress.keep(view);
        Ok(())
    }

    /// What is on the device is the filesystem of the record; it is repaired only when its superblock asks for that.
    fn check_filesystem(&self, located: &Located, number: u32) -> Result<(), EngineError> {
        let wanted = filesystem(located)?;
        let file = located.pool.store.open_volume(&located.volume().key)?.image_to_read()?;
        match self.host.probe(file.as_fd())? {
            Some(signature) if signature.filesystem == wanted => {
                if signature.has_errors {
                    tracing::warn!(volume = %located.id(), "the filesystem has errors; repairing it");
                    self.host.repair(number, wanted).map_err(still_at_work)?;
                    telemetry::recovery(Recovery::Filesystem);
                }
                Ok(())
            }
            other => Err(EngineError::Precondition(format!(
                "the image of volume {} should hold {wanted} but holds {}; it is left as it is: restore it from a backup",
                located.id(),
                other.map_or("nothing known", |signature| signature.filesystem.as_str())
            ))),
        }
    }

    fn grow_mounted(&self, located: &Located, path: &Path) -> Result<(), EngineError> {
        let entry = self.host.mounts()?.top_at(path).and_then(MountEntry::mounted_loop);
        let device: ByteSize =
            self.host.refresh_loop_size(entry.ok_or_else(|| missing("mount"))?)?;
        self.grow_filesystem(located, filesystem(located)?, path, device)
    }
}

/// Something that is not the volume's lies where it is mounted, or where a mount point is to be removed.
pub(super) fn in_the_way(error: HostError) -> EngineError {
    let full =
        matches!(error.errno(), Some(nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::EEXIST));
    if full || matches!(error, HostError::Unexpected { .. }) {
        return EngineError::Precondition(format!(
            "{}; what lies there is not the volume's and is left as it is: move it away, then repeat",
            chain(&error)
        ));
    }
    error.into()
}

/// A program of a run that was killed may still work on the device; it ends by itself.
fn still_at_work(error: HostError) -> EngineError {
    if error.errno() == Some(nix::errno::Errno::EBUSY) {
        let error = chain(&error);
        return EngineError::Precondition(format!(
            "the device is in use ({error}); repeat the request"
        ));
    }
    error.into()
}

/// A loop device with AUTOCLEAR that a dead driver's program kept open goes when that ends, between the look and the use.
fn changed_hands(error: HostError) -> EngineError {
    if matches!(error, HostError::Unexpected { .. }) {
        return EngineError::Precondition(chain(&error));
    }
    error.into()
}

fn filesystem(located: &Located) -> Result<Filesystem, EngineError> {
    match located.volume().resolved {
        Resolved::Loop { filesystem: Some(filesystem), .. } => Ok(filesystem),
        Resolved::Loop { filesystem: None, .. } | Resolved::Hostpath => Err(missing("filesystem")),
    }
}
