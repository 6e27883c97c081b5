//! The options of mkfs that a StorageClass may set.
//!
//! They reach a program that runs as root, so nothing passes that is not listed here: no path, no second device,
//! no force flag. An option is `-X value` or `-X key=value,key=value`, as mkfs itself writes them.

use super::Filesystem;

/// One setting, e.g. `-i size=512` is `("-i", "size", "512")` and `-m 0` is `("-m", "", "0")`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MkfsOption {
    /// The flag with its dash.
    pub flag: &'static str,
    /// The key within the flag; empty where the flag has none.
    pub key: &'static str,
    /// The checked value.
    pub value: String,
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Number(u64, u64),
    OneOf(&'static [&'static str]),
    /// Letters, digits, `_`, `-`, `.`; at most that many.
    Label(usize),
}

impl Value {
    fn accepts(self, text: &str) -> bool {
        match self {
            Self::Number(least, most) => {
                text.bytes().all(|b| b.is_ascii_digit())
                    && text.parse::<u64>().is_ok_and(|number| (least..=most).contains(&number))
            }
            Self::OneOf(words) => words.contains(&text),
            Self::Label(most) => {
                (1..=most).contains(&text.len())
                    && !text.starts_with('-')
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
            }
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Number(least, most) => format!("{least}..{most}"),
            Self::OneOf(words) => words.join("|"),
            Self::Label(_) => "LABEL".to_owned(),
        }
    }
}

type Row = (&'static str, &'static str, Value);

const BIT: Value = Value::OneOf(&["0", "1"]);

const EXT4: [Row; 9] = [
    ("-i", "", Value::Number(1024, 1 << 26)),
    ("-N", "", Value::Number(16, u32::MAX as u64)),
    ("-I", "", Value::OneOf(&["256", "512", "1024"])),
    ("-m", "", Value::Number(0, 50)),
    ("-L", "", Value::Label(16)),
    ("-J", "size", Value::Number(4, 1 << 20)),
    ("-E", "lazy_itable_init", BIT),
    ("-E", "stride", Value::Number(1, 1 << 20)),
    ("-E", "stripe_width", Value::Number(1, 1 << 20)),
];

const XFS: [Row; 8] = [
    ("-L", "", Value::Label(12)),
    ("-i", "size", Value::OneOf(&["512", "1024", "2048"])),
    ("-i", "maxpct", Value::Number(0, 100)),
    ("-d", "agcount", Value::Number(1, 1024)),
    ("-m", "rmapbt", BIT),
    ("-m", "bigtime", BIT),
    ("-m", "inobtcount", BIT),
    ("-n", "size", Value::OneOf(&["4096", "8192", "16384"])),
];

const BTRFS: [Row; 4] = [
    ("-L", "", Value::Label(255)),
    ("-m", "", Value::OneOf(&["dup", "single"])),
    ("-d", "", Value::OneOf(&["dup", "single"])),
    ("--csum", "", Value::OneOf(&["crc32c", "xxhash", "sha256", "blake2"])),
];

fn rows(filesystem: Filesystem) -> &'static [Row] {
    match filesystem {
        Filesystem::Ext4 => &EXT4,
        Filesystem::Xfs => &XFS,
        Filesystem::Btrfs => &BTRFS,
    }
}

/// What may stand in `mkfsOptions` for that filesystem, for people.
pub(super) fn allowed(filesystem: Filesystem) -> String {
    let rows = rows(filesystem).iter().map(|(flag, key, value)| {
        let equals = if key.is_empty() { "" } else { "=" };
        format!("{flag} {key}{equals}{}", value.describe())
    });
    rows.collect::<Vec<_>>().join(", ")
}

/// Reads `mkfsOptions`.
///
/// # Errors
/// The first piece of the text that is not on the list.
pub(super) fn parse(filesystem: Filesystem, text: &str) -> Result<Vec<MkfsOption>, String> {
    let mut options: Vec<MkfsOption> = Vec::new();
    let mut words = text.split_ascii_whitespace();
    while let Some(flag) = words.next() {
        let Some(settings) = words.next() else {
            return Err(flag.to_owned());
        };
        for setting in settings.split(',') {
            let refused = || format!("{flag} {setting}");
            let option = setting_of(filesystem, flag, setting).ok_or_else(refused)?;
            if options.iter().any(|o| (o.flag, o.key) == (option.flag, option.key)) {
                return Err(format!("{flag} {setting} (given twice)"));
            }
            options.push(option);
        }
    }
    // The order in the class does not matter, and an idempotent retry may have another.
    options.sort();
    Ok(options)
}

fn setting_of(filesystem: Filesystem, flag: &str, setting: &str) -> Option<MkfsOption> {
    let (key, value) = setting.split_once('=').unwrap_or(("", setting));
    rows(filesystem)
        .iter()
        .find(|(known, known_key, values)| {
            *known == flag && *known_key == key && values.accepts(value)
        })
        .map(|(flag, key, _)| MkfsOption { flag, key, value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_options_pass_in_any_order() {
        let options = parse(Filesystem::Ext4, " -m 0  -E stride=4,stripe_width=8 -i 8192").unwrap();
        assert_eq!(
            options,
            parse(Filesystem::Ext4, "-i 8192 -E stripe_width=8,stride=4 -m 0").unwrap()
        );
        assert_eq!(options.len(), 4);
        assert!(parse(Filesystem::Xfs, "-m rmapbt=1 -i size=1024").is_ok());
        assert!(parse(Filesystem::Btrfs, "--csum xxhash -m single").is_ok());
        assert_eq!(parse(Filesystem::Ext4, ""), Ok(Vec::new()));
    }

    #[test]
    fn hostile_options_are_refused() {
        for text in [
            "-F",
            "-F -F",
            "/dev/sda",
            "-j /dev/sda",
            "-J device=/dev/sda",
            "-d name=/etc/passwd",
            "-l logdev=/dev/sda",
            "-m 0;reboot",
            "-m $(id)",
            "-L -F",
            "-E root_owner=1:1",
            "-m",
            "-m 51",
            "-m -1",
            "-i 1",
            "-m 0 -m 1",
            "-c /x",
            "-d 5",
            "-E discard",
            "-L a/b",
        ] {
            for filesystem in Filesystem::ALL {
                assert!(parse(*filesystem, text).is_err(), "{filesystem}: {text}");
            }
        }
    }
}
