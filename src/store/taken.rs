//! What the volumes of a pool take of its filesystem, as far as their images tell.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use super::charge::{Charge, Charges};
use super::index::{Entry, Footprint};
use super::pool::Pool;
use super::{IMAGE, Kind, dir};
use crate::volume::ByteSize;

/// What volumes take, and what they are charged, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// What the volumes whose images tell have of the filesystem, each at most its charge.
    pub known: Charge,
    /// What those volumes are charged.
    pub covered: Charge,
    /// What everything is charged.
    pub charges: Charges,
    /// Which state of the pool that is: it is another one after every change of the charges.
    pub revision: u64,
}

impl Pool {
    /// What the volumes take now. Costs one `fstatat` for each image.
    #[must_use]
    pub fn taken(&self) -> Taken {
        let index = self.index();
        let mut taken =
            Taken { charges: index.charges(), revision: index.revision(), ..Taken::default() };
        let images: Vec<_> = index
            .after(None)
            .filter_map(|(key, entry)| match entry {
                Entry::Whole { size, allocation, footprint: Footprint::Image, .. } => {
                    Some((key.clone(), *size, *allocation))
                }
                Entry::Whole { footprint: Footprint::Unknown, .. } | Entry::Damaged { .. } => None,
            })
            .collect();
        drop(index);
        let volumes = self.directories().of(Kind::Volume);
        for (key, size, allocation) in images {
            let place = Path::new(key.as_str()).join(IMAGE);
            // One that cannot be looked at is left to what is not known.
            if let Ok(Some(stat)) = dir::stat(volumes.as_fd(), OsStr::new(&place)) {
                // Always in units of 512 bytes (stat(2)).
                let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
                let has = ByteSize::new(blocks.saturating_mul(512)).min(size);
                taken.known = taken.known.plus(Charge::of(has, allocation));
                taken.covered = taken.covered.plus(Charge::of(size, allocation));
            }
        }
        taken
    }

    /// Which state of the charges this is.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.index().revision()
    }
}
