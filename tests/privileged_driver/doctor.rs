//! `orlop doctor` on three nodes: all is well, a package is missing, a pool's disk is missing.

#![expect(clippy::disallowed_methods, reason = "runs the program that it tests")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::driver::Driver;
use crate::pools::PoolOn;
use crate::privileged::{Sandbox, privileged, run};

/// The exit status, and the checklist.
fn doctor(sandbox: &Sandbox) -> (Option<i32>, Vec<Value>) {
    let path = |name: &str| sandbox.path(name).to_str().unwrap().to_owned();
    let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["doctor", "--output", "json", "--config", &path("orlop.toml")])
        .args(["--root-dir", &path("root"), "--kubelet-dir", &path("kubelet")])
        .args(["--endpoint", &path("csi.sock")])
        .output()
        .unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Result, what was seen, and what to do, of one check.
#[track_caller]
fn of<'a>(list: &'a [Value], check: &str) -> (&'a str, &'a str, &'a str) {
    let line = list.iter().find(|line| line["check"] == check).expect(check);
    let word = |field: &str| line[field].as_str().unwrap_or_default();
    (word("result"), word("what"), word("remedy"))
}

/// Takes a program away for this test's mount namespace.
fn hide(program: &str) {
    for directory in ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
    {
        let path = Path::new(directory).join(program);
        if path.is_file() {
            run("mount", &["--bind", "/dev/null", path.to_str().unwrap()]);
        }
    }
}

#[test]
fn a_node_is_told_what_it_lacks() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount_with_limits(sandbox, 1024);
        let driver = Driver::start(sandbox);
        let (_, list) = doctor(sandbox);
        let failed: Vec<_> = list.iter().filter(|line| line["result"] == "fail").collect();
        // Here and there the tests run where little is allowed; nothing else may be wrong.
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(of(&list, "btrfs-progs").0, "pass");
        assert_eq!(of(&list, "pool p").0, "pass");
        let limits = "hostpath volumes are held to their size (simple-quota)";
        assert_eq!(of(&list, "pool p limits"), ("pass", limits, ""));
        let copies = "instant: blocks are shared, directories are subvolumes";
        assert_eq!(of(&list, "pool p copies"), ("pass", copies, ""));
        assert_eq!(of(&list, "idle loop devices"), ("pass", "none", ""));
        assert!(of(&list, "socket").1.ends_with("a driver answers, mode 0600"), "{list:#?}");

        hide("mkfs.btrfs");
        hide("btrfstune");
        let (status, list) = doctor(sandbox);
        assert_eq!(status, Some(0), "without it the node works");
        assert_eq!(
            of(&list, "btrfs-progs"),
            (
                "warn",
                "mkfs.btrfs, btrfstune not installed: no volumes and pools with btrfs can be made",
                "install the package btrfs-progs"
            )
        );

        assert!(driver.terminate().success());
        let pool = sandbox.path("pool");
        run("umount", &[&pool]);
        let (status, list) = doctor(sandbox);
        assert_eq!(status, Some(1));
        let (result, what, remedy) = of(&list, "pool p");
        assert_eq!(result, "fail");
        assert!(what.ends_with(" is not there; its disk is probably not mounted"), "{what}");
        assert_eq!(remedy, format!("mount its disk at {}", pool.display()));
        assert!(of(&list, "socket").1.ends_with("is not there: no driver runs"), "{list:#?}");
    });
}
