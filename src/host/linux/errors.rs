//! Errors that the kernel has counted on mounted filesystems, from /sys.
//!
//! What is not there or cannot be read counts nothing: an old kernel, or a container without /sys.

use std::path::{Path, PathBuf};

use crate::host::MountEntry;

/// The number in a file that holds nothing else.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// ext4 counts in its superblock, by the kernel's name of the device (Documentation/ABI/testing/sysfs-fs-ext4).
fn ext4(mount: &MountEntry) -> Option<u64> {
    let device = std::fs::read_link(format!("/sys/dev/block/{}", mount.device)).ok()?;
    number(&Path::new("/sys/fs/ext4").join(device.file_name()?).join("errors_count"))
}

/// btrfs counts for each of its devices (Documentation/ch-sysfs of btrfs-progs): writes, reads, flushes, checksums,
/// generations. A filesystem is found by one of its devices, because its own number is nowhere in /sys.
fn btrfs(mount: &MountEntry) -> Option<u64> {
    let source = PathBuf::from(&mount.source);
    // /dev/mapper/name is a link to the kernel's name.
    let device = source.canonicalize().unwrap_or(source);
    let name = device.file_name()?;
    let filesystems = std::fs::read_dir("/sys/fs/btrfs").ok()?;
    let own = filesystems
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("devices").join(name).exists())?;
    let devices = std::fs::read_dir(own.join("devinfo")).ok()?;
    let texts = devices
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("error_stats")).ok());
    Some(texts.map(|text| sum(&text)).sum())
}

/// Of lines such as `write_errs 3`.
fn sum(text: &str) -> u64 {
    let figures =
        text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    figures.sum()
}

pub(super) fn counted(mount: &MountEntry) -> u64 {
    let errors = match mount.filesystem.as_str() {
        "ext4" => ext4(mount),
        "btrfs" => btrfs(mount),
        _ => None,
    };
    errors.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_errors_of_a_device_are_summed() {
        assert_eq!(super::sum("write_errs 1\nread_errs 0\nflush_errs 2\ncorruption_errs 40\n"), 43);
        assert_eq!(super::sum("invalid\n"), 0);
    }
}
