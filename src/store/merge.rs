//! How a record is written over the one that was read, so that a rollback does not damage what a later release wrote.

use serde_json::{Map, Value};

/// Puts the known fields over the record that was read; what is not known stays.
pub(super) fn merge(over: &mut Map<String, Value>, known: Map<String, Value>) {
    for (name, value) in known {
        match (over.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => merge_attachments(old, new),
            (_, value) => {
                over.insert(name, value);
            }
        }
    }
}

/// The list becomes the new one, and an entry keeps what it had under the same node: the only list of a record is that of
/// its attachments.
fn merge_attachments(over: &mut Vec<Value>, known: Vec<Value>) {
    let merged = known.into_iter().map(|entry| {
        let old = over.iter().find(|old| old.get("node") == entry.get("node")).cloned();
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
