//! What holds a directory to its size.

use super::words::word_enum;

word_enum! {
    /// How a filesystem holds a directory to a size.
    LimitKind {
        /// A project quota of ext4 or XFS, in force (`prjquota`).
        Project = "project",
        /// A simple quota of btrfs (Linux 6.7): also for the subvolumes that a pod makes inside.
        SimpleQuota = "simple-quota",
        /// A qgroup of btrfs. A pod escapes it with subvolumes of its own, so it is not hard.
        Qgroup = "qgroup",
    }
}

impl LimitKind {
    /// It holds whatever a pod does with ordinary rights, but for the project ids of its own files.
    #[must_use]
    pub const fn is_hard(self) -> bool {
        !matches!(self, Self::Qgroup)
    }

    /// Bytes belong to who wrote them first, as long as anybody has them, and not to who has them.
    #[must_use]
    pub const fn charges_first_writer(self) -> bool {
        matches!(self, Self::SimpleQuota)
    }
}

/// The limit of one directory on its filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How it holds.
    pub kind: LimitKind,
    /// Which one: a project id, or the number of a qgroup of level 1.
    pub number: u64,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            LimitKind::Project => write!(f, "project {}", self.number),
            LimitKind::SimpleQuota | LimitKind::Qgroup => write!(f, "qgroup 1/{}", self.number),
        }
    }
}
