//! Attachments: publish a volume to a node, and take it back.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Response, Status};

use super::super::proto::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse,
};
use super::super::{Claims, request, rpc};
use super::Controller;

impl Controller {
    /// What is not advertised is not done.
    fn attaches(&self) -> Result<(), Status> {
        if self.engine.attaches() {
            Ok(())
        } else {
            Err(Status::unimplemented(
                "this driver runs without --attach; volumes are used without being published",
            ))
        }
    }

    pub(super) async fn attach(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        rpc::logged("ControllerPublishVolume", &request.volume_id, async {
            self.attaches()?;
            let attach = request::attach(&request)?;
            let engine = Arc::clone(&self.engine);
            let (key, lane) = (attach.id.key.to_string(), attach.id.pool.to_string());
            self.jobs.change(Claims::node(key), &lane, move || engine.attach(&attach)).await?;
            // The record has all that the node needs.
            Ok(ControllerPublishVolumeResponse { publish_context: HashMap::new() })
        })
        .await
    }

    pub(super) async fn detach(
        &self,
        request: ControllerUnpublishVolumeRequest,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        rpc::logged("ControllerUnpublishVolume", &request.volume_id, async {
            self.attaches()?;
            let id = request::volume_id_or_unknown(&request.volume_id)?;
            // Without a node: from all of them (CSI 1.13, ControllerUnpublishVolumeRequest).
            let node = match request.node_id.as_str() {
                "" => None,
                node => Some(request::node_id(node)?.to_owned()),
            };
            if let Some(id) = id {
                let (engine, key, lane) =
                    (Arc::clone(&self.engine), id.key.to_string(), id.pool.to_string());
                self.jobs
                    .change(Claims::node(key), &lane, move || engine.detach(&id, node.as_deref()))
                    .await?;
            }
            Ok(ControllerUnpublishVolumeResponse {})
        })
        .await
    }
}
