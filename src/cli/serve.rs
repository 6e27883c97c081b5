//! `orlop serve`: the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Failure;
use super::config::{PoolArgs, check_driver_name, topology};
use crate::csi::{self, Endpoint, Features, HttpListener, ServerConfig};
use crate::engine::{Engine, EngineConfig};
use crate::host::{Host, this_machine};
use crate::telemetry::{self, LogFormat};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The unix socket to listen at; `CSI_ENDPOINT` is read as well
    #[arg(long, value_name = "unix:///PATH", env = "ORLOP_ENDPOINT")]
    endpoint: Option<String>,
    /// The name of this node, as Kubernetes knows it
    #[arg(long, value_name = "NAME", env = "ORLOP_NODE_ID")]
    node_id: String,
    #[command(flatten)]
    pools: PoolArgs,
    /// Make a pool of each configured directory that is empty or absent and was never one
    #[arg(long, env = "ORLOP_INIT_POOLS")]
    init_pools: bool,
    /// Whether the controller expands volumes; off where the resizer cannot reach the right node
    #[arg(long, value_name = "on|off", env = "ORLOP_CONTROLLER_EXPAND", default_value = "on")]
    controller_expand: Switch,
    /// Volumes must be attached to this node (ControllerPublishVolume) before they are used
    #[arg(long, env = "ORLOP_ATTACH")]
    attach: bool,
    /// Let this node have at most so many volumes; without it, what its loop devices and mounts allow
    #[arg(long, value_name = "N", env = "ORLOP_MAX_VOLUMES", value_parser = clap::value_parser!(u32).range(1..))]
    max_volumes: Option<u32>,
    /// Tell the volume condition of CSI 1.9 with the statistics, which kubelet 1.36 reads and CSI 1.13 has not
    #[arg(long, env = "ORLOP_LEGACY_VOLUME_CONDITION")]
    legacy_volume_condition: bool,
    /// Kubelet's directory on this node
    #[arg(long, value_name = "DIR", env = "ORLOP_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// The name of the CSI driver
    #[arg(long, value_name = "NAME", env = "ORLOP_DRIVER_NAME", default_value = "orlop.csi.local")]
    driver_name: String,
    /// Answer HTTP there: /metrics for Prometheus, /healthz and /readyz for probes; off without it
    #[arg(long, value_name = "HOST:PORT", env = "ORLOP_METRICS_ADDRESS")]
    metrics_address: Option<String>,
    /// How log lines look; `ORLOP_LOG` filters them
    #[arg(long, value_name = "text|json", env = "ORLOP_LOG_FORMAT", default_value = "text")]
    log_format: Format,
}

pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    telemetry::init(match args.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    })?;
    let endpoint = args.endpoint.clone().or_else(|| std::env::var("CSI_ENDPOINT").ok());
    let endpoint: Endpoint =
        endpoint.ok_or("no endpoint; give --endpoint unix:///path/to/csi.sock")?.parse()?;
    check_driver_name(&args.driver_name)?;
    if args.node_id.is_empty() || args.node_id.len() > 256 {
        return Err("--node-id must have 1 to 256 bytes".into());
    }
    let http = args.metrics_address.as_deref().map(HttpListener::bind).transpose()?;
    let config = EngineConfig {
        root_dir: args.pools.root_dir.clone(),
        pools: args.pools.pools()?,
        init_pools: args.init_pools,
        kubelet_dir: args.kubelet_dir.clone(),
        topology: topology(&args.driver_name, &args.node_id),
        node_id: args.node_id.clone(),
        attach: args.attach,
        max_volumes: args.max_volumes,
    };
    let host = this_machine();
    report_propagation(&*host, &args.kubelet_dir);
    let engine = Arc::new(Engine::new(config, host)?);
    let server = ServerConfig {
        driver_name: args.driver_name.clone(),
        node_id: args.node_id.clone(),
        features: Features {
            controller_expand: args.controller_expand == Switch::On,
            legacy_volume_condition: args.legacy_volume_condition,
        },
        retry: csi::RETRY,
    };
    // Two workers are plenty: all work is in blocking jobs, which are bounded per pool.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(256)
        .thread_name("orlop")
        .enable_all()
        .build()?;
    runtime.block_on(serve(&endpoint, http, server, engine))
}

async fn serve(
    endpoint: &Endpoint,
    http: Option<HttpListener>,
    server: ServerConfig,
    engine: Arc<Engine>,
) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut listener = endpoint.bind()?;
    if let Some(http) = http {
        tracing::info!(address = %http.address()?, "metrics");
        listener = listener.with_http(http);
    }
    tracing::info!(endpoint = %endpoint.path().display(), node = server.node_id, version = env!("CARGO_PKG_VERSION"), "listening");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    };
    csi::serve(listener, server, engine, stop).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Mounts made here must appear to kubelet. Where kubelet's directory is a mount of its own (in a container it always
/// is), it must be shared.
fn report_propagation(host: &dyn Host, kubelet_dir: &Path) {
    let Ok(table) = host.mounts() else { return };
    if let Some(entry) = table.top_at(kubelet_dir).filter(|entry| !entry.shared) {
        tracing::error!(
            kubelet_dir = %entry.mount_point.display(),
            "kubelet's directory is not a shared mount: pods will not see their volumes; mount it with mountPropagation: Bidirectional"
        );
    }
}
