//! What to do for a managed pool, from what is wanted and what was seen.
//!
//! Pure. Invariants, which the property test holds against any interruption and any sight:
//! - Nothing is made where anything was: not over data, not for a pool that was here before, not on another disk than the
//!   one whose making was begun.
//! - A loop device is set up only when none is on the image, and none is used when two are.
//! - A filesystem is mounted only when it is the right one and is mounted nowhere else.

use std::path::PathBuf;

use crate::host::Content;
use crate::store::{Making, ManagedRecord};
use crate::volume::{ByteSize, Filesystem, FilesystemUuid};

/// What the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The pool's name, for messages.
    pub(super) name: String,
    /// Where the image or the device is, for messages.
    pub(super) base: PathBuf,
    pub(super) filesystem: Filesystem,
    /// The size of the image; `None` for a device, which has its own.
    pub(super) size: Option<ByteSize>,
    pub(super) sparse: bool,
}

/// A loop device on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoopSeen {
    pub(super) number: u32,
    /// It shows all of the image, and may be written to.
    pub(super) is_whole: bool,
    pub(super) size: ByteSize,
}

/// What is mounted at the pool's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountSeen {
    pub(super) uuid: Option<FilesystemUuid>,
    /// It is on the loop device of the image, or on the device.
    pub(super) is_base: bool,
    /// In words.
    pub(super) source: String,
}

/// What was seen; by default nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) record: Option<ManagedRecord>,
    /// A pool of this name was here before.
    pub(super) known: bool,
    /// What lies in the image or on the device; `None` when there is none.
    pub(super) content: Option<Content>,
    /// The length of the image or the size of the device.
    pub(super) length: ByteSize,
    /// What the image takes of its filesystem.
    pub(super) allocated: ByteSize,
    /// Who uses the device, in words; looked at only before something is made on it.
    pub(super) user: Option<String>,
    pub(super) loops: Vec<LoopSeen>,
    pub(super) mounted: Option<MountSeen>,
    /// The whole filesystem is mounted there.
    pub(super) elsewhere: Option<PathBuf>,
    /// Why mounts that are made below the root directory would not last.
    pub(super) private: Option<String>,
}

/// One step of the use of a pool that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the image longer.
    Extend(ByteSize),
    /// Reserve the blocks that the image lacks.
    FillHoles,
    /// Set up a loop device: there is none on the image.
    Attach,
    /// Take the loop device that is on the image.
    Hold(u32),
    /// Tell the loop device that the image is longer.
    RefreshLoop(u32),
    /// Mount it at the pool's path.
    Mount,
    /// Switch quotas on, for a filesystem that was made here and never used.
    EnableQuota,
    /// Grow the mounted filesystem to its device.
    GrowFilesystem,
}

/// What is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// Make the filesystem, then look again. The UUID is that of a making that was begun.
    Make(Option<FilesystemUuid>),
    /// Write down what was found, then look again.
    Remember(ManagedRecord),
    /// Use it. Notes are for the log.
    Use { uuid: FilesystemUuid, steps: Vec<Step>, notes: Vec<String> },
}

/// Less than this a filesystem leaves of its device anyway, or cannot use.
const ROUNDING: u64 = 1 << 20;

/// Decides.
///
/// # Errors
/// Why the pool cannot be used now, and what to do.
pub(super) fn plan(wish: &Wish, seen: &Seen) -> Result<Plan, String> {
    let base = wish.base.display();
    let on_device = wish.size.is_none();
    check_kind(wish, seen)?;
    match (&seen.record, &seen.content) {
        (None, _) if seen.known && !is_ours(wish, seen) => Err(format!(
            "a pool {} was here before, in a directory or on another root directory, and nothing is made in its place; give the new pool another name",
            wish.name
        )),
        (Some(record), Some(Content::Filesystem(found)))
            if record.uuid == found.uuid && found.signature.filesystem == wish.filesystem =>
        {
            match record.making {
                // Its name, or the end of the claim, says that it is whole.
                Making::Begun => {
                    Ok(Plan::Remember(ManagedRecord { making: Making::Made, ..*record }))
                }
                Making::Made | Making::Adopted => use_it(wish, seen, record, found.signature.size),
            }
        }
        (Some(ManagedRecord { making: Making::Made | Making::Adopted, uuid, .. }), content) => {
            Err(gone(wish, *uuid, content.as_ref()))
        }
        (None, Some(Content::Filesystem(found))) if is_ours(wish, seen) => {
            let (filesystem, uuid) = (wish.filesystem, found.uuid);
            Ok(Plan::Remember(ManagedRecord {
                filesystem,
                uuid,
                on_device,
                making: Making::Adopted,
            }))
        }
        (record, content) => match (content, record) {
            (None, _) if on_device => Err(format!("there is no disk at {base}")),
            (None, _) => may_make(wish, seen, record.as_ref().map(|record| record.uuid)),
            (Some(Content::Blank), _) if on_device => {
                may_make(wish, seen, record.as_ref().map(|record| record.uuid))
            }
            (Some(Content::Claimed(uuid)), Some(record)) if on_device && record.uuid == *uuid => {
                may_make(wish, seen, Some(*uuid))
            }
            (Some(content), _) => Err(occupied(wish, content)),
        },
    }
}

/// The configuration still means what was made.
fn check_kind(wish: &Wish, seen: &Seen) -> Result<(), String> {
    let on_device = wish.size.is_none();
    if let Some(record) = &seen.record
        && (record.filesystem, record.on_device) != (wish.filesystem, on_device)
    {
        let place = |on_device| if on_device { "a device" } else { "an image" };
        return Err(format!(
            "the pool {} was made as {} on {}, and the configuration says {} on {}; put that back, or give the new pool another name",
            wish.name,
            record.filesystem,
            place(record.on_device),
            wish.filesystem,
            place(on_device)
        ));
    }
    Ok(())
}

/// It was made for a managed pool, by an earlier installation.
fn is_ours(wish: &Wish, seen: &Seen) -> bool {
    matches!(&seen.content, Some(Content::Filesystem(found))
        if found.is_ours && found.signature.filesystem == wish.filesystem)
}

fn may_make(wish: &Wish, seen: &Seen, uuid: Option<FilesystemUuid>) -> Result<Plan, String> {
    if seen.known {
        return Err(format!(
            "the pool {} was here before, and nothing is made in its place",
            wish.name
        ));
    }
    if let Some(mount) = &seen.mounted {
        return Err(format!(
            "something is mounted at its path ({}); unmount that, or choose another path",
            mount.source
        ));
    }
    if let Some(user) = &seen.user {
        return Err(format!("the disk {} is not free: {user}", wish.base.display()));
    }
    if let Some(reason) = &seen.private {
        return Err(reason.clone());
    }
    Ok(Plan::Make(uuid))
}

/// What was made is not there.
fn gone(wish: &Wish, uuid: FilesystemUuid, content: Option<&Content>) -> String {
    let base = wish.base.display();
    match content {
        None if wish.size.is_none() => format!(
            "its disk is not at {base}; it is the one with the filesystem UUID {uuid}: connect it, or name it by /dev/disk/by-id"
        ),
        None => format!(
            "its image {base} (filesystem UUID {uuid}) is gone, and is not made anew; put it back"
        ),
        Some(Content::Filesystem(found)) => format!(
            "{base} has another filesystem (UUID {}) than the pool's ({uuid}); names of disks may change: name it by /dev/disk/by-id",
            found.uuid
        ),
        Some(Content::Blank | Content::Claimed(_) | Content::Foreign(_)) => format!(
            "{base} does not begin with the pool's filesystem (UUID {uuid}); if it is the right one its superblock is damaged: nothing was changed, and nothing is made anew"
        ),
    }
}

/// What is there is not what a pool is made over.
fn occupied(wish: &Wish, content: &Content) -> String {
    let base = wish.base.display();
    let found = match content {
        Content::Blank => "zeroes".to_owned(),
        Content::Foreign(what) => what.clone(),
        Content::Filesystem(found) => {
            format!("a filesystem ({}, UUID {})", found.signature.filesystem, found.uuid)
        }
        Content::Claimed(uuid) => {
            format!("the mark of another driver's making (UUID {uuid}), interrupted or at work")
        }
    };
    if wish.size.is_none() {
        format!(
            "{base} has {found}, and a pool is made on a blank disk only; if nobody needs what it has, clear it (wipefs takes signatures away, blkdiscard or dd the rest); to use a filesystem as it is, mount it and give its path"
        )
    } else {
        format!("{base} is not an image that was made for this pool: it has {found}; move it away")
    }
}

fn use_it(
    wish: &Wish,
    seen: &Seen,
    record: &ManagedRecord,
    filesystem: ByteSize,
) -> Result<Plan, String> {
    if let Some(mount) = seen.mounted.as_ref().filter(|m| !m.is_base || m.uuid != Some(record.uuid))
    {
        return Err(format!(
            "something else is mounted at its path ({}); unmount that",
            mount.source
        ));
    }
    let (mut steps, mut notes) = (Vec::new(), Vec::new());
    let length = if let Some(size) = wish.size {
        image_steps(wish, seen, size, &mut steps, &mut notes)?
    } else {
        seen.length
    };
    if seen.mounted.is_none() {
        if let Some(place) = &seen.elsewhere {
            return Err(format!(
                "its filesystem is mounted at {} already; unmount it there, or make that the pool's path",
                place.display()
            ));
        }
        if let Some(reason) = &seen.private {
            return Err(reason.clone());
        }
        steps.push(Step::Mount);
    }
    if record.making == Making::Made && !seen.known {
        steps.push(Step::EnableQuota);
    }
    if length.bytes() >= filesystem.bytes().saturating_add(ROUNDING) {
        steps.push(Step::GrowFilesystem);
    }
    Ok(Plan::Use { uuid: record.uuid, steps, notes })
}

/// The steps from the image to its loop device; answers how long the image will be.
fn image_steps(
    wish: &Wish,
    seen: &Seen,
    size: ByteSize,
    steps: &mut Vec<Step>,
    notes: &mut Vec<String>,
) -> Result<ByteSize, String> {
    if seen.length < size {
        steps.push(Step::Extend(size));
    } else if seen.length > size {
        notes.push(format!(
            "the configured size {size} is less than the image has ({}); a pool is never shrunk",
            seen.length
        ));
    }
    if !wish.sparse && seen.allocated < seen.length {
        steps.push(Step::FillHoles);
    }
    let length = seen.length.max(size);
    match seen.loops.as_slice() {
        [] if seen.mounted.is_some() => {
            return Err("its loop device is on its way out; try again".to_owned());
        }
        [] => steps.push(Step::Attach),
        [one] if one.is_whole => {
            steps.push(Step::Hold(one.number));
            if one.size < length {
                steps.push(Step::RefreshLoop(one.number));
            }
        }
        [one] => {
            return Err(format!(
                "/dev/loop{} is on its image, and shows only a part of it or is read-only; detach it (losetup -d)",
                one.number
            ));
        }
        several => {
            let names: Vec<_> =
                several.iter().map(|one| format!("/dev/loop{}", one.number)).collect();
            return Err(format!(
                "several loop devices are on its image ({}), which can destroy it; nothing more is done with it: end its pods, unmount it, detach all of them (losetup -d), and check the filesystem",
                names.join(", ")
            ));
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
