//! A connection to the driver at a socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::Failure;

/// Connects; without a deadline a call takes as long as its work does.
pub(super) async fn dial(
    socket: PathBuf,
    deadline: Option<Duration>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is not used: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://localhost");
    let endpoint = deadline.map_or(endpoint.clone(), |deadline| endpoint.timeout(deadline));
    endpoint.connect_with_connector(connector).await
}

/// Connects to a driver that an operator named; a call may take as long as its work does.
///
/// # Errors
/// Nobody answers there.
pub(super) async fn driver_at(socket: &Path) -> Result<Channel, Failure> {
    dial(socket.to_owned(), None).await.map_err(|error| {
        format!(
            "no driver answers at {} ({}); give the endpoint of the running one, or none when it is stopped (unset ORLOP_ENDPOINT and CSI_ENDPOINT)",
            socket.display(),
            crate::engine::chain(&error)
        )
        .into()
    })
}

/// What a driver's refusal means to an operator.
pub(super) fn refusal(status: &Status) -> Failure {
    if status.code() == Code::Unimplemented {
        return "the driver is of a release that cannot do this; update it, or stop it and give no endpoint".into();
    }
    if std::error::Error::source(status).is_some() {
        return format!(
            "the driver hung up in the middle ({}); repeat the command when it runs again",
            status.message()
        )
        .into();
    }
    format!("{:?}: {}", status.code(), status.message()).into()
}
