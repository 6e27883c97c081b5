//! A node in a temporary directory: real files, the model of the kernel, any number of pools.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop::engine::{Engine, EngineConfig, PoolConfig, Reserve};
use orlop::host::fake::FakeHost;
use orlop::volume::{ByteSize, Topology};

/// The topology key of the driver's default name.
pub(crate) const TOPOLOGY_KEY: &str = "topology.orlop.csi.local/node";
/// The name of the node.
pub(crate) const NODE: &str = "n1";

/// Everything that outlives a driver on this node.
#[derive(Debug)]
pub(crate) struct Machine {
    directory: tempfile::TempDir,
    pub(crate) host: FakeHost,
    /// The driver runs with `--attach`.
    pub(crate) attach: bool,
    /// What pools keep back.
    pub(crate) reserve: ByteSize,
    /// Bytes promised for each real one.
    pub(crate) overcommit: f64,
    /// `--max-volumes`
    pub(crate) max_volumes: Option<u32>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            directory,
            host: FakeHost::new(),
            attach: false,
            reserve: ByteSize::ZERO,
            overcommit: 1.0,
            max_volumes: None,
        }
    }

    /// A place in the machine's directory, as the mount table would show it.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// The directory of a pool.
    pub(crate) fn pool(&self, name: &str) -> PathBuf {
        self.path("pools").join(name)
    }

    /// The names in a directory of a pool, sorted.
    pub(crate) fn names(&self, pool: &str, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.pool(pool).join(directory)).unwrap();
        let name =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut names: Vec<String> = entries.map(|entry| name(entry).unwrap()).collect();
        names.sort();
        names
    }

    /// An engine with these pools, open. By default it keeps nothing back, so that sizes are round.
    pub(crate) fn engine(&self, pools: &[&str]) -> Arc<Engine> {
        let pool = |name: &&str| PoolConfig {
            name: (*name).to_owned(),
            path: self.pool(name),
            reserve: Some(Reserve::Bytes(self.reserve)),
            overcommit: self.overcommit,
            create: None,
        };
        let config = EngineConfig {
            root_dir: self.path("root"),
            pools: pools.iter().map(pool).collect(),
            init_pools: true,
            kubelet_dir: self.path("kubelet"),
            topology: Topology::from([(TOPOLOGY_KEY.to_owned(), NODE.to_owned())]),
            node_id: NODE.to_owned(),
            attach: self.attach,
            max_volumes: self.max_volumes,
        };
        let engine = Engine::new(config, Arc::new(self.host.clone())).unwrap();
        // A thread of the engine before may still be about to let go of a pool.
        while !engine.is_ready() {
            for name in pools {
                engine.retry_pool(name);
            }
            std::thread::yield_now();
        }
        Arc::new(engine)
    }
}
