//! What holds a directory of ext4 or XFS to its size: project quotas.

#![expect(clippy::disallowed_methods, reason = "writes as the owner of a volume does")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop::host::linux::LinuxHost;
use orlop::host::{Bounds, HostError, LimitState, Limits};
use orlop::volume::{ByteSize, Limit, LimitKind};

use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

const MIB: u64 = 1 << 20;
/// Whose the volumes are.
const OWNER: u32 = 1234;
const EXT4: &[&str] =
    &["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota,lazy_itable_init=0"];
const XFS: &[&str] = &["mkfs.xfs", "-q"];

/// A new filesystem with project quotas, mounted.
struct Pool {
    host: LinuxHost,
    mount_point: PathBuf,
}

impl Pool {
    fn new(sandbox: &Sandbox, mkfs: &[&str]) -> Self {
        let (image, mount_point) = (sandbox.path("pool.img"), sandbox.make_dir("pool"));
        File::create_new(&image).unwrap().set_len(512 * MIB).unwrap();
        run(mkfs[0], &[&mkfs[1..], &[image.to_str().unwrap()]].concat());
        // The owner of a volume is to reach it.
        std::fs::set_permissions(sandbox.dir(), PermissionsExt::from_mode(0o711)).unwrap();
        let pool = Self { host: LinuxHost::new(), mount_point };
        pool.mount(sandbox, "loop,prjquota");
        pool
    }

    fn mount(&self, sandbox: &Sandbox, options: &str) {
        let image = sandbox.path("pool.img");
        let mount_point = self.mount_point.to_str().unwrap();
        run("mount", &["-o", options, image.to_str().unwrap(), mount_point]);
    }

    fn unmount(&self, sandbox: &Sandbox) {
        run("umount", &[&self.mount_point]);
        poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
    }

    fn root(&self) -> File {
        File::open(&self.mount_point).unwrap()
    }

    fn kind(&self) -> Option<LimitKind> {
        self.host.limit_kind(self.root().as_fd()).unwrap()
    }

    /// A volume under a limit that bounds nothing.
    fn volume(&self, name: &str) -> (PathBuf, Limit) {
        let path = self.mount_point.join(name);
        std::fs::create_dir(&path).unwrap();
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
        let directory = File::open(&path).unwrap();
        let limit = self.host.begin_limit(directory.as_fd(), LimitKind::Project).unwrap();
        assert_eq!(self.host.limit_of(directory.as_fd()).unwrap(), Some(limit));
        let state = self.state(limit).unwrap();
        assert_eq!((state.bounds, state.inodes), (None, Some(1)));
        (path, limit)
    }

    fn bound(&self, limit: Limit, bounds: Option<Bounds>) {
        self.host.set_bounds(self.root().as_fd(), limit, bounds).unwrap();
        assert_eq!(self.state(limit).unwrap().bounds, bounds);
    }

    fn state(&self, limit: Limit) -> Option<LimitState> {
        self.host.limit_state(self.root().as_fd(), limit).unwrap()
    }

    fn end(&self, limit: Limit) -> bool {
        self.host.end_limit(self.root().as_fd(), limit).unwrap()
    }
}

const fn bytes(bytes: u64) -> Bounds {
    Bounds { bytes: ByteSize::new(bytes), inodes: None }
}

/// Runs a program as the owner of the volumes, without any capability: on ext4 CAP_SYS_RESOURCE overrides every limit.
/// `false` when the limit refuses; XFS says of a full project what a full disk says.
fn as_owner(arguments: &[&str]) -> bool {
    let owner = OWNER.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &owner, "--regid", &owner, "--clear-groups"])
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let full = ["Disk quota exceeded", "No space left on device"];
    assert!(output.status.success() || full.iter().any(|text| said.contains(text)), "{said}");
    output.status.success()
}

/// Adds so many MiB to a file, or as much as there is room for; answers its size then.
fn fill(path: &Path, megabytes: u64) -> u64 {
    let (to, count) = (format!("of={}", path.display()), format!("count={}", megabytes * 16));
    let append = ["oflag=append", "conv=notrunc,fsync", "bs=64K", "status=none"];
    as_owner(&[&["dd", "if=/dev/zero", &to, &count], &append[..]].concat());
    path.metadata().unwrap().len()
}

/// To within 1 %.
fn assert_near(bytes: u64, wanted: u64) {
    assert!(bytes <= wanted && bytes >= wanted - wanted / 100, "{bytes} of {wanted}");
}

fn holds(sandbox: &Sandbox, mkfs: &[&str]) {
    let pool = Pool::new(sandbox, mkfs);
    assert_eq!(pool.kind(), Some(LimitKind::Project));
    assert_eq!(pool.host.enable_quota(pool.root().as_fd()).unwrap(), Some(LimitKind::Project));
    let (volume, limit) = pool.volume("a");
    let (other, _) = pool.volume("b");
    pool.bound(limit, Some(bytes(32 * MIB)));
    std::fs::create_dir(volume.join("below")).unwrap();
    chown(volume.join("below"), Some(OWNER), Some(OWNER)).unwrap();
    let first = fill(&volume.join("below/file"), 16);
    assert_eq!(first, 16 * MIB);
    assert_near(first + fill(&volume.join("file"), 64), 32 * MIB);
    assert_near(pool.state(limit).unwrap().used.bytes(), 32 * MIB);
    assert_eq!(fill(&other.join("file"), 64), 64 * MIB, "a neighbour writes on");
    pool.bound(limit, Some(bytes(48 * MIB)));
    pool.unmount(sandbox);
    pool.mount(sandbox, "loop,prjquota");
    assert_eq!(pool.state(limit).unwrap().bounds, Some(bytes(48 * MIB)));
    assert_near(first + fill(&volume.join("file"), 64), 48 * MIB);
    // What is full can be written over and emptied.
    let over = format!("of={}", volume.join("file").display());
    assert!(as_owner(&["dd", "if=/dev/zero", &over, "bs=64K", "count=64", "conv=notrunc,fsync"]));
    std::fs::remove_file(volume.join("file")).unwrap();
    // XFS gets round to what was removed a moment later.
    poll("the directories and a file are left", || pool.state(limit).unwrap().inodes == Some(3));
    pool.bound(limit, Some(Bounds { inodes: Some(5), ..bytes(48 * MIB) }));
    let touch = |name: &str| as_owner(&["touch", volume.join(name).to_str().unwrap()]);
    assert!(touch("1") && touch("2") && !touch("3") && !touch("4"));
    assert!(!pool.end(limit), "it is in use");
    pool.bound(limit, None);
    assert!(touch("3"));
    pool.unmount(sandbox);
}

/// What the image holds when the bounds are set is what a power cut would leave.
fn is_durable(sandbox: &Sandbox, mkfs: &[&str]) {
    let pool = Pool::new(sandbox, mkfs);
    let (_, limit) = pool.volume("a");
    pool.bound(limit, Some(bytes(32 * MIB)));
    pool.bound(limit, Some(bytes(40 * MIB)));
    let (image, cut) = (sandbox.path("pool.img"), sandbox.path("cut.img"));
    run("cp", &["--sparse=always", image.to_str().unwrap(), cut.to_str().unwrap()]);
    pool.unmount(sandbox);
    std::fs::rename(cut, image).unwrap();
    pool.mount(sandbox, "loop,prjquota");
    assert_eq!(pool.state(limit).unwrap().bounds, Some(bytes(40 * MIB)));
    pool.unmount(sandbox);
}

/// A limit is there as long as a file is that carries its id.
fn ends(sandbox: &Sandbox, mkfs: &[&str]) {
    let pool = Pool::new(sandbox, mkfs);
    let (volume, limit) = pool.volume("a");
    pool.bound(limit, Some(bytes(32 * MIB)));
    fill(&volume.join("file"), 1);
    std::fs::rename(volume.join("file"), pool.mount_point.join("stray")).unwrap();
    std::fs::remove_dir(&volume).unwrap();
    assert!(!pool.end(limit), "a file carries its id");
    // XFS counts what was removed until it has got round to it.
    poll("the directory is gone", || pool.state(limit).unwrap().inodes == Some(1));
    assert_eq!(pool.state(limit).unwrap().bounds, Some(bytes(32 * MIB)));
    std::fs::remove_file(pool.mount_point.join("stray")).unwrap();
    // What removed files had is free when the kernel has got round to it.
    poll("the limit ends", || pool.end(limit));
    assert_eq!(pool.state(limit), None);
    assert!(pool.end(limit), "it may be ended again");
    pool.unmount(sandbox);
}

/// A limit is begun again with the same id while it is new, and another directory never gets it.
fn is_its_own(sandbox: &Sandbox, mkfs: &[&str]) {
    let pool = Pool::new(sandbox, mkfs);
    let (volume, limit) = pool.volume("a");
    pool.bound(limit, Some(bytes(32 * MIB)));
    let begin = |path: &Path| {
        let directory = File::open(path).unwrap();
        pool.host.begin_limit(directory.as_fd(), LimitKind::Project).unwrap()
    };
    assert_eq!((begin(&volume), pool.state(limit).unwrap().bounds), (limit, None));
    let (_, second) = pool.volume("b");
    assert_ne!(limit, second);
    // A pool that lies in a volume: its volumes inherit an id, and are not to share it.
    std::fs::create_dir(volume.join("inner")).unwrap();
    let inner = begin(&volume.join("inner"));
    assert!(inner != limit && inner != second);
    let directory = File::open(&volume).unwrap();
    let wrong = pool.host.begin_limit(directory.as_fd(), LimitKind::Qgroup).unwrap_err();
    assert!(matches!(wrong, HostError::Unsupported { .. }), "{wrong}");
    drop(directory);
    pool.unmount(sandbox);
}

/// A project quota binds honest pods: the owner of a file may say that it belongs to no project.
fn is_escaped(sandbox: &Sandbox, mkfs: &[&str]) {
    let pool = Pool::new(sandbox, mkfs);
    let (volume, limit) = pool.volume("a");
    pool.bound(limit, Some(bytes(16 * MIB)));
    let file = volume.join("file");
    assert!(as_owner(&["touch", file.to_str().unwrap()]));
    assert!(as_owner(&["chattr", "-p", "0", file.to_str().unwrap()]));
    assert_eq!(fill(&file, 32), 32 * MIB);
    assert!(pool.state(limit).unwrap().used.bytes() < MIB);
    pool.unmount(sandbox);
}

#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn an_ext4_project_quota_holds() {
    privileged(|sandbox| holds(sandbox, EXT4));
}

#[test]
#[ignore = "needs XFS project quotas: make vm"]
fn an_xfs_project_quota_holds() {
    privileged(|sandbox| holds(sandbox, XFS));
}

#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn an_ext4_project_quota_is_on_the_disk_when_it_is_set() {
    privileged(|sandbox| is_durable(sandbox, EXT4));
}

#[test]
#[ignore = "needs XFS project quotas: make vm"]
fn an_xfs_project_quota_is_on_the_disk_when_it_is_set() {
    privileged(|sandbox| is_durable(sandbox, XFS));
}

#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn an_ext4_project_quota_ends_with_the_last_file() {
    privileged(|sandbox| ends(sandbox, EXT4));
}

#[test]
#[ignore = "needs XFS project quotas: make vm"]
fn an_xfs_project_quota_ends_with_the_last_file() {
    privileged(|sandbox| ends(sandbox, XFS));
}

#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn an_ext4_project_quota_is_of_one_directory() {
    privileged(|sandbox| is_its_own(sandbox, EXT4));
}

#[test]
#[ignore = "needs XFS project quotas: make vm"]
fn an_xfs_project_quota_is_of_one_directory() {
    privileged(|sandbox| is_its_own(sandbox, XFS));
}

#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn an_owner_takes_a_file_out_of_an_ext4_project_quota() {
    privileged(|sandbox| is_escaped(sandbox, EXT4));
}

#[test]
#[ignore = "needs XFS project quotas: make vm"]
fn an_owner_takes_a_file_out_of_an_xfs_project_quota() {
    privileged(|sandbox| is_escaped(sandbox, XFS));
}

/// Without the mount option ext4 counts, and holds nobody.
#[test]
#[ignore = "needs ext4 project quotas: make vm"]
fn a_project_quota_that_only_counts_is_none() {
    privileged(|sandbox| {
        let pool = Pool::new(sandbox, EXT4);
        pool.unmount(sandbox);
        pool.mount(sandbox, "loop");
        assert_eq!(pool.kind(), None);
        let refused = pool.host.begin_limit(pool.root().as_fd(), LimitKind::Project).unwrap_err();
        assert!(matches!(refused, HostError::Unsupported { .. }), "{refused}");
        pool.unmount(sandbox);
    });
}

/// So on a kernel without any, as on other filesystems.
#[test]
fn a_project_quota_is_not_where_nothing_is_mounted_with_it() {
    privileged(|sandbox| {
        let (image, mount_point) = (sandbox.path("pool.img"), sandbox.make_dir("pool"));
        File::create_new(&image).unwrap().set_len(64 * MIB).unwrap();
        run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        let pool = Pool { host: LinuxHost::new(), mount_point };
        pool.mount(sandbox, "loop");
        let root = pool.root();
        assert_eq!(pool.kind(), None);
        assert_eq!(pool.host.enable_quota(root.as_fd()).unwrap(), None);
        assert_eq!(pool.host.limit_of(root.as_fd()).unwrap(), None);
        assert_eq!(pool.host.being_freed(root.as_fd()).unwrap(), Vec::<u64>::new());
        drop(root);
        pool.unmount(sandbox);
        let proc = File::open("/proc").unwrap();
        assert_eq!(pool.host.limit_kind(proc.as_fd()).unwrap(), None);
    });
}
