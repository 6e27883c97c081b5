//! Disks that a managed pool is to be on: who uses them, what lies on them, and the claim on one that a filesystem is being
//! made on.
//!
//! The claim is one sector at 16 MiB: mkfs.xfs writes its log and headers elsewhere, and there mkfs.btrfs has an empty
//! group of data blocks (it wipes its first 2 MiB, so that no claim can be there). It is there from before the first byte
//! that mkfs writes until after the last one is on the disk.
//!
//! Invariants: nothing is written to a disk that is in use; a disk without the claim of this making is written to only
//! when it reads as zeroes; when in doubt it is not blank.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::sys;
use crate::fault;
use crate::host::{Content, DeviceNumber, Disk, HostError, PROBE_LENGTH, probe_pool};
use crate::volume::{ByteSize, FilesystemUuid};

/// Where the claim is, in bytes.
const CLAIM_AT: u64 = 16 << 20;
/// A disk writes its sectors whole.
const CLAIM_LENGTH: usize = 512;
const CLAIM_MAGIC: &[u8; 16] = b"orlop is making\n";
/// As much of each end of a disk must read as zeroes, and is cleared when an interrupted making begins again.
const ENDS: u64 = 4 << 20;
/// So many places between are looked at as well.
const PLACES: u64 = 256;
const BLOCK: usize = 1 << 16;
/// Copies of the superblock of btrfs (fs/btrfs/disk-io.h, `btrfs_sb_offset`).
const MIRRORS: [u64; 2] = [64 << 20, 256 << 30];

fn failed(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> HostError {
    move |e| HostError::call(operation, path, e)
}

pub(super) fn open(path: &Path) -> Result<Option<Disk>, HostError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // The node is there and the disk is not.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => return Ok(None),
        Err(e) => return Err(HostError::call("open", path, e)),
    };
    let metadata = file.metadata().map_err(failed("look at", path))?;
    if !metadata.file_type().is_block_device() {
        return Err(HostError::Unexpected {
            what: "not a block device".to_owned(),
            path: path.to_owned(),
        });
    }
    let size =
        sys::device_size(file.as_fd()).map_err(|e| failed("ask the size of", path)(e.into()))?;
    // A reader of cards without a card, a loop device without a file.
    if size == 0 {
        return Ok(None);
    }
    let number = DeviceNumber::of_stat(metadata.rdev());
    let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| HostError::call("lock (another program works on it)", path, e))?;
    Ok(Some(Disk { file, path: path.to_owned(), number, size: ByteSize::new(size) }))
}

/// The names in a directory of /sys; an absent one has none.
fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn list(paths: &[PathBuf]) -> String {
    let names = paths.iter().filter_map(|path| path.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ")
}

pub(super) fn user(disk: &Disk) -> Result<Option<String>, HostError> {
    let sysfs = PathBuf::from(format!("/sys/dev/block/{}", disk.number));
    let holders = names(&sysfs.join("holders"));
    if !holders.is_empty() {
        return Ok(Some(format!("it is part of {}", list(&holders))));
    }
    let mut parts = names(&sysfs);
    parts.retain(|path| path.join("partition").exists());
    if !parts.is_empty() {
        return Ok(Some(format!("it has the partitions {}", list(&parts))));
    }
    match open_alone(disk) {
        Ok(_closed) => Ok(None),
        Err(e) if e.errno() == Some(Errno::EBUSY) => {
            Ok(Some("it is mounted, or used as swap, by an array or by another program".to_owned()))
        }
        Err(e) if matches!(e.errno(), Some(Errno::EROFS | Errno::EACCES | Errno::EPERM)) => {
            Ok(Some("it is read-only".to_owned()))
        }
        Err(e) => Err(e),
    }
}

/// Opens the very device for writing, alone: nobody has it mounted or uses it in another way, and nobody begins to.
fn open_alone(disk: &Disk) -> Result<File, HostError> {
    let path = format!("/proc/self/fd/{}", disk.file.as_raw_fd());
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
    opened.map_err(failed("have to ourselves", &disk.path))
}

/// Reads as much as there is.
fn read_at(file: &File, at: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut read = 0_usize;
    while let Some(rest @ [_, ..]) = bytes.get_mut(read..) {
        match file.read_at(rest, at.saturating_add(read as u64)) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// The first byte that is not zero, among the ends, the places of superblocks and many between.
fn first_data(file: &File, size: u64) -> std::io::Result<Option<u64>> {
    let block = BLOCK as u64;
    let ends = (0..ENDS).chain(size.saturating_sub(ENDS)..size).step_by(BLOCK);
    let between = (1..PLACES).map(|place| (size / PLACES).saturating_mul(place));
    let places = ends.chain(between).chain(MIRRORS).chain([CLAIM_AT]);
    for at in places.filter(|at| *at < size) {
        let bytes = read_at(file, at, usize::try_from(block.min(size - at)).unwrap_or(BLOCK))?;
        if let Some(index) = bytes.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + index as u64));
        }
    }
    Ok(None)
}

fn claim_text(uuid: FilesystemUuid) -> [u8; CLAIM_LENGTH] {
    let mut sector = [0; CLAIM_LENGTH];
    for (place, byte) in sector.iter_mut().zip(CLAIM_MAGIC.iter().chain(uuid.bytes())) {
        *place = *byte;
    }
    sector
}

fn claim_in(sector: &[u8]) -> Option<FilesystemUuid> {
    let uuid = sector.strip_prefix(CLAIM_MAGIC)?.get(..16)?;
    let uuid = FilesystemUuid::from_bytes(uuid.try_into().ok()?);
    (sector == claim_text(uuid)).then_some(uuid)
}

/// What lies in an open file or device of that size. Only while a making is `begun` does a claim say that it is not over:
/// once there is a filesystem, the place of the claim is its users', and a pod may write there what looks like one.
pub(super) fn content(
    file: &File,
    size: u64,
    begun: bool,
    path: &Path,
) -> Result<Content, HostError> {
    let read = failed("read", path);
    let claim = claim_in(&read_at(file, CLAIM_AT, CLAIM_LENGTH).map_err(&read)?);
    let head = read_at(file, 0, PROBE_LENGTH).map_err(&read)?;
    match (claim, probe_pool(&head)) {
        (Some(uuid), _) if begun => return Ok(Content::Claimed(uuid)),
        (_, Some(found)) => return Ok(Content::Filesystem(found)),
        (Some(uuid), None) => return Ok(Content::Claimed(uuid)),
        (None, None) => {}
    }
    if let Some(found) = crate::host::probe_signature(&head) {
        return Ok(Content::Foreign(format!("a filesystem ({})", found.filesystem)));
    }
    let data = first_data(file, size).map_err(&read)?;
    Ok(data.map_or(Content::Blank, |at| Content::Foreign(format!("data (at byte {at})"))))
}

/// Writes and flushes while nobody else has the disk.
fn write_alone(
    disk: &Disk,
    operation: &'static str,
    parts: &[(u64, Vec<u8>)],
) -> Result<(), HostError> {
    let device = open_alone(disk)?;
    let failed = failed(operation, &disk.path);
    for (at, bytes) in parts {
        device.write_all_at(bytes, *at).map_err(&failed)?;
    }
    device.sync_all().map_err(&failed)
}

fn refuse(disk: &Disk, what: &str) -> HostError {
    HostError::Unexpected { what: what.to_owned(), path: disk.path.clone() }
}

pub(super) fn claim(disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError> {
    if content(&disk.file, disk.size.bytes(), true, &disk.path)? != Content::Blank {
        return Err(refuse(disk, "the disk is not blank any more, so it is not claimed"));
    }
    write_alone(disk, "claim", &[(CLAIM_AT, claim_text(uuid).to_vec())])
}

/// The disk carries the claim of this making.
pub(super) fn check_claim(disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError> {
    match content(&disk.file, disk.size.bytes(), true, &disk.path)? {
        Content::Claimed(found) if found == uuid => Ok(()),
        Content::Claimed(_) | Content::Blank | Content::Filesystem(_) | Content::Foreign(_) => Err(
            refuse(disk, "the disk does not carry the claim of this making; it is not formatted"),
        ),
    }
}

/// Clears what an interrupted making may have left where mkfs looks before it writes. The claim stays.
pub(super) fn clear(disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError> {
    check_claim(disk, uuid)?;
    fault::point!("managed.disk.clear").map_err(failed("clear", &disk.path))?;
    let size = disk.size.bytes();
    let zeroes = |length: u64| vec![0; usize::try_from(length).unwrap_or(0)];
    let mut parts =
        vec![(0, zeroes(ENDS.min(CLAIM_AT))), (size.saturating_sub(ENDS), zeroes(ENDS))];
    let mirrors = MIRRORS.iter().filter(|at| **at + ENDS < size);
    parts.extend(mirrors.map(|at| (*at, zeroes(4096))));
    write_alone(disk, "clear", &parts)
}

/// Takes the claim away: all that mkfs wrote is on the disk.
pub(super) fn release(disk: &Disk, uuid: FilesystemUuid) -> Result<(), HostError> {
    check_claim(disk, uuid)?;
    write_alone(disk, "take the claim away from", &[(CLAIM_AT, vec![0; CLAIM_LENGTH])])
}

/// Flushes what programs wrote to a disk.
pub(super) fn flush(disk: &Disk) -> Result<(), HostError> {
    open_alone(disk)?.sync_all().map_err(failed("flush", &disk.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    fn look(file: &File, size: u64) -> Content {
        content(file, size, true, Path::new("test")).unwrap()
    }

    #[test]
    fn only_zeroes_are_blank() {
        let size = (320 << 20) + 512;
        assert_eq!(look(&file(size), size), Content::Blank);
        for at in [0, 511, 4095, (4 << 20) - 1, CLAIM_AT, 64 << 20, size - (4 << 20), size - 1] {
            let file = file(size);
            file.write_all_at(&[1], at).unwrap();
            assert!(matches!(look(&file, size), Content::Foreign(_)), "{at}");
        }
    }

    #[test]
    fn small_files_are_looked_at_whole() {
        for size in [1, 512, 100_000, 9 << 20] {
            let file = file(size);
            assert_eq!(look(&file, size), Content::Blank, "{size}");
            file.write_all_at(b"x", size - 1).unwrap();
            assert!(matches!(look(&file, size), Content::Foreign(_)), "{size}");
        }
    }

    #[test]
    fn a_claim_is_whole_or_none() {
        let uuid = FilesystemUuid::from_bytes([9; 16]);
        let size = 64 << 20;
        let file = file(size);
        file.write_all_at(&claim_text(uuid), CLAIM_AT).unwrap();
        assert_eq!(look(&file, size), Content::Claimed(uuid));
        file.write_all_at(&[1], CLAIM_AT + 511).unwrap();
        assert!(matches!(look(&file, size), Content::Foreign(_)));
    }
}
