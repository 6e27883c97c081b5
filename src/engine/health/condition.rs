//! The one table of what can be wrong with a volume or a pool.

/// How bad a condition is for a volume. The words are those of CSI 1.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeTrouble {
    /// It works, but not as it should.
    Degraded,
    /// It cannot be used, or not for what it was published for.
    Inaccessible,
    /// Data is lost, as far as can be seen.
    DataLoss,
}

impl VolumeTrouble {
    /// As the wire contract writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Degraded => "DEGRADED",
            Self::Inaccessible => "INACCESSIBLE",
            Self::DataLoss => "DATA_LOSS",
        }
    }
}

/// How bad a condition is for a pool. The words are those of CSI 1.13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageTrouble {
    /// It works, but not as it should.
    Degraded,
    /// It cannot be used.
    Unreachable,
}

impl StorageTrouble {
    /// As the wire contract writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Degraded => "STORAGE_DEGRADED",
            Self::Unreachable => "STORAGE_UNREACHABLE",
        }
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct HealthHelp {
    /// The word for it.
    pub reason: &'static str,
    /// How bad it is for a volume.
    pub volume: VolumeTrouble,
    /// How bad it is for a pool; `None` for what concerns one volume only.
    pub storage: Option<StorageTrouble>,
    /// What is wrong.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident: $volume:ident $(, $storage:ident)?; $meaning:literal; $remedy:literal;)+) => {
        /// Something that is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Condition { $(#[doc = $meaning] $name),+ }

        /// Everything that can be wrong, as it is printed in SEMANTICS.md.
        pub const HEALTH: &[HealthHelp] = &[$(Condition::$name.help()),+];

        impl Condition {
            /// Its row of the table.
            #[must_use]
            pub const fn help(self) -> HealthHelp {
                match self {
                    $(Self::$name => HealthHelp {
                        reason: stringify!($name),
                        volume: VolumeTrouble::$volume,
                        storage: conditions!(@storage $($storage)?),
                        meaning: $meaning,
                        remedy: $remedy,
                    }),+
                }
            }
        }
    };
    (@storage) => { None };
    (@storage $storage:ident) => { Some(StorageTrouble::$storage) };
}

conditions! {
    RecordDamaged: Inaccessible;
        "the record cannot be read; nothing is done to the volume, and its data stays";
        "restore `volume.json` from a copy";
    RecordTooNew: Inaccessible;
        "the record was written by a later release";
        "run that release";
    DataUnreadable: Inaccessible;
        "the pool's filesystem refuses to read the record or the data";
        "look at the kernel's log, check the disk";
    ImportUnfinished: Inaccessible;
        "an import was cut off, and the volume's data may still be where it comes from; nothing is done to either";
        "repeat the import";
    DataMissing: DataLoss;
        "the data directory or the image is not in the pool";
        "restore it from a copy, or move the volume's directory out of `volumes/` to give it up";
    ImageTruncated: DataLoss;
        "the image is shorter than the volume";
        "do not write to it; restore it from a copy";
    FilesystemMissing: DataLoss;
        "the image does not begin with the filesystem that it was born with";
        "restore it from a copy, or repair it with the filesystem's own tools";
    BlocksMissing: Degraded;
        "the image of a thick volume lacks blocks that were reserved for it: writing to it may fail when the pool is full";
        "end its pods: they are reserved again when it is staged";
    ImageReplaced: Inaccessible;
        "a loop device that was set up for the volume is on another file than its image";
        "end the pods that use it, so that it is unstaged and staged again";
    LoopConflict: Inaccessible;
        "two loop devices are on the image, or one that shows only a part of it";
        "unmount and detach (losetup -d) all but the one that this driver made";
    FilesystemErrors: Degraded;
        "the volume's filesystem has found errors in itself";
        "end its pods: ext4 is checked when it is staged again, btrfs needs a scrub";
    FilesystemStopped: Inaccessible;
        "the kernel has stopped the mounted filesystem after an error";
        "end its pods, so that it is unstaged and staged again; look at the kernel's log";
    FilesystemReadOnly: Inaccessible;
        "the volume was mounted for writing, and its filesystem is read-only by now";
        "look at the kernel's log; end its pods, so that it is unstaged and staged again";
    MountMissing: Inaccessible;
        "the volume is not mounted at its path";
        "end the pod, so that it is published again";
    MountReplaced: Inaccessible;
        "something else is mounted at the volume's path";
        "unmount that, and end the pod, so that the volume is published again";
    QuotaNotInForce: Degraded;
        "the volume is to be held to its size, and the pool's filesystem does not do it";
        "mount the pool with its quotas on, then stage the volume again";
    QuotaEscaped: Degraded;
        "files of the volume had another project id than its own in the last look, so its limit does not count them; looked for once a day";
        "set it back with chattr -p; use backend: loop for such pods";
    PoolAway: Inaccessible, Unreachable;
        "the pool is not here now";
        "mount its disk";
    PoolHung: Inaccessible, Unreachable;
        "requests have been waiting for the pool's filesystem for more than 10 s; nothing else is looked at meanwhile";
        "look at the kernel's log, check the disk";
    PoolReadOnly: Inaccessible, Degraded;
        "the pool's filesystem is read-only, or the kernel has stopped it";
        "look at the kernel's log; mount it for writing again";
    PoolFilesystemErrors: Degraded, Degraded;
        "the kernel has counted errors on the pool's filesystem";
        "check the disk and, unmounted, the filesystem";
    PoolSparse: Degraded, Degraded;
        "the image of a managed pool is sparse, so its writers fail when the filesystem below is full; told of the pool only";
        "set `sparse = false` for more than a trial";
    PoolNearlyFull: Degraded, Degraded;
        "less is available than the reserve, which counts as at most 5 % and at least 1 % here (where thin volumes may still write more than there is, as at least 10 %): volumes that take their blocks when they write will fail";
        "free some space, or make the filesystem larger";
}

/// One condition that holds, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which one.
    pub condition: Condition,
    /// What is wrong where, and what to do.
    pub message: String,
}

/// The conditions that hold, each at most once (CSI 1.13, VolumeHealthEntry), in the order of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings(Vec<(Condition, String)>);

impl Findings {
    /// Adds what is wrong where; a second place is told beside the first.
    pub(super) fn add(&mut self, condition: Condition, detail: &str) {
        match self.0.iter_mut().find(|(known, _)| *known == condition) {
            Some((_, text)) if text.contains(detail) => {}
            Some((_, text)) => *text = format!("{text}; {detail}"),
            None => {
                self.0.push((condition, detail.to_owned()));
                self.0.sort_by_key(|(condition, _)| *condition);
            }
        }
    }

    pub(super) fn append(&mut self, other: &Self, wanted: impl Fn(Condition) -> bool) {
        for (condition, detail) in other.0.iter().filter(|(condition, _)| wanted(*condition)) {
            self.add(*condition, detail);
        }
    }

    /// One of them concerns the volume itself, not its pool.
    pub(super) fn is_about_the_volume(&self) -> bool {
        self.0.iter().any(|(condition, _)| condition.help().storage.is_none())
    }

    pub(super) fn into_vec(self) -> Vec<Finding> {
        let finding = |(condition, detail): (Condition, String)| Finding {
            condition,
            message: format!("{detail}; {}", condition.help().remedy),
        };
        self.0.into_iter().map(finding).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_camel_case_words_and_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for row in HEALTH {
            let camel = row.reason.starts_with(|c: char| c.is_ascii_uppercase())
                && row.reason.chars().all(|c| c.is_ascii_alphanumeric());
            assert!(camel && seen.insert(row.reason), "{}", row.reason);
            assert!(!row.meaning.is_empty() && !row.remedy.is_empty());
        }
    }

    #[test]
    fn a_condition_is_told_once_with_all_its_places() {
        let mut findings = Findings::default();
        findings.add(Condition::PoolAway, "pool b");
        findings.add(Condition::DataMissing, "no image");
        findings.add(Condition::PoolAway, "pool a");
        findings.add(Condition::PoolAway, "pool b");
        let told: Vec<_> = findings.into_vec();
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].condition, Condition::DataMissing);
        assert_eq!(told[1].message, "pool b; pool a; mount its disk");
    }
}
