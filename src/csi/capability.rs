//! The one list of what the driver says it can do.

use super::legacy;
use super::proto::{
    ControllerServiceCapability, GroupControllerServiceCapability, NodeServiceCapability,
    PluginCapability,
    controller_service_capability::{self, rpc::Type as ControllerRpc},
    group_controller_service_capability,
    node_service_capability::{self, rpc::Type as NodeRpc},
    plugin_capability::{
        self, Service, VolumeExpansion, service::Type as PluginService,
        volume_expansion::Type as Expansion,
    },
};

/// What the configuration turns on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The controller grows volumes. Off where the resizer cannot reach the right node; NodeExpandVolume then does all.
    pub controller_expand: bool,
    /// NodeGetVolumeStats tells the volume condition of CSI 1.9 as well.
    pub legacy_volume_condition: bool,
}

/// What the controller can do.
pub(super) fn controller_rpcs(features: Features, attach: bool) -> Vec<ControllerRpc> {
    let mut rpcs = vec![
        ControllerRpc::CreateDeleteVolume,
        ControllerRpc::ListVolumes,
        ControllerRpc::GetCapacity,
        ControllerRpc::GetVolume,
        ControllerRpc::CreateDeleteSnapshot,
        ControllerRpc::ListSnapshots,
        ControllerRpc::GetSnapshot,
        ControllerRpc::CloneVolume,
        ControllerRpc::ModifyVolume,
        // With this and the node's, ReadWriteOnce means one node and ReadWriteOncePod one pod.
        ControllerRpc::SingleNodeMultiWriter,
        ControllerRpc::GetVolumeHealth,
        ControllerRpc::ListVolumeHealth,
    ];
    if features.controller_expand {
        rpcs.push(ControllerRpc::ExpandVolume);
    }
    if attach {
        rpcs.extend([
            ControllerRpc::PublishUnpublishVolume,
            ControllerRpc::PublishReadonly,
            ControllerRpc::ListVolumesPublishedNodes,
        ]);
    }
    rpcs
}

/// What the node can do.
pub(super) const NODE_RPCS: [NodeRpc; 6] = [
    NodeRpc::StageUnstageVolume,
    NodeRpc::GetVolumeStats,
    NodeRpc::ExpandVolume,
    NodeRpc::SingleNodeMultiWriter,
    NodeRpc::GetVolumeHealth,
    NodeRpc::GetStorageHealth,
];

pub(super) fn controller(features: Features, attach: bool) -> Vec<ControllerServiceCapability> {
    let wrap = |rpc: ControllerRpc| ControllerServiceCapability {
        r#type: Some(controller_service_capability::Type::Rpc(
            controller_service_capability::Rpc { r#type: rpc.into() },
        )),
    };
    controller_rpcs(features, attach).into_iter().map(wrap).collect()
}

pub(super) fn node(features: Features) -> Vec<NodeServiceCapability> {
    let wrap = |number: i32| NodeServiceCapability {
        r#type: Some(node_service_capability::Type::Rpc(node_service_capability::Rpc {
            r#type: number,
        })),
    };
    let legacy = features.legacy_volume_condition.then_some(legacy::VOLUME_CONDITION);
    NODE_RPCS.into_iter().map(i32::from).chain(legacy).map(wrap).collect()
}

/// What the group controller can do.
pub(super) fn group_controller() -> Vec<GroupControllerServiceCapability> {
    use group_controller_service_capability::{Rpc, Type, rpc::Type as GroupRpc};
    let r#type = GroupRpc::CreateDeleteGetVolumeGroupSnapshot.into();
    vec![GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type })) }]
}

pub(super) fn plugin() -> Vec<PluginCapability> {
    let service = |service: PluginService| PluginCapability {
        r#type: Some(plugin_capability::Type::Service(Service { r#type: service.into() })),
    };
    let expansion = PluginCapability {
        // Also while it is published, which includes when it is not.
        r#type: Some(plugin_capability::Type::VolumeExpansion(VolumeExpansion {
            r#type: Expansion::Online.into(),
        })),
    };
    vec![
        service(PluginService::ControllerService),
        service(PluginService::VolumeAccessibilityConstraints),
        service(PluginService::GroupControllerService),
        service(PluginService::SnapshotMetadataService),
        service(PluginService::SnapshotAccessibilityConstraints),
        expansion,
    ]
}
