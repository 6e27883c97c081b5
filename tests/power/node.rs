//! The guest as a node: its disks, its pools, its driver.
//!
//! The disks are made on the host and outlive the guest. The driver's root directory, kubelet's directory and a pool are on
//! the ext4 one, as on a node with one disk; the managed pool's image is there as well.

#![expect(clippy::disallowed_methods, reason = "mounts disks and writes the configuration")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::Client;
use crate::driver::Driver;
use crate::ledger::{Pool, Spec};
use crate::life::{Kind, Life, MIB};
use crate::privileged::{Sandbox, run};

/// The managed pool's image, in MiB. It does not grow here, for the reason that `choice` has for XFS.
const MANAGED: u64 = 400;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) sandbox: Sandbox,
}

impl Node {
    /// Mounts the disks; `is_new` until the driver was ready once.
    pub(crate) fn new(is_new: bool) -> Self {
        let node = Self { sandbox: Sandbox { dir: "/tmp/node".into() } };
        std::fs::create_dir(node.sandbox.dir()).unwrap();
        node.mount("/dev/vda", "", "prjquota");
        node.mount("/dev/vdb", "xfs", "prjquota");
        node.mount("/dev/vdc", "btrfs", "defaults");
        if is_new {
            run("btrfs", &["quota", "enable", node.sandbox.path("btrfs").to_str().unwrap()]);
        }
        node.configure();
        node
    }

    fn mount(&self, disk: &str, place: &str, options: &str) {
        // What is mounted below the ext4 disk has its directory there.
        let place = self.sandbox.make_dir(place);
        run("mount", &["-o", options, disk, place.to_str().unwrap()]);
    }

    /// Unmounts what was mounted, pools and all.
    pub(crate) fn end(&self) {
        for place in ["root/pools/managed", "btrfs", "xfs", ""] {
            run("umount", &[self.sandbox.path(place)]);
        }
    }

    fn configure(&self) {
        let mut text = String::new();
        for pool in Pool::ALL {
            let (name, place) = (pool.name(), self.pool(pool));
            write!(text, "[[pool]]\nname = {name:?}\nreserve = \"0\"\n").unwrap();
            match pool {
                Pool::Managed => {
                    writeln!(text, "create = {{ size = \"{MANAGED}MiB\", filesystem = \"xfs\" }}")
                }
                Pool::Ext4 | Pool::Xfs | Pool::Btrfs => writeln!(text, "path = {place:?}"),
            }
            .unwrap();
        }
        std::fs::write(self.sandbox.path("orlop.toml"), text).unwrap();
    }

    /// The directory of a pool.
    pub(crate) fn pool(&self, pool: Pool) -> PathBuf {
        self.sandbox.path(match pool {
            Pool::Ext4 => "pool",
            Pool::Xfs => "xfs/pool",
            Pool::Btrfs => "btrfs/pool",
            Pool::Managed => "root/pools/managed",
        })
    }

    pub(crate) fn start_driver(&self) -> Driver {
        Driver::start_configured(&self.sandbox, None)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.sandbox.path("csi.sock"))
    }

    /// A volume, with the paths that kubelet uses for it.
    pub(crate) fn life(&self, spec: &Spec, name: &str, id: &str) -> Life {
        let mut life = Life::new(&self.sandbox, spec.kind, name).with("pool", spec.pool.name());
        if spec.thick {
            life = life.with("allocation", "thick");
        }
        life.create.bytes = spec.bytes;
        id.clone_into(&mut life.id);
        life
    }

    /// `orlop pool check`, of these pools; what it complained of.
    pub(crate) fn check_pools(&self, pools: impl IntoIterator<Item = Pool>) -> Vec<String> {
        let check = |pool: Pool| {
            let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
                .args(["pool", "check", pool.name(), "--config"])
                .arg(self.sandbox.path("orlop.toml"))
                .arg("--root-dir")
                .arg(self.sandbox.path("root"))
                .output()
                .unwrap();
            let told = [output.stdout, output.stderr]
                .map(|text| String::from_utf8_lossy(&text).into_owned());
            (!output.status.success()).then(|| told.concat())
        };
        pools.into_iter().filter_map(check).collect()
    }
}

/// The smallest size of a kind that is used here, in bytes.
pub(crate) const fn smallest(kind: Kind) -> u64 {
    match kind {
        Kind::Hostpath | Kind::Block => 2 * MIB,
        Kind::Ext4 => 16 * MIB,
        Kind::Xfs => 300 * MIB,
        Kind::Btrfs => 256 * MIB,
    }
}

/// The key of a directory below `volumes/` and the like.
pub(crate) fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The names in a directory; none where there is none.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
