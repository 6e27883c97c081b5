//! The directory that the demonstration and its drivers work in, and the pool that is shown there.
//!
//! It is a managed pool, as on any node that says nothing else, wherever the engine would make one. Elsewhere it is a
//! directory, and why is told.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::copies::MORE;
use super::kind::Kind;
use super::preflight;
use crate::cli::Failure;
use crate::engine::{CreatePool, PoolBase, PoolConfig, Reserve, managed_pool_refusal};
use crate::host::Host;
use crate::volume::{ByteSize, Filesystem};

/// The name of the pool.
const POOL: &str = "try";
/// What btrfs takes for itself, and what it works well with.
const BTRFS: ByteSize = ByteSize::mib(512);
/// Images have a multiple of this.
const STEP: ByteSize = ByteSize::mib(256);
/// The address of a unix socket has 108 bytes, the last one NUL (unix(7)).
const SOCKET_LIMIT: usize = 107;

/// What the pool is.
#[derive(Debug)]
pub(super) enum Base {
    /// The driver makes its filesystem, in an image of that size.
    Managed(PoolConfig, ByteSize),
    /// A plain directory; why it is not a managed pool.
    Directory(String),
}

/// Its paths.
#[derive(Debug)]
pub(super) struct Place {
    /// Unlike any other's.
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) pool: PathBuf,
    pub(super) kubelet: PathBuf,
    pub(super) log: PathBuf,
    pub(super) root: PathBuf,
    pub(super) config: PathBuf,
}

/// Where it goes: many systems have /tmp in memory, where no managed pool can be.
fn parent() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|named| !named.is_empty());
    let lasting = || Some(Path::new("/var/tmp")).filter(|path| path.is_dir());
    let chosen = named.map(PathBuf::from).or_else(|| lasting().map(Path::to_owned));
    chosen.unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// A pool in which all volumes are grown, and have a snapshot and a restored copy each, at the same time.
fn size_for(kinds: &[Kind]) -> ByteSize {
    let grown = kinds.iter().map(|kind| 3 * kind.sizes().1 + MORE);
    let bytes = ByteSize::new(grown.sum::<i64>().unsigned_abs()).saturating_add(BTRFS);
    bytes.round_up(STEP.bytes()).unwrap_or(bytes)
}

impl Place {
    /// Makes the directory.
    pub(super) fn new() -> Result<Self, Failure> {
        // As the mount table shows it.
        let parent = parent();
        let failed =
            |error| format!("the directory for temporary files {}: {error}", parent.display());
        let parent = parent.canonicalize().map_err(failed)?;
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).map_err(|e| format!("read random numbers: {e}"))?;
        let name = format!("orlop-try-{:016x}", u64::from_ne_bytes(bits));
        let dir = parent.join(&name);
        let socket = dir.join("csi.sock");
        if dir.to_str().is_none() || socket.as_os_str().len() > SOCKET_LIMIT {
            let parent = parent.display();
            return Err(format!("the path {parent} is too long for a socket, or not UTF-8; set TMPDIR to another directory").into());
        }
        make(&dir)?;
        Ok(Self {
            name,
            socket,
            pool: dir.join("pool"),
            kubelet: dir.join("kubelet"),
            log: dir.join("driver.log"),
            root: dir.join("root"),
            config: dir.join("config.toml"),
            dir,
        })
    }

    /// Makes what the driver expects to be there; answers what its pool will be.
    pub(super) fn fill(&self, kinds: &[Kind], host: &dyn Host) -> Result<Base, Failure> {
        make(&self.kubelet)?;
        make(&self.root)?;
        let base = self.choose(size_for(kinds), host)?;
        let create = match &base {
            Base::Managed(_, size) => {
                let bytes = size.bytes();
                format!("create = {{ size = \"{bytes}\", filesystem = \"btrfs\" }}\n")
            }
            Base::Directory(_) => String::new(),
        };
        // A JSON string is a TOML string. Without a reserve this runs on a machine that is nearly full.
        let path = serde_json::to_string(&self.pool)?;
        let mut config = File::create_new(&self.config)?;
        write!(config, "[[pool]]\nname = \"{POOL}\"\npath = {path}\nreserve = \"0\"\n{create}")?;
        Ok(base)
    }

    /// What the pool can be.
    fn choose(&self, size: ByteSize, host: &dyn Host) -> Result<Base, Failure> {
        if let Some(problem) = preflight::lacking(Kind::Btrfs).into_iter().next() {
            return Ok(Base::Directory(problem));
        }
        let base = PoolBase::Image { size, sparse: false };
        let config = PoolConfig {
            name: POOL.to_owned(),
            path: self.pool.clone(),
            reserve: Some(Reserve::Bytes(ByteSize::ZERO)),
            overcommit: 1.0,
            create: Some(CreatePool { base, filesystem: Filesystem::Btrfs }),
        };
        Ok(match managed_pool_refusal(&self.root, &self.kubelet, &config, host)? {
            None => Base::Managed(config, size),
            Some(why) => Base::Directory(format!("{why} (TMPDIR names another place)")),
        })
    }
}

fn make(dir: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    Ok(made.map_err(|e| format!("make the directory {}: {e}", dir.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_for_few_volumes_is_small() {
        assert_eq!(size_for(&[Kind::Hostpath]), ByteSize::gib(1));
        assert_eq!(size_for(&Kind::ALL), ByteSize::gib(4));
    }
}
