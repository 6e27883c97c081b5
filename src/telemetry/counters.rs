//! What is counted where it happens. The counters are the process's: whoever counts needs nothing but to call.
//!
//! Invariant: every value that a label can have is there from the start, with zero, so that its first increase shows.
//!
//! Must not: take a name, id or path as a label; a counter lives as long as the process.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

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
    /// An import that was given up before its data was moved.
    Import,
    /// The unfinished image of a managed pool.
    ManagedPool,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Incoming,
        Self::Trash,
        Self::FrozenFilesystem,
        Self::InlineVolume,
        Self::LoopDevice,
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
            Self::Import => "import",
            Self::ManagedPool => "managed_pool",
        }
    }

    /// What it was.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Incoming => "what an earlier run was killed over before it was born",
            Self::Trash => "what was deleted, when all of it is gone",
            Self::FrozenFilesystem => "the freeze of a run that was killed in it",
            Self::InlineVolume => "an inline volume whose pod has gone without an unpublish",
            Self::LoopDevice => "a loop device of this driver that nobody used",
            Self::Import => "an import that was given up before its data was moved",
            Self::ManagedPool => "the unfinished image of a managed pool",
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

    /// What it was.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Filesystem => {
                "the filesystem of a volume had errors and was repaired before it was mounted"
            }
            Self::Blocks => "a thick volume had lost blocks, and they were reserved again",
            Self::Pool => "a pool that had been away is back",
        }
    }
}

/// Names and values of labels.
type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// Bounds of the buckets, in seconds: from what takes some system calls to what copies a large image.
const RPC_BOUNDS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];
/// A freeze ends after two seconds.
const FREEZE_BOUNDS: [f64; 7] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0];

fn rpc_histogram() -> Histogram {
    Histogram::new(RPC_BOUNDS)
}

/// All that this process has counted.
#[derive(Debug)]
struct Counters {
    rpcs: Family<Labels, Histogram, fn() -> Histogram>,
    freezes: Histogram,
    cleanups: Family<Labels, Counter>,
    recoveries: Family<Labels, Counter>,
}

static COUNTERS: LazyLock<Counters> = LazyLock::new(|| {
    let counters = Counters {
        rpcs: Family::new_with_constructor(rpc_histogram),
        freezes: Histogram::new(FREEZE_BOUNDS),
        cleanups: Family::default(),
        recoveries: Family::default(),
    };
    for reason in Reason::ALL {
        add(&counters.cleanups, reason.as_str(), 0);
    }
    for recovery in Recovery::ALL {
        add(&counters.recoveries, recovery.as_str(), 0);
    }
    counters
});

fn add(family: &Family<Labels, Counter>, reason: &'static str, number: u64) {
    family.get_or_create(&vec![("reason", Cow::Borrowed(reason))]).inc_by(number);
}

/// Counts what was taken away.
pub fn cleanup(reason: Reason) {
    add(&COUNTERS.cleanups, reason.as_str(), 1);
}

/// Counts what was mended.
pub fn recovery(recovery: Recovery) {
    add(&COUNTERS.recoveries, recovery.as_str(), 1);
}

/// Counts an RPC. The code is one of gRPC's names, so that there are never more than so many.
pub fn rpc(method: &'static str, code: String, took: Duration) {
    let labels = vec![("method", Cow::Borrowed(method)), ("code", Cow::Owned(code))];
    COUNTERS.rpcs.get_or_create(&labels).observe(took.as_secs_f64());
}

/// Counts a freeze.
pub fn freeze(took: Duration) {
    COUNTERS.freezes.observe(took.as_secs_f64());
}

/// Encodes what is counted of a metric; `None` when it is not counted here.
pub(super) fn counted(metric: &Metric) -> Option<&'static dyn EncodeMetric> {
    let families: [(&Metric, &'static dyn EncodeMetric); 4] = [
        (&metrics::RPC_DURATION, &COUNTERS.rpcs),
        (&metrics::FREEZE_DURATION, &COUNTERS.freezes),
        (&metrics::CLEANUPS, &COUNTERS.cleanups),
        (&metrics::RECOVERIES, &COUNTERS.recoveries),
    ];
    families.into_iter().find(|(known, _)| known.name == metric.name).map(|(_, family)| family)
}
