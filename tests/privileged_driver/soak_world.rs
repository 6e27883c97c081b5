//! What all clients of the long random test share: the pools, the traces, and who has seen what.

#![expect(clippy::disallowed_methods, reason = "writes the configuration of the driver")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::pools::PoolOn;
use crate::privileged::Sandbox;
use crate::soak_contended::Events;

/// So many of its last steps are shown of each client at a failure.
const REMEMBERED: usize = 30;

/// In MiB; more than all clients can ever ask for, so that there is always room. Sparse but for the managed one.
const SIZE: u64 = 6000;
const MANAGED: u64 = 2500;

/// One of the driver's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PoolIn {
    Ext4,
    Xfs,
    Btrfs,
    /// An XFS that the driver made itself.
    Managed,
}

impl PoolIn {
    pub(crate) const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Managed];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Managed => "managed",
        }
    }

    pub(crate) const fn on(self) -> PoolOn {
        match self {
            Self::Ext4 => PoolOn::Ext4,
            Self::Xfs | Self::Managed => PoolOn::Xfs,
            Self::Btrfs => PoolOn::Btrfs,
        }
    }

    /// There is room for volumes that take much.
    pub(crate) fn is_large(self) -> bool {
        self != Self::Managed
    }

    pub(crate) fn dir(self, sandbox: &Sandbox) -> PathBuf {
        sandbox.path(self.name()).join("pool")
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    /// The first part of each pool's UUID, as ids have it.
    tags: BTreeMap<String, PoolIn>,
    /// Calls that were begun, for whoever kills the driver.
    pub(crate) calls: AtomicU64,
    /// Starts of the driver: even while it is ready.
    starts: AtomicU64,
    failed: AtomicBool,
    ids: Mutex<BTreeSet<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    traces: Mutex<Vec<VecDeque<String>>>,
    pub(crate) events: Mutex<Events>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the filesystems, mounts them, and writes the configuration.
pub(crate) fn make_pools(sandbox: &Sandbox) {
    let mut text = String::new();
    for pool in PoolIn::ALL {
        let part = sandbox.sub(pool.name());
        let create = match pool {
            PoolIn::Ext4 | PoolIn::Xfs => {
                pool.on().mount(&part, SIZE);
                String::new()
            }
            PoolIn::Btrfs => {
                pool.on().mount_with_limits(&part, SIZE);
                String::new()
            }
            PoolIn::Managed => {
                format!("create = {{ size = \"{MANAGED}MiB\", filesystem = \"xfs\" }}\n")
            }
        };
        let (name, path) = (pool.name(), pool.dir(sandbox));
        // No reserve: a disk that is rather full must not decide about a test.
        write!(text, "[[pool]]\nname = {name:?}\npath = {path:?}\nreserve = \"0\"\n{create}\n")
            .unwrap();
    }
    std::fs::write(sandbox.path("orlop.toml"), text).unwrap();
}

impl World {
    /// The pools are made, and the driver has made their markers.
    pub(crate) fn new(sandbox: &Sandbox, clients: usize) -> Self {
        let tag = |pool: PoolIn| {
            let marker = std::fs::read_to_string(pool.dir(sandbox).join("pool.json")).unwrap();
            let marker: serde_json::Value = serde_json::from_str(&marker).unwrap();
            (marker["uuid"].as_str().unwrap()[..8].to_owned(), pool)
        };
        Self {
            sandbox: sandbox.clone(),
            tags: PoolIn::ALL.into_iter().map(tag).collect(),
            calls: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            ids: Mutex::default(),
            counts: Mutex::default(),
            traces: Mutex::new(vec![VecDeque::new(); clients]),
            events: Mutex::default(),
        }
    }

    /// The pool of an id.
    pub(crate) fn pool_of(&self, id: &str) -> PoolIn {
        self.tags[id.split('-').nth(1).unwrap()]
    }

    /// Notes an id of something new; no two things ever have one.
    pub(crate) fn is_new(&self, id: &str) -> bool {
        lock(&self.ids).insert(id.to_owned())
    }

    pub(crate) fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    pub(crate) fn counted(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.counts).clone()
    }

    pub(crate) fn trace(&self, client: usize, step: String) {
        let mut traces = lock(&self.traces);
        let trace = &mut traces[client];
        if trace.len() == REMEMBERED {
            trace.pop_front();
        }
        trace.push_back(step);
    }

    pub(crate) fn traces(&self) -> String {
        let mut text = String::new();
        for (client, trace) in lock(&self.traces).iter().enumerate() {
            writeln!(text, "--- the last steps of client {client} ---").unwrap();
            for step in trace {
                writeln!(text, "{step}").unwrap();
            }
        }
        text
    }

    /// The driver dies or is dying, or is ready again.
    pub(crate) fn note_start(&self) {
        self.starts.fetch_add(1, Ordering::SeqCst);
    }

    /// Where the driver is between its starts; `None` while it may have pools that it has not opened yet.
    pub(crate) fn settled(&self) -> Option<u64> {
        Some(self.starts.load(Ordering::SeqCst)).filter(|starts| starts % 2 == 0)
    }

    /// A client that failed ends the others.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}
