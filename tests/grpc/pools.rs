//! Pools that are away, records that are damaged, and names that are hostile.

use std::io::Write;
use std::path::Path;

use tonic::Code;

use super::common::Machine;
use super::driver::{Driver, GIB, HOSTPATH, KINDS, LOOP, map, range, refused};

#[expect(clippy::disallowed_methods, reason = "a test takes a pool away as an operator would")]
fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_away_is_unavailable_and_comes_back_by_itself() {
    let driver = Driver::start().await;
    let [staging, target, other] = ["staging", "target", "other"].map(|n| driver.machine.path(n));
    let (pool, away) = (driver.machine.pool("default"), driver.machine.path("away"));
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
        rename(&pool, &away);
        for (what, code) in [
            ("delete", refused("delete", driver.delete(&id).await)),
            ("get", refused("get", driver.get(&id).await)),
            ("expand", refused("expand", driver.expand(&id, range(2 * GIB, 0)).await)),
            ("stage", refused("stage", driver.stage(&id, &other, kind.shared()).await)),
            ("create", refused("create", driver.create(kind.create("pvc")).await)),
            ("create", refused("create", driver.create(kind.create("new")).await)),
            ("stats", refused("stats", driver.stats(&id, &target).await)),
            (
                "node expand",
                refused("node expand", driver.node_expand(&id, &target, range(0, 0)).await),
            ),
        ] {
            assert_eq!(code, Code::Unavailable, "{what}");
        }
        assert!(!pool.exists(), "a known pool is never made anew");
        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.assert_clean();
        rename(&away, &pool);
        driver.get(&id).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_away_does_not_stop_the_others() {
    let driver = Driver::start_on(Machine::new(), &["one", "two"], true).await;
    let mut in_two = HOSTPATH.create("in-two");
    in_two.parameters.extend(map(&[("pool", "two")]));
    let mut in_one = HOSTPATH.create("in-one");
    in_one.parameters.extend(map(&[("pool", "one")]));
    let first = driver.create(in_one).await.unwrap().volume_id;
    let second = driver.create(in_two.clone()).await.unwrap().volume_id;
    rename(&driver.machine.pool("one"), &driver.machine.path("away"));
    assert_eq!(refused("away", driver.delete(&first).await), Code::Unavailable);
    // It could exist in the pool that is away, unless the class names one that is here.
    let anywhere = driver.create(HOSTPATH.create("new")).await;
    assert_eq!(refused("any pool", anywhere), Code::Unavailable);
    in_two.name = "new".to_owned();
    let third = driver.create(in_two).await.unwrap().volume_id;
    for id in [&second, &third] {
        driver.delete(id).await.unwrap();
    }
    rename(&driver.machine.path("away"), &driver.machine.pool("one"));
    driver.delete(&first).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_harms_only_itself() {
    let mut driver = Driver::start().await;
    let good = driver.make(HOSTPATH, "good").await;
    let bad = driver.make(LOOP, "bad").await;
    let staging = driver.machine.path("staging");
    driver.stage(&bad, &staging, LOOP.shared()).await.unwrap();
    let key = bad.split('-').nth(2).unwrap();
    let volume = driver.machine.pool("default").join("volumes").join(key);
    let mut record = std::fs::File::create(volume.join("volume.json")).unwrap();
    record.write_all(b"{ torn").unwrap();
    for _ in 0..2 {
        assert_eq!(refused("get", driver.get(&bad).await), Code::Internal);
        assert_eq!(refused("delete", driver.delete(&bad).await), Code::Internal);
        let again = driver.create(LOOP.create("bad")).await;
        assert_eq!(refused("create", again), Code::Internal);
        let grown = driver.expand(&bad, range(2 * GIB, 0)).await;
        assert_eq!(refused("expand", grown), Code::Internal);
        assert!(volume.join("disk.img").exists(), "its data stays");
        driver.get(&good).await.unwrap();
        driver.delete(&driver.make(HOSTPATH, "another").await).await.unwrap();
        // A start reads all records.
        driver = driver.restart().await;
    }
    let listed = driver.list(0, "").await.unwrap().entries;
    let ids: Vec<_> = listed.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    assert_eq!(ids, [good]);
    driver.unstage(&bad, &staging).await.unwrap();
    driver.assert_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_never_paths() {
    let driver = Driver::start().await;
    let before = entries(&driver.machine.path(""));
    let emoji = "\u{1f980}".repeat(32);
    let names = ["../../etc", "/", "..", ".", "a/b", "new\nline", "tab\t", "v- -", emoji.as_str()];
    assert_eq!(emoji.len(), 128);
    let mut ids = Vec::new();
    for name in names {
        let volume = driver.create(LOOP.create(name)).await.unwrap();
        assert!(volume.volume_id.len() <= 128 && volume.volume_id.is_ascii(), "{name:?}");
        let staging = driver.machine.path("staging");
        driver.stage(&volume.volume_id, &staging, LOOP.shared()).await.unwrap();
        driver.unstage(&volume.volume_id, &staging).await.unwrap();
        ids.push(volume.volume_id);
    }
    let keys = driver.machine.names("default", "volumes");
    assert_eq!(keys.len(), names.len());
    assert!(keys.iter().all(|key| key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit())));
    for id in &ids {
        driver.delete(id).await.unwrap();
    }
    driver.engine.drain_trash();
    let mut after = entries(&driver.machine.path(""));
    after.retain(|name| name != "staging");
    assert_eq!(after, before, "nothing is made beside the pool");
    driver.stop().await;
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
