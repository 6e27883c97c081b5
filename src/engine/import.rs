//! `orlop volume import`: a directory or image that exists becomes a volume, by a rename or by a copy.
//!
//! A move writes the volume's record first, with a note of where its data comes from, then renames, then takes the note
//! away ([`moving`]): whatever dies in between, the data is whole at one of the two places, and the same command goes on.
//! A copy is made in `incoming/` like any other ([`copy`]). What `onDelete` kept comes back by one rename ([`kept`]).
//!
//! Invariants: nothing is moved that is in use, as far as the kernel shows; a source that is copied is only read; a volume
//! whose data may not be in its place is refused to everybody, and never deleted with data.

mod copy;
mod kept;
mod moving;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::kept::Place;
use self::source::{Source, plain};
use super::create::Wish;
use super::open_pool::OpenPool;
use super::snapshot::{generation, now};
use super::{Engine, EngineError, Located};
use crate::backend::STEP;
use crate::store::{Import, Promise, Record, Request, Resolved, Volume};
use crate::volume::{
    Allocation, ByteSize, CapacityRange, Filesystem, Key, OnDelete, Parameters, PoolChoice,
    VolumeId,
};

/// The longest name (CSI 1.13, Size Limits).
const LONGEST_NAME: usize = 128;

/// What is to become a volume.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// A directory, an image, or what `onDelete` kept: `<pool>/retained/<key>.<generation>`.
    pub source: PathBuf,
    /// The volume's name; `None` for what was kept and gets its own back.
    pub name: Option<String>,
    /// Where it goes.
    pub pool: PoolChoice,
    /// The source stays.
    pub copy: bool,
    /// How large it is to be; `None` for what the source needs.
    pub size: Option<ByteSize>,
    /// What becomes of its data later; `None` for what it had, or `retain`.
    pub on_delete: Option<OnDelete>,
    /// The operator vouches that nobody uses the source, where that cannot be seen.
    pub unused: bool,
}

/// A volume as its PersistentVolume tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: ByteSize,
    /// It is a raw block device.
    pub block: bool,
    /// The filesystem of its image, when it has one.
    pub filesystem: Option<Filesystem>,
}

impl Described {
    pub(super) fn new(id: VolumeId, volume: &Volume) -> Self {
        Self {
            id,
            name: volume.name.clone(),
            size: volume.size,
            block: volume.resolved.is_block(),
            filesystem: volume.resolved.filesystem(),
        }
    }

    fn of(located: &Located) -> Self {
        Self::new(located.id(), located.volume())
    }
}

/// A name as CreateVolume would take it.
fn checked_name(name: Option<&str>) -> Result<&str, EngineError> {
    let name = name.ok_or_else(|| {
        EngineError::Invalid(
            "the volume has no name; give --name (only what was kept has one of its own)"
                .to_owned(),
        )
    })?;
    let forbidden = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(forbidden) {
        return Err(EngineError::Invalid(format!(
            "a volume's name has 1 to {LONGEST_NAME} bytes and no control characters"
        )));
    }
    Ok(name)
}

impl ImportRequest {
    /// The key of the volume that it is about; `None` when it cannot become one.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        self.name.as_deref().map(Key::of_name).or_else(|| self.kept_key())
    }

    /// The key of the kept volume that the source may be.
    #[must_use]
    pub fn kept_key(&self) -> Option<Key> {
        self.source.file_name()?.to_str()?.split_once('.')?.0.parse().ok()
    }
}

impl Engine {
    /// Pools in the order of their room, the most first.
    fn most_room_first(
        &self,
        pools: Vec<Arc<OpenPool>>,
    ) -> Result<Vec<Arc<OpenPool>>, EngineError> {
        let mut ranked = Vec::new();
        for pool in pools {
            ranked.push((pool.room(Allocation::Thin, &*self.host)?, pool));
        }
        ranked.sort_by_key(|(room, _)| std::cmp::Reverse(*room));
        Ok(ranked.into_iter().map(|(_, pool)| pool).collect())
    }

    /// Promises what is needed in the first pool that has the room.
    fn reserve_in_first<'a>(
        &self,
        pools: &'a [Arc<OpenPool>],
        choice: &PoolChoice,
        needs: impl Fn(&OpenPool) -> Result<ByteSize, EngineError>,
    ) -> Result<(&'a Arc<OpenPool>, Promise<'a>), EngineError> {
        let wish = Wish { choice, allocation: Allocation::Thin };
        self.in_first(pools, wish, needs, |pool, promise| Ok((pool, promise)))
    }

    /// Makes a volume of what lies at a path, or goes on where an earlier run was cut off.
    ///
    /// # Errors
    /// See [`EngineError`]; the source is whole then where it was, or, after a rename that could not be completed, in the
    /// volume, and the error says so.
    pub fn import(&self, request: &ImportRequest) -> Result<Described, EngineError> {
        let path = plain(&request.source)?;
        let place = self.place(&path);
        if let (Place::Kept(pool, kept), false) = (&place, request.copy) {
            let own =
                request.name.as_deref().is_none_or(|name| Key::of_name(name) == kept.itself.key);
            if own {
                return self.revive(request, pool, kept);
            }
        }
        let name = checked_name(request.name.as_deref())?;
        if let Some(existing) = self.find_by_name(&Key::of_name(name), &request.pool)? {
            return match existing.volume().import.clone() {
                Some(Import { source, moving: Some(inode) }) => {
                    if path.to_str() == Some(&source) && !request.copy {
                        self.go_on(request, existing, &source, inode, &place)
                    } else {
                        Err(unfinished(&existing))
                    }
                }
                Some(_) if is_done(request, &path, &existing) => Ok(Described::of(&existing)),
                Some(import) if request.copy && path.to_str() == Some(&import.source) => {
                    Err(was_copied(&existing, &import.source))
                }
                Some(_) | None => Err(name_is_taken(&existing)),
            };
        }
        let source = self.look_at_source(&path, &place, (request.copy, request.unused))?;
        if request.copy {
            self.import_copy(request, name, &source)
        } else {
            self.import_move(request, name, &source, &place)
        }
    }

    /// What the record of an imported volume says; when it is moving with a note that its data is not in its place.
    fn imported(
        request: &ImportRequest,
        name: &str,
        source: &Source,
        size: ByteSize,
        moving: bool,
    ) -> Result<Record, EngineError> {
        let resolved = source.resolved;
        let on_delete = request.on_delete.unwrap_or(OnDelete::Retain);
        let parameters = Parameters {
            backend: resolved.backend(),
            pool: request.pool.clone(),
            on_delete,
            ..Parameters::default()
        };
        Ok(Record::new(Volume {
            key: Key::of_name(name),
            generation: generation()?,
            name: name.to_owned(),
            created: now(),
            request: Request {
                capacity: CapacityRange { required: size, limit: None },
                block: resolved.is_block(),
                filesystem: None,
                parameters: parameters.normalised(),
                source: None,
            },
            resolved,
            size,
            on_delete,
            limit: None,
            shared: Vec::new(),
            pod: None,
            claim: None,
            attachments: Vec::new(),
            import: Some(Import {
                // What was named, which of a kept volume is the directory above its data.
                source: plain(&request.source)?.to_string_lossy().into_owned(),
                moving: moving.then_some(source.outside.identity().inode),
            }),
        }))
    }

    /// The volume may have what is to become of its data.
    fn check_on_delete(
        &self,
        request: &ImportRequest,
        pool: &OpenPool,
        resolved: Resolved,
    ) -> Result<(), EngineError> {
        if request.on_delete != Some(OnDelete::Wipe) {
            return Ok(());
        }
        self.check_wipe(pool, resolved)?;
        if !request.copy && pool.shares_blocks(&*self.host)? {
            return Err(EngineError::Invalid(format!(
                "--on-delete wipe: what is moved may share blocks with other files of pool {}, which would keep what is overwritten; import it with --copy",
                pool.name
            )));
        }
        Ok(())
    }
}

/// The volume is what an earlier run of the same move made: nothing is left where the data was.
fn is_done(request: &ImportRequest, path: &Path, existing: &Located) -> bool {
    let volume = existing.volume();
    let source = volume.import.as_ref().map(|import| Path::new(&import.source));
    let size = volume.request.capacity.required;
    source == Some(path)
        && !request.copy
        && std::fs::symlink_metadata(path).is_err()
        && request.size.is_none_or(|wish| wish.round_up(STEP) == Some(size))
        && request.on_delete.is_none_or(|on_delete| on_delete == volume.on_delete)
}

/// The source may have changed since, and whoever is told that it was copied may remove it.
fn was_copied(existing: &Located, source: &str) -> EngineError {
    let (id, created) = (existing.id(), &existing.volume().created);
    EngineError::Conflict(format!(
        "nothing was copied now: volume {id} was made of {source} at {created}, and {source} may have changed since; orlop volume manifest {id} describes it; for another copy give another --name, or delete it first"
    ))
}

/// The data of a volume may not be in its place yet.
pub(super) fn unfinished(located: &Located) -> EngineError {
    let volume = located.volume();
    let source = volume.import.as_ref().map_or("", |import| import.source.as_str());
    EngineError::Precondition(format!(
        "the import of volume {} has not ended; repeat it: orlop volume import {source:?} --name {:?}",
        located.id(),
        volume.name
    ))
}

fn name_is_taken(existing: &Located) -> EngineError {
    EngineError::Conflict(format!(
        "a volume of this name exists: {} in pool {}; give another --name, or delete it first",
        existing.id(),
        existing.pool.name
    ))
}
