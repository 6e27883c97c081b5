//! What pods write: bytes that can be told again from a seed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::cli::Failure;

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 4;
const PAGE: usize = 4096;

/// So long is a piece.
pub(super) const LENGTH: u64 = (BLOCK * BLOCKS) as u64;

/// The next block of a sequence (SplitMix64).
fn block(state: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = *state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes
}

/// Writes a piece into a file or device and waits until it is on the disk.
pub(super) fn write(path: &Path, offset: u64, seed: u64, create: bool) -> Result<(), Failure> {
    let failed = |error| format!("write {}: {error}", path.display());
    let mut file = OpenOptions::new().write(true).create_new(create).open(path).map_err(failed)?;
    put(&mut file, offset, seed).map_err(failed)?;
    Ok(())
}

fn put(file: &mut File, offset: u64, seed: u64) -> std::io::Result<()> {
    let mut state = seed;
    file.seek(SeekFrom::Start(offset))?;
    for _ in 0..BLOCKS {
        file.write_all(&block(&mut state))?;
    }
    file.sync_all()
}

/// Writes as much as is taken, into a new file or from a place of a device on, and waits until it is on the disk; answers
/// how much that was, and the kernel's error number that ended it.
pub(super) fn fill(path: &Path, offset: u64, create: bool) -> Result<(u64, i32), Failure> {
    let failed = |error| format!("fill {}: {error}", path.display());
    let opened = OpenOptions::new().write(true).create_new(create).open(path);
    let mut file = opened.map_err(failed)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let bytes = vec![0xa5; BLOCK];
    // What no whole block fits into any more may take a smaller piece.
    let (mut taken, mut piece) = (0, bytes.as_slice());
    let ended = loop {
        match file.write(piece) {
            Ok(0) => {
                return Err(format!("fill {}: the kernel takes nothing", path.display()).into());
            }
            Ok(written) => taken += written as u64,
            Err(_) if piece.len() > PAGE => piece = piece.get(..PAGE).unwrap_or_default(),
            Err(error) => break error.raw_os_error().unwrap_or_default(),
        }
    };
    file.sync_all().map_err(failed)?;
    Ok((taken, ended))
}

/// Reads a piece and compares every byte.
pub(super) fn check(path: &Path, offset: u64, seed: u64) -> Result<(), Failure> {
    let failed = |error| format!("read {}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut state = seed;
    let mut found = vec![0; BLOCK];
    let mut at = offset;
    for _ in 0..BLOCKS {
        file.read_exact(&mut found).map_err(failed)?;
        let written = block(&mut state);
        let differs = found.iter().zip(&written).position(|(a, b)| a != b);
        if let Some(byte) = differs {
            let byte = at + byte as u64;
            return Err(
                format!("{} is not what was written: byte {byte} differs", path.display()).into()
            );
        }
        at += BLOCK as u64;
    }
    Ok(())
}

/// Tries to write where that must be impossible; answers the kernel's error number.
pub(super) fn refused(path: &Path, create: bool) -> Result<i32, Failure> {
    let attempt =
        OpenOptions::new().write(true).create_new(create).open(path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            file.sync_all()
        });
    match attempt {
        Ok(()) => Err(format!("{} could be written to", path.display()).into()),
        Err(error) => error.raw_os_error().ok_or_else(|| {
            format!("write {}: {error}, which is not the kernel's", path.display()).into()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_told_again_and_a_changed_byte_is_seen() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("file");
        write(&path, 0, 7, true).unwrap();
        write(&path, LENGTH, 8, false).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 2 * LENGTH);
        check(&path, 0, 7).unwrap();
        check(&path, LENGTH, 8).unwrap();
        check(&path, 0, 8).unwrap_err();
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(LENGTH + 5)).unwrap();
        file.write_all(&[0, 0, 0]).unwrap();
        let error = check(&path, LENGTH, 8).unwrap_err().to_string();
        assert!(error.contains("differs"), "{error}");
        refused(&path, true).unwrap();
        refused(&path, false).unwrap_err();
    }
}
