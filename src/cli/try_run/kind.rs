//! The kinds of volumes that are shown.

use std::fmt;

use clap::ValueEnum;

use crate::csi::proto::volume_capability::{AccessType, BlockVolume, MountVolume};

/// A kind of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Kind {
    /// A directory of the pool
    Hostpath,
    /// A disk image with ext4
    Ext4,
    /// A disk image with XFS
    Xfs,
    /// A disk image with btrfs
    Btrfs,
    /// A disk image as a raw block device
    Block,
}

/// A program that makes a filesystem, and the Debian package that it comes with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    pub(super) program: &'static str,
    pub(super) package: &'static str,
}

impl fmt::Display for Kind {
    /// The word for it on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hostpath => "hostpath",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Block => "block",
        })
    }
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Hostpath, Self::Ext4, Self::Xfs, Self::Btrfs, Self::Block];

    /// The heading of its column.
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Hostpath => "hostpath",
            Self::Ext4 => "loop/ext4",
            Self::Xfs => "loop/xfs",
            Self::Btrfs => "loop/btrfs",
            Self::Block => "loop/block",
        }
    }

    /// What the kernel calls the filesystem that is made for it.
    pub(super) const fn filesystem(self) -> Option<&'static str> {
        match self {
            Self::Hostpath | Self::Block => None,
            Self::Ext4 => Some("ext4"),
            Self::Xfs => Some("xfs"),
            Self::Btrfs => Some("btrfs"),
        }
    }

    /// The program that makes its filesystem.
    pub(super) const fn tool(self) -> Option<Tool> {
        let (program, package) = match self {
            Self::Hostpath | Self::Block => return None,
            Self::Ext4 => ("mke2fs", "e2fsprogs"),
            Self::Xfs => ("mkfs.xfs", "xfsprogs"),
            Self::Btrfs => ("mkfs.btrfs", "btrfs-progs"),
        };
        Some(Tool { program, package })
    }

    /// The sizes before and after its growth: hardly more than the smallest that each filesystem can have.
    pub(super) const fn sizes(self) -> (i64, i64) {
        const MIB: i64 = 1 << 20;
        match self {
            Self::Hostpath | Self::Ext4 | Self::Block => (64 * MIB, 128 * MIB),
            Self::Xfs => (320 * MIB, 400 * MIB),
            Self::Btrfs => (256 * MIB, 352 * MIB),
        }
    }

    /// How it is accessed.
    pub(super) fn access(self) -> AccessType {
        if self == Self::Block {
            return AccessType::Block(BlockVolume {});
        }
        let filesystem = self.filesystem();
        AccessType::Mount(MountVolume {
            fs_type: filesystem.unwrap_or_default().to_owned(),
            // What is removed goes back to the pool, so that a snapshot is not charged for it.
            mount_flags: filesystem.map(|_any| "discard".to_owned()).into_iter().collect(),
            ..MountVolume::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_kind_is_its_name_on_the_command_line() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_str(&kind.to_string(), false), Ok(kind));
        }
        assert_eq!(Kind::value_variants(), Kind::ALL);
    }

    #[test]
    fn every_kind_grows() {
        for kind in Kind::ALL {
            let (size, grown) = kind.sizes();
            assert!(grown > size + (8 << 20), "{kind}");
        }
    }
}
