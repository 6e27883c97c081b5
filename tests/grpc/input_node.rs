//! Wrong input to the Node service, row by row (CSI 1.13, the error tables of each RPC).

use std::path::Path;

use orlop::csi::proto::{
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use tonic::Code::{FailedPrecondition, InvalidArgument, NotFound, OutOfRange};

use super::driver::{BLOCK, Driver, HOSTPATH, KINDS, LOOP, range, refused, text};
use super::input_controller::{WRONG_CAPABILITIES, Wrong, check};

/// Longer than any path that Linux can have.
fn endless() -> String {
    format!("/{}", "x/".repeat(2100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_stage_volume() {
    let driver = Driver::start().await;
    let id = driver.make(LOOP, "pvc").await;
    let good = NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: text(&driver.machine.path("staging")),
        volume_capability: Some(LOOP.shared()),
        ..NodeStageVolumeRequest::default()
    };
    let rows: [Wrong<NodeStageVolumeRequest>; 10] = [
        ("no id", InvalidArgument, |r| r.volume_id.clear()),
        ("an endless id", InvalidArgument, |r| r.volume_id = "x".repeat(129)),
        ("an unknown id", NotFound, |r| r.volume_id = "csi-0123".to_owned()),
        ("no staging path", InvalidArgument, |r| r.staging_target_path.clear()),
        ("a relative path", InvalidArgument, |r| r.staging_target_path = "a/b".to_owned()),
        ("an endless path", InvalidArgument, |r| r.staging_target_path = endless()),
        ("NUL in the path", InvalidArgument, |r| r.staging_target_path = "/a\0b".to_owned()),
        ("no parent", FailedPrecondition, |r| r.staging_target_path.push_str("/no/parent")),
        ("no capability", InvalidArgument, |r| r.volume_capability = None),
        ("block of a filesystem", FailedPrecondition, |r| {
            r.volume_capability = Some(BLOCK.shared());
        }),
    ];
    let call =
        |request: NodeStageVolumeRequest| async { driver.node().node_stage_volume(request).await };
    check!(call, good, rows);
    for (what, spoil) in WRONG_CAPABILITIES {
        let mut request = good.clone();
        spoil(request.volume_capability.as_mut().unwrap());
        assert_eq!(refused(what, call(request).await), InvalidArgument, "{what}");
    }
    // A mistake here would bury the pool under a volume.
    for path in [driver.machine.pool("default"), driver.machine.path("pools")] {
        let staged = driver.stage(&id, &path, LOOP.shared()).await;
        assert_eq!(refused("the pool's path", staged), InvalidArgument);
    }
    driver.assert_clean();
    call(good).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_publish_volume() {
    let driver = Driver::start().await;
    let staging = driver.machine.path("staging");
    let id = driver.make(LOOP, "pvc").await;
    driver.stage(&id, &staging, LOOP.shared()).await.unwrap();
    let good = NodePublishVolumeRequest {
        volume_id: id,
        staging_target_path: text(&staging),
        target_path: text(&driver.machine.path("target")),
        volume_capability: Some(LOOP.shared()),
        ..NodePublishVolumeRequest::default()
    };
    let rows: [Wrong<NodePublishVolumeRequest>; 12] = [
        ("no id", InvalidArgument, |r| r.volume_id.clear()),
        ("an endless id", InvalidArgument, |r| r.volume_id = "x".repeat(129)),
        ("an unknown id", NotFound, |r| r.volume_id = "csi-0123".to_owned()),
        ("no target path", InvalidArgument, |r| r.target_path.clear()),
        ("a relative target", InvalidArgument, |r| r.target_path = "some/path".to_owned()),
        ("an endless target", InvalidArgument, |r| r.target_path = endless()),
        ("no parent", FailedPrecondition, |r| r.target_path.push_str("/no/parent")),
        ("no staging path", FailedPrecondition, |r| r.staging_target_path.clear()),
        ("another staging path", FailedPrecondition, |r| r.staging_target_path.push('2')),
        ("no such staging path", FailedPrecondition, |r| r.staging_target_path.push_str("/x/y")),
        ("no capability", InvalidArgument, |r| r.volume_capability = None),
        ("block of a filesystem", FailedPrecondition, |r| {
            r.volume_capability = Some(BLOCK.shared());
        }),
    ];
    let call = |request: NodePublishVolumeRequest| async {
        driver.node().node_publish_volume(request).await
    };
    check!(call, good, rows);
    for (what, spoil) in WRONG_CAPABILITIES {
        let mut request = good.clone();
        spoil(request.volume_capability.as_mut().unwrap());
        assert_eq!(refused(what, call(request).await), InvalidArgument, "{what}");
    }
    assert_eq!(driver.machine.host.mount_points(), [staging]);
    call(good).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teardown_of_what_cannot_be() {
    let driver = Driver::start().await;
    let path = text(&driver.machine.path("target"));
    let good =
        NodeUnpublishVolumeRequest { volume_id: "any".to_owned(), target_path: path.clone() };
    let rows: [Wrong<NodeUnpublishVolumeRequest>; 6] = [
        ("no id", InvalidArgument, |r| r.volume_id.clear()),
        ("an endless id", InvalidArgument, |r| r.volume_id = "x".repeat(129)),
        ("no path", InvalidArgument, |r| r.target_path.clear()),
        ("a relative path", InvalidArgument, |r| r.target_path = "some/path".to_owned()),
        ("an endless path", InvalidArgument, |r| r.target_path = endless()),
        ("NUL in the path", InvalidArgument, |r| r.target_path.push('\0')),
    ];
    let call = |request: NodeUnpublishVolumeRequest| async {
        driver.node().node_unpublish_volume(request).await
    };
    check!(call, good, rows);
    call(good).await.unwrap();
    let good = NodeUnstageVolumeRequest { volume_id: "any".to_owned(), staging_target_path: path };
    let rows: [Wrong<NodeUnstageVolumeRequest>; 6] = [
        ("no id", InvalidArgument, |r| r.volume_id.clear()),
        ("an endless id", InvalidArgument, |r| r.volume_id = "x".repeat(129)),
        ("no path", InvalidArgument, |r| r.staging_target_path.clear()),
        ("a relative path", InvalidArgument, |r| r.staging_target_path = "a/b".to_owned()),
        ("an endless path", InvalidArgument, |r| r.staging_target_path = endless()),
        ("NUL in the path", InvalidArgument, |r| r.staging_target_path.push('\0')),
    ];
    let call = |request: NodeUnstageVolumeRequest| async {
        driver.node().node_unstage_volume(request).await
    };
    check!(call, good, rows);
    call(good).await.unwrap();
    for path in [driver.machine.pool("default"), driver.machine.path("pools")] {
        assert_eq!(refused("the pool", driver.unpublish("x", &path).await), InvalidArgument);
        assert_eq!(refused("the pool", driver.unstage("x", &path).await), InvalidArgument);
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_get_volume_stats() {
    let driver = Driver::start().await;
    let staging = driver.machine.path("staging");
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        let good = NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: text(&staging),
            ..NodeGetVolumeStatsRequest::default()
        };
        let rows: [Wrong<NodeGetVolumeStatsRequest>; 8] = [
            ("no id", InvalidArgument, |r| r.volume_id.clear()),
            ("an endless id", InvalidArgument, |r| r.volume_id = "x".repeat(129)),
            ("an unknown id", NotFound, |r| r.volume_id = "csi-0123".to_owned()),
            ("no path", InvalidArgument, |r| r.volume_path.clear()),
            ("an endless path", InvalidArgument, |r| r.volume_path = endless()),
            ("a relative path", NotFound, |r| r.volume_path = "some/path".to_owned()),
            ("no such path", NotFound, |r| r.volume_path.push_str("/x/y")),
            ("not a mount of it", NotFound, |r| r.volume_path.push('2')),
        ];
        let call = |request: NodeGetVolumeStatsRequest| async {
            driver.node().node_get_volume_stats(request).await
        };
        check!(call, good, rows);
        call(good).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        let answer = driver.stats(&id, &staging).await;
        assert_eq!(refused("not staged any more", answer), NotFound);
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_expand_volume() {
    let driver = Driver::start().await;
    let staging = driver.machine.path("staging");
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        let good = NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: text(&staging),
            capacity_range: Some(range(2 << 30, 0)),
            ..NodeExpandVolumeRequest::default()
        };
        let rows: [Wrong<NodeExpandVolumeRequest>; 13] = [
            ("no id", InvalidArgument, |r| r.volume_id.clear()),
            ("an endless id", InvalidArgument, |r| r.volume_id = "x".repeat(129)),
            ("an unknown id", NotFound, |r| r.volume_id = "csi-0123".to_owned()),
            ("no path", InvalidArgument, |r| r.volume_path.clear()),
            ("an endless path", InvalidArgument, |r| r.volume_path = endless()),
            ("a relative path", NotFound, |r| r.volume_path = "some/path".to_owned()),
            ("not a mount of it", NotFound, |r| r.volume_path.push('2')),
            ("a negative size", InvalidArgument, |r| r.capacity_range = Some(range(-1, 0))),
            ("a negative limit", InvalidArgument, |r| r.capacity_range = Some(range(0, -1))),
            ("limit below required", OutOfRange, |r| r.capacity_range = Some(range(2, 1))),
            ("limit below its size", OutOfRange, |r| r.capacity_range = Some(range(0, 4096))),
            ("no room", OutOfRange, |r| r.capacity_range = Some(range(1 << 50, 0))),
            ("half a capability", InvalidArgument, |r| {
                r.volume_capability = Some(VolumeCapability::default());
            }),
        ];
        let call = |request: NodeExpandVolumeRequest| async {
            driver.node().node_expand_volume(request).await
        };
        check!(call, good, rows);
        call(good.clone()).await.unwrap();
        let all = NodeExpandVolumeRequest { capacity_range: None, ..good };
        assert_eq!(call(all).await.unwrap().into_inner().capacity_bytes, 2 << 30);
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_name_no_place() {
    let driver = Driver::start().await;
    let file = driver.machine.path("file");
    std::fs::File::create(&file).unwrap();
    let inside_a_file = file.join("x");
    let id = driver.make(HOSTPATH, "pvc").await;
    let staging = driver.machine.path("staging");
    driver.stage(&id, &staging, HOSTPATH.shared()).await.unwrap();
    for path in [Path::new("/"), Path::new("/tmp/.."), &inside_a_file] {
        let what = path.to_str().unwrap();
        let publish = driver.publish(&id, (&staging, path), HOSTPATH.shared(), false).await;
        let stats = driver.stats(&id, path).await;
        assert_eq!(refused(what, stats), NotFound, "stats at {what}");
        let wanted = if path == inside_a_file { FailedPrecondition } else { InvalidArgument };
        assert_eq!(refused(what, publish), wanted, "publish at {what}");
        if path == inside_a_file {
            driver.unpublish(&id, path).await.expect(what);
            driver.unstage(&id, path).await.expect(what);
        } else {
            assert_eq!(refused(what, driver.unpublish(&id, path).await), InvalidArgument);
        }
    }
    driver.stop().await;
}
