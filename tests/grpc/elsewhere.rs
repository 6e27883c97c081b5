//! What this node cannot do and another one may: the codes that have the scheduler look for one.

use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use orlop::csi::proto::{
    CreateVolumeRequest, GetCapacityRequest, Topology, TopologyRequirement, VolumeContentSource,
};
use tonic::Code;

use super::common::{Machine, NODE, TOPOLOGY_KEY};
use super::driver::{Driver, HOSTPATH, map, refused};

/// The same request as external-provisioner sends it where nodes have a topology.
fn anywhere(request: CreateVolumeRequest) -> CreateVolumeRequest {
    let here = Topology { segments: map(&[(TOPOLOGY_KEY, NODE)]) };
    let topology = TopologyRequirement { requisite: vec![here.clone()], preferred: vec![here] };
    CreateVolumeRequest { accessibility_requirements: Some(topology), ..request }
}

fn with(parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    let mut request = HOSTPATH.create("pvc");
    request.parameters.extend(map(parameters));
    request
}

fn from(source: Type) -> CreateVolumeRequest {
    let source = VolumeContentSource { r#type: Some(source) };
    CreateVolumeRequest { volume_content_source: Some(source), ..HOSTPATH.create("pvc") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_node_lacks_another_may_have() {
    let driver = Driver::start_on(Machine::new(), &["one", "two"], true).await;
    // Of a pool that this node has never had.
    let volume_id = "v-01234567-00112233445566778899aabbccddeeff-89abcdef".to_owned();
    let snapshot_id = volume_id.replacen('v', "s", 1);
    for (what, request, alone, named) in [
        ("a pool", with(&[("pool", "fast")]), Code::InvalidArgument, "pools are: one, two"),
        ("a limit", with(&[("quota", "required")]), Code::InvalidArgument, "quota=required"),
        (
            "a volume",
            from(Type::Volume(VolumeSource { volume_id })),
            Code::Unavailable,
            "pool 01234567 is not on this node",
        ),
        (
            "a snapshot",
            from(Type::Snapshot(SnapshotSource { snapshot_id })),
            Code::Unavailable,
            "pool 01234567 is not on this node",
        ),
    ] {
        for (request, code) in
            [(request.clone(), alone), (anywhere(request), Code::ResourceExhausted)]
        {
            let status = driver.create(request).await.expect_err(what);
            assert_eq!(status.code(), code, "{what}: {status}");
            assert!(status.message().contains(named), "{what}: {status}");
        }
    }
    // Wrong everywhere is no question of the node.
    let wrong = anywhere(with(&[("backend", "zfs")]));
    assert_eq!(refused("a wrong class", driver.create(wrong).await), Code::InvalidArgument);
    // What exists is found, whatever its class says by now.
    driver.create(anywhere(with(&[]))).await.unwrap();
    let again = driver.create(anywhere(with(&[("pool", "fast")]))).await;
    assert_eq!(refused("another class", again), Code::AlreadyExists);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "a test takes a pool away as an operator would")]
async fn a_volume_that_may_be_here_is_not_made_elsewhere() {
    let driver = Driver::start_on(Machine::new(), &["one", "two"], true).await;
    let in_one = anywhere(with(&[("pool", "one")]));
    let volume = driver.create(in_one.clone()).await.unwrap().volume_id;
    std::fs::rename(driver.machine.pool("one"), driver.machine.path("away")).unwrap();
    let copy = anywhere(CreateVolumeRequest {
        name: "copy".to_owned(),
        parameters: with(&[("pool", "two")]).parameters,
        ..from(Type::Volume(VolumeSource { volume_id: volume }))
    });
    for (what, request) in
        [("its name", in_one), ("any pool", anywhere(with(&[]))), ("a copy of it", copy)]
    {
        assert_eq!(refused(what, driver.create(request).await), Code::Unavailable, "{what}");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "a test takes a pool away as an operator would")]
async fn a_class_of_another_node_has_no_room_here() {
    let driver = Driver::start_on(Machine::new(), &["one", "two"], true).await;
    let room = |pool: &str| {
        let parameters = map(&[("pool", pool)]);
        driver.capacity(GetCapacityRequest { parameters, ..GetCapacityRequest::default() })
    };
    assert!(room("one").await.unwrap().available_capacity > 0);
    std::fs::rename(driver.machine.pool("one"), driver.machine.path("away")).unwrap();
    for pool in ["fast", "one"] {
        let told = room(pool).await.unwrap();
        let largest = told.maximum_volume_size;
        assert_eq!((told.available_capacity, largest), (0, Some(0)), "{pool}");
    }
    assert!(room("two").await.unwrap().available_capacity > 0);
    driver.stop().await;
}
