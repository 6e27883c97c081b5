//! Calls about snapshots, groups of them, and what they make.

use orlop::csi::proto::{
    BlockMetadata, ControllerModifyVolumeRequest, CreateSnapshotRequest,
    CreateVolumeGroupSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeGroupSnapshotRequest, GetMetadataAllocatedRequest, GetMetadataDeltaRequest,
    ListSnapshotsRequest, ListVolumesRequest, Snapshot, Volume, VolumeContentSource,
    VolumeGroupSnapshot,
    group_controller_client::GroupControllerClient,
    snapshot_metadata_client::SnapshotMetadataClient,
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use tonic::Status;

use crate::client::{Client, Create, range};

/// What a volume begins with.
pub(crate) fn from_snapshot(id: &str) -> VolumeContentSource {
    let source = SnapshotSource { snapshot_id: id.to_owned() };
    VolumeContentSource { r#type: Some(Type::Snapshot(source)) }
}

/// The same for a clone.
pub(crate) fn from_volume(id: &str) -> VolumeContentSource {
    VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })) }
}

/// The ranges of a stream, and the capacity that it told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) ranges: Vec<(u64, u64)>,
    pub(crate) capacity: Option<i64>,
    pub(crate) messages: usize,
}

impl Told {
    fn add(&mut self, capacity: i64, blocks: &[BlockMetadata]) {
        assert_eq!(*self.capacity.get_or_insert(capacity), capacity);
        self.messages += 1;
        let number = |bytes: i64| u64::try_from(bytes).unwrap();
        for block in blocks {
            let start = number(block.byte_offset);
            let behind = self.ranges.last().is_none_or(|(_, end)| *end <= start);
            assert!(behind && block.size_bytes > 0, "{:?}", self.ranges);
            self.ranges.push((start, start + number(block.size_bytes)));
        }
    }
}

impl Client {
    pub(crate) fn create_from(
        &self,
        create: &Create,
        source: VolumeContentSource,
    ) -> Result<Volume, Status> {
        let parameters = create.parameters.iter();
        let request = CreateVolumeRequest {
            name: create.name.clone(),
            capacity_range: Some(range(create.bytes)),
            volume_capabilities: vec![create.capability.clone()],
            parameters: parameters.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            volume_content_source: Some(source.clone()),
            ..CreateVolumeRequest::default()
        };
        let reply = self.runtime.block_on(self.controller().create_volume(request))?;
        let volume = reply.into_inner().volume.unwrap();
        assert_eq!(volume.content_source, Some(source), "the provisioner deletes what lacks it");
        Ok(volume)
    }

    pub(crate) fn snapshot(&self, name: &str, volume: &str) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume.to_owned(),
            ..Default::default()
        };
        let reply = self.runtime.block_on(self.controller().create_snapshot(request))?;
        Ok(reply.into_inner().snapshot.unwrap())
    }

    pub(crate) fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.runtime.block_on(self.controller().delete_snapshot(request)).map(drop)
    }

    /// The ids of all volumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let request = ListVolumesRequest::default();
        let reply = self.runtime.block_on(self.controller().list_volumes(request)).unwrap();
        let entries = reply.into_inner().entries.into_iter();
        entries.map(|entry| entry.volume.unwrap().volume_id).collect()
    }

    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let request = ListSnapshotsRequest::default();
        let reply = self.runtime.block_on(self.controller().list_snapshots(request)).unwrap();
        reply.into_inner().entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect()
    }

    pub(crate) fn group(
        &self,
        name: &str,
        volumes: &[&str],
    ) -> Result<VolumeGroupSnapshot, Status> {
        let mut groups = GroupControllerClient::new(self.channel.clone());
        let request = CreateVolumeGroupSnapshotRequest {
            name: name.to_owned(),
            source_volume_ids: volumes.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        let reply = self.runtime.block_on(groups.create_volume_group_snapshot(request))?;
        Ok(reply.into_inner().group_snapshot.unwrap())
    }

    pub(crate) fn delete_group(&self, group: &VolumeGroupSnapshot) -> Result<(), Status> {
        let mut groups = GroupControllerClient::new(self.channel.clone());
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: group.snapshots.iter().map(|one| one.snapshot_id.clone()).collect(),
            ..Default::default()
        };
        self.runtime.block_on(groups.delete_volume_group_snapshot(request)).map(drop)
    }

    pub(crate) fn modify(&self, id: &str, name: &str, value: &str) -> Result<(), Status> {
        let request = ControllerModifyVolumeRequest {
            volume_id: id.to_owned(),
            mutable_parameters: [(name.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        self.runtime.block_on(self.controller().controller_modify_volume(request)).map(drop)
    }

    pub(crate) fn allocated(&self, id: &str, start: u64, most: i32) -> Result<Told, Status> {
        let mut metadata = SnapshotMetadataClient::new(self.channel.clone());
        let request = GetMetadataAllocatedRequest {
            snapshot_id: id.to_owned(),
            starting_offset: i64::try_from(start).unwrap(),
            max_results: most,
            ..Default::default()
        };
        self.runtime.block_on(async {
            let mut stream = metadata.get_metadata_allocated(request).await?.into_inner();
            let mut told = Told::default();
            while let Some(message) = stream.message().await? {
                assert!(
                    most == 0 || message.block_metadata.len() <= usize::try_from(most).unwrap()
                );
                told.add(message.volume_capacity_bytes, &message.block_metadata);
            }
            Ok(told)
        })
    }

    pub(crate) fn delta(&self, ids: (&str, &str), start: u64, most: i32) -> Result<Told, Status> {
        let mut metadata = SnapshotMetadataClient::new(self.channel.clone());
        let request = GetMetadataDeltaRequest {
            base_snapshot_id: ids.0.to_owned(),
            target_snapshot_id: ids.1.to_owned(),
            starting_offset: i64::try_from(start).unwrap(),
            max_results: most,
            ..Default::default()
        };
        self.runtime.block_on(async {
            let mut stream = metadata.get_metadata_delta(request).await?.into_inner();
            let mut told = Told::default();
            while let Some(message) = stream.message().await? {
                assert!(
                    most == 0 || message.block_metadata.len() <= usize::try_from(most).unwrap()
                );
                told.add(message.volume_capacity_bytes, &message.block_metadata);
            }
            Ok(told)
        })
    }
}
