//! Teardown needs the path, the mount table and the loop devices; nothing else.

use std::io::Write;

use orlop::host::{Host, MountPoint};
use tonic::Code;

use super::driver::{BLOCK, Driver, HOSTPATH, KINDS, LOOP, refused};

const UNKNOWN: [&str; 3] =
    ["csi-0123456789", "v-00000000-00000000000000000000000000000000-00000000", "../../x"];

#[expect(clippy::disallowed_methods, reason = "a test loses a volume as an operator would")]
fn remove(directory: &std::path::Path) {
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_whose_record_and_data_are_gone_are_torn_down() {
    let driver = Driver::start().await;
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    for (index, kind) in KINDS.into_iter().enumerate() {
        let id = driver.make(kind, &format!("pvc-{index}")).await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
        let key = id.split('-').nth(2).unwrap();
        remove(&driver.machine.pool("default").join("volumes").join(key));
        for _ in 0..2 {
            driver.unpublish(&id, &target).await.unwrap();
            driver.unstage(&id, &staging).await.unwrap();
        }
        assert!(!target.exists());
        driver.assert_clean();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_was_removed_by_hand_does_not_exist() {
    let driver = Driver::start().await;
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let key = id.split('-').nth(2).unwrap();
        remove(&driver.machine.pool("default").join("volumes").join(key));
        assert_eq!(refused("removed", driver.get(&id).await), Code::NotFound);
        driver.delete(&id).await.unwrap();
        let successor = driver.make(kind, "pvc").await;
        assert_ne!(successor, id);
        driver.delete(&successor).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_ids_and_absent_paths_are_torn_down_already() {
    let driver = Driver::start().await;
    let [absent, deeper] = ["absent", "absent/deeper/still"].map(|n| driver.machine.path(n));
    let plain = driver.machine.path("plain");
    for id in UNKNOWN {
        driver.machine.host.make_mount_point(&plain, MountPoint::Directory).unwrap();
        for path in [&absent, &deeper, &plain] {
            driver.unpublish(id, path).await.unwrap();
            driver.unstage(id, path).await.unwrap();
        }
        assert!(!plain.exists(), "the target path is removed");
        if !id.starts_with("v-") {
            driver.delete(id).await.unwrap();
        }
    }
    // A pool that this node does not know may be away: the volume's data could leak.
    assert_eq!(refused("an unknown pool", driver.delete(UNKNOWN[1]).await), Code::Unavailable);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_nobody_s_mount_are_never_removed() {
    let driver = Driver::start().await;
    let target = driver.machine.path("target");
    driver.machine.host.make_mount_point(&target, MountPoint::Directory).unwrap();
    let mut file = std::fs::File::create(target.join("precious")).unwrap();
    file.write_all(b"data").unwrap();
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let staging = driver.machine.path("staging");
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        refused("not empty", driver.unpublish(&id, &target).await);
        let taken = driver.publish(&id, (&staging, &target), kind.shared(), false).await;
        refused("taken", taken);
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    assert_eq!(std::fs::read(target.join("precious")).unwrap(), b"data");
    driver.assert_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_published_is_not_taken_from_its_pod() {
    let driver = Driver::start().await;
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    let id = driver.make(BLOCK, "pvc").await;
    driver.stage(&id, &staging, BLOCK.shared()).await.unwrap();
    driver.publish(&id, (&staging, &target), BLOCK.shared(), false).await.unwrap();
    let early = driver.unstage(&id, &staging).await;
    assert_eq!(refused("published", early), Code::FailedPrecondition);
    assert_eq!(driver.machine.host.loops().unwrap().len(), 1);
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.assert_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_that_was_killed_half_way_is_finished_or_undone() {
    let driver = Driver::start().await;
    let staging = driver.machine.path("staging");
    let host = driver.machine.host.clone();
    for finish in [true, false] {
        // The undo fails as well: as if the process had died there.
        let id = driver.make(BLOCK, "block").await;
        host.fail_next("bind", nix::errno::Errno::EIO);
        host.fail_next("detach", nix::errno::Errno::EIO);
        host.fail_next("remove_mount_point", nix::errno::Errno::EIO);
        let failed = driver.stage(&id, &staging, BLOCK.shared()).await;
        assert_eq!(refused("cut", failed), Code::Internal);
        assert_eq!(host.loops().unwrap().len(), 1, "a loop device is left");
        if finish {
            driver.stage(&id, &staging, BLOCK.shared()).await.unwrap();
            assert_eq!(host.loops().unwrap().len(), 1);
        }
        driver.unstage(&id, &staging).await.unwrap();
        driver.assert_clean();
        driver.delete(&id).await.unwrap();
    }
    for kind in [HOSTPATH, LOOP] {
        let id = driver.make(kind, "pvc").await;
        let verb = if kind.parameters.is_empty() { "bind" } else { "mount" };
        host.fail_next(verb, nix::errno::Errno::EIO);
        host.fail_next("remove_mount_point", nix::errno::Errno::EIO);
        refused("cut", driver.stage(&id, &staging, kind.shared()).await);
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        driver.assert_clean();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_mount_says_so_and_the_repeat_succeeds() {
    let driver = Driver::start().await;
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
        driver.machine.host.fail_next("unmount", nix::errno::Errno::EBUSY);
        let busy = driver.unpublish(&id, &target).await;
        assert_eq!(refused("busy", busy), Code::FailedPrecondition);
        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        driver.assert_clean();
    }
    driver.stop().await;
}
