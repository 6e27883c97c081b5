//! StorageClass parameters: the one table, and the types their values become.
//!
//! An unknown parameter or value is an error that names the parameter and lists what is allowed. Parameters
//! under `csi.storage.k8s.io/` belong to Kubernetes' sidecars; of those only the filesystem type is read.

use std::collections::BTreeMap;
use std::fmt;

use super::mkfs::{self, MkfsOption};
use super::words::{Allocation, Backend, DirectIo, Filesystem, OnDelete, Quota};

/// What a parameter is for; the table is printed in the documents and in error messages.
#[derive(Debug, Clone, Copy)]
pub struct ParameterHelp {
    /// Its key in the StorageClass.
    pub name: &'static str,
    /// The values it takes, the default first.
    pub values: &'static str,
    /// What it does, for users.
    pub help: &'static str,
}

/// Every parameter that a StorageClass may have.
pub const PARAMETERS: [ParameterHelp; 10] = [
    ParameterHelp {
        name: "backend",
        values: "hostpath, loop",
        help: "what the volume is: a directory, or a disk image behind a loop device",
    },
    ParameterHelp {
        name: "pool",
        values: "any, or the name of a pool",
        help: "where it lives; `any` takes the pool with most room",
    },
    ParameterHelp {
        name: "quota",
        values: "auto, required, off",
        help: "whether a hostpath volume is held to its size",
    },
    ParameterHelp {
        name: "allocation",
        values: "thin, thick",
        help: "whether a loop volume's blocks are reserved at birth",
    },
    ParameterHelp {
        name: "directIO",
        values: "auto, on, off",
        help: "whether a loop device bypasses the page cache of the pool",
    },
    ParameterHelp {
        name: "mkfsOptions",
        values: "options of mkfs from the checked list of the filesystem",
        help: "how a loop volume's filesystem is made",
    },
    ParameterHelp {
        name: "mode",
        values: "0777, or any octal mode",
        help: "mode of the volume's root directory, set at birth only",
    },
    ParameterHelp {
        name: "uid",
        values: "0, or any user id",
        help: "owner of the volume's root directory, set at birth only",
    },
    ParameterHelp {
        name: "gid",
        values: "0, or any group id",
        help: "group of the volume's root directory, set at birth only",
    },
    ParameterHelp {
        name: "onDelete",
        values: "delete, retain, archive, wipe",
        help: "what becomes of the data when the volume is deleted",
    },
];

/// The parameters that a VolumeAttributesClass may change.
pub const MUTABLE: [&str; 1] = ["onDelete"];

/// Kubernetes' own parameters start with this.
const KUBERNETES_PREFIX: &str = "csi.storage.k8s.io/";
/// The one of them that is read.
const FSTYPE: &str = "csi.storage.k8s.io/fstype";

/// What can be changed of a volume that exists; `None` is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MutableParameters {
    /// `onDelete`
    pub on_delete: Option<OnDelete>,
}

impl MutableParameters {
    /// Reads mutable parameters; those under Kubernetes' prefix are ignored.
    ///
    /// # Errors
    /// A parameter that cannot be changed or does not exist, or a value that it does not take.
    pub fn parse(raw: &BTreeMap<String, String>) -> Result<Self, ParameterError> {
        let mut parsed = Self::default();
        for (name, value) in raw {
            match name.as_str() {
                "onDelete" => {
                    parsed.on_delete = Some(word("onDelete", value, OnDelete::from_word)?);
                }
                other if other.starts_with(KUBERNETES_PREFIX) => {}
                other => {
                    return Err(ParameterError::Immutable {
                        name: other.chars().take(80).collect(),
                    });
                }
            }
        }
        Ok(parsed)
    }
}

/// Why the parameters of a class are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// No parameter has this name.
    #[error("unknown parameter {name:?}; the parameters are: {}", PARAMETERS.map(|p| p.name).join(", "))]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// The parameter cannot be changed, or does not exist.
    #[error("parameter {name:?} cannot be changed; the mutable parameters are: {}", MUTABLE.join(", "))]
    Immutable {
        /// The name as given.
        name: String,
    },
    /// The parameter exists, its value does not.
    #[error("parameter {name} has the value {value:?}; allowed: {allowed}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// The value as given.
        value: String,
        /// What may stand there.
        allowed: String,
    },
    /// Two parameters that do not go together.
    #[error("parameter {name}={value} does not go with {other}; {remedy}")]
    Combination {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it contradicts.
        other: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Which pool a class names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PoolChoice {
    /// The one with most room.
    #[default]
    Any,
    /// That one.
    Named(String),
}

impl fmt::Display for PoolChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// The parameters of a class, understood, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// `backend`
    pub backend: Backend,
    /// `pool`
    pub pool: PoolChoice,
    /// `quota`
    pub quota: Quota,
    /// `allocation`
    pub allocation: Allocation,
    /// `directIO`
    pub direct_io: DirectIo,
    /// `csi.storage.k8s.io/fstype`, for loop volumes; `None` when not given.
    pub filesystem: Option<Filesystem>,
    /// `mkfsOptions`, not yet checked: the filesystem that they are for may be in the capability.
    pub mkfs_options: String,
    /// `mode`, at most 0o7777.
    pub mode: u32,
    /// `uid`
    pub uid: u32,
    /// `gid`
    pub gid: u32,
    /// `onDelete`
    pub on_delete: OnDelete,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            backend: Backend::Hostpath,
            pool: PoolChoice::Any,
            quota: Quota::Auto,
            allocation: Allocation::Thin,
            direct_io: DirectIo::Auto,
            filesystem: None,
            mkfs_options: String::new(),
            mode: 0o777,
            uid: 0,
            gid: 0,
            on_delete: OnDelete::Delete,
        }
    }
}

fn wrong(name: &'static str, value: &str, allowed: impl Into<String>) -> ParameterError {
    ParameterError::Value {
        name,
        value: value.chars().take(200).collect(),
        allowed: allowed.into(),
    }
}

fn allowed_for(name: &str) -> &'static str {
    PARAMETERS.iter().find(|help| help.name == name).map_or("", |help| help.values)
}

fn word<T>(
    name: &'static str,
    value: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, ParameterError> {
    read(value).ok_or_else(|| wrong(name, value, allowed_for(name)))
}

fn octal_mode(value: &str) -> Option<u32> {
    let digits = !value.is_empty() && value.len() <= 5 && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| u32::from_str_radix(value, 8).ok()).flatten().filter(|mode| *mode <= 0o7777)
}

fn number(value: &str) -> Option<u32> {
    // 2^32 - 1 means "unchanged" to chown(2), so it is no id.
    value.parse().ok().filter(|id| *id != u32::MAX && !value.starts_with('+'))
}

/// A pool's name: what may stand in `--pool NAME=PATH`.
fn pool_choice(value: &str) -> Option<PoolChoice> {
    match value {
        "any" => Some(PoolChoice::Any),
        "" => None,
        name if name.len() <= 63 => Some(PoolChoice::Named(name.to_owned())),
        _ => None,
    }
}

impl Parameters {
    /// Reads the parameters of a class.
    ///
    /// # Errors
    /// An unknown parameter, an unknown value, or two that contradict each other.
    pub fn parse(raw: &BTreeMap<String, String>) -> Result<Self, ParameterError> {
        let mut parsed = Self::default();
        for (name, value) in raw {
            let value = value.as_str();
            match name.as_str() {
                "backend" => parsed.backend = word("backend", value, Backend::from_word)?,
                "pool" => parsed.pool = word("pool", value, pool_choice)?,
                "quota" => parsed.quota = word("quota", value, Quota::from_word)?,
                "allocation" => {
                    parsed.allocation = word("allocation", value, Allocation::from_word)?;
                }
                "directIO" => parsed.direct_io = word("directIO", value, DirectIo::from_word)?,
                "mkfsOptions" => {
                    // One space between words, so that equal options are equal texts.
                    let words: Vec<&str> = value.split_ascii_whitespace().collect();
                    parsed.mkfs_options = words.join(" ");
                }
                "mode" => parsed.mode = word("mode", value, octal_mode)?,
                "uid" => parsed.uid = word("uid", value, number)?,
                "gid" => parsed.gid = word("gid", value, number)?,
                "onDelete" => parsed.on_delete = word("onDelete", value, OnDelete::from_word)?,
                // Which filesystems there are matters to loop volumes only, see `fstype` below.
                other if other.starts_with(KUBERNETES_PREFIX) => {}
                other => {
                    return Err(ParameterError::Unknown { name: other.chars().take(80).collect() });
                }
            }
        }
        parsed.filesystem = fstype(&parsed, raw)?;
        parsed.check_combinations()?;
        Ok(parsed)
    }

    /// The options of mkfs for that filesystem.
    ///
    /// # Errors
    /// One that is not on its checked list.
    pub fn mkfs_options_for(
        &self,
        filesystem: Filesystem,
    ) -> Result<Vec<MkfsOption>, ParameterError> {
        mkfs::parse(filesystem, &self.mkfs_options).map_err(|token| {
            wrong("mkfsOptions", &token, format!("for {filesystem}: {}", mkfs::allowed(filesystem)))
        })
    }

    /// The parameters with defaults filled in, as a record keeps them: without those that can be changed later and
    /// without Kubernetes' own.
    #[must_use]
    pub fn normalised(&self) -> BTreeMap<String, String> {
        BTreeMap::from(
            [
                ("backend", self.backend.to_string()),
                ("pool", self.pool.to_string()),
                ("quota", self.quota.to_string()),
                ("allocation", self.allocation.to_string()),
                ("directIO", self.direct_io.to_string()),
                ("mkfsOptions", self.mkfs_options.clone()),
                ("mode", format!("{:04o}", self.mode)),
                ("uid", self.uid.to_string()),
                ("gid", self.gid.to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    }

    fn check_combinations(&self) -> Result<(), ParameterError> {
        if self.backend == Backend::Hostpath {
            if self.allocation == Allocation::Thick {
                return Err(needs_loop("allocation", "thick"));
            }
            if self.direct_io == DirectIo::On {
                return Err(needs_loop("directIO", "on"));
            }
            if !self.mkfs_options.is_empty() {
                return Err(needs_loop("mkfsOptions", &self.mkfs_options));
            }
        } else if self.quota == Quota::Required {
            return Err(ParameterError::Combination {
                name: "quota",
                value: "required".to_owned(),
                other: "backend=loop".to_owned(),
                remedy: "a loop volume always holds its size; leave quota out",
            });
        }
        Ok(())
    }
}

fn needs_loop(name: &'static str, value: &str) -> ParameterError {
    ParameterError::Combination {
        name,
        value: value.chars().take(200).collect(),
        other: "backend=hostpath".to_owned(),
        remedy: "it is for loop volumes; set backend=loop or leave it out",
    }
}

/// The filesystem of a loop volume. The provisioner sends its default type to every class, so hostpath ignores it.
fn fstype(
    parsed: &Parameters,
    raw: &BTreeMap<String, String>,
) -> Result<Option<Filesystem>, ParameterError> {
    match raw.get(FSTYPE).map(String::as_str) {
        None | Some("") => Ok(None),
        Some(_) if parsed.backend == Backend::Hostpath => Ok(None),
        Some(text) => match Filesystem::from_word(text) {
            Some(filesystem) => Ok(Some(filesystem)),
            None => Err(wrong(FSTYPE, text, "ext4, xfs, btrfs")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &[(&str, &str)]) -> Result<Parameters, ParameterError> {
        let raw = raw.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Parameters::parse(&raw)
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        assert_eq!(parse(&[]), Ok(Parameters::default()));
    }

    #[test]
    fn values_are_read() {
        let parsed = parse(&[
            ("backend", "loop"),
            ("pool", "fast"),
            ("allocation", "thick"),
            ("mode", "02770"),
            ("uid", "999"),
            ("onDelete", "archive"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "x"),
            ("mkfsOptions", "-i size=1024"),
        ])
        .unwrap();
        assert_eq!(parsed.pool, PoolChoice::Named("fast".into()));
        assert_eq!((parsed.mode, parsed.uid, parsed.gid), (0o2770, 999, 0));
        assert_eq!(parsed.filesystem, Some(Filesystem::Xfs));
        assert_eq!(parsed.on_delete, OnDelete::Archive);
        assert_eq!(parsed.mkfs_options_for(Filesystem::Xfs).unwrap().len(), 1);
        assert!(
            parsed
                .mkfs_options_for(Filesystem::Ext4)
                .unwrap_err()
                .to_string()
                .contains("-i 1024..")
        );
    }

    #[test]
    fn hostpath_ignores_the_filesystem_type() {
        assert_eq!(parse(&[("csi.storage.k8s.io/fstype", "zfs")]).unwrap().filesystem, None);
        assert!(parse(&[("backend", "loop"), ("csi.storage.k8s.io/fstype", "zfs")]).is_err());
    }

    #[test]
    fn wrong_input_names_the_parameter_and_what_is_allowed() {
        for (raw, in_message) in [
            (vec![("bakend", "loop")], "backend, pool, quota"),
            (vec![("backend", "zfs")], "hostpath, loop"),
            (vec![("mode", "0999")], "octal"),
            (vec![("mode", "10000")], "octal"),
            (vec![("uid", "-1")], "user id"),
            (vec![("uid", "4294967295")], "user id"),
            (vec![("pool", "")], "name of a pool"),
            (vec![("onDelete", "Delete")], "delete, retain"),
            (vec![("allocation", "thick")], "backend=loop"),
            (vec![("directIO", "on")], "backend=loop"),
            (vec![("mkfsOptions", "-m 0")], "backend=loop"),
            (vec![("backend", "loop"), ("quota", "required")], "leave quota out"),
        ] {
            let error = parse(&raw).unwrap_err().to_string();
            assert!(error.contains(in_message), "{raw:?}: {error}");
        }
    }
}
