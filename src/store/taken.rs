//! What the volumes of a pool take of its filesystem, as far as their images and limits tell.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use super::charge::{Charge, Charges};
use super::index::{Entry, Footprint};
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

impl Pool {
    /// What the volumes take now. Costs one system call for each image and each limit.
    #[must_use]
    pub fn taken(&self, host: &dyn Host) -> Taken {
        let index = self.index();
        let mut taken =
            Taken { charges: index.charges(), revision: index.revision(), ..Taken::default() };
        let asked: Vec<_> = index
            .after(None)
            .filter_map(|(key, entry)| {
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
            })
            .collect();
        drop(index);
        for Asked { key, footprint, allocation, charge } in asked {
            // One that cannot be looked at is left to what is not known.
            if let Some(has) = self.has(&key, footprint, host) {
                taken.known = taken.known.plus(Charge::of(has.min(charge), allocation));
                taken.covered = taken.covered.plus(Charge::of(charge, allocation));
            }
        }
        taken
    }

    fn has(&self, key: &Key, footprint: Footprint, host: &dyn Host) -> Option<ByteSize> {
        match footprint {
            Footprint::Unknown => None,
            Footprint::Limit(limit) => {
                let state = host.limit_state(self.directory(), limit).ok()??;
                Some(state.used)
            }
            Footprint::Image => {
                let place = Path::new(key.as_str()).join(IMAGE);
                let volumes = self.directories().of(Kind::Volume);
                let stat = dir::stat(volumes.as_fd(), OsStr::new(&place)).ok()??;
                // Always in units of 512 bytes (stat(2)).
                let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
                Some(ByteSize::new(blocks.saturating_mul(512)))
            }
        }
    }

    /// Which state of the charges this is.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.index().revision()
    }
}
