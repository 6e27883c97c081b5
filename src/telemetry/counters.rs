//! What is counted where it happens. The counters are the process's: whoever counts needs nothing but to call.
//!
//! Invariant: every value that a label can have is there from the start, with zero, so that its first increase shows.
//!
//! Must not: take a name, id or path as a label; a counter lives as long as the process.

use std::sync::LazyLock;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::metrics::{self, Metric};

/// What the driver took away because nobody had a use for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// What an earlier run was killed over before it was born.
    Incoming,
    /// What was deleted, when all of it is gone.
    Trash,
    /// A freeze that a killed run had left.
    FrozenFilesystem,
    /// An inline volume whose pod has gone without an unpublish.
    InlineVolume,
    /// A loop device of this driver that nobody used.
    LoopDevice,
    /// A mount of this driver that nobody used.
    Mount,
    /// An import that was given up before its data was moved.
    Import,
    /// The unfinished image of a managed pool.
    ManagedPool,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Incoming,
        Self::Trash,
        Self::FrozenFilesystem,
        Self::InlineVolume,
        Self::LoopDevice,
        Self::Mount,
        Self::Import,
        Self::ManagedPool,
    ];

    /// Its label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Trash => "trash",
            Self::FrozenFilesystem => "frozen_filesystem",
            Self::InlineVolume => "inline_volume",
            Self::LoopDevice => "loop_device",
            Self::Mount => "mount",
            Self::Import => "import",
            Self::ManagedPool => "managed_pool",
        }
    }
}

/// What the driver mended, or finished after it was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The filesystem of a volume had errors and was repaired before it was mounted.
    Filesystem,
    /// A thick volume had lost blocks, and they were reserved again.
    Blocks,
    /// A pool that had been away is back.
    Pool,
}

impl Recovery {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Filesystem, Self::Blocks, Self::Pool];

    /// Its label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Blocks => "blocks",
            Self::Pool => "pool",
        }
    }
}

/// Names and values of labels.
pub(super) type Labels = Vec<(&'static str, &'static str)>;

/// All counters of this process.
#[derive(Debug)]
struct Counters {
    cleanups: Family<Labels, Counter>,
    recoveries: Family<Labels, Counter>,
}

static COUNTERS: LazyLock<Counters> = LazyLock::new(|| {
    let counters = Counters { cleanups: Family::default(), recoveries: Family::default() };
    for reason in Reason::ALL {
        add(&counters.cleanups, reason.as_str(), 0);
    }
    for recovery in Recovery::ALL {
        add(&counters.recoveries, recovery.as_str(), 0);
    }
    counters
});

fn add(family: &Family<Labels, Counter>, reason: &'static str, number: u64) {
    family.get_or_create(&vec![("reason", reason)]).inc_by(number);
}

/// Counts what was taken away.
pub fn cleanup(reason: Reason) {
    add(&COUNTERS.cleanups, reason.as_str(), 1);
}

/// Counts what was mended.
pub fn recovery(recovery: Recovery) {
    add(&COUNTERS.recoveries, recovery.as_str(), 1);
}

/// Encodes what is counted of a metric.
pub(super) fn encode(metric: &Metric, encoder: MetricEncoder<'_>) -> std::fmt::Result {
    let families: [(&Metric, &dyn EncodeMetric); 2] =
        [(&metrics::CLEANUPS, &COUNTERS.cleanups), (&metrics::RECOVERIES, &COUNTERS.recoveries)];
    match families.into_iter().find(|(counted, _)| counted.name == metric.name) {
        Some((_, family)) => family.encode(encoder),
        None => Err(std::fmt::Error),
    }
}
