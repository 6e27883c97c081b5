//! What is written into volumes, and whether it is still there.

#![expect(clippy::disallowed_methods, reason = "a pod renames its files")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::life::Kind;
use crate::random::Random;
use crate::world::Slots;

/// Slots of a volume.
pub(crate) const SLOTS: u64 = 6;
/// The distance of slots on a device, and the most that is in one, in bytes.
const STRIDE: u64 = 64 << 10;

/// The content of a seed: as long as the seed says, and different everywhere.
fn content(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let length = usize::try_from(1 + random.below(STRIDE)).unwrap();
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.next().to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// In one of two directories, so that a copy has to make directories.
fn place(root: &Path, slot: u8) -> PathBuf {
    root.join(format!("d{}", slot % 2)).join(format!("slot-{slot}"))
}

fn sync_directory(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

/// Writes and flushes as a careful program does. In a filesystem the old content is there until the new one is.
pub(crate) fn write(kind: Kind, target: &Path, slot: u8, seed: u64) {
    let bytes = content(seed);
    if kind == Kind::Block {
        let device = File::options().write(true).open(target).unwrap();
        device.write_all_at(&bytes, u64::from(slot) * STRIDE).unwrap();
        device.sync_all().unwrap();
        return;
    }
    let place = place(target, slot);
    let directory = place.parent().unwrap();
    if !directory.exists() {
        std::fs::create_dir(directory).unwrap();
        sync_directory(target);
    }
    let new = place.with_extension("new");
    let mut file = File::create(&new).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    std::fs::rename(&new, &place).unwrap();
    sync_directory(directory);
}

/// What is wrong with a slot.
fn differs(read: &[u8], seed: u64) -> Option<String> {
    let wanted = content(seed);
    if read == wanted {
        return None;
    }
    let same = read.iter().zip(&wanted).take_while(|(one, other)| one == other).count();
    let zeroes = read.iter().all(|byte| *byte == 0);
    let of = wanted.len();
    Some(format!("has {} of {of} bytes, the first {same} right, all zero: {zeroes}", read.len()))
}

/// What a directory's slots have that was not written there, or lack. A slot in `open` may have that seed as well.
pub(crate) fn faults_of_directory(
    root: &Path,
    slots: &Slots,
    open: Option<(u8, u64)>,
) -> Vec<String> {
    let mut faults = Vec::new();
    let mut found = BTreeSet::new();
    for directory in ["d0", "d1"] {
        let Ok(entries) = std::fs::read_dir(root.join(directory)) else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.insert(name);
        }
    }
    found.retain(|name| Path::new(name).extension().is_none());
    for slot in 0..u8::try_from(SLOTS).unwrap() {
        let mut read = Vec::new();
        let file = File::open(place(root, slot));
        let there = file.and_then(|mut file| file.read_to_end(&mut read)).is_ok();
        let is_open = open
            .is_some_and(|(open, seed)| open == slot && there && differs(&read, seed).is_none());
        found.remove(&format!("slot-{slot}"));
        match slots.get(&slot) {
            _ if is_open => {}
            None if !there => {}
            None => faults.push(format!("slot {slot} was never written")),
            Some(_) if !there => faults.push(format!("slot {slot} is missing")),
            Some(seed) => {
                faults.extend(differs(&read, *seed).map(|what| format!("slot {slot} {what}")));
            }
        }
    }
    faults.extend(found.into_iter().map(|name| format!("{name} was never written")));
    faults
}

/// The same for a device or an image. What is being written in place there may be anything.
pub(crate) fn faults_of_device(path: &Path, slots: &Slots, open: Option<(u8, u64)>) -> Vec<String> {
    let device = File::open(path).unwrap();
    let mut faults = Vec::new();
    for (slot, seed) in slots {
        if open.is_some_and(|(open, _)| open == *slot) {
            continue;
        }
        let mut read = vec![0; content(*seed).len()];
        device.read_exact_at(&mut read, u64::from(*slot) * STRIDE).unwrap();
        faults.extend(differs(&read, *seed).map(|what| format!("slot {slot} {what}")));
    }
    faults
}

/// What is wrong at the target path of a volume.
pub(crate) fn faults(kind: Kind, target: &Path, slots: &Slots) -> Vec<String> {
    match kind {
        Kind::Block => faults_of_device(target, slots, None),
        Kind::Hostpath | Kind::Ext4 | Kind::Xfs | Kind::Btrfs => {
            faults_of_directory(target, slots, None)
        }
    }
}

#[test]
fn what_is_lost_is_found() {
    let root = tempfile::tempdir().unwrap();
    let (root, none) = (root.path(), Slots::new());
    write(Kind::Hostpath, root, 1, 11);
    write(Kind::Hostpath, root, 2, 22);
    let written = Slots::from([(1, 11), (2, 22)]);
    let faults = |slots: &Slots, open| faults_of_directory(root, slots, open).len();
    assert_eq!(faults(&written, None), 0);
    assert_eq!(faults(&none, None), 2, "what was never written");
    assert_eq!(faults(&Slots::from([(1, 11), (2, 23)]), None), 1, "another content");
    assert_eq!(faults(&Slots::from([(1, 11), (2, 22), (3, 33)]), None), 1, "one is missing");
    assert_eq!(faults(&Slots::from([(1, 11), (2, 23)]), Some((2, 22))), 0, "the new content");
    assert_eq!(faults(&written, Some((2, 23))), 0, "still the old content");
    assert_eq!(faults(&Slots::from([(1, 11), (2, 21)]), Some((2, 23))), 1, "neither");
    let file = File::options().write(true).open(place(root, 1)).unwrap();
    file.set_len(content(11).len() as u64 - 1).unwrap();
    assert_eq!(faults(&written, None), 1, "one byte less");
    file.set_len(0).unwrap();
    assert_eq!(faults(&written, None), 1, "empty");
}

#[test]
fn what_is_lost_on_a_device_is_found() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SLOTS * STRIDE).unwrap();
    write(Kind::Block, file.path(), 5, 11);
    let faults = |slots, open| faults_of_device(file.path(), &slots, open).len();
    assert_eq!(faults(Slots::from([(5, 11)]), None), 0);
    assert_eq!(faults(Slots::from([(5, 12)]), None), 1);
    assert_eq!(faults(Slots::from([(5, 12)]), Some((5, 13))), 0);
    assert_eq!(faults(Slots::from([(4, 11), (5, 11)]), None), 1);
}
