//! The whole state against the model, while nobody calls.

#![expect(clippy::disallowed_methods, reason = "what was kept is removed by hand")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use orlop::volume::Key;

use crate::driver::Driver;
use crate::filling::settle;
use crate::life::{Kind, MIB, is_empty};
use crate::managed::orlop;
use crate::privileged::{loops_below, mounts_below, poll, run};
use crate::soak_client::Actor;
use crate::soak_contended;
use crate::soak_model::{Kept, Volume};
use crate::soak_node::{differs, parts_differ};
use crate::soak_world::{PoolIn, World};

/// A driver measures its pools anew when it starts: what filesystems need to know their files moves a little.
const BLUR: u64 = 12 * MIB;

fn key(id: &str) -> String {
    id.split('-').nth(2).unwrap().to_owned()
}

fn names(dir: PathBuf) -> BTreeSet<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    std::fs::read_dir(dir).unwrap().map(|e| name(e).into_string().unwrap()).collect()
}

/// What exists, of all clients and of the names that they share.
struct Whole<'a> {
    world: Arc<World>,
    actors: &'a [Actor],
    /// Those of the shared names that exist now, with their sizes.
    shared: BTreeMap<String, u64>,
}

/// Compares everything that can be seen with what was acknowledged.
pub(crate) fn check(world: &Arc<World>, driver: &mut Driver, actors: &mut [Actor]) {
    world.count("(check)");
    for pool in PoolIn::ALL {
        let dir = pool.dir(&world.sandbox);
        poll("the trash is emptied", || is_empty(&dir.join("trash")) || driver.is_dead());
    }
    let listed = driver.client.volumes_in_pages(7).unwrap();
    let keys: BTreeSet<_> =
        soak_contended::names().map(|name| Key::of_name(name).to_string()).collect();
    let is_shared = |id: &String| keys.contains(&key(id));
    let shared =
        listed.iter().filter(|(id, _)| is_shared(id)).map(|(id, size)| (id.clone(), *size));
    let whole = Whole { world: Arc::clone(world), actors, shared: shared.collect() };
    whole.lists(driver, &listed);
    whole.directories();
    whole.node();
    whole.promises();
    for kept in actors.iter().flat_map(|actor| &actor.kept) {
        check_kept(world, kept);
    }
    for actor in actors.iter_mut() {
        for slot in 0..actor.slots.len() {
            actor.look_inside(slot);
        }
    }
}

/// Starts the driver again, without what was kept. What could be promised by the driver's memory is never more than what the records leave.
pub(crate) fn start_afresh(world: &World, driver: &mut Driver, actors: &mut [Actor]) {
    let before = PoolIn::ALL.map(|pool| driver.client.room_in(pool.name()).unwrap());
    for pool in PoolIn::ALL {
        settle(&pool.dir(&world.sandbox));
    }
    driver.restart();
    for (pool, before) in PoolIn::ALL.into_iter().zip(before) {
        let after = driver.client.room_in(pool.name()).unwrap();
        let is_right = before <= after + BLUR;
        assert!(is_right, "{pool:?} had room for {before}, and after a restart for {after}");
    }
    driver.kill();
    remove_kept(world, actors);
    driver.start_again(None);
}

/// Nothing exists any more: the room of all pools is as it was, but for what was kept, once the driver has measured them
/// again.
pub(crate) fn check_empty_rooms(driver: &Driver, actors: &[Actor], empty: [u64; 4]) {
    let room = |pool: PoolIn| {
        let kept = actors.iter().flat_map(|actor| &actor.kept).filter(|kept| kept.pool == pool);
        driver.client.room_in(pool.name()).unwrap() + kept.map(|kept| kept.size).sum::<u64>()
    };
    let is_back = || {
        let mut pools = PoolIn::ALL.into_iter().zip(empty);
        pools.all(|(pool, empty)| room(pool) + BLUR >= empty)
    };
    // It measures twice a minute.
    let is_right = (0..8_000).any(|_| is_back() || pause());
    let rooms = PoolIn::ALL.map(room);
    assert!(
        is_right,
        "the pools had room for {empty:?} when they were empty, and now for {rooms:?}"
    );
}

/// Removes by hand what deletions kept.
pub(crate) fn remove_kept(world: &World, actors: &mut [Actor]) {
    for kept in actors.iter_mut().flat_map(|actor| actor.kept.drain(..)) {
        let place = kept.pool.dir(&world.sandbox).join(&kept.place);
        let data = place.join("data");
        if kept.pool == PoolIn::Btrfs && data.exists() {
            run("btrfs", &["subvolume".as_ref(), "delete".as_ref(), data.as_os_str()]);
        }
        std::fs::remove_dir_all(place).unwrap();
    }
}

/// What a deletion kept is there.
fn check_kept(world: &World, kept: &Kept) {
    let place = kept.pool.dir(&world.sandbox).join(&kept.place);
    assert!(place.join("volume.json").exists(), "{kept:?} is not there");
    let differs = match kept.kind {
        Kind::Hostpath => differs(kept.kind, &place.join("data"), &kept.content),
        Kind::Block => parts_differ(&File::open(place.join("disk.img")).unwrap(), &kept.content),
        Kind::Ext4 | Kind::Xfs | Kind::Btrfs => {
            let length = place.join("disk.img").metadata().unwrap().len();
            (length != kept.size).then(|| format!("its image has {length} bytes"))
        }
    };
    assert_eq!(differs, None, "{kept:?}");
}

impl Whole<'_> {
    fn volumes(&self) -> impl Iterator<Item = &Volume> {
        let slots = self.actors.iter().flat_map(|actor| &actor.slots);
        slots.filter_map(|slot| slot.volume.as_ref())
    }

    fn lists(&self, driver: &Driver, listed: &BTreeMap<String, u64>) {
        let own = self.volumes().map(|volume| (volume.id.clone(), volume.size));
        let wanted: BTreeMap<String, u64> = own.chain(self.shared.clone()).collect();
        assert_eq!(*listed, wanted, "what is listed (left) is what was acknowledged (right)");
        let keys: BTreeSet<String> = self.shared.keys().map(|id| key(id)).collect();
        assert_eq!(
            keys.len(),
            self.shared.len(),
            "a shared name has one volume: {:?}",
            self.shared
        );
        let snapshots = self.actors.iter().flat_map(Actor::all_snapshots);
        let wanted: BTreeMap<_, _> = snapshots.map(|s| (s.id.clone(), s.of.clone())).collect();
        assert_eq!(driver.client.snapshots_in_pages(5).unwrap(), wanted);
        for id in listed.keys() {
            assert_eq!(driver.client.ills(id).unwrap(), Vec::<String>::new(), "{id} is well");
        }
    }

    /// Nothing else is in the pools than what exists and what was kept.
    fn directories(&self) {
        for pool in PoolIn::ALL {
            let dir = pool.dir(&self.world.sandbox);
            let ids = self.volumes().map(|volume| &volume.id).chain(self.shared.keys());
            let here = |id: &&String| self.world.pool_of(id) == pool;
            let wanted: BTreeSet<String> = ids.filter(here).map(|id| key(id)).collect();
            assert_eq!(names(dir.join("volumes")), wanted, "{pool:?}");
            let alone = self.actors.iter().flat_map(|actor| actor.snapshots.iter().flatten());
            let wanted: BTreeSet<String> =
                alone.map(|s| &s.id).filter(here).map(|id| key(id)).collect();
            assert_eq!(names(dir.join("snapshots")), wanted, "{pool:?}");
            let groups = self.actors.iter().filter_map(|actor| actor.group.as_ref());
            let groups = groups.map(|group| &group.told.group_snapshot_id);
            let wanted: BTreeSet<String> = groups.filter(here).map(|id| key(id)).collect();
            assert_eq!(names(dir.join("groups")), wanted, "{pool:?}");
            for grave in ["retained", "archive"] {
                let kept = self.actors.iter().flat_map(|actor| &actor.kept);
                let kept = kept.filter(|kept| kept.pool == pool);
                let place =
                    |kept: &Kept| kept.place.strip_prefix(grave)?.get(1..).map(str::to_owned);
                let wanted: BTreeSet<String> = kept.filter_map(place).collect();
                assert_eq!(names(dir.join(grave)), wanted, "{pool:?}: {grave}");
            }
            assert!(is_empty(&dir.join("incoming")), "{pool:?}: {:?}", names(dir.join("incoming")));
        }
        let marks = names(self.world.sandbox.path("root/state/frozen"));
        assert!(marks.is_empty(), "something is frozen: {marks:?}");
    }

    /// What is mounted and attached is what was staged and published.
    fn node(&self) {
        let sandbox = &self.world.sandbox;
        let mut wanted: Vec<PathBuf> = self.actors.iter().flat_map(Actor::mounts).collect();
        wanted.sort();
        let mut mounted = mounts_below(&sandbox.path("kubelet"));
        mounted.sort();
        assert_eq!(mounted, wanted, "what is mounted (left) is what was published (right)");
        let is_image = |volume: &&Volume| volume.kind() != Kind::Hostpath && volume.is_used();
        let image = |volume: &Volume| {
            let dir = volume.pool.dir(sandbox).join("volumes").join(key(&volume.id));
            let read_only = volume.targets.iter().filter(|at| **at == Some(true)).count();
            let views = if volume.kind() == Kind::Block { read_only } else { 0 };
            (dir.join("disk.img"), (1, views))
        };
        let wanted: BTreeMap<PathBuf, (usize, usize)> =
            self.volumes().filter(is_image).map(image).collect();
        let mut found: BTreeMap<PathBuf, (usize, usize)> = BTreeMap::new();
        let mut look = || {
            found.clear();
            for device in PoolIn::ALL.iter().flat_map(|pool| loops_below(&pool.dir(sandbox))) {
                let (own, views) = found.entry(device.file).or_default();
                if device.is_view { *views += 1 } else { *own += 1 }
            }
            // A driver that is killed in the middle of an unpublish leaves a view, until the volume is unstaged.
            let is_right = |(found, wanted): (&(usize, usize), &(usize, usize))| {
                found.0 == wanted.0 && found.1 >= wanted.1
            };
            found.keys().eq(wanted.keys()) && found.values().zip(wanted.values()).all(is_right)
        };
        // One with AUTOCLEAR goes a moment after its last user.
        let is_right = (0..200).any(|_| look() || pause());
        assert!(is_right, "what is attached is {found:?}; what is used, {wanted:?}");
    }

    /// Everything that exists is promised its size, and nothing else is.
    fn promises(&self) {
        let sandbox = &self.world.sandbox;
        let told = orlop(sandbox, &["pool", "list", "--output", "json"]).unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        for line in told.as_array().unwrap() {
            let pool = PoolIn::ALL.into_iter().find(|pool| line["name"] == pool.name()).unwrap();
            let promised = line["promisedBytes"].as_u64().unwrap();
            let own = self.volumes().filter(|v| v.pool == pool).map(|v| v.size);
            let shared = self.shared.iter().filter(|(id, _)| self.world.pool_of(id) == pool);
            let kept = self.actors.iter().flat_map(|actor| &actor.kept);
            let kept = kept.filter(|kept| kept.pool == pool).map(|kept| kept.size);
            let sizes: u64 = own.chain(shared.map(|(_, size)| *size)).chain(kept).sum();
            let wanted = sizes + charges(&pool.dir(sandbox));
            // A subvolume that began with a snapshot keeps what that was charged, when it has gone.
            let is_right = promised == wanted || (pool == PoolIn::Btrfs && promised > wanted);
            assert!(is_right, "{pool:?} has promised {promised}, by the model {wanted}");
        }
        if let Err(told) = orlop(sandbox, &["pool", "check"]) {
            panic!("orlop pool check found something:\n{told}");
        }
    }
}

fn pause() -> bool {
    std::thread::park_timeout(std::time::Duration::from_millis(5));
    false
}

/// What the records of all snapshots in a pool say that they are charged.
fn charges(pool: &std::path::Path) -> u64 {
    let mut sum = 0;
    let mut dirs: Vec<PathBuf> = vec![pool.join("snapshots"), pool.join("groups")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_name() == "snapshot.json" {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                let record: serde_json::Value = serde_json::from_str(&text).unwrap();
                sum += record["chargeBytes"].as_u64().unwrap();
            } else if entry.file_name() != "data" && entry.path().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    sum
}
