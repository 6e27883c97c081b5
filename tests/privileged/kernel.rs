//! What the kernel shows of a test's directory, read without the code under test.

#![expect(clippy::disallowed_methods, reason = "a test undoes what the driver did")]

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::run;

/// A loop device and the file below it, as sysfs shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoopOnFile {
    /// N of /dev/loopN.
    pub(crate) number: u32,
    /// Its file; for a loop device on a loop device the file of that one.
    pub(crate) file: PathBuf,
    /// It lies on another loop device.
    pub(crate) is_view: bool,
    /// It goes with its last user.
    pub(crate) autoclear: bool,
}

fn attribute(number: u32, name: &str) -> Option<String> {
    let path = format!("/sys/block/loop{number}/loop/{name}");
    Some(std::fs::read_to_string(path).ok()?.trim_end_matches('\n').to_owned())
}

fn describe(number: u32) -> Option<LoopOnFile> {
    let mut file = attribute(number, "backing_file")?;
    let autoclear = attribute(number, "autoclear")? == "1";
    let below = file.strip_prefix("/dev/loop").and_then(|n| n.parse().ok());
    if let Some(below) = below {
        file = attribute(below, "backing_file")?;
    }
    let file = file.trim_end_matches(" (deleted)").into();
    Some(LoopOnFile { number, file, is_view: below.is_some(), autoclear })
}

/// The loop devices on files below a directory.
pub(crate) fn loops_below(dir: &Path) -> Vec<LoopOnFile> {
    let mut loops: Vec<_> = std::fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name();
            describe(name.to_str()?.strip_prefix("loop")?.parse().ok()?)
        })
        .filter(|found| found.file.starts_with(dir))
        .collect();
    loops.sort_by_key(|found| found.number);
    loops
}

/// Mount point and source of every mount, the last one made first.
fn mounts() -> Vec<(PathBuf, String)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ").unwrap();
        let point = left.split(' ').nth(4).unwrap().replace("\\040", " ");
        (PathBuf::from(point), right.split(' ').nth(1).unwrap().to_owned())
    };
    let mut mounts: Vec<_> = table.lines().map(line).collect();
    mounts.reverse();
    mounts
}

/// The mount points below a directory, the last one made first.
pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let points = mounts().into_iter().map(|(point, _)| point);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// Unmounts everything below a directory.
pub(crate) fn unmount_all(dir: &Path) {
    for point in mounts_below(dir) {
        umount2(&point, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Lets the mount points of managed pools be removed.
pub(crate) fn unseal_all(dir: &Path) {
    if let Some(below) = dir.to_str().filter(|_| dir.exists()) {
        // Links, sockets and devices have no such flag, which makes chattr complain.
        let _complaint =
            std::process::Command::new("chattr").args(["-R", "-f", "-i", below]).output();
    }
}

/// Detaches every loop device on a file below a directory, views before what they lie on.
pub(crate) fn detach_all(dir: &Path) {
    let mut loops = loops_below(dir);
    loops.sort_by_key(|found| !found.is_view);
    for found in loops {
        let device = format!("/dev/loop{}", found.number);
        if describe(found.number).is_some_and(|now| now.file == found.file) {
            run("losetup", &["-d", &device]);
        }
    }
}

/// A new mount namespace holds a copy of every mount. Copies of other programs' loop mounts would keep their devices
/// busy after those programs unmounted them.
pub(super) fn let_go_of_copies(dir: &Path) {
    let exe = std::env::current_exe().unwrap();
    for (point, source) in mounts() {
        let needed = dir.starts_with(&point) || exe.starts_with(&point);
        if source.starts_with("/dev/loop") && !needed {
            // It may have gone with one that it was mounted on.
            let _gone = umount2(&point, MntFlags::MNT_DETACH);
        }
    }
}

/// The kernel lets this process grow an ext4 that is mounted (CAP_SYS_RESOURCE, bit 24).
pub(crate) fn can_grow_mounted_ext4() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(bits.trim(), 16).unwrap() & (1 << 24) != 0
}
