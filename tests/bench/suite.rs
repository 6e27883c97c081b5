//! What is measured, in which order.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "runs itself in namespaces of its own, and prints"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use orlop::csi::proto::identity_client::IdentityClient;
use orlop::csi::proto::{GetCapacityRequest, ListVolumesRequest, ProbeRequest};

use crate::calls::{Caller, HOSTPATH, KINDS, Kind, lives};
use crate::copies;
use crate::driver::{Driver, dial};
use crate::floor::Floor;
use crate::privileged::{Sandbox, detach_all, unseal_all};
use crate::report::{Figure, Report, Samples};

/// Names the directory to the process in the namespaces.
const PLACE: &str = "ORLOP_BENCH_DIR";

/// What each call cannot do without, by kind and name.
fn parts(kind: &str, call: &str) -> &'static [&'static str] {
    match (kind, call) {
        ("loop/ext4", "CreateVolume") => &["birth", "mkfs.ext4", "probe"],
        ("loop/xfs", "CreateVolume") => &["birth", "mkfs.xfs", "probe"],
        (_, "CreateVolume") => &["birth", "probe"],
        ("loop/ext4" | "loop/xfs", "NodeStageVolume") => &["attach", "mount", "probe"],
        ("block", "NodeStageVolume") => &["attach", "bind", "probe"],
        (_, "NodeStageVolume" | "NodePublishVolume") => &["bind", "probe"],
        ("block", "NodeUnstageVolume") => &["unmount", "detach", "probe"],
        (_, "NodeUnpublishVolume" | "NodeUnstageVolume") => &["unmount", "probe"],
        (_, "DeleteVolume") => &["burial", "probe"],
        _ => &["probe"],
    }
}

fn wish(name: &str, otherwise: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| otherwise.to_owned())
}

fn numbers(text: &str) -> Vec<usize> {
    let word = |word: &str| word.parse().unwrap_or_else(|e| panic!("{word} is no number: {e}"));
    text.split_whitespace().map(word).collect()
}

/// Runs itself in namespaces of its own, which end with it, and then measures.
pub(crate) fn main() {
    if let Some(dir) = std::env::var_os(PLACE) {
        return measure(&Sandbox { dir: dir.into() });
    }
    let at = wish("ORLOP_BENCH_AT", "/var/tmp");
    let temporary = tempfile::Builder::new().prefix("orlop-bench-").tempdir_in(&at);
    let temporary = temporary.unwrap_or_else(|e| panic!("ORLOP_BENCH_AT={at}: {e}"));
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .env(PLACE, temporary.path())
        .status()
        .unwrap_or_else(|e| panic!("cannot run unshare of util-linux: {e}"));
    detach_all(temporary.path());
    unseal_all(temporary.path());
    temporary.close().unwrap();
    assert!(status.success(), "the benchmark failed: {status}; run it as root");
}

fn measure(sandbox: &Sandbox) {
    let binary = |name| std::env::var_os(name).map(PathBuf::from);
    let subject = binary("ORLOP_BIN")
        .unwrap_or_else(|| panic!("ORLOP_BIN names no binary; run `make bench`"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let base = binary("ORLOP_BASE").map(|base| {
        println!("base: {}", base.display());
        runtime.block_on(all(&sandbox.sub("base"), &base))
    });
    println!("measured: {}", subject.display());
    let report = runtime.block_on(all(&sandbox.sub("subject"), &subject));
    report.print(base.as_ref());
}

fn configure(sandbox: &Sandbox) {
    let pool = sandbox.make_dir("pool");
    let text =
        format!("[[pool]]\nname = \"p\"\npath = {pool:?}\nreserve = \"0\"\novercommit = 1000\n");
    std::fs::write(sandbox.path("orlop.toml"), text).unwrap();
}

async fn all(sandbox: &Sandbox, binary: &Path) -> Report {
    let count = numbers(&wish("ORLOP_BENCH_COUNT", "200"))[0];
    let mut report = Report::default();
    configure(sandbox);
    let mut floor = Floor::measure(sandbox);
    let mut driver = Driver::start(sandbox, binary).await;
    floor.set("probe", probe(&driver.socket).await);
    numbers_of(&driver, "idle", &mut report);
    for kind in KINDS {
        alone(sandbox, kind, count / 2, &floor, &mut report).await;
    }
    for kind in KINDS {
        for at_once in [16, 64] {
            together(sandbox, kind, count, at_once, &mut report).await;
        }
    }
    numbers_of(&driver, "after that", &mut report);
    let mut kept = 0;
    for wanted in numbers(&wish("ORLOP_BENCH_KEPT", "0 1000 10000")) {
        keep(sandbox, kept..wanted).await;
        kept = wanted;
        driver.stop();
        driver = Driver::start(sandbox, binary).await;
        let what = format!("{kept} volumes");
        report.add(
            format!("start, {what}"),
            Figure::Number(driver.start.as_secs_f64() * 1000.0, "ms until ready"),
        );
        with_many(sandbox, &what, count, &floor, &mut report).await;
        numbers_of(&driver, &what, &mut report);
    }
    driver.stop();
    copies::all(sandbox, binary, &mut report).await;
    report
}

/// The least that any call takes.
async fn probe(socket: &Path) -> std::time::Duration {
    let mut identity = IdentityClient::new(dial(socket));
    let mut samples = Samples::default();
    for _ in 0..500 {
        let start = Instant::now();
        identity.probe(ProbeRequest {}).await.unwrap();
        samples.add(start.elapsed());
    }
    samples.median()
}

fn numbers_of(driver: &Driver, when: &str, report: &mut Report) {
    for (name, line) in [("memory", "VmRSS"), ("most memory", "VmHWM")] {
        let value = driver.status(line) / 1024.0;
        report.add(format!("{name}, {when}"), Figure::Number(value, "MiB"));
    }
    report.add(format!("threads, {when}"), Figure::Number(driver.status("Threads"), ""));
    let files = u32::try_from(driver.open_files()).unwrap();
    report.add(format!("open files, {when}"), Figure::Number(f64::from(files), ""));
}

/// Each call by itself.
async fn alone(sandbox: &Sandbox, kind: Kind, count: usize, floor: &Floor, report: &mut Report) {
    for (call, samples) in lives(sandbox, kind, count, 1).await {
        let (of, took) = floor.of(parts(kind.name, call));
        report.add(format!("{} {call}", kind.name), Figure::Calls(samples, of, took));
    }
}

/// How many lives there are in a second.
async fn together(
    sandbox: &Sandbox,
    kind: Kind,
    count: usize,
    at_once: usize,
    report: &mut Report,
) {
    let start = Instant::now();
    lives(sandbox, kind, count, at_once).await;
    let each = start.elapsed().div_f64(f64::from(u32::try_from(count).unwrap()));
    let name = format!("{} lives, {at_once} at once", kind.name);
    report.add(name, Figure::Number(1.0 / each.as_secs_f64(), "a second"));
}

/// Makes volumes that stay.
async fn keep(sandbox: &Sandbox, numbers: std::ops::Range<usize>) {
    let makers = (0..16).map(|maker| {
        let (numbers, mut caller) = (numbers.clone(), Caller::new(sandbox));
        tokio::spawn(async move {
            for number in numbers.filter(|number| number % 16 == maker) {
                caller.create(HOSTPATH, &format!("kept-{number}"), None).await;
            }
        })
    });
    for maker in makers.collect::<Vec<_>>() {
        maker.await.unwrap();
    }
}

/// What may not depend on how many volumes there are.
async fn with_many(
    sandbox: &Sandbox,
    what: &str,
    count: usize,
    floor: &Floor,
    report: &mut Report,
) {
    for (call, samples) in lives(sandbox, HOSTPATH, count / 2, 1).await {
        let (of, took) = floor.of(parts(HOSTPATH.name, call));
        report.add(format!("{call}, {what}"), Figure::Calls(samples, of, took));
    }
    let mut controller = Caller::new(sandbox).controller;
    let [mut listed, mut capacity] = [(); 2].map(|()| Samples::default());
    for _ in 0..count / 2 {
        let start = Instant::now();
        let page = ListVolumesRequest { max_entries: 100, starting_token: String::new() };
        controller.list_volumes(page).await.unwrap();
        listed.add(start.elapsed());
        let start = Instant::now();
        controller.get_capacity(GetCapacityRequest::default()).await.unwrap();
        capacity.add(start.elapsed());
    }
    let (of, took) = floor.of(&["probe"]);
    report.add(format!("ListVolumes of 100, {what}"), Figure::Calls(listed, of.clone(), took));
    report.add(format!("GetCapacity, {what}"), Figure::Calls(capacity, of, took));
}
