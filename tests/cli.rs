//! The program as its users call it. Nothing here needs root.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test says what is wrong by panicking, runs the program that it tests, and keeps its own files"
)]

#[path = "cli/complete.rs"]
mod complete;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/metrics.rs"]
mod metrics;
#[path = "cli/volumes.rs"]
mod volumes;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use harness::{Daemon, Node, fails, json, names, orlop, poll, prints, put, run, text};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn every_command_tells_its_flags() {
    for (command, flags) in [
        (vec![], vec!["serve", "pool", "volume", "snapshot", "doctor", "try", "--version"]),
        (
            vec!["serve"],
            vec![
                "--endpoint",
                "--node-id",
                "--pool",
                "--config",
                "--root-dir",
                "--init-pools",
                "--controller-expand",
                "--kubelet-dir",
                "--driver-name",
                "--log-format",
                "--metrics-address",
                "ORLOP_ENDPOINT",
                "CSI_ENDPOINT",
            ],
        ),
        (vec!["pool"], vec!["init", "list", "new-uuid"]),
        (vec!["pool", "init"], vec!["--name", "<PATH>"]),
        (vec!["pool", "list"], vec!["--pool", "--config", "--output"]),
        (vec!["pool", "new-uuid"], vec!["<PATH>"]),
        (vec!["volume"], vec!["list", "show", "import", "manifest", "delete", "forget"]),
        (vec!["volume", "delete"], vec!["<ID>", "--yes", "--endpoint"]),
        (vec!["volume", "show"], vec!["<VOLUME>", "--pool", "--endpoint", "--output"]),
        (vec!["volume", "manifest"], vec!["<ID>", "--pool", "--node", "--driver-name"]),
        (vec!["volume", "list"], vec!["--pool", "--config", "--output", "--count"]),
        (vec!["volume", "forget"], vec!["--pool", "--root-dir", "<ID>"]),
        (vec!["snapshot"], vec!["list", "forget"]),
        (vec!["snapshot", "forget"], vec!["--pool", "--root-dir", "<ID>"]),
        (vec!["snapshot", "list"], vec!["--pool", "--config", "--output"]),
        (vec!["doctor"], vec!["--pool", "--config", "--root-dir", "--endpoint", "--output"]),
        (vec!["try"], vec!["--only"]),
    ] {
        let help = prints(&[command.as_slice(), &["--help"]].concat());
        for flag in flags {
            assert!(help.contains(flag), "{command:?} does not tell of {flag}:\n{help}");
        }
    }
    assert!(prints(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_import_tells_its_flags() {
    let help = prints(&["volume", "import", "--help"]);
    let flags = "<SOURCE> --name --to --copy --size --on-delete --endpoint ORLOP_ENDPOINT CSI_ENDPOINT --pool --node --driver-name --storage-class";
    for flag in flags.split(' ') {
        assert!(help.contains(flag), "it does not tell of {flag}:\n{help}");
    }
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["serve"],
        &["serve", "--node-id", "n1", "--nonsense"],
        &["serve", "--node-id", "n1", "--log-format", "xml"],
        &["serve", "--node-id", "n1", "--controller-expand", "maybe"],
        &["pool", "init"],
        &["pool", "list", "--output", "yaml"],
        &["volume", "forget", "--pool", "a=/a", "not-an-id"],
        &["volume", "import", "--name", "v"],
        &["volume", "manifest", "--pool", "a=/a", "not-an-id"],
        &["try", "--only", "floppy"],
    ] {
        let complaint = fails(2, arguments);
        assert!(complaint.contains("Usage") || complaint.contains("--help"), "{complaint}");
    }
}

/// Serves with these flags; answers the complaint, which must name all that is in `named`.
fn serve_complains(flags: &[&str], named: &[&str]) {
    let complaint = fails(1, &[&["serve", "--node-id", "n1"], flags].concat());
    assert!(complaint.starts_with("orlop: "), "{complaint}");
    for name in named {
        assert!(complaint.contains(name), "{flags:?} does not name {name}: {complaint}");
    }
}

#[test]
fn wrong_flags_are_refused_before_anything_starts() {
    let node = Node::new();
    let (endpoint, pool) = (format!("unix://{}", node.text("csi.sock")), node.pool());
    serve_complains(&["--endpoint", &endpoint], &["--pool", "--config"]);
    serve_complains(&["--pool", &pool], &["--endpoint"]);
    serve_complains(
        &["--endpoint", "tcp://1.2.3.4:5", "--pool", &pool],
        &["endpoint", "tcp://1.2.3.4:5"],
    );
    let long = "x".repeat(64);
    // The flags that are wrong; what the message must name.
    for (wrong, named) in [
        (vec!["--driver-name", "a_b", "--pool", &pool], vec!["--driver-name", "a_b"]),
        (vec!["--driver-name", &long, "--pool", &pool], vec!["--driver-name"]),
        (vec!["--root-dir", "relative", "--pool", &pool], vec!["--root-dir", "relative"]),
        (vec!["--pool", "any=/a"], vec!["pool", "any"]),
        (vec!["--pool", "../a=/a"], vec!["pool", "../a"]),
        (vec!["--pool", "nonsense"], vec!["--pool", "nonsense"]),
        (vec!["--pool", "a=relative"], vec!["pool", "relative"]),
        (vec!["--pool", "a=/a/../etc"], vec!["pool", "/a/../etc"]),
        (vec!["--pool", "a=/a", "--pool", "a=/b"], vec!["pools a and a"]),
        (vec!["--pool", "a=/a", "--pool", "b=/a"], vec!["pools a and b"]),
    ] {
        serve_complains(&[&["--endpoint", &endpoint], wrong.as_slice()].concat(), &named);
    }
    let complaint = fails(1, &["serve", "--node-id", "", "--endpoint", &endpoint, "--pool", &pool]);
    assert!(complaint.contains("--node-id"), "{complaint}");
    assert_eq!(names(node.dir.path()), Vec::<String>::new());
}

#[test]
fn a_wrong_configuration_file_is_refused() {
    let node = Node::new();
    let endpoint = format!("unix://{}", node.text("csi.sock"));
    let pool = "[[pool]]\nname = \"a\"\npath = \"/a\"\n";
    for (file, content, named) in [
        ("reserve.toml", format!("{pool}reserve = \"10 apples\"\n"), "10 apples"),
        ("overcommit.toml", format!("{pool}overcommit = -1.0\n"), "overcommit"),
        ("unknown.toml", format!("{pool}size = 3\n"), "size"),
        ("broken.toml", "[[pool\n".to_owned(), "broken.toml"),
        ("twice.toml", format!("{pool}{pool}"), "pools a and a"),
    ] {
        put(&node.path(file), &content);
        serve_complains(&["--endpoint", &endpoint, "--config", &node.text(file)], &[named]);
    }
    let absent = node.text("absent.toml");
    serve_complains(&["--endpoint", &endpoint, "--config", &absent], &[&absent]);
    assert!(!node.path("csi.sock").exists());
}

#[test]
fn a_pool_is_made_once_and_never_over_something() {
    let node = Node::new();
    let made = prints(&["pool", "init", "--name", "fast", &node.text("new")]);
    assert!(made.contains("fast") && made.contains(&node.text("new")), "{made}");
    let marker = fs::read(node.path("new/pool.json")).unwrap();
    let complaint = fails(1, &["pool", "init", &node.text("new")]);
    assert!(complaint.contains("already"), "{complaint}");
    assert_eq!(fs::read(node.path("new/pool.json")).unwrap(), marker);

    fs::create_dir(node.path("empty")).unwrap();
    prints(&["pool", "init", &node.text("empty")]);
    assert!(node.path("empty/pool.json").exists());

    put(&node.path("full/letters.txt"), "dear");
    let complaint = fails(1, &["pool", "init", &node.text("full")]);
    assert!(complaint.contains("letters.txt"), "{complaint}");
    assert_eq!(names(&node.path("full")), ["letters.txt"]);
    assert_eq!(fs::read(node.path("full/letters.txt")).unwrap(), b"dear");
}

/// The reserve is a twentieth, or a fifth of a filesystem that the system uses.
fn check_room(pool: &Value) {
    let bytes = |field: &str| pool[field].as_u64().unwrap();
    let reserves = [1, 4].map(|parts| bytes("totalBytes") / 20 * parts);
    assert!(reserves.iter().any(|share| share.abs_diff(bytes("reserveBytes")) < 100), "{pool}");
    let most = bytes("availableBytes").saturating_sub(bytes("reserveBytes"));
    assert!(bytes("roomBytes") <= most, "{pool}");
}

#[test]
fn lists_are_the_same_with_the_daemon_up_and_down() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &[]);
    let id = daemon.create("first\nvolume");
    let damaged = "0123456789abcdef0123456789abcdef";
    put(&node.path(&format!("pool/volumes/{damaged}/volume.json")), "not json");
    let pool = node.pool();
    let list = |what: &str, output: &str| prints(&[what, "list", "--pool", &pool, "-o", output]);
    let look = || ["pool", "volume"].map(|what| ["table", "json"].map(|output| list(what, output)));
    let [[pool_table, pool_json], [volume_table, volume_json]] = look();

    let pools = json(&pool_json);
    assert_eq!(pools.len(), 1);
    for (key, value) in [
        ("name", Value::from("default")),
        ("state", Value::from("ready")),
        ("volumes", Value::from(2)),
        ("damaged", Value::from(1)),
        ("promisedBytes", Value::from(1 << 20)),
    ] {
        assert_eq!(pools[0][key], value, "{key}: {pool_json}");
    }
    check_room(&pools[0]);
    assert!(pool_table.starts_with("NAME") && pool_table.contains("1 MiB"), "{pool_table}");

    let volumes = json(&volume_json);
    let state = |state: &str| volumes.iter().find(|v| v["state"] == state).unwrap();
    assert_eq!(state("ready")["id"], id.as_str());
    assert_eq!(state("ready")["name"], "first\nvolume");
    assert_eq!(state("ready")["sizeBytes"], 1 << 20);
    // A directory that no limit counts is counted only when that is asked for.
    let counted = prints(&["volume", "list", "--pool", &pool, "-o", "json", "--count"]);
    let counted = json(&counted).into_iter().find(|volume| volume["state"] == "ready").unwrap();
    assert_eq!((&counted["usedBasis"], &counted["usedInodes"]), (&"counted".into(), &1.into()));
    assert!(counted["usedBytes"].is_u64(), "{counted}");
    for field in ["usedBytes", "usedInodes", "usedBasis"] {
        assert!(state("ready")[field].is_null(), "{volume_json}");
    }
    assert_eq!(state("damaged")["key"], damaged);
    assert!(state("damaged")["reason"].is_string());
    // A name must not break the table.
    assert_eq!(volume_table.lines().count(), 3, "{volume_table}");
    assert!(volume_table.contains(&id) && volume_table.contains("first\\nvolume"));
    assert!(volume_table.contains(damaged) && volume_table.contains("damaged"));

    daemon.stop();
    // Free space may change meanwhile; volumes do not.
    let [_, volumes_down] = look();
    assert_eq!(volumes_down, [volume_table, volume_json]);
    assert_eq!(
        fs::read(node.path(&format!("pool/volumes/{damaged}/volume.json"))).unwrap(),
        b"not json"
    );
}

#[test]
fn snapshots_and_copies_on_their_way_are_listed() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &[]);
    let volume = daemon.create("volume");
    let snapshot = daemon.snapshot("a\nname", &volume);
    daemon.stop();
    // As a copy notes it while it runs.
    let key = "0123456789abcdef0123456789abcdef";
    let written = r#"{"source":"s-1","doneBytes":524288,"totalBytes":1048576}"#;
    put(&node.path(&format!("pool/incoming/{key}/copying.json")), written);
    put(&node.path(&format!("pool/incoming/s-{key}/copying.json")), written);
    let pool = node.pool();
    let list = |what: &str, output: &str| prints(&[what, "list", "--pool", &pool, "-o", output]);
    let listed = json(&list("snapshot", "json"));
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(listed[0]["id"], snapshot.as_str());
    assert_eq!(listed[0]["source"], volume.as_str());
    assert_eq!((&listed[0]["state"], &listed[1]["state"]), (&"ready".into(), &"copying".into()));
    let table = list("snapshot", "table");
    assert!(table.contains("a\\nname") && table.contains(&volume), "{table}");
    for what in ["volume", "snapshot"] {
        let table = list(what, "table");
        assert!(table.contains("copying s-1: 50 % of 1 MiB"), "{table}");
        let listed = json(&list(what, "json"));
        let copies: Vec<_> = listed.iter().filter(|one| one["state"] == "copying").collect();
        assert_eq!(copies.len(), 1, "{listed:?}");
        assert_eq!((&copies[0]["key"], &copies[0]["doneBytes"]), (&key.into(), &524_288.into()));
    }
    // It counts what snapshots take.
    let pools = json(&list("pool", "json"));
    assert_eq!(pools[0]["snapshots"], 1);
    assert!(pools[0]["sharesBlocks"].is_boolean(), "{pools:?}");
}

#[test]
fn a_pool_that_is_away_is_listed_as_such() {
    let node = Node::new();
    let listed = json(&prints(&["pool", "list", "--pool", &node.pool(), "--output", "json"]));
    assert!(listed[0]["state"].as_str().unwrap().starts_with("away"), "{listed:?}");
    assert!(!node.path("pool").exists());
    // Not to be taken for a pool without volumes.
    let output = run(&["volume", "list", "--pool", &node.pool(), "-o", "json"]);
    assert_eq!((output.status.code(), text(&output.stdout).trim()), (Some(1), "[]"));
    assert!(text(&output.stderr).contains("is away"), "{}", text(&output.stderr));
}

#[test]
fn a_copied_pool_gets_a_uuid_of_its_own() {
    let node = Node::new();
    let uuid = || {
        let pools = json(&prints(&["pool", "list", "--pool", &node.pool(), "-o", "json"]));
        pools[0]["uuid"].as_str().unwrap().to_owned()
    };
    let mut daemon = node.serve("csi", &[]);
    let old = uuid();
    let pool = node.text("pool");
    fails(1, &["pool", "new-uuid", &pool]);
    assert_eq!(uuid(), old, "a pool that a daemon has open must not change");
    daemon.stop();
    let said = prints(&["pool", "new-uuid", &pool]);
    let new = uuid();
    assert_ne!(new, old);
    assert!(said.contains(&old) && said.contains(&new), "{said}");
    let nothing = node.text("nothing");
    fails(1, &["pool", "new-uuid", &nothing]);
    assert!(!node.path("nothing").exists());
}

#[test]
fn a_volume_is_given_up_only_when_its_pool_is_away() {
    let node = Node::new();
    let daemon = node.serve("csi", &[]);
    let here = daemon.create("here");
    let gone = "v-00000000-0123456789abcdef0123456789abcdef-01234567";
    let (pool, root) = (node.pool(), node.text("root"));
    let forget = |id: &str| run(&["volume", "forget", "--pool", &pool, "--root-dir", &root, id]);

    let refused = forget(&here);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("default"), "{refused:?}");
    assert_eq!(daemon.delete(gone).unwrap_err().code(), tonic::Code::Unavailable);
    let given_up = forget(gone);
    assert!(given_up.status.success(), "{given_up:?}");
    // Also for the daemon that was running meanwhile.
    daemon.delete(gone).unwrap();
    daemon.delete(&here).unwrap();
    poll("an empty trash", || names(&node.path("pool/trash")).is_empty().then_some(()));
}

#[test]
fn a_directory_is_imported_with_and_without_a_daemon() {
    let node = Node::new();
    let (pool, root) = (node.pool(), node.text("root"));
    let mut daemon = node.serve("csi", &[]);
    let import = |source: &str, more: &[&str]| {
        fs::create_dir_all(node.path(source)).unwrap();
        put(&node.path(source).join("file"), source);
        let source = node.path(source).canonicalize().unwrap();
        // Where a disk that is rather full does not decide.
        let config = node.text("orlop.toml");
        // This test may run where not all processes of the machine are seen.
        let fixed = ["volume", "import", source.to_str().unwrap(), "--unused", "--config", &config];
        run(&[&fixed[..], &["--root-dir", &root, "--name", "v"], more].concat())
    };
    let place = ["--node", "a node"];
    let locked = import("one", &place);
    assert_eq!(locked.status.code(), Some(1));
    assert!(text(&locked.stderr).contains("--endpoint"), "{locked:?}");
    let endpoint = format!("unix://{}", daemon.socket.display());
    let done = import("one", &["--endpoint", &endpoint]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let manifest = text(&done.stdout);
    assert!(manifest.contains("driver: \"orlop.csi.local\"") && manifest.contains("- \"n1\""));
    let handle = manifest.split("volumeHandle: \"").nth(1).unwrap();
    let id = handle.split('"').next().unwrap();
    let told = ["volume", "manifest", "--pool", &pool, "--node", "n1", id];
    assert_eq!(prints(&told), manifest, "also while the daemon runs");
    assert!(
        fails(1, &told[..4].iter().chain([&id]).copied().collect::<Vec<_>>()).contains("--node")
    );
    daemon.delete(id).unwrap();
    daemon.stop();
    let unanswered = import("two", &["--endpoint", &endpoint]);
    assert!(text(&unanswered.stderr).contains("no driver answers"), "{unanswered:?}");
    let nowhere = import("two", &[]);
    assert!(text(&nowhere.stderr).contains("--node"), "{nowhere:?}");
    let done = import("two", &place);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let listed = json(&prints(&["volume", "list", "--pool", &pool, "--output", "json"]));
    assert_eq!(listed[0]["name"], "v");
    assert_eq!(listed[0]["onDelete"], "retain");
    assert!(listed[0]["importedFrom"].as_str().unwrap().ends_with("/two"));
    assert_ne!(listed[0]["id"], id, "a successor of that name");
    assert!(fails(1, &told).contains("does not exist"));
}

#[test]
fn the_socket_is_private_and_goes_with_the_daemon() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &[]);
    let metadata = fs::symlink_metadata(&daemon.socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    let id = daemon.create("kept");
    daemon.stop();
    assert!(!daemon.socket.exists());
    assert!(daemon.log().contains("stopped"), "{}", daemon.log());

    let mut killed = node.serve("csi", &[]);
    killed.signal(Signal::SIGKILL);
    killed.ends();
    assert!(killed.socket.exists(), "a killed daemon cannot remove it");
    let mut next = node.serve("csi", &[]);
    assert_eq!(next.create("kept"), id);
    next.stop();

    put(&node.path("file"), "mine");
    let endpoint = format!("unix://{}", node.text("file"));
    let (pool, root) = (node.pool(), node.text("root"));
    let arguments = ["serve", "--node-id", "n", "--endpoint", &endpoint, "--pool", &pool];
    let complaint = fails(1, &[&arguments[..], &["--root-dir", &root]].concat());
    assert!(complaint.contains("not a socket"), "{complaint}");
    assert_eq!(fs::read(node.path("file")).unwrap(), b"mine");
}

#[test]
fn the_endpoint_may_come_from_the_environment() {
    let node = Node::new();
    for (variable, name) in [("CSI_ENDPOINT", "one"), ("ORLOP_ENDPOINT", "two")] {
        let socket = node.path(name);
        let log = node.path(&format!("{name}.log"));
        let child = orlop()
            .args(["serve", "--init-pools"])
            .env(variable, format!("unix://{}", socket.display()))
            .env("ORLOP_NODE_ID", "n1")
            .env("ORLOP_POOL", node.pool())
            .env("ORLOP_ROOT_DIR", node.path("root"))
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child, socket, log };
        daemon.wait_until_listening();
        daemon.wait_until_ready();
        daemon.stop();
    }
}

#[test]
fn a_second_daemon_listens_and_waits_for_the_pool() {
    let node = Node::new();
    let mut first = node.serve("first", &[]);
    let id = first.create("volume");
    let second = node.start("second", &[]);
    assert!(!second.is_ready());
    assert!(first.is_ready());
    first.stop();
    // A request makes it look again at once.
    assert_eq!(second.create("volume"), id);
    assert!(second.is_ready());
}

#[test]
fn json_logs_are_json() {
    let node = Node::new();
    let mut daemon = node.serve("csi", &["--log-format", "json"]);
    let id = daemon.create("a \"quoted\"\nname");
    daemon.delete(&id).unwrap();
    assert_eq!(daemon.delete("").unwrap_err().code(), tonic::Code::InvalidArgument);
    daemon.stop();
    let log = daemon.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |method: &str| {
        let line = lines.iter().find(|line| line["method"] == method);
        line.unwrap_or_else(|| panic!("no line for {method}:\n{log}"))
    };
    assert_eq!(of("CreateVolume")["volume"], "a \"quoted\"\nname");
    assert_eq!(of("CreateVolume")["code"], "Ok");
    assert!(of("CreateVolume")["milliseconds"].is_number());
    assert_eq!(of("DeleteVolume")["volume"], id.as_str());
    assert!(lines.iter().any(|line| line["code"] == "InvalidArgument"));
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
}
