//! Pools on disk. The only writer under a pool besides `backend`.
//!
//! ```text
//! <pool>/
//!   pool.json              marker: format, pool UUID, name
//!   incoming/<key>/        being born; wiped at start
//!   volumes/<key>/         volume.json + data/   (hostpath)   or   volume.json + disk.img   (loop)
//!   snapshots/<key>/       snapshot.json + data/ or disk.img
//!   groups/<key>/          group.json + <key>/ of each member, as in snapshots/
//!   archive/<key>.<gen>/   volumes kept by onDelete: archive
//!   retained/<key>.<gen>/  volumes kept by onDelete: retain
//!   trash/<key>.<gen>/     dead; removed in the background and at start (s-<key>.<gen>: a snapshot, g-…: a group)
//! ```
//!
//! Invariants:
//! - **Location is state.** A volume exists when `volumes/<key>` does; one rename makes it and one ends it. The same holds
//!   for a snapshot, and for a group together with all its members.
//! - Birth: fill `incoming/<key>`, write the record, fsync both, `renameat2(RENAME_NOREPLACE)`, fsync both parents.
//! - Import: the record with a note, one rename that brings the data, the record without the note (`import`).
//! - Change: temporary file beside the record, fsync, rename, fsync of the directory.
//! - An unreadable record makes that one volume damaged. It is listed and reported, never deleted.
//! - Everything goes through the pool's directory descriptor with `openat2(RESOLVE_BENEATH)`: no link and no mount
//!   leads out of the pool.
//!
//! Must not: touch mounts or loop devices, know gRPC, or remove data outside `incoming/` and `trash/`.

mod attachment;
mod birth;
mod charge;
mod death;
mod dir;
mod directories;
mod error;
#[cfg(test)]
mod fuzz;
mod images;
mod import;
mod index;
mod kind;
mod managed;
mod marker;
mod merge;
mod outside;
mod pool;
mod promise;
mod record;
mod remove;
mod scan;
mod snapshot;
mod state;
mod survey;
mod taken;
mod view;
mod volume_dir;

pub use attachment::Attachment;
pub use birth::Incoming;
pub use charge::{Charge, Charges};
pub use death::Grave;
pub use error::StoreError;
pub use images::{Images, PoolImage};
pub use import::Kept;
pub use index::{Entry, Footprint, GroupEntry, SnapshotEntry};
pub use kind::Kind;
pub use managed::{Making, ManagedRecord};
pub use marker::{Marker, PoolLook, make_path as make_directories, open_directory};
pub use outside::Outside;
pub use pool::Pool;
pub use promise::Promise;
pub use record::{Import, Record, Request, Resolved, Shared, Volume};
pub use snapshot::{Group, Name, Snapshot, same_source};
pub use state::{MarksLock, PoolLock, StateDir};
pub use survey::{Stray, StrayKind};
pub use taken::Taken;
pub use view::{PoolView, ViewedGroup, ViewedSnapshot, ViewedVolume};
pub use volume_dir::{CopyProgress, VolumeDir};

/// The name of a hostpath volume's directory within the volume.
pub const DATA: &str = "data";
/// The name of a loop volume's image within the volume.
pub const IMAGE: &str = "disk.img";
