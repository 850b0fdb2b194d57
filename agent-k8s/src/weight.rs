//! What JSON values take in memory: an estimate from above, and a budget for what others write.

use serde_json::Value;

/// What an allocation takes beside its content, in bytes.
const ALLOCATION: usize = 16;
/// An item of a list, whose space grows by doubling, in bytes.
const ITEM: usize = 2 * size_of::<Value>();
/// The least that a list takes that is not empty, in bytes: it begins with room for four.
const LIST: usize = 4 * size_of::<Value>() + ALLOCATION;
/// A member of an object without its key's text, in bytes: hash, key and value, with room that
/// grows by doubling, and its place in the table.
const MEMBER: usize = 2 * (size_of::<(usize, String, Value)>() + 2 * size_of::<usize>());
/// The least that an object takes that is not empty, in bytes: it begins with room for three.
const OBJECT: usize = 4 * size_of::<(usize, String, Value)>() + 4 * ALLOCATION;

/// Returns about how many bytes a value takes in memory, rather too many than too few.
pub(crate) fn weight(value: &Value) -> usize {
    let inner = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => of_text(text.len()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| of_item(index) + weight(item))
            .sum(),
        Value::Object(members) => members
            .iter()
            .enumerate()
            .map(|(index, (key, value))| of_member(index, key.len()) + weight(value))
            .sum(),
    };
    size_of::<Value>() + inner
}

/// Returns what a text of this length takes, beside the value that holds it.
pub(crate) fn of_text(length: usize) -> usize {
    length + ALLOCATION
}

/// Returns what a list takes more for its item at this index, without what the item holds.
pub(crate) fn of_item(index: usize) -> usize {
    if index == 0 { LIST } else { ITEM }
}

/// Returns what an object takes more for its member at this index, without what its value holds.
pub(crate) fn of_member(index: usize, key: usize) -> usize {
    of_text(key) + if index == 0 { OBJECT } else { MEMBER }
}
