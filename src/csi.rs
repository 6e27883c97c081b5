//! The CSI services: the only async code, and the only code that knows tonic.
//!
//! Each RPC parses its request into the engine's types, runs one blocking job, and makes a reply. A job holds its
//! volume's lock itself: tonic drops a handler at the client's deadline while the job runs on.
//!
//! Must not: do I/O, decide anything about volumes, or log a request (it may hold secrets).

mod capability;
mod controller;
mod group;
mod health;
mod http;
mod identity;
mod jobs;
pub mod legacy;
mod metadata;
mod node;
mod operator;
pub mod proto;
mod reply;
mod request;
mod rpc;
mod server;
mod status;
mod sweep;

pub use capability::Features;
pub use http::HttpListener;
pub use jobs::{Claims, Jobs};
pub use server::{Endpoint, EndpointError, Listener, RETRY, ServerConfig, serve};
/// The version of CSI that is spoken.
const CSI_VERSION: &str = "1.13";

pub use status::{CODES, CodeHelp, code_of};
