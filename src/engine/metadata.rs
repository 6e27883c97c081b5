//! Changed blocks: which ranges of a snapshot have data, and in which two snapshots of one volume differ.
//!
//! Where the pool shares blocks, extents tell it, without reading any content. The extents of the base are read before
//! and after those of the target: a balance that moves blocks meanwhile must not make two different ones look alike.
//! Where blocks are not shared, every copy has its own, and what is allocated in either is compared.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::delta::{self, Place, Range};
use super::snapshot::no_snapshot;
use super::{Engine, EngineError};
use crate::host::{Extent, HostError};
use crate::store::{IMAGE, Resolved, Snapshot};
use crate::volume::{ByteSize, SnapshotId};

/// So much of an image is looked at in one go, in bytes.
const WINDOW: u64 = 1 << 30;
/// Contents are compared in blocks of this many bytes, that of every filesystem that is made.
const BLOCK: u64 = 4096;
/// So many blocks are read in one go.
const PIECE: u64 = 256 * BLOCK;
/// How often the extents of the base are read again when they have moved meanwhile.
const ATTEMPTS: usize = 3;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataQuery {
    /// The earlier snapshot; `None` asks for what is allocated.
    pub base: Option<SnapshotId>,
    /// The snapshot.
    pub target: SnapshotId,
    /// Where to begin, in bytes.
    pub start: i64,
    /// The most ranges at once; at least one.
    pub most: usize,
}

/// Opened snapshots of which ranges can be told.
#[derive(Debug)]
pub struct Metadata {
    base: Option<File>,
    target: File,
    capacity: u64,
    start: u64,
    most: usize,
    /// Extents say what is equal.
    shares: bool,
}

impl Metadata {
    /// The size of the snapshot.
    #[must_use]
    pub const fn capacity(&self) -> ByteSize {
        ByteSize::new(self.capacity)
    }
}

impl Engine {
    /// Opens what a query names.
    ///
    /// # Errors
    /// A snapshot does not exist, is no image, is of another volume, or the start is out of range.
    pub fn open_metadata(&self, query: &MetadataQuery) -> Result<Metadata, EngineError> {
        let (pool, target) = self.image_snapshot(&query.target)?;
        let base = match &query.base {
            None => None,
            Some(id) => {
                let (base_pool, base) = self.image_snapshot(id)?;
                if (base_pool.tag(), &base.source) != (pool.tag(), &target.source) {
                    return Err(EngineError::Invalid(format!(
                        "snapshots {id} and {} are of different volumes; give two of one volume, or ask what is allocated",
                        query.target
                    )));
                }
                Some(pool.store.open_snapshot(&base)?.image_to_read()?)
            }
        };
        let start = u64::try_from(query.start).ok().filter(|start| *start <= target.size.bytes());
        let start = start.ok_or_else(|| {
            EngineError::Size(format!(
                "starting_offset {} is not within the snapshot's {} bytes",
                query.start,
                target.size.bytes()
            ))
        })?;
        Ok(Metadata {
            base,
            target: pool.store.open_snapshot(&target)?.image_to_read()?,
            capacity: target.size.bytes(),
            start,
            most: query.most.max(1),
            shares: pool.shares_blocks(&*self.host)?,
        })
    }

    fn image_snapshot(&self, id: &SnapshotId) -> Result<super::snapshot::SnapshotIn, EngineError> {
        let found = self.find_snapshot(id)?.ok_or_else(|| no_snapshot(id))?;
        let snapshot: &Snapshot = &found.1;
        match snapshot.resolved {
            Resolved::Loop { .. } => Ok(found),
            Resolved::Hostpath => Err(EngineError::Precondition(format!(
                "snapshot {id} is a directory and has no blocks to tell of; use backend=loop"
            ))),
        }
    }

    /// Tells the ranges in order, some at a time, until `emit` answers `false`.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn tell_metadata(
        &self,
        metadata: &Metadata,
        emit: &mut dyn FnMut(Vec<Range>) -> bool,
    ) -> Result<(), EngineError> {
        // The last range may go on in the next window.
        let mut ready: Vec<Range> = Vec::new();
        let mut from = metadata.start;
        while from < metadata.capacity {
            let to = from.saturating_add(WINDOW).min(metadata.capacity);
            for range in self.window(metadata, from, to)? {
                delta::push(&mut ready, range.start, range.end);
            }
            // The last one stays, and what does not fill a message with it.
            let whole = ready.len().saturating_sub(1) / metadata.most * metadata.most;
            let rest = ready.split_off(whole);
            for ranges in ready.chunks(metadata.most) {
                if !emit(ranges.to_vec()) {
                    return Ok(());
                }
            }
            ready = rest;
            from = to;
        }
        for ranges in ready.chunks(metadata.most) {
            if !emit(ranges.to_vec()) {
                break;
            }
        }
        Ok(())
    }

    fn window(&self, metadata: &Metadata, from: u64, to: u64) -> Result<Vec<Range>, EngineError> {
        let Some(base) = &metadata.base else {
            let extents = self.extents(&metadata.target, from, to)?;
            return Ok(delta::allocated(&extents, from, to));
        };
        if !metadata.shares {
            let (before, after) =
                (self.extents(base, from, to)?, self.extents(&metadata.target, from, to)?);
            return compared(base, &metadata.target, &delta::pieces(&before, &after, from, to));
        }
        let mut before = self.extents(base, from, to)?;
        for _ in 0..ATTEMPTS {
            let after = self.extents(&metadata.target, from, to)?;
            let again = self.extents(base, from, to)?;
            if again == before {
                return Ok(delta::changed(&before, &after, from, to));
            }
            before = again;
        }
        // Something keeps moving the blocks; then their places say nothing.
        Ok(vec![Range { start: from, end: to }])
    }

    /// The extents of a file; where the filesystem does not tell, all of it is of unknown place.
    fn extents(&self, file: &File, from: u64, to: u64) -> Result<Vec<Extent>, EngineError> {
        let extents = self.host.extents(file.as_fd(), from, to)?;
        Ok(extents.unwrap_or_else(|| {
            let length = to - from;
            vec![Extent {
                start: from,
                length,
                physical: 0,
                unwritten: false,
                shared: false,
                plain: false,
            }]
        }))
    }
}

/// The blocks that differ, of the pieces in which either image has something.
fn compared(
    base: &File,
    target: &File,
    pieces: &[(Range, Place, Place)],
) -> Result<Vec<Range>, EngineError> {
    let mut ranges = Vec::new();
    for (piece, before, after) in pieces {
        if (*before, *after) == (Place::Zeroes, Place::Zeroes) {
            continue;
        }
        let mut at = piece.start;
        while at < piece.end {
            let end = piece.end.min(at.saturating_add(PIECE));
            let (one, other) = (read(base, at, end)?, read(target, at, end)?);
            let blocks = one.chunks(BLOCK_LENGTH).zip(other.chunks(BLOCK_LENGTH));
            for (start, (one, other)) in (at..end).step_by(BLOCK_LENGTH).zip(blocks) {
                if one != other {
                    delta::push(&mut ranges, start, end.min(start + BLOCK));
                }
            }
            at = end;
        }
    }
    Ok(ranges)
}

/// [`BLOCK`] as the length of a slice.
const BLOCK_LENGTH: usize = 4096;

/// Bytes of an image; behind its end there are zeroes.
fn read(file: &File, start: u64, end: u64) -> Result<Vec<u8>, EngineError> {
    let failed = |e: std::io::Error| HostError::call("read", IMAGE, e);
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
        let at = start.saturating_add(u64::try_from(filled).unwrap_or(0));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e).into()),
        }
    }
    Ok(bytes)
}
