//! `orlop doctor`: is this node ready, and what to do where it is not.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Failure;
use super::config::ListArgs;
use super::table::{self, Output};
use crate::csi::Endpoint;
use crate::engine::doctor::{self, Diagnosis, Patient, Verdict};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    list: ListArgs,
    /// Kubelet's directory on this node
    #[arg(long, value_name = "DIR", env = "ORLOP_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// The driver's socket, to look at its rights as well; `CSI_ENDPOINT` is read as well
    #[arg(long, value_name = "unix:///PATH", env = "ORLOP_ENDPOINT")]
    endpoint: Option<String>,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let endpoint = args.endpoint.clone().or_else(|| std::env::var("CSI_ENDPOINT").ok());
    let endpoint: Option<Endpoint> = endpoint.map(|text| text.parse()).transpose()?;
    let said = doctor::examine(&Patient {
        root_dir: args.list.pools.root_dir.clone(),
        pools: args.list.pools.pools()?,
        kubelet_dir: args.kubelet_dir.clone(),
        socket: endpoint.map(|endpoint| endpoint.path().to_owned()),
    });
    match args.list.output {
        Output::Json => table::print_json(&said.iter().map(as_json).collect())?,
        Output::Table => {
            let rows: Vec<_> = said.iter().map(row).collect();
            table::print(&["RESULT", "CHECK", "WHAT"], &rows)?;
        }
    }
    let failed = said.iter().filter(|line| line.verdict == Verdict::Fail).count();
    match failed {
        0 => Ok(()),
        _ => Err(format!("{failed} of {} checks failed", said.len()).into()),
    }
}

fn row(line: &Diagnosis) -> Vec<String> {
    let what = match &line.remedy {
        Some(remedy) => format!("{}; {remedy}", line.what),
        None => line.what.clone(),
    };
    vec![line.verdict.as_str().to_owned(), line.check.clone(), what]
}

fn as_json(line: &Diagnosis) -> serde_json::Value {
    json!({
        "check": line.check,
        "result": line.verdict.as_str(),
        "what": line.what,
        "remedy": line.remedy,
    })
}
