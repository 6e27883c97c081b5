//! Requests of operators.

use tonic::Status;

use super::super::proto::operator::ImportVolumeRequest;
use super::{invalid, path};
use crate::engine::ImportRequest;
use crate::volume::{ByteSize, OnDelete, PoolChoice};

/// An ImportVolume request. The engine checks the name.
pub(in crate::csi) fn import(request: &ImportVolumeRequest) -> Result<ImportRequest, Status> {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let size =
        u64::try_from(request.size_bytes).map_err(|_negative| invalid("size_bytes is negative"))?;
    let on_delete = given(&request.on_delete).map(|word| {
        OnDelete::from_word(&word).ok_or_else(|| {
            invalid(format!("on_delete is {word:?}; give delete, retain, archive or wipe"))
        })
    });
    Ok(ImportRequest {
        unused: request.unused,
        source: path("source", &request.source)?,
        name: given(&request.name),
        pool: given(&request.pool).map_or(PoolChoice::Any, PoolChoice::Named),
        copy: request.copy,
        size: (size > 0).then(|| ByteSize::new(size)),
        on_delete: on_delete.transpose()?,
    })
}
