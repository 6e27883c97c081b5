//! `/metrics`, `/healthz` and `/readyz`: what the table says and nothing else, true, and soon.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use orlop::csi::HttpListener;
use orlop::telemetry::metrics::{ALL, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::common::Machine;
use super::driver::{Driver, HOSTPATH, LOOP};

/// What an address answers to a request.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: n1\r\n\r\n").as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

/// The body of a scrape.
async fn scrape(address: SocketAddr) -> String {
    let reply = ask(address, "GET /metrics").await;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    body.to_owned()
}

async fn start(machine: Machine) -> (Driver, SocketAddr) {
    let http = HttpListener::bind("127.0.0.1:0").unwrap();
    let address = http.address().unwrap();
    (Driver::start_with_http(machine, http).await, address)
}

/// The value of a series, which is named with its labels as they are written.
#[track_caller]
fn value(body: &str, series: &str) -> u64 {
    let value = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{series} is not in\n{body}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_is_the_table() {
    let (driver, address) = start(Machine::new()).await;
    let id = driver.make(HOSTPATH, "a").await;
    driver.get(&id).await.unwrap();
    let body = scrape(address).await;
    let told = |word: &str| -> Vec<String> {
        let lines = body.lines().filter_map(|line| line.strip_prefix(word));
        lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let with_unit = |metric: &&&orlop::telemetry::metrics::Metric| {
        let unit = metric.unit.as_str().map_or_else(String::new, |unit| format!("_{unit}"));
        format!("{}{unit}", metric.name)
    };
    let names: Vec<String> = ALL.iter().map(|metric| with_unit(&metric)).collect();
    assert_eq!(told("# TYPE "), names);
    assert_eq!(told("# HELP "), names);
    for metric in ALL {
        let kind = format!("# TYPE {} {}\n", with_unit(&metric), metric.kind.as_str());
        assert!(body.contains(&kind), "{kind}");
        if let Some(unit) = metric.unit.as_str() {
            assert!(body.contains(&format!("# UNIT {} {unit}\n", with_unit(&metric))), "{unit}");
        }
        for line in body.lines().filter(|line| line.starts_with(&with_unit(&metric))) {
            let Some((name, labels)) = line.rsplit_once(' ').unwrap().0.split_once('{') else {
                assert!(metric.labels.is_empty(), "{line}");
                continue;
            };
            let base = with_unit(&metric);
            let ends = ["", "_total", "_info", "_bucket", "_sum", "_count"];
            if !ends.iter().any(|end| format!("{base}{end}") == name) {
                // Another metric's name begins like this one's.
                continue;
            }
            let labels: Vec<&str> =
                labels.split("\",").map(|l| l.split('=').next().unwrap()).collect();
            let labels: Vec<&str> = labels.into_iter().filter(|label| *label != "le").collect();
            assert_eq!(labels, metric.labels, "{line}");
        }
        let is_always_there = !matches!(metric.kind, Type::Gauge) || metric.labels.is_empty();
        let sample = body.lines().any(|line| line.starts_with(&with_unit(&metric)));
        assert!(sample || !is_always_there, "{}", metric.name);
    }
    driver.stop().await;
}

const DAMAGED: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_counted_by_state_and_told_with_their_claim() {
    let machine = Machine::new();
    drop(machine.engine(&["default"]));
    let damaged = machine.pool("default").join("volumes").join(DAMAGED);
    std::fs::create_dir_all(&damaged).unwrap();
    drop(std::fs::File::create(damaged.join("volume.json")).unwrap());
    let (driver, address) = start(machine).await;
    let mut request = LOOP.create("pvc-1");
    for (key, word) in [("namespace", "shop"), ("name", "data \"db\"")] {
        request.parameters.insert(format!("csi.storage.k8s.io/pvc/{key}"), word.to_owned());
    }
    let id = driver.create(request).await.unwrap().volume_id;
    driver.make(HOSTPATH, "pvc-2").await;
    let staging = driver.machine.path("staging");
    driver.stage(&id, &staging, LOOP.shared()).await.unwrap();

    let body = scrape(address).await;
    for (backend, state, count) in [
        ("loop", "ready", 1),
        ("hostpath", "ready", 1),
        ("unknown", "damaged", 1),
        ("loop", "importing", 0),
    ] {
        let labels = format!("pool=\"default\",backend=\"{backend}\",state=\"{state}\"");
        assert_eq!(value(&body, &format!("orlop_volumes{{{labels}}}")), count, "{labels}");
    }
    let volume = format!(
        "{{volume=\"{id}\",pool=\"default\",backend=\"loop\",namespace=\"shop\",persistentvolumeclaim=\"data \\\"db\\\"\"}}"
    );
    assert_eq!(value(&body, &format!("orlop_volume_capacity_bytes{volume}")), 1 << 30);
    let usage = driver.stats(&id, &staging).await.unwrap();
    let used = value(&body, &format!("orlop_volume_used_bytes{volume}"));
    assert_eq!(used, u64::try_from(usage[0].used).unwrap(), "as NodeGetVolumeStats");
    assert_eq!(value(&body, "orlop_loop_devices"), 1);
    // What cannot be read has no generation that is known.
    let tag = id.split('-').nth(1).unwrap();
    let condition = format!(
        "orlop_volume_condition{{volume=\"v-{tag}-{DAMAGED}-00000000\",pool=\"default\",reason=\"RecordDamaged\"}}"
    );
    assert_eq!(value(&body, &condition), 1);

    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    assert!(!scrape(address).await.contains(&id), "a volume that is gone is not told of");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_jobs_and_rpcs_are_told() {
    let (driver, address) = start(Machine::new()).await;
    driver.make(HOSTPATH, "a").await;
    driver.make(LOOP, "b").await;
    driver.get("v-none").await.unwrap_err();
    let body = scrape(address).await;
    assert_eq!(value(&body, "orlop_pool_promised_bytes{pool=\"default\"}"), 2 << 30);
    let bytes = |name| value(&body, &format!("orlop_pool_{name}_bytes{{pool=\"default\"}}"));
    let (capacity, available) = (bytes("capacity"), bytes("available"));
    assert!(0 < available && available <= capacity, "{available} of {capacity}");
    assert!(bytes("used") <= capacity && bytes("room") <= available && bytes("reserve") < capacity);
    for (state, is) in [("ready", 1), ("waiting", 0), ("away", 0), ("hung", 0)] {
        let name = format!("orlop_pool_state{{pool=\"default\",state=\"{state}\"}}");
        assert_eq!(value(&body, &name), is, "{state}");
    }
    for name in
        ["orlop_frozen_volumes", "orlop_jobs{state=\"waiting\"}", "orlop_oldest_job_seconds"]
    {
        assert_eq!(value(&body, name), 0, "{name}");
    }
    for (method, code) in [("CreateVolume", "Ok"), ("ControllerGetVolume", "NotFound")] {
        let labels = format!("method=\"{method}\",code=\"{code}\"");
        // Other drivers of this process count as well.
        assert!(value(&body, &format!("orlop_rpc_duration_seconds_count{{{labels}}}")) >= 1);
    }
    let held = driver.machine.host.block_next("format");
    let mut controller = driver.controller();
    let slow = tokio::spawn(async move { controller.create_volume(LOOP.create("slow")).await });
    let held = tokio::task::spawn_blocking(move || {
        held.wait();
        held
    });
    let held = held.await.unwrap();
    assert_eq!(value(&scrape(address).await, "orlop_jobs{state=\"running\"}"), 1);
    held.release();
    slow.await.unwrap().unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_hangs_does_not_hold_up_a_scrape() {
    let (driver, address) = start(Machine::new()).await;
    let id = driver.make(HOSTPATH, "a").await;
    // Whoever asks waits: the driver looks at the pool by itself as well.
    let hang: Vec<_> = (0..64).map(|_| driver.machine.host.block_next("space")).collect();
    let begun = Instant::now();
    let body = scrape(address).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // What is in memory is told, what the disk must be asked for is not.
    let volume = format!("orlop_volume_capacity_bytes{{volume=\"{id}\"");
    assert!(body.contains(&volume), "{body}");
    assert!(!body.contains("orlop_pool_capacity_bytes{"), "{body}");
    assert_eq!(value(&body, "orlop_pool_promised_bytes{pool=\"default\"}"), 1 << 30);
    drop(hang);
    // The measurement goes on where it was.
    let body = scrape(address).await;
    assert!(value(&body, "orlop_pool_capacity_bytes{pool=\"default\"}") > 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_there_is_answered() {
    let (driver, address) = start(Machine::new()).await;
    for (request, status, says) in [
        ("GET /healthz", "200 OK", "ok\n"),
        ("GET /readyz", "200 OK", "ready\n"),
        ("HEAD /metrics", "200 OK", ""),
        ("GET /", "404 Not Found", "/metrics, /healthz and /readyz"),
        ("GET /metrics/../../etc/passwd", "404 Not Found", "/metrics"),
        ("POST /metrics", "405 Method Not Allowed", "only GET and HEAD"),
        ("DELETE /healthz", "405 Method Not Allowed", "only GET and HEAD"),
    ] {
        let reply = ask(address, request).await;
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {head}");
        assert!(body.contains(says) && (says.is_empty() == body.is_empty()), "{request}: {body}");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_hung_up_on_and_keeps_nobody_out() {
    let (driver, address) = start(Machine::new()).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // As many as are answered at once are hung up on after five seconds, then the next; this comes after all of them.
    let begun = Instant::now();
    drop(silent.split_off(16));
    assert!(ask(address, "GET /healthz").await.ends_with("ok\n"));
    let waited = begun.elapsed();
    assert!((3..25).contains(&waited.as_secs()), "{waited:?}");
    for mut stream in silent {
        let mut nothing = Vec::new();
        // Closed, with or without a word.
        drop(stream.read_to_end(&mut nothing).await);
    }
    driver.stop().await;
}
