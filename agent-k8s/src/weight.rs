//! What JSON values take in memory: an estimate from above, and a budget for what others write.

use std::io::{self, Write};

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
    size_of::<Value>() + held(value)
}

/// Returns what a value takes beside the place that it is in itself.
fn held(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => of_text(text.len()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| of_item(index) + held(item))
            .sum(),
        Value::Object(members) => members
            .iter()
            .enumerate()
            .map(|(index, (key, value))| of_member(index, key.len()) + held(value))
            .sum(),
    }
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

/// Returns how many bytes a value has as JSON.
pub(crate) fn json_length(value: &Value) -> usize {
    struct Counted(usize);
    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    match serde_json::to_writer(&mut counted, value) {
        Ok(()) => counted.0,
        Err(_) => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_length_is_that_of_the_text() {
        let value = json!({"a": ["é\n", 1.5, null, {"b": true}]});
        assert_eq!(json_length(&value), value.to_string().len());
    }

    #[test]
    fn what_is_larger_weighs_more() {
        let small = weight(&json!({"a": "b"}));
        assert!(small < 1000, "{small}");
        assert!(weight(&json!({"a": "b".repeat(1000)})) > 1000);
        assert!(weight(&json!(vec![0; 1000])) >= 1000 * size_of::<Value>());
    }
}
