//! Parts of replies that several services give.

use super::proto;
use crate::engine::FoundSnapshot;
use crate::volume::Topology;

/// The contract's limit for strings, which holds for texts for people as well.
const STRING_LIMIT: usize = 128;

/// A text for people within the limit: parts with `; ` between them, the last of which may be what to do. When it is too
/// long each of the others is cut to an equal length: what a part is about comes first.
pub(super) fn short(text: &str, to_do: &str) -> String {
    if text.len() <= STRING_LIMIT {
        return text.to_owned();
    }
    tracing::debug!(text, "too long for a reply");
    let told = text.strip_suffix(to_do).unwrap_or(text);
    let parts: Vec<&str> = told.split("; ").filter(|part| !part.is_empty()).collect();
    let last = (!to_do.is_empty()).then_some(to_do);
    let left = STRING_LIMIT.saturating_sub(to_do.len());
    // Each takes a separator as well.
    let each = (left / parts.len().max(1)).saturating_sub(2);
    let parts = parts.into_iter().map(|part| cut(part, each)).filter(|part| !part.is_empty());
    let whole: Vec<String> = parts.chain(last.map(str::to_owned)).collect();
    cut(&whole.join("; "), STRING_LIMIT)
}

/// At most that many bytes of a text, with a mark where it was cut.
fn cut(text: &str, most: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= most {
        return text.to_owned();
    }
    let Some(room) = most.checked_sub(MARK.len()) else { return String::new() };
    let mut begin = text.to_owned();
    while begin.len() > room && begin.pop().is_some() {}
    begin + MARK
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_where_it_matters_least() {
        assert_eq!(short("short", "do this"), "short");
        let path = "/ä".repeat(100);
        let cut = short(&format!("{path} is gone; mount it"), "mount it");
        assert!(cut.len() <= STRING_LIMIT && cut.starts_with("/ä/ä"), "{cut}");
        assert!(cut.ends_with("…; mount it"), "{cut}");
        let cut = short(&path, "");
        assert!(cut.len() <= STRING_LIMIT && cut.len() > 120 && cut.ends_with('…'), "{cut}");
    }

    #[test]
    fn every_part_of_a_long_text_keeps_its_beginning() {
        let path = "/x".repeat(100);
        let cut = short(&format!("pool one ({path}): a; pool two ({path}): b; do this"), "do this");
        assert!(cut.len() <= STRING_LIMIT, "{cut}");
        assert!(cut.contains("pool one (/x") && cut.contains("pool two (/x"), "{cut}");
        assert!(cut.ends_with("…; do this"), "{cut}");
        for parts in 0..300 {
            for to_do in ["", "do this", &path] {
                let text = format!("{}{to_do}", "a part that is long enough; ".repeat(parts));
                assert!(short(&text, to_do).len() <= STRING_LIMIT, "{parts} {to_do}");
            }
        }
    }
}
