//! Removal of inline volumes whose pods have gone without an unpublish: the engine finds them, each removal is one job
//! under its volume's key, so that it cannot meet a publish.

use std::sync::Arc;

use tonic::Code;

use super::Jobs;
use crate::engine::Engine;

/// One scan of a pool, and the removal of what was found in two.
pub(super) async fn sweep(engine: &Arc<Engine>, jobs: &Jobs, pool: &str) {
    let (scanner, name) = (Arc::clone(engine), pool.to_owned());
    let found = tokio::task::spawn_blocking(move || scanner.sweep(&name)).await;
    let orphans = found.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a scan for inline volumes panicked; this is a bug of orlop");
        Vec::new()
    });
    for id in orphans {
        let (remover, orphan) = (Arc::clone(engine), id.clone());
        let (key, lane) = (id.key.to_string(), id.pool.to_string());
        match jobs.change(&key, &lane, move || remover.remove_orphan(&orphan)).await {
            Ok(()) => {}
            // Somebody works on it; the next scan looks again.
            Err(status) if status.code() == Code::Aborted => {}
            Err(status) => {
                tracing::warn!(volume = %id, error = status.message(), "cannot remove an inline volume whose pod has gone");
            }
        }
    }
}
