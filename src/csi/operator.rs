//! The Operator service: what an operator asks of a running driver, because the driver has the pools locked.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::proto::operator::{
    DeleteVolumeRequest, DeleteVolumeResponse, ImportVolumeRequest, ImportVolumeResponse,
    operator_server,
};
use super::{Claims, Jobs, request, rpc};
use crate::engine::{Described, Engine};

/// Imports are long, and of whichever pool: they have a lane of their own.
const LANE: &str = "import";

#[derive(Debug)]
pub(super) struct Operator {
    pub(super) engine: Arc<Engine>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) driver_name: String,
}

impl Operator {
    fn reply(&self, imported: &Described) -> ImportVolumeResponse {
        let filesystem = imported.filesystem;
        ImportVolumeResponse {
            volume_id: imported.id.to_string(),
            name: imported.name.clone(),
            size_bytes: imported.size.as_i64(),
            block: imported.block,
            filesystem: filesystem.map(|filesystem| filesystem.to_string()).unwrap_or_default(),
            driver_name: self.driver_name.clone(),
            topology: self.engine.topology().clone().into_iter().collect(),
        }
    }
}

#[tonic::async_trait]
impl operator_server::Operator for Operator {
    async fn import_volume(
        &self,
        request: Request<ImportVolumeRequest>,
    ) -> Result<Response<ImportVolumeResponse>, Status> {
        let request = request.into_inner();
        rpc::logged("ImportVolume", &request.name, async {
            let wanted = request::import(&request)?;
            let key = wanted.key().ok_or_else(|| Status::invalid_argument("name is missing"))?;
            // One at a time: two must not take one source under two names, or one what lies in the other's. What was kept
            // may be asked for by its own name as well.
            let kept = wanted.kept_key().filter(|kept| *kept != key).map(|kept| kept.to_string());
            let others = kept.into_iter().chain(["an import".to_owned()]);
            let claims = Claims::whole(key.to_string()).with(others);
            let engine = Arc::clone(&self.engine);
            let imported = self.jobs.change(claims, LANE, move || engine.import(&wanted)).await?;
            Ok(self.reply(&imported))
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        // CSI has a call of that name, and lines and counts are to tell them apart.
        rpc::logged("OperatorDeleteVolume", &request.volume_id, async {
            let id = request::volume_id(&request.volume_id)?;
            let engine = Arc::clone(&self.engine);
            let (key, lane) = (id.key.to_string(), id.pool.to_string());
            let deleted =
                self.jobs.change(&key, &lane, move || engine.delete_existing(&id)).await?;
            let kept = deleted.kept.map(|path| path.to_string_lossy().into_owned());
            Ok(DeleteVolumeResponse {
                name: deleted.name,
                on_delete: deleted.on_delete.to_string(),
                kept: kept.unwrap_or_default(),
            })
        })
        .await
    }
}
