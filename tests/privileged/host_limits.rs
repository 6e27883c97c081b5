//! What holds a directory of a btrfs to its size: simple quotas, and plain qgroups.

#![expect(clippy::disallowed_methods, reason = "writes as the owner of a volume does")]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use orlop::host::linux::LinuxHost;
use orlop::host::{Bounds, Host, LimitState, Limits};
use orlop::volume::{ByteSize, Limit, LimitKind};

use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

const MIB: u64 = 1 << 20;
/// Whose the volumes are.
const OWNER: u32 = 1234;

/// A new btrfs, mounted.
struct Pool {
    host: LinuxHost,
    mount_point: PathBuf,
}

impl Pool {
    fn new(sandbox: &Sandbox) -> Self {
        let (image, mount_point) = (sandbox.path("pool.img"), sandbox.make_dir("pool"));
        File::create_new(&image).unwrap().set_len(1024 * MIB).unwrap();
        run("mkfs.btrfs", &["-q", image.to_str().unwrap()]);
        // The owner of a volume is to reach it.
        std::fs::set_permissions(sandbox.dir(), PermissionsExt::from_mode(0o711)).unwrap();
        let pool = Self { host: LinuxHost::new(), mount_point };
        pool.mount(sandbox);
        pool
    }

    fn simple(sandbox: &Sandbox) -> Self {
        let pool = Self::new(sandbox);
        let kind = pool.host.enable_quota(pool.root().as_fd()).unwrap();
        assert_eq!(kind, Some(LimitKind::SimpleQuota), "the kernel of these tests has them");
        pool
    }

    fn plain(sandbox: &Sandbox) -> Self {
        let pool = Self::new(sandbox);
        run("btrfs", &["quota", "enable", pool.mount_point.to_str().unwrap()]);
        pool
    }

    fn mount(&self, sandbox: &Sandbox) {
        let image = sandbox.path("pool.img");
        let mount_point = self.mount_point.to_str().unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), mount_point]);
    }

    fn unmount(&self, sandbox: &Sandbox) {
        run("umount", &[&self.mount_point]);
        poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
    }

    fn remount(&self, sandbox: &Sandbox) {
        self.unmount(sandbox);
        self.mount(sandbox);
    }

    fn root(&self) -> File {
        File::open(&self.mount_point).unwrap()
    }

    fn kind(&self) -> Option<LimitKind> {
        self.host.limit_kind(self.root().as_fd()).unwrap()
    }

    /// A volume under a limit of so many bytes.
    fn volume(&self, name: &str, bytes: u64) -> (PathBuf, Limit) {
        self.host.make_subvolume(self.root().as_fd(), name).unwrap();
        let path = self.mount_point.join(name);
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
        let directory = File::open(&path).unwrap();
        let limit = self.host.begin_limit(directory.as_fd(), self.kind().unwrap()).unwrap();
        assert_eq!(self.state(limit).unwrap().bounds, None);
        self.bound(limit, Some(bytes));
        (path, limit)
    }

    fn bound(&self, limit: Limit, bytes: Option<u64>) {
        let bounds = bytes.map(|bytes| Bounds { bytes: ByteSize::new(bytes), inodes: None });
        self.host.set_bounds(self.root().as_fd(), limit, bounds).unwrap();
        assert_eq!(self.state(limit).unwrap().bounds, bounds);
    }

    fn state(&self, limit: Limit) -> Option<LimitState> {
        self.host.limit_state(self.root().as_fd(), limit).unwrap()
    }

    fn used(&self, limit: Limit) -> u64 {
        run("sync", &["-f", self.mount_point.to_str().unwrap()]);
        self.state(limit).unwrap().used.bytes()
    }

    fn end(&self, limit: Limit) -> bool {
        self.host.end_limit(self.root().as_fd(), limit).unwrap()
    }

    /// Left to itself the kernel begins half a minute later, which is as long as a test waits.
    fn wait_until_free(&self) {
        run("btrfs", &["filesystem", "sync", self.mount_point.to_str().unwrap()]);
        poll("it is free", || self.host.being_freed(self.root().as_fd()).unwrap().is_empty());
    }

    fn remove(&self, parent: &Path, name: &str) {
        let parent = File::open(parent).unwrap();
        assert!(self.host.remove_subvolume(parent.as_fd(), name.as_ref()).unwrap());
    }
}

/// What the kernel refuses because of a limit and nothing else is `None`.
fn unless_full<T>(result: std::io::Result<T>) -> Option<T> {
    if let Err(e) = &result {
        assert_eq!(e.raw_os_error(), Some(Errno::EDQUOT as i32), "{e}");
    }
    result.ok()
}

/// Writes until the limit refuses, or so many bytes; answers how many were written.
fn fill(path: &Path, most: u64) -> u64 {
    let (block, mut written) = (vec![7; 64 << 10], 0);
    let file = File::options().create(true).append(true).open(path);
    let Some(mut file) = unless_full(file) else { return 0 };
    while written < most {
        match unless_full(file.write(&block)) {
            Some(count) => written += u64::try_from(count).unwrap(),
            None => return written,
        }
    }
    file.sync_all().unwrap();
    written
}

/// Runs `btrfs` as the owner of the volumes.
fn as_owner(arguments: &[&str]) {
    let owner = OWNER.to_string();
    let ids = ["--reuid", &owner, "--regid", &owner, "--clear-groups", "btrfs"];
    run("setpriv", &[&ids, arguments].concat());
}

fn inner(volume: &Path, name: &str) -> PathBuf {
    let path = volume.join(name);
    as_owner(&["subvolume", "create", path.to_str().unwrap()]);
    path
}

/// To within 1 %.
fn assert_near(bytes: u64, wanted: u64) {
    assert!(bytes <= wanted && bytes >= wanted - wanted / 100, "{bytes} of {wanted}");
}

#[test]
fn quotas_are_switched_on_when_asked_and_stay() {
    privileged(|sandbox| {
        let pool = Pool::new(sandbox);
        assert_eq!(pool.kind(), None);
        for _again in 0..2 {
            let kind = pool.host.enable_quota(pool.root().as_fd()).unwrap();
            assert_eq!(kind, Some(LimitKind::SimpleQuota), "the kernel of these tests has them");
            assert_eq!(pool.kind(), kind);
        }
        pool.remount(sandbox);
        assert_eq!(pool.kind(), Some(LimitKind::SimpleQuota));
        pool.unmount(sandbox);
    });
}

#[test]
fn plain_quotas_that_are_on_stay_plain() {
    privileged(|sandbox| {
        let pool = Pool::plain(sandbox);
        assert_eq!(pool.kind(), Some(LimitKind::Qgroup));
        let kind = pool.host.enable_quota(pool.root().as_fd()).unwrap();
        assert_eq!(kind, Some(LimitKind::Qgroup));
        run("btrfs", &["quota", "disable", pool.mount_point.to_str().unwrap()]);
        assert_eq!(pool.kind(), None);
        pool.unmount(sandbox);
    });
}

#[test]
fn a_simple_quota_holds_a_volume_and_what_is_made_in_it() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let (volume, limit) = pool.volume("a", 64 * MIB);
        let (other, _) = pool.volume("b", 64 * MIB);
        let written = fill(&volume.join("file"), 100 * MIB);
        assert_near(written, 64 * MIB);
        assert_near(pool.used(limit), 64 * MIB);
        assert_eq!(fill(&other.join("file"), 32 * MIB), 32 * MIB, "a neighbour writes on");
        // A file can be removed where nothing more can be written.
        std::fs::remove_file(volume.join("file")).unwrap();
        let inside = inner(&volume, "inside");
        let deeper = inner(&inside, "deeper");
        let here = fill(&inside.join("file"), 32 * MIB);
        assert_eq!(here, 32 * MIB);
        assert_near(here + fill(&deeper.join("file"), 100 * MIB), 64 * MIB);
        assert_eq!(fill(&volume.join("file"), 100 * MIB), 0, "all of it is one limit");
        pool.bound(limit, Some(96 * MIB));
        pool.remount(sandbox);
        let raised = fill(&volume.join("file"), 100 * MIB);
        assert!((30 * MIB..=32 * MIB).contains(&raised), "{raised}");
        pool.bound(limit, None);
        assert_eq!(fill(&volume.join("file"), 16 * MIB), 16 * MIB, "lifted");
        pool.unmount(sandbox);
    });
}

/// Why it is not called hard.
#[test]
fn a_plain_qgroup_holds_a_volume_but_not_what_is_made_in_it() {
    privileged(|sandbox| {
        let pool = Pool::plain(sandbox);
        let (volume, limit) = pool.volume("a", 64 * MIB);
        let inside = inner(&volume, "inside");
        assert_near(fill(&volume.join("file"), 100 * MIB), 64 * MIB);
        assert_near(pool.used(limit), 64 * MIB);
        assert_eq!(fill(&inside.join("file"), 100 * MIB), 100 * MIB);
        assert_near(pool.used(limit), 64 * MIB);
        pool.unmount(sandbox);
    });
}

/// The kernel lets anybody choose the qgroups of a subvolume that he makes. So a limit on btrfs binds honest pods only.
#[test]
fn an_owner_can_put_a_subvolume_under_the_limit_of_another_volume() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let (volume, limit) = pool.volume("a", 64 * MIB);
        let (_, victim) = pool.volume("b", 64 * MIB);
        let (path, group) = (volume.join("inside"), format!("1/{}", victim.number));
        as_owner(&["subvolume", "create", "-i", &group, path.to_str().unwrap()]);
        assert_near(fill(&path.join("file"), 100 * MIB), 64 * MIB);
        assert!(pool.used(limit) < MIB && pool.used(victim) > 60 * MIB);
        pool.unmount(sandbox);
    });
}

#[test]
fn a_limit_is_found_again_and_begun_only_once() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let root = pool.root();
        std::fs::create_dir(pool.mount_point.join("plain")).unwrap();
        let plain = File::open(pool.mount_point.join("plain")).unwrap();
        let refused = pool.host.begin_limit(plain.as_fd(), LimitKind::SimpleQuota).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::ENOTSUP), "{refused}");
        pool.host.begin_limit(plain.as_fd(), LimitKind::Project).unwrap_err();
        assert_eq!(pool.host.limit_of(plain.as_fd()).unwrap(), None);
        let (path, limit) = pool.volume("a", 64 * MIB);
        let directory = File::open(&path).unwrap();
        let of = || pool.host.limit_of(directory.as_fd()).unwrap();
        assert_eq!(of(), Some(limit));
        let again = pool.host.begin_limit(directory.as_fd(), LimitKind::SimpleQuota).unwrap();
        assert_eq!((again, pool.state(limit).unwrap().bounds), (limit, None));
        let none = Limit { number: limit.number + 1, ..limit };
        assert_eq!(pool.state(none), None);
        assert!(pool.end(none));
        let bounds = Bounds { bytes: ByteSize::new(MIB), inodes: None };
        let absent = pool.host.set_bounds(root.as_fd(), none, Some(bounds)).unwrap_err();
        assert_eq!(absent.errno(), Some(Errno::ENOENT));
        drop((root, plain, directory));
        pool.unmount(sandbox);
    });
}

/// What the image holds when the bounds are set is what a power cut would leave.
#[test]
fn bounds_are_on_the_disk_when_they_are_set() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let (_, limit) = pool.volume("a", 64 * MIB);
        pool.bound(limit, Some(80 * MIB));
        let (image, cut) = (sandbox.path("pool.img"), sandbox.path("cut.img"));
        run("cp", &["--sparse=always", image.to_str().unwrap(), cut.to_str().unwrap()]);
        pool.unmount(sandbox);
        std::fs::rename(cut, image).unwrap();
        pool.mount(sandbox);
        let bounds = pool.state(limit).unwrap().bounds.unwrap();
        assert_eq!(bounds.bytes.bytes(), 80 * MIB);
        pool.unmount(sandbox);
    });
}

/// Whole lives of a volume with a subvolume in it, until nothing is known of either.
fn whole_life(sandbox: &Sandbox, pool: &Pool) {
    let (volume, limit) = pool.volume("a", 64 * MIB);
    let inside = inner(&volume, "inside");
    fill(&inside.join("file"), 16 * MIB);
    fill(&volume.join("file"), 100 * MIB);
    assert!(!pool.end(limit), "it is in use");
    assert!(pool.state(limit).is_some());
    pool.bound(limit, None);
    pool.remove(&volume, "inside");
    pool.remove(&pool.mount_point, "a");
    poll("the space of both is free", || {
        pool.host.being_freed(pool.root().as_fd()).unwrap().is_empty() && pool.end(limit)
    });
    assert_eq!(pool.state(limit), None);
    assert!(pool.end(limit), "it may be ended again");
    run("sync", &["-f", pool.mount_point.to_str().unwrap()]);
    let left = run("btrfs", &["qgroup", "show", pool.mount_point.to_str().unwrap()]);
    let left: Vec<_> = left.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(left.iter().all(|qgroup| !qgroup.contains('/') || *qgroup == "0/5"), "{left:?}");
    pool.unmount(sandbox);
}

#[test]
fn a_simple_quota_ends_when_the_space_of_the_volume_is_free() {
    privileged(|sandbox| whole_life(sandbox, &Pool::simple(sandbox)));
}

#[test]
fn a_plain_qgroup_ends_when_the_space_of_the_volume_is_free() {
    privileged(|sandbox| whole_life(sandbox, &Pool::plain(sandbox)));
}

#[test]
fn what_is_being_freed_is_known_until_it_is_free() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let (volume, limit) = pool.volume("a", 64 * MIB);
        fill(&volume.join("file"), 16 * MIB);
        let held = File::open(volume.join("file")).unwrap();
        pool.remove(&pool.mount_point, "a");
        // An open file keeps the kernel from freeing it.
        let id = limit.number & u64::from(u32::MAX);
        for _look in 0..3 {
            assert_eq!(pool.host.being_freed(pool.root().as_fd()).unwrap(), [id]);
            assert!(!pool.end(limit));
        }
        drop(held);
        pool.wait_until_free();
        poll("the limit ends", || pool.end(limit));
        pool.unmount(sandbox);
    });
}

/// The kernel gives the id of the last subvolume, when it is gone, to the first one after the next mount.
#[test]
fn a_limit_that_was_left_is_not_that_of_a_later_volume() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let (_, old) = pool.volume("a", 64 * MIB);
        pool.remove(&pool.mount_point, "a");
        pool.wait_until_free();
        // Newer kernels do not reuse an id whose own qgroup is there, which goes with the next commit.
        pool.used(old);
        pool.remount(sandbox);
        let (path, new) = pool.volume("b", 32 * MIB);
        let id = |limit: Limit| limit.number & u64::from(u32::MAX);
        assert_eq!(id(old), id(new), "or this test shows nothing");
        assert_ne!(old, new);
        assert!(pool.end(old));
        assert_near(fill(&path.join("file"), 64 * MIB), 32 * MIB);
        pool.unmount(sandbox);
    });
}

/// The bytes of a snapshot stay with the volume that wrote them; the snapshot has none of its own.
#[test]
fn a_snapshot_is_not_under_the_limit_of_its_volume() {
    privileged(|sandbox| {
        let pool = Pool::simple(sandbox);
        let (volume, limit) = pool.volume("a", 64 * MIB);
        fill(&volume.join("file"), 32 * MIB);
        let snapshot = pool.mount_point.join("snapshot");
        run(
            "btrfs",
            &["subvolume", "snapshot", volume.to_str().unwrap(), snapshot.to_str().unwrap()],
        );
        assert_eq!(fill(&snapshot.join("other"), 80 * MIB), 80 * MIB);
        let own = 32 * MIB..33 * MIB;
        assert!(own.contains(&pool.used(limit)));
        std::fs::remove_file(volume.join("file")).unwrap();
        assert!(own.contains(&pool.used(limit)));
        // Its volume goes before it: what it wrote is still there, but no limit is.
        pool.remove(&pool.mount_point, "a");
        pool.wait_until_free();
        poll("the limit ends", || pool.end(limit));
        assert_eq!(pool.state(limit), None);
        pool.remove(&pool.mount_point, "snapshot");
        pool.unmount(sandbox);
    });
}
