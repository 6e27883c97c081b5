//! Calls that only the long random test makes: pages, capacity, and the shape of an answer.

use std::collections::BTreeMap;

use orlop::csi::proto::{
    ControllerGetVolumeHealthRequest, GetCapacityRequest, ListSnapshotsRequest, ListVolumesRequest,
    ValidateVolumeCapabilitiesRequest, Volume, VolumeCapability,
};
use tonic::Status;

use crate::client::Client;
use crate::soak_model::Wish;

/// Something listed twice would be counted twice by whoever walks the pages.
fn once<T>(into: &mut BTreeMap<String, T>, id: &str, entry: T) {
    assert!(into.insert(id.to_owned(), entry).is_none(), "{id} is listed twice");
}

impl Client {
    pub(crate) fn make(&self, wish: &Wish) -> Result<Volume, Status> {
        match &wish.source {
            None => self.create(&wish.create),
            Some(source) => self.create_from(&wish.create, source.clone()),
        }
    }

    /// The sizes of all volumes by id, listed in pages.
    pub(crate) fn volumes_in_pages(&self, page: i32) -> Result<BTreeMap<String, u64>, Status> {
        let (mut listed, mut token) = (BTreeMap::new(), String::new());
        loop {
            let request = ListVolumesRequest { max_entries: page, starting_token: token };
            let reply = self.runtime.block_on(self.controller().list_volumes(request))?;
            let reply = reply.into_inner();
            for entry in reply.entries {
                let volume = entry.volume.unwrap();
                let size = u64::try_from(volume.capacity_bytes).unwrap();
                once(&mut listed, &volume.volume_id, size);
            }
            token = reply.next_token;
            if token.is_empty() {
                return Ok(listed);
            }
        }
    }

    /// The sources of all snapshots by id, listed in pages.
    pub(crate) fn snapshots_in_pages(&self, page: i32) -> Result<BTreeMap<String, String>, Status> {
        let (mut listed, mut token) = (BTreeMap::new(), String::new());
        loop {
            let request = ListSnapshotsRequest {
                max_entries: page,
                starting_token: token,
                ..Default::default()
            };
            let reply = self.runtime.block_on(self.controller().list_snapshots(request))?;
            let reply = reply.into_inner();
            for entry in reply.entries {
                let snapshot = entry.snapshot.unwrap();
                once(&mut listed, &snapshot.snapshot_id, snapshot.source_volume_id);
            }
            token = reply.next_token;
            if token.is_empty() {
                return Ok(listed);
            }
        }
    }

    /// What can still be promised in a pool to loop volumes of any size.
    pub(crate) fn room_in(&self, pool: &str) -> Result<u64, Status> {
        let parameters = [("backend", "hostpath"), ("pool", pool)];
        let parameters = parameters.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let request = GetCapacityRequest { parameters: parameters.into(), ..Default::default() };
        let reply = self.runtime.block_on(self.controller().get_capacity(request))?;
        Ok(u64::try_from(reply.into_inner().available_capacity).unwrap())
    }

    /// Whether a volume is confirmed to have a capability.
    pub(crate) fn validate(&self, id: &str, capability: &VolumeCapability) -> Result<bool, Status> {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: vec![capability.clone()],
            ..Default::default()
        };
        let reply =
            self.runtime.block_on(self.controller().validate_volume_capabilities(request))?;
        Ok(reply.into_inner().confirmed.is_some())
    }

    /// What is wrong with a volume, with the messages.
    pub(crate) fn ills(&self, id: &str) -> Result<Vec<String>, Status> {
        let request =
            ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let reply =
            self.runtime.block_on(self.controller().controller_get_volume_health(request))?;
        let told = reply.into_inner().volume_health.unwrap().health_statuses;
        Ok(told.into_iter().map(|ill| format!("{}: {}", ill.reason, ill.message)).collect())
    }
}
