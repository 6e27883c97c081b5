//! Flags, environment and `--config FILE` as one configuration. What is wrong with it is said before anything starts.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use super::Failure;
use super::create::{self, CreateEntry};
use super::table::Output;
use crate::engine::{PoolConfig, Reserve};
use crate::volume::{Key, Topology};

/// Where pools are, and what must be known of them.
#[derive(Debug, Args)]
pub(super) struct PoolArgs {
    /// A pool: its name and its directory. May be given more than once
    #[arg(long = "pool", value_name = "NAME=PATH", env = "ORLOP_POOL", value_delimiter = ',')]
    pools: Vec<String>,
    /// A TOML file with [[pool]] entries: name, path, reserve, overcommit, create
    #[arg(long, value_name = "FILE", env = "ORLOP_CONFIG")]
    config: Option<PathBuf>,
    /// Where the driver keeps what must be known while a pool is away
    #[arg(long, value_name = "DIR", env = "ORLOP_ROOT_DIR", default_value = "/var/lib/orlop")]
    pub(super) root_dir: PathBuf,
}

/// What is listed, and how.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) pools: PoolArgs,
    /// How to print it
    #[arg(long, short, value_name = "table|json", default_value = "table")]
    pub(super) output: Output,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    pool: Vec<PoolEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolEntry {
    name: String,
    /// A managed pool has a place of its own.
    path: Option<PathBuf>,
    create: Option<CreateEntry>,
    /// Bytes (`10GiB`) or percent (`5%`).
    reserve: Option<String>,
    overcommit: Option<f64>,
}

/// A name that may stand in file names and StorageClasses.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good =
        !name.is_empty() && name.len() <= 63 && name.chars().all(plain) && !name.starts_with('.');
    if good && name != "any" {
        Ok(())
    } else {
        Err(format!("{name:?} is no name for a pool: use up to 63 letters, digits, '-', '_' and '.', not \"any\"").into())
    }
}

pub(super) fn check_path(path: &Path) -> Result<(), Failure> {
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain && path != Path::new("/") {
        Ok(())
    } else {
        Err(format!(
            "{} is no place for a pool: give an absolute path without \"..\"",
            path.display()
        )
        .into())
    }
}

/// Reads `10GiB`, `500MiB`, `1024` or `5%`.
fn reserve(text: &str) -> Result<Reserve, Failure> {
    let wrong = || format!("reserve {text:?}: give a size such as 10GiB, or a share such as 5%");
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.trim().parse::<u8>().ok().filter(|percent| *percent <= 100);
        return percent.map(Reserve::Percent).ok_or_else(|| wrong().into());
    }
    create::size(text).map(Reserve::Bytes).ok_or_else(|| wrong().into())
}

fn from_flag(text: &str) -> Result<PoolConfig, Failure> {
    let (name, path) =
        text.split_once('=').ok_or_else(|| format!("--pool {text:?}: give NAME=PATH"))?;
    Ok(PoolConfig {
        name: name.to_owned(),
        path: path.into(),
        reserve: None,
        overcommit: 1.0,
        create: None,
    })
}

fn from_file(file: &Path, root_dir: &Path) -> Result<Vec<PoolConfig>, Failure> {
    let text =
        std::fs::read_to_string(file).map_err(|e| format!("read {}: {e}", file.display()))?;
    let parsed: ConfigFile =
        toml::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let pool = |entry: PoolEntry| {
        let overcommit = entry.overcommit.unwrap_or(1.0);
        if !(0.0..=1000.0).contains(&overcommit) {
            return Err(format!(
                "pool {}: overcommit {overcommit} is not between 0 and 1000",
                entry.name
            )
            .into());
        }
        let reserve = entry.reserve.as_deref().map(reserve).transpose()?;
        let create = entry.create.map(|create| create.checked(&entry.name)).transpose()?;
        let path = match (entry.path, &create) {
            (Some(path), _) => path,
            (None, Some(_)) => root_dir.join("pools").join(&entry.name),
            (None, None) => {
                return Err(format!(
                    "pool {}: give path, the directory of the pool, or create, and the driver makes one",
                    entry.name
                )
                .into());
            }
        };
        Ok(PoolConfig { name: entry.name, path, reserve, overcommit, create })
    };
    parsed.pool.into_iter().map(pool).collect()
}

impl PoolArgs {
    /// The pools of the configuration, checked.
    pub(super) fn pools(&self) -> Result<Vec<PoolConfig>, Failure> {
        let mut pools = Vec::new();
        for text in &self.pools {
            pools.push(from_flag(text)?);
        }
        if let Some(file) = &self.config {
            pools.extend(from_file(file, &self.root_dir)?);
        }
        if pools.is_empty() {
            return Err("no pool is configured; give --pool NAME=PATH or --config FILE".into());
        }
        for (index, pool) in pools.iter().enumerate() {
            check_name(&pool.name)?;
            check_path(&pool.path)?;
            let earlier = pools.iter().take(index);
            if let Some(twin) =
                earlier.clone().find(|other| other.name == pool.name || other.path == pool.path)
            {
                return Err(format!(
                    "the pools {} and {} have the same name or path",
                    twin.name, pool.name
                )
                .into());
            }
        }
        if !self.root_dir.is_absolute() {
            return Err(
                format!("--root-dir {} is not an absolute path", self.root_dir.display()).into()
            );
        }
        Ok(pools)
    }
}

/// The name of a CSI driver: domain notation, at most 63 characters, a letter at both ends (csi-sanity asks for that).
pub(super) fn check_driver_name(name: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let letter = |c: char| c.is_ascii_alphabetic();
    if name.len() <= 63
        && name.chars().all(plain)
        && name.starts_with(letter)
        && name.ends_with(letter)
    {
        Ok(())
    } else {
        Err(format!("--driver-name {name:?}: give up to 63 letters, digits, '-' and '.', with a letter at both ends").into())
    }
}

/// Where the node is. A label's value has at most 63 characters (CSI 1.13, Topology), a node's name may have 253: a long
/// one is hashed.
pub(super) fn topology(driver_name: &str, node_id: &str) -> Topology {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let label = node_id.len() <= 63
        && node_id.chars().all(plain)
        && node_id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && node_id.ends_with(|c: char| c.is_ascii_alphanumeric());
    let value = if label { node_id.to_owned() } else { Key::of_name(node_id).to_string() };
    Topology::from([(format!("topology.{driver_name}/node"), value)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::ByteSize;

    #[test]
    fn reserves_are_sizes_or_shares() {
        assert_eq!(reserve("10GiB").unwrap(), Reserve::Bytes(ByteSize::gib(10)));
        assert_eq!(reserve("0").unwrap(), Reserve::Bytes(ByteSize::ZERO));
        assert_eq!(reserve(" 5 %").unwrap(), Reserve::Percent(5));
        for text in ["", "5", "10GB", "101%", "-1", "99999999999TiB"] {
            assert_eq!(reserve(text).is_ok(), text == "5", "{text:?}");
        }
    }

    #[test]
    fn names_and_paths_of_pools_are_checked() {
        for name in ["default", "fast-1", "a.b_c"] {
            check_name(name).unwrap();
        }
        for name in ["", "any", "../x", ".hidden", "a/b", "a b"] {
            check_name(name).unwrap_err();
        }
        check_path(Path::new("/srv/pool")).unwrap();
        for path in ["", "/", "relative", "/a/../etc"] {
            check_path(Path::new(path)).unwrap_err();
        }
    }

    #[test]
    fn a_topology_value_is_a_label() {
        let value = |node: &str| topology("d.local", node).into_iter().next().unwrap();
        assert_eq!(value("n1"), ("topology.d.local/node".to_owned(), "n1".to_owned()));
        for node in ["x".repeat(200).as_str(), "-a", "ä"] {
            assert_eq!(value(node).1.len(), 32, "{node}");
        }
    }
}
