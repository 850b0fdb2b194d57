//! Patches: JSON merge patch (also taken for strategic merge and apply) and JSON patch.

use serde_json::{Value, json};

/// Merges `patch` into `target`: null removes, objects merge, everything else replaces.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(into) = target else { return };
    for (name, member) in members {
        match member {
            Value::Null => {
                into.remove(name);
            }
            other => merge(into.entry(name).or_insert(Value::Null), other),
        }
    }
}

/// Applies the operations of a JSON patch one after the other.
pub(crate) fn json_patch(target: &mut Value, operations: &Value) -> Result<(), String> {
    let operations = operations
        .as_array()
        .ok_or("a JSON patch is a list of operations")?;
    for operation in operations {
        let path = operation["path"]
            .as_str()
            .ok_or("an operation needs a path")?;
        let value = operation["value"].clone();
        match operation["op"].as_str().unwrap_or_default() {
            "add" => add(target, path, value)?,
            "remove" => {
                remove(target, path)?;
            }
            "replace" => match target.pointer_mut(path) {
                Some(slot) => *slot = value,
                None => return Err(missing("replace", path)),
            },
            "test" if target.pointer(path) == Some(&value) => {}
            "test" => return Err(format!("testing value {path} failed: test failed")),
            "move" => {
                let from = operation["from"].as_str().ok_or("a move needs a from")?;
                let moved = remove(target, from)?;
                add(target, path, moved)?;
            }
            "copy" => {
                let from = operation["from"].as_str().ok_or("a copy needs a from")?;
                let copied = target
                    .pointer(from)
                    .cloned()
                    .ok_or_else(|| missing("copy", from))?;
                add(target, path, copied)?;
            }
            other => return Err(format!("unexpected kind: {other}")),
        }
    }
    Ok(())
}

fn missing(operation: &str, path: &str) -> String {
    format!("{operation} operation does not apply: doc is missing path: {path}: missing value")
}

fn parent<'a>(target: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    let last = last.replace("~1", "/").replace("~0", "~");
    Some((target.pointer_mut(parent)?, last))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    match parent(target, path) {
        Some((Value::Object(members), name)) => {
            members.insert(name, value);
            Ok(())
        }
        Some((Value::Array(items), place)) => {
            let place = match place.as_str() {
                "-" => items.len(),
                number => number.parse().map_err(|_| missing("add", path))?,
            };
            if place > items.len() {
                return Err(missing("add", path));
            }
            items.insert(place, value);
            Ok(())
        }
        _ => Err(missing("add", path)),
    }
}

fn remove(target: &mut Value, path: &str) -> Result<Value, String> {
    let removed = match parent(target, path) {
        Some((Value::Object(members), name)) => members.remove(&name),
        Some((Value::Array(items), place)) => match place.parse::<usize>() {
            Ok(place) if place < items.len() => Some(items.remove(place)),
            _ => None,
        },
        _ => None,
    };
    removed.ok_or_else(|| missing("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_removes_merges_and_replaces() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "list": [1, 2]});
        merge(
            &mut target,
            &json!({"a": {"b": null, "d": {"e": 3}}, "list": [9]}),
        );
        assert_eq!(target, json!({"a": {"c": 2, "d": {"e": 3}}, "list": [9]}));
    }

    #[test]
    fn a_json_patch_applies_in_order_or_tells_why_not() {
        let mut target = json!({"a": {"x/y": 1}, "list": [1]});
        let operations = json!([
            {"op": "test", "path": "/a/x~1y", "value": 1},
            {"op": "add", "path": "/list/-", "value": 2},
            {"op": "replace", "path": "/list/0", "value": 0},
            {"op": "remove", "path": "/a/x~1y"},
        ]);
        json_patch(&mut target, &operations).unwrap();
        assert_eq!(target, json!({"a": {}, "list": [0, 2]}));
        let gone = json!([{"op": "remove", "path": "/a/z"}]);
        assert!(
            json_patch(&mut target, &gone)
                .unwrap_err()
                .contains("missing path: /a/z")
        );
    }
}
