//! `--attach`: ControllerPublishVolume, its limit, and what it asks of the other calls.

use std::path::Path;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{
    ControllerGetVolumeRequest, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
    NodeGetInfoRequest, VolumeCapability,
};
use tonic::{Code, Status};

use super::common::{Machine, NODE};
use super::driver::{BLOCK, Driver, HOSTPATH, KINDS, LOOP, refused};

async fn attaching(limit: Option<u32>, pools: &[&str]) -> Driver {
    let mut machine = Machine::new();
    (machine.attach, machine.max_volumes) = (true, limit);
    Driver::start_on(machine, pools, true).await
}

async fn attach(
    driver: &Driver,
    id: &str,
    node: &str,
    capability: VolumeCapability,
    readonly: bool,
) -> Result<(), Status> {
    let request = ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(capability),
        readonly,
        ..ControllerPublishVolumeRequest::default()
    };
    let reply = driver.controller().controller_publish_volume(request).await?;
    assert!(reply.into_inner().publish_context.is_empty());
    Ok(())
}

async fn detach(driver: &Driver, id: &str, node: &str) -> Result<(), Status> {
    let request = ControllerUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        node_id: node.to_owned(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    driver.controller().controller_unpublish_volume(request).await.map(drop)
}

/// The nodes that ListVolumes and ControllerGetVolume tell, which must be the same.
async fn nodes(driver: &Driver, id: &str) -> Vec<String> {
    let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let got = driver.controller().controller_get_volume(request).await.unwrap().into_inner();
    let got = got.status.unwrap().published_node_ids;
    let listed = driver.list(0, "").await.unwrap().entries;
    let mut listed = listed.into_iter();
    let entry = listed.find(|entry| entry.volume.as_ref().unwrap().volume_id == id).unwrap();
    assert_eq!(entry.status.map(|status| status.published_node_ids).unwrap_or_default(), got);
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_is_kept_told_and_taken_back() {
    let mut driver = attaching(None, &["default"]).await;
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        assert_eq!(nodes(&driver, &id).await, Vec::<String>::new());
        for _ in 0..2 {
            attach(&driver, &id, NODE, kind.shared(), false).await.unwrap();
            assert_eq!(nodes(&driver, &id).await, [NODE]);
            driver = driver.restart().await;
            assert_eq!(nodes(&driver, &id).await, [NODE], "a start reads it from the record");
        }
        let other = attach(&driver, &id, NODE, kind.shared(), true).await;
        assert_eq!(refused("another readonly", other), Code::AlreadyExists);
        let mode = kind.capability(Mode::MultiNodeMultiWriter);
        let other = attach(&driver, &id, NODE, mode, false).await;
        assert_eq!(refused("another mode", other), Code::AlreadyExists);
        assert_eq!(refused("delete", driver.delete(&id).await), Code::FailedPrecondition);
        // Of another node there is nothing to take back.
        detach(&driver, &id, "n2").await.unwrap();
        assert_eq!(nodes(&driver, &id).await, [NODE]);
        for node in [NODE, NODE, ""] {
            detach(&driver, &id, node).await.unwrap();
            assert_eq!(nodes(&driver, &id).await, Vec::<String>::new());
        }
        attach(&driver, &id, NODE, kind.shared(), true).await.unwrap();
        detach(&driver, &id, "").await.unwrap();
        driver.delete(&id).await.unwrap();
        detach(&driver, &id, NODE).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_attached_is_refused() {
    let driver = attaching(None, &["default"]).await;
    let id = driver.make(LOOP, "pvc").await;
    let unknown = "v-00000000-00000000000000000000000000000000-00000000";
    let mut gone = id.clone();
    gone.replace_range(id.len() - 1.., if id.ends_with('0') { "1" } else { "0" });
    let long = "n".repeat(257);
    for (what, id, node, kind, code) in [
        ("no volume", "", NODE, LOOP, Code::InvalidArgument),
        ("no node", &id, "", LOOP, Code::InvalidArgument),
        ("a long node", &id, &long, LOOP, Code::InvalidArgument),
        ("another kind", &id, NODE, BLOCK, Code::InvalidArgument),
        ("a foreign volume", "some-volume", NODE, LOOP, Code::NotFound),
        ("a volume that is gone", &gone, NODE, LOOP, Code::NotFound),
        ("another node", &id, "n2", LOOP, Code::NotFound),
        ("a pool that is not here", unknown, NODE, LOOP, Code::Unavailable),
    ] {
        let result = attach(&driver, id, node, kind.shared(), false).await;
        assert_eq!(refused(what, result), code, "{what}");
    }
    let request = ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: NODE.to_owned(),
        ..ControllerPublishVolumeRequest::default()
    };
    let bare = driver.controller().controller_publish_volume(request).await;
    assert_eq!(refused("no capability", bare), Code::InvalidArgument);
    assert_eq!(refused("no volume", detach(&driver, "", NODE).await), Code::InvalidArgument);
    assert_eq!(refused("away", detach(&driver, unknown, NODE).await), Code::Unavailable);
    for id in ["some-volume", &gone] {
        detach(&driver, id, NODE).await.unwrap();
    }
    assert_eq!(nodes(&driver, &id).await, Vec::<String>::new());
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_uses_what_is_attached_and_only_so() {
    let driver = attaching(None, &["default"]).await;
    let [staging, target] = ["staging", "target"].map(|name| driver.machine.path(name));
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let early = driver.stage(&id, &staging, kind.shared()).await.unwrap_err();
        assert_eq!(early.code(), Code::FailedPrecondition);
        assert!(early.message().contains("ControllerPublishVolume"), "{}", early.message());
        for read_only in [false, true] {
            attach(&driver, &id, NODE, kind.shared(), read_only).await.unwrap();
            // The CO repeats its calls, and need not say that it wants to read only.
            for _ in 0..2 {
                driver.stage(&id, &staging, kind.shared()).await.unwrap();
                driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
            }
            if kind.block {
                assert_eq!(device_is_read_only(&driver), read_only);
            } else {
                assert_eq!(driver.read_only(&staging), Some(read_only));
                assert_eq!(driver.read_only(&target), Some(read_only));
            }
            assert_eq!(refused("in use", driver.delete(&id).await), Code::FailedPrecondition);
            driver.unpublish(&id, &target).await.unwrap();
            detach(&driver, &id, NODE).await.unwrap();
            let late = driver.publish(&id, (&staging, &target), kind.shared(), false).await;
            assert_eq!(refused("not attached", late), Code::FailedPrecondition);
            driver.unstage(&id, &staging).await.unwrap();
        }
        driver.delete(&id).await.unwrap();
        driver.assert_clean();
    }
    driver.stop().await;
}

/// Every loop device that a pod could see refuses writes.
fn device_is_read_only(driver: &Driver) -> bool {
    use orlop::host::Host as _;
    let loops = driver.machine.host.loops().unwrap();
    assert!(!loops.is_empty());
    loops.iter().any(|status| status.read_only)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_at_most_its_limit_however_many_come_at_once() {
    let driver = attaching(Some(3), &["one", "two"]).await;
    let info = driver.node().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.max_volumes_per_node, 3);
    let mut ids = Vec::new();
    for index in 0..8 {
        let mut request = HOSTPATH.create(&format!("pvc-{index}"));
        let pool = if index % 2 == 0 { "one" } else { "two" };
        request.parameters.insert("pool".to_owned(), pool.to_owned());
        ids.push(driver.create(request).await.unwrap().volume_id);
    }
    for _ in 0..20 {
        let calls: Vec<_> =
            ids.iter().map(|id| attach(&driver, id, NODE, HOSTPATH.shared(), false)).collect();
        let results = futures(calls).await;
        let attached: Vec<_> =
            ids.iter().zip(&results).filter(|(_, result)| result.is_ok()).collect();
        assert_eq!(attached.len(), 3, "{results:?}");
        for result in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!(result.code(), Code::ResourceExhausted);
        }
        for (id, _) in attached {
            // What is attached may be asked for again when the node is full.
            attach(&driver, id, NODE, HOSTPATH.shared(), false).await.unwrap();
            detach(&driver, id, NODE).await.unwrap();
        }
    }
    // A volume that is gone takes no place.
    for id in &ids {
        attach(&driver, id, NODE, HOSTPATH.shared(), false).await.unwrap();
        detach(&driver, id, "").await.unwrap();
        driver.delete(id).await.unwrap();
    }
    driver.stop().await;
}

/// Awaits all of them together.
async fn futures<T>(calls: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut calls: Vec<_> = calls.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<T>> = calls.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (call, result) in calls.iter_mut().zip(&mut results) {
            if result.is_none() {
                match call.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    results.into_iter().map(Option::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attach_keeps_no_place() {
    let driver = attaching(Some(1), &["default"]).await;
    let first = driver.make(HOSTPATH, "first").await;
    let second = driver.make(HOSTPATH, "second").await;
    let volume = volume_directory(&driver, &first);
    let original = std::fs::read(volume.join("volume.json")).unwrap();
    // The new record cannot be written where a directory lies.
    let obstacle = volume.join("volume.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    let failed = attach(&driver, &first, NODE, HOSTPATH.shared(), false).await;
    let failed = failed.map_err(|status| status.code());
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(failed, Err(Code::Internal));
    assert_eq!(std::fs::read(volume.join("volume.json")).unwrap(), original);
    attach(&driver, &second, NODE, HOSTPATH.shared(), false).await.unwrap();
    driver.stop().await;
}

fn volume_directory(driver: &Driver, id: &str) -> std::path::PathBuf {
    let key = id.split('-').nth(2).unwrap();
    driver.machine.pool("default").join("volumes").join(key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_flag_what_records_say_of_attachments_counts_nothing() {
    let driver = attaching(Some(1), &["default"]).await;
    let id = driver.make(HOSTPATH, "pvc").await;
    attach(&driver, &id, NODE, HOSTPATH.shared(), true).await.unwrap();
    let mut machine = driver.stop().await;
    machine.attach = false;
    let driver = Driver::start_on(machine, &["default"], true).await;
    assert_eq!(nodes(&driver, &id).await, Vec::<String>::new());
    for result in [
        attach(&driver, &id, NODE, HOSTPATH.shared(), true).await,
        detach(&driver, &id, NODE).await,
    ] {
        assert_eq!(refused("not advertised", result), Code::Unimplemented);
    }
    let staging = driver.machine.path("staging");
    driver.stage(&id, &staging, HOSTPATH.shared()).await.unwrap();
    assert_eq!(driver.read_only(&staging), Some(false));
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_comes_from_another_node_is_attached_there_until_it_is_taken_back() {
    let driver = attaching(None, &["default"]).await;
    let [one, many] = [Mode::SingleNodeMultiWriter, Mode::MultiNodeMultiWriter];
    for (mode, name) in [(one, "rwo"), (many, "rwx")] {
        let id = driver.make(HOSTPATH, name).await;
        let capability = HOSTPATH.capability(mode);
        attach(&driver, &id, NODE, capability.clone(), false).await.unwrap();
        rename_node(&volume_directory(&driver, &id), "n0");
        let result = attach(&driver, &id, NODE, capability, false).await;
        if mode == many {
            result.unwrap();
            assert_eq!(nodes_by_get(&driver, &id).await, ["n0", NODE]);
        } else {
            let status = result.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains("n0"), "{}", status.message());
        }
        detach(&driver, &id, "n0").await.unwrap();
    }
    driver.stop().await;
}

async fn nodes_by_get(driver: &Driver, id: &str) -> Vec<String> {
    let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let got = driver.controller().controller_get_volume(request).await.unwrap().into_inner();
    got.status.unwrap().published_node_ids
}

/// Lets a record say that its volume is attached to another node.
fn rename_node(volume: &Path, node: &str) {
    let path = volume.join("volume.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replace(&format!("\"node\": \"{NODE}\""), &format!("\"node\": \"{node}\""));
    assert_ne!(changed, text);
    let mut file = std::fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut file, changed.as_bytes()).unwrap();
}
