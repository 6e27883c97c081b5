//! CreateVolume: find the name in all pools, else choose a pool, reserve, fill `incoming/`, commit.

use std::sync::Arc;

use super::capacity::no_room;
use super::elsewhere::lacking;
use super::open_pool::OpenPool;
use super::snapshot::{generation, now};
use super::source::Origin;
use super::{Engine, EngineError, Located, read, refuse_unfinished};
use crate::backend::{self, ImageSpec};
use crate::host::{FormatRecipe, PoolFilesystem, RootOwner};
use crate::store::{
    Entry, Incoming, Kind, Promise, Record, Request, Resolved, Shared, Volume, same_source,
};
use crate::volume::{
    AccessType, Allocation, Backend, ByteSize, CreateSpec, Filesystem, Generation, Key, Limit,
    MkfsOption, OnDelete, Pod, PoolChoice, SizeError, Source, VolumeId,
};

/// A volume that exists now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: VolumeId,
    /// Its size.
    pub size: ByteSize,
    /// It existed before.
    pub existed: bool,
}

/// What a request comes to, before a pool is chosen.
pub(super) struct Plan {
    pub(super) size: ByteSize,
    pub(super) resolved: Resolved,
    pub(super) mkfs_options: Vec<MkfsOption>,
}

/// What is asked of the pools.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) choice: &'a PoolChoice,
    pub(super) allocation: Allocation,
}

/// Where a new volume is made.
struct Place<'a> {
    pool: &'a OpenPool,
    promise: Promise<'a>,
    incoming: Incoming<'a>,
}

/// What the data of a new volume is under, and shares.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) limit: Option<Limit>,
    pub(super) shared: Vec<Shared>,
}

impl Engine {
    /// Makes a volume, or finds the one that an earlier call made.
    ///
    /// # Errors
    /// See [`EngineError`]; no volume exists then that did not before.
    pub fn create(&self, spec: &CreateSpec) -> Result<Created, EngineError> {
        let found = self.find_by_name(&spec.key, &spec.parameters.pool);
        // Not when its pool is away: the volume may be in it.
        let has_pool = self.pools.has(&spec.parameters.pool);
        let found = found.map_err(|e| if has_pool { e } else { lacking(spec, e) })?;
        if let Some(existing) = found {
            check_same(spec, existing.volume())?;
            refuse_unfinished(&existing)?;
            return Ok(Created { id: existing.id(), size: existing.volume().size, existed: true });
        }
        self.check_requisite(&spec.requisite)?;
        let origin = spec.source.as_ref().map(|source| self.origin(source)).transpose();
        let origin = origin.map_err(|error| self.lacking_source(spec, error))?;
        let plan = match &origin {
            None => plan(spec)?,
            Some(origin) => self.plan_copy(spec, origin)?,
        };
        let pools = self.possible_pools(spec, &plan, origin.as_ref())?;
        let wish = Wish { choice: &spec.parameters.pool, allocation: plan.resolved.allocation() };
        let place = self.in_first(
            &pools,
            wish,
            |pool| {
                let shared = self.most_shared_with(spec, pool, origin.as_ref())?;
                Ok(plan.size.saturating_add(shared))
            },
            |pool, promise| match pool.store.begin(Kind::Volume, &spec.key, &*self.host) {
                Ok(incoming) => Ok(Place { pool, promise, incoming }),
                Err(error) => Err(full(error.into(), pool, plan.size)),
            },
        )?;
        self.make(spec, &plan, origin.as_ref(), place)
    }

    /// The volume of that name, in whichever pool it is.
    ///
    /// # Errors
    /// It is damaged, or may be in a pool that is away while no pool is chosen.
    pub(super) fn find_by_name(
        &self,
        key: &Key,
        pool: &PoolChoice,
    ) -> Result<Option<Located>, EngineError> {
        // First, because these open what can be opened now: a pool that is opened later may have the volume already.
        let away = self.pools.first_away();
        // The volume may exist in a pool that is away; making a second one would lose the first one's data.
        let names_one_here = match pool {
            PoolChoice::Any => Ok(false),
            choice @ PoolChoice::Named(_) => self.pools.chosen(choice).map(|_| true),
        };
        for open in self.pools.open_ones() {
            let generation = match open.store.entry(key) {
                None => continue,
                Some(Entry::Whole { generation, .. }) => generation,
                // Reading it again says what is wrong with it.
                Some(Entry::Damaged { .. }) => Generation::from_bits([0; 4]),
            };
            let id = VolumeId { pool: open.tag(), key: key.clone(), generation };
            if let Some(located) = read(open, &id)? {
                return Ok(Some(located));
            }
        }
        let names_one_here = names_one_here?;
        match away {
            Some(error) if !names_one_here => Err(error),
            Some(_) | None => Ok(None),
        }
    }

    /// The pools that can have the volume: that of its source first, where blocks can be shared, then those with more
    /// room.
    fn possible_pools(
        &self,
        spec: &CreateSpec,
        plan: &Plan,
        origin: Option<&Origin>,
    ) -> Result<Vec<Arc<OpenPool>>, EngineError> {
        let mut possible = Vec::new();
        let (mut refusal, mut trouble) = (None, None);
        let has_choice = self.pools.has_choice(&spec.parameters.pool);
        for pool in self.pools.chosen(&spec.parameters.pool)? {
            let Some(visit) = pool.enter(has_choice) else {
                trouble = Some(pool.silence());
                continue;
            };
            if let Err(error) = self.check_pool(&pool, spec, plan.resolved) {
                refusal = Some(lacking(spec, error));
                continue;
            }
            let usable = pool.check_writable().map_err(|error| lacking(spec, error));
            match usable.and_then(|()| Ok(pool.room(plan.resolved.allocation(), &*self.host)?)) {
                Ok(room) => {
                    let is_beside = origin.is_some_and(|origin| origin.pool.tag() == pool.tag());
                    drop(visit);
                    possible.push(((is_beside, room), pool));
                }
                Err(error) => trouble = Some(error),
            }
        }
        if possible.is_empty() {
            // What may work later is no reason for the caller to give up.
            return Err(trouble.or(refusal).unwrap_or_else(unusable));
        }
        possible.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        Ok(possible.into_iter().map(|(_, pool)| pool).collect())
    }

    /// Promises what is needed in the first pool that has the room by now, and begins there. A pool that does not answer, or
    /// whose disk is broken, is passed by.
    pub(super) fn in_first<'a, T>(
        &self,
        pools: &'a [Arc<OpenPool>],
        wish: Wish<'_>,
        needs: impl Fn(&OpenPool) -> Result<ByteSize, EngineError>,
        begin: impl Fn(&'a Arc<OpenPool>, Promise<'a>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut refusal: Option<(ByteSize, EngineError)> = None;
        let mut trouble = None;
        let has_choice = self.pools.has_choice(wish.choice);
        for pool in pools {
            let Some(visit) = pool.enter(has_choice) else {
                trouble = Some(pool.silence());
                continue;
            };
            let needs = needs(pool)?;
            match pool.reserve(needs, wish.allocation, &*self.host)? {
                Ok(promise) => match begin(pool, promise) {
                    Ok(place) => return Ok(place),
                    Err(error) => trouble = Some(error),
                },
                Err(room) if refusal.as_ref().is_none_or(|(most, _)| room > *most) => {
                    refusal = Some((room, no_room(needs, &pool.name, room)));
                }
                Err(_less) => {}
            }
            drop(visit);
        }
        let refusal = refusal.map(|(_, error)| error);
        Err(refusal.or(trouble).unwrap_or_else(unusable))
    }

    /// What the class asks for is possible on the pool's filesystem.
    fn check_pool(
        &self,
        pool: &OpenPool,
        spec: &CreateSpec,
        resolved: Resolved,
    ) -> Result<(), EngineError> {
        if resolved == Resolved::Hostpath {
            pool.limit_for(spec.parameters.quota, &*self.host)?;
        }
        if spec.parameters.on_delete == OnDelete::Wipe {
            self.check_wipe(pool, resolved)?;
        }
        Ok(())
    }

    /// What is deleted there can be overwritten in place.
    pub(super) fn check_wipe(
        &self,
        pool: &OpenPool,
        resolved: Resolved,
    ) -> Result<(), EngineError> {
        let in_place = match self.host.space(pool.store.directory())?.filesystem {
            PoolFilesystem::Ext | PoolFilesystem::Xfs => true,
            // Images there are NODATACOW; directories are not.
            PoolFilesystem::Btrfs => resolved.backend() == Backend::Loop,
            PoolFilesystem::Other(_) => false,
        };
        if in_place {
            return Ok(());
        }
        Err(EngineError::Invalid(format!(
            "parameter onDelete=wipe: the filesystem of pool {} does not overwrite in place; use backend=loop on btrfs, or a pool on ext4 or xfs",
            pool.name
        )))
    }

    fn make(
        &self,
        spec: &CreateSpec,
        plan: &Plan,
        origin: Option<&Origin>,
        place: Place<'_>,
    ) -> Result<Created, EngineError> {
        let Place { pool, mut promise, incoming } = place;
        let mut record = Record::new(Volume {
            key: spec.key.clone(),
            generation: generation()?,
            name: spec.name.clone(),
            created: now(),
            request: request(spec),
            resolved: plan.resolved,
            size: plan.size,
            on_delete: spec.parameters.on_delete,
            limit: None,
            shared: Vec::new(),
            pod: spec.pod.clone(),
            claim: spec.claim.clone(),
            attachments: Vec::new(),
            import: None,
        });
        let _room = match origin.and_then(Origin::volume) {
            Some(located) => self.room_to_rewrite(std::slice::from_ref(located))?,
            None => Vec::new(),
        };
        let filled = match origin {
            None => self.fill(incoming.dir(), spec, plan, pool),
            Some(origin) => {
                let itself = record.volume.itself();
                self.fill_copy(incoming.dir(), spec, plan, pool, origin, itself)
            }
        };
        let made = filled.and_then(|filled| {
            (record.volume.limit, record.volume.shared) = (filled.limit, filled.shared);
            let _visit = pool.answers.visit();
            incoming.commit(&record, &mut promise).map_err(EngineError::from)
        });
        if let Err(error) = made {
            return Err(full(error, pool, plan.size).with_undo(incoming.abandon(&*self.host)));
        }
        Ok(Created { id: record.volume.id(pool.tag()), size: plan.size, existed: false })
    }

    fn fill(
        &self,
        dir: &crate::store::VolumeDir,
        spec: &CreateSpec,
        plan: &Plan,
        pool: &OpenPool,
    ) -> Result<Filled, EngineError> {
        let parameters = &spec.parameters;
        let root = RootOwner { mode: parameters.mode, uid: parameters.uid, gid: parameters.gid };
        let limit = match plan.resolved {
            Resolved::Hostpath => {
                let limit = pool.new_limit(parameters.quota, plan.size, &*self.host)?;
                backend::create_directory(dir, root, limit, &*self.host)?
            }
            Resolved::Loop { filesystem, sector, allocation, .. } => {
                let recipe = |filesystem| FormatRecipe {
                    filesystem,
                    sector,
                    options: &plan.mkfs_options,
                    root,
                };
                let image =
                    ImageSpec { size: plan.size, allocation, format: filesystem.map(recipe) };
                backend::create_image(dir, &image, &*self.host)?;
                None
            }
        };
        Ok(Filled { limit, shared: Vec::new() })
    }
}

/// A full pool is not a broken one.
pub(super) fn full(error: EngineError, pool: &OpenPool, size: ByteSize) -> EngineError {
    error.when_full(|cause| {
        let name = &pool.name;
        EngineError::NoSpace(format!(
            "the filesystem of pool {name} is full ({cause}): no room for {size}"
        ))
    })
}

fn unusable() -> EngineError {
    EngineError::Away("no pool of this node is usable now; see the driver's log".to_owned())
}

/// The filesystem that the request names, in its capabilities or its parameters.
pub(super) fn wanted_filesystem(spec: &CreateSpec) -> Result<Option<Filesystem>, EngineError> {
    let mut wanted = spec.parameters.filesystem;
    for capability in &spec.capabilities {
        let AccessType::Mount { filesystem, .. } = &capability.access else {
            continue;
        };
        let Some(named) = loop_filesystem(filesystem)? else {
            continue;
        };
        if wanted.is_some_and(|other| other != named) {
            return Err(EngineError::Invalid(format!(
                "the request asks for two filesystems, {named} and {}",
                wanted.unwrap_or(named)
            )));
        }
        wanted = Some(named);
    }
    Ok(wanted)
}

/// A filesystem as a capability names it; empty is open.
pub(super) fn loop_filesystem(name: &str) -> Result<Option<Filesystem>, EngineError> {
    if name.is_empty() {
        return Ok(None);
    }
    Filesystem::from_word(name).map(Some).ok_or_else(|| {
        let name: String = name.chars().take(40).collect();
        EngineError::Invalid(format!(
            "fs_type {name:?} is not supported; supported are ext4, xfs and btrfs"
        ))
    })
}

/// What the request comes to. Everything that can be refused without looking at a pool is refused here.
fn plan(spec: &CreateSpec) -> Result<Plan, EngineError> {
    let parameters = &spec.parameters;
    let block = spec.is_block();
    let resolved = match parameters.backend {
        Backend::Hostpath if block => {
            return Err(EngineError::Invalid(
                "backend=hostpath has no raw block volumes; use backend=loop or volumeMode: Filesystem".to_owned(),
            ));
        }
        Backend::Hostpath => Resolved::Hostpath,
        Backend::Loop => Resolved::Loop {
            filesystem: if block {
                None
            } else {
                Some(wanted_filesystem(spec)?.unwrap_or(Filesystem::Ext4))
            },
            // 4096 keeps direct I/O possible on every disk; a raw device shows what partition tables expect.
            sector: if block { 512 } else { 4096 },
            allocation: parameters.allocation,
            direct_io: parameters.direct_io,
        },
    };
    check_flags(spec, resolved)?;
    let filesystem = resolved.filesystem();
    let (minimum, step) = backend::smallest(parameters.backend, filesystem);
    let size = spec.capacity.choose(minimum, step).map_err(|error| size_error(&error))?;
    let mkfs_options = filesystem.map(|filesystem| parameters.mkfs_options_for(filesystem));
    let mkfs_options = mkfs_options.transpose().map_err(|e| EngineError::Invalid(e.to_string()))?;
    Ok(Plan { size, resolved, mkfs_options: mkfs_options.unwrap_or_default() })
}

pub(super) fn check_flags(spec: &CreateSpec, resolved: Resolved) -> Result<(), EngineError> {
    for capability in &spec.capabilities {
        if let (AccessType::Mount { flags, .. }, false) = (&capability.access, resolved.is_block())
        {
            let filesystem = resolved.filesystem();
            flags.check(filesystem).map_err(|e| EngineError::Invalid(e.to_string()))?;
        }
    }
    Ok(())
}

/// A size that cannot be is OUT_OF_RANGE; one that makes no sense is INVALID_ARGUMENT.
pub(super) fn size_error(error: &SizeError) -> EngineError {
    match error {
        SizeError::Negative { .. } => EngineError::Invalid(error.to_string()),
        SizeError::Inverted { .. } | SizeError::NoneFits { .. } => {
            EngineError::Size(error.to_string())
        }
    }
}

fn request(spec: &CreateSpec) -> Request {
    Request {
        capacity: spec.capacity,
        block: spec.is_block(),
        // `plan` has read it already; hostpath ignores whatever it is.
        filesystem: match spec.parameters.backend {
            Backend::Hostpath => None,
            Backend::Loop => wanted_filesystem(spec).unwrap_or(None),
        },
        parameters: spec.parameters.normalised(),
        source: spec.source.clone(),
    }
}

/// The volume that exists is what the request asks for.
///
/// # Errors
/// [`EngineError::Conflict`] that names the first field that differs.
fn check_same(spec: &CreateSpec, volume: &Volume) -> Result<(), EngineError> {
    let differs = |field: &str, has: &str, asked: &str| {
        Err(EngineError::Conflict(format!(
            "a volume of this name exists with another {field}: it has {has}, the request asks for {asked}; delete it first or use another name"
        )))
    };
    if volume.pod != spec.pod {
        let word = |pod: &Option<Pod>| match pod {
            Some(pod) => format!("{} at {}", pod.uid(), pod.target().display()),
            None => "none".to_owned(),
        };
        return differs("pod or target path", &word(&volume.pod), &word(&spec.pod));
    }
    if volume.request.capacity != spec.capacity && !spec.capacity.contains(volume.size) {
        let has = format!("{} bytes", volume.size.bytes());
        return differs("capacity_range", &has, &spec.capacity.to_string());
    }
    if volume.request.block != spec.is_block() {
        let word = |block| if block { "block" } else { "mount" };
        return differs("access type", word(volume.request.block), word(spec.is_block()));
    }
    for (name, asked) in spec.parameters.normalised() {
        // A record of an earlier release lacks parameters that came later.
        if let Some(has) = volume.request.parameters.get(&name)
            && *has != asked
        {
            return differs(&format!("parameter {name}"), has, &asked);
        }
    }
    if !same_source(volume.request.source.as_ref(), spec.source.as_ref()) {
        let word = |source: &Option<Source>| {
            source.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
        };
        return differs("content source", &word(&volume.request.source), &word(&spec.source));
    }
    let asked = match (volume.resolved, spec.parameters.backend) {
        (Resolved::Loop { filesystem: Some(has), .. }, Backend::Loop) => {
            wanted_filesystem(spec)?.filter(|asked| *asked != has).map(|asked| (has, asked))
        }
        (Resolved::Loop { .. } | Resolved::Hostpath, _) => None,
    };
    match asked {
        Some((has, asked)) => differs("filesystem", has.as_str(), asked.as_str()),
        None => Ok(()),
    }
}
