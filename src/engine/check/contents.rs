//! What a pool is looked at for inside: records, data, limits, and what does not belong there.
//!
//! Everything is opened beneath the pool, without links: what somebody planted leads nowhere, also not `--repair`.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use super::Check;
use crate::backend::{fill_holes, missing_blocks};
use crate::engine::health::{Condition, not_in_force, unopened};
use crate::engine::limits::requires_limit;
use crate::engine::{PoolConfig, chain};
use crate::store::{
    DATA, Group, PoolView, Resolved, Snapshot, StoreError, Stray, StrayKind, Volume, VolumeDir,
};
use crate::volume::{Allocation, ByteSize, Filesystem, Key, PoolUuid};

/// What is wrong with one thing, before it is said of which.
type Wrong = (Condition, String);

impl Check<'_> {
    /// Says what is wrong with a volume or snapshot, and what to do, in the words of health.
    fn told(&mut self, what: &str, (condition, detail): Wrong) {
        let help = condition.help();
        self.wrong(format!("{what}: {}: {detail}; {}", help.reason, help.remedy));
    }

    pub(super) fn contents(&mut self) {
        // Why it cannot be opened has been said of the marker.
        let Ok(view) = PoolView::open(&self.config.path) else { return };
        let before = self.report.findings.len();
        let (mut volumes, mut snapshots) = (0, 0);
        match view.volumes() {
            Ok(listed) => {
                volumes = listed.len();
                for (key, record) in listed {
                    match record {
                        Ok(volume) => self.volume(&view, &volume),
                        Err(error) => self.wrong(format!("volume {key}: {}", in_words(&error))),
                    }
                }
            }
            Err(error) => self.wrong(in_words(&error)),
        }
        match view.snapshots() {
            Ok(listed) => {
                snapshots = listed.len();
                self.snapshots(&view, listed);
            }
            Err(error) => self.wrong(in_words(&error)),
        }
        self.groups(&view);
        if self.report.findings.len() == before {
            self.good(format!("{volumes} volumes and {snapshots} snapshots, all records readable, all data there, all limits in force"));
        }
        match view.strays() {
            Ok(strays) => self.strays(&view, &strays),
            Err(error) => self.wrong(in_words(&error)),
        }
    }

    fn volume(&mut self, view: &PoolView, volume: &Volume) {
        let what = format!("volume {} ({:?})", volume.key, volume.name);
        if let Some(import) = volume.import.as_ref().filter(|import| import.moving.is_some()) {
            return self
                .told(&what, (Condition::ImportUnfinished, format!("from {}", import.source)));
        }
        let dir = view.open_volume(&volume.key);
        if let Some(wrong) = lost(&dir, volume.resolved, volume.size) {
            return self.told(&what, wrong);
        }
        let Ok(dir) = dir else { return };
        if let Some(detail) = self.limit(view, volume, &dir) {
            self.told(&what, (Condition::QuotaNotInForce, detail));
        }
        if let Resolved::Loop { filesystem, allocation, .. } = volume.resolved {
            if allocation == Allocation::Thick {
                self.thick(&what, &dir);
            }
            self.signature(&what, &dir, filesystem);
        }
    }

    /// Why the data of a hostpath volume is not held to its size.
    fn limit(&self, view: &PoolView, volume: &Volume, dir: &VolumeDir) -> Option<String> {
        let Some(limit) = volume.limit else {
            let detail = "it was made with quota: required and has no limit";
            return requires_limit(volume).then(|| detail.to_owned());
        };
        let data = dir.directory(DATA).ok()?;
        let told = not_in_force(self.host, (view.directory(), data.as_fd()), limit, volume.size);
        told.unwrap_or_else(|error| Some(chain(&error)))
    }

    /// The image begins with what it was born with.
    fn signature(&mut self, what: &str, dir: &VolumeDir, filesystem: Option<Filesystem>) {
        let (Some(filesystem), Ok(image)) = (filesystem, dir.image_to_read()) else { return };
        match self.host.probe(image.as_fd()) {
            Ok(Some(found)) if found.filesystem == filesystem => {}
            Ok(_) => {
                let detail = format!("the image does not begin with {filesystem}");
                self.told(what, (Condition::FilesystemMissing, detail));
            }
            Err(error) => self.told(what, (Condition::DataUnreadable, chain(&error))),
        }
    }

    /// A thick image has all its blocks.
    fn thick(&mut self, what: &str, dir: &VolumeDir) {
        // An image that cannot be opened has been told of.
        if missing_blocks(dir).is_ok_and(|missing| missing > ByteSize::ZERO) {
            let what = format!(
                "{what}: its thick image has holes, so writing to it may fail when the pool is full"
            );
            self.mend(&what, "their blocks are reserved", || {
                Ok(fill_holes(dir.image_to_write()?.as_fd())?)
            });
        }
    }

    fn snapshots(&mut self, view: &PoolView, listed: Vec<crate::store::ViewedSnapshot>) {
        let mut before: Option<Key> = None;
        for (key, record) in listed {
            if before.replace(key.clone()) == Some(key.clone()) {
                self.wrong(format!("snapshot {key}: it is there twice, by itself and in a group, or in two groups; move one of them out of the pool"));
            }
            match record {
                Ok(snapshot) => self.snapshot(view, &snapshot),
                Err(error) => self.wrong(format!("snapshot {key}: {}", in_words(&error))),
            }
        }
    }

    fn snapshot(&mut self, view: &PoolView, snapshot: &Snapshot) {
        let what = format!("snapshot {} ({:?})", snapshot.itself.key, snapshot.name);
        let dir = view.open_snapshot(snapshot);
        if let Some(wrong) = lost(&dir, snapshot.resolved, snapshot.size) {
            return self.told(&what, wrong);
        }
        if let (Resolved::Loop { filesystem, .. }, Ok(dir)) = (snapshot.resolved, dir) {
            self.signature(&what, &dir, filesystem);
        }
    }

    fn groups(&mut self, view: &PoolView) {
        let groups = match view.groups() {
            Ok(groups) => groups,
            Err(error) => return self.wrong(in_words(&error)),
        };
        for (key, record) in groups {
            match record {
                Ok(group) => self.members(view, &group),
                Err(error) => self.wrong(format!("group {key}: {}", in_words(&error))),
            }
        }
    }

    /// The members that the record names are there.
    fn members(&mut self, view: &PoolView, group: &Group) {
        let key = &group.itself.key;
        for member in &group.members {
            if !view.has_member(key, &member.key) {
                self.wrong(format!("group {key}: its snapshot {} is not there; restore groups/{key}/{} from a copy, or delete the group", member.key, member.key));
            }
        }
    }

    fn strays(&mut self, view: &PoolView, strays: &[Stray]) {
        // While a driver has the pool, it is being born or being removed; else the next start removes it.
        let in_use = view.is_in_use().unwrap_or(false);
        let mut on_their_way = 0;
        for stray in strays {
            let place = stray.place.display();
            match stray.kind {
                StrayKind::Unborn | StrayKind::Dead => on_their_way += 1,
                StrayKind::Foreign => self.wrong(format!("{place}: it is not the driver's, which leaves it alone; what it takes is not accounted for: move it out of the pool")),
                StrayKind::NoDirectory => self.wrong(format!("{place}: the pool's directory of that name is missing, or something else lies there; restore it, or let the driver make an empty one: it cannot while anything lies there")),
            }
        }
        if on_their_way > 0 {
            let by = if in_use {
                "being made or removed by the driver that runs"
            } else {
                "half made or deleted; the driver removes them when it starts"
            };
            self.good(format!("{on_their_way} {by}"));
        } else if strays.is_empty() {
            self.good("nothing in it that does not belong there");
        }
    }
}

/// What is wrong with a record, and what to do; the store says so itself where it is not the disk that refused.
pub(in crate::engine) fn in_words(error: &StoreError) -> String {
    match error {
        StoreError::Damaged { .. } | StoreError::TooNew { .. } => chain(error),
        StoreError::Io { .. }
        | StoreError::Host(_)
        | StoreError::NotEmpty { .. }
        | StoreError::Locked { .. }
        | StoreError::Exists { .. } => {
            format!("{}; {}", chain(error), Condition::DataUnreadable.help().remedy)
        }
    }
}

/// The data of a volume or snapshot that is not there, or not all of it, with what is seen instead. As cheap as opening it.
pub(in crate::engine) fn lost(
    dir: &Result<VolumeDir, StoreError>,
    resolved: Resolved,
    size: ByteSize,
) -> Option<Wrong> {
    let unopened = |error: &StoreError| Some((unopened(error), chain(error)));
    let dir = match dir {
        Ok(dir) => dir,
        Err(error) => return unopened(error),
    };
    if resolved == Resolved::Hostpath {
        return dir.directory(DATA).err().as_ref().and_then(unopened);
    }
    let image = match dir.image_to_read() {
        Ok(image) => image,
        Err(error) => return unopened(&error),
    };
    let length = match image.metadata() {
        Ok(metadata) => ByteSize::new(metadata.len()),
        Err(error) => return Some((Condition::DataUnreadable, error.to_string())),
    };
    let short = || format!("the image has {length}, and should have {size}");
    (length < size).then(|| (Condition::ImageTruncated, short()))
}

/// What is wrong with pools only when they are seen side by side: two that have one identity, or one volume in two of them.
#[must_use]
pub fn check_side_by_side(pools: &[PoolConfig]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut identities: BTreeMap<PoolUuid, &str> = BTreeMap::new();
    let mut places: BTreeMap<Key, (&str, String)> = BTreeMap::new();
    for config in pools {
        let Ok(view) = PoolView::open(&config.path) else { continue };
        if let Some(other) = identities.insert(view.uuid().clone(), &config.name) {
            wrong.push(format!("the pools {other} and {} have the same UUID {}, and neither is served; take one out of the configuration, or run `orlop pool new-uuid` on the copy", config.name, view.uuid()));
            // Whatever is in one is in the other.
            continue;
        }
        for (key, record) in view.volumes().unwrap_or_default() {
            let generation =
                record.map_or_else(|_| "unknown".to_owned(), |v| v.generation.to_string());
            if let Some((other, its)) = places.get(&key) {
                wrong.push(format!("volume {key} is in the pools {other} (generation {its}) and {} (generation {generation}): a request with its name gets the first; move volumes/{key} of the other out of its pool, or delete it by its id", config.name));
            } else {
                places.insert(key, (&config.name, generation));
            }
        }
    }
    wrong
}
