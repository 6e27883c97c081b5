//! What images take of the modelled filesystem: as much as the real files have of the real one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::MutexGuard;

use super::model::Model;
use crate::host::Space;
use crate::volume::ByteSize;

/// The blocks of all disk images below a directory. What goes away meanwhile counts nothing.
fn blocks(place: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(place) else { return 0 };
    let taken = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => blocks(&entry.path()),
        Ok(metadata) if entry.file_name() == "disk.img" => metadata.blocks(),
        Ok(_) | Err(_) => 0,
    });
    taken.sum()
}

/// The space of the filesystem at a place, without what images take of it where that is modelled.
pub(super) fn left(model: MutexGuard<'_, Model>, place: &Path) -> Space {
    let (space, is_metered) = (model.space, model.is_metered);
    drop(model);
    let taken = if is_metered { blocks(place).saturating_mul(512) } else { 0 };
    let taken = ByteSize::new(taken);
    Space {
        free: space.free.saturating_sub(taken),
        available: space.available.saturating_sub(taken),
        ..space
    }
}
