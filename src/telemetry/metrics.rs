//! The one table of metrics. `docs/metrics.md` is printed from it, and nothing is exposed that is not in it.
//!
//! Must not: rename what is [`Stability::Stable`], or take a label from it.

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Only grows while the driver runs.
    Counter,
    /// How it is now.
    Gauge,
    /// How often something took how long; `_count` is how often, `_sum` how long in all.
    Histogram,
    /// Facts in labels; the value is 1.
    Info,
}

impl Type {
    /// Its word in OpenMetrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// The unit of a value; the name ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A plain number.
    One,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// Its word in OpenMetrics; `None` for a plain number.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::One => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("seconds"),
        }
    }
}

/// Whether dashboards and alerts can rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Its name, type, unit and labels stay; a value may be added to a label.
    Stable,
    /// May change with any release.
    Experimental,
}

impl Stability {
    /// In one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Experimental => "experimental",
        }
    }
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Without its unit and what OpenMetrics adds to it.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// Its type.
    pub kind: Type,
    /// The names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What can be relied on.
    pub stability: Stability,
    /// What it tells.
    pub help: &'static str,
}

impl Metric {
    /// Its name as it stands in queries; a histogram has `_bucket`, `_sum` or `_count` behind it.
    #[must_use]
    pub fn full_name(&self) -> String {
        let unit = self.unit.as_str().map_or_else(String::new, |unit| format!("_{unit}"));
        let end = match self.kind {
            Type::Counter => "_total",
            Type::Info => "_info",
            Type::Gauge | Type::Histogram => "",
        };
        format!("{}{unit}{end}", self.name)
    }
}

/// One constant for each row, and all of them in their order.
macro_rules! metrics {
    ($($constant:ident: $name:literal, $kind:ident, $unit:ident, $labels:expr, $stability:ident; $help:literal;)*) => {
        $(
            #[doc = concat!($help, ".")]
            pub const $constant: Metric = Metric {
                name: $name,
                unit: Unit::$unit,
                kind: Type::$kind,
                labels: &$labels,
                stability: Stability::$stability,
                help: $help,
            };
        )*

        /// All metrics, in the order in which they are exposed.
        pub const ALL: &[&Metric] = &[$(&$constant),*];
    };
}

/// What names a volume: its id, its pool and backend, and the claim that it was made for.
const VOLUME: [&str; 5] = ["volume", "pool", "backend", "namespace", "persistentvolumeclaim"];

metrics! {
    BUILD: "orlop_build", Info, One, ["version", "csi_version"], Stable;
        "The release that runs, and the version of CSI that it speaks";
    RPC_DURATION: "orlop_rpc_duration", Histogram, Seconds, ["method", "code"], Stable;
        "RPCs that were answered, by method and gRPC code; Cancelled when the caller went away before";
    JOBS: "orlop_jobs", Gauge, One, ["state"], Stable;
        "Requests that are being worked on (running), and those that wait because too many of their pool are (waiting)";
    OLDEST_JOB: "orlop_oldest_job", Gauge, Seconds, [], Stable;
        "For how long the oldest request has been worked on; 0 without any";
    POOL_STATE: "orlop_pool_state", Gauge, One, ["pool", "state"], Stable;
        "1 for the state that the pool is in: ready, waiting (for another process to let go of it), away, or hung";
    POOL_CAPACITY: "orlop_pool_capacity", Gauge, Bytes, ["pool"], Stable;
        "The size of the pool's filesystem";
    POOL_AVAILABLE: "orlop_pool_available", Gauge, Bytes, ["pool"], Stable;
        "What is available on the pool's filesystem";
    POOL_USED: "orlop_pool_used", Gauge, Bytes, ["pool"], Stable;
        "What volumes, snapshots and what is kept or not yet removed take of it, as far as that can be told";
    POOL_RESERVE: "orlop_pool_reserve", Gauge, Bytes, ["pool"], Stable;
        "What volumes may never take of it";
    POOL_PROMISED: "orlop_pool_promised", Gauge, Bytes, ["pool"], Stable;
        "What volumes, snapshots and what is kept, not yet removed or being made were promised";
    POOL_ROOM: "orlop_pool_room", Gauge, Bytes, ["pool"], Stable;
        "What can still be promised to thin volumes and directories";
    POOL_CONDITION: "orlop_pool_condition", Gauge, One, ["pool", "reason"], Stable;
        "1 for each condition that the pool has; SEMANTICS.md has the reasons";
    VOLUMES: "orlop_volumes", Gauge, One, ["pool", "backend", "state"], Stable;
        "Volumes: ready, importing (half imported), or damaged (the record cannot be read, so the backend is unknown)";
    SNAPSHOTS: "orlop_snapshots", Gauge, One, ["pool", "backend", "state"], Stable;
        "Snapshots, those in groups included: ready or damaged";
    VOLUME_CAPACITY: "orlop_volume_capacity", Gauge, Bytes, VOLUME, Stable;
        "The size of the volume";
    VOLUME_USED: "orlop_volume_used", Gauge, Bytes, VOLUME, Stable;
        "What is in use: of its filesystem where one is mounted, of its image where not, under its limit or as last counted for directories; absent when nothing tells";
    VOLUME_INODES: "orlop_volume_inodes", Gauge, One, VOLUME, Stable;
        "How many inodes it can have, where there is a bound";
    VOLUME_INODES_USED: "orlop_volume_inodes_used", Gauge, One, VOLUME, Stable;
        "How many inodes it has, where something counts them";
    VOLUME_CONDITION: "orlop_volume_condition", Gauge, One, ["volume", "pool", "reason"], Stable;
        "1 for each condition that the volume has of itself; looked for every five minutes at most";
    LOOP_DEVICES: "orlop_loop_devices", Gauge, One, [], Stable;
        "Loop devices with the label of a volume, read-only views included";
    FROZEN_VOLUMES: "orlop_frozen_volumes", Gauge, One, [], Stable;
        "Volumes that are marked as frozen by this driver";
    FREEZE_DURATION: "orlop_freeze_duration", Histogram, Seconds, [], Stable;
        "How long writers of volumes were held up for a copy";
    CLEANUPS: "orlop_cleanups", Counter, One, ["reason"], Stable;
        "What nobody had a use for any more and the driver took away, by what it was";
    RECOVERIES: "orlop_recoveries", Counter, One, ["reason"], Stable;
        "What was damaged or away and is right again, by what it was";
}
