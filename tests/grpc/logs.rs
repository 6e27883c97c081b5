//! Logs: one line per RPC with its method, volume and code; secrets never.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, Once};

use orlop::csi::proto::{
    ControllerExpandVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, GetPluginInfoRequest,
    NodeExpandVolumeRequest, NodeGetInfoRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    ValidateVolumeCapabilitiesRequest,
};

use super::driver::{Driver, GIB, KINDS, Kind, LOOP, map, range, text};

thread_local! {
    /// What this thread says; with a runtime of one thread that is a whole driver, without its jobs.
    static HERE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Lines of any thread that hold a secret.
static LEAKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Copy)]
struct Sink;

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        if line.contains(SECRET) {
            LEAKS.lock().unwrap().push(line.into_owned());
        }
        HERE.with_borrow_mut(|here| {
            if let Some(here) = here {
                here.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Captures what all drivers of this process say. Called before the first of them says anything: a subscriber that
/// comes later misses lines.
pub(crate) fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        let lines = lines.with_ansi(false).with_writer(|| Sink).finish();
        tracing::subscriber::set_global_default(lines).unwrap();
    });
}

/// The lines about RPCs on this thread since the last time.
fn take_rpcs() -> Vec<String> {
    let bytes = HERE.replace(Some(Vec::new())).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap();
    let rpcs = text.lines().filter(|line| line.contains("orlop::csi::rpc: "));
    rpcs.map(str::to_owned).collect()
}

#[track_caller]
fn assert_one(method: &str, volume: &str, code: &str) {
    let lines = take_rpcs();
    let [line] = lines.as_slice() else {
        panic!("{method}: {lines:#?}");
    };
    for part in [
        format!("method={method:?}"),
        format!("volume={volume:?}"),
        format!("code={code:?}"),
        "milliseconds=".to_owned(),
    ] {
        assert!(line.contains(&part), "{part} is not in {line}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn every_rpc_is_one_line() {
    let driver = Driver::start().await;
    take_rpcs();
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    let id = driver.make(LOOP, "pvc").await;
    assert_one("CreateVolume", "pvc", "Ok");
    let id = id.as_str();
    driver.stage(id, &staging, LOOP.shared()).await.unwrap();
    assert_one("NodeStageVolume", id, "Ok");
    driver.publish(id, (&staging, &target), LOOP.shared(), false).await.unwrap();
    assert_one("NodePublishVolume", id, "Ok");
    driver.stats(id, &target).await.unwrap();
    assert_one("NodeGetVolumeStats", id, "Ok");
    driver.delete(id).await.unwrap_err();
    assert_one("DeleteVolume", id, "FailedPrecondition");
    driver.expand(id, range(2 * GIB, 0)).await.unwrap();
    assert_one("ControllerExpandVolume", id, "Ok");
    driver.node_expand(id, &target, range(2 * GIB, 0)).await.unwrap();
    assert_one("NodeExpandVolume", id, "Ok");
    driver.unpublish(id, &target).await.unwrap();
    assert_one("NodeUnpublishVolume", id, "Ok");
    driver.unstage(id, &staging).await.unwrap();
    assert_one("NodeUnstageVolume", id, "Ok");
    driver.get("nobody's").await.unwrap_err();
    assert_one("ControllerGetVolume", "nobody's", "NotFound");
    driver.list(0, "rubbish").await.unwrap_err();
    assert_one("ListVolumes", "", "Aborted");
    driver.node().node_get_info(NodeGetInfoRequest {}).await.unwrap();
    assert_one("NodeGetInfo", "", "Ok");
    driver.identity().get_plugin_info(GetPluginInfoRequest {}).await.unwrap();
    assert_one("GetPluginInfo", "", "Ok");
    driver.create(CreateVolumeRequest::default()).await.unwrap_err();
    assert_one("CreateVolume", "", "InvalidArgument");
    // A name with a line break stays on its line.
    driver.create(LOOP.create("two\nlines")).await.unwrap();
    assert_one("CreateVolume", "two\nlines", "Ok");
    driver.stop().await;
}

/// Ends up in the log only if a request does.
const SECRET: &str = "hunter2-in-the-clear";

fn secrets() -> HashMap<String, String> {
    map(&[("password", SECRET), (SECRET, "key")])
}

fn ask(id: &str) -> ValidateVolumeCapabilitiesRequest {
    ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        secrets: secrets(),
        ..ValidateVolumeCapabilitiesRequest::default()
    }
}

/// Every RPC that takes secrets, on a volume that is there or not.
async fn with_secrets(driver: &Driver, kind: Kind, id: &str) {
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    let volume_id = id.to_owned();
    let expand = ControllerExpandVolumeRequest {
        volume_id: volume_id.clone(),
        capacity_range: Some(range(2 * GIB, 0)),
        secrets: secrets(),
        ..ControllerExpandVolumeRequest::default()
    };
    let validate =
        ValidateVolumeCapabilitiesRequest { volume_capabilities: vec![kind.shared()], ..ask(id) };
    let stage = NodeStageVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: text(&staging),
        volume_capability: Some(kind.shared()),
        secrets: secrets(),
        ..NodeStageVolumeRequest::default()
    };
    let publish = NodePublishVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: text(&staging),
        target_path: text(&target),
        volume_capability: Some(kind.shared()),
        secrets: secrets(),
        ..NodePublishVolumeRequest::default()
    };
    let node_expand = NodeExpandVolumeRequest {
        volume_id: volume_id.clone(),
        volume_path: text(&target),
        secrets: secrets(),
        ..NodeExpandVolumeRequest::default()
    };
    let delete = DeleteVolumeRequest { volume_id, secrets: secrets() };
    let (mut controller, mut node) = (driver.controller(), driver.node());
    let answers = [
        controller.controller_expand_volume(expand).await.is_ok(),
        controller.validate_volume_capabilities(validate).await.is_ok(),
        node.node_stage_volume(stage).await.is_ok(),
        node.node_publish_volume(publish).await.is_ok(),
        node.node_expand_volume(node_expand).await.is_ok(),
        driver.unpublish(id, &target).await.is_ok(),
        driver.unstage(id, &staging).await.is_ok(),
        controller.delete_volume(delete).await.is_ok(),
    ];
    let known = id.starts_with("v-");
    assert_eq!(answers, [known, known, known, known, known, true, true, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_and_no_record() {
    let driver = Driver::start().await;
    for kind in KINDS {
        let create = CreateVolumeRequest { secrets: secrets(), ..kind.create("sec") };
        let id = driver.create(create.clone()).await.unwrap().volume_id;
        let volumes = driver.machine.pool("default").join("volumes");
        let record = volumes.join(&driver.machine.names("default", "volumes")[0]);
        let record = std::fs::read_to_string(record.join("volume.json")).unwrap();
        assert!(!record.contains(SECRET), "{record}");
        // Also when the request is refused, or a step fails.
        let wrong = CreateVolumeRequest { capacity_range: Some(range(-1, 0)), ..create };
        driver.create(wrong).await.unwrap_err();
        driver.machine.host.fail_next("mounts", nix::errno::Errno::EIO);
        driver.stage(&id, &driver.machine.path("s"), kind.shared()).await.unwrap_err();
        with_secrets(&driver, kind, &id).await;
        with_secrets(&driver, kind, "nobody's").await;
    }
    driver.stop().await;
    assert_eq!(*LEAKS.lock().unwrap(), Vec::<String>::new());
    tracing::trace!(SECRET, "a leak would be seen");
    assert_eq!(LEAKS.lock().unwrap().len(), 1);
}
