//! One line of log per RPC, and one count: method, volume, duration, code. Never a request: it may hold secrets.

use std::time::Instant;

use tonic::{Code, Response, Status};

use crate::telemetry;

/// What a line is about.
struct Line<'a> {
    method: &'static str,
    volume: &'a str,
    start: Instant,
    done: bool,
}

impl Line<'_> {
    fn write(&self, code: Code, message: &str) {
        let Self { method, volume, .. } = self;
        // Whole microseconds, as people read them.
        let took = self.start.elapsed();
        let milliseconds = (took.as_secs_f64() * 1e6).round() / 1e3;
        let code = format!("{code:?}");
        telemetry::rpc(method, code.clone(), took);
        match code.as_str() {
            // Kubelet asks these before nearly every call.
            "Ok" if is_quiet(method) => tracing::debug!(method, volume, milliseconds, code, "rpc"),
            "Ok" => tracing::info!(method, volume, milliseconds, code, "rpc"),
            "Internal" => tracing::error!(method, volume, milliseconds, code, message, "rpc"),
            _ => tracing::warn!(method, volume, milliseconds, code, message, "rpc"),
        }
    }
}

fn is_quiet(method: &str) -> bool {
    matches!(method, "Probe" | "NodeGetVolumeStats" | "GetCapacity")
        || method.ends_with("Capabilities")
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.write(Code::Cancelled, "the caller has gone; the work goes on until it is done");
        }
    }
}

/// Runs a handler and writes its line, also when the caller goes away.
pub(super) async fn logged<T>(
    method: &'static str,
    volume: &str,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let volume: String = volume.chars().take(128).collect();
    let mut line = Line { method, volume: &volume, start: Instant::now(), done: false };
    let result = work.await;
    line.done = true;
    match &result {
        Ok(_) => line.write(Code::Ok, ""),
        Err(status) => line.write(status.code(), status.message()),
    }
    result.map(Response::new)
}
