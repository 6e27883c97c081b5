//! `serve --metrics-address`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::harness::{Daemon, Node, fails, poll};

/// Where a daemon answers HTTP, by its log.
fn address(daemon: &Daemon) -> SocketAddr {
    poll("the address", || {
        let log = daemon.log();
        let (_, rest) = log.split_once("metrics address=")?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn metrics_and_probes_are_answered_where_they_are_asked_for() {
    let node = Node::new();
    let http = ["--metrics-address", "localhost:0"];
    let mut first = node.serve("first", &http);
    let id = first.create("volume");
    let metrics = get(address(&first), "/metrics");
    let build = format!("orlop_build_info{{version=\"{}\"", env!("CARGO_PKG_VERSION"));
    for part in [build, format!("orlop_volume_capacity_bytes{{volume=\"{id}\"")] {
        assert!(metrics.contains(&part), "{part} is not in\n{metrics}");
    }
    assert!(get(address(&first), "/readyz").starts_with("HTTP/1.1 200 "));

    let second = node.start("second", &http);
    let waits = get(address(&second), "/readyz");
    assert!(waits.starts_with("HTTP/1.1 503 "), "{waits}");
    assert!(waits.ends_with("not ready: waiting for these pools: default\n"), "{waits}");
    assert!(get(address(&second), "/healthz").starts_with("HTTP/1.1 200 "));
    assert!(get(address(&second), "/metrics").contains("state=\"waiting\"} 1\n"));
    first.stop();
}

#[test]
fn an_address_that_cannot_be_is_an_error_at_start() {
    let node = Node::new();
    let endpoint = format!("unix://{}", node.text("csi.sock"));
    let (pool, root) = (node.pool(), node.text("root"));
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    for address in ["nonsense", "127.0.0.1", "127.0.0.1:99999", "192.0.2.1:9810", &taken] {
        let serve = ["serve", "--node-id", "n1", "--endpoint", &endpoint, "--pool", &pool];
        let complaint =
            fails(1, &[&serve[..], &["--root-dir", &root, "--metrics-address", address]].concat());
        let says =
            format!("orlop: listen for metrics at {address:?}; give --metrics-address HOST:PORT");
        assert!(complaint.starts_with(&says), "{complaint}");
    }
    assert!(!node.path("csi.sock").exists() && !node.path("root").exists());
}
