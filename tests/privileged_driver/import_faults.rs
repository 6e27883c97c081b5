//! Every fault point on the way of an import: the command dies there, or the step fails there. Wherever that was, the data
//! is whole at one place, and the same command finishes.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "makes and looks at what is imported, and says how many cases there were"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::import::{check_tree, complaint, id, in_image, make_ext4, make_pool, make_tree, orlop};
use crate::life::MIB;
use crate::pools::PoolOn;
use crate::privileged::{Sandbox, privileged, run};

/// What is imported, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    MoveDirectory,
    CopyDirectory,
    /// A raw image that becomes larger.
    MoveImage,
    /// One with a filesystem.
    CopyImage,
    /// A kept directory, under its own name.
    Revive,
    /// A kept image, under another one.
    Rename,
}

/// Where the filesystem has the pool, beside the sources.
const POOL: &str = "pool/p";

/// The points that some way passes on every filesystem.
fn points() -> Vec<&'static str> {
    let ours = [
        "store.import.",
        "engine.import.",
        "store.begin.",
        "store.commit.",
        "store.write.",
        "backend.copy.",
        "backend.image.grown",
        "host.renew.",
    ];
    let mut points = orlop::fault::all();
    points.retain(|point| ours.iter().any(|beginning| point.starts_with(beginning)));
    points
}

impl Way {
    const ALL: [Self; 6] = [
        Self::MoveDirectory,
        Self::CopyDirectory,
        Self::MoveImage,
        Self::CopyImage,
        Self::Revive,
        Self::Rename,
    ];

    const fn copies(self) -> bool {
        matches!(self, Self::CopyDirectory | Self::CopyImage)
    }

    /// Makes a source; its path, and the command for it.
    fn make(self, sandbox: &Sandbox) -> (PathBuf, Vec<String>) {
        let source = sandbox.path("pool/source");
        match self {
            Self::MoveDirectory | Self::CopyDirectory | Self::Revive => make_tree(&source),
            Self::CopyImage => make_ext4(sandbox, &source, 8 * MIB),
            Self::MoveImage | Self::Rename => {
                let image = File::create(&source).unwrap();
                image.set_len(MIB).unwrap();
                image.write_all_at(b"in the image", 4096).unwrap();
            }
        }
        let import = |source: &Path, more: &[&str]| {
            let first = ["volume", "import", source.to_str().unwrap()];
            [&first, more].concat().into_iter().map(str::to_owned).collect()
        };
        let (size, name) = (["--size", "4MiB"], ["--name", "v"]);
        match self {
            Self::MoveDirectory | Self::MoveImage => {
                (source.clone(), import(&source, &[name, size].concat()))
            }
            Self::CopyDirectory => {
                (source.clone(), import(&source, &["--name", "v", "--size", "4MiB", "--copy"]))
            }
            Self::CopyImage => (source.clone(), import(&source, &["--name", "v", "--copy"])),
            Self::Revive | Self::Rename => {
                // As a deletion would have left it.
                let copy: &[&str] = if self == Self::Revive { &["--copy"] } else { &[] };
                let before = import(&source, &[&["--name", "before"], copy].concat());
                let before: Vec<&str> = before.iter().map(String::as_str).collect();
                let id = id(&orlop(sandbox, None, &before));
                let parts: Vec<&str> = id.split('-').collect();
                let kept = sandbox.path(POOL).join(format!("retained/{}.{}", parts[2], parts[3]));
                std::fs::rename(sandbox.path(POOL).join("volumes").join(parts[2]), &kept).unwrap();
                if self == Self::Revive {
                    std::fs::remove_dir_all(&source).unwrap();
                }
                let arguments = import(&kept, if self == Self::Revive { &[] } else { &name });
                (kept, arguments)
            }
        }
    }

    /// The data below a directory, or at a path, is what it was.
    fn check(self, data: &Path) {
        match self {
            Self::MoveDirectory | Self::CopyDirectory | Self::Revive => check_tree(data),
            Self::CopyImage => assert_eq!(in_image(data), "in the image"),
            Self::MoveImage | Self::Rename => {
                let mut content = [0; 12];
                File::open(data).unwrap().read_exact_at(&mut content, 4096).unwrap();
                assert_eq!(&content, b"in the image");
            }
        }
    }

    /// Where data may be below a volume's, or kept volume's, directory, or the source itself.
    fn data_at(place: &Path) -> Option<PathBuf> {
        let inside = ["data", "disk.img"].map(|name| place.join(name));
        let inside = inside.into_iter().find(|data| data.exists());
        let is_source = place.ends_with("source") && place.exists();
        inside.or_else(|| is_source.then(|| place.to_owned()))
    }
}

fn volumes(sandbox: &Sandbox) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(sandbox.path(POOL).join("volumes")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// After a death or failure: the data is whole where it was or where it goes, and of a copy where it was in any case.
fn check_somewhere(sandbox: &Sandbox, way: Way, source: &Path) {
    let places = [vec![source.to_owned()], volumes(sandbox)].concat();
    let mut found: Vec<_> = places.iter().filter_map(|place| Way::data_at(place)).collect();
    if way.copies() {
        assert_eq!(found.first().map(PathBuf::as_path), Some(source));
        found.truncate(1);
    }
    assert_eq!(found.len(), 1, "{found:?}");
    way.check(&found[0]);
}

/// The import has ended, and nothing else is left of it.
fn check_done(sandbox: &Sandbox, way: Way, source: &Path) {
    let volumes = volumes(sandbox);
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    way.check(&Way::data_at(&volumes[0]).unwrap());
    let record = std::fs::read_to_string(volumes[0].join("volume.json")).unwrap();
    assert!(!record.contains("movingInode"), "{record}");
    assert_eq!(source.exists(), way.copies());
    if way == Way::MoveImage {
        assert_eq!(volumes[0].join("disk.img").metadata().unwrap().len(), 4 * MIB);
    }
    for place in ["incoming", "retained"] {
        let left = std::fs::read_dir(sandbox.path(POOL).join(place)).unwrap().count();
        assert_eq!(left, 0, "something is left in {place}");
    }
}

/// One import with a fault, and the same again; whether the fault struck. Armed at two points, the second run dies as well.
fn case(sandbox: &Sandbox, way: Way, faults: &[String]) -> bool {
    let (source, arguments) = way.make(sandbox);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut struck = false;
    for fault in faults {
        let output = orlop(sandbox, Some(fault), &arguments);
        struck = !output.status.success();
        let died = output.status.signal() == Some(Signal::SIGABRT as i32);
        assert!(!struck || died == fault.ends_with(":abort"), "{fault}: {}", complaint(&output));
        if struck {
            check_somewhere(sandbox, way, &source);
        }
    }
    let output = orlop(sandbox, None, &arguments);
    // The copy was there already when it died, or nothing struck.
    let was_there = way.copies() && complaint(&output).contains("nothing was copied now");
    assert!(output.status.success() || was_there, "{way:?}, {faults:?}: {}", complaint(&output));
    check_done(sandbox, way, &source);
    for place in volumes(sandbox).iter().chain([&source]) {
        if place.is_dir() {
            std::fs::remove_dir_all(place).unwrap();
        } else if place.exists() {
            std::fs::remove_file(place).unwrap();
        }
    }
    struck
}

fn everywhere(sandbox: &Sandbox, pool: PoolOn) {
    pool.mount(sandbox, 400);
    make_pool(sandbox, POOL);
    let mut hit = BTreeSet::new();
    let mut cases = 0;
    for way in Way::ALL {
        if pool == PoolOn::Btrfs && way == Way::MoveDirectory {
            continue;
        }
        for point in points() {
            for action in ["abort", "EIO"] {
                if case(sandbox, way, &[format!("{point}:{action}")]) {
                    hit.insert(point);
                    cases += 1;
                }
            }
        }
        // The record is written a second time when the data is in its place.
        for point in points().into_iter().filter(|point| point.starts_with("store.write.")) {
            let first = "engine.import.completing:abort".to_owned();
            let moves = matches!(way, Way::MoveDirectory | Way::MoveImage | Way::Rename);
            if moves {
                assert!(case(sandbox, way, &[first, format!("{point}:abort")]), "{way:?}: {point}");
                cases += 1;
            }
        }
    }
    println!("{pool:?}: {cases} cases");
    let elsewhere = |point: &&&str| {
        // Only with project quotas; only of a subvolume; only of other filesystems.
        **point != "engine.import.limiting"
            && **point != "backend.copy.snapshotted"
            && !point.starts_with("host.renew.")
    };
    let all = points();
    let missed: Vec<_> =
        all.iter().filter(elsewhere).filter(|point| !hit.contains(**point)).collect();
    assert!(missed.is_empty(), "never hit: {missed:?}");
    assert!(hit.iter().any(|point| point.starts_with("host.renew.")));
    run("umount", &[sandbox.path("pool")]);
}

#[test]
fn an_import_that_dies_or_fails_anywhere_loses_nothing_on_ext4() {
    privileged(|sandbox| everywhere(sandbox, PoolOn::Ext4));
}

#[test]
fn an_import_that_dies_or_fails_anywhere_loses_nothing_on_xfs() {
    privileged(|sandbox| everywhere(sandbox, PoolOn::Xfs));
}

#[test]
fn an_import_that_dies_or_fails_anywhere_loses_nothing_on_btrfs() {
    privileged(|sandbox| everywhere(sandbox, PoolOn::Btrfs));
}
