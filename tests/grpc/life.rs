//! Volumes from birth to death, every call repeated.

use std::path::PathBuf;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::volume_usage::Unit;
use orlop::host::Host;
use tonic::Code;

use super::driver::{BLOCK, Driver, GIB, HOSTPATH, KINDS, Kind, LOOP, map, range, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_a_whole_life_may_be_repeated() {
    let driver = Driver::start().await;
    for (index, kind) in KINDS.into_iter().enumerate() {
        live(&driver, kind, &format!("pvc-{index}")).await;
        driver.assert_clean();
        assert_eq!(driver.list(0, "").await.unwrap().entries, []);
    }
    let machine = driver.stop().await;
    for directory in ["incoming", "volumes", "trash", "archive", "retained"] {
        assert_eq!(machine.names("default", directory), Vec::<String>::new(), "{directory}");
    }
}

async fn live(driver: &Driver, kind: Kind, name: &str) {
    let volume = driver.create(kind.create(name)).await.unwrap();
    assert_eq!(driver.create(kind.create(name)).await.unwrap(), volume);
    assert_eq!(volume.capacity_bytes, GIB);
    let id = volume.volume_id.as_str();
    assert_eq!(driver.get(id).await.unwrap(), volume);
    let (staging, target) = (driver.machine.path("staging"), driver.machine.path("target"));
    let paths = (staging.as_path(), target.as_path());
    for _ in 0..2 {
        driver.stage(id, &staging, kind.shared()).await.unwrap();
    }
    for _ in 0..2 {
        driver.publish(id, paths, kind.shared(), false).await.unwrap();
    }
    assert_eq!(driver.machine.host.mount_points().len(), 2);
    let in_use = refused("delete in use", driver.delete(id).await);
    assert_eq!(in_use, Code::FailedPrecondition);
    grow(driver, kind, id, [&staging, &target]).await;
    for _ in 0..2 {
        driver.unpublish(id, &target).await.unwrap();
        assert!(!target.exists(), "{}", target.display());
    }
    for _ in 0..2 {
        driver.unstage(id, &staging).await.unwrap();
    }
    for _ in 0..2 {
        driver.delete(id).await.unwrap();
    }
    assert_eq!(refused("a deleted volume", driver.get(id).await), Code::NotFound);
}

/// Expansion reaches the loop device and its filesystem; stats tell what there is.
async fn grow(driver: &Driver, kind: Kind, id: &str, paths: [&PathBuf; 2]) {
    for _ in 0..2 {
        let grown = driver.expand(id, range(2 * GIB, 0)).await.unwrap();
        assert_eq!(grown.capacity_bytes, 2 * GIB);
        assert_eq!(grown.node_expansion_required, !kind.parameters.is_empty());
        for path in paths {
            assert_eq!(driver.node_expand(id, path, range(2 * GIB, 0)).await.unwrap(), 2 * GIB);
        }
    }
    assert_eq!(driver.get(id).await.unwrap().capacity_bytes, 2 * GIB);
    for path in paths {
        let usage = driver.stats(id, path).await.unwrap();
        let units: Vec<i32> = usage.iter().map(|usage| usage.unit).collect();
        if kind.block {
            assert_eq!(units, [i32::from(Unit::Bytes)]);
            assert_eq!(usage[0].total, 2 * GIB);
        } else {
            assert_eq!(units, [i32::from(Unit::Bytes), i32::from(Unit::Inodes)]);
        }
    }
    if let Some(device) = driver.machine.host.loops().unwrap().first() {
        assert_eq!(device.label, id);
        assert_eq!(device.autoclear, !kind.block);
        let path = driver.machine.pool("default").join("volumes");
        let volume = path.join(&driver.machine.names("default", "volumes")[0]);
        let image = std::fs::File::open(volume.join("disk.img")).unwrap();
        assert_eq!(image.metadata().unwrap().len(), 2 << 30);
        let found = driver.machine.host.probe(std::os::fd::AsFd::as_fd(&image)).unwrap();
        assert_eq!(found.map(|found| found.size.bytes()), (!kind.block).then_some(2 << 30));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_survives_restarts_and_a_reboot() {
    let mut driver = Driver::start().await;
    let (staging, target) = (driver.machine.path("staging"), driver.machine.path("target"));
    let paths = (staging.as_path(), target.as_path());
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver = driver.restart().await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.publish(&id, paths, kind.shared(), false).await.unwrap();
        driver.machine.host.reboot();
        driver = driver.restart().await;
        // Kubelet begins again; the mount points are still there.
        let early = driver.publish(&id, paths, kind.shared(), false).await;
        assert_eq!(refused("publish before stage", early), Code::FailedPrecondition);
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.publish(&id, paths, kind.shared(), false).await.unwrap();
        driver = driver.restart().await;
        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        driver.assert_clean();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_delete_does_not_hit_the_successor() {
    let driver = Driver::start().await;
    let old = driver.make(LOOP, "pvc").await;
    driver.delete(&old).await.unwrap();
    let new = driver.make(LOOP, "pvc").await;
    assert_ne!(old, new);
    driver.delete(&old).await.unwrap();
    assert_eq!(driver.get(&new).await.unwrap().volume_id, new);
    assert_eq!(refused("the old id", driver.get(&old).await), Code::NotFound);
    let staging = driver.machine.path("staging");
    let staged = driver.stage(&old, &staging, LOOP.shared()).await;
    assert_eq!(refused("the old id", staged), Code::NotFound);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_the_data_is_the_class_s_choice() {
    let driver = Driver::start().await;
    for (word, kept_in) in [
        ("delete", None),
        ("wipe", None),
        ("archive", Some("archive")),
        ("retain", Some("retained")),
    ] {
        let mut request = HOSTPATH.create(word);
        request.parameters.extend(map(&[("onDelete", word)]));
        let id = driver.create(request.clone()).await.unwrap().volume_id;
        driver.delete(&id).await.unwrap();
        driver.engine.drain_trash();
        assert_eq!(refused(word, driver.get(&id).await), Code::NotFound);
        // The same name makes a new volume, whatever is kept of the old one.
        let successor = driver.create(request).await.unwrap().volume_id;
        assert_ne!(successor, id);
        let grave = id.split('-').skip(2).collect::<Vec<_>>().join(".");
        for directory in ["archive", "retained"] {
            let kept = driver.machine.names("default", directory).contains(&grave);
            assert_eq!(kept, kept_in == Some(directory), "{word} in {directory}");
        }
        assert_eq!(driver.machine.names("default", "trash"), Vec::<String>::new());
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_staged_volume_cannot_be_staged_otherwise() {
    let driver = Driver::start().await;
    let staging = driver.machine.path("staging");
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        let readers = kind.capability(Mode::MultiNodeReaderOnly);
        let again = driver.stage(&id, &staging, readers).await;
        assert_eq!(refused("staged writable", again), Code::AlreadyExists, "{kind:?}");
        let other = Kind { block: !kind.block, ..kind }.shared();
        let again = driver.stage(&id, &staging, other).await;
        assert_eq!(refused("of another kind", again), Code::FailedPrecondition);
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    let (one, two) = (driver.make(LOOP, "one").await, driver.make(LOOP, "two").await);
    driver.stage(&one, &staging, LOOP.shared()).await.unwrap();
    let taken = driver.stage(&two, &staging, LOOP.shared()).await;
    assert_eq!(refused("the path of another volume", taken), Code::AlreadyExists);
    let target = driver.machine.path("target");
    let wrong = driver.publish(&two, (&staging, &target), LOOP.shared(), false).await;
    assert_eq!(refused("staged is another volume", wrong), Code::FailedPrecondition);
    assert_eq!(driver.machine.host.loops().unwrap().len(), 1, "nothing is left half done");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_fails_is_taken_back_and_the_repeat_succeeds() {
    let driver = Driver::start().await;
    let (staging, target) = (driver.machine.path("staging"), driver.machine.path("target"));
    let paths = (staging.as_path(), target.as_path());
    for (kind, verbs) in
        [(HOSTPATH, &["bind"][..]), (LOOP, &["attach", "mount"]), (BLOCK, &["attach", "bind"])]
    {
        let id = driver.make(kind, "pvc").await;
        for verb in verbs {
            driver.machine.host.fail_next(verb, nix::errno::Errno::EIO);
            let failed = driver.stage(&id, &staging, kind.shared()).await;
            assert_eq!(refused(verb, failed), Code::Internal);
            driver.assert_clean();
            assert!(!staging.exists(), "{verb}");
        }
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.machine.host.fail_next("bind", nix::errno::Errno::EIO);
        let failed = driver.publish(&id, paths, kind.shared(), false).await;
        assert_eq!(refused("bind", failed), Code::Internal);
        assert!(!target.exists());
        driver.publish(&id, paths, kind.shared(), false).await.unwrap();
        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        // What kubelet keeps.
        driver.machine.host.remove_mount_point(&staging).unwrap();
    }
    driver.stop().await;
}
