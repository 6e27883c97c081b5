//! What the volumes of a pool take of its filesystem, as far as their images and limits tell.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::charge::{Charge, Charges};
use super::index::{Entry, Footprint, Index};
use super::pool::Pool;
use super::{IMAGE, Kind, Name, dir};
use crate::host::Host;
use crate::volume::{Allocation, ByteSize, Key};

/// What volumes take, and what they are charged, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// What the volumes that can be asked have of the filesystem, each at most its charge.
    pub known: Charge,
    /// What those volumes are charged, and others for what these wrote.
    pub covered: Charge,
    /// What everything is charged.
    pub charges: Charges,
    /// Which state of the pool that is: it is another one after every change of the charges.
    pub revision: u64,
}

/// A volume that can be asked.
struct Asked {
    key: Key,
    footprint: Footprint,
    allocation: Allocation,
    /// It is charged so much, and others for what it wrote.
    charge: ByteSize,
}

/// The volumes that can be asked.
fn to_ask(index: &Index) -> Vec<Asked> {
    let ask = |(key, entry): (&Key, &Entry)| {
        let Entry::Whole { generation, size, allocation, footprint, .. } = entry else {
            return None;
        };
        let others = match footprint {
            Footprint::Unknown => return None,
            // A simple quota has all that the volume wrote, whoever has it now.
            Footprint::Limit(limit) if limit.kind.charges_first_writer() => {
                let itself = Name { key: key.clone(), generation: generation.clone() };
                index.shared_by_others(&itself)
            }
            Footprint::Limit(_) | Footprint::Image => ByteSize::ZERO,
        };
        let (charge, footprint) = (size.saturating_add(others), *footprint);
        Some(Asked { key: key.clone(), footprint, allocation: *allocation, charge })
    };
    index.after(None).filter_map(ask).collect()
}

impl Asked {
    /// What it takes; `None` when that cannot be looked at. `root` is the pool's directory.
    fn has(&self, root: BorrowedFd<'_>, host: &dyn Host) -> Option<ByteSize> {
        match self.footprint {
            Footprint::Unknown => None,
            Footprint::Limit(limit) => Some(host.limit_state(root, limit).ok()??.used),
            Footprint::Image => {
                let place = Path::new(Kind::Volume.directory()).join(self.key.as_str()).join(IMAGE);
                let stat = dir::stat(root, place.as_os_str()).ok()??;
                // Always in units of 512 bytes (stat(2)).
                let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
                Some(ByteSize::new(blocks.saturating_mul(512)))
            }
        }
    }
}

impl Taken {
    /// What everything is charged, before anybody was asked.
    fn charged(index: &Index) -> Self {
        Self { charges: index.charges(), revision: index.revision(), ..Self::default() }
    }

    fn ask(mut self, volumes: &[Asked], root: BorrowedFd<'_>, host: &dyn Host) -> Self {
        for volume in volumes {
            // One that cannot be looked at is left to what is not known.
            if let Some(has) = volume.has(root, host) {
                let (charge, allocation) = (volume.charge, volume.allocation);
                self.known = self.known.plus(Charge::of(has.min(charge), allocation));
                self.covered = self.covered.plus(Charge::of(charge, allocation));
            }
        }
        self
    }

    /// The same for a pool that is only looked at.
    pub(super) fn of(index: &Index, root: BorrowedFd<'_>, host: &dyn Host) -> Self {
        Self::charged(index).ask(&to_ask(index), root, host)
    }
}

impl Pool {
    /// What the volumes take now. Costs one system call for each image and each limit.
    #[must_use]
    pub fn taken(&self, host: &dyn Host) -> Taken {
        let index = self.index();
        let (taken, volumes) = (Taken::charged(&index), to_ask(&index));
        drop(index);
        taken.ask(&volumes, self.directory(), host)
    }

    /// Which state of the charges this is.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.index().revision()
    }
}
