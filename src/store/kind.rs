//! The kinds of things that a pool holds, and where each has its place and its record.

/// A kind of thing in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot of a volume.
    Snapshot,
    /// Snapshots of several volumes at one instant.
    Group,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Volume, Self::Snapshot, Self::Group];

    /// The directory of the pool where those live that exist.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Volume => "volumes",
            Self::Snapshot => "snapshots",
            Self::Group => "groups",
        }
    }

    /// The file name of its record.
    #[must_use]
    pub const fn record(self) -> &'static str {
        match self {
            Self::Volume => "volume.json",
            Self::Snapshot => "snapshot.json",
            Self::Group => "group.json",
        }
    }

    /// What its name begins with where all kinds lie side by side (`incoming/`, `trash/`): a volume and a snapshot of
    /// one name have one key.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Volume => "",
            Self::Snapshot => "s-",
            Self::Group => "g-",
        }
    }

    /// The kind of a name in `incoming/` or `trash/`, and the rest of the name.
    pub(super) fn of_name(name: &str) -> (Self, &str) {
        for kind in [Self::Snapshot, Self::Group] {
            if let Some(rest) = name.strip_prefix(kind.prefix()) {
                return (kind, rest);
            }
        }
        (Self::Volume, name)
    }
}
