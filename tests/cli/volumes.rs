//! `orlop volume show` and `orlop volume delete`.

use serde_json::Value;

use super::harness::{Daemon, Node, fails, names, prints, put};

#[test]
fn a_volume_is_deleted_by_its_on_delete_and_only_when_that_is_meant() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &[]);
    let endpoint = format!("unix://{}", node.text("csi.sock"));
    let id = daemon.create("first\nvolume");
    let complaint = fails(1, &["volume", "delete", &id, "--endpoint", &endpoint]);
    assert!(complaint.starts_with("orlop: nothing was deleted: "), "{complaint}");
    assert!(complaint.contains("--yes"), "{complaint}");
    let delete =
        |id: &str| ["volume", "delete", id, "--yes", "--endpoint", &endpoint].map(str::to_owned);
    let said = prints(&delete(&id).each_ref().map(String::as_str));
    assert_eq!(said, format!("volume {id} (first\\nvolume) is deleted (onDelete: delete)\n"));
    // Twice is a mistake here, unlike for a CO.
    let complaint = fails(1, &delete(&id).each_ref().map(String::as_str));
    assert!(complaint.starts_with("orlop: NotFound: "), "{complaint}");

    let kept = daemon.create_with("kept", &[("onDelete", "retain")]);
    let said = prints(&delete(&kept).each_ref().map(String::as_str));
    let place = names(&node.path("pool/retained")).remove(0);
    let place = node.text(&format!("pool/retained/{place}"));
    assert!(said.contains(&format!("its data is kept in {place} (onDelete: retain)")), "{said}");

    daemon.stop();
    let complaint = fails(1, &delete(&kept).each_ref().map(String::as_str));
    assert!(complaint.contains("no driver answers at"), "{complaint}");
    let complaint = fails(1, &["volume", "delete", &kept, "--yes"]);
    assert!(complaint.contains("no endpoint; give --endpoint"), "{complaint}");
    fails(2, &["volume", "delete", "not-an-id", "--yes"]);
}

/// A volume of a claim.
fn create(daemon: &Daemon) -> String {
    daemon.create_with(
        "data",
        &[
            ("onDelete", "archive"),
            ("csi.storage.k8s.io/pvc/name", "db-0"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ],
    )
}

/// Where a volume lies.
fn directory(node: &Node, id: &str) -> String {
    node.text(&format!("pool/volumes/{}", id.split('-').nth(2).unwrap()))
}

fn show(node: &Node, volume: &str, more: &[&str]) -> String {
    prints(&[&["volume", "show", volume, "--pool", &node.pool()], more].concat())
}

#[test]
fn a_volume_is_shown_by_id_and_by_name() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &[]);
    let id = create(&daemon);
    let directory = directory(&node, &id);
    let by_id = show(&node, &id, &[]);
    assert_eq!(show(&node, "data", &[]), by_id);
    for (field, value) in [
        ("id", id.as_str()),
        ("name", "data"),
        ("state", "ready"),
        ("backend", "hostpath"),
        ("size", "1 MiB"),
        ("promised", "1 MiB"),
        ("onDelete", "archive"),
        ("snapshots", "0"),
        ("claim", "shop/db-0"),
        ("parameter", "quota=off"),
        ("pool", "default (directory)"),
        ("directory", directory.as_str()),
        ("health", "not asked for: give the --endpoint of the running driver"),
    ] {
        let line = format!("{field:9}  {value}");
        assert!(by_id.lines().any(|shown| shown == line), "{line:?} is not in\n{by_id}");
    }
    assert!(by_id.contains("\nmounted    nowhere"), "{by_id}");
    daemon.stop();
    assert_eq!(show(&node, &id, &[]), by_id, "the same without the daemon");
}

#[test]
fn a_volume_is_shown_to_programs_with_its_health() {
    let node = Node::new();
    let daemon = node.serve("csi", &[]);
    let id = create(&daemon);
    daemon.snapshot("snap", &id);
    let endpoint = format!("unix://{}", node.text("csi.sock"));
    let asked = show(&node, &id, &["--endpoint", &endpoint]);
    assert!(asked.contains("\nhealth     nothing is wrong\n"), "{asked}");
    let value = show(&node, "data", &["-o", "json", "--endpoint", &endpoint]);
    let value: Value = serde_json::from_str(&value).unwrap();
    let empty = || serde_json::json!([]);
    for (field, expected) in [
        ("id", Value::from(id.as_str())),
        ("state", Value::from("ready")),
        ("promisedBytes", Value::from(1 << 20)),
        ("snapshots", Value::from(1)),
        ("directory", Value::from(directory(&node, &id))),
        ("claim", serde_json::json!({ "namespace": "shop", "name": "db-0" })),
        ("health", empty()),
        ("mounts", empty()),
        ("loopDevices", empty()),
    ] {
        assert_eq!(value[field], expected, "{field}: {value:#}");
    }
    std::fs::remove_dir(format!("{}/data", directory(&node, &id))).unwrap();
    let ill = show(&node, &id, &["--endpoint", &endpoint]);
    assert!(ill.contains("\nhealth     DataMissing: "), "{ill}");
    assert!(ill.contains("\nstate      DataMissing: "), "{ill}");
}

#[test]
fn what_cannot_be_shown_says_why() {
    let node = Node::new();
    node.serve("csi", &[]).stop();
    let damaged = "0123456789abcdef0123456789abcdef";
    put(&node.path(&format!("pool/volumes/{damaged}/volume.json")), "not json");
    let pool = node.pool();
    let shown = prints(&["volume", "show", damaged, "--pool", &pool]);
    assert!(shown.contains("\nstate      damaged: "), "{shown}");
    let complaint = fails(1, &["volume", "show", "nobody", "--pool", &pool]);
    assert!(complaint.starts_with("orlop: no volume has the id or name \"nobody\""), "{complaint}");
    let away = format!("other={}", node.text("absent"));
    let complaint = fails(1, &["volume", "show", "nobody", "--pool", &pool, "--pool", &away]);
    assert!(complaint.contains("pool other") && complaint.contains("is away"), "{complaint}");
}
