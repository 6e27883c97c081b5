//! What a volume takes, and how that is known.
//!
//! Whoever asks waits for a constant number of system calls, whatever is in the volume: a limit tells its use, a filesystem
//! of its own tells its space. A directory without a limit is counted in the background (see `counting`).

use std::os::fd::AsFd;

use super::open_pool::OpenPool;
use super::{Engine, EngineError, Located, counting};
use crate::backend::{self, AtOnce, Count};
use crate::host::{Bounds, Host, LimitState, Space};
use crate::store::{PoolView, Resolved, Volume};
use crate::volume::ByteSize;

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In all.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// For ordinary users to take.
    pub available: u64,
}

/// How it is known what is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The filesystem counts what is under the volume's limit.
    Quota,
    /// The volume has a filesystem of its own.
    Filesystem,
    /// The blocks of the volume's image.
    Image,
    /// Its files were counted, and the count ended then.
    Counted(jiff::Timestamp),
    /// Nothing is known of this volume alone: the figures are those of its pool's filesystem.
    Pool,
}

impl Basis {
    /// In one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Filesystem => "filesystem",
            Self::Image => "image",
            Self::Counted(_) => "counted",
            Self::Pool => "pool",
        }
    }
}

/// What a volume takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeUsage {
    /// A mounted volume.
    Mounted {
        /// Bytes.
        bytes: Usage,
        /// Inodes; `None` where the filesystem has no number of them.
        inodes: Option<Usage>,
        /// How what is in use is known.
        basis: Basis,
    },
    /// A raw block device: only its size can be known.
    Device {
        /// Bytes.
        total: ByteSize,
    },
}

/// The figures of a filesystem.
pub(super) fn of_filesystem(space: Space, basis: Basis) -> VolumeUsage {
    VolumeUsage::Mounted {
        bytes: Usage {
            total: space.total.bytes(),
            used: space.total.saturating_sub(space.free).bytes(),
            available: space.available.bytes(),
        },
        inodes: (space.inodes > 0).then(|| Usage {
            total: space.inodes,
            used: space.inodes.saturating_sub(space.inodes_free),
            available: space.inodes_free,
        }),
        basis,
    }
}

/// What a volume is that has a limit.
#[derive(Debug, Clone, Copy)]
struct Held {
    size: ByteSize,
    /// What it began with and another volume wrote.
    began: ByteSize,
}

impl From<&Volume> for Held {
    fn from(volume: &Volume) -> Self {
        let began = volume.shared.iter().map(|shared| shared.size);
        let began = began.fold(ByteSize::ZERO, ByteSize::saturating_add);
        Self { size: volume.size, began }
    }
}

impl Held {
    /// What it takes. Where bytes belong to who wrote them first, what it began with counts as well as what it wrote: nobody
    /// knows how much of that replaced the other. For the same reason what only its snapshots have still counts, and so
    /// the whole may be more than its size.
    fn used(self, state: LimitState) -> ByteSize {
        state.used.saturating_add(self.began).min(self.size)
    }

    /// The figures of a limit that is in force.
    fn usage(self, state: LimitState, bounds: Bounds, space: Space) -> VolumeUsage {
        let used = self.used(state);
        let left = self.size.saturating_sub(used).min(bounds.bytes.saturating_sub(state.used));
        let inodes = state.inodes.and_then(|used| {
            let total = bounds.inodes.or_else(|| (space.inodes > 0).then_some(space.inodes))?;
            let available = total.saturating_sub(used).min(space.inodes_free);
            Some(Usage { total, used, available })
        });
        let bytes = Usage {
            total: self.size.bytes(),
            used: used.bytes(),
            available: left.min(space.available).bytes(),
        };
        VolumeUsage::Mounted { bytes, inodes, basis: Basis::Quota }
    }
}

/// What is in use of a volume, mounted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Bytes.
    pub bytes: ByteSize,
    /// Inodes, where something counts them.
    pub inodes: Option<u64>,
    /// How it is known.
    pub basis: Basis,
}

/// What is in use of a volume in a pool that is only looked at; `None` when nothing tells. With `count` the files of a
/// directory are counted that no limit counts.
///
/// # Errors
/// A system call failed.
pub(super) fn used(
    view: &PoolView,
    volume: &Volume,
    count: bool,
    host: &dyn Host,
) -> Result<Option<Used>, EngineError> {
    let dir = view.open_volume(&volume.key)?;
    if volume.resolved != Resolved::Hostpath {
        let bytes = host.allocated(dir.image_to_read()?.as_fd())?;
        return Ok(Some(Used { bytes, inodes: None, basis: Basis::Image }));
    }
    if let Some(limit) = volume.limit
        && let Some(state) = host.limit_state(view.directory(), limit)?
        && state.bounds.is_some()
    {
        let bytes = Held::from(volume).used(state);
        return Ok(Some(Used { bytes, inodes: state.inodes, basis: Basis::Quota }));
    }
    if !count {
        return Ok(None);
    }
    let used = |count: Count| Used {
        bytes: count.bytes,
        inodes: Some(count.inodes),
        basis: Basis::Counted(jiff::Timestamp::now()),
    };
    Ok(backend::count_directory(&dir, &mut AtOnce)?.map(used))
}

/// What the limit of a directory tells; `None` when it has none that is in force.
pub(super) fn of_limit(
    pool: &OpenPool,
    volume: &Volume,
    space: Space,
    host: &dyn Host,
) -> Result<Option<VolumeUsage>, EngineError> {
    let Some(limit) = volume.limit else { return Ok(None) };
    let state = host.limit_state(pool.store.directory(), limit)?;
    let usage = |state: LimitState| Some(Held::from(volume).usage(state, state.bounds?, space));
    Ok(state.and_then(usage))
}

impl Engine {
    /// What a hostpath volume takes.
    pub(super) fn directory_usage(&self, located: &Located) -> Result<VolumeUsage, EngineError> {
        let (pool, volume) = (&located.pool, located.volume());
        let space = self.host.space(pool.store.directory())?;
        if let Some(usage) = of_limit(pool, volume, space, &*self.host)? {
            return Ok(usage);
        }
        let usage = of_filesystem(space, Basis::Pool);
        let counted = counting::figures(pool, &self.host, &volume.itself());
        Ok(match (usage, counted) {
            (VolumeUsage::Mounted { bytes, inodes, .. }, Some((count, at))) => {
                VolumeUsage::Mounted {
                    bytes: Usage { used: count.bytes.bytes(), ..bytes },
                    inodes: inodes.map(|inodes| Usage { used: count.inodes, ..inodes }),
                    basis: Basis::Counted(at),
                }
            }
            (usage, _) => usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::PoolFilesystem;

    #[test]
    fn a_limit_tells_use_and_room_and_the_pool_may_have_less() {
        let gib = |number| ByteSize::gib(number).bytes();
        // Size, began, in use, bound; available in the pool; used and available of the volume.
        for (size, began, used, bound, pool, told) in [
            (10, 0, 0, 10, 50, (0, 10)),
            (10, 0, 4, 10, 50, (4, 6)),
            (10, 0, 4, 10, 5, (4, 5)),
            (10, 0, 10, 10, 50, (10, 0)),
            // Its snapshots have 6 of what it wrote, which it may replace.
            (10, 0, 6, 16, 50, (6, 4)),
            (10, 0, 12, 16, 50, (10, 0)),
            // It began with 6 that another volume wrote.
            (10, 6, 0, 10, 50, (6, 4)),
            (10, 6, 6, 10, 50, (10, 0)),
            // Not grown yet.
            (10, 0, 4, 5, 50, (4, 1)),
        ] {
            let space = Space {
                filesystem: PoolFilesystem::Xfs,
                total: ByteSize::gib(100),
                free: ByteSize::gib(pool),
                available: ByteSize::gib(pool),
                inodes: 1000,
                inodes_free: 60,
            };
            let held = Held { size: ByteSize::gib(size), began: ByteSize::gib(began) };
            for (counts, most, expected) in [
                (None, None, None),
                (None, Some(90), None),
                (Some(7), None, Some((1000, 7, 60))),
                (Some(7), Some(50), Some((50, 7, 43))),
                (Some(50), Some(50), Some((50, 50, 0))),
            ] {
                let bounds = Bounds { bytes: ByteSize::gib(bound), inodes: most };
                let state =
                    LimitState { bounds: Some(bounds), used: ByteSize::gib(used), inodes: counts };
                let usage = held.usage(state, bounds, space);
                let bytes = Usage { total: gib(size), used: gib(told.0), available: gib(told.1) };
                let inodes =
                    expected.map(|(total, used, available)| Usage { total, used, available });
                let wanted = VolumeUsage::Mounted { bytes, inodes, basis: Basis::Quota };
                assert_eq!(usage, wanted, "{held:?} {state:?}");
            }
        }
    }
}
