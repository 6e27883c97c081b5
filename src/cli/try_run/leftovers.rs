//! What is left below the temporary directory, as the kernel tells it, and how to take it away without a driver.
//!
//! Invariant: a managed pool is unmounted last, when nothing is attached to the images in it: a path into it leads nowhere
//! afterwards.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::place::Place;
use crate::cli::Failure;
use crate::host::{Host, loop_path};

const SYSFS: &str = "/sys/block";
/// Where a pool keeps anything of a volume.
const POOL_DIRECTORIES: [&str; 7] =
    ["incoming", "volumes", "snapshots", "groups", "archive", "retained", "trash"];

/// A loop device.
#[derive(Debug)]
struct Device {
    number: u32,
    /// What it is on, as the kernel shows it.
    on: PathBuf,
    /// The file below: that of the other loop device when it is on one.
    file: PathBuf,
}

/// Mounts, loop devices and files that should not be there.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    mounts: Vec<PathBuf>,
    loops: Vec<Device>,
    files: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for everything of volumes. The pool itself may be there.
    pub(super) fn find(place: &Place, host: &dyn Host) -> Result<Self, Failure> {
        let mut left = Self::held(place, host)?;
        left.mounts.retain(|path| *path != place.pool);
        left.loops.retain(|device| !device.is_of_pool(place));
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
        all.extend(
            self.loops.iter().map(|device| format!("loop device {}", device.path().display())),
        );
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

impl Device {
    fn path(&self) -> PathBuf {
        loop_path(self.number)
    }

    /// It is what the pool itself is mounted from.
    fn is_of_pool(&self, place: &Place) -> bool {
        self.file.starts_with(&place.root)
    }

    fn is_view(&self) -> bool {
        self.on != self.file
    }

    /// Lets it go, if it is the same as when it was seen: one with AUTOCLEAR goes with its mount, and its number may be
    /// somebody else's by now.
    fn detach(&self, host: &dyn Host) -> Result<(), Failure> {
        let Some(seen) = host.loop_status(self.number)? else { return Ok(()) };
        let same = backing(self.number).is_some_and(|on| on == self.on);
        if same { Ok(host.detach(self.number, seen.backing)?) } else { Ok(()) }
    }
}

/// What a loop device is on; `None` for one that is free, or that was let go of meanwhile.
fn backing(number: u32) -> Option<PathBuf> {
    let shown = std::fs::read_to_string(format!("{SYSFS}/loop{number}/loop/backing_file")).ok()?;
    Some(PathBuf::from(shown.trim_end_matches('\n')))
}

/// The loop devices on files below a directory, those on top of other loop devices first.
fn loops(dir: &Path) -> Result<Vec<Device>, Failure> {
    let mut all = Vec::new();
    for entry in entries(Path::new(SYSFS))? {
        let name = entry.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok());
        all.extend(number.and_then(|number| Some((number, backing(number)?))));
    }
    let device = |(number, on): &(u32, PathBuf)| {
        let below = all.iter().find(|(below, _)| loop_path(*below) == *on);
        let file = below.map_or(on, |(_, file)| file).clone();
        Device { number: *number, on: on.clone(), file }
    };
    let mut found: Vec<_> = all.iter().map(device).collect();
    found.retain(|device| device.file.starts_with(dir));
    found.sort_by_key(|device| !device.is_view());
    Ok(found)
}

/// The pool's own filesystem is mounted once, from one loop device.
pub(super) fn has_pool(place: &Place, host: &dyn Host) -> Result<bool, Failure> {
    let mounts = mounts(&place.dir, host)?.into_iter().filter(|path| *path == place.pool).count();
    let loops = loops(&place.dir)?.iter().filter(|device| device.is_of_pool(place)).count();
    Ok((mounts, loops) == (1, 1))
}

/// Unmounts and detaches everything below a place, as the end of a machine would. For a place whose driver is gone.
///
/// # Errors
/// Something is busy. What could be taken away is; it can be repeated.
pub(super) fn release(place: &Place, host: &dyn Host) -> Result<(), Failure> {
    let unmount = |of_pool: bool| {
        let mounts = mounts(&place.dir, host)?;
        for path in mounts.iter().rev().filter(|path| (**path == place.pool) == of_pool) {
            host.unmount(path)?;
        }
        Ok::<_, Failure>(())
    };
    let detach = |of_pool: bool| {
        for device in loops(&place.dir)?.iter().filter(|one| one.is_of_pool(place) == of_pool) {
            device.detach(host)?;
        }
        Ok::<_, Failure>(())
    };
    unmount(false)?;
    detach(false)?;
    unmount(true)?;
    detach(true)
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
    // The mount point of a managed pool is immutable. Where that could not be, nothing has to be taken off.
    if let Ok(pool) = std::fs::File::open(&place.pool) {
        let _removable = host.make_removable(pool.as_fd());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a directory that this process made, with no mount below it; links in it are not followed"
    )]
    let removed = std::fs::remove_dir_all(&place.dir);
    removed.map_err(|error| format!("remove {}: {error}", place.dir.display()).into())
}
