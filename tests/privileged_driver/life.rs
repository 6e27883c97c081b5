//! A volume as the CO sees it, and its whole life.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use orlop::csi::proto::{VolumeCapability, volume_capability::access_mode::Mode};
use tonic::{Code, Status};

use crate::client::{Client, Create, block, mount};
use crate::driver::{Driver, no_forks};
use crate::privileged::{Sandbox, can_grow_mounted_ext4, loops_below, mounts_below, poll};

pub(crate) const MIB: u64 = 1 << 20;

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Kind {
    Hostpath,
    Ext4,
    Xfs,
    /// Not among [`Kind::ALL`]: to the driver's node side it is what XFS is.
    Btrfs,
    Block,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Hostpath, Self::Ext4, Self::Xfs, Self::Block];

    /// The size at birth.
    pub(crate) const fn size(self) -> u64 {
        match self {
            Self::Hostpath | Self::Block => 8 * MIB,
            Self::Ext4 => 32 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Btrfs => 128 * MIB,
        }
    }

    /// The size after an expansion.
    pub(crate) const fn grown(self) -> u64 {
        self.size() + 24 * MIB
    }

    pub(crate) fn capability(self, mode: Mode) -> VolumeCapability {
        match self {
            Self::Hostpath | Self::Ext4 => mount("ext4", mode),
            Self::Xfs => mount("xfs", mode),
            Self::Btrfs => mount("btrfs", mode),
            Self::Block => block(mode),
        }
    }

    pub(crate) const fn backend(self) -> &'static str {
        match self {
            Self::Hostpath => "hostpath",
            Self::Ext4 | Self::Xfs | Self::Btrfs | Self::Block => "loop",
        }
    }

    pub(crate) fn is_filesystem_on_loop(self) -> bool {
        matches!(self, Self::Ext4 | Self::Xfs | Self::Btrfs)
    }

    /// Its filesystem grows under a mount.
    pub(crate) fn grows_mounted(self) -> bool {
        self != Self::Ext4 || can_grow_mounted_ext4()
    }
}

/// One volume, with the paths that kubelet would use for it.
#[derive(Debug)]
pub(crate) struct Life {
    sandbox: Sandbox,
    pub(crate) kind: Kind,
    pub(crate) create: Create,
    pub(crate) mode: Mode,
    /// Empty before [`Life::born`].
    pub(crate) id: String,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
}

impl Life {
    pub(crate) fn new(sandbox: &Sandbox, kind: Kind, name: &str) -> Self {
        let mode = Mode::SingleNodeMultiWriter;
        let dir = sandbox.make_dir(Path::new("kubelet").join(name));
        let create = Create {
            name: name.to_owned(),
            bytes: kind.size(),
            capability: kind.capability(mode),
            parameters: vec![("backend", kind.backend())],
        };
        Self {
            sandbox: sandbox.clone(),
            kind,
            create,
            mode,
            id: String::new(),
            staging: dir.join("staging"),
            target: dir.join("target"),
        }
    }

    pub(crate) fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self.create.capability = self.kind.capability(mode);
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.create.parameters.push((name, value));
        self
    }

    /// Another target path.
    pub(crate) fn other_target(&self, name: &str) -> PathBuf {
        self.target.with_file_name(name)
    }

    /// The volume's directory in the pool.
    pub(crate) fn dir(&self) -> PathBuf {
        let key = self.id.split('-').nth(2).unwrap();
        self.sandbox.path("pool/volumes").join(key)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir().join("disk.img")
    }

    pub(crate) fn born(&mut self, driver: &mut Driver) {
        let create = self.create.clone();
        self.id = driver.insist("create", |c| c.create(&create)).volume_id;
    }

    pub(crate) fn try_stage(&self, client: &Client) -> Result<(), Status> {
        client.stage(&self.id, &self.staging, &self.kind.capability(self.mode))
    }

    pub(crate) fn try_publish(&self, client: &Client, target: &Path) -> Result<(), Status> {
        let capability = self.kind.capability(self.mode);
        client.publish(&self.id, (&self.staging, target), &capability, false)
    }

    pub(crate) fn try_publish_readonly(&self, client: &Client, at: &Path) -> Result<(), Status> {
        client.publish(&self.id, (&self.staging, at), &self.kind.capability(self.mode), true)
    }

    /// Stages and publishes.
    pub(crate) fn up(&self, driver: &mut Driver) {
        driver.insist("stage", |c| self.try_stage(c));
        self.check_loops();
        driver.insist("publish", |c| self.try_publish(c, &self.target));
        self.check_loops();
    }

    /// Unpublishes and unstages.
    pub(crate) fn down(&self, driver: &mut Driver) {
        driver.insist("unpublish", |c| c.unpublish(&self.id, &self.target));
        assert!(!self.target.exists(), "unpublish removes the target path");
        driver.insist("unstage", |c| c.unstage(&self.id, &self.staging));
        assert_eq!(mounts_below(self.staging.parent().unwrap()), Vec::<PathBuf>::new());
    }

    pub(crate) fn gone(&self, driver: &mut Driver) {
        driver.insist("delete", |c| c.delete(&self.id));
    }

    /// Grows the volume and its filesystem, as far as it may while it is mounted.
    pub(crate) fn grow(&self, driver: &mut Driver) {
        let bytes = self.kind.grown();
        driver.insist("expand", |c| c.expand(&self.id, bytes));
        self.check_loops();
        let later = !self.kind.grows_mounted();
        driver.insist("node expand", |c| match c.node_expand(&self.id, &self.target, bytes) {
            Err(status) if later && status.code() == Code::FailedPrecondition => Ok(()),
            Ok(()) if later => Err(Status::internal("an ext4 grew without CAP_SYS_RESOURCE")),
            other => other,
        });
        self.check_loops();
    }

    /// The size that shows at the target path; a hostpath volume shows its pool's.
    pub(crate) fn seen_size(&self) -> u64 {
        match self.kind {
            Kind::Hostpath => self.create.bytes,
            Kind::Block => device_size(&self.target),
            Kind::Ext4 | Kind::Xfs | Kind::Btrfs => {
                let seen = nix::sys::statvfs::statvfs(&self.target).unwrap();
                seen.blocks() * seen.fragment_size()
            }
        }
    }

    /// What was added to the volume shows at the target path, but for what the filesystem takes of it.
    pub(crate) fn check_growth(&self, before: u64) {
        let (seen, added) = (self.seen_size(), self.kind.grown() - self.kind.size());
        let expected = match self.kind {
            Kind::Hostpath => before..=before,
            Kind::Block => before + added..=before + added,
            Kind::Ext4 | Kind::Xfs | Kind::Btrfs => before + added - 4 * MIB..=before + added,
        };
        assert!(expected.contains(&seen), "{:?} grew from {before} to {seen} bytes", self.kind);
    }

    /// At most one loop device is on the image, whatever happened.
    pub(crate) fn check_loops(&self) {
        let mut loops = loops_below(&self.dir());
        loops.retain(|found| !found.is_view);
        assert!(loops.len() <= 1, "two loop devices on one image: {loops:?}");
    }

    /// Everything that can happen to a volume, in the order of an ordinary life.
    pub(crate) fn whole(&mut self, driver: &mut Driver) {
        self.born(driver);
        self.up(driver);
        let before = self.seen_size();
        write(self.kind, &self.target, "written before the growth");
        self.grow(driver);
        assert_eq!(read(self.kind, &self.target), "written before the growth");
        self.down(driver);
        self.up(driver);
        self.check_growth(before);
        assert_eq!(read(self.kind, &self.target), "written before the growth");
        self.down(driver);
        self.gone(driver);
    }
}

pub(crate) fn device_size(path: &Path) -> u64 {
    use std::io::{Seek, SeekFrom};
    let _quiet = no_forks();
    File::open(path).unwrap().seek(SeekFrom::End(0)).unwrap()
}

/// Writes through a target path, and flushes.
pub(crate) fn try_write(kind: Kind, target: &Path, text: &str) -> std::io::Result<()> {
    let _quiet = no_forks();
    let mut options = OpenOptions::new();
    options.write(true);
    let file = match kind {
        Kind::Block => options.open(target)?,
        Kind::Hostpath | Kind::Ext4 | Kind::Xfs | Kind::Btrfs => {
            options.create(true).truncate(true).open(target.join("file"))?
        }
    };
    file.write_all_at(text.as_bytes(), 0)?;
    file.sync_all()
}

pub(crate) fn write(kind: Kind, target: &Path, text: &str) {
    try_write(kind, target, text).unwrap();
}

/// What [`write`] wrote: printable text at the beginning of the file or device.
pub(crate) fn read(kind: Kind, target: &Path) -> String {
    let _quiet = no_forks();
    let file = match kind {
        Kind::Block => File::open(target),
        Kind::Hostpath | Kind::Ext4 | Kind::Xfs | Kind::Btrfs => File::open(target.join("file")),
    };
    let mut content = [0; 64];
    let length = file.unwrap().read_at(&mut content, 0).unwrap();
    let text = content[..length].split(|byte| *byte == 0).next().unwrap();
    String::from_utf8(text.to_owned()).unwrap()
}

pub(crate) fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Nothing is left to be removed.
pub(crate) fn trash_is_empty(sandbox: &Sandbox) -> bool {
    is_empty(&sandbox.path("pool/trash"))
}

/// The pool is empty, the trash is emptied, nothing is mounted and nothing attached. A driver that dies while it
/// empties the trash is started again.
pub(crate) fn check_nothing_left(sandbox: &Sandbox, driver: &mut Driver) {
    check_nothing_left_in(sandbox, driver, &[sandbox.path("pool")]);
}

/// The same for several pools.
pub(crate) fn check_nothing_left_in(sandbox: &Sandbox, driver: &mut Driver, pools: &[PathBuf]) {
    poll("the pools are empty", || {
        if driver.is_dead() {
            driver.deaths += 1;
            driver.restart();
        }
        let is_empty = |pool: &PathBuf| {
            let names = ["incoming", "volumes", "snapshots", "groups", "trash"];
            names.iter().all(|name| is_empty(&pool.join(name)))
        };
        pools.iter().all(is_empty)
    });
    // Not a pool's own mount and loop device, where it has them.
    assert_eq!(mounts_below(&sandbox.path("kubelet")), Vec::<PathBuf>::new());
    poll("no loop device is left", || pools.iter().all(|pool| loops_below(pool).is_empty()));
}
