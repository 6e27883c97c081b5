//! Values that are words: in StorageClasses, in records, in requests. One word for each value, everywhere.

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order of the documents.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in a StorageClass and in records.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value of that word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(super) use word_enum;

word_enum! {
    /// What a volume's data is.
    Backend {
        /// A directory of the pool.
        Hostpath = "hostpath",
        /// A disk image behind a loop device.
        Loop = "loop",
    }
}
word_enum! {
    /// Whether a directory is held to its size.
    Quota {
        /// Where the pool can; otherwise the volume is reported as unlimited.
        Auto = "auto",
        /// Refused where the pool cannot.
        Required = "required",
        /// Never.
        Off = "off",
    }
}
word_enum! {
    /// When an image gets its blocks.
    Allocation {
        /// When they are written.
        Thin = "thin",
        /// At birth, and it keeps them.
        Thick = "thick",
    }
}
word_enum! {
    /// Direct I/O of the loop device.
    DirectIo {
        /// Where the pool's filesystem can.
        Auto = "auto",
        /// Refused at stage where it cannot.
        On = "on",
        /// Never.
        Off = "off",
    }
}
word_enum! {
    /// What DeleteVolume does with the data.
    OnDelete {
        /// Removes it.
        Delete = "delete",
        /// Keeps it under `retained/`.
        Retain = "retain",
        /// Keeps it under `archive/`.
        Archive = "archive",
        /// Overwrites it in place, then removes it.
        Wipe = "wipe",
    }
}
word_enum! {
    /// A filesystem that a loop volume can have.
    Filesystem {
        /// ext4
        Ext4 = "ext4",
        /// XFS
        Xfs = "xfs",
        /// btrfs
        Btrfs = "btrfs",
    }
}
