//! Sizes, room, capacity, and what makes two requests of one name differ.

use orlop::csi::proto::volume_capability::{AccessType, MountVolume};
use orlop::csi::proto::{
    CreateVolumeRequest, GetCapacityRequest, Topology, TopologyRequirement, VolumeCapability,
};
use tonic::{Code, Status};

use super::common::{NODE, TOPOLOGY_KEY};
use super::driver::{BLOCK, Driver, GIB, HOSTPATH, LOOP, MIB, map, range, refused};

/// What the model's filesystem has.
const ALL: i64 = 100 * GIB;

fn formatted(fs_type: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() };
    VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..LOOP.shared() }
}

fn topology(node: &str) -> Topology {
    Topology { segments: map(&[(TOPOLOGY_KEY, node)]) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_volume_s_size_lies_in_the_range() {
    let driver = Driver::start().await;
    let xfs =
        CreateVolumeRequest { volume_capabilities: vec![formatted("xfs")], ..LOOP.create("x") };
    let rows = [
        (HOSTPATH.create("x"), range(0, 0), Some(GIB)),
        (HOSTPATH.create("x"), range(5, 0), Some(MIB)),
        (HOSTPATH.create("x"), range(MIB + 1, 0), Some(MIB + 4096)),
        (HOSTPATH.create("x"), range(0, 5), None),
        (HOSTPATH.create("x"), range(0, 2 * MIB), Some(2 * MIB)),
        (HOSTPATH.create("x"), range(6, 5), None),
        (HOSTPATH.create("x"), range(i64::MAX, 0), None),
        (HOSTPATH.create("x"), range(1 << 62, 0), None),
        (LOOP.create("x"), range(1, 0), Some(16 * MIB)),
        (LOOP.create("x"), range(GIB + 1, 0), Some(GIB + 4096)),
        (LOOP.create("x"), range(GIB + 1, GIB + 2), None),
        (LOOP.create("x"), range(0, MIB), None),
        (BLOCK.create("x"), range(1, 0), Some(4096)),
        (BLOCK.create("x"), range(GIB, GIB), Some(GIB)),
        (xfs.clone(), range(MIB, 0), Some(300 * MIB)),
        (xfs, range(MIB, 299 * MIB), None),
    ];
    for (mut request, range, wanted) in rows {
        request.capacity_range = Some(range);
        match (driver.create(request).await, wanted) {
            (Ok(volume), Some(size)) => {
                assert_eq!(volume.capacity_bytes, size, "{range:?}");
                driver.delete(&volume.volume_id).await.unwrap();
            }
            (Err(status), None) if range.required_bytes == 1 << 62 => {
                assert_eq!(status.code(), Code::ResourceExhausted);
            }
            (answer, None) => {
                assert_eq!(refused("no such size", answer), Code::OutOfRange, "{range:?}");
            }
            (Err(status), Some(_)) => panic!("{range:?}: {status}"),
        }
    }
    assert_eq!(driver.machine.names("default", "incoming"), Vec::<String>::new());
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_room_is_exhausted_for_a_new_volume_and_out_of_range_for_growth() {
    let driver = Driver::start().await;
    let sized = |name: &str, size| CreateVolumeRequest {
        capacity_range: Some(range(size, 0)),
        ..LOOP.create(name)
    };
    let big = driver.create(sized("big", ALL - 2 * GIB)).await.unwrap().volume_id;
    let small = driver.make(LOOP, "small").await;
    let none = driver.create(sized("more", 2 * GIB)).await;
    assert_eq!(refused("no room", none), Code::ResourceExhausted);
    for (wanted, what) in [
        (range(4 * GIB, 0), "no room"),
        (range(0, MIB), "limit below its size"),
        (range(3 * GIB, 2 * GIB), "inverted"),
        (range(GIB + 1, GIB + 2), "no such size"),
    ] {
        assert_eq!(refused(what, driver.expand(&small, wanted).await), Code::OutOfRange, "{what}");
    }
    assert_eq!(driver.get(&small).await.unwrap().capacity_bytes, GIB);
    // Less than it has is what it has.
    assert_eq!(driver.expand(&small, range(MIB, 0)).await.unwrap().capacity_bytes, GIB);
    assert_eq!(driver.expand(&small, range(2 * GIB, 0)).await.unwrap().capacity_bytes, 2 * GIB);
    assert_eq!(driver.capacity(GetCapacityRequest::default()).await.unwrap().available_capacity, 0);
    // What is deleted makes room when it is gone.
    driver.delete(&big).await.unwrap();
    driver.engine.drain_trash();
    driver.create(sized("more", 2 * GIB)).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_filesystem_is_no_room() {
    let driver = Driver::start().await;
    driver.machine.host.fail_next("format", nix::errno::Errno::ENOSPC);
    let full = driver.create(LOOP.create("pvc")).await;
    assert_eq!(refused("ENOSPC", full), Code::ResourceExhausted);
    assert_eq!(driver.machine.names("default", "incoming"), Vec::<String>::new());
    driver.make(LOOP, "pvc").await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_only_where_it_may_be() {
    let driver = Driver::start().await;
    let asked = |requisite: &[Topology], preferred: &[Topology]| CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement {
            requisite: requisite.to_vec(),
            preferred: preferred.to_vec(),
        }),
        ..HOSTPATH.create("pvc")
    };
    let (here, there) = (topology(NODE), topology("other"));
    for (what, request) in [
        ("requisite", asked(std::slice::from_ref(&there), &[])),
        (
            "requisite, preferred or not",
            asked(std::slice::from_ref(&there), std::slice::from_ref(&here)),
        ),
        ("preferred alone", asked(&[], std::slice::from_ref(&there))),
    ] {
        assert_eq!(refused(what, driver.create(request).await), Code::ResourceExhausted, "{what}");
    }
    let volume = driver.create(asked(&[there, here.clone()], &[])).await.unwrap();
    assert_eq!(volume.accessible_topology, [here]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_is_what_can_be_had() {
    let driver = Driver::start().await;
    let class = |parameters: &[(&str, &str)]| GetCapacityRequest {
        parameters: map(parameters),
        ..GetCapacityRequest::default()
    };
    let block = GetCapacityRequest {
        volume_capabilities: vec![BLOCK.shared()],
        ..GetCapacityRequest::default()
    };
    let at = |node| GetCapacityRequest {
        accessible_topology: Some(topology(node)),
        ..GetCapacityRequest::default()
    };
    let xfs = class(&[("backend", "loop"), ("csi.storage.k8s.io/fstype", "xfs")]);
    let block_loop = GetCapacityRequest { parameters: map(BLOCK.parameters), ..block.clone() };
    let rows = [
        (GetCapacityRequest::default(), ALL, MIB),
        (class(&[("csi.storage.k8s.io/pvc/name", "x")]), ALL, MIB),
        (class(&[("pool", "default"), ("backend", "loop")]), ALL, 16 * MIB),
        (xfs, ALL, 300 * MIB),
        (block_loop, ALL, 4096),
        (block, 0, MIB),
        (at(NODE), ALL, MIB),
        (at("other"), 0, MIB),
    ];
    for (request, available, minimum) in rows {
        let told = driver.capacity(request.clone()).await.unwrap();
        let figures = (told.available_capacity, told.maximum_volume_size, told.minimum_volume_size);
        assert_eq!(figures, (available, Some(available), Some(minimum)), "{request:?}");
    }
    driver.make(LOOP, "pvc").await;
    let told = driver.capacity(GetCapacityRequest::default()).await.unwrap();
    assert_eq!(told.available_capacity, ALL - GIB);
    driver.stop().await;
}

/// The message of a refusal as ALREADY_EXISTS.
#[track_caller]
fn conflict(status: &Status) -> &str {
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    status.message()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_differs_is_told_in_which_field() {
    let driver = Driver::start().await;
    let good = LOOP.create("pvc");
    let id = driver.create(good.clone()).await.unwrap().volume_id;
    let with = |name, value| {
        let mut request = good.clone();
        request.parameters.insert(String::from(name), String::from(value));
        request
    };
    let larger = CreateVolumeRequest { capacity_range: Some(range(2 * GIB, 0)), ..good.clone() };
    let smaller = CreateVolumeRequest { capacity_range: Some(range(0, MIB)), ..good.clone() };
    let other_kind =
        CreateVolumeRequest { volume_capabilities: vec![BLOCK.shared()], ..good.clone() };
    let xfs = CreateVolumeRequest { volume_capabilities: vec![formatted("xfs")], ..good.clone() };
    for (request, field) in [
        (larger, "capacity_range"),
        (smaller, "capacity_range"),
        (other_kind, "access type"),
        (xfs, "filesystem"),
        (with("backend", "hostpath"), "parameter backend"),
        (with("allocation", "thick"), "parameter allocation"),
        (with("directIO", "off"), "parameter directIO"),
        (with("mode", "0700"), "parameter mode"),
        (with("mkfsOptions", "-m 1"), "parameter mkfsOptions"),
        (with("pool", "default"), "parameter pool"),
    ] {
        let status = driver.create(request).await.unwrap_err();
        assert!(conflict(&status).contains(field), "{field}: {status}");
    }
    // The same in other words, and what may change, is no difference.
    let fits = CreateVolumeRequest { capacity_range: Some(range(MIB, 2 * GIB)), ..good.clone() };
    let same_filesystem =
        CreateVolumeRequest { volume_capabilities: vec![formatted("ext4")], ..good.clone() };
    for request in [
        fits,
        same_filesystem,
        with("mode", "777"),
        with("onDelete", "retain"),
        with("csi.storage.k8s.io/pvc/name", "x"),
    ] {
        assert_eq!(driver.create(request).await.unwrap().volume_id, id);
    }
    driver.stop().await;
}
