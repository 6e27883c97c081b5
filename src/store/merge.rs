//! How a record is written over the one that was read, so that a rollback does not damage what a later release wrote.

use serde_json::{Map, Value};

/// Puts the known fields over the record that was read; what is not known stays.
pub(super) fn merge(over: &mut Map<String, Value>, known: Map<String, Value>) {
    for (name, value) in known {
        match (over.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => merge_entries(old, new),
            (_, value) => {
                over.insert(name, value);
            }
        }
    }
}

/// The list becomes the new one, and an entry keeps what it had where it is known by the same node (an attachment) or
/// origin (what is shared).
fn merge_entries(over: &mut Vec<Value>, known: Vec<Value>) {
    let same = |old: &Value, new: &Value| {
        ["node", "origin"]
            .iter()
            .any(|name| new.get(name).is_some() && old.get(name) == new.get(name))
    };
    let merged = known.into_iter().map(|entry| {
        let old = over.iter().find(|old| same(old, &entry)).cloned();
        match (old, entry) {
            (Some(Value::Object(mut old)), Value::Object(new)) => {
                merge(&mut old, new);
                Value::Object(old)
            }
            (_, entry) => entry,
        }
    });
    *over = merged.collect();
}
