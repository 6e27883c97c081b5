//! Limits of directories as the kernel and btrfs-progs tell them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::Found;
use crate::ledger::Pool;
use crate::privileged::run;

/// The bounds of a pool's limits that are not told by `statfs`.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// By quota group, in bytes.
    groups: BTreeMap<String, u64>,
}

impl Bounds {
    pub(crate) fn of(pool: Pool, directory: &Path) -> Self {
        if pool != Pool::Btrfs {
            return Self::default();
        }
        let told = run("btrfs", &["qgroup", "show", "--raw", "-r", directory.to_str().unwrap()]);
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(((*words.first()?).to_owned(), words.get(3)?.parse().ok()?))
        };
        Self { groups: told.lines().filter_map(line).collect() }
    }

    /// What the data of a volume is held to, in bytes.
    pub(crate) fn of_volume(&self, pool: Pool, found: &Found) -> Option<u64> {
        let number = found.number("/limit/number")?;
        if pool == Pool::Btrfs {
            return self.groups.get(&format!("1/{number}")).copied();
        }
        let shown = nix::sys::statvfs::statvfs(&found.data()).unwrap();
        Some(shown.blocks() * shown.fragment_size())
    }
}
