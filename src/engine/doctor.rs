//! `orlop doctor`: is this node ready, and what to do where it is not.
//!
//! What is seen is gathered first (`sight`), then judged by pure functions (`judge`), so that every verdict can be tested
//! without a node that is broken in that way.
//!
//! Must not: change anything, load a module, or need the driver to be up or down.

mod judge;
mod pools;
mod sight;

use std::path::PathBuf;

use super::PoolConfig;
use crate::host::linux::LinuxHost;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// The node works, but not with everything, or not for long.
    Warn,
    /// The node does not work.
    Fail,
}

impl Verdict {
    /// In one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the checklist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub what: String,
    /// What to do; `None` where all is well.
    pub remedy: Option<String>,
}

impl Diagnosis {
    fn pass(check: impl Into<String>, what: impl Into<String>) -> Self {
        Self { check: check.into(), verdict: Verdict::Pass, what: what.into(), remedy: None }
    }

    fn new(
        verdict: Verdict,
        check: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedy = Some(remedy.into());
        Self { check: check.into(), verdict, what: what.into(), remedy }
    }

    fn warn(check: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Verdict::Warn, check, what, remedy)
    }

    fn fail(check: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Verdict::Fail, check, what, remedy)
    }
}

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct Patient {
    /// The root directory of the driver.
    pub root_dir: PathBuf,
    /// The configured pools.
    pub pools: Vec<PoolConfig>,
    /// Kubelet's directory.
    pub kubelet_dir: PathBuf,
    /// The driver's socket, when it is told.
    pub socket: Option<PathBuf>,
}

/// Looks at this node.
#[must_use]
pub fn examine(patient: &Patient) -> Vec<Diagnosis> {
    let host = LinuxHost::new();
    judge::judge(&sight::look(patient, &host))
}
