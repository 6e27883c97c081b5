//! Directories that are held to their size: the bound follows the record, and everything that shares.

use std::os::fd::AsFd;

use orlop::csi::proto::*;
use orlop::host::{Bounds, Limits, PoolFilesystem};
use orlop::volume::{ByteSize, Limit, LimitKind};
use serde_json::Value;
use tonic::Code;

use super::common::Machine;
use super::driver::{Driver, GIB, HOSTPATH, LOOP, MIB, range, refused};
use super::snapshots::{clone, restore, sharing};

const REQUIRED: &str = "quota";

async fn on(filesystem: PoolFilesystem, kind: Option<LimitKind>) -> Driver {
    let machine = sharing(filesystem, ByteSize::gib(100));
    machine.host.set_limit_kind(kind);
    Driver::start_on(machine, &["default"], true).await
}

fn with_quota(name: &str, quota: &str) -> CreateVolumeRequest {
    let mut request = HOSTPATH.create(name);
    request.parameters.insert(REQUIRED.to_owned(), quota.to_owned());
    request
}

fn record(machine: &Machine, id: &str) -> Value {
    let key = id.split('-').nth(2).unwrap();
    let path = machine.pool("default").join("volumes").join(key).join("volume.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The limit that a volume's record names.
fn limit(machine: &Machine, id: &str) -> Option<Limit> {
    let record = record(machine, id);
    let limit = record.get("limit")?;
    Some(Limit {
        kind: LimitKind::from_word(limit["kind"].as_str().unwrap()).unwrap(),
        number: limit["number"].as_u64().unwrap(),
    })
}

fn bounds(machine: &Machine, limit: Limit) -> Option<Bounds> {
    let pool = std::fs::File::open(machine.pool("default")).unwrap();
    machine.host.limit_state(pool.as_fd(), limit).unwrap().and_then(|state| state.bounds)
}

#[track_caller]
fn assert_bound(driver: &Driver, id: &str, bytes: i64) {
    let limit = limit(&driver.machine, id).unwrap();
    let bounds = bounds(&driver.machine, limit).unwrap();
    assert_eq!(i64::try_from(bounds.bytes.bytes()).unwrap(), bytes);
    assert_eq!(bounds.inodes.is_some(), limit.kind == LimitKind::Project);
}

/// Waits until the trash is empty; settles what was shared.
async fn drain(driver: &Driver) {
    let engine = std::sync::Arc::clone(&driver.engine);
    tokio::task::spawn_blocking(move || engine.drain_trash()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_a_limit_for_life() {
    for (filesystem, kind) in [
        (PoolFilesystem::Xfs, LimitKind::Project),
        (PoolFilesystem::Btrfs, LimitKind::SimpleQuota),
        (PoolFilesystem::Btrfs, LimitKind::Qgroup),
    ] {
        let mut driver = on(filesystem, Some(kind)).await;
        let id = driver.make(HOSTPATH, "pvc").await;
        assert_bound(&driver, &id, GIB);
        driver.expand(&id, range(2 * GIB, 0)).await.unwrap();
        assert_bound(&driver, &id, 2 * GIB);
        // Somebody lifted it; whoever uses the volume next is held again.
        let lost = limit(&driver.machine, &id).unwrap();
        let pool = std::fs::File::open(driver.machine.pool("default")).unwrap();
        driver.machine.host.set_bounds(pool.as_fd(), lost, None).unwrap();
        driver = driver.restart().await;
        let stage = driver.machine.path("stage");
        std::fs::create_dir(&stage).unwrap();
        driver.stage(&id, &stage, HOSTPATH.shared()).await.unwrap();
        assert_bound(&driver, &id, 2 * GIB);
        driver.unstage(&id, &stage).await.unwrap();
        // And a repeat of an expansion that was cut off.
        driver.machine.host.set_bounds(pool.as_fd(), lost, None).unwrap();
        driver.expand(&id, range(2 * GIB, 0)).await.unwrap();
        assert_bound(&driver, &id, 2 * GIB);
        driver.delete(&id).await.unwrap();
        drain(&driver).await;
        assert_eq!(driver.machine.host.limits(), 0, "{kind}");
        let loop_volume = driver.make(LOOP, "image").await;
        assert_eq!(limit(&driver.machine, &loop_volume), None);
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_class_asks_for_is_had_or_refused() {
    for (kind, auto, required) in [
        (None, None, false),
        (Some(LimitKind::Qgroup), Some(LimitKind::Qgroup), false),
        (Some(LimitKind::SimpleQuota), Some(LimitKind::SimpleQuota), true),
    ] {
        let driver = on(PoolFilesystem::Btrfs, kind).await;
        let id = driver.create(with_quota("auto", "auto")).await.unwrap().volume_id;
        assert_eq!(limit(&driver.machine, &id).map(|limit| limit.kind), auto);
        let id = driver.create(with_quota("off", "off")).await.unwrap().volume_id;
        assert_eq!(limit(&driver.machine, &id), None);
        let asked = with_quota("required", "required");
        let room = GetCapacityRequest {
            parameters: asked.parameters.clone(),
            ..GetCapacityRequest::default()
        };
        let told = driver.capacity(room).await.unwrap().available_capacity;
        let made = driver.create(asked).await;
        if required {
            assert!(told > 90 * GIB);
            let held = limit(&driver.machine, &made.unwrap().volume_id).unwrap();
            assert!(held.kind.is_hard());
        } else {
            assert_eq!(told, 0);
            let message = made.as_ref().unwrap_err().message().to_owned();
            assert_eq!(refused("not hard", made), Code::InvalidArgument);
            assert!(message.contains("backend=loop") && message.contains("--simple"), "{message}");
        }
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_birth_or_growth_leaves_no_limit_behind() {
    use nix::errno::Errno;
    let driver = on(PoolFilesystem::Xfs, Some(LimitKind::Project)).await;
    for verb in ["begin_limit", "set_bounds"] {
        driver.machine.host.fail_next(verb, Errno::EIO);
        let failed = driver.create(HOSTPATH.create("pvc")).await;
        assert_eq!(refused(verb, failed), Code::Internal);
        assert_eq!(driver.machine.host.limits(), 0, "{verb}");
    }
    driver.machine.host.fail_next("set_bounds", Errno::ENOSPC);
    let full = driver.create(HOSTPATH.create("pvc")).await;
    assert_eq!(refused("full", full), Code::ResourceExhausted);
    let id = driver.make(HOSTPATH, "pvc").await;
    driver.machine.host.fail_next("set_bounds", Errno::EIO);
    let failed = driver.expand(&id, range(2 * GIB, 0)).await;
    assert_eq!(refused("growth", failed), Code::Internal);
    assert_bound(&driver, &id, GIB);
    assert_eq!(driver.get(&id).await.unwrap().capacity_bytes, GIB);
    driver.expand(&id, range(2 * GIB, 0)).await.unwrap();
    assert_bound(&driver, &id, 2 * GIB);
    // The filesystem forgot it: nothing may be told to have grown.
    let pool = std::fs::File::open(driver.machine.pool("default")).unwrap();
    let forgotten = limit(&driver.machine, &id).unwrap();
    driver.machine.host.end_limit(pool.as_fd(), forgotten).unwrap();
    let failed = driver.expand(&id, range(3 * GIB, 0)).await;
    assert_eq!(refused("not in force", failed), Code::FailedPrecondition);
    driver.stop().await;
}

/// What can still be promised.
async fn room(driver: &Driver) -> i64 {
    driver.capacity(GetCapacityRequest::default()).await.unwrap().available_capacity
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wrote_first_may_rewrite_what_others_still_have() {
    let driver = on(PoolFilesystem::Btrfs, Some(LimitKind::SimpleQuota)).await;
    let all = room(&driver).await;
    let id = driver.make(HOSTPATH, "pvc").await;
    let held = limit(&driver.machine, &id).unwrap();
    let used = ByteSize::mib(300);
    driver.machine.host.set_limit_usage(held, used, None);
    let snapshot = driver.snapshot("snap", &id).await.unwrap().snapshot_id;
    // The snapshot keeps 300 MiB of what the volume wrote, so it may write as much again, and 5 % for random writes; the
    // snapshot pays.
    assert_bound(&driver, &id, GIB + 315 * MIB);
    assert_eq!(room(&driver).await, all - GIB - 315 * MIB);
    // What begins with the snapshot keeps the same data, which is paid for once.
    let sized = |name| CreateVolumeRequest {
        capacity_range: Some(range(GIB, 0)),
        ..restore(HOSTPATH.create(name), &snapshot)
    };
    let first = driver.create(sized("first")).await.unwrap().volume_id;
    let second = driver.create(sized("second")).await.unwrap().volume_id;
    assert_bound(&driver, &id, GIB + 315 * MIB);
    assert_bound(&driver, &first, GIB);
    assert_eq!(room(&driver).await, all - 3 * GIB - 315 * MIB);
    // Also when the snapshot is gone, for as long as one of them has it.
    driver.delete_snapshot(&snapshot).await.unwrap();
    driver.delete(&first).await.unwrap();
    drain(&driver).await;
    assert_bound(&driver, &id, GIB + 315 * MIB);
    let driver = driver.restart().await;
    assert_eq!(room(&driver).await, all - 2 * GIB - 315 * MIB);
    driver.delete(&second).await.unwrap();
    drain(&driver).await;
    assert_bound(&driver, &id, GIB);
    assert_eq!(room(&driver).await, all - GIB);
    driver.delete(&id).await.unwrap();
    drain(&driver).await;
    assert_eq!(room(&driver).await, all);
    assert_eq!(driver.machine.host.limits(), 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_charged_for_what_it_shares_and_frees_it_at_its_end() {
    let driver = on(PoolFilesystem::Btrfs, Some(LimitKind::SimpleQuota)).await;
    let all = room(&driver).await;
    let id = driver.make(HOSTPATH, "pvc").await;
    let held = limit(&driver.machine, &id).unwrap();
    driver.machine.host.set_limit_usage(held, ByteSize::mib(200), None);
    let made = driver.create(clone(HOSTPATH.create("clone"), &id)).await.unwrap().volume_id;
    assert_bound(&driver, &id, GIB + 210 * MIB);
    assert_bound(&driver, &made, GIB);
    assert_eq!(room(&driver).await, all - 2 * GIB - 210 * MIB);
    // A clone of the clone has what both wrote.
    let grandchild = driver.create(clone(HOSTPATH.create("third"), &made)).await.unwrap().volume_id;
    assert_eq!(record(&driver.machine, &grandchild)["shared"].as_array().unwrap().len(), 2);
    driver.delete(&made).await.unwrap();
    drain(&driver).await;
    assert_bound(&driver, &id, GIB + 210 * MIB);
    driver.delete(&grandchild).await.unwrap();
    drain(&driver).await;
    assert_bound(&driver, &id, GIB);
    assert_eq!(room(&driver).await, all - GIB);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_quotas_count_for_who_has_the_bytes() {
    for (filesystem, kind) in
        [(PoolFilesystem::Xfs, LimitKind::Project), (PoolFilesystem::Btrfs, LimitKind::Qgroup)]
    {
        let driver = on(filesystem, Some(kind)).await;
        let id = driver.make(HOSTPATH, "pvc").await;
        let held = limit(&driver.machine, &id).unwrap();
        driver.machine.host.set_limit_usage(held, ByteSize::mib(200), Some(1));
        let snapshot = driver.snapshot("snap", &id).await.unwrap().snapshot_id;
        let copy = driver.create(restore(HOSTPATH.create("copy"), &snapshot)).await.unwrap();
        assert_bound(&driver, &id, GIB);
        assert_bound(&driver, &copy.volume_id, GIB);
        assert!(record(&driver.machine, &copy.volume_id).get("shared").is_none());
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_snapshot_gives_the_room_back() {
    let driver = on(PoolFilesystem::Btrfs, Some(LimitKind::SimpleQuota)).await;
    let id = driver.make(HOSTPATH, "pvc").await;
    let held = limit(&driver.machine, &id).unwrap();
    driver.machine.host.set_limit_usage(held, ByteSize::mib(200), None);
    driver.machine.host.fail_next("snapshot_subvolume", nix::errno::Errno::EIO);
    driver.snapshot("snap", &id).await.unwrap_err();
    assert_bound(&driver, &id, GIB);
    let group = driver.group("group", &[&id]).await.unwrap();
    assert_bound(&driver, &id, GIB + 210 * MIB);
    assert_eq!(group.snapshots.len(), 1);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_charged_until_its_space_is_free() {
    let driver = on(PoolFilesystem::Btrfs, Some(LimitKind::SimpleQuota)).await;
    let all = room(&driver).await;
    let id = driver.make(HOSTPATH, "pvc").await;
    driver.machine.host.free_slowly(256);
    driver.delete(&id).await.unwrap();
    let engine = std::sync::Arc::clone(&driver.engine);
    let drained = tokio::task::spawn_blocking(move || engine.drain_trash());
    let trash = |driver: &Driver| driver.machine.names("default", "trash");
    while trash(&driver).len() != 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(room(&driver).await, all - GIB);
    driver.machine.host.free();
    drained.await.unwrap();
    assert_eq!(trash(&driver), Vec::<String>::new());
    assert_eq!(room(&driver).await, all);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_with_limits_is_chosen_where_they_are_required() {
    // The model has one filesystem for all pools, so what differs is that none of them can.
    let machine = sharing(PoolFilesystem::Ext, ByteSize::gib(100));
    let driver = Driver::start_on(machine, &["one", "two"], true).await;
    let refusal = driver.create(with_quota("pvc", "required")).await;
    let message = refusal.as_ref().unwrap_err().message().to_owned();
    assert_eq!(refused("no pool", refusal), Code::InvalidArgument);
    assert!(message.contains("prjquota") && message.contains("tune2fs"), "{message}");
    driver.machine.host.set_limit_kind(Some(LimitKind::Project));
    driver.create(with_quota("pvc", "required")).await.unwrap();
    driver.stop().await;
}
