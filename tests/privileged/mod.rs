//! What the privileged tests share: a process, a directory and a mount namespace for each test, and a leak check.
//!
//! [`privileged`] runs the test's own binary again, for this one test, in a mount namespace and a PID namespace of its
//! own. So nothing that a test mounts is seen outside, and whatever way it ends, its processes and mounts go with it.
//! Loop devices are not part of any namespace: those on files of the test's directory are looked for, and no others,
//! because other programs use loop devices at the same time.
//!
//! `ORLOP_KEEP=1` keeps the directory and the loop devices of a test that failed.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test runs programs, writes files and waits where the driver must not"
)]

pub(crate) mod kernel;

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) use kernel::{
    can_grow_mounted_ext4, detach_all, loops_below, mounts_below, unmount_all, unseal_all,
};

/// Names the directory of a test to the process that runs it.
const DIRECTORY: &str = "ORLOP_PRIVILEGED_DIR";
/// Made by a test that has begun, so that one that was not found is no success.
const BEGUN: &str = "begun";

/// A test's own directory.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// The directory; a machine that is a test's alone gives one by itself.
    pub(crate) dir: PathBuf,
}

impl Sandbox {
    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A part of it that is used like a whole one; what is left there is found at the end.
    pub(crate) fn sub(&self, name: &str) -> Self {
        Self { dir: self.make_dir(name) }
    }

    /// Undoes what is mounted and attached in it.
    pub(crate) fn clear(&self) {
        // First what lies in a pool that has a mount of its own: when that is gone the paths lead nowhere.
        detach_all(&self.dir);
        unmount_all(&self.dir);
        detach_all(&self.dir);
        unseal_all(&self.dir);
    }

    /// A new directory in it, with its parents.
    pub(crate) fn make_dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

/// Runs a program and answers what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {}: {told}{complaint}", output.status);
    told
}

/// Waits until something holds, for as long as half a minute.
pub(crate) fn poll(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it never came about that {what}");
}

/// Runs the body of a test in namespaces of its own, with a leak check at its end.
pub(crate) fn privileged<F: FnOnce(&Sandbox)>(body: F) {
    match std::env::var_os(DIRECTORY) {
        Some(dir) => inside(&Sandbox { dir: dir.into() }, body),
        None => outside(&test_name::<F>()),
    }
}

/// The name of the test that a closure was written in, as `--exact` wants it.
fn test_name<F>() -> String {
    let path = std::any::type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_crate, rest)| rest);
    path.trim_end_matches("::{{closure}}").to_owned()
}

fn outside(name: &str) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "{name} mounts filesystems and sets up loop devices: run it as root"
    );
    let temporary = tempfile::Builder::new().prefix("orlop-test-").tempdir().unwrap();
    let dir = temporary.path().canonicalize().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, &dir)
        .output()
        .unwrap_or_else(|e| panic!("cannot run unshare of util-linux: {e}"));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", String::from_utf8_lossy(&output.stderr));
    let begun = dir.join(BEGUN).exists();
    let passed = output.status.success() && begun;
    if !passed && std::env::var_os("ORLOP_KEEP").is_some() {
        println!("kept: {}", temporary.keep().display());
    } else {
        // Mounts and processes have gone with their namespaces.
        detach_all(&dir);
        unseal_all(&dir);
        temporary.close().unwrap();
    }
    assert!(begun, "the test {name} did not begin: {}", output.status);
    assert!(passed, "the test {name} failed: {}", output.status);
}

fn inside(sandbox: &Sandbox, body: impl FnOnce(&Sandbox)) {
    std::fs::write(sandbox.path(BEGUN), "").unwrap();
    kernel::let_go_of_copies(sandbox.dir());
    let result = catch_unwind(AssertUnwindSafe(|| body(sandbox)));
    let keep = result.is_err() && std::env::var_os("ORLOP_KEEP").is_some();
    if result.is_ok() {
        check_leaks(sandbox);
    }
    if !keep {
        sandbox.clear();
    }
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// Nothing is mounted in the directory and no loop device lies on a file in it. A loop device with AUTOCLEAR goes a
/// moment after its last user.
fn check_leaks(sandbox: &Sandbox) {
    assert_eq!(mounts_below(sandbox.dir()), Vec::<PathBuf>::new(), "a mount was left");
    for _ in 0..200 {
        if loops_below(sandbox.dir()).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(loops_below(sandbox.dir()), Vec::new(), "a loop device was left");
}
