//! `/metrics`, `/healthz` and `/readyz`, over plain HTTP/1, for Prometheus and kubelet.
//!
//! Invariants: so many connections at once and no more, and none lasts long, so nobody can take more than that from the
//! CSI services. One request for each connection.
//!
//! Must not: tell anything but what is in the table of metrics, change anything, or read what a client sends but its
//! first line.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{EndpointError, Jobs};
use crate::engine::Engine;
use crate::telemetry::{Figures, labels, metrics};

/// So many connections are answered at once; others wait until one of them ends.
const CONNECTIONS: usize = 16;
/// A client that has not asked by then gets no answer.
const ASK: Duration = Duration::from_secs(5);
/// A connection is over by then, however slowly the client reads.
const LONGEST: Duration = Duration::from_secs(30);
/// When no connection can be accepted (no descriptor is free, say), it is tried again then.
const PAUSE: Duration = Duration::from_secs(1);

const PLAIN: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A bound address.
#[derive(Debug)]
pub struct HttpListener(std::net::TcpListener);

impl HttpListener {
    /// Listens at `HOST:PORT`.
    ///
    /// # Errors
    /// It is no address of this machine, or its port is taken.
    pub fn bind(address: &str) -> Result<Self, EndpointError> {
        let failed = |source| EndpointError::Address { address: address.to_owned(), source };
        let socket = std::net::TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self(socket))
    }

    /// Where it listens; the port is the one that was found when 0 was asked for.
    ///
    /// # Errors
    /// A system call failed.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// What is told.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) engine: Arc<Engine>,
    pub(super) jobs: Arc<Jobs>,
}

/// Answers until the task is aborted.
pub(super) async fn answer(listener: HttpListener, told: Told) {
    let listener = match TcpListener::from_std(listener.0) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics cannot be served"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let told = told.clone();
                tokio::spawn(async move {
                    converse(stream, told).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, told: Told) {
    let service = service_fn(move |request: Request<Incoming>| {
        let told = told.clone();
        async move { Ok::<_, Infallible>(reply(request.method(), request.uri().path(), &told).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(ASK).keep_alive(false);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics failed"),
        Err(_late) => tracing::debug!("a connection for metrics took too long"),
    }
}

async fn reply(method: &Method, path: &str, told: &Told) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n");
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/metrics" => scrape(told.clone()).await,
        "/readyz" => match told.engine.waits_for() {
            pools if pools.is_empty() => text(StatusCode::OK, "ready\n"),
            pools => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: waiting for these pools: {}\n", pools.join(", ")),
            ),
        },
        _ => text(StatusCode::OK, "ok\n"),
    }
}

fn respond(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, PLAIN, body)
}

/// The figures are gathered on a thread that may wait.
async fn scrape(told: Told) -> Response<Full<Bytes>> {
    let gathered = tokio::task::spawn_blocking(move || {
        let mut figures = Figures::default();
        let build = labels(&[env!("CARGO_PKG_VERSION"), super::CSI_VERSION]);
        figures.set(&metrics::BUILD, &build, 1);
        told.jobs.figures(&mut figures);
        told.engine.figures(&mut figures);
        figures.into_text()
    });
    if let Ok(Ok(body)) = gathered.await {
        return respond(StatusCode::OK, OPENMETRICS, body);
    }
    tracing::error!("the metrics cannot be gathered; this is a bug of orlop");
    text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be gathered; see the log\n")
}
