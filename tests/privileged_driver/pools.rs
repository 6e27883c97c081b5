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

    /// The same, so that it holds directories to their size.
    pub(crate) fn mount_with_limits(self, sandbox: &Sandbox, size: u64) {
        let image = sandbox.path("pool.img");
        File::create(&image).unwrap().set_len(size * MIB).unwrap();
        let (pool, image) = (sandbox.make_dir("pool"), image.to_str().unwrap());
        match self {
            Self::Ext4 => run("mkfs.ext4", &["-q", "-F", "-O", "quota,project", image]),
            Self::Xfs => run("mkfs.xfs", &["-q", "-f", image]),
            Self::Btrfs => run("mkfs.btrfs", &["-q", "-f", image]),
        };
        let options = if self == Self::Btrfs { "loop" } else { "loop,prjquota" };
        run("mount", &["-o", options, image, pool.to_str().unwrap()]);
        match self {
            Self::Ext4 => drop(run("rmdir", &[pool.join("lost+found")])),
            Self::Xfs => {}
            Self::Btrfs => {
                let root = File::open(pool).unwrap();
                let kind = LinuxHost::new().enable_quota(root.as_fd()).unwrap();
                assert_eq!(kind, Some(LimitKind::SimpleQuota));
            }
        }
    }

    /// Makes the filesystem and mounts it where the driver's pool will be.
    pub(crate) fn mount(self, sandbox: &Sandbox, size: u64) {
        let image = sandbox.path("pool.img");
        File::create(&image).unwrap().set_len(size * MIB).unwrap();
        let pool = sandbox.make_dir("pool");
        let force = if self == Self::Ext4 { "-F" } else { "-f" };
        run(&format!("mkfs.{}", self.name()), &["-q", force, image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), pool.to_str().unwrap()]);
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
