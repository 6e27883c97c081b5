//! What the virtual machine is for works there: the floor under the tests that `make vm` runs.
//!
//! Nothing of the driver is used, only the systems' own tools. When one of these fails, the guest is at fault.

#![expect(clippy::disallowed_methods, reason = "a test runs programs")]

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

const MIB: usize = 1 << 20;
const LIMIT: usize = 16 * MIB;

/// Writes a file that is larger than the limit, as root in an ordinary container would: ext4 lets through who has
/// CAP_SYS_RESOURCE. As many bytes as it got, and what the writer said.
fn overfill(dir: &Path) -> (usize, String) {
    let file = dir.join("file");
    let output = Command::new("setpriv")
        .args(["--bounding-set=-sys_resource", "--inh-caps=-sys_resource"])
        .args(["dd", "if=/dev/zero", "bs=256K", "conv=fsync", "status=none"])
        .arg(format!("of={}", file.display()))
        .arg(format!("count={}", 2 * LIMIT / (256 << 10)))
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let written = usize::try_from(file.metadata().unwrap().len()).unwrap();
    (written, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A directory with a limit holds no more than that, before and after it was mounted anew, and its neighbour does.
fn project_quota_holds(sandbox: &Sandbox, mkfs: &[&str], full: &str) {
    let (image, root) = (sandbox.path("disk.img"), sandbox.make_dir("mounted"));
    File::create_new(&image).unwrap().set_len(512 << 20).unwrap();
    run(mkfs[0], &[&mkfs[1..], &[image.to_str().unwrap()]].concat());
    let mounted = root.to_str().unwrap();
    let mount = || run("mount", &["-o", "loop,prjquota", image.to_str().unwrap(), mounted]);
    let unmount = || {
        run("umount", &[mounted]);
        poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
    };
    mount();
    for name in ["limited", "again", "free"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    for (name, project) in [("limited", "42"), ("again", "43")] {
        run("chattr", &["-p", project, "+P", root.join(name).to_str().unwrap()]);
        let limit = format!("limit -p bhard={LIMIT} {project}");
        // -f: also on filesystems that are not XFS.
        run("xfs_quota", &["-f", "-x", "-c", &limit, mounted]);
    }
    let check = |name: &str| {
        let (written, said) = overfill(&root.join(name));
        assert!(said.contains(full), "{name}: {said} after {written} bytes");
        assert!((LIMIT - MIB..=LIMIT).contains(&written), "{name}: {written} of {LIMIT} bytes");
    };
    check("limited");
    unmount();
    mount();
    check("again");
    assert_eq!(overfill(&root.join("free")), (2 * LIMIT, String::new()));
    unmount();
}

#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn ext4_has_project_quotas() {
    privileged(|sandbox| {
        let mkfs = ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"];
        project_quota_holds(sandbox, &mkfs, "Disk quota exceeded");
    });
}

#[test]
#[ignore = "needs XFS project quotas: make vm"]
fn xfs_has_project_quotas() {
    // XFS says of a full project what a full disk says.
    privileged(|sandbox| {
        project_quota_holds(sandbox, &["mkfs.xfs", "-q"], "No space left on device");
    });
}
