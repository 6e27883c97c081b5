//! Runs the system's programs: mkfs, e2fsck, resize2fs, and those that give a copy its own UUID.
//!
//! Invariants: programs are found once, in fixed directories, never by the caller's PATH; they run with an empty
//! environment in the C locale, without anything on standard input, and never through a shell.
//!
//! Must not: be used on a hot path.
#![expect(clippy::disallowed_methods, reason = "the one place that runs programs")]

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use super::machine::Tool;
use crate::fault;
use crate::host::CommandError;

const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// As much of a program's complaint as goes into an error.
const TAIL: usize = 2000;

/// A program of the system.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    package: &'static str,
    path: Option<PathBuf>,
    version: OnceLock<Option<(u32, u32)>>,
    features: OnceLock<String>,
}

/// The programs that this driver runs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) mke2fs: Program,
    pub(super) e2fsck: Program,
    pub(super) resize2fs: Program,
    pub(super) tune2fs: Program,
    pub(super) mkfs_xfs: Program,
    pub(super) mkfs_btrfs: Program,
    pub(super) xfs_db: Program,
    pub(super) btrfstune: Program,
}

impl Programs {
    /// Looks for all of them; one that is missing is an error only when it is needed.
    pub(super) fn find() -> Self {
        Self {
            mke2fs: Program::find("mke2fs", "e2fsprogs"),
            e2fsck: Program::find("e2fsck", "e2fsprogs"),
            resize2fs: Program::find("resize2fs", "e2fsprogs"),
            tune2fs: Program::find("tune2fs", "e2fsprogs"),
            mkfs_xfs: Program::find("mkfs.xfs", "xfsprogs"),
            mkfs_btrfs: Program::find("mkfs.btrfs", "btrfs-progs"),
            xfs_db: Program::find("xfs_db", "xfsprogs"),
            btrfstune: Program::find("btrfstune", "btrfs-progs"),
        }
    }

    /// All of them.
    pub(super) const fn all(&self) -> [&Program; 8] {
        [
            &self.mke2fs,
            &self.e2fsck,
            &self.resize2fs,
            &self.tune2fs,
            &self.mkfs_xfs,
            &self.xfs_db,
            &self.mkfs_btrfs,
            &self.btrfstune,
        ]
    }
}

/// Where a program is; the caller's PATH does not count.
pub(super) fn path_of(name: &str) -> Option<PathBuf> {
    let mut paths = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    paths.find(|path| path.is_file())
}

impl Program {
    fn find(name: &'static str, package: &'static str) -> Self {
        Self {
            name,
            package,
            path: path_of(name),
            version: OnceLock::new(),
            features: OnceLock::new(),
        }
    }

    fn output(&self, arguments: &[impl AsRef<OsStr>]) -> Result<Output, CommandError> {
        self.output_holding(arguments, Stdio::null())
    }

    /// `input` is never read: the program only keeps it open.
    fn output_holding(
        &self,
        arguments: &[impl AsRef<OsStr>],
        input: Stdio,
    ) -> Result<Output, CommandError> {
        let path = self
            .path
            .as_deref()
            .ok_or(CommandError::Missing { program: self.name, package: self.package })?;
        let child = Command::new(path)
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", DIRECTORIES.join(":"))
            .current_dir("/")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let start = |source| CommandError::Start { program: self.name, source };
        let mut child = child.map_err(start)?;
        if fault::point!("host.command.started").is_err() {
            // A program that is killed, by an operator or for want of memory.
            child.kill().map_err(start)?;
        }
        child.wait_with_output().map_err(start)
    }

    /// Runs it; `accepted` are the exit codes that mean success.
    pub(super) fn run(
        &self,
        arguments: &[impl AsRef<OsStr>],
        accepted: &[i32],
    ) -> Result<(), CommandError> {
        self.accept(&self.output(arguments)?, accepted)
    }

    /// Runs it with an open file that it keeps to its end: a lock on that file is held until then, also when this process
    /// is killed before.
    pub(super) fn run_holding(
        &self,
        arguments: &[impl AsRef<OsStr>],
        held: OwnedFd,
    ) -> Result<(), CommandError> {
        self.accept(&self.output_holding(arguments, Stdio::from(held))?, &[0])
    }

    fn accept(&self, output: &Output, accepted: &[i32]) -> Result<(), CommandError> {
        if output.status.code().is_some_and(|code| accepted.contains(&code)) {
            return Ok(());
        }
        // e2fsck tells its findings on standard output.
        let complaint = if output.stderr.iter().all(u8::is_ascii_whitespace) {
            &output.stdout
        } else {
            &output.stderr
        };
        Err(CommandError::Failed {
            program: self.name,
            status: output.status.to_string(),
            stderr: tail(complaint),
        })
    }

    /// Major and minor version as `-V` tells them, asked once; `None` when it cannot be read.
    pub(super) fn version(&self) -> Option<(u32, u32)> {
        *self.version.get_or_init(|| {
            let output = self.output(&["-V"]).ok()?;
            version_in(&printed(&output))
        })
    }

    /// What there is to say of it.
    pub(super) fn as_tool(&self) -> Tool {
        let Self { name, package, path, .. } = self;
        Tool { name, package, path: path.clone(), version: self.version() }
    }

    /// mkfs.btrfs lists this feature; the list is asked for once.
    pub(super) fn lists_feature(&self, feature: &str) -> bool {
        self.features
            .get_or_init(|| {
                self.output(&["-O", "list-all"]).map(|output| printed(&output)).unwrap_or_default()
            })
            .split_ascii_whitespace()
            .any(|word| word == feature)
    }
}

/// What a program printed, wherever it did.
fn printed(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push('\n');
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

/// The last lines of a text, on one line.
fn tail(text: &[u8]) -> String {
    let start = text.len().saturating_sub(TAIL);
    let text = String::from_utf8_lossy(text.get(start..).unwrap_or_default());
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

/// The first word of the form `6.1`, `6.1.0` or `v6.2`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split_ascii_whitespace().find_map(|word| {
        let mut numbers = word.strip_prefix('v').unwrap_or(word).split(['.', '-']);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        for (text, version) in [
            ("mkfs.xfs version 6.1.0", Some((6, 1))),
            ("mkfs.btrfs, part of btrfs-progs v6.2\n+ZSTD", Some((6, 2))),
            ("mkfs.xfs version 6.10.0-rc1", Some((6, 10))),
            ("mkfs.xfs version 5.10-rc0", Some((5, 10))),
            ("no number", None),
        ] {
            assert_eq!(version_in(text), version, "{text}");
        }
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let missing = Program::find("mkfs.orlop-none", "orlop-none");
        let error = missing.run(&["-V"], &[0]).unwrap_err();
        assert!(error.to_string().contains("install the package orlop-none"), "{error}");
        assert_eq!(missing.version(), None);
    }

    #[test]
    fn a_failure_tells_the_last_words() {
        let shell = Program::find("sh", "dash");
        let fails = shell.run(&["-c", "echo one; echo two >&2; exit 3"], &[0]);
        let text = fails.unwrap_err().to_string();
        assert!(text.contains("exit status: 3") && text.contains("two"), "{text}");
        assert!(shell.run(&["-c", "exit 1"], &[0, 1]).is_ok());
    }
}
