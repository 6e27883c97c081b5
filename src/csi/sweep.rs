//! Removal of what nobody comes for: inline volumes whose pods have gone without an unpublish, loop devices whose unstage was
//! cut off. The engine finds them; each removal is one job under its volume's key, so that it cannot meet a Node call.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use tonic::{Code, Status};

use super::Jobs;
use super::jobs::Claims;
use crate::engine::{Engine, EngineError, chain};
use crate::volume::VolumeId;

/// The lane of what needs no pool.
const DEVICES: &str = "loop devices";

/// One scan of a pool for inline volumes, and the removal of what was found in two.
pub(super) async fn inline_volumes(engine: &Arc<Engine>, jobs: &Jobs, pool: &str) {
    let (scanner, name) = (Arc::clone(engine), pool.to_owned());
    let found = found("inline volumes", move || Ok(scanner.sweep(&name))).await;
    each(found, "inline volume whose pod has gone", |id| {
        let (remover, orphan) = (Arc::clone(engine), id.clone());
        let (key, lane) = (id.key.to_string(), id.pool.to_string());
        async move { jobs.change(&key, &lane, move || remover.remove_orphan(&orphan)).await }
    })
    .await;
}

/// One look for loop devices that an unstage has left, also of volumes whose pools are away. Those that were there at the
/// look before, `seen`, are detached: whoever was cut off has had the time to come again, and meets no sweep then.
pub(super) async fn loop_devices(
    engine: &Arc<Engine>,
    jobs: &Jobs,
    seen: BTreeSet<VolumeId>,
) -> BTreeSet<VolumeId> {
    let scanner = Arc::clone(engine);
    let found = found("loop devices", move || scanner.unstaged()).await;
    let found = found.into_iter().collect::<BTreeSet<_>>();
    let twice = found.intersection(&seen).cloned().collect();
    each(twice, "loop device that an unstage has left", |id| {
        let (remover, orphan) = (Arc::clone(engine), id.clone());
        let claims = Claims::node(id.key.to_string());
        // Not that of its pool, which this does not touch: one that hangs would hold up the rest.
        async move { jobs.change(claims, DEVICES, move || remover.detach_orphans(&orphan)).await }
    })
    .await;
    found
}

/// What a scan finds, or nothing.
async fn found(
    what: &str,
    scan: impl FnOnce() -> Result<Vec<VolumeId>, EngineError> + Send + 'static,
) -> Vec<VolumeId> {
    match tokio::task::spawn_blocking(scan).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "cannot look for {what} that nobody comes for");
            Vec::new()
        }
        Err(panic) => {
            tracing::error!(%panic, "a scan for {what} panicked; this is a bug of orlop");
            Vec::new()
        }
    }
}

/// Removes one after the other.
async fn each<F: Future<Output = Result<(), Status>>>(
    found: Vec<VolumeId>,
    what: &str,
    remove: impl Fn(VolumeId) -> F,
) {
    for id in found {
        match remove(id.clone()).await {
            Ok(()) => {}
            // Somebody works on it; the next scan looks again.
            Err(status) if status.code() == Code::Aborted => {}
            Err(status) => {
                tracing::warn!(volume = %id, error = status.message(), "cannot remove a {what}");
            }
        }
    }
}
