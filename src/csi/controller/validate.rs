//! ValidateVolumeCapabilities. Only what was looked at is confirmed: the CO takes an echo for understanding.

use std::sync::Arc;

use tonic::{Response, Status};

use super::super::proto::{
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
    validate_volume_capabilities_response::Confirmed,
};
use super::super::{reply, request, rpc};
use super::Controller;

impl Controller {
    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        rpc::logged("ValidateVolumeCapabilities", &request.volume_id, async {
            request::any_volume_id(&request.volume_id)?;
            let capabilities = request::capabilities(&request.volume_capabilities)?;
            let mut parameters = request::parameters(&request.parameters)?.normalised();
            parameters.retain(|name, _| request.parameters.contains_key(name));
            request::mutable_parameters(&request.mutable_parameters)?;
            let id = request::volume_id(&request.volume_id)?;
            let (engine, lane) = (Arc::clone(&self.engine), id.pool.to_string());
            let job = move || engine.validate(&id, &capabilities, &parameters);
            let refusal = self.jobs.read(&lane, job).await?;
            Ok(match refusal.or_else(|| foreign(&request)) {
                Some(message) => refused(&message),
                None => confirmed(&request),
            })
        })
        .await
    }
}

/// What the request speaks of and this driver does not know.
fn foreign(request: &ValidateVolumeCapabilitiesRequest) -> Option<String> {
    (!request.volume_context.is_empty())
        .then(|| "volume_context: this driver gives its volumes none".to_owned())
}

fn refused(message: &str) -> ValidateVolumeCapabilitiesResponse {
    ValidateVolumeCapabilitiesResponse { confirmed: None, message: reply::short(message, "") }
}

fn confirmed(request: &ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse {
    ValidateVolumeCapabilitiesResponse {
        confirmed: Some(Confirmed {
            volume_context: request.volume_context.clone(),
            volume_capabilities: request.volume_capabilities.clone(),
            parameters: request.parameters.clone(),
            mutable_parameters: request.mutable_parameters.clone(),
        }),
        message: String::new(),
    }
}
