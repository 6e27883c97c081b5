//! Writing until something is full, and looking at what that took.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::driver::no_forks;
use crate::life::{Kind, Life, MIB};

const BLOCK: u64 = 4096;

/// What is available of the filesystem at a path, in bytes.
pub(crate) fn available(path: &Path) -> u64 {
    let seen = statvfs(path).unwrap();
    seen.blocks_available() * seen.fragment_size()
}

/// Writes all dirty data of the filesystem at a path, and lets it count what was freed.
pub(crate) fn settle(path: &Path) {
    let _quiet = no_forks();
    nix::unistd::syncfs(File::open(path).unwrap()).unwrap();
}

fn is_full(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOSPC as i32)
}

/// Takes everything that is left of the filesystem at `place`, blocks and small files, until it says that it is full.
pub(crate) fn fill_with_files(place: &Path) -> PathBuf {
    let _quiet = no_forks();
    let dir = place.join("filler");
    std::fs::create_dir(&dir).unwrap();
    let file = File::create(dir.join("large")).unwrap();
    let (mut at, mut piece) = (0_i64, 64 << 20);
    while piece >= 4096 {
        match fallocate(&file, FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(Errno::ENOSPC) => piece /= 2,
            Err(e) => panic!("cannot fill {}: {e}", place.display()),
        }
    }
    // What a filesystem keeps for small files and for itself.
    for number in 0..200_000 {
        let made = File::create(dir.join(number.to_string()))
            .and_then(|file| file.write_all_at(&[1; 1500], 0).and_then(|()| file.sync_data()));
        match made {
            Ok(()) => {}
            Err(error) if is_full(&error) => return dir,
            Err(error) => panic!("cannot fill {}: {error}", place.display()),
        }
    }
    panic!("{} does not fill", place.display());
}

pub(crate) fn remove_files(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    std::fs::remove_dir(dir).unwrap();
}

/// The file or device of a volume that is written.
fn data(life: &Life) -> PathBuf {
    if life.kind == Kind::Block { life.target.clone() } else { life.target.join("data") }
}

/// Writes a byte into all of a volume until it is full, and flushes it; how much went in.
pub(crate) fn fill(life: &Life, byte: u8) -> u64 {
    let _quiet = no_forks();
    let mut options = OpenOptions::new();
    options.write(true).create(life.kind != Kind::Block);
    let file = options.open(data(life)).unwrap();
    let large = vec![byte; usize::try_from(MIB).unwrap()];
    let mut at = 0;
    for piece in [large.as_slice(), &large[..usize::try_from(BLOCK).unwrap()]] {
        loop {
            match file.write_at(piece, at) {
                Ok(0) => break,
                Ok(written) => at += u64::try_from(written).unwrap(),
                Err(error) if is_full(&error) => break,
                Err(error) => panic!("{:?} at {at}: {error}", life.kind),
            }
        }
    }
    file.sync_all().unwrap_or_else(|error| panic!("{:?}: flushed: {error}", life.kind));
    at
}

/// Writes another byte over all that [`fill`] wrote; each write and the flush must succeed.
pub(crate) fn rewrite(life: &Life, byte: u8, bytes: u64) {
    if life.kind == Kind::Btrfs {
        // A full btrfs has no room to copy on write: what it had goes first.
        std::fs::remove_file(data(life)).unwrap();
        settle(&life.target);
        let again = fill(life, byte);
        assert!(again >= bytes / 100 * 95, "{again} of {bytes} bytes went in again");
        return;
    }
    let _quiet = no_forks();
    let file = OpenOptions::new().write(true).open(data(life)).unwrap();
    let piece = vec![byte; usize::try_from(MIB).unwrap()];
    let mut at = 0;
    while at < bytes {
        let rest = usize::try_from((bytes - at).min(MIB)).unwrap();
        file.write_all_at(&piece[..rest], at)
            .unwrap_or_else(|error| panic!("{:?} rewritten at {at}: {error}", life.kind));
        at += u64::try_from(rest).unwrap();
    }
    file.sync_all().unwrap_or_else(|error| panic!("{:?} rewritten: {error}", life.kind));
}

/// All of a volume reads as that byte.
pub(crate) fn check(life: &Life, byte: u8, bytes: u64) {
    let _quiet = no_forks();
    let file = File::open(data(life)).unwrap();
    let mut piece = vec![0; usize::try_from(MIB).unwrap()];
    let mut at = 0;
    while at < bytes {
        let rest = usize::try_from((bytes - at).min(MIB)).unwrap();
        file.read_exact_at(&mut piece[..rest], at).unwrap();
        assert!(piece[..rest].iter().all(|found| *found == byte), "{:?} at {at}", life.kind);
        at += u64::try_from(rest).unwrap();
    }
}

/// What the image of a volume takes of its pool, in bytes.
pub(crate) fn blocks(life: &Life) -> u64 {
    std::fs::metadata(life.image()).unwrap().blocks() * 512
}
