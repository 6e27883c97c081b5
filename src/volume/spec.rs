//! A creation request, understood.

use std::collections::BTreeMap;
use std::fmt;

use super::{CapacityRange, Claim, Key, Parameters, Pod, SnapshotId, VolumeCapability, VolumeId};

/// One term of a topology: segments that must all hold.
pub type Topology = BTreeMap<String, String>;

/// What a new volume begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A restore.
    Snapshot(SnapshotId),
    /// A clone.
    Volume(VolumeId),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Volume(id) => write!(f, "volume {id}"),
        }
    }
}

/// What a new volume is to be: a CreateVolume request after parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSpec {
    /// The CO's name, any Unicode. Never a path.
    pub name: String,
    /// The key of that name.
    pub key: Key,
    /// How large.
    pub capacity: CapacityRange,
    /// How it will be used; at least one, all of them mount or all of them block.
    pub capabilities: Vec<VolumeCapability>,
    /// The StorageClass's parameters, with the mutable ones of the request over them.
    pub parameters: Parameters,
    /// What it begins with; `None` for an empty one.
    pub source: Option<Source>,
    /// Where it must be reachable from; empty when the request does not say.
    pub requisite: Vec<Topology>,
    /// The pod that it is for, when it is an inline volume.
    pub pod: Option<Pod>,
    /// The claim that it is for, when the CO tells.
    pub claim: Option<Claim>,
}

impl CreateSpec {
    /// The volume is to be a raw block device.
    #[must_use]
    pub fn is_block(&self) -> bool {
        self.capabilities.iter().any(|capability| capability.access.is_block())
    }
}
