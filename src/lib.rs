//! Orlop: a CSI driver that turns the disks of a Kubernetes node into volumes.
//!
//! Arrows between modules point down only; `tests/architecture.rs` fails on one that points up:
//!
//! ```text
//! main → cli → csi → engine → {backend, store} → host        volume: pure types under all
//!                                                            fault, telemetry: leaves
//! ```
//!
//! The core (everything below `csi`) is plain blocking Rust; only `csi` is async and knows tonic.
//! ARCHITECTURE.md has the map, the flows and the decisions.

pub mod backend;
pub mod cli;
pub mod csi;
pub mod engine;
pub mod fault;
pub mod host;
pub mod store;
pub mod telemetry;
pub mod volume;
