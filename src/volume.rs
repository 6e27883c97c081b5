//! Pure types: what a volume is, how it is named, and what may be asked of it.
//!
//! Nothing here does I/O, knows gRPC or knows the layout on disk. Every constructor checks its input, so that
//! the layers above and below never see a size that is negative, a name used as a path or an unknown parameter.

mod access;
mod claim;
mod id;
mod inline;
mod limit;
mod mkfs;
mod mount_options;
mod parameters;
mod quantity;
mod size;
mod spec;
mod uuid;
mod words;

pub use access::{AccessMode, AccessType, VolumeCapability};
pub use claim::Claim;
pub use id::{Generation, GroupId, IdError, Key, PoolTag, PoolUuid, SnapshotId, VolumeId};
pub use inline::{Pod, PodError};
pub use limit::{Limit, LimitKind};
pub use mkfs::MkfsOption;
pub use mount_options::{MountAttributes, MountFlagError, MountFlags};
pub use parameters::{
    MUTABLE, MutableParameters, PARAMETERS, ParameterError, ParameterHelp, Parameters, PoolChoice,
};
pub use quantity::{QuantityError, parse as parse_quantity};
pub use size::{ByteSize, CapacityRange, SizeError};
pub use spec::{CreateSpec, Source, Topology};
pub use uuid::FilesystemUuid;
pub use words::{Allocation, Backend, DirectIo, Filesystem, OnDelete, Quota};
