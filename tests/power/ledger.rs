//! What was begun and what was acknowledged, one line each, on the host's side of a serial port.
//!
//! Invariants: a line is with the host before the guest goes on; a line without its end is none.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::life::Kind;

/// The filesystem that a pool is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Pool {
    Ext4,
    Xfs,
    Btrfs,
    /// A pool that the driver has made itself, in an image beside the ext4 pool.
    Managed,
}

impl Pool {
    pub(crate) const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Managed];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Managed => "managed",
        }
    }

    /// A volume that is in use there can be copied.
    pub(crate) fn is_instant(self, kind: Kind) -> bool {
        match self {
            Self::Ext4 => false,
            Self::Btrfs => true,
            Self::Xfs | Self::Managed => kind != Kind::Hostpath,
        }
    }
}

/// What a volume was asked for with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) pool: Pool,
    pub(crate) kind: Kind,
    pub(crate) thick: bool,
    pub(crate) bytes: u64,
}

/// What a volume began with, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    Snapshot(String),
    Volume(String),
}

/// `onDelete`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnDelete {
    Delete,
    Retain,
    Archive,
}

impl OnDelete {
    pub(crate) const ALL: [Self; 3] = [Self::Delete, Self::Retain, Self::Archive];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Retain => "retain",
            Self::Archive => "archive",
        }
    }

    /// The directory of the pool where a deleted volume stays.
    pub(crate) const fn keeps_in(self) -> Option<&'static str> {
        match self {
            Self::Delete => None,
            Self::Retain => Some("retained"),
            Self::Archive => Some("archive"),
        }
    }
}

/// One thing that a client does. Volumes and snapshots are named as CreateVolume and CreateSnapshot name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    Create {
        volume: String,
        spec: Spec,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<Source>,
    },
    /// Stage and publish.
    Up {
        volume: String,
    },
    /// Unpublish and unstage.
    Down {
        volume: String,
    },
    /// Write the content of a seed into a slot of the volume, and flush it.
    Write {
        volume: String,
        slot: u8,
        seed: u64,
    },
    Expand {
        volume: String,
        bytes: u64,
    },
    Modify {
        volume: String,
        keep: OnDelete,
    },
    Delete {
        volume: String,
    },
    Snapshot {
        snapshot: String,
        volume: String,
    },
    Forget {
        snapshot: String,
    },
    /// Remove by hand what a deletion has kept.
    Purge {
        volume: String,
    },
}

/// The words of [`Op::word`] that a cut can wait for.
pub(crate) const LASTING: [&str; 8] =
    ["create", "copy", "write", "expand", "modify", "delete", "snapshot", "forget"];

impl Op {
    /// What it is, in one word.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Create { source: None, .. } => "create",
            Self::Create { source: Some(_), .. } => "copy",
            Self::Up { .. } => "up",
            Self::Down { .. } => "down",
            Self::Write { .. } => "write",
            Self::Expand { .. } => "expand",
            Self::Modify { .. } => "modify",
            Self::Delete { .. } => "delete",
            Self::Snapshot { .. } => "snapshot",
            Self::Forget { .. } => "forget",
            Self::Purge { .. } => "purge",
        }
    }

    /// What is changed or made by it.
    pub(crate) fn object(&self) -> &str {
        match self {
            Self::Create { volume, .. }
            | Self::Up { volume }
            | Self::Down { volume }
            | Self::Write { volume, .. }
            | Self::Expand { volume, .. }
            | Self::Modify { volume, .. }
            | Self::Delete { volume }
            | Self::Purge { volume } => volume,
            Self::Snapshot { snapshot, .. } | Self::Forget { snapshot } => snapshot,
        }
    }
}

/// What an acknowledgement told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) id: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// A boot begins: whatever was mounted is not.
    Boot,
    /// The driver has said that it is ready.
    Ready {
        pools: BTreeSet<Pool>,
    },
    /// Everything was looked at.
    Checked,
    /// From here on the power may be cut.
    Working,
    Begin {
        client: String,
        op: Op,
    },
    Done {
        client: String,
        told: Told,
    },
}

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct Line(File);

impl Line {
    pub(crate) fn open(port: &Path) -> Self {
        Self(File::options().write(true).open(port).unwrap())
    }

    /// Answers when the host has it: the port's driver waits for that.
    pub(crate) fn tell(&mut self, event: &Event) {
        let mut text = serde_json::to_string(event).unwrap();
        text.push('\n');
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

/// The events of one boot.
pub(crate) fn read(text: &str) -> Vec<Event> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let event = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    whole.lines().map(event).collect()
}

#[test]
fn a_line_is_whole_or_none() {
    let begun = Event::Begin {
        client: "xfs-0".to_owned(),
        op: Op::Write { volume: "xfs-0-1".to_owned(), slot: 3, seed: u64::MAX },
    };
    let text = serde_json::to_string(&begun).unwrap();
    assert_eq!(read(&format!("{text}\n{text}\n")), [begun.clone(), begun.clone()]);
    for length in 0..=text.len() {
        assert_eq!(read(&format!("{text}\n{}", &text[..length])), std::slice::from_ref(&begun));
    }
    assert_eq!(read(&text), []);
}
