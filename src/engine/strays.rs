//! Looks for files that a volume's limit does not count, because their owner has given them another project id.
//!
//! Once a day, some time after the pool was opened, all files of all volumes that a project id holds are looked at, by the
//! thread that counts files, at a twentieth of its time. Who asks for the health of a volume gets what was found last.
//!
//! Must not: change a file, or leave a trace on it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::open_pool::OpenPool;
use super::{Engine, chain};
use crate::backend::{self, AtOnce, Found, Watcher};
use crate::host::Host;
use crate::store::{Name, VolumeDir};
use crate::volume::{Key, Limit, LimitKind};

/// The first look comes so long after the pool was opened, the others so long after the one before.
const FIRST: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// The files of a volume that its limit does not count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Escaped {
    files: u64,
    /// One of them, relative to the volume's directory.
    first: PathBuf,
}

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.first.to_string_lossy();
        write!(f, "{} files have another project id, first {}", self.files, first.escape_debug())
    }
}

/// What was found in one pool.
#[derive(Debug)]
pub(super) struct Strays {
    escaped: Mutex<BTreeMap<Name, Escaped>>,
    due: Mutex<Instant>,
}

impl Default for Strays {
    fn default() -> Self {
        Self { escaped: Mutex::default(), due: Mutex::new(Instant::now() + FIRST) }
    }
}

impl Strays {
    fn escaped(&self) -> MutexGuard<'_, BTreeMap<Name, Escaped>> {
        self.escaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the last look has found of a volume.
    pub(super) fn of(&self, name: &Name) -> Option<Escaped> {
        self.escaped().get(name).cloned()
    }

    pub(super) fn forget(&self, name: &Name) {
        self.escaped().remove(name);
    }

    /// It is time for a look; from then on it is not until the next one.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = now >= *due;
        if is_due {
            *due = now + AGAIN;
        }
        is_due
    }
}

/// A volume to look at.
pub(super) struct Suspect {
    pub(super) name: Name,
    limit: Limit,
    directory: VolumeDir,
}

/// The next volume of a pool behind a key that a project id holds; `Err` is where to go on when there is none in sight.
pub(super) fn next(pool: &OpenPool, behind: Option<&Key>) -> Option<Result<Suspect, Key>> {
    let (key, _) = pool.store.entries_after(behind, 1).pop()?;
    let suspect = || {
        let volume = pool.store.read(&key).ok()??.volume;
        let limit = volume.limit.filter(|limit| limit.kind == LimitKind::Project)?;
        let directory = pool.store.open_volume(&key).ok()?;
        Some(Suspect { name: volume.itself(), limit, directory })
    };
    Some(suspect().ok_or(key))
}

/// Looks at all files of a volume; `None` when the watcher said stop or they cannot be read.
pub(super) fn look(suspect: &Suspect, pace: &mut dyn Watcher, host: &dyn Host) -> Option<Escaped> {
    let mut look = Look { pace, host, limit: suspect.limit, escaped: Escaped::default() };
    match backend::count_directory(&suspect.directory, &mut look) {
        Ok(count) => count.map(|_| look.escaped),
        Err(error) => {
            tracing::debug!(volume = %suspect.name.key, error = chain(&error), "cannot look at the files of a volume");
            None
        }
    }
}

/// Notes what was found of a volume.
pub(super) fn note(pool: &OpenPool, name: &Name, escaped: Escaped) {
    if escaped.files == 0 || !pool.has(name) {
        return pool.counts.strays.forget(name);
    }
    let volume = name.volume_id(pool.tag());
    tracing::warn!(%volume, pool = pool.name, files = escaped.files, first = ?escaped.first, "files of the volume are not counted by its limit: their project id was changed");
    pool.counts.strays.escaped().insert(name.clone(), escaped);
}

struct Look<'a> {
    pace: &'a mut dyn Watcher,
    host: &'a dyn Host,
    limit: Limit,
    escaped: Escaped,
}

impl Watcher for Look<'_> {
    fn goes_on(&mut self) -> bool {
        self.pace.goes_on()
    }

    fn found(&mut self, found: &Found<'_>) {
        let Some(file) = found.open() else { return };
        match self.host.project_of(file.as_fd()) {
            Ok(Some(project)) if project != self.limit.number => {
                if self.escaped.files == 0 {
                    self.escaped.first = found.path();
                }
                self.escaped.files += 1;
            }
            // It may be gone by now.
            Ok(_) | Err(_) => {}
        }
    }
}

impl Engine {
    /// Looks for files that limits do not count, now and in all pools. For the tests of the layers above; the daemon does
    /// it once a day.
    pub fn look_for_strays(&self) {
        for pool in self.pools.here() {
            let mut behind = None;
            while let Some(found) = next(&pool, behind.as_ref()) {
                behind = Some(match found {
                    Ok(suspect) => {
                        if let Some(escaped) = look(&suspect, &mut AtOnce, &*self.host) {
                            note(&pool, &suspect.name, escaped);
                        }
                        suspect.name.key
                    }
                    Err(key) => key,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_due_once_a_day() {
        let strays = Strays::default();
        let now = Instant::now();
        assert!(!strays.is_due(now + FIRST / 2));
        let first = now + FIRST * 2;
        assert!(strays.is_due(first));
        assert!(!strays.is_due(first + AGAIN / 2));
        assert!(strays.is_due(first + AGAIN));
    }
}
