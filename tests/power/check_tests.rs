//! The look at a disk finds what is wrong there. Images and snapshots are files like others, so this needs no root.

#![expect(clippy::disallowed_methods, reason = "makes a disk as a power cut could leave it")]

use std::path::{Path, PathBuf};

use crate::check::faults;
use crate::ledger::{Event, OnDelete, Op, Pool, Spec, Told};
use crate::life::Kind;
use crate::node::Node;
use crate::privileged::Sandbox;
use crate::world::World;

const BYTES: u64 = 1 << 20;
/// Of the volume.
const KEY: &str = "00112233445566778899aabbccddeeff";
/// Of the snapshot.
const OTHER: &str = "ffeeddccbbaa99887766554433221100";

fn record(name: &str, key: &str) -> serde_json::Value {
    serde_json::json!({
        "name": name, "key": key, "generation": "01020304", "sizeBytes": BYTES,
        "current": { "sizeBytes": BYTES, "onDelete": "delete" },
    })
}

fn put(directory: &Path, name: &str, record: &serde_json::Value) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join(name), record.to_string()).unwrap();
    std::fs::File::create(directory.join("disk.img")).unwrap().set_len(BYTES).unwrap();
}

/// A pool with a volume and a snapshot.
fn pool(node: &Node) -> PathBuf {
    let pool = node.pool(Pool::Ext4);
    put(&pool.join("volumes").join(KEY), "volume.json", &record("ext4-0-0", KEY));
    put(&pool.join("snapshots").join(OTHER), "snapshot.json", &record("ext4-0-1", OTHER));
    std::fs::write(pool.join("pool.json"), "{}").unwrap();
    pool
}

fn hear(world: &mut World, op: Op, id: Option<&str>) {
    let client = "ext4-0".to_owned();
    world.hear(&Event::Begin { client: client.clone(), op });
    if let Some(id) = id {
        world.hear(&Event::Done { client, told: Told { id: id.to_owned(), bytes: BYTES } });
    }
}

fn volume() -> String {
    "ext4-0-0".to_owned()
}

/// What [`pool`] has was acknowledged.
fn world() -> World {
    let mut world = World::default();
    world.hear(&Event::Ready { pools: [Pool::Ext4].into() });
    let spec = Spec { pool: Pool::Ext4, kind: Kind::Block, thick: false, bytes: BYTES };
    let create = Op::Create { volume: volume(), spec, source: None };
    hear(&mut world, create, Some(&format!("v-12345678-{KEY}-01020304")));
    let snapshot = Op::Snapshot { snapshot: "ext4-0-1".to_owned(), volume: volume() };
    hear(&mut world, snapshot, Some(&format!("s-12345678-{OTHER}-01020304")));
    world
}

/// Damages a pool.
type Damage<'a> = &'a dyn Fn(&Path);

fn found(world: &World, damage: impl FnOnce(&Path)) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let node = Node { sandbox: Sandbox { dir: directory.path().to_owned() } };
    damage(&pool(&node));
    faults(&node, world, Pool::Ext4)
}

#[test]
fn a_disk_that_has_lost_something_is_told_from_one_that_has_not() {
    assert_eq!(found(&world(), |_| {}), Vec::<String>::new());
    let volume = |pool: &Path| pool.join("volumes").join(KEY);
    let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
    let damages: [(&str, Damage<'_>); 9] = [
        ("is gone", &|pool| std::fs::remove_dir_all(volume(pool)).unwrap()),
        ("is gone", &|pool| std::fs::remove_dir_all(pool.join("snapshots")).unwrap()),
        ("pool.json is not there", &|pool| std::fs::remove_file(pool.join("pool.json")).unwrap()),
        ("EOF", &|pool| write(volume(pool).join("volume.json"), "")),
        ("bytes", &|pool| write(volume(pool).join("disk.img"), "short")),
        ("volume.json and", &|pool| std::fs::remove_file(volume(pool).join("disk.img")).unwrap()),
        ("volumes/x", &|pool| write(pool.join("volumes/x"), "")),
        ("is not v-", &|pool| {
            let mut other = record("ext4-0-0", KEY);
            other["generation"] = "0a0b0c0d".into();
            put(&volume(pool), "volume.json", &other);
        }),
        ("onDelete", &|pool| {
            let mut other = record("ext4-0-0", KEY);
            other["current"]["onDelete"] = "retain".into();
            put(&volume(pool), "volume.json", &other);
        }),
    ];
    for (told, damage) in damages {
        let faults = found(&world(), damage);
        assert!(faults.iter().any(|fault| fault.contains(told)), "{told}: {faults:?}");
    }
}

#[test]
fn what_was_under_way_may_be_done_or_not() {
    let retain = Op::Modify { volume: volume(), keep: OnDelete::Retain };
    for (op, may_be_gone) in [(Op::Delete { volume: volume() }, true), (retain, false)] {
        let mut world = world();
        hear(&mut world, op, None);
        assert_eq!(found(&world, |_| {}), Vec::<String>::new());
        let gone =
            found(&world, |pool| std::fs::remove_dir_all(pool.join("volumes").join(KEY)).unwrap());
        assert_eq!(gone.is_empty(), may_be_gone, "{gone:?}");
    }
    let mut world = world();
    hear(&mut world, Op::Delete { volume: volume() }, Some(""));
    assert_eq!(found(&world, |_| {}).len(), 1, "what is deleted stays deleted");
}
