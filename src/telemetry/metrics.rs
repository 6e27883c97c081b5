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
}

impl Type {
    /// Its word in OpenMetrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// The unit of a value; the name ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A plain number.
    One,
}

impl Unit {
    /// Its word in OpenMetrics; `None` for a plain number.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::One => None,
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

/// Clean-ups.
pub const CLEANUPS: Metric = Metric {
    name: "orlop_cleanups",
    unit: Unit::One,
    kind: Type::Counter,
    labels: &["reason"],
    stability: Stability::Stable,
    help: "What nobody had a use for any more and the driver took away, by what it was",
};

/// Recoveries.
pub const RECOVERIES: Metric = Metric {
    name: "orlop_recoveries",
    unit: Unit::One,
    kind: Type::Counter,
    labels: &["reason"],
    stability: Stability::Stable,
    help: "What was damaged or cut off and the driver mended or finished, by what it was",
};

/// All metrics, in the order in which they are exposed.
pub const ALL: [&Metric; 2] = [&CLEANUPS, &RECOVERIES];
