//! Which ranges of an image have data, and in which two images differ, told by their extents. Pure.
//!
//! Two extents are equal only where both are plain and lie at the same place on the disk. Holes and unwritten extents
//! read as zeroes. Everything else counts as changed: a range too many costs a backup some bytes, one too few costs data.

use crate::host::Extent;

/// Bytes of an image, not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
}

/// What is at a place of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing: it reads as zeroes.
    Zeroes,
    /// Bytes that lie as they are at this place of the disk.
    Plain(u64),
    /// Bytes that lie otherwise, or of which that is not known.
    Opaque,
}

/// Adds a range to those before it; what touches becomes one.
pub(super) fn push(ranges: &mut Vec<Range>, start: u64, end: u64) {
    if start >= end {
        return;
    }
    match ranges.last_mut() {
        Some(last) if last.end >= start => last.end = last.end.max(end),
        Some(_) | None => ranges.push(Range { start, end }),
    }
}

/// What is at one byte of an image, given an extent that may hold it.
fn place(extent: Option<&Extent>, at: u64) -> Place {
    match extent {
        Some(extent) if extent.start <= at && at < extent.end() => match extent {
            Extent { unwritten: true, plain: true, .. } => Place::Zeroes,
            Extent { plain: true, .. } => {
                Place::Plain(extent.physical.saturating_add(at - extent.start))
            }
            Extent { .. } => Place::Opaque,
        },
        Some(_) | None => Place::Zeroes,
    }
}

/// The places of `from..to` of two images whose extents are given in order: each piece, and what both have there.
pub(super) fn pieces(
    base: &[Extent],
    target: &[Extent],
    from: u64,
    to: u64,
) -> Vec<(Range, Place, Place)> {
    let mut pieces = Vec::new();
    let (mut bases, mut targets) = (base.iter().peekable(), target.iter().peekable());
    let mut at = from;
    while at < to {
        while bases.next_if(|extent| extent.end() <= at).is_some() {}
        while targets.next_if(|extent| extent.end() <= at).is_some() {}
        let (one, other) = (bases.peek().copied(), targets.peek().copied());
        // Where either begins or ends next.
        let borders = [one, other].into_iter().flatten();
        let borders = borders.flat_map(|extent| [extent.start, extent.end()]);
        let end = borders.filter(|border| *border > at).min().unwrap_or(to).min(to);
        pieces.push((Range { start: at, end }, place(one, at), place(other, at)));
        at = end;
    }
    pieces
}

/// The ranges of `from..to` that have data.
pub(super) fn allocated(extents: &[Extent], from: u64, to: u64) -> Vec<Range> {
    let mut ranges = Vec::new();
    for (piece, _, has) in pieces(&[], extents, from, to) {
        if has != Place::Zeroes {
            push(&mut ranges, piece.start, piece.end);
        }
    }
    ranges
}

/// The ranges of `from..to` in which two images may differ.
pub(super) fn changed(base: &[Extent], target: &[Extent], from: u64, to: u64) -> Vec<Range> {
    let mut ranges = Vec::new();
    for (piece, before, after) in pieces(base, target, from, to) {
        if before != after || after == Place::Opaque {
            push(&mut ranges, piece.start, piece.end);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(start: u64, length: u64, physical: u64) -> Extent {
        Extent { start, length, physical, unwritten: false, shared: false, plain: true }
    }

    fn ranges(list: &[(u64, u64)]) -> Vec<Range> {
        list.iter().map(|(start, end)| Range { start: *start, end: *end }).collect()
    }

    #[test]
    fn equal_means_plain_and_at_the_same_place() {
        let base = [extent(0, 10, 100), extent(20, 10, 300)];
        // Shared, moved by two, shared in part, new, given back.
        assert_eq!(changed(&base, &base, 0, 40), []);
        assert_eq!(changed(&base, &[extent(0, 10, 102)], 0, 40), ranges(&[(0, 10), (20, 30)]));
        let target = [extent(0, 4, 100), extent(4, 2, 500), extent(6, 4, 106), extent(20, 10, 300)];
        assert_eq!(changed(&base, &target, 0, 40), ranges(&[(4, 6)]));
        assert_eq!(changed(&base, &target, 5, 40), ranges(&[(5, 6)]));
        assert_eq!(changed(&[], &base, 0, 25), ranges(&[(0, 10), (20, 25)]));
    }

    #[test]
    fn what_is_not_plain_is_changed_and_what_is_unwritten_is_zero() {
        let opaque = Extent { plain: false, ..extent(0, 8, 100) };
        assert_eq!(changed(&[opaque], &[opaque], 0, 8), ranges(&[(0, 8)]));
        let unwritten = Extent { unwritten: true, ..extent(0, 8, 100) };
        assert_eq!(changed(&[unwritten], &[extent(0, 8, 100)], 0, 8), ranges(&[(0, 8)]));
        assert_eq!(changed(&[unwritten], &[], 0, 8), []);
        assert_eq!(allocated(&[unwritten], 0, 8), []);
        // Delayed and unwritten at once: nobody knows.
        let both = Extent { plain: false, ..unwritten };
        assert_eq!(allocated(&[both], 0, 8), ranges(&[(0, 8)]));
    }

    fn image() -> impl Strategy<Value = Vec<Extent>> {
        proptest::collection::vec((0_u64..4, 1_u64..4, 0_u64..6, any::<bool>(), 0_u8..8), 0..12)
            .prop_map(|parts| {
                let mut at = 0;
                let mut extents = Vec::new();
                for (gap, length, physical, unwritten, plain) in parts {
                    extents.push(Extent {
                        start: at + gap,
                        length,
                        physical,
                        unwritten,
                        shared: false,
                        plain: plain > 0,
                    });
                    at += gap + length;
                }
                extents
            })
    }

    proptest! {
        /// Each byte by itself, in the dullest way.
        #[test]
        fn the_sweep_says_what_each_byte_says(base in image(), target in image(), from in 0_u64..20) {
            let at = |extents: &[Extent], byte| {
                place(extents.iter().find(|extent| extent.start <= byte && byte < extent.end()), byte)
            };
            let found = changed(&base, &target, from, 60);
            for byte in from..60 {
                let (before, after) = (at(&base, byte), at(&target, byte));
                let differs = before != after || after == Place::Opaque;
                let listed = found.iter().any(|range| range.start <= byte && byte < range.end);
                prop_assert_eq!(differs, listed, "byte {}", byte);
            }
            for pair in found.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }
    }
}
