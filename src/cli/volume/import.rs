//! `orlop volume import`: through the driver that has the pools open, or without one.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tonic::transport::Channel;

use super::manifest::{KubernetesArgs, Manifest};
use crate::cli::config::PoolArgs;
use crate::cli::dial::{driver_at, refusal};
use crate::cli::{Failure, create};
use crate::csi::Endpoint;
use crate::csi::proto::operator::operator_client::OperatorClient;
use crate::csi::proto::operator::{ImportVolumeRequest, ImportVolumeResponse};
use crate::engine::{Engine, EngineConfig, ImportRequest, PoolStatus};
use crate::host::linux::LinuxHost;
use crate::volume::{ByteSize, Filesystem, OnDelete, PoolChoice, Topology};

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// A directory, a disk image, or what was kept: POOL/retained/KEY.GENERATION or POOL/archive/…
    source: PathBuf,
    /// The volume's name; what was kept has one of its own
    #[arg(long)]
    name: Option<String>,
    /// The pool that it goes to, by its name; without it the one with most room
    #[arg(long, value_name = "POOL")]
    to: Option<String>,
    /// Leave the source where it is, and make a copy of it
    #[arg(long)]
    copy: bool,
    /// How large it is to be, such as 10GiB; without it what the source needs
    #[arg(long)]
    size: Option<String>,
    /// What becomes of its data when it is deleted; without it retain, or what it was
    #[arg(long, value_name = "delete|retain|archive|wipe")]
    on_delete: Option<String>,
    /// Nobody uses the source, you have made sure of that: needed where the processes of the node cannot be seen
    #[arg(long)]
    unused: bool,
    /// The socket of the running driver, which has the pools locked; `CSI_ENDPOINT` is read as well
    #[arg(long, value_name = "unix:///PATH", env = "ORLOP_ENDPOINT")]
    endpoint: Option<String>,
    #[command(flatten)]
    pools: PoolArgs,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
}

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let request = args.request()?;
    let endpoint = args.endpoint.clone().or_else(|| std::env::var("CSI_ENDPOINT").ok());
    let manifest = match endpoint {
        Some(endpoint) => args.through_driver(&request, &endpoint.parse()?)?,
        None => args.without_driver(&request)?,
    };
    if request.copy {
        let source = request.source.display();
        writeln!(std::io::stderr(), "a copy was imported; {source} is left as it is")?;
    }
    manifest.print()
}

impl ImportArgs {
    fn request(&self) -> Result<ImportRequest, Failure> {
        let size = self.size.as_deref().map(|text| {
            create::size(text).filter(|size| *size > ByteSize::ZERO).ok_or_else(|| {
                format!("--size {text:?}: give a size such as 10GiB, 500MiB or a number of bytes")
            })
        });
        let on_delete = self.on_delete.as_deref().map(|word| {
            OnDelete::from_word(word).ok_or_else(|| {
                format!("--on-delete {word:?}: give delete, retain, archive or wipe")
            })
        });
        Ok(ImportRequest {
            source: self.source.clone(),
            name: self.name.clone(),
            pool: self.to.clone().map_or(PoolChoice::Any, PoolChoice::Named),
            copy: self.copy,
            size: size.transpose()?,
            on_delete: on_delete.transpose()?,
            unused: self.unused,
        })
    }

    /// The driver does it. Its names and place are those that it tells, unless others are given.
    fn through_driver(
        &self,
        request: &ImportRequest,
        endpoint: &Endpoint,
    ) -> Result<Manifest, Failure> {
        let own = self.kubernetes.topology()?;
        let source = request.source.to_str().ok_or("the source's path is not UTF-8")?;
        let message = ImportVolumeRequest {
            source: source.to_owned(),
            name: request.name.clone().unwrap_or_default(),
            pool: self.to.clone().unwrap_or_default(),
            copy: request.copy,
            size_bytes: request.size.map_or(0, ByteSize::as_i64),
            on_delete: self.on_delete.clone().unwrap_or_default(),
            unused: request.unused,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reply = runtime.block_on(async {
            let channel = driver_at(endpoint.path()).await?;
            call(channel, message).await
        })?;
        let topology = own.unwrap_or_else(|| reply.topology.clone().into_iter().collect());
        Ok(self.of_reply(reply, topology))
    }

    fn of_reply(&self, reply: ImportVolumeResponse, topology: Topology) -> Manifest {
        Manifest {
            id: reply.volume_id,
            name: reply.name,
            size: ByteSize::new(u64::try_from(reply.size_bytes).unwrap_or(0)),
            block: reply.block,
            filesystem: Filesystem::from_word(&reply.filesystem),
            driver_name: reply.driver_name,
            topology,
            storage_class: self.kubernetes.storage_class(),
        }
    }

    /// This process opens the pools itself, which no driver may have open.
    fn without_driver(&self, request: &ImportRequest) -> Result<Manifest, Failure> {
        // Before anything is moved.
        let topology = self.kubernetes.required_topology()?;
        let config = EngineConfig {
            root_dir: self.pools.root_dir.clone(),
            pools: self.pools.pools()?,
            init_pools: false,
            kubelet_dir: crate::engine::KUBELET_DIR.into(),
            topology: topology.clone(),
            // No volume is attached by this process.
            node_id: String::new(),
            attach: false,
            max_volumes: None,
        };
        let engine = Engine::new(config, Arc::new(LinuxHost::new()))?;
        for report in engine.pool_reports() {
            if let PoolStatus::Waiting(reason) = report.status {
                return Err(format!(
                    "pool {} is open in a running driver ({reason}): have the driver do it with --endpoint unix:///path/to/csi.sock (its own endpoint, or CSI_ENDPOINT), or stop it",
                    report.name
                )
                .into());
            }
        }
        Ok(self.kubernetes.manifest(engine.import(request)?, topology))
    }
}

async fn call(
    channel: Channel,
    message: ImportVolumeRequest,
) -> Result<ImportVolumeResponse, Failure> {
    let answer = OperatorClient::new(channel).import_volume(message).await;
    Ok(answer.map_err(|status| refusal(&status))?.into_inner())
}
