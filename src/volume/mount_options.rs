//! Mount flags of a volume capability, checked against what this driver lets through.
//!
//! A mount flag reaches the kernel as root. Only what is listed here does: attributes of a single mount, which
//! every volume can have, and options of the filesystem in a loop volume. Nothing that takes a path or a device,
//! that weakens durability behind the user's back, or that can panic the node is on the list.

use super::Filesystem;

/// Attributes of one mount (not of the filesystem below it), see mount_setattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent MOUNT_ATTR_* bit of the kernel"
)]
pub struct MountAttributes {
    /// `ro`
    pub read_only: bool,
    /// `nosuid`
    pub no_suid: bool,
    /// `nodev`
    pub no_dev: bool,
    /// `noexec`
    pub no_exec: bool,
    /// `noatime`
    pub no_atime: bool,
    /// `nodiratime`
    pub no_dir_atime: bool,
    /// `strictatime`
    pub strict_atime: bool,
    /// `nosymfollow`
    pub no_symlink_follow: bool,
}

/// Why a mount flag is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mount flag {flag:?} is not supported for {kind}; supported are: {allowed}")]
pub struct MountFlagError {
    flag: String,
    kind: String,
    allowed: String,
}

/// The mount flags of a capability.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountFlags {
    /// What applies to the mount itself.
    pub attributes: MountAttributes,
    /// What applies to the filesystem; empty for hostpath volumes.
    pub options: Vec<String>,
}

/// The values that an option accepts.
#[derive(Debug, Clone, Copy)]
enum Value {
    None,
    /// A whole number up to the bound.
    Number(u64),
    /// A whole number with an optional `k`, `m` or `g` behind it.
    Size,
    OneOf(&'static [&'static str]),
    /// An SELinux label, quoted or not.
    Label,
}

impl Value {
    fn accepts(self, value: Option<&str>) -> bool {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match (self, value) {
            (Self::None, None) => true,
            (Self::Number(most), Some(text)) => {
                digits(text) && text.parse::<u64>().is_ok_and(|number| number <= most)
            }
            (Self::Size, Some(text)) => {
                text.len() <= 12 && digits(text.strip_suffix(['k', 'm', 'g']).unwrap_or(text))
            }
            (Self::OneOf(words), Some(text)) => words.contains(&text),
            (Self::Label, Some(text)) => {
                let bare = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
                let plain =
                    |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'.' | b'-');
                // A comma separates mount options, so it needs the quotes.
                let quoted = bare.len() != text.len();
                !bare.is_empty()
                    && bare.len() <= 256
                    && bare.bytes().all(|b| plain(b) || (quoted && b == b','))
            }
            (Self::None, Some(_))
            | (Self::Number(_) | Self::Size | Self::OneOf(_) | Self::Label, None) => false,
        }
    }

    fn describe(self, name: &str) -> String {
        match self {
            Self::None => name.to_owned(),
            Self::Number(_) => format!("{name}=NUMBER"),
            Self::Size => format!("{name}=SIZE"),
            Self::OneOf(words) => format!("{name}={}", words.join("|")),
            Self::Label => format!("{name}=LABEL"),
        }
    }
}

const COMPRESSION: Value = Value::OneOf(&["zlib", "lzo", "zstd", "no", "none"]);

/// Options that every filesystem of a loop volume takes.
const COMMON: [(&str, Value); 4] = [
    ("sync", Value::None),
    ("dirsync", Value::None),
    ("lazytime", Value::None),
    ("context", Value::Label),
];

const EXT4: [(&str, Value); 6] = [
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("commit", Value::Number(3600)),
    ("data", Value::OneOf(&["ordered", "journal"])),
    // Not "panic": one volume must not take the node down.
    ("errors", Value::OneOf(&["remount-ro", "continue"])),
    ("stripe", Value::Number(1 << 20)),
];

const XFS: [(&str, Value); 8] = [
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("allocsize", Value::Size),
    ("largeio", Value::None),
    ("nolargeio", Value::None),
    ("swalloc", Value::None),
    ("logbufs", Value::Number(8)),
    ("logbsize", Value::Size),
];

const BTRFS: [(&str, Value); 11] = [
    ("discard", Value::None),
    ("discard", Value::OneOf(&["async", "sync"])),
    ("nodiscard", Value::None),
    ("autodefrag", Value::None),
    ("noautodefrag", Value::None),
    ("compress", COMPRESSION),
    ("compress-force", COMPRESSION),
    ("commit", Value::Number(3600)),
    ("flushoncommit", Value::None),
    ("ssd", Value::None),
    ("nossd", Value::None),
];

/// The attributes by name; `rw`, `relatime` and the like are the kernel's defaults and change nothing.
const ATTRIBUTES: [&str; 14] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "relatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "nosymfollow",
];

impl MountAttributes {
    /// Sets the attribute of that name; `false` when it is not the name of an attribute.
    fn set(&mut self, name: &str) -> bool {
        match name {
            "ro" => self.read_only = true,
            "nosuid" => self.no_suid = true,
            "nodev" => self.no_dev = true,
            "noexec" => self.no_exec = true,
            "noatime" => self.no_atime = true,
            "strictatime" => self.strict_atime = true,
            "nodiratime" => self.no_dir_atime = true,
            "nosymfollow" => self.no_symlink_follow = true,
            other => return ATTRIBUTES.contains(&other),
        }
        true
    }

    /// These attributes, read-only as well when asked.
    #[must_use]
    pub const fn or_read_only(self, read_only: bool) -> Self {
        Self { read_only: self.read_only || read_only, ..self }
    }
}

fn options_of(filesystem: Filesystem) -> impl Iterator<Item = &'static (&'static str, Value)> {
    let own: &'static [(&'static str, Value)] = match filesystem {
        Filesystem::Ext4 => &EXT4,
        Filesystem::Xfs => &XFS,
        Filesystem::Btrfs => &BTRFS,
    };
    COMMON.iter().chain(own)
}

fn accepted_by(filesystem: Filesystem, option: &str) -> bool {
    let (name, value) =
        option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    options_of(filesystem).any(|(known, values)| *known == name && values.accepts(value))
}

impl MountFlags {
    /// Sorts the flags of a request into attributes and options.
    ///
    /// # Errors
    /// A flag that no kind of volume takes.
    pub fn parse(flags: &[String]) -> Result<Self, MountFlagError> {
        let mut parsed = Self::default();
        for flag in flags {
            if parsed.attributes.set(flag) {
                continue;
            }
            if !Filesystem::ALL.iter().any(|&filesystem| accepted_by(filesystem, flag)) {
                return Err(MountFlagError::unknown(flag));
            }
            parsed.options.push(flag.clone());
        }
        Ok(parsed)
    }

    /// Checks the options against the filesystem that the volume has; `None` for hostpath, which takes none.
    ///
    /// # Errors
    /// The first option that it does not take, with the list of those it does.
    pub fn check(&self, filesystem: Option<Filesystem>) -> Result<(), MountFlagError> {
        let refused = self
            .options
            .iter()
            .find(|option| !filesystem.is_some_and(|filesystem| accepted_by(filesystem, option)));
        match refused {
            None => Ok(()),
            Some(option) => Err(MountFlagError::unfit(option, filesystem)),
        }
    }
}

impl MountFlagError {
    fn with(flag: &str, kind: String, filesystems: &[Filesystem]) -> Self {
        let mut allowed = ATTRIBUTES.join(", ");
        for filesystem in filesystems {
            let options = options_of(*filesystem).map(|(name, value)| value.describe(name));
            allowed =
                format!("{allowed}; with {filesystem}: {}", options.collect::<Vec<_>>().join(", "));
        }
        Self { flag: flag.chars().take(80).collect(), kind, allowed }
    }

    /// No volume takes it.
    fn unknown(flag: &str) -> Self {
        Self::with(flag, "any volume".to_owned(), Filesystem::ALL)
    }

    /// This kind of volume does not take it.
    fn unfit(flag: &str, filesystem: Option<Filesystem>) -> Self {
        match filesystem {
            None => Self::with(flag, "hostpath volumes".to_owned(), &[]),
            Some(filesystem) => {
                Self::with(flag, format!("loop volumes with {filesystem}"), &[filesystem])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<MountFlags, MountFlagError> {
        MountFlags::parse(&flags.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn attributes_and_options_are_told_apart() {
        let flags = parse(&["ro", "noatime", "commit=30", "relatime"]).unwrap();
        assert!(flags.attributes.read_only && flags.attributes.no_atime);
        assert_eq!(flags.options, ["commit=30"]);
        assert!(flags.check(Some(Filesystem::Ext4)).is_ok());
        assert!(flags.check(Some(Filesystem::Xfs)).is_err());
        assert!(flags.check(None).unwrap_err().to_string().contains("noatime"));
    }

    #[test]
    fn hostile_flags_are_refused() {
        for flag in [
            "errors=panic",
            "logdev=/dev/sda",
            "device=/dev/sda",
            "bind",
            "remount",
            "nouuid",
            "norecovery",
            "journal_path=/etc",
            "commit=30,errors=panic",
            "context=a,dev",
            "",
            "lowerdir=/etc",
            "commit=-1",
            "commit=99999999999999999999",
            "subvol=../x",
            "barrier=0",
        ] {
            let error = parse(&[flag]).unwrap_err().to_string();
            assert!(error.contains("supported are: ro"), "{flag}: {error}");
        }
    }

    #[test]
    fn every_listed_option_is_accepted_in_its_described_form() {
        for (filesystem, options) in [
            (Filesystem::Ext4, &["data=journal", "errors=remount-ro", "discard", "stripe=8"][..]),
            (Filesystem::Xfs, &["allocsize=64k", "logbsize=256k", "largeio", "sync"]),
            (Filesystem::Btrfs, &["compress=zstd", "discard=async", "discard", "lazytime"]),
            (Filesystem::Ext4, &["context=\"system_u:object_r:container_file_t:s0:c1,c2\""]),
        ] {
            parse(options).unwrap().check(Some(filesystem)).unwrap();
        }
    }
}
