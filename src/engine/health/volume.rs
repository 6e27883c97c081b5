//! What can be seen of one volume: its data in the pool, its loop devices, its filesystem, its mounts.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;

use super::Round;
use super::condition::{Condition, Findings};
use crate::backend;
use crate::engine::observe::{DEVICE, Observed};
use crate::engine::plan::{Kind, Seen};
use crate::engine::{Engine, EngineError, Located, chain};
use crate::host::{DeviceNumber, FileIdentity, LoopStatus, MountEntry};
use crate::store::{DATA, IMAGE, Import, Resolved, StoreError, VolumeDir};
use crate::volume::{Allocation, ByteSize, Filesystem};

/// A file that cannot be opened is missing or unreadable.
pub(in crate::engine) fn unopened(error: &StoreError) -> Condition {
    // Damaged: something else lies there under its name.
    let missing = error.is_absent() || matches!(error, StoreError::Damaged { .. });
    if missing { Condition::DataMissing } else { Condition::DataUnreadable }
}

fn add_unopened(findings: &mut Findings, what: &str, error: &StoreError) {
    findings.add(unopened(error), &format!("{what}: {}", chain(error)));
}

impl Engine {
    /// What is wrong with a volume whose record was read.
    pub(super) fn volume_findings(
        &self,
        located: &Located,
        round: &Round,
        findings: &mut Findings,
    ) {
        let volume = located.volume();
        if let Some(Import { source, moving: Some(_) }) = &volume.import {
            let detail = format!("its data comes from {source}");
            return findings.add(Condition::ImportUnfinished, &detail);
        }
        let dir = match located.pool.store.open_volume(&volume.key) {
            Ok(dir) => dir,
            Err(error) => return add_unopened(findings, "the volume's directory", &error),
        };
        match volume.resolved {
            Resolved::Hostpath => match dir.directory(DATA) {
                Ok(data) => self.limit_findings(located, data.as_fd(), findings),
                Err(error) => add_unopened(findings, "the data directory", &error),
            },
            Resolved::Loop { filesystem, .. } => {
                self.image_findings(located, &dir, filesystem, round, findings);
            }
        }
    }

    fn image_findings(
        &self,
        located: &Located,
        dir: &VolumeDir,
        filesystem: Option<Filesystem>,
        round: &Round,
        findings: &mut Findings,
    ) {
        let image = match dir.image_to_read() {
            Ok(image) => image,
            Err(error) => return add_unopened(findings, "the image", &error),
        };
        let metadata = match image.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                let error = StoreError::io("look at", IMAGE, error);
                return add_unopened(findings, "the image", &error);
            }
        };
        let device = DeviceNumber::of_stat(metadata.dev());
        let identity = FileIdentity { device, inode: metadata.ino() };
        let size = located.volume().size;
        if metadata.len() < size.bytes() {
            let detail = format!("the image has {} bytes, the volume {size}", metadata.len());
            findings.add(Condition::ImageTruncated, &detail);
        } else if located.volume().resolved.allocation() == Allocation::Thick {
            let missing = backend::lacks(&metadata, size);
            if missing > ByteSize::ZERO {
                let detail = format!("the image lacks {missing} of its blocks");
                findings.add(Condition::BlocksMissing, &detail);
            }
        }
        let loops = round.loops_of(located, identity, findings);
        let Some(filesystem) = filesystem else { return };
        let mounts: Vec<&MountEntry> = round.mounts_of(&loops).collect();
        if mounts.is_empty() {
            self.signature_findings(image.as_fd(), filesystem, findings);
        }
        self.mount_findings(&mounts, round, findings);
    }

    /// What an image says that is not mounted.
    fn signature_findings(
        &self,
        image: BorrowedFd<'_>,
        filesystem: Filesystem,
        findings: &mut Findings,
    ) {
        match self.host.probe(image) {
            Ok(Some(found)) if found.filesystem == filesystem => {
                if found.has_errors {
                    let detail =
                        format!("the {filesystem} on the image is marked as having errors");
                    findings.add(Condition::FilesystemErrors, &detail);
                }
            }
            Ok(Some(found)) => {
                let detail =
                    format!("the image begins with {}, not with {filesystem}", found.filesystem);
                findings.add(Condition::FilesystemMissing, &detail);
            }
            Ok(None) => {
                let detail = format!("the image does not begin with {filesystem}");
                findings.add(Condition::FilesystemMissing, &detail);
            }
            Err(error) => findings.add(Condition::DataUnreadable, &chain(&error)),
        }
    }

    /// What the kernel says of a filesystem that is mounted.
    fn mount_findings(&self, mounts: &[&MountEntry], round: &Round, findings: &mut Findings) {
        let Some(first) = mounts.first() else { return };
        let errors = self.host.filesystem_errors(first);
        if errors > 0 {
            let (filesystem, source) = (&first.filesystem, first.source.display());
            let detail =
                format!("the kernel has counted {errors} errors on the {filesystem} on {source}");
            findings.add(Condition::FilesystemErrors, &detail);
        }
        let mut writable = mounts.iter().filter(|mount| !mount.has_option("ro"));
        if let Some(detail) = self.stopped(mounts, round) {
            findings.add(Condition::FilesystemStopped, &detail);
        } else if let Some(mount) = writable.find(|mount| mount.filesystem_read_only) {
            let detail =
                format!("the {} at {} is read-only", mount.filesystem, mount.mount_point.display());
            findings.add(Condition::FilesystemReadOnly, &detail);
        }
    }

    /// How it shows that the kernel has stopped a filesystem.
    fn stopped(&self, mounts: &[&MountEntry], round: &Round) -> Option<String> {
        if let Some(mount) = mounts.iter().find(|mount| mount.filesystem_stopped) {
            let (filesystem, place) = (&mount.filesystem, mount.mount_point.display());
            return Some(format!("the kernel has stopped the {filesystem} at {place}"));
        }
        // One that is shut down, and does not say so in the mount table, refuses to let its root be looked at.
        let visible =
            |mount: &&&MountEntry| round.table.top_at(&mount.mount_point) == Some(**mount);
        match self.host.node(&mounts.iter().find(visible)?.mount_point) {
            Err(error) if error.errno() == Some(Errno::EIO) => Some(chain(&error)),
            Ok(_) | Err(_) => None,
        }
    }

    /// What is wrong at the paths where the CO has the volume, or tried to have it.
    ///
    /// # Errors
    /// A path is none that a volume can be mounted at.
    pub(super) fn path_findings(
        &self,
        located: &Located,
        paths: &[&Path],
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        if paths.is_empty() {
            return Ok(());
        }
        let observed = match self.observe(located) {
            Ok(observed) => observed,
            // Nothing to compare with; why has been told of the data.
            Err(_) if findings.is_about_the_volume() => return Ok(()),
            Err(error) => {
                findings.add(Condition::DataUnreadable, &chain(&error));
                return Ok(());
            }
        };
        for path in paths {
            let shown = path.display();
            let seen = match self.mount_path(path)? {
                None => Ok(Seen::Nothing),
                Some(path) => self.seen_at(&observed, &path),
            };
            match seen {
                Ok(Seen::Same(_)) => {}
                Ok(Seen::Nothing) => {
                    let detail = format!("the volume is not mounted at {shown}");
                    findings.add(Condition::MountMissing, &detail);
                }
                Ok(Seen::Other(what)) => {
                    let detail = format!("{what} is mounted at {shown}");
                    findings.add(Condition::MountReplaced, &detail);
                }
                Err(error) => findings.add(Condition::FilesystemStopped, &chain(&error)),
            }
        }
        Ok(())
    }

    /// The staging path of a raw block volume is a directory; its device is in it.
    fn seen_at(&self, observed: &Observed, path: &Path) -> Result<Seen, EngineError> {
        let seen = self.seen(observed, path)?;
        if seen == Seen::Nothing && observed.data.kind() == Kind::Device {
            return self.seen(observed, &path.join(DEVICE));
        }
        Ok(seen)
    }
}

impl Round {
    /// The loop devices on a volume's image, and what is wrong with them.
    fn loops_of(
        &self,
        located: &Located,
        image: FileIdentity,
        findings: &mut Findings,
    ) -> Vec<&LoopStatus> {
        let names = |loops: &[&LoopStatus]| {
            let names: Vec<_> =
                loops.iter().map(|status| format!("/dev/loop{}", status.number)).collect();
            names.join(" and ")
        };
        let own: Vec<_> = self.loops.iter().filter(|status| status.is_on(image)).collect();
        let partial: Vec<_> = own.iter().copied().filter(|status| status.partial).collect();
        if own.len() > 1 {
            findings.add(Condition::LoopConflict, &format!("{} are on the image", names(&own)));
        } else if !partial.is_empty() {
            let detail = format!("{} shows only a part of the image", names(&partial));
            findings.add(Condition::LoopConflict, &detail);
        }
        let id = located.id().to_string();
        let strays = self.loops.iter().filter(|status| {
            status.label == id && status.backing_device.is_none() && !status.is_on(image)
        });
        let strays: Vec<_> = strays.collect();
        if !strays.is_empty() {
            let detail = format!("{} has the volume's name and another file", names(&strays));
            findings.add(Condition::ImageReplaced, &detail);
        }
        own
    }

    /// Where the filesystem of one of these loop devices is mounted.
    fn mounts_of<'a>(&'a self, loops: &'a [&LoopStatus]) -> impl Iterator<Item = &'a MountEntry> {
        self.table.iter().filter(|entry| {
            let number = entry.mounted_loop();
            number.is_some_and(|number| loops.iter().any(|status| status.number == number))
        })
    }
}
