//! Parts of replies that several services give.

use super::proto;
use crate::engine::FoundSnapshot;
use crate::volume::Topology;

/// A time of a record. One that cannot be read is told as the epoch: the contract wants some time.
pub(super) fn timestamp(text: &str) -> prost_types::Timestamp {
    let time = text.parse::<jiff::Timestamp>().unwrap_or_default();
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// Where something is.
pub(super) fn topology(topology: &Topology) -> proto::Topology {
    proto::Topology { segments: topology.clone().into_iter().collect() }
}

/// A snapshot, and where it is unless the caller knows. It exists only when it is whole, so it is always ready to use.
pub(super) fn snapshot(found: &FoundSnapshot, here: Option<&Topology>) -> proto::Snapshot {
    proto::Snapshot {
        size_bytes: found.snapshot.size.as_i64(),
        snapshot_id: found.id().to_string(),
        source_volume_id: found.source().to_string(),
        creation_time: Some(timestamp(&found.snapshot.created)),
        ready_to_use: true,
        group_snapshot_id: found.group().map(|group| group.to_string()).unwrap_or_default(),
        accessible_topology: here.map(topology).into_iter().collect(),
    }
}
