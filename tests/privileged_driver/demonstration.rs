//! `orlop try`: on a managed pool, where none can be made, and interrupted at any moment.

#![expect(clippy::disallowed_methods, reason = "runs the demonstration")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::privileged::{Sandbox, loops_below, mounts_below, poll, privileged, run};

/// Begins a demonstration with directories only, which works below `place`.
fn begin(place: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["try", "--only", "hostpath"])
        .env("TMPDIR", place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its end: whether it was well, and what it said. Nothing of it is left.
fn end(place: &Path, demonstration: Child) -> (bool, String) {
    let Output { status, stdout, stderr } = demonstration.wait_with_output().unwrap();
    let said = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    assert_eq!(std::fs::read_dir(place).unwrap().count(), 0, "{said}");
    let below: Vec<_> = mounts_below(place).into_iter().filter(|point| point != place).collect();
    assert_eq!(below, Vec::<PathBuf>::new(), "{said}");
    assert_eq!(loops_below(place), Vec::new(), "{said}");
    (status.success(), said)
}

/// The row of a step has a time in it.
fn was_done(said: &str, step: &str) -> bool {
    let row = said.lines().find(|line| line.starts_with(step));
    row.unwrap_or_else(|| panic!("{step}: {said}")).ends_with(|end: char| end.is_ascii_digit())
}

const FILL: &str = "write until no more is taken";

#[test]
fn a_managed_pool_is_shown_and_its_limits() {
    privileged(|sandbox| {
        let place = sandbox.make_dir("tmp");
        let (well, said) = end(&place, begin(&place));
        assert!(well, "{said}");
        assert!(said.contains("pool: a managed one, btrfs"), "{said}");
        assert!(said.contains("quota: required") && was_done(&said, FILL), "{said}");
        assert!(said.contains("detached, also the pool"), "{said}");
        assert!(said.contains("the pool was mounted still"), "{said}");
    });
}

#[test]
fn a_directory_is_shown_where_no_managed_pool_can_be_and_why_is_told() {
    privileged(|sandbox| {
        let place = sandbox.make_dir("memory");
        run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), place.as_os_str()]);
        let (well, said) = end(&place, begin(&place));
        run("umount", &[&place]);
        assert!(well, "{said}");
        assert!(said.contains("pool: a directory in") && said.contains("tmpfs"), "{said}");
        assert!(was_done(&said, "CreateVolume") && !was_done(&said, FILL), "{said}");
    });
}

/// Something lies in a directory of the demonstration.
fn lies_in(place: &Path, name: &str) -> bool {
    let Some(own) = std::fs::read_dir(place).unwrap().next() else { return false };
    std::fs::read_dir(own.unwrap().path().join(name)).is_ok_and(|entries| entries.count() > 0)
}

fn is_mounted(place: &Path, end: &str) -> bool {
    mounts_below(place).iter().any(|point| point.ends_with(end))
}

#[test]
fn an_interrupted_demonstration_leaves_nothing() {
    type Moment = fn(&Path) -> bool;
    let moments: [(&str, Moment); 6] = [
        ("the directory is there", |place| lies_in(place, ".")),
        ("the image is being made", |place| lies_in(place, "root/images")),
        ("the pool is mounted", |place| is_mounted(place, "pool")),
        ("the volume is staged", |place| is_mounted(place, "hostpath/globalmount")),
        ("the snapshot is taken", |place| lies_in(place, "pool/snapshots")),
        ("the copy is published", |place| is_mounted(place, "hostpath-restored/pod")),
    ];
    privileged(|sandbox: &Sandbox| {
        let place = sandbox.make_dir("tmp");
        for (what, moment) in moments {
            let demonstration = begin(&place);
            poll(what, || moment(&place));
            let process = i32::try_from(demonstration.id()).unwrap();
            kill(Pid::from_raw(process), Signal::SIGINT).unwrap();
            let (well, said) = end(&place, demonstration);
            assert!(!well && said.contains("interrupted by SIGINT"), "{what}: {said}");
            assert!(said.contains("Everything was cleaned up."), "{what}: {said}");
        }
    });
}
