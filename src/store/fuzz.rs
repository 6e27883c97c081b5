//! Every file of a pool and of `state/` that is read, with anything in it. A reader never panics; what it accepts it prints
//! and reads again as the same; what it refuses it refuses with the name of the field. `PROPTEST_CASES` raises how often.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};

use super::record::tests::sample;
use super::{Attachment, Group, Marker, Name, Record, Resolved, Shared, Snapshot, StoreError};
use super::{managed, marker, state};
use crate::volume::{
    AccessMode, ByteSize, Generation, Key, Limit, LimitKind, Pod, PoolTag, PoolUuid, Source,
};

/// Anything that JSON can say, also words and numbers that records have.
fn any_value() -> impl Strategy<Value = Value> {
    let known = prop::sample::select(vec!["hostpath", "loop", "ext4", "thin", "auto", "any", "v-"]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        known.prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[0-9a-f]{32}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// What is done to one place of a good file.
#[derive(Debug, Clone)]
enum Change {
    Replace(Value),
    Remove,
    Add(Value),
}

fn any_change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![
        any_value().prop_map(Change::Replace),
        Just(Change::Remove),
        any_value().prop_map(Change::Add),
    ];
    (any::<Index>(), change)
}

/// The places in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                places(inner, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(list) => {
            for (number, inner) in list.iter().enumerate() {
                places(inner, &format!("{at}/{number}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Does it; answers the name of the field that it was done to, unless that is the file itself.
fn apply(value: &mut Value, (at, change): &(Index, Change)) -> Option<String> {
    let mut all = Vec::new();
    places(value, "", &mut all);
    let place = at.get(&all).clone();
    let named = place.rsplit('/').find(|part| part.parse::<usize>().is_err())?.to_owned();
    match change {
        Change::Replace(new) => *value.pointer_mut(&place)? = new.clone(),
        Change::Add(new) => match value.pointer_mut(&place)? {
            Value::Object(map) => drop(map.insert("addedLater".to_owned(), new.clone())),
            Value::Array(list) => list.push(new.clone()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        },
        Change::Remove => {
            let (parent, last) = place.rsplit_once('/')?;
            match value.pointer_mut(parent)? {
                Value::Object(map) => drop(map.remove(last)),
                Value::Array(entries) => drop(entries.remove(last.parse().ok()?)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
    }
    (!named.is_empty()).then_some(named)
}

/// A kind of file: how it is read and printed, and a good one with everything in it.
struct Format<T> {
    good: Value,
    read: fn(&[u8]) -> Result<T, StoreError>,
    /// `None` where what is printed depends on what lies there.
    print: Option<fn(&T) -> Vec<u8>>,
    same: fn(&T, &T) -> bool,
}

impl<T: std::fmt::Debug> Format<T> {
    fn survives(&self, change: &(Index, Change)) -> Result<(), TestCaseError> {
        let mut value = self.good.clone();
        let field = apply(&mut value, change);
        let text = serde_json::to_vec(&value).unwrap();
        match (self.read)(&text) {
            Ok(read) => self.prints(&read)?,
            Err(StoreError::TooNew { .. }) => prop_assert_eq!(field, Some("minReader".to_owned())),
            Err(StoreError::Damaged { reason, .. }) => {
                prop_assert!(
                    field.as_ref().is_none_or(|field| reason.contains(field)),
                    "{field:?} is not named: {reason}"
                );
                prop_assert!(reason.len() < 4096, "{reason}");
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
        Ok(())
    }

    /// A good file with some bytes changed and its end cut.
    fn survives_bytes(&self, changes: &[(Index, u8)], cut: Index) -> Result<(), TestCaseError> {
        let mut text = serde_json::to_vec_pretty(&self.good).unwrap();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = *byte;
        }
        if let Ok(read) = (self.read)(&text) {
            self.prints(&read)?;
        }
        let whole = serde_json::to_vec_pretty(&self.good).unwrap();
        let cut = cut.index(whole.len());
        prop_assert!((self.read)(&whole[..cut]).is_err(), "torn at {cut}");
        Ok(())
    }

    fn prints(&self, read: &T) -> Result<(), TestCaseError> {
        if let Some(print) = self.print {
            let again = (self.read)(&print(read)).unwrap();
            prop_assert!((self.same)(&again, read), "{again:?} is not {read:?}");
        }
        Ok(())
    }
}

fn key() -> Key {
    Key::of_name("a")
}

fn name(text: &str) -> Name {
    Name { key: Key::of_name(text), generation: Generation::from_bits([1, 2, 3, 4]) }
}

fn shared() -> Vec<Shared> {
    vec![Shared { size: ByteSize::mib(1), writer: name("w"), origin: name("o") }]
}

fn records() -> Format<Record> {
    let mut volume = sample("a");
    let tag: PoolTag = "01020304".parse().unwrap();
    volume.request.source = Some(Source::Volume(name("source").volume_id(tag)));
    volume.limit = Some(Limit { kind: LimitKind::Project, number: 7 });
    volume.shared = shared();
    volume.pod = Some(Pod::new("u-1", "default", "web", "/pods/u-1/target").unwrap());
    let mode = AccessMode::SingleNodeMultiWriter;
    volume.attachments = vec![Attachment { node: "n1".to_owned(), read_only: false, mode }];
    let good = Record::new(volume).to_text().unwrap();
    Format {
        good: serde_json::from_slice(&good).unwrap(),
        read: |text| Record::parse(&key(), text),
        print: Some(|record| record.to_text().unwrap()),
        // What is not known is compared by another test.
        same: |one, other| one.volume == other.volume,
    }
}

fn snapshots() -> Format<Snapshot> {
    let snapshot = Snapshot {
        itself: name("a"),
        name: "a".to_owned(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        source: name("volume"),
        group: Some(name("group")),
        resolved: Resolved::Hostpath,
        size: ByteSize::gib(1),
        charge: ByteSize::mib(3),
        shared: shared(),
    };
    Format {
        good: serde_json::from_slice(&snapshot.to_text().unwrap()).unwrap(),
        read: |text| Snapshot::parse(&key(), text),
        print: Some(|snapshot| snapshot.to_text().unwrap()),
        same: PartialEq::eq,
    }
}

fn groups() -> Format<Group> {
    let group = Group {
        itself: name("a"),
        name: "a".to_owned(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        members: vec![name("b"), name("c")],
        sources: vec![name("d"), name("e")],
    };
    Format {
        good: serde_json::from_slice(&group.to_text().unwrap()).unwrap(),
        read: |text| Group::parse(&key(), text),
        print: Some(|group| group.to_text().unwrap()),
        same: PartialEq::eq,
    }
}

fn markers() -> Format<Marker> {
    let uuid = PoolUuid::from_bits([3; 16]);
    Format {
        good: json!({"format": 1, "minReader": 1, "uuid": uuid.as_str(), "name": "p", "previousUuid": uuid.as_str()}),
        read: marker::parse,
        print: None,
        same: PartialEq::eq,
    }
}

fn known_pools() -> Format<PoolUuid> {
    let uuid = PoolUuid::from_bits([3; 16]);
    Format {
        good: json!({"format": 1, "uuid": uuid.as_str(), "path": "/pool"}),
        read: |text| {
            let damaged = |reason| StoreError::Damaged { path: "p.pool.json".into(), reason };
            state::parse_known(text).map_err(damaged)
        },
        print: None,
        same: PartialEq::eq,
    }
}

fn managed_pools() -> Format<super::ManagedRecord> {
    let uuid = PoolUuid::from_bits([3; 16]);
    Format {
        good: json!({"format": 1, "minReader": 1, "filesystem": "xfs", "uuid": uuid.as_str(), "on": "image", "making": "made"}),
        read: |text| managed::parse("p.managed.json".as_ref(), text),
        print: None,
        same: PartialEq::eq,
    }
}

proptest! {
    #[test]
    fn no_change_of_a_file_is_taken_for_something_else(change in any_change()) {
        records().survives(&change)?;
        snapshots().survives(&change)?;
        groups().survives(&change)?;
        markers().survives(&change)?;
        known_pools().survives(&change)?;
        managed_pools().survives(&change)?;
    }

    #[test]
    fn no_bytes_are_a_panic(changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6), cut: Index) {
        records().survives_bytes(&changes, cut)?;
        snapshots().survives_bytes(&changes, cut)?;
        groups().survives_bytes(&changes, cut)?;
        markers().survives_bytes(&changes, cut)?;
        known_pools().survives_bytes(&changes, cut)?;
        managed_pools().survives_bytes(&changes, cut)?;
    }

    #[test]
    fn fields_of_a_later_release_are_kept_wherever_they_are(at: Index, added in any_value()) {
        let format = records();
        let mut value = format.good.clone();
        apply(&mut value, &(at, Change::Add(added)));
        let read = (format.read)(&serde_json::to_vec(&value).unwrap());
        // An entry more in a list of the record is no unknown field.
        if let Ok(read) = read {
            let written: Value = serde_json::from_slice(&read.to_text().unwrap()).unwrap();
            prop_assert_eq!(written, value);
        }
    }
}
