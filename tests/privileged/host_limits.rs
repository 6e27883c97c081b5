//! What holds a directory of a btrfs to its size: simple quotas, and plain qgroups.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use orlop::host::Limits;
use orlop::host::linux::LinuxHost;
use orlop::volume::LimitKind;

use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

const MIB: u64 = 1 << 20;

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
        let pool = Self { host: LinuxHost::new(), mount_point };
        pool.mount(sandbox);
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

    fn root(&self) -> File {
        File::open(&self.mount_point).unwrap()
    }

    fn kind(&self) -> Option<LimitKind> {
        self.host.limit_kind(self.root().as_fd()).unwrap()
    }
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
        pool.unmount(sandbox);
        pool.mount(sandbox);
        assert_eq!(pool.kind(), Some(LimitKind::SimpleQuota));
        pool.unmount(sandbox);
    });
}

#[test]
fn plain_quotas_that_are_on_stay_plain() {
    privileged(|sandbox| {
        let pool = Pool::new(sandbox);
        run("btrfs", &["quota", "enable", pool.mount_point.to_str().unwrap()]);
        assert_eq!(pool.kind(), Some(LimitKind::Qgroup));
        let kind = pool.host.enable_quota(pool.root().as_fd()).unwrap();
        assert_eq!(kind, Some(LimitKind::Qgroup));
        run("btrfs", &["quota", "disable", pool.mount_point.to_str().unwrap()]);
        assert_eq!(pool.kind(), None);
        pool.unmount(sandbox);
    });
}
