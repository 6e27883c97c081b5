//! The Identity service. It answers from memory: a probe must never wait for a disk.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, ProbeRequest, ProbeResponse, identity_server,
};
use super::{capability, rpc};
use crate::engine::Engine;

#[derive(Debug)]
pub(super) struct Identity {
    pub(super) driver_name: String,
    pub(super) engine: Arc<Engine>,
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let reply = GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        };
        rpc::logged("GetPluginInfo", "", async { Ok(reply) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let reply = GetPluginCapabilitiesResponse { capabilities: capability::plugin() };
        rpc::logged("GetPluginCapabilities", "", async { Ok(reply) }).await
    }

    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let reply = ProbeResponse { ready: Some(self.engine.is_ready()) };
        rpc::logged("Probe", "", async { Ok(reply) }).await
    }
}
