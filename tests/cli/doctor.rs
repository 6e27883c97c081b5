//! `orlop doctor`, with the daemon up and down. What a node can lack is judged beside the code.

use std::fs;
use std::process::Output;

use serde_json::Value;

use super::harness::{Node, fails, json, names, run, text};

/// The checklist, of which some may have failed: the machine that runs the tests need not be a node.
fn doctor(node: &Node, more: &[&str]) -> (Output, Vec<Value>) {
    let (root, pool) = (node.text("root"), node.pool());
    let common = ["doctor", "--output", "json", "--root-dir", &root, "--pool", &pool];
    let output = run(&[&common[..], more].concat());
    let list = json(&text(&output.stdout));
    (output, list)
}

#[track_caller]
fn of<'a>(list: &'a [Value], check: &str) -> (&'a str, &'a str) {
    let line = list.iter().find(|line| line["check"] == check);
    let line = line.unwrap_or_else(|| panic!("no {check} in {list:#?}"));
    (line["result"].as_str().unwrap(), line["what"].as_str().unwrap())
}

#[test]
fn the_checklist_is_the_same_with_the_daemon_up_and_down() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &[]);
    daemon.create("volume");
    let endpoint = format!("unix://{}", node.text("csi.sock"));
    let checks = |list: &[Value]| list.iter().map(|line| line["check"].clone()).collect::<Vec<_>>();
    let (_, up) = doctor(&node, &["--endpoint", &endpoint]);
    let (result, what) = of(&up, "pool default");
    assert!(result == "pass" && what.ends_with(", 1 volumes, 0 snapshots"), "{what}");
    assert!(of(&up, "socket").1.contains("mode 0600"), "{up:#?}");
    daemon.stop();
    let (output, down) = doctor(&node, &["--endpoint", &endpoint]);
    assert_eq!(checks(&up), checks(&down));
    assert_eq!(of(&down, "pool default").1, what);
    let gone = format!("{} is not there: no driver runs", node.text("csi.sock"));
    assert_eq!(of(&down, "socket"), ("warn", gone.as_str()));

    // What fails, and only that, is a failure of the command.
    let failed = down.iter().filter(|line| line["result"] == "fail").count();
    assert_eq!(output.status.code(), Some(i32::from(failed > 0)), "{down:#?}");
    for line in &down {
        let is_well = line["result"] == "pass";
        assert_eq!(line["remedy"].is_null(), is_well, "{line}");
    }
}

#[test]
fn a_disk_that_is_missing_fails() {
    let node = Node::new();
    node.serve("csi", &[]).stop();
    let marker = fs::read_to_string(node.path("pool/pool.json")).unwrap();
    let marker: Value = serde_json::from_str(&marker).unwrap();
    fs::rename(node.path("pool"), node.path("elsewhere")).unwrap();
    fs::create_dir(node.path("pool")).unwrap();
    let (output, list) = doctor(&node, &[]);
    assert_eq!(output.status.code(), Some(1));
    let says = format!(
        "{}: the marker pool.json of pool {} is not there; its disk is probably not mounted",
        node.text("pool"),
        marker["uuid"].as_str().unwrap()
    );
    assert_eq!(of(&list, "pool default"), ("fail", says.as_str()));
    let complaint = text(&output.stderr);
    assert!(complaint.ends_with(&format!(" of {} checks failed\n", list.len())), "{complaint}");
}

#[test]
fn it_changes_nothing() {
    let node = Node::new();
    let (_, list) = doctor(&node, &[]);
    let says = format!("{}: not a pool yet", node.text("pool"));
    assert_eq!(of(&list, "pool default"), ("warn", says.as_str()));
    assert_eq!(names(node.dir.path()), Vec::<String>::new());
    let complaint = fails(1, &["doctor"]);
    assert!(complaint.contains("--pool"), "{complaint}");
}
