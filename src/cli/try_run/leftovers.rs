//! What is left below the temporary directory, as the kernel tells it, and how to take it away without a driver.

use std::fmt;
use std::path::{Path, PathBuf};

use super::driver::Place;
use crate::cli::Failure;
use crate::host::Host;

const SYSFS: &str = "/sys/block";
/// Where a pool keeps anything of a volume.
const POOL_DIRECTORIES: [&str; 7] =
    ["incoming", "volumes", "snapshots", "groups", "archive", "retained", "trash"];

/// Mounts, loop devices and files that should not be there.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    mounts: Vec<PathBuf>,
    loops: Vec<u32>,
    files: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for everything below a place.
    pub(super) fn find(place: &Place, host: &dyn Host) -> Result<Self, Failure> {
        let mut left = Self::held(place, host)?;
        left.files = entries(&place.kubelet)?;
        for name in POOL_DIRECTORIES {
            left.files.extend(entries(&place.pool.join(name))?);
        }
        Ok(left)
    }

    /// Looks for what the kernel holds.
    pub(super) fn held(place: &Place, host: &dyn Host) -> Result<Self, Failure> {
        let (mounts, loops) = (mounts(&place.dir, host)?, loops(&place.dir)?);
        Ok(Self { mounts, loops, files: Vec::new() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.loops.is_empty() && self.files.is_empty()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = |what: &'static str, paths: &[PathBuf]| {
            let path = move |path: &PathBuf| format!("{what} {}", path.display());
            paths.iter().map(path).collect::<Vec<_>>()
        };
        let mut all = paths("mount", &self.mounts);
        all.extend(self.loops.iter().map(|n| format!("loop device /dev/loop{n}")));
        all.extend(paths("file", &self.files));
        f.write_str(&all.join(", "))
    }
}

/// What is in a directory; an absent one is empty.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("list {}: {error}", dir.display()).into()),
    }
}

/// The mounts below a directory, in mount order.
fn mounts(dir: &Path, host: &dyn Host) -> Result<Vec<PathBuf>, Failure> {
    let table = host.mounts()?;
    let below = table.iter().filter(|e| e.mount_point.starts_with(dir));
    Ok(below.map(|entry| entry.mount_point.clone()).collect())
}

/// The loop devices on files below a directory, those on top of other loop devices first.
fn loops(dir: &Path) -> Result<Vec<u32>, Failure> {
    let mut all = Vec::new();
    for entry in entries(Path::new(SYSFS))? {
        let name = entry.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok());
        // Absent for a device that is free, or that was let go of meanwhile.
        let backing = std::fs::read_to_string(entry.join("loop/backing_file"));
        if let (Some(number), Ok(backing)) = (number, backing) {
            all.push((number, PathBuf::from(backing.trim_end_matches('\n'))));
        }
    }
    let is_below = |backing: &Path| backing.starts_with(dir);
    let on_files: Vec<u32> =
        all.iter().filter(|(_, backing)| is_below(backing)).map(|(number, _)| *number).collect();
    let nodes: Vec<PathBuf> = on_files.iter().map(|n| crate::host::loop_path(*n)).collect();
    let views = all.iter().filter(|(_, backing)| nodes.contains(backing));
    Ok(views.map(|(number, _)| *number).chain(on_files.iter().copied()).collect())
}

/// Unmounts and detaches everything below a place, as the end of a machine would. For a place whose driver is gone.
pub(super) fn release(place: &Place, host: &dyn Host) -> Result<(), Failure> {
    for path in mounts(&place.dir, host)?.iter().rev() {
        host.unmount(path)?;
    }
    for number in loops(&place.dir)? {
        host.detach(number)?;
    }
    Ok(())
}

/// Removes the temporary directory with all that is in it.
///
/// # Errors
/// Something is still mounted or attached there: its files are somebody's data.
pub(super) fn remove(place: &Place, host: &dyn Host) -> Result<(), Failure> {
    let left = Leftovers::held(place, host)?;
    if !left.is_empty() {
        return Err(format!(
            "left behind: {left}; unmount (umount PATH), detach (losetup -d DEVICE), then remove {}",
            place.dir.display()
        )
        .into());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a directory that this process made, with no mount below it; links in it are not followed"
    )]
    let removed = std::fs::remove_dir_all(&place.dir);
    removed.map_err(|error| format!("remove {}: {error}", place.dir.display()).into())
}
