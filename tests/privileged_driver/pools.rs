//! Pools on filesystems of their own.

use std::fs::File;
use std::os::fd::AsFd;

use orlop::host::Limits;
use orlop::host::linux::LinuxHost;
use orlop::volume::LimitKind;

use crate::driver::Driver;
use crate::life::{MIB, check_nothing_left};
use crate::privileged::{Sandbox, run};

/// A filesystem that a pool can lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PoolOn {
    Ext4,
    Xfs,
    Btrfs,
}

impl PoolOn {
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Blocks can be shared.
    pub(crate) fn shares(self) -> bool {
        self != Self::Ext4
    }

    /// Makes the filesystem and mounts it where the driver's pool will be.
    pub(crate) fn mount(self, sandbox: &Sandbox, size: u64) {
        self.mount_as(sandbox, size, &[], "loop");
    }

    /// The same, so that it holds directories to their size.
    pub(crate) fn mount_with_limits(self, sandbox: &Sandbox, size: u64) {
        match self {
            Self::Ext4 => {
                self.mount_as(sandbox, size, &["-O", "quota,project"], "loop,prjquota");
            }
            Self::Xfs => self.mount_as(sandbox, size, &[], "loop,prjquota"),
            Self::Btrfs => {
                self.mount(sandbox, size);
                let root = File::open(sandbox.path("pool")).unwrap();
                let kind = LinuxHost::new().enable_quota(root.as_fd()).unwrap();
                assert_eq!(kind, Some(LimitKind::SimpleQuota));
            }
        }
    }

    fn mount_as(self, sandbox: &Sandbox, size: u64, features: &[&str], options: &str) {
        let image = sandbox.path("pool.img");
        File::create(&image).unwrap().set_len(size * MIB).unwrap();
        let (pool, image) = (sandbox.make_dir("pool"), image.to_str().unwrap());
        let force = if self == Self::Ext4 { "-F" } else { "-f" };
        run(&format!("mkfs.{}", self.name()), &[&["-q", force], features, &[image]].concat());
        run("mount", &["-o", options, image, pool.to_str().unwrap()]);
        if self == Self::Ext4 {
            run("rmdir", &[pool.join("lost+found")]);
        }
    }
}

/// Nothing is left of any volume, and the pool is unmounted.
pub(crate) fn end(sandbox: &Sandbox, mut driver: Driver) {
    check_nothing_left(sandbox, &mut driver);
    drop(driver);
    run("umount", &[sandbox.path("pool")]);
}
