//! The SnapshotMetadata service: streams of changed blocks.
//!
//! A stream pins its snapshots until it ends or its reader has gone. It reads ahead by a few messages only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::controller::snapshot_key;
use super::proto::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse, snapshot_metadata_server,
};
use super::{Claims, Jobs, request, rpc};
use crate::engine::{Engine, MetadataQuery, Range};

/// Messages that are ready before somebody reads them.
const AHEAD: usize = 4;
/// The most ranges in a message: 20 KiB or less, far below what clients accept by default.
const RANGES: usize = 1024;
/// A reader that takes no message for so long holds up what it pins, and its stream ends.
const STALL: Duration = Duration::from_secs(30);
/// So does one that takes this long in all; it can go on with a new one.
const LONGEST: Duration = Duration::from_secs(900);

#[derive(Debug)]
pub(super) struct SnapshotMetadata {
    pub(super) engine: Arc<Engine>,
    pub(super) jobs: Arc<Jobs>,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

fn ranges_at_once(max_results: i32) -> Result<usize, Status> {
    match usize::try_from(max_results) {
        Err(_negative) => Err(Status::invalid_argument("max_results is negative")),
        Ok(0) => Ok(RANGES),
        Ok(most) => Ok(most.min(RANGES)),
    }
}

fn blocks(ranges: Vec<Range>) -> Vec<BlockMetadata> {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let block = |range: Range| BlockMetadata {
        byte_offset: number(range.start),
        size_bytes: number(range.end - range.start),
    };
    ranges.into_iter().map(block).collect()
}

impl SnapshotMetadata {
    /// Opens the snapshots, then tells their ranges in the background.
    async fn stream<T: Send + 'static>(
        &self,
        query: MetadataQuery,
        message: fn(i64, Vec<BlockMetadata>) -> T,
    ) -> Result<Stream<T>, Status> {
        let lane = format!("metadata of {}", query.target.pool);
        let snapshots = [query.base.as_ref(), Some(&query.target)].into_iter().flatten();
        let claims = Claims::reading(snapshots.map(|id| snapshot_key(&id.key)));
        let engine = Arc::clone(&self.engine);
        let opened =
            self.jobs.change(claims.clone(), &lane, move || engine.open_metadata(&query)).await?;
        let (engine, jobs) = (Arc::clone(&self.engine), Arc::clone(&self.jobs));
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(async move {
            let (ranges, runtime) = (sender.clone(), Handle::current());
            let told = jobs.change(claims, &lane, move || {
                let capacity = opened.capacity().as_i64();
                let (mut stalled, begun) = (false, Instant::now());
                engine.tell_metadata(&opened, &mut |found| {
                    let sent = ranges.send_timeout(Ok(message(capacity, blocks(found))), STALL);
                    let sent = runtime.block_on(sent);
                    let too_slow = begun.elapsed() > LONGEST;
                    stalled = too_slow || matches!(sent, Err(SendTimeoutError::Timeout(_)));
                    sent.is_ok() && !too_slow
                })?;
                Ok(stalled)
            });
            let end = match told.await {
                Ok(false) => return,
                Ok(true) => Status::deadline_exceeded(
                    "the ranges were read too slowly; go on from the end of the last one",
                ),
                Err(status) => status,
            };
            // A stream that just ended would be taken for a whole one. Nothing is pinned or held any more.
            let _unheard = sender.send(Err(end)).await;
        });
        Ok(ReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl snapshot_metadata_server::SnapshotMetadata for SnapshotMetadata {
    type GetMetadataAllocatedStream = Stream<GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = Stream<GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let request = request.into_inner();
        rpc::logged("GetMetadataAllocated", &request.snapshot_id, async {
            let query = MetadataQuery {
                base: None,
                target: request::snapshot_id(&request.snapshot_id)?,
                start: request.starting_offset,
                most: ranges_at_once(request.max_results)?,
            };
            let message = |volume_capacity_bytes, block_metadata| GetMetadataAllocatedResponse {
                block_metadata_type: BlockMetadataType::VariableLength.into(),
                volume_capacity_bytes,
                block_metadata,
            };
            self.stream(query, message).await
        })
        .await
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let request = request.into_inner();
        rpc::logged("GetMetadataDelta", &request.target_snapshot_id, async {
            let query = MetadataQuery {
                base: Some(request::snapshot_in("base_snapshot_id", &request.base_snapshot_id)?),
                target: request::snapshot_in("target_snapshot_id", &request.target_snapshot_id)?,
                start: request.starting_offset,
                most: ranges_at_once(request.max_results)?,
            };
            let message = |volume_capacity_bytes, block_metadata| GetMetadataDeltaResponse {
                block_metadata_type: BlockMetadataType::VariableLength.into(),
                volume_capacity_bytes,
                block_metadata,
            };
            self.stream(query, message).await
        })
        .await
    }
}
