//! `orlop pool check`: what a pool is looked at for while its driver is up or down, and what can be mended without a risk.
//!
//! Invariants: looking changes nothing and takes no lock; mending reserves blocks that are missing, switches discards off and
//! removes an image that never had its name, and nothing else.

mod contents;
mod devices;

pub use contents::check_side_by_side;
pub(super) use contents::{in_words, lost};

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::managed::{base_loops, create_word};
use super::{EngineError, PoolBase, PoolConfig, chain};
use crate::backend::fill_holes;
use crate::host::{DeviceNumber, FileIdentity, Host, HostError, MountEntry};
use crate::store::{IMAGE, Images, Making, Pool, PoolLook, StateDir};
use crate::volume::{Allocation, ByteSize};

/// What was seen of one pool, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What was looked at, and is as it should be.
    pub good: Vec<String>,
    /// What is wrong.
    pub findings: Vec<String>,
    /// What was mended.
    pub repaired: Vec<String>,
}

/// A check that runs.
struct Check<'a> {
    host: &'a dyn Host,
    config: &'a PoolConfig,
    root_dir: &'a Path,
    repair: bool,
    report: CheckReport,
}

/// Looks at a pool. With `repair` mends what cannot lose anything; what was mended is no finding.
///
/// # Errors
/// The state directory cannot be read, or the kernel does not show its mounts or loop devices.
pub fn check_pool(
    root_dir: &Path,
    config: &PoolConfig,
    host: &dyn Host,
    repair: bool,
) -> Result<CheckReport, EngineError> {
    let mut check = Check { host, config, root_dir, repair, report: CheckReport::default() };
    check.marker()?;
    check.base()?;
    check.mount()?;
    check.contents();
    check.devices()?;
    Ok(check.report)
}

impl Check<'_> {
    fn good(&mut self, what: impl Into<String>) {
        self.report.good.push(what.into());
    }

    fn wrong(&mut self, what: impl Into<String>) {
        self.report.findings.push(what.into());
    }

    /// Mends it, or says what is wrong.
    fn mend(&mut self, what: &str, done: &str, repair: impl FnOnce() -> Result<(), EngineError>) {
        if !self.repair {
            self.wrong(what);
            return;
        }
        match repair() {
            Ok(()) => self.report.repaired.push(format!("{what}: {done}")),
            Err(error) => self.wrong(format!("{what}, and it cannot be mended: {}", chain(&error))),
        }
    }

    /// The state of the root directory, if a driver has used it.
    fn state(&self) -> Result<Option<StateDir>, EngineError> {
        let used = self.root_dir.join("state").is_dir();
        Ok(if used { Some(StateDir::open(self.root_dir)?) } else { None })
    }

    fn marker(&mut self) -> Result<(), EngineError> {
        let known = match self.state()?.map(|state| state.known(&self.config.name)) {
            Some(Err(error)) => {
                self.wrong(chain(&error));
                None
            }
            Some(Ok(known)) => known,
            None => None,
        };
        match (Pool::look(&self.config.path), known) {
            (Ok(PoolLook::Pool(marker)), Some(known)) if !marker.is_or_was(&known) => {
                self.wrong(format!(
                    "the marker says {}, and state/ knows the pool as {known}: mount the right disk",
                    marker.uuid
                ));
            }
            (Ok(PoolLook::Pool(marker)), _) => self.good(format!("marker {}", marker.uuid)),
            // Of a managed pool it is told what is wrong with its base and its mount; nobody makes it by hand.
            (Ok(PoolLook::Absent | PoolLook::Empty | PoolLook::Foreign(_)), _)
                if self.config.create.is_some() => {}
            (Ok(PoolLook::Absent | PoolLook::Empty | PoolLook::Foreign(_)), _) => {
                self.wrong("there is no marker pool.json: it is not mounted, or not made yet; mount its disk, or run `orlop pool init`");
            }
            (Err(error), _) => self.wrong(chain(&error)),
        }
        Ok(())
    }

    /// The image of a managed pool.
    fn base(&mut self) -> Result<(), EngineError> {
        let Some(create) = &self.config.create else { return Ok(()) };
        self.good(create_word(create));
        let PoolBase::Image { size, sparse } = &create.base else { return Ok(()) };
        let (size, sparse) = (*size, *sparse);
        let Some(images) = Images::find(self.root_dir)? else {
            self.wrong("there is no directory of images; the driver makes it when it starts");
            return Ok(());
        };
        self.leftover(&images)?;
        let Some(image) = images.image_to_read(&self.config.name)? else {
            return self.no_image();
        };
        let image = std::fs::File::from(image);
        let metadata = image.metadata().map_err(|e| HostError::call("look at", IMAGE, e))?;
        let length = ByteSize::new(metadata.len());
        self.blocks(&images, &image, length, size, sparse)?;
        self.loops(FileIdentity {
            device: DeviceNumber::of_stat(metadata.dev()),
            inode: metadata.ino(),
        })
    }

    fn no_image(&mut self) -> Result<(), EngineError> {
        let record = match self.state()? {
            Some(state) => state.managed(&self.config.name)?,
            None => None,
        };
        self.wrong(if record.is_some_and(|record| record.making == Making::Made) {
            "its image is not there; put it back, nothing is made in its place"
        } else {
            "it is not made yet; the driver makes it when it starts, and its log says why where it cannot"
        });
        Ok(())
    }

    /// The image is as long as it should be, and has all its blocks.
    fn blocks(
        &mut self,
        images: &Images,
        image: &std::fs::File,
        length: ByteSize,
        size: ByteSize,
        sparse: bool,
    ) -> Result<(), EngineError> {
        if length < size {
            self.wrong(format!(
                "its image has {length}, and {size} are configured: it grows when the driver starts"
            ));
        } else {
            self.good(format!("image of {length}"));
        }
        if sparse {
            self.wrong(
                "DEGRADED: its image is sparse, so writers fail when the filesystem below is full",
            );
        } else if self.host.allocated(image.as_fd())? < length {
            let path = images.path_of(&self.config.name);
            self.mend("its image has holes", "their blocks are reserved", || {
                let image = std::fs::OpenOptions::new().write(true).open(&path);
                let image = image.map_err(|e| HostError::call("open", IMAGE, e))?;
                Ok(fill_holes(image.as_fd())?)
            });
        } else {
            self.good("all blocks of the image are reserved");
        }
        Ok(())
    }

    fn leftover(&mut self, images: &Images) -> Result<(), EngineError> {
        let name = self.config.name.clone();
        if !images.has_leftover(&name)? {
            return Ok(());
        }
        let Some(state) = self.state()? else { return Ok(()) };
        // A driver that is up is making it, or removes it itself.
        let Ok(_lock) = state.lock(&name) else { return Ok(()) };
        self.mend("an image was left unfinished", "it never was anybody's and is removed", || {
            Ok(images.remove_leftover(&name)?)
        });
        Ok(())
    }

    fn loops(&mut self, image: FileIdentity) -> Result<(), EngineError> {
        let host = self.host;
        let found = base_loops(self.host, image)?;
        match found.as_slice() {
            [] => self.wrong("no loop device is on its image: it is not mounted; the driver mounts it when it starts"),
            [number] => {
                self.good(format!("one loop device, /dev/loop{number}"));
                if self.host.takes_discards(*number) {
                    self.mend("its loop device takes discards, so that its blocks leak away", "switched off", || {
                        refuse_discards(host, *number, image)
                    });
                } else {
                    self.good("its loop device takes no discards");
                }
            }
            several => self.wrong(format!("{} loop devices are on its image, which can destroy it: end its pods, unmount it and detach all", several.len())),
        }
        Ok(())
    }

    fn mount(&mut self) -> Result<(), EngineError> {
        let Ok(place) = self.config.path.canonicalize() else { return Ok(()) };
        let table = self.host.mounts()?;
        let Some(mount) = table.containing(&place).cloned() else { return Ok(()) };
        if self.config.create.is_some() && mount.mount_point != place {
            self.wrong("it is not mounted; the driver mounts it when it starts");
            return Ok(());
        }
        if self.config.create.is_some() {
            self.managed_mount(&mount, &place)?;
        }
        if mount.filesystem_stopped {
            self.wrong(
                "the kernel has stopped its filesystem after an error; look at the kernel's log",
            );
        } else if mount.is_read_only() {
            self.wrong(
                "its filesystem is read-only; look at the kernel's log, mount it for writing again",
            );
        }
        match self.host.filesystem_errors(&mount) {
            0 => self.good("no errors counted on its filesystem"),
            errors => {
                self.wrong(format!("the kernel has counted {errors} errors on its filesystem; check the disk and, unmounted, the filesystem"));
            }
        }
        Ok(())
    }

    fn managed_mount(&mut self, mount: &MountEntry, place: &Path) -> Result<(), EngineError> {
        let record = match self.state()? {
            Some(state) => state.managed(&self.config.name)?,
            None => None,
        };
        let uuid = self.host.mounted_uuid(place)?;
        match record {
            Some(record) if Some(record.uuid) == uuid => {
                self.good(format!("mounted, filesystem {}", record.uuid));
            }
            _ => self.wrong("what is mounted is not the filesystem that state/ knows; unmount it, and let the driver mount the right one"),
        }
        if mount.has_option("noatime") {
            self.good("mount options");
        } else {
            self.wrong("it is mounted without noatime, so not by the driver: unmount it and let the driver do it");
        }
        Ok(())
    }
}

/// Takes the loop device for a moment, which switches its discards off.
fn refuse_discards(host: &dyn Host, number: u32, image: FileIdentity) -> Result<(), EngineError> {
    host.hold(number, image, Allocation::Thick)?.release();
    Ok(())
}
