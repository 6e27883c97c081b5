//! What is advertised answers, what is not is UNIMPLEMENTED, and every RPC of the contract is one or the other.

use std::collections::BTreeSet;

use orlop::csi::proto::controller_service_capability::{self, rpc::Type as ControllerRpc};
use orlop::csi::proto::group_controller_client::GroupControllerClient;
use orlop::csi::proto::node_service_capability::{self, rpc::Type as NodeRpc};
use orlop::csi::proto::plugin_capability::{self, service::Type as PluginService};
use orlop::csi::proto::snapshot_metadata_client::SnapshotMetadataClient;
use orlop::csi::proto::*;
use tonic::Code;

use super::common::{Machine, NODE, TOPOLOGY_KEY};
use super::driver::{Driver, HOSTPATH, map, range, refused};

/// Calls an RPC with an empty request; the answer's code, and whether it says something.
macro_rules! codes {
    ($client:expr => $($method:ident($request:ident)),+ $(,)?) => {
        vec![$((stringify!($request), match $client.$method($request::default()).await {
            Ok(_) => Code::Ok,
            Err(status) => {
                assert!(!status.message().is_empty(), "{} has no message", stringify!($method));
                status.code()
            }
        })),+]
    };
}

type Codes = Vec<(&'static str, Code)>;

async fn advertised(driver: &Driver) -> Codes {
    let mut all = codes!(driver.identity() =>
        get_plugin_info(GetPluginInfoRequest),
        get_plugin_capabilities(GetPluginCapabilitiesRequest),
        probe(ProbeRequest),
    );
    all.extend(codes!(driver.controller() =>
        create_volume(CreateVolumeRequest),
        delete_volume(DeleteVolumeRequest),
        validate_volume_capabilities(ValidateVolumeCapabilitiesRequest),
        list_volumes(ListVolumesRequest),
        get_capacity(GetCapacityRequest),
        controller_get_capabilities(ControllerGetCapabilitiesRequest),
        controller_expand_volume(ControllerExpandVolumeRequest),
        controller_get_volume(ControllerGetVolumeRequest),
        create_snapshot(CreateSnapshotRequest),
        delete_snapshot(DeleteSnapshotRequest),
        list_snapshots(ListSnapshotsRequest),
        get_snapshot(GetSnapshotRequest),
        controller_modify_volume(ControllerModifyVolumeRequest),
        controller_list_volume_health(ControllerListVolumeHealthRequest),
        controller_get_volume_health(ControllerGetVolumeHealthRequest),
    ));
    all.extend(codes!(driver.node() =>
        node_stage_volume(NodeStageVolumeRequest),
        node_unstage_volume(NodeUnstageVolumeRequest),
        node_publish_volume(NodePublishVolumeRequest),
        node_unpublish_volume(NodeUnpublishVolumeRequest),
        node_get_volume_stats(NodeGetVolumeStatsRequest),
        node_expand_volume(NodeExpandVolumeRequest),
        node_get_capabilities(NodeGetCapabilitiesRequest),
        node_get_info(NodeGetInfoRequest),
        node_get_volume_health(NodeGetVolumeHealthRequest),
        node_get_storage_health(NodeGetStorageHealthRequest),
    ));
    all
}

async fn not_advertised(driver: &Driver) -> Codes {
    codes!(driver.controller() =>
        controller_publish_volume(ControllerPublishVolumeRequest),
        controller_unpublish_volume(ControllerUnpublishVolumeRequest),
    )
}

/// The two services for snapshots.
async fn for_snapshots(driver: &Driver) -> Codes {
    let mut groups = GroupControllerClient::new(driver.channel.clone());
    let mut metadata = SnapshotMetadataClient::new(driver.channel.clone());
    let mut all = codes!(groups =>
        group_controller_get_capabilities(GroupControllerGetCapabilitiesRequest),
        create_volume_group_snapshot(CreateVolumeGroupSnapshotRequest),
        delete_volume_group_snapshot(DeleteVolumeGroupSnapshotRequest),
        get_volume_group_snapshot(GetVolumeGroupSnapshotRequest),
    );
    all.extend(codes!(metadata =>
        get_metadata_allocated(GetMetadataAllocatedRequest),
        get_metadata_delta(GetMetadataDeltaRequest),
    ));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_of_the_contract_is_answered_or_unimplemented() {
    let driver = Driver::start().await;
    let answered = [advertised(&driver).await, for_snapshots(&driver).await].concat();
    let absent = not_advertised(&driver).await;
    for (name, code) in &answered {
        let fine = matches!(code, Code::Ok | Code::InvalidArgument);
        assert!(fine, "{name}: an empty request is answered with {code:?}");
    }
    for (name, code) in &absent {
        assert_eq!(*code, Code::Unimplemented, "{name}");
    }
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/csi.proto");
    let proto = std::fs::read_to_string(proto).unwrap();
    let written = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    let written: BTreeSet<_> =
        written.map(|rest| format!("{}Request", rest.split('(').next().unwrap())).collect();
    let called = [answered, absent].concat();
    let called: BTreeSet<_> = called.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(called, written);
    assert_eq!(written.len(), 36, "CSI 1.13");
    driver.stop().await;
}

async fn controller_rpcs(driver: &Driver) -> Vec<ControllerRpc> {
    let request = ControllerGetCapabilitiesRequest {};
    let reply = driver.controller().controller_get_capabilities(request).await.unwrap();
    let rpc = |capability: ControllerServiceCapability| match capability.r#type {
        Some(controller_service_capability::Type::Rpc(rpc)) => rpc.r#type(),
        None => panic!("an empty capability"),
    };
    reply.into_inner().capabilities.into_iter().map(rpc).collect()
}

async fn check_services(driver: &Driver) {
    let reply = driver.identity().get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await;
    let services = reply.unwrap().into_inner().capabilities.into_iter();
    let services: Vec<_> = services
        .filter_map(|capability| match capability.r#type {
            Some(plugin_capability::Type::Service(service)) => Some(service.r#type()),
            Some(plugin_capability::Type::VolumeExpansion(_)) | None => None,
        })
        .collect();
    let wanted = [
        PluginService::ControllerService,
        PluginService::VolumeAccessibilityConstraints,
        PluginService::GroupControllerService,
        PluginService::SnapshotMetadataService,
        PluginService::SnapshotAccessibilityConstraints,
    ];
    assert_eq!(services, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_what_works_is_advertised() {
    let driver = Driver::start().await;
    let controller = vec![
        ControllerRpc::CreateDeleteVolume,
        ControllerRpc::ListVolumes,
        ControllerRpc::GetCapacity,
        ControllerRpc::GetVolume,
        ControllerRpc::CreateDeleteSnapshot,
        ControllerRpc::ListSnapshots,
        ControllerRpc::GetSnapshot,
        ControllerRpc::CloneVolume,
        ControllerRpc::ModifyVolume,
        ControllerRpc::SingleNodeMultiWriter,
        ControllerRpc::GetVolumeHealth,
        ControllerRpc::ListVolumeHealth,
        ControllerRpc::ExpandVolume,
    ];
    assert_eq!(controller_rpcs(&driver).await, controller);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_what_works_is_advertised_by_the_node_and_the_plugin() {
    let driver = Driver::start().await;
    let reply = driver.node().node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
    let rpc = |capability: NodeServiceCapability| match capability.r#type {
        Some(node_service_capability::Type::Rpc(rpc)) => rpc.r#type(),
        None => panic!("an empty capability"),
    };
    let node: Vec<_> = reply.into_inner().capabilities.into_iter().map(rpc).collect();
    let wanted = [
        NodeRpc::StageUnstageVolume,
        NodeRpc::GetVolumeStats,
        NodeRpc::ExpandVolume,
        NodeRpc::SingleNodeMultiWriter,
        NodeRpc::GetVolumeHealth,
        NodeRpc::GetStorageHealth,
    ];
    assert_eq!(node, wanted);
    check_services(&driver).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expansion_by_the_controller_can_be_switched_off() {
    let driver = Driver::start().await;
    let mut controller = controller_rpcs(&driver).await;
    // Where the resizer cannot reach the right node, the controller does not offer to grow.
    let driver = Driver::start_on(driver.stop().await, &["default"], false).await;
    controller.retain(|rpc| *rpc != ControllerRpc::ExpandVolume);
    assert_eq!(controller_rpcs(&driver).await, controller);
    let id = driver.make(HOSTPATH, "pvc").await;
    let grown = driver.expand(&id, range(2 << 30, 0)).await;
    assert_eq!(refused("expansion is off", grown), Code::Unimplemented);
    // The node then does all of it.
    let staging = driver.machine.path("staging");
    driver.stage(&id, &staging, HOSTPATH.shared()).await.unwrap();
    assert_eq!(driver.node_expand(&id, &staging, range(2 << 30, 0)).await.unwrap(), 2 << 30);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_are_offered_by_the_flag_alone() {
    let driver = Driver::start().await;
    let without = controller_rpcs(&driver).await;
    let mut machine = driver.stop().await;
    machine.attach = true;
    let driver = Driver::start_on(machine, &["default"], true).await;
    let more = [
        ControllerRpc::PublishUnpublishVolume,
        ControllerRpc::PublishReadonly,
        ControllerRpc::ListVolumesPublishedNodes,
    ];
    assert_eq!(controller_rpcs(&driver).await, [without.as_slice(), more.as_slice()].concat());
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_says_who_and_where_it_is() {
    let driver = Driver::start_on(Machine::new(), &["default"], true).await;
    let info = driver.identity().get_plugin_info(GetPluginInfoRequest {}).await.unwrap();
    let info = info.into_inner();
    assert_eq!(info.name, "orlop.csi.local");
    assert!(!info.vendor_version.is_empty());
    let probe = driver.identity().probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));
    let node = driver.node().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(node.node_id, NODE);
    assert!(node.max_volumes_per_node > 0);
    assert_eq!(node.accessible_topology.unwrap().segments, map(&[(TOPOLOGY_KEY, NODE)]));
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capabilities_are_confirmed_as_they_were_asked_or_refused_in_words() {
    use orlop::csi::proto::volume_capability::access_mode::Mode;
    let driver = Driver::start().await;
    let id = driver.make(HOSTPATH, "pvc").await;
    let ask = |capability: VolumeCapability| ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![capability],
        parameters: map(&[("backend", "hostpath")]),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let good = ask(HOSTPATH.capability(Mode::MultiNodeMultiWriter));
    let reply = driver.controller().validate_volume_capabilities(good.clone()).await.unwrap();
    let confirmed = reply.into_inner().confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, good.volume_capabilities);
    assert_eq!(confirmed.parameters, good.parameters);
    for spoil in [
        |r: &mut ValidateVolumeCapabilitiesRequest| r.parameters = map(&[("backend", "loop")]),
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_context = map(&[("a", "b")]),
    ] {
        let mut unseen = good.clone();
        spoil(&mut unseen);
        let reply = driver.controller().validate_volume_capabilities(unseen).await.unwrap();
        let reply = reply.into_inner();
        assert!(reply.confirmed.is_none() && !reply.message.is_empty(), "{reply:?}");
    }
    let block = ask(super::driver::BLOCK.shared());
    let reply = driver.controller().validate_volume_capabilities(block).await.unwrap();
    let reply = reply.into_inner();
    assert!(reply.confirmed.is_none() && reply.message.contains("block"), "{reply:?}");
    driver.stop().await;
}
