//! Loop devices and mounts of a pool that nobody comes for.
//!
//! They are told of and left alone: what no mount shows may still be open in a pod, and only kubelet knows what a pod needs.

use std::path::Path;

use super::Check;
use crate::engine::EngineError;
use crate::host::{DeviceNumber, LoopStatus, MountEntry, MountTable, loop_path};
use crate::store::{Grave, PoolView};
use crate::volume::VolumeId;

/// A mount, and what ends it. The first table is that of this mount namespace; a path of another one may be anything here.
fn place(table: usize, at: &Path) -> (String, String) {
    let at = at.display();
    if table == 0 {
        (format!("at {at}"), format!("`umount {at}`"))
    } else {
        let where_it_is = format!("in another mount namespace, at {at} there");
        (where_it_is, "end the container that has it".to_owned())
    }
}

/// Where a loop device is mounted or its node is bound, in any mount namespace in sight.
fn shown(tables: &[MountTable], number: u32) -> Option<(String, String)> {
    tables.iter().enumerate().find_map(|(index, table)| {
        let shows = |entry: &&MountEntry| table.shown_loop(entry) == Some(number);
        Some(place(index, &table.iter().find(shows)?.mount_point))
    })
}

/// The pool has no such volume. A record that cannot be read is no reason to say so.
fn is_gone(view: &PoolView, id: &VolumeId) -> bool {
    match view.volume(&id.key) {
        Ok(found) => found.is_none_or(|volume| volume.generation != id.generation),
        Err(_unreadable) => false,
    }
}

impl Check<'_> {
    /// Says what is attached or mounted of this pool and has no user.
    ///
    /// # Errors
    /// The kernel does not show its mounts or loop devices.
    pub(super) fn devices(&mut self) -> Result<(), EngineError> {
        // Why it cannot be opened has been said of the marker.
        let Ok(view) = PoolView::open(&self.config.path) else { return Ok(()) };
        let (tables, _all_in_sight) = self.host.mounts_in_sight()?;
        let loops = self.host.loops()?;
        let before = self.report.findings.len();
        for status in &loops {
            let id = status.label.parse::<VolumeId>().ok();
            if let Some(id) = id.filter(|id| id.pool == view.uuid().tag()) {
                self.device(&view, &id, status, (&tables, &loops));
            }
        }
        self.dead_mounts(&tables);
        if self.report.findings.len() == before {
            self.good("no loop device or mount of it that nobody comes for");
        }
        Ok(())
    }

    fn device(
        &mut self,
        view: &PoolView,
        id: &VolumeId,
        status: &LoopStatus,
        (tables, loops): (&[MountTable], &[LoopStatus]),
    ) {
        let device = loop_path(status.number).display().to_string();
        let below = DeviceNumber::of_loop(status.number);
        let is_base = loops.iter().any(|other| other.backing_device == Some(below));
        match shown(tables, status.number) {
            Some((at, end)) if is_gone(view, id) => {
                self.wrong(format!("{device} is the device of volume {id}, which is not in the pool any more, and is shown {at}: end what uses it, {end}, and `losetup -d {device}` if it is there still"));
            }
            // One with AUTOCLEAR goes with whoever has it open.
            None if !status.autoclear && !is_base => {
                self.wrong(format!("{device} is the device of volume {id}, and no mount shows it; the driver detaches it itself only when it saw its unstage: when no pod uses the volume, `losetup -d {device}`"));
            }
            Some(_) | None => {}
        }
    }

    /// Mounts of what was deleted.
    fn dead_mounts(&mut self, tables: &[MountTable]) {
        let Some((table, pool)) = tables.first().zip(self.config.path.canonicalize().ok()) else {
            return;
        };
        let Some(base) = table.containing(&pool) else { return };
        let Ok(below) = pool.strip_prefix(&base.mount_point) else { return };
        let (device, root) = (base.device, base.root.join(below));
        let trash = root.join(Grave::Trash.directory());
        // The kernel writes so behind the path of what was removed.
        let is_removed = |path: &Path| path.to_string_lossy().ends_with("//deleted");
        let mut dead = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            for entry in table.iter().filter(|entry| entry.device == device) {
                let is_dead = entry.root.starts_with(&trash)
                    || (entry.root.starts_with(&root) && is_removed(&entry.root));
                let seen = place(index, &entry.mount_point);
                if is_dead && !dead.contains(&seen) {
                    dead.push(seen);
                }
            }
        }
        for (at, end) in dead {
            self.wrong(format!(
                "what is mounted {at} was deleted from the pool: end what uses it, then {end}"
            ));
        }
    }
}
