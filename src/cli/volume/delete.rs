//! `orlop volume delete`: through the driver that has the pools open, and by the volume's onDelete.

use std::io::Write;

use clap::Args;

use crate::cli::Failure;
use crate::cli::dial::{driver_at, refusal};
use crate::csi::Endpoint;
use crate::csi::proto::operator::operator_client::OperatorClient;
use crate::csi::proto::operator::{DeleteVolumeRequest, DeleteVolumeResponse};
use crate::volume::VolumeId;

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// The volume's id
    id: VolumeId,
    /// You mean it; without this nothing is deleted
    #[arg(long)]
    yes: bool,
    /// The socket of the running driver; `CSI_ENDPOINT` is read as well
    #[arg(long, value_name = "unix:///PATH", env = "ORLOP_ENDPOINT")]
    endpoint: Option<String>,
}

pub(super) fn run(args: &DeleteArgs) -> Result<(), Failure> {
    let id = &args.id;
    if !args.yes {
        return Err(format!(
            "nothing was deleted: this ends volume {id}, and its data unless its onDelete keeps it (orlop volume show tells); give --yes to do it. The PersistentVolume of it, if there is one, stays"
        )
        .into());
    }
    let endpoint = args.endpoint.clone().or_else(|| std::env::var("CSI_ENDPOINT").ok());
    let endpoint: Endpoint = endpoint
        .ok_or("no endpoint; give --endpoint unix:///path/to/csi.sock, that of the running driver")?
        .parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deleted = runtime.block_on(async {
        let channel = driver_at(endpoint.path()).await?;
        let request = DeleteVolumeRequest { volume_id: id.to_string() };
        let answer = OperatorClient::new(channel).delete_volume(request).await;
        Ok::<_, Failure>(answer.map_err(|status| refusal(&status))?.into_inner())
    })?;
    writeln!(std::io::stdout(), "{}", told(id, &deleted))?;
    Ok(())
}

fn told(id: &VolumeId, deleted: &DeleteVolumeResponse) -> String {
    let name = deleted.name.escape_default();
    let DeleteVolumeResponse { on_delete, kept, .. } = deleted;
    if kept.is_empty() {
        format!("volume {id} ({name}) is deleted (onDelete: {on_delete})")
    } else {
        format!(
            "volume {id} ({name}) is deleted; its data is kept in {kept} (onDelete: {on_delete}), `orlop volume import` brings it back"
        )
    }
}
