//! What a power cut has left, compared with what must be there and what may be.

use std::collections::BTreeMap;

use crate::content::{faults_of_device, faults_of_directory};
use crate::disk::{Found, foreign, found};
use crate::ledger::{Op, Pool, Told};
use crate::life::Kind;
use crate::limits::Bounds;
use crate::node::Node;
use crate::world::{Kept, Slots, Snapshot, Volume, World, key_and_generation};

/// The look at one pool's disk.
struct Look<'a> {
    node: &'a Node,
    world: &'a World,
    pool: Pool,
    faults: Vec<String>,
}

/// Looks at a pool on its disk, through nothing of the driver; what is wrong there.
pub(crate) fn faults(node: &Node, world: &World, pool: Pool) -> Vec<String> {
    let directory = node.pool(pool);
    if !world.pools.contains(&pool) && !directory.join("pool.json").exists() {
        return Vec::new();
    }
    let mut look = Look { node, world, pool, faults: foreign(&directory) };
    if !directory.join("pool.json").exists() {
        look.faults.push("pool.json is not there".to_owned());
    }
    look.volumes();
    look.snapshots();
    look.kept();
    look.faults.iter().map(|fault| format!("{}: {fault}", pool.name())).collect()
}

impl Look<'_> {
    fn found(&mut self, directory: &str, record: &str) -> BTreeMap<String, Found> {
        let (path, world) = (self.node.pool(self.pool), self.world);
        // What is removed by hand may be half gone.
        let purged =
            |(name, _): &(&String, &Kept)| matches!(world.begun_with(name), Some(Op::Purge { .. }));
        let purged = world.kept.iter().filter(purged);
        let purged: Vec<&str> = purged.map(|(_, kept)| kept.place.1.as_str()).collect();
        let found = found(&path, (directory, record), &purged, &mut self.faults);
        found.into_iter().map(|found| (found.name.clone(), found)).collect()
    }

    fn wrong(&mut self, object: &str, what: impl std::fmt::Display) {
        self.faults.push(format!("{object}: {what}"));
    }

    fn volumes(&mut self) {
        let (world, pool) = (self.world, self.pool);
        let mut found = self.found("volumes", "volume.json");
        let directory = self.node.pool(self.pool);
        let bounds = Bounds::of(self.pool, &directory);
        for (name, volume) in world.volumes.iter().filter(|(_, v)| v.spec.pool == pool) {
            let begun = world.begun_with(name);
            match found.remove(name) {
                Some(found) => self.volume(name, volume, &found, &bounds),
                None if matches!(begun, Some(Op::Delete { .. })) => {}
                None => self.wrong(name, "the volume is gone"),
            }
        }
        for (name, found) in found {
            // Not acknowledged, and wholly there: then it is all that was asked for.
            match world.begun_with(&name) {
                Some(Op::Create { spec, source, .. }) => {
                    let volume = world.new_volume(spec, source.as_ref(), &Told::default());
                    self.volume(&name, &volume, &found, &bounds);
                }
                _ => self.wrong(&name, "a volume that was never made, or was deleted"),
            }
        }
    }

    fn volume(&mut self, name: &str, volume: &Volume, found: &Found, bounds: &Bounds) {
        let begun = self.world.begun_with(name);
        if !volume.id.is_empty() && !found.has(&key_and_generation(&volume.id)) {
            self.wrong(name, format!("is not {} any more", volume.id));
        }
        let grown = match begun {
            Some(Op::Expand { bytes, .. }) => *bytes,
            _ => volume.bytes,
        };
        let (least, most) = (volume.bytes, grown);
        let size = found.number("/current/sizeBytes").unwrap_or(0);
        if size != least && size != most {
            self.wrong(name, format!("the record says {size} bytes, not {least} or {most}"));
        }
        let keep = found.text("/current/onDelete");
        let may_be = match begun {
            Some(Op::Modify { keep, .. }) => keep.word(),
            _ => volume.keep.word(),
        };
        if keep != volume.keep.word() && keep != may_be {
            self.wrong(name, format!("onDelete is {keep:?}"));
        }
        if volume.spec.kind == Kind::Hostpath {
            let bound = bounds.of_volume(self.pool, found);
            // An expansion raises the bound before it is recorded.
            if bound != Some(size) && bound != Some(most) {
                self.wrong(name, format!("held to {bound:?} bytes, not to {size}"));
            }
        } else {
            let (length, blocks) = found.image_bytes();
            if length < size || length > most {
                self.wrong(name, format!("the image has {length} bytes, not {size} or {most}"));
            }
            if volume.spec.thick && blocks < size {
                self.wrong(name, format!("a thick image has blocks for {blocks} of {size} bytes"));
            }
        }
        let open = match begun {
            Some(Op::Write { slot, seed, .. }) => Some((*slot, *seed)),
            _ => None,
        };
        self.content(name, volume.spec.kind, found, &volume.slots, open);
    }

    /// What can be seen without a mount.
    fn content(
        &mut self,
        name: &str,
        kind: Kind,
        found: &Found,
        slots: &Slots,
        open: Option<(u8, u64)>,
    ) {
        let faults = match kind {
            Kind::Hostpath => faults_of_directory(&found.data(), slots, open),
            Kind::Block => faults_of_device(&found.image(), slots, open),
            // Their content is looked at when they are mounted.
            Kind::Ext4 | Kind::Xfs | Kind::Btrfs => Vec::new(),
        };
        for fault in faults {
            self.wrong(name, fault);
        }
    }

    fn snapshots(&mut self) {
        let (world, pool) = (self.world, self.pool);
        let mut found = self.found("snapshots", "snapshot.json");
        for (name, snapshot) in world.snapshots.iter().filter(|(_, s)| s.spec.pool == pool) {
            match found.remove(name) {
                Some(found) => self.snapshot(name, snapshot, &found),
                None if matches!(world.begun_with(name), Some(Op::Forget { .. })) => {}
                None => self.wrong(name, "the snapshot is gone"),
            }
        }
        for (name, found) in found {
            match world.begun_with(&name) {
                Some(Op::Snapshot { volume, .. }) => {
                    let snapshot = world.new_snapshot(volume, &Told::default());
                    self.snapshot(&name, &snapshot, &found);
                }
                _ => self.wrong(&name, "a snapshot that was never taken, or was deleted"),
            }
        }
    }

    fn snapshot(&mut self, name: &str, snapshot: &Snapshot, found: &Found) {
        if !snapshot.id.is_empty() && !found.has(&key_and_generation(&snapshot.id)) {
            self.wrong(name, format!("is not {} any more", snapshot.id));
        }
        let size = found.number("/sizeBytes").unwrap_or(0);
        if size != snapshot.bytes {
            self.wrong(name, format!("the record says {size} bytes, not {}", snapshot.bytes));
        }
        if snapshot.spec.kind != Kind::Hostpath && found.image_bytes().0 < size {
            self.wrong(name, format!("the image has {} bytes of {size}", found.image_bytes().0));
        }
        self.content(name, snapshot.spec.kind, found, &snapshot.slots, None);
    }

    fn kept(&mut self) {
        let world = self.world;
        for directory in ["archive", "retained"] {
            let mut found = self.found(directory, "volume.json");
            for (name, kept) in &world.kept {
                if kept.volume.spec.pool != self.pool || kept.place.0 != directory {
                    continue;
                }
                match (found.remove(name), world.begun_with(name)) {
                    (_, Some(Op::Purge { .. })) => {}
                    (Some(found), _) => self.kept_volume(name, kept, &found),
                    (None, _) => self.wrong(name, format!("is gone from {directory}")),
                }
            }
            for (name, found) in found {
                let dies = matches!(world.begun_with(&name), Some(Op::Delete { .. }))
                    && world.volumes[&name].keep.keeps_in() == Some(directory);
                let place = &found.place;
                if !dies {
                    self.wrong(&name, format!("{directory}/{place} was not to be kept"));
                }
            }
        }
    }

    fn kept_volume(&mut self, name: &str, kept: &Kept, found: &Found) {
        if found.place != kept.place.1 {
            self.wrong(name, format!("lies in {}, not in {}", found.place, kept.place.1));
        }
        let volume = &kept.volume;
        if volume.spec.kind != Kind::Hostpath && found.image_bytes().0 < volume.bytes {
            self.wrong(name, "its image is shorter than it was");
        }
        self.content(name, volume.spec.kind, found, &volume.slots, None);
    }
}
