//! What there is to see of the configured pools, and what is said of it.

use jiff::Timestamp;

use super::{Diagnosis, Patient};
use crate::engine::offline::{self, PoolLine};
use crate::engine::{PoolConfig, chain};
use crate::host::{Host, Space};
use crate::store::{Pool, PoolLook, PoolView, StateDir, StrayKind};
use crate::volume::{ByteSize, Filesystem, LimitKind, PoolUuid};

/// A pool, as far as it can be seen.
#[derive(Debug, Clone)]
pub(super) struct PoolSight {
    pub(super) name: String,
    pub(super) path: String,
    /// The filesystem that the driver makes for it.
    pub(super) makes: Option<Filesystem>,
    pub(super) state: PoolState,
}

/// Where it is with it.
#[derive(Debug, Clone)]
pub(super) enum PoolState {
    /// A pool is there.
    Here(Box<Here>),
    /// Nothing is there, and `state/` knows of no pool of that name.
    NotMade,
    /// `state/` knows the pool, and its marker is not there.
    Gone(PoolUuid),
    /// Another pool is there than the one that `state/` knows.
    Another { found: PoolUuid, known: PoolUuid },
    /// Something else is there: one of its names.
    Foreign(String),
    /// It cannot be looked at.
    Unreadable(String),
}

/// What was seen of a pool that is there.
#[derive(Debug, Clone)]
pub(super) struct Here {
    pub(super) line: PoolLine,
    pub(super) space: Option<Space>,
    pub(super) limit: Result<Option<LimitKind>, String>,
    /// A driver has it open.
    pub(super) in_use: bool,
    /// Being born or half made, deleted and not removed yet, and not the driver's.
    pub(super) unborn: usize,
    pub(super) dead: usize,
    pub(super) foreign: Vec<String>,
    /// When the newest volume was born.
    pub(super) newest: Option<Timestamp>,
}

impl PoolSight {
    /// Whose volumes are its own, as far as that is known.
    pub(super) fn identities(&self) -> Vec<&PoolUuid> {
        match &self.state {
            PoolState::Here(here) => here.line.uuid.iter().collect(),
            PoolState::Gone(known) => vec![known],
            PoolState::Another { found, known } => vec![found, known],
            PoolState::NotMade | PoolState::Foreign(_) | PoolState::Unreadable(_) => Vec::new(),
        }
    }
}

pub(super) fn look(patient: &Patient, host: &dyn Host) -> Vec<PoolSight> {
    let state = StateDir::find(&patient.root_dir).ok().flatten();
    let lines = offline::pools(&patient.pools);
    let sight = |(config, line): (&PoolConfig, PoolLine)| PoolSight {
        name: config.name.clone(),
        path: config.path.display().to_string(),
        makes: config.create.as_ref().map(|create| create.filesystem),
        state: look_at(config, line, state.as_ref(), host),
    };
    patient.pools.iter().zip(lines).map(sight).collect()
}

fn look_at(
    config: &PoolConfig,
    line: PoolLine,
    state: Option<&StateDir>,
    host: &dyn Host,
) -> PoolState {
    let known = match state.map(|state| state.known(&config.name)).transpose() {
        Ok(known) => known.flatten(),
        Err(error) => return PoolState::Unreadable(chain(&error)),
    };
    match (Pool::look(&config.path), known) {
        (Err(error), _) => PoolState::Unreadable(chain(&error)),
        (Ok(PoolLook::Pool(marker)), Some(known)) if !marker.is_or_was(&known) => {
            PoolState::Another { found: marker.uuid, known }
        }
        (Ok(PoolLook::Pool(_)), _) => match here(config, line, host) {
            Ok(here) => PoolState::Here(Box::new(here)),
            Err(reason) => PoolState::Unreadable(reason),
        },
        (Ok(PoolLook::Absent | PoolLook::Empty | PoolLook::Foreign(_)), Some(known)) => {
            PoolState::Gone(known)
        }
        (Ok(PoolLook::Absent | PoolLook::Empty), None) => PoolState::NotMade,
        (Ok(PoolLook::Foreign(found)), None) => PoolState::Foreign(found),
    }
}

fn here(config: &PoolConfig, line: PoolLine, host: &dyn Host) -> Result<Here, String> {
    let words = |error: crate::store::StoreError| chain(&error);
    let view = PoolView::open(&config.path).map_err(words)?;
    let strays = view.strays().map_err(words)?;
    let count = |kind| strays.iter().filter(|stray| stray.kind == kind).count();
    let foreign = strays.iter().filter(|stray| stray.kind == StrayKind::Foreign);
    let born = view.volumes().unwrap_or_default().into_iter();
    let born = born.filter_map(|(_, volume)| volume.ok()?.created.parse::<Timestamp>().ok());
    Ok(Here {
        space: host.space(view.directory()).ok(),
        limit: host.limit_kind(view.directory()).map_err(|error| chain(&error)),
        in_use: view.is_in_use().map_err(words)?,
        unborn: count(StrayKind::Unborn),
        dead: count(StrayKind::Dead),
        foreign: foreign.map(|stray| stray.place.display().to_string()).collect(),
        newest: born.max(),
        line,
    })
}

/// What is said of a pool: one line for each thing that can be wrong.
pub(super) fn judge(pool: &PoolSight, said: &mut Vec<Diagnosis>) {
    let check = format!("pool {}", pool.name);
    let path = &pool.path;
    said.push(match &pool.state {
        PoolState::Here(here) => return judge_here(&check, path, here, said),
        PoolState::NotMade if pool.makes.is_some() => {
            Diagnosis::pass(check, format!("{path}: not made yet; the driver makes it when it starts"))
        }
        PoolState::NotMade => Diagnosis::warn(
            check,
            format!("{path}: not a pool yet"),
            format!("run `orlop pool init --name {} {path}`, or serve with --init-pools", pool.name),
        ),
        PoolState::Gone(known) => Diagnosis::fail(
            check,
            format!("{path}: the marker pool.json of pool {known} is not there; its disk is probably not mounted"),
            if pool.makes.is_some() {
                "start the driver, which mounts it; its log says why it cannot".to_owned()
            } else {
                format!("mount its disk at {path}")
            },
        ),
        PoolState::Another { found, known } => Diagnosis::fail(
            check,
            format!("{path}: pool {found} is there, and {known} should be"),
            "mount the right disk",
        ),
        PoolState::Foreign(found) => Diagnosis::fail(
            check,
            format!("{path}: there is no marker pool.json, and the directory is not empty ({found})"),
            "give an empty directory, or mount the pool's disk",
        ),
        PoolState::Unreadable(reason) => Diagnosis::fail(
            check,
            format!("{path}: {reason}"),
            "look at the kernel's log, check the disk",
        ),
    });
}

fn judge_here(check: &str, path: &str, here: &Here, said: &mut Vec<Diagnosis>) {
    let line = &here.line;
    let uuid = line.uuid.as_ref().map_or_else(String::new, |uuid| format!(" {uuid}"));
    let counts =
        format!("{path}: pool{uuid}, {} volumes, {} snapshots", line.volumes, line.snapshots);
    said.push(if line.damaged == 0 {
        Diagnosis::pass(check, counts)
    } else {
        Diagnosis::fail(
            check,
            format!("{counts}; {} records cannot be read", line.damaged),
            "`orlop pool check` says which, and why",
        )
    });
    said.push(judge_space(check, line));
    said.extend(here.space.and_then(|space| judge_inodes(check, &space)));
    said.push(judge_limits(check, here));
    said.push(Diagnosis::pass(
        format!("{check} copies"),
        match (line.shares_blocks, line.has_subvolumes) {
            (Some(true), true) => "instant: blocks are shared, directories are subvolumes",
            (Some(true), false) => "instant for loop volumes: blocks are shared",
            (Some(false), _) => "full copies, made while nobody writes: blocks cannot be shared",
            (None, _) => "not known: the filesystem does not tell whether blocks can be shared",
        },
    ));
    said.push(judge_leftovers(check, here));
}

fn judge_space(check: &str, line: &PoolLine) -> Diagnosis {
    let check = format!("{check} space");
    let size =
        |size: Option<ByteSize>| size.map_or_else(|| "?".to_owned(), |size| size.to_string());
    let what = format!(
        "{} of {} available, reserve {}, room for {} more",
        size(line.available),
        size(line.total),
        size(line.reserve),
        size(line.room)
    );
    if line.total.is_none() {
        return Diagnosis::fail(
            check,
            "its filesystem does not tell its space",
            "look at the kernel's log, check the disk",
        );
    }
    if line.state == "nearly full" {
        return Diagnosis::warn(
            check,
            format!("nearly full: {what}"),
            "free some space, or make the filesystem larger",
        );
    }
    if line.room == Some(ByteSize::ZERO) {
        return Diagnosis::warn(
            check,
            format!("no room for volumes: {what}"),
            "delete volumes or snapshots, add a pool, or lower its reserve",
        );
    }
    Diagnosis::pass(check, what)
}

/// Nothing where the filesystem has no number of inodes.
fn judge_inodes(check: &str, space: &Space) -> Option<Diagnosis> {
    if space.inodes == 0 {
        return None;
    }
    let check = format!("{check} inodes");
    let what = format!("{} of {} free", space.inodes_free, space.inodes);
    Some(if space.inodes_free < space.inodes / 20 {
        Diagnosis::warn(check, what, "remove files, or make a filesystem with more inodes")
    } else {
        Diagnosis::pass(check, what)
    })
}

fn judge_limits(check: &str, here: &Here) -> Diagnosis {
    let check = format!("{check} limits");
    match &here.limit {
        Ok(Some(kind)) if kind.is_hard() => {
            Diagnosis::pass(check, format!("hostpath volumes are held to their size ({kind})"))
        }
        Ok(Some(kind)) => Diagnosis::warn(
            check,
            format!("hostpath volumes are held to their size, but not hard ({kind})"),
            "use simple quotas (Linux 6.7: btrfs quota enable --simple), or backend: loop",
        ),
        Ok(None) => Diagnosis::warn(
            check,
            "nothing holds hostpath volumes to their size",
            "mount XFS or ext4 with prjquota, have the driver make the pool (create), or use backend: loop",
        ),
        Err(reason) => Diagnosis::warn(
            check,
            format!("cannot tell what holds hostpath volumes: {reason}"),
            "run it as root",
        ),
    }
}

fn judge_leftovers(check: &str, here: &Here) -> Diagnosis {
    let check = format!("{check} leftovers");
    let (unborn, dead) = (here.unborn, here.dead);
    if !here.foreign.is_empty() {
        let foreign = here.foreign.join(", ");
        return Diagnosis::warn(
            check,
            format!("not the driver's: {foreign}"),
            "move it elsewhere; the driver leaves it alone",
        );
    }
    match (unborn + dead, here.in_use) {
        (0, _) => Diagnosis::pass(check, "nothing in incoming/ and trash/"),
        (_, true) => Diagnosis::pass(
            check,
            format!("{unborn} being made, {dead} being removed by the driver that runs"),
        ),
        (_, false) => Diagnosis::warn(
            check,
            format!("{unborn} half made, {dead} not yet removed, and no driver runs"),
            "start the driver, which removes them",
        ),
    }
}
