//! The requests of which `steps` tries every step.

#![expect(clippy::disallowed_methods, reason = "prepares volumes as a pod or an operator does")]

use orlop::csi::proto::volume_capability::access_mode::Mode;

use crate::client_snapshots::{from_snapshot, from_volume};
use crate::inline::Pod;
use crate::life::{Kind, read, write};
use crate::pools::PoolOn;
use crate::privileged::run;
use crate::steps::World;

/// A request, and what comes before and after.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) pool: PoolOn,
    /// The pool holds directories to their size.
    pub(crate) limits: bool,
    /// The size of the pool's filesystem, in MiB.
    pub(crate) size: u64,
    /// Flags of the driver.
    pub(crate) flags: &'static [&'static str],
    pub(crate) kind: Kind,
    /// Parameters of the volumes.
    pub(crate) with: &'static [(&'static str, &'static str)],
    pub(crate) before: fn(&mut World),
    pub(crate) request: fn(&mut World),
    /// Looks at what came of it, and takes it away.
    pub(crate) after: fn(&mut World),
}

const fn case(name: &'static str, pool: PoolOn, kind: Kind, steps: [fn(&mut World); 3]) -> Case {
    let [before, request, after] = steps;
    Case {
        name,
        pool,
        limits: false,
        size: 1300,
        flags: &[],
        kind,
        with: &[],
        before,
        request,
        after,
    }
}

impl Case {
    const fn limited(self) -> Self {
        Self { limits: true, ..self }
    }

    const fn with(self, with: &'static [(&'static str, &'static str)]) -> Self {
        Self { with, ..self }
    }

    const fn with_flags(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }
}

use Kind::{Block, Btrfs as BtrfsImage, Ext4 as Ext4Image, Hostpath, Xfs as XfsImage};
use PoolOn::{Btrfs, Ext4, Xfs};

const CREATE: [fn(&mut World); 3] = [nothing, create, use_and_delete];
const DELETE: [fn(&mut World); 3] = [used, delete, nothing];
const EXPAND: [fn(&mut World); 3] = [in_use, expand, grown];
const NODE: [fn(&mut World); 3] = [created, up_and_down, delete];
const SNAPSHOT: [fn(&mut World); 3] = [in_use, snapshot, restored_and_gone];
const SNAPSHOT_IDLE: [fn(&mut World); 3] = [used, snapshot, restored_and_gone];
const RESTORE: [fn(&mut World); 3] = [with_snapshot, restore, copy_is_right];
const CLONE: [fn(&mut World); 3] = [used, clone, copy_is_right];
const GROUP: [fn(&mut World); 3] = [used, group, group_is_there];

/// All of them.
pub(crate) const CASES: &[Case] = &[
    // First, because what could not be removed waits for a sweep.
    case("inline-directory", Btrfs, Hostpath, [nothing, inline, nothing]).limited(),
    case("inline-ext4", Xfs, Ext4Image, [nothing, inline, nothing]),
    case("create-directory-btrfs", Btrfs, Hostpath, CREATE).limited(),
    case("create-directory-ext4", Ext4, Hostpath, CREATE),
    case("create-ext4", Ext4, Ext4Image, CREATE),
    case("create-ext4-thick-btrfs", Btrfs, Ext4Image, CREATE).with(&[("allocation", "thick")]),
    case("create-xfs", Xfs, XfsImage, CREATE),
    case("create-btrfs", Xfs, BtrfsImage, CREATE),
    case("create-block", Ext4, Block, CREATE),
    case("delete-directory-btrfs", Btrfs, Hostpath, DELETE).limited(),
    case("delete-image", Xfs, Ext4Image, DELETE),
    case("wipe-directory", Ext4, Hostpath, DELETE).with(&[("onDelete", "wipe")]),
    case("wipe-block", Xfs, Block, DELETE).with(&[("onDelete", "wipe")]),
    case("delete-sealed", Ext4, Hostpath, [sealed, delete, nothing]),
    case("retain", Xfs, Hostpath, [used, delete, kept]).with(&[("onDelete", "retain")]),
    case("archive", Ext4, Block, [used, delete, kept]).with(&[("onDelete", "archive")]),
    case("modify", Ext4, Hostpath, [used, modify, modified]),
    case("attach", Ext4, Block, [created, attach, delete]).with_flags(&["--attach"]),
    case("expand-directory-btrfs", Btrfs, Hostpath, EXPAND).limited(),
    case("expand-ext4", Ext4, Ext4Image, EXPAND),
    case("restage-grown-ext4", Ext4, Ext4Image, [expanded, restage, grown]),
    case("expand-xfs", Xfs, XfsImage, EXPAND),
    case("expand-block-thick", Btrfs, Block, EXPAND).with(&[("allocation", "thick")]),
    case("node-directory", Ext4, Hostpath, NODE),
    case("node-ext4", Btrfs, Ext4Image, NODE),
    case("node-block", Xfs, Block, NODE),
    case("node-ext4-with-errors", Xfs, Ext4Image, [with_errors, up_and_down, delete]),
    case("snapshot-directory-btrfs", Btrfs, Hostpath, SNAPSHOT).limited(),
    case("snapshot-directory-ext4", Ext4, Hostpath, SNAPSHOT_IDLE),
    case("snapshot-ext4-on-btrfs", Btrfs, Ext4Image, SNAPSHOT),
    case("snapshot-xfs", Xfs, XfsImage, SNAPSHOT),
    case("snapshot-block", Xfs, Block, SNAPSHOT),
    case("snapshot-block-on-ext4", Ext4, Block, SNAPSHOT_IDLE),
    case("restore-directory-btrfs", Btrfs, Hostpath, RESTORE).limited(),
    case("restore-ext4", Xfs, Ext4Image, RESTORE),
    case("restore-xfs", Xfs, XfsImage, RESTORE),
    case("clone-directory-xfs", Xfs, Hostpath, CLONE),
    case("clone-ext4-on-ext4", Ext4, Ext4Image, CLONE),
    case("clone-btrfs", Btrfs, BtrfsImage, CLONE),
    case("group", Btrfs, Block, GROUP),
    case("group-directories", Btrfs, Hostpath, GROUP).limited(),
    case("delete-snapshot", Btrfs, Hostpath, [with_snapshot, delete_snapshot, delete]).limited(),
    case("delete-group", Xfs, Block, [with_group, delete_group, delete]),
];

fn nothing(_world: &mut World) {}

fn create(world: &mut World) {
    world.life.born(&mut world.driver);
}

fn created(world: &mut World) {
    create(world);
}

/// A volume that a pod has.
fn in_use(world: &mut World) {
    create(world);
    world.life.up(&mut world.driver);
    write(world.life.kind, &world.life.target, "one");
}

/// A volume that a pod had.
fn used(world: &mut World) {
    in_use(world);
    world.life.down(&mut world.driver);
}

fn use_and_delete(world: &mut World) {
    let one = std::slice::from_ref(&world.life.id);
    assert_eq!(world.driver.client.volumes(), one, "one of that name");
    world.life.up(&mut world.driver);
    write(world.life.kind, &world.life.target, "two");
    assert_eq!(read(world.life.kind, &world.life.target), "two");
    world.life.down(&mut world.driver);
    delete(world);
}

fn delete(world: &mut World) {
    world.life.gone(&mut world.driver);
}

/// With files that root cannot remove just so.
fn sealed(world: &mut World) {
    used(world);
    run("chattr", &["+i", world.life.dir().join("data/file").to_str().unwrap()]);
}

/// What was retained or archived has its contents, and is nobody's volume.
fn kept(world: &mut World) {
    assert_eq!(world.driver.client.volumes(), Vec::<String>::new());
    let mut graves = Vec::new();
    for place in ["retained", "archive"] {
        let entries = std::fs::read_dir(world.sandbox.path("pool").join(place)).unwrap();
        graves.extend(entries.map(|entry| entry.unwrap().path()));
    }
    assert_eq!(graves.len(), 1, "{graves:?}");
    let text = match world.life.kind {
        Hostpath => std::fs::read(graves[0].join("data/file")).unwrap(),
        Block | Ext4Image | XfsImage | BtrfsImage => {
            std::fs::read(graves[0].join("disk.img")).unwrap()
        }
    };
    assert!(text.starts_with(b"one"));
    std::fs::remove_dir_all(&graves[0]).unwrap();
    // It counts what it had in the pool until it looks again.
    world.driver.restart();
}

fn modify(world: &mut World) {
    let id = world.life.id.clone();
    world.driver.insist("modify", |c| c.modify(&id, "onDelete", "archive"));
}

fn modified(world: &mut World) {
    delete(world);
    kept(world);
}

fn attach(world: &mut World) {
    let (id, kind) = (world.life.id.clone(), world.life.kind);
    let capability = kind.capability(Mode::SingleNodeMultiWriter);
    world.driver.insist("attach", |c| c.attach(&id, &capability, false));
    world.driver.insist("detach", |c| c.detach(&id));
}

fn expand(world: &mut World) {
    world.before = world.life.seen_size();
    world.life.grow(&mut world.driver);
}

fn expanded(world: &mut World) {
    in_use(world);
    expand(world);
}

/// What could not grow under its mount grows here.
fn restage(world: &mut World) {
    world.life.down(&mut world.driver);
    world.life.up(&mut world.driver);
}

fn grown(world: &mut World) {
    let life = &world.life;
    assert_eq!(read(life.kind, &life.target), "one");
    life.down(&mut world.driver);
    life.up(&mut world.driver);
    life.check_growth(world.before);
    assert_eq!(read(life.kind, &life.target), "one");
    life.down(&mut world.driver);
    delete(world);
}

/// Also once for reading.
fn up_and_down(world: &mut World) {
    let life = &world.life;
    life.up(&mut world.driver);
    let reader = life.other_target("reader");
    world.driver.insist("publish", |c| life.try_publish_readonly(c, &reader));
    write(life.kind, &life.target, "one");
    assert_eq!(read(life.kind, &reader), "one");
    world.driver.insist("unpublish", |c| c.unpublish(&life.id, &reader));
    life.down(&mut world.driver);
}

/// Its superblock says that errors were found.
fn with_errors(world: &mut World) {
    create(world);
    run("tune2fs", &["-E", "force_fsck", world.life.image().to_str().unwrap()]);
}

fn inline(world: &mut World) {
    let number = u32::try_from(world.number).unwrap();
    let pod = Pod::new(&world.sandbox, world.life.kind, number);
    pod.up(&mut world.driver);
    write(world.life.kind, pod.target(), "of the pod");
    assert_eq!(read(world.life.kind, pod.target()), "of the pod");
    pod.down(&mut world.driver);
    pod.remove_directory();
}

fn snapshot(world: &mut World) {
    let (id, name) = (world.life.id.clone(), format!("s-{}", world.number));
    let taken = world.driver.insist("snapshot", |c| c.snapshot(&name, &id));
    world.snapshot = taken.snapshot_id;
}

fn with_snapshot(world: &mut World) {
    used(world);
    snapshot(world);
}

fn delete_snapshot(world: &mut World) {
    let id = world.snapshot.clone();
    world.driver.insist("delete the snapshot", |c| c.delete_snapshot(&id));
}

fn restore(world: &mut World) {
    let (create, from) = (world.copy.create.clone(), from_snapshot(&world.snapshot));
    let made = world.driver.insist("restore", |c| c.create_from(&create, from.clone()));
    world.copy.id = made.volume_id;
}

fn clone(world: &mut World) {
    let (create, from) = (world.copy.create.clone(), from_volume(&world.life.id));
    let made = world.driver.insist("clone", |c| c.create_from(&create, from.clone()));
    world.copy.id = made.volume_id;
}

/// The copy shows what was there, and is a volume of its own.
fn copy_is_right(world: &mut World) {
    let copy = &world.copy;
    copy.up(&mut world.driver);
    assert_eq!(read(copy.kind, &copy.target), "one");
    write(copy.kind, &copy.target, "copy");
    copy.down(&mut world.driver);
    copy.gone(&mut world.driver);
    if !world.snapshot.is_empty() {
        delete_snapshot(world);
    }
    delete(world);
}

/// There is one snapshot, of what was there.
fn restored_and_gone(world: &mut World) {
    assert_eq!(world.driver.client.snapshots().len(), 1);
    if world.life.target.exists() {
        assert_eq!(read(world.life.kind, &world.life.target), "one");
        write(world.life.kind, &world.life.target, "later");
        world.life.down(&mut world.driver);
    }
    restore(world);
    copy_is_right(world);
}

fn group(world: &mut World) {
    let (id, name) = (world.life.id.clone(), format!("g-{}", world.number));
    world.group = Some(world.driver.insist("group", |c| c.group(&name, &[&id])));
}

fn with_group(world: &mut World) {
    used(world);
    group(world);
}

fn delete_group(world: &mut World) {
    let group = world.group.take().unwrap();
    world.driver.insist("delete the group", |c| c.delete_group(&group));
}

fn group_is_there(world: &mut World) {
    assert_eq!(world.driver.client.snapshots().len(), 1);
    delete_group(world);
    delete(world);
}
