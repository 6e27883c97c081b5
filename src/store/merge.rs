//! How a record is written over the one that was read, so that a rollback does not damage what a later release wrote.

use serde::Serialize;
use serde_json::{Map, Value};

use super::StoreError;

/// The text of a file with these fields, over what was read of it before.
///
/// # Errors
/// It cannot be written as JSON.
pub(super) fn text_over(
    mut before: Map<String, Value>,
    file: &impl Serialize,
    name: &str,
) -> Result<Vec<u8>, StoreError> {
    let failed = |e: serde_json::Error| StoreError::io("write", name, std::io::Error::from(e));
    let known = match serde_json::to_value(file).map_err(failed)? {
        Value::Object(known) => known,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    };
    // A later release may have written a higher format that this one can read: it stays.
    let kept = ["format", "minReader"].map(|name| (name, before.get(name).cloned()));
    merge(&mut before, known);
    for (name, kept) in kept {
        if let Some(kept) = kept {
            before.insert(name.to_owned(), kept);
        }
    }
    let mut text = serde_json::to_vec_pretty(&before).map_err(failed)?;
    text.push(b'\n');
    Ok(text)
}

/// Puts the known fields over the record that was read; what is not known stays.
fn merge(over: &mut Map<String, Value>, known: Map<String, Value>) {
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
        let is_named = |name: &&str| match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => holds(old, new),
            (_, None) | (None, Some(_)) => false,
        };
        ["node", "origin"].iter().any(is_named)
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

/// A name as it was read says what the one that is written says; a later release may have added to it.
fn holds(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            new.iter().all(|(name, value)| old.get(name) == Some(value))
        }
        (old, new) => old == new,
    }
}
