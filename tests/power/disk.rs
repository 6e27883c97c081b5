//! Records as they lie on the disk, read without the driver's code, and names that its layout does not have.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::node::{is_key, names};

/// The directories of a pool.
const DIRECTORIES: [&str; 7] =
    ["incoming", "volumes", "snapshots", "groups", "archive", "retained", "trash"];
/// A file that a power cut caught while it was written; it is never read.
const UNFINISHED: &str = ".new";

/// A volume or snapshot as its record tells it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    /// The directory's name.
    pub(crate) place: String,
    record: Value,
}

impl Found {
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn number(&self, pointer: &str) -> Option<u64> {
        self.record.pointer(pointer)?.as_u64()
    }

    pub(crate) fn has(&self, key_and_generation: &(String, String)) -> bool {
        let (key, generation) = key_and_generation;
        self.text("/key") == key && self.text("/generation") == generation
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// The length of the image, and what it takes on the disk, in bytes.
    pub(crate) fn image_bytes(&self) -> (u64, u64) {
        let metadata = self.image().metadata().unwrap();
        (metadata.len(), metadata.blocks() * 512)
    }

    fn read(dir: PathBuf, place: &str, record: &str) -> Result<Self, String> {
        let path = dir.join(record);
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let value: Value = serde_json::from_slice(&text).map_err(|e| {
            format!("{}: {e}: {:?}", path.display(), String::from_utf8_lossy(&text))
        })?;
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        let found = Self { name, dir, place: place.to_owned(), record: value };
        let mut inside = names(&found.dir);
        inside.retain(|name| name != record && *name != format!("{record}{UNFINISHED}"));
        if inside == ["data"] || inside == ["disk.img"] {
            Ok(found)
        } else {
            Err(format!("in {} are {record} and {inside:?}", found.dir.display()))
        }
    }
}

/// What lies in a directory of a pool, by the record's name; what is wrong there goes to `faults`. Nothing is said of what
/// lies at the places `but`.
pub(crate) fn found(
    pool: &Path,
    (directory, record): (&str, &str),
    but: &[&str],
    faults: &mut Vec<String>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for place in names(&pool.join(directory)) {
        if but.contains(&place.as_str()) {
            continue;
        }
        match Found::read(pool.join(directory).join(&place), &place, record) {
            Ok(one) => found.push(one),
            Err(fault) => faults.push(fault),
        }
    }
    found
}

/// Names that the layout does not have.
pub(crate) fn foreign(pool: &Path) -> Vec<String> {
    let mut foreign = Vec::new();
    for name in names(pool) {
        let ours = name == "pool.json"
            || name == format!("pool.json{UNFINISHED}")
            || DIRECTORIES.contains(&name.as_str());
        if !ours {
            foreign.push(format!("{name} in {}", pool.display()));
        }
    }
    for directory in DIRECTORIES {
        for name in names(&pool.join(directory)) {
            // A snapshot that is being born or dead is told by its prefix.
            let plain = name.strip_prefix("s-").unwrap_or(&name);
            let (key, generation) = plain.split_once('.').unwrap_or((plain, ""));
            let has_generation = !generation.is_empty();
            let ours = match directory {
                "incoming" => is_key(plain),
                "volumes" | "snapshots" => is_key(&name),
                "trash" => is_key(key) && has_generation,
                "archive" | "retained" => is_key(key) && has_generation && plain == name,
                _ => false,
            };
            if !ours {
                foreign.push(format!("{directory}/{name} in {}", pool.display()));
            }
        }
    }
    foreign
}
