//! `LinuxHost` against the real kernel. Needs root, and fails without it.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; clippy knows functions marked as tests only"
)]

mod common;
#[path = "privileged_host/filesystems.rs"]
mod filesystems;
#[path = "privileged_host/loops.rs"]
mod loops;
#[path = "privileged_host/mounts.rs"]
mod mounts;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::Bench;
use orlop::host::{AttachedLoop, FilesystemMount, Host};
use orlop::volume::{Filesystem, MountAttributes};

const PLAIN: MountAttributes = MountAttributes {
    read_only: false,
    no_suid: false,
    no_dev: false,
    no_exec: false,
    no_atime: false,
    no_dir_atime: false,
    strict_atime: false,
    no_symlink_follow: false,
};

fn mount_at(
    bench: &Bench,
    attached: &AttachedLoop,
    filesystem: Filesystem,
    target: &Path,
    options: &[&str],
) {
    let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    let request = FilesystemMount {
        loop_number: attached.number,
        filesystem,
        target,
        attributes: PLAIN,
        options: &options,
    };
    bench.host.mount(&request).unwrap();
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    File::create(path)?.write_all_at(text.as_bytes(), 0)
}

/// Runs a program that only a test needs.
#[expect(clippy::disallowed_methods, reason = "tools that only tests run")]
fn run(program: &str, arguments: &[&str]) -> bool {
    let status = std::process::Command::new(program)
        .args(arguments)
        .stderr(std::process::Stdio::null())
        .status();
    status.unwrap().success()
}
