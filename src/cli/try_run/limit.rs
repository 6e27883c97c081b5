//! The step that shows that a size is a limit: writing until no more is taken.

use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;

use super::content;
use super::kind::Kind;
use super::step::{Outcome, ensure};
use super::volume::{Hold, Volume};
use crate::cli::Failure;
use crate::volume::ByteSize;

/// So many percent of what was said to be available must go in: a filesystem's trees take their part.
const LEAST: u64 = 85;

/// Writes into a volume until it refuses, and takes away again what was written.
pub(super) fn fill(volume: &mut Volume) -> Outcome {
    if volume.kind == Kind::Hostpath && volume.hold != Hold::Required {
        return Ok(None);
    }
    let start = Instant::now();
    let (path, from) = volume.filler();
    let is_file = volume.kind != Kind::Block;
    let (more, errno) = content::fill(&path, from, is_file)?;
    let time = start.elapsed();
    if is_file {
        remove(&path)?;
    }
    check(volume, more, Errno::from_raw(errno))?;
    volume.check(&volume.target())?;
    Ok(Some(time))
}

fn check(volume: &mut Volume, more: u64, errno: Errno) -> Result<(), Failure> {
    let full = if volume.kind == Kind::Hostpath { Errno::EDQUOT } else { Errno::ENOSPC };
    ensure(errno == full, || format!("writing ended with {errno}, not with {full}"))?;
    let size = volume.kind.sizes().0.unsigned_abs();
    volume.taken = volume.written() + more;
    let (taken, of) = (ByteSize::new(volume.taken), ByteSize::new(size));
    ensure(volume.taken <= size, || format!("it took {taken} and was given {of}"))?;
    // A device has no structures of its own.
    let percent = if volume.kind == Kind::Block { 100 } else { LEAST };
    let least = volume.available / 100 * percent;
    ensure(more >= least, || {
        let offered = ByteSize::new(volume.available);
        format!("it took {} more, when {offered} were told to be available", ByteSize::new(more))
    })
}

/// Removes what was written, durably, so that its space is free again.
fn remove(path: &Path) -> Result<(), Failure> {
    let failed = |e| format!("remove {}: {e}", path.display());
    std::fs::remove_file(path).map_err(failed)?;
    let parent = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(())
}

/// What went into a volume, in words.
pub(super) fn taken(volume: &Volume) -> Option<String> {
    let size = ByteSize::new(volume.kind.sizes().0.unsigned_abs());
    (volume.taken > 0)
        .then(|| format!("{} {} of {size}", volume.kind.heading(), ByteSize::new(volume.taken)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What is found when a volume of 64 MiB that offered 60 takes that many MiB, and ends with that error.
    fn found(kind: Kind, more: u64, errno: Errno) -> Result<(), Failure> {
        let mut volume = Volume::new(kind, Path::new("/kubelet"), "s");
        (volume.pieces, volume.available) = (1, 60 * MIB);
        check(&mut volume, more * MIB, errno)
    }

    #[test]
    fn a_volume_that_takes_too_much_or_too_little_is_found() {
        for (kind, full) in [
            (Kind::Hostpath, Errno::EDQUOT),
            (Kind::Ext4, Errno::ENOSPC),
            (Kind::Block, Errno::ENOSPC),
        ] {
            found(kind, 60, full).unwrap();
            found(kind, 61, full).unwrap_err();
            found(kind, 50, full).unwrap_err();
            found(kind, 60, Errno::EIO).unwrap_err();
            assert_eq!(found(kind, 59, full).is_ok(), kind != Kind::Block);
        }
    }
}
