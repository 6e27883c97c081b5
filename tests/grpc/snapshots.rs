//! Snapshots, copies and groups: names, sources, lists, room, and who may not disturb whom.

use std::sync::Arc;

use orlop::csi::proto::group_controller_client::GroupControllerClient;
use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use orlop::csi::proto::*;
use orlop::host::fake::FakeHost;
use orlop::host::{PoolFilesystem, Space};
use orlop::volume::ByteSize;
use tonic::{Code, Status};

use super::common::{Machine, NODE, TOPOLOGY_KEY};
use super::driver::{BLOCK, Driver, GIB, HOSTPATH, KINDS, LOOP, map, range, refused};

/// A machine whose pool shares blocks, with so much room.
pub(crate) fn sharing(filesystem: PoolFilesystem, room: ByteSize) -> Machine {
    let machine = Machine::new();
    machine.host.set_space(Space {
        filesystem,
        total: room,
        free: room,
        available: room,
        inodes: 0,
        inodes_free: 0,
    });
    machine
}

async fn on_btrfs() -> Driver {
    let machine = sharing(PoolFilesystem::Btrfs, ByteSize::gib(100));
    Driver::start_on(machine, &["default"], true).await
}

impl Driver {
    pub(crate) async fn snapshot(&self, name: &str, volume: &str) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume.to_owned(),
            ..Default::default()
        };
        let reply = self.controller().create_snapshot(request).await?;
        Ok(reply.into_inner().snapshot.unwrap())
    }

    pub(crate) async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.controller().delete_snapshot(request).await.map(drop)
    }

    async fn snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse, Status> {
        self.controller().list_snapshots(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn group(
        &self,
        name: &str,
        ids: &[&str],
    ) -> Result<VolumeGroupSnapshot, Status> {
        let request = CreateVolumeGroupSnapshotRequest {
            name: name.to_owned(),
            source_volume_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        let mut groups = GroupControllerClient::new(self.channel.clone());
        let reply = groups.create_volume_group_snapshot(request).await?;
        Ok(reply.into_inner().group_snapshot.unwrap())
    }
}

pub(crate) fn restore(mut request: CreateVolumeRequest, snapshot: &str) -> CreateVolumeRequest {
    let source = SnapshotSource { snapshot_id: snapshot.to_owned() };
    request.volume_content_source =
        Some(VolumeContentSource { r#type: Some(Type::Snapshot(source)) });
    request
}

pub(crate) fn clone(mut request: CreateVolumeRequest, volume: &str) -> CreateVolumeRequest {
    let source = VolumeSource { volume_id: volume.to_owned() };
    request.volume_content_source =
        Some(VolumeContentSource { r#type: Some(Type::Volume(source)) });
    request
}

fn ids(listed: &ListSnapshotsResponse) -> Vec<String> {
    let snapshots = listed.entries.iter().map(|entry| entry.snapshot.as_ref().unwrap());
    snapshots.map(|snapshot| snapshot.snapshot_id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_outlives_its_volume_and_a_restart() {
    let mut driver = on_btrfs().await;
    for kind in KINDS {
        let volume = driver.make(kind, "pvc").await;
        let taken = driver.snapshot("snap", &volume).await.unwrap();
        assert_eq!((taken.source_volume_id.as_str(), taken.size_bytes), (volume.as_str(), GIB));
        assert!(taken.ready_to_use && taken.creation_time.unwrap().seconds > 1_700_000_000);
        assert_eq!(taken.accessible_topology[0].segments, map(&[(TOPOLOGY_KEY, NODE)]));
        assert_eq!(driver.snapshot("snap", &volume).await.unwrap(), taken, "a repeat");
        let other = driver.make(kind, "other").await;
        let conflict = driver.snapshot("snap", &other).await;
        assert_eq!(refused("another source", conflict), Code::AlreadyExists);
        driver.delete(&volume).await.unwrap();
        driver = driver.restart().await;
        let get =
            GetSnapshotRequest { snapshot_id: taken.snapshot_id.clone(), ..Default::default() };
        let found = driver.controller().get_snapshot(get.clone()).await.unwrap().into_inner();
        assert_eq!(found.snapshot.unwrap(), taken);
        let wanted = restore(kind.create("restored"), &taken.snapshot_id);
        let made = driver.create(wanted.clone()).await.unwrap();
        assert_eq!(made.content_source, wanted.volume_content_source);
        assert_eq!(driver.create(wanted).await.unwrap(), made, "a repeat");
        let without = driver.create(kind.create("restored")).await;
        assert_eq!(refused("without its source", without), Code::AlreadyExists);
        assert_eq!(driver.get(&made.volume_id).await.unwrap().content_source, made.content_source);
        driver.delete_snapshot(&taken.snapshot_id).await.unwrap();
        driver.delete_snapshot(&taken.snapshot_id).await.unwrap();
        let gone = driver.controller().get_snapshot(get).await;
        assert_eq!(refused("it is gone", gone), Code::NotFound);
        // The repeat of a deleted one's creation must not find anything.
        let gone = driver.create(restore(kind.create("again"), &taken.snapshot_id)).await;
        assert_eq!(refused("its source is gone", gone), Code::NotFound);
        for id in [&made.volume_id, &other] {
            driver.delete(id).await.unwrap();
        }
    }
    let machine = driver.stop().await;
    for place in ["volumes", "snapshots", "incoming", "trash"] {
        assert_eq!(machine.names("default", place), Vec::<String>::new(), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_at_least_as_large_as_its_source_and_of_its_kind() {
    let driver = on_btrfs().await;
    let volume = driver.make(LOOP, "pvc").await;
    let snapshot = driver.snapshot("snap", &volume).await.unwrap().snapshot_id;
    for source in [restore(LOOP.create("copy"), &snapshot), clone(LOOP.create("copy"), &volume)] {
        let with = |required, limit| {
            let mut request = source.clone();
            request.capacity_range = Some(range(required, limit));
            request
        };
        let small = driver.create(with(0, GIB - 4096)).await;
        assert_eq!(refused("limit below the source", small), Code::OutOfRange);
        let mut any = source.clone();
        any.capacity_range = None;
        let same = driver.create(any).await.unwrap();
        assert_eq!(same.capacity_bytes, GIB);
        driver.delete(&same.volume_id).await.unwrap();
        let large = driver.create(with(3 * GIB, 0)).await.unwrap();
        assert_eq!(large.capacity_bytes, 3 * GIB);
        driver.delete(&large.volume_id).await.unwrap();
        let mut other = source.clone();
        other.parameters = HOSTPATH.create("x").parameters;
        assert_eq!(refused("another backend", driver.create(other).await), Code::InvalidArgument);
        let mut other = source.clone();
        other.parameters.insert("csi.storage.k8s.io/fstype".to_owned(), "xfs".to_owned());
        assert_eq!(
            refused("another filesystem", driver.create(other).await),
            Code::InvalidArgument
        );
    }
    // The bytes of a filesystem may become a device; the other way round a filesystem must be there.
    let mut device = restore(BLOCK.create("device"), &snapshot);
    device.capacity_range = None;
    driver.create(device).await.unwrap();
    let raw = driver.make(BLOCK, "raw").await;
    let empty = driver.create(clone(LOOP.create("mounted"), &raw)).await;
    assert_eq!(refused("no filesystem", empty), Code::InvalidArgument);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_paged_and_filtered() {
    let driver = on_btrfs().await;
    let (one, other) = (driver.make(LOOP, "one").await, driver.make(LOOP, "other").await);
    let mut all = Vec::new();
    for index in 0..7 {
        let volume = if index % 3 == 0 { &other } else { &one };
        all.push(driver.snapshot(&format!("s{index}"), volume).await.unwrap().snapshot_id);
    }
    for (source, count) in [("", 7), (one.as_str(), 4), (other.as_str(), 3), ("v-nothing", 0)] {
        for most in 1..9 {
            let mut found = Vec::new();
            let mut request = ListSnapshotsRequest {
                max_entries: most,
                source_volume_id: source.to_owned(),
                ..Default::default()
            };
            loop {
                let page = driver.snapshots(request.clone()).await.unwrap();
                assert!(page.entries.len() <= usize::try_from(most).unwrap());
                found.extend(ids(&page));
                if page.next_token.is_empty() {
                    break;
                }
                request.starting_token = page.next_token;
            }
            assert_eq!(found.len(), count, "{source} by {most}");
            assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "in order, none twice");
        }
    }
    let by_id = |id: &str, source: &str| ListSnapshotsRequest {
        snapshot_id: id.to_owned(),
        source_volume_id: source.to_owned(),
        ..Default::default()
    };
    assert_eq!(ids(&driver.snapshots(by_id(&all[1], "")).await.unwrap()), [all[1].clone()]);
    assert_eq!(ids(&driver.snapshots(by_id(&all[1], &other)).await.unwrap()), Vec::<String>::new());
    assert_eq!(ids(&driver.snapshots(by_id("no", "")).await.unwrap()), Vec::<String>::new());
    let token = ListSnapshotsRequest { starting_token: "no".to_owned(), ..Default::default() };
    assert_eq!(refused("a token", driver.snapshots(token).await), Code::Aborted);
    let most = ListSnapshotsRequest { max_entries: -1, ..Default::default() };
    assert_eq!(refused("negative", driver.snapshots(most).await), Code::InvalidArgument);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_before_anything_is_held_up() {
    let machine = sharing(PoolFilesystem::Xfs, ByteSize::mib(2100));
    let driver = Driver::start_on(machine, &["default"], true).await;
    let volume = driver.make(LOOP, "pvc").await;
    let staging = driver.machine.path("staging");
    driver.stage(&volume, &staging, LOOP.shared()).await.unwrap();
    let snapshot = driver.snapshot("snap", &volume).await.unwrap();
    assert!(driver.machine.host.take_calls().contains(&"freeze"));
    driver.create(restore(LOOP.create("first"), &snapshot.snapshot_id)).await.unwrap();
    let second = driver.create(restore(LOOP.create("second"), &snapshot.snapshot_id)).await;
    assert_eq!(refused("no room", second), Code::ResourceExhausted);
    let cloned = driver.create(clone(LOOP.create("second"), &volume)).await;
    assert_eq!(refused("no room", cloned), Code::ResourceExhausted);
    assert!(!driver.machine.host.take_calls().contains(&"sync"), "nobody waits for nothing");
    assert_eq!(driver.machine.names("default", "incoming"), Vec::<String>::new());
    driver.unstage(&volume, &staging).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_holds_up_the_end_of_its_source_but_no_node_call() {
    let driver = Arc::new(on_btrfs().await);
    let volume = driver.make(LOOP, "pvc").await;
    let slow = Arc::new(driver.machine.host.block_next("share_file"));
    let copy = {
        let (driver, volume) = (Arc::clone(&driver), volume.clone());
        tokio::spawn(async move { driver.snapshot("snap", &volume).await })
    };
    let reached = Arc::clone(&slow);
    tokio::task::spawn_blocking(move || reached.wait()).await.unwrap();
    assert_eq!(refused("deletion", driver.delete(&volume).await), Code::Aborted);
    assert_eq!(
        refused("expansion", driver.expand(&volume, range(2 * GIB, 0)).await),
        Code::Aborted
    );
    assert_eq!(refused("the repeat", driver.snapshot("snap", &volume).await), Code::Aborted);
    let staging = driver.machine.path("staging");
    driver.stage(&volume, &staging, LOOP.shared()).await.unwrap();
    driver.unstage(&volume, &staging).await.unwrap();
    // Not half there either.
    let listed = driver.snapshots(ListSnapshotsRequest::default()).await.unwrap();
    assert_eq!(ids(&listed), Vec::<String>::new());
    Arc::into_inner(slow).unwrap().release();
    copy.await.unwrap().unwrap();
    driver.delete(&volume).await.unwrap();
    Arc::into_inner(driver).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_not_instant_is_only_made_while_nobody_writes() {
    let driver = Arc::new(Driver::start().await);
    for kind in KINDS {
        let volume = driver.make(kind, "pvc").await;
        let staging = driver.machine.path("staging");
        driver.stage(&volume, &staging, kind.shared()).await.unwrap();
        let taken = driver.snapshot("snap", &volume).await;
        assert_eq!(refused("in use", taken), Code::FailedPrecondition);
        driver.unstage(&volume, &staging).await.unwrap();
        let taken = driver.snapshot("snap", &volume).await.unwrap();
        driver.delete_snapshot(&taken.snapshot_id).await.unwrap();
        driver.delete(&volume).await.unwrap();
    }
    // A Node call that comes in while it is made is not delayed, and the copy is thrown away.
    let volume = driver.make(LOOP, "busy").await;
    let slow = Arc::new(driver.machine.host.block_next("disable_copy_on_write"));
    let copy = {
        let (driver, volume) = (Arc::clone(&driver), volume.clone());
        tokio::spawn(async move { driver.create(clone(LOOP.create("copy"), &volume)).await })
    };
    let reached = Arc::clone(&slow);
    tokio::task::spawn_blocking(move || reached.wait()).await.unwrap();
    let staging = driver.machine.path("staging");
    driver.stage(&volume, &staging, LOOP.shared()).await.unwrap();
    Arc::into_inner(slow).unwrap().release();
    assert_eq!(refused("interrupted", copy.await.unwrap()), Code::FailedPrecondition);
    driver.unstage(&volume, &staging).await.unwrap();
    driver.create(clone(LOOP.create("copy"), &volume)).await.unwrap();
    Arc::into_inner(driver).unwrap().stop().await;
}

/// Snapshots a staged volume on the loop device 0, and lets something happen while it is frozen.
async fn snapshot_while(
    driver: &Arc<Driver>,
    volume: &str,
    happens: fn(&FakeHost),
) -> Result<Snapshot, Status> {
    let slow = Arc::new(driver.machine.host.block_next("share_file"));
    let copy = {
        let (driver, volume) = (Arc::clone(driver), volume.to_owned());
        tokio::spawn(async move { driver.snapshot("snap", &volume).await })
    };
    let reached = Arc::clone(&slow);
    tokio::task::spawn_blocking(move || reached.wait()).await.unwrap();
    let host = driver.machine.host.clone();
    tokio::task::spawn_blocking(move || happens(&host)).await.unwrap();
    Arc::into_inner(slow).unwrap().release();
    copy.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_of_somebody_else_is_not_ended() {
    let driver = Arc::new(on_btrfs().await);
    let volume = driver.make(LOOP, "pvc").await;
    let staging = driver.machine.path("staging");
    driver.stage(&volume, &staging, LOOP.shared()).await.unwrap();
    driver.snapshot("own", &volume).await.unwrap();
    let host = driver.machine.host.clone();
    assert_eq!(host.frozen(), Vec::<u32>::new());
    host.freeze_elsewhere(0);
    driver.snapshot("beside", &volume).await.unwrap();
    assert_eq!(host.frozen(), [0]);
    // Whoever ends a freeze in the middle makes the copy one of no single instant.
    let torn = snapshot_while(&driver, &volume, |host| host.thaw_elsewhere(0)).await;
    assert_eq!(refused("thawed by its owner", torn), Code::FailedPrecondition);
    assert_eq!(host.frozen(), Vec::<u32>::new());
    let torn = snapshot_while(&driver, &volume, |host| host.thaw_elsewhere(0)).await;
    assert_eq!(refused("thawed by another program", torn), Code::FailedPrecondition);
    // What fails under a freeze ends it all the same.
    host.fail_next("share_file", nix::errno::Errno::EIO);
    assert_eq!(refused("a bad disk", driver.snapshot("bad", &volume).await), Code::Internal);
    assert_eq!(host.frozen(), Vec::<u32>::new());
    host.fail_next("freeze", nix::errno::Errno::EIO);
    assert_eq!(refused("no freeze", driver.snapshot("bad", &volume).await), Code::Internal);
    assert_eq!(driver.machine.names("default", "incoming"), Vec::<String>::new());
    let marks = std::fs::read_dir(driver.machine.path("root/state/frozen")).unwrap().count();
    assert_eq!(marks, 0);
    // What cannot be thawed stays marked, and the next start thaws it, mounted or not.
    host.fail_next("thaw", nix::errno::Errno::EIO);
    assert_eq!(refused("no thaw", driver.snapshot("bad", &volume).await), Code::Internal);
    assert_eq!(host.frozen(), [0]);
    driver.unstage(&volume, &staging).await.unwrap();
    Arc::into_inner(driver).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_marked_is_thawed_by_the_next_start() {
    let driver = on_btrfs().await;
    let volume = driver.make(LOOP, "pvc").await;
    let staging = driver.machine.path("staging");
    driver.stage(&volume, &staging, LOOP.shared()).await.unwrap();
    driver.machine.host.fail_next("thaw", nix::errno::Errno::EIO);
    assert_eq!(refused("no thaw", driver.snapshot("bad", &volume).await), Code::Internal);
    let driver = driver.restart().await;
    assert_eq!(driver.machine.host.frozen(), Vec::<u32>::new());
    let marks = std::fs::read_dir(driver.machine.path("root/state/frozen")).unwrap().count();
    assert_eq!(marks, 0);
    driver.unstage(&volume, &staging).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_that_takes_too_long_ends_and_its_copy_is_no_good() {
    let driver = Arc::new(on_btrfs().await);
    let volume = driver.make(LOOP, "pvc").await;
    let staging = driver.machine.path("staging");
    driver.stage(&volume, &staging, LOOP.shared()).await.unwrap();
    let late = snapshot_while(&driver, &volume, |host| {
        while !host.frozen().is_empty() {
            std::thread::yield_now();
        }
    });
    assert_eq!(refused("too late", late.await), Code::FailedPrecondition);
    assert_eq!(driver.machine.names("default", "snapshots"), Vec::<String>::new());
    driver.unstage(&volume, &staging).await.unwrap();
    Arc::into_inner(driver).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_made_found_and_ended_as_wholes() {
    let driver = on_btrfs().await;
    let (one, other) = (driver.make(LOOP, "one").await, driver.make(HOSTPATH, "other").await);
    let group = driver.group("g", &[&one, &other]).await.unwrap();
    assert_eq!(group.snapshots.len(), 2);
    for member in &group.snapshots {
        assert_eq!(member.group_snapshot_id, group.group_snapshot_id);
        assert!(group.group_snapshot_id.len() <= 128 && member.snapshot_id.len() <= 128);
        let single = driver.delete_snapshot(&member.snapshot_id).await;
        assert_eq!(refused("a member", single), Code::InvalidArgument);
    }
    // Of the same name as the group, and as a volume: three things of one key.
    let single = driver.snapshot("g", &one).await.unwrap();
    driver.make(LOOP, "g").await;
    assert_eq!(driver.snapshots(ListSnapshotsRequest::default()).await.unwrap().entries.len(), 3);
    assert_eq!(refused("other volumes", driver.group("g", &[&one]).await), Code::AlreadyExists);
    assert_eq!(refused("twice", driver.group("h", &[&one, &one]).await), Code::InvalidArgument);
    let driver = driver.restart().await;
    let mut groups = GroupControllerClient::new(driver.channel.clone());
    let members = |ids: &[&Snapshot]| ids.iter().map(|one| one.snapshot_id.clone()).collect();
    let all: Vec<&Snapshot> = group.snapshots.iter().collect();
    let mut get = GetVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        snapshot_ids: members(&all),
        ..Default::default()
    };
    let found = groups.get_volume_group_snapshot(get.clone()).await.unwrap().into_inner();
    assert_eq!(found.group_snapshot.unwrap(), group);
    get.snapshot_ids = members(&[all[0], &single]);
    let wrong = groups.get_volume_group_snapshot(get).await;
    assert_eq!(refused("a wrong list", wrong), Code::InvalidArgument);
    let mut delete = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        snapshot_ids: members(&all[..1]),
        ..Default::default()
    };
    let wrong = groups.delete_volume_group_snapshot(delete.clone()).await;
    assert_eq!(refused("a wrong list", wrong), Code::InvalidArgument);
    delete.snapshot_ids = members(&all);
    groups.delete_volume_group_snapshot(delete.clone()).await.unwrap();
    groups.delete_volume_group_snapshot(delete).await.unwrap();
    let left = driver.snapshots(ListSnapshotsRequest::default()).await.unwrap();
    assert_eq!(ids(&left), [single.snapshot_id]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_here_or_not_at_all() {
    let driver = on_btrfs().await;
    let volume = driver.make(LOOP, "pvc").await;
    let at = |node: &str| CreateSnapshotRequest {
        name: "snap".to_owned(),
        source_volume_id: volume.clone(),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![Topology { segments: map(&[(TOPOLOGY_KEY, node)]) }],
            preferred: Vec::new(),
        }),
        ..Default::default()
    };
    let elsewhere = driver.controller().create_snapshot(at("n2")).await;
    assert_eq!(refused("elsewhere", elsewhere), Code::ResourceExhausted);
    driver.controller().create_snapshot(at(NODE)).await.unwrap();
    let mut unknown = at(NODE);
    unknown.parameters = map(&[("speed", "fast")]);
    let unknown = driver.controller().create_snapshot(unknown).await;
    assert_eq!(refused("a parameter", unknown), Code::InvalidArgument);
    driver.stop().await;
}
