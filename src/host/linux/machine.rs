//! What this machine offers, for somebody who asks before anything is done: kernel, filesystems, programs, privileges.
//!
//! Must not: change anything, which includes having the kernel load a module.

use std::path::{Path, PathBuf};

use super::LinuxHost;
use crate::volume::Filesystem;

/// Whether the kernel can mount a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Here,
    /// It can when its module is loaded, which the first mount does.
    Module,
    /// It cannot.
    Absent,
    /// The kernel does not list it, and its modules cannot be seen from here.
    Unknown,
}

/// A program that the driver runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// The package that has it.
    pub package: &'static str,
    /// Where it is; `None` when it is not installed.
    pub path: Option<PathBuf>,
    /// Major and minor version, where it tells.
    pub version: Option<(u32, u32)>,
}

/// This machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// `uname -r`
    pub release: String,
    /// `/dev/loop-control` is there.
    pub has_loop_control: bool,
    /// `max_loop` of the module; `None` when it is not loaded.
    pub max_loop: Option<u32>,
    /// What can be mounted.
    pub filesystems: Vec<(Filesystem, Support)>,
    /// Project quotas on ext4, which are the kernel's format `quota_v2`.
    pub ext4_quota: Support,
    /// What is run.
    pub tools: Vec<Tool>,
    /// The effective capabilities of this process, by bit.
    pub capabilities: u64,
}

/// The lists of modules of the running kernel; `None` when they are not to be seen.
struct Modules(Option<String>);

impl Modules {
    fn of(release: &str) -> Self {
        let read = |name: &str| {
            let places = ["/lib/modules", "/usr/lib/modules"];
            let mut paths = places.iter().map(|place| Path::new(place).join(release).join(name));
            paths.find_map(|path| std::fs::read_to_string(path).ok())
        };
        let (loadable, builtin) = (read("modules.dep"), read("modules.builtin"));
        Self(
            (loadable.is_some() || builtin.is_some())
                .then(|| loadable.unwrap_or_default() + "\n" + &builtin.unwrap_or_default()),
        )
    }

    fn support(&self, module: &str) -> Support {
        match &self.0 {
            None => Support::Unknown,
            Some(list) if lists(list, module) => Support::Module,
            Some(_) => Support::Absent,
        }
    }
}

/// A line names the file of that module first.
fn lists(text: &str, module: &str) -> bool {
    text.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default().trim();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split(".ko").next() == Some(module) && file.contains(".ko")
    })
}

/// The bits of `CapEff` in `/proc/self/status`.
fn effective(status: &str) -> u64 {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

impl LinuxHost {
    /// Looks at the machine.
    #[must_use]
    pub fn machine(&self) -> Machine {
        let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let modules = Modules::of(&release);
        let known = read("/proc/filesystems");
        let support = |filesystem: Filesystem| {
            let here =
                known.lines().any(|line| line.split('\t').next_back() == Some(filesystem.as_str()));
            (filesystem, if here { Support::Here } else { modules.support(filesystem.as_str()) })
        };
        let quota_is_loaded = Path::new("/sys/module/quota_v2").exists();
        Machine {
            has_loop_control: Path::new("/dev/loop-control").exists(),
            max_loop: read("/sys/module/loop/parameters/max_loop").trim().parse().ok(),
            filesystems: [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Btrfs]
                .map(support)
                .to_vec(),
            ext4_quota: if quota_is_loaded { Support::Here } else { modules.support("quota_v2") },
            tools: self.programs.all().map(super::command::Program::as_tool).to_vec(),
            capabilities: effective(&read("/proc/self/status")),
            release,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_whole_name() {
        let list = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz\nkernel/fs/btrfs/btrfs.ko:\nkernel/fs/xfs/xfs.ko.zst: a\n";
        for module in ["ext4", "btrfs", "xfs"] {
            assert!(lists(list, module), "{module}");
        }
        for module in ["ext", "crc16", "fs", ""] {
            assert!(!lists(list, module), "{module}");
        }
        assert_eq!(Modules(None).support("xfs"), Support::Unknown);
        assert_eq!(Modules(Some(list.to_owned())).support("zfs"), Support::Absent);
    }

    #[test]
    fn capabilities_are_a_word_of_bits() {
        assert_eq!(effective("CapInh:\t0\nCapEff:\t0000000000200001\n"), (1 << 21) | 1);
        assert_eq!(effective(""), 0);
    }
}
