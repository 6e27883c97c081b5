//! A pool with one record that says anything: the driver opens it, answers everything, and its other volumes never notice.

use std::path::{Path, PathBuf};

use orlop::engine::{CapacityQuery, Engine};
use orlop::volume::{
    AccessMode, AccessType, ByteSize, CapacityRange, CreateSpec, Key, MountFlags,
    MutableParameters, OnDelete, Parameters, VolumeCapability, VolumeId,
};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::common::Machine;

const POOL: &str = "p";

fn spec(name: &str) -> CreateSpec {
    let access = AccessType::Mount { filesystem: String::new(), flags: MountFlags::default() };
    CreateSpec {
        source: None,
        key: Key::of_name(name),
        name: name.to_owned(),
        capacity: CapacityRange { required: ByteSize::mib(1), limit: None },
        capabilities: vec![VolumeCapability { access, mode: AccessMode::SingleNodeMultiWriter }],
        parameters: Parameters {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            ..Parameters::default()
        },
        requisite: Vec::new(),
        pod: None,
        claim: None,
    }
}

fn record(machine: &Machine, id: &VolumeId) -> PathBuf {
    machine.pool(POOL).join("volumes").join(id.key.as_str()).join("volume.json")
}

#[expect(clippy::disallowed_methods, reason = "writes a record as a hostile disk could hold it")]
fn overwrite(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}

/// Numbers at the edges of what they can be, and words that mean something.
fn any_leaf() -> impl Strategy<Value = Value> {
    let edge = |number: u64| vec![number.saturating_sub(1), number, number.saturating_add(1)];
    let edges: Vec<u64> =
        [0, 4096, 1 << 31, 1 << 53, 1 << 63, u64::MAX].into_iter().flat_map(edge).collect();
    let words =
        vec!["", "hostpath", "loop", "block", "wipe", "project", "simple-quota", "../..", "/"];
    prop_oneof![
        4 => prop::sample::select(edges).prop_map(Value::from),
        2 => prop::sample::select(words).prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<i64>().prop_map(Value::from),
    ]
}

/// The fields that have an effect, also those that a directory without a limit leaves out.
const FIELDS: &[&str] = &[
    "/generation",
    "/name",
    "/created",
    "/request/requiredBytes",
    "/request/limitBytes",
    "/request/access",
    "/request/source",
    "/resolved/backend",
    "/current/sizeBytes",
    "/current/onDelete",
    "/limit/number",
    "/limit/kind",
    "/shared/0/sizeBytes",
    "/shared/1/sizeBytes",
    "/inline/target",
    "/inline/podUid",
];

fn change(record: &mut Value, field: &str, value: Value) {
    let name = json!({"key": "0123456789abcdef0123456789abcdef", "generation": "01020304"});
    let shared = json!({"sizeBytes": u64::MAX, "writer": name, "origin": name});
    match field.split('/').nth(1) {
        Some("limit") => record["limit"] = json!({"kind": "project", "number": 9}),
        Some("shared") => record["shared"] = json!([shared, shared]),
        Some("inline") => {
            record["inline"] =
                json!({"podUid": "u", "podNamespace": "n", "podName": "p", "target": "/t"});
        }
        _ => {}
    }
    let (parent, name) = field.rsplit_once('/').unwrap();
    // An earlier change may have made something else of it.
    if let Some(Value::Object(map)) = record.pointer_mut(parent) {
        map.insert(name.to_owned(), value);
    }
}

/// Everything that can be asked of a volume. What is answered is of no concern; that it is answered is.
fn ask_everything(engine: &Engine, id: &VolumeId, name: &str) {
    let _answers = (
        engine.get(id).is_ok(),
        engine.volume_health(id, &[Path::new("/somewhere/target")]).is_ok(),
        engine.expand(id, CapacityRange { required: ByteSize::mib(2), limit: None }).is_ok(),
        engine.modify(id, MutableParameters { on_delete: Some(OnDelete::Retain) }).is_ok(),
        engine.create(&spec(name)).is_ok(),
    );
    let query = CapacityQuery { parameters: Parameters::default(), block: false, topology: None };
    let _capacity = engine.capacity(&query).is_ok();
    let _sums = engine.pool_reports().len();
}

fn neighbours_are_well(engine: &Engine, neighbours: &[VolumeId]) -> Result<(), TestCaseError> {
    let (listed, _) = engine.list(None, usize::MAX);
    for id in neighbours {
        prop_assert!(listed.iter().any(|volume| volume.id == *id));
        prop_assert_eq!(engine.volume_health(id, &[]).unwrap(), Vec::new());
    }
    prop_assert!(engine.list_volume_health(None, None).is_ok());
    prop_assert!(engine.storage_health().is_ok());
    Ok(())
}

/// A pool with a victim between two neighbours.
fn inhabited() -> (Machine, VolumeId, Vec<VolumeId>) {
    let machine = Machine::new();
    let engine = machine.engine(&[POOL]);
    let make = |name: &str| engine.create(&spec(name)).unwrap().id;
    let (one, victim, other) = (make("one"), make("victim"), make("other"));
    (machine, victim, vec![one, other])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn a_record_that_says_anything_harms_nobody(changes in prop::collection::vec((prop::sample::select(FIELDS), any_leaf()), 1..4)) {
        let (machine, victim, neighbours) = inhabited();
        let path = record(&machine, &victim);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (field, leaf) in changes {
            change(&mut value, field, leaf);
        }
        overwrite(&path, &serde_json::to_vec_pretty(&value).unwrap());
        let engine = machine.engine(&[POOL]);
        ask_everything(&engine, &victim, "victim");
        neighbours_are_well(&engine, &neighbours)?;
        let _gone = engine.delete(&victim).is_ok();
        engine.drain_trash();
        neighbours_are_well(&engine, &neighbours)?;
    }

    #[test]
    fn a_record_that_is_torn_while_the_driver_runs_is_never_deleted(cut: Index, garbage in prop::collection::vec(any::<u8>(), 0..64)) {
        let (machine, victim, neighbours) = inhabited();
        let engine = machine.engine(&[POOL]);
        let path = record(&machine, &victim);
        let good = std::fs::read(&path).unwrap();
        let mut torn = good[..cut.index(good.len() - 1)].to_vec();
        torn.extend(&garbage);
        overwrite(&path, &torn);
        ask_everything(&engine, &victim, "victim");
        prop_assert!(engine.delete(&victim).is_err());
        prop_assert_eq!(std::fs::read(&path).unwrap(), torn);
        neighbours_are_well(&engine, &neighbours)?;
        overwrite(&path, &good);
        prop_assert_eq!(engine.volume_health(&victim, &[]).unwrap(), Vec::new());
        prop_assert!(engine.delete(&victim).is_ok());
        neighbours_are_well(&engine, &neighbours)?;
    }
}

#[test]
fn hostile_sizes_add_up_and_are_taken_back() {
    let (machine, victim, neighbours) = inhabited();
    let hostile = |id: &VolumeId, size: u64| {
        let path = record(&machine, id);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for field in ["/shared/0/sizeBytes", "/shared/1/sizeBytes", "/current/sizeBytes"] {
            change(&mut value, field, size.into());
            value["shared"][0]["sizeBytes"] = size.into();
        }
        change(&mut value, "/limit/number", u64::MAX.into());
        overwrite(&path, &serde_json::to_vec(&value).unwrap());
    };
    let ids = [&victim, &neighbours[0]];
    // More than any disk has is no size.
    for id in ids {
        hostile(id, (1 << 60) + 1);
    }
    let engine = machine.engine(&[POOL]);
    assert!(ids.iter().all(|id| engine.get(id).is_err()));
    drop(engine);
    for id in ids {
        hostile(id, 1 << 60);
    }
    let engine = machine.engine(&[POOL]);
    ask_everything(&engine, &victim, "victim");
    for id in ids {
        let change = MutableParameters { on_delete: Some(OnDelete::Delete) };
        engine.modify(id, change).unwrap();
        engine.delete(id).unwrap();
    }
    engine.drain_trash();
    assert_eq!(engine.pool_reports()[0].charges.unwrap().total(), ByteSize::mib(1));
    neighbours_are_well(&engine, &neighbours[1..]).unwrap();
}
