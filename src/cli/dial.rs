//! A connection to the driver at a socket.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

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
