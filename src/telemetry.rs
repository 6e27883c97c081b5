//! What operators see of a running driver: logs on standard error, and metrics.
//!
//! Must not: see a request. Secrets are in requests, so no request is ever logged.

mod counters;
mod exposition;
pub mod metrics;

use tracing_subscriber::EnvFilter;

pub use counters::{Reason, Recovery, cleanup, freeze, recovery, rpc};
pub use exposition::{Figures, Labels, labels};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// Sends log lines to standard error. `ORLOP_LOG` filters them (`debug`, `orlop::engine=trace`); the default is `info`.
///
/// # Errors
/// The filter cannot be read, or logging was set up before.
pub fn init(format: LogFormat) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = match std::env::var("ORLOP_LOG") {
        Ok(filter) => EnvFilter::try_new(filter)?,
        Err(_) => EnvFilter::new("info"),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
}
