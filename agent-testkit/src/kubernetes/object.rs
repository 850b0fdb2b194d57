//! Looking into objects, which are kept as JSON.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Fields that a field selector may name.
pub(crate) const FIELDS: [&str; 12] = [
    "metadata.name",
    "metadata.namespace",
    "status.phase",
    "status.successful",
    "spec.nodeName",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.kind",
    "involvedObject.uid",
    "reason",
    "type",
    "reportingComponent",
];

/// Fields that the store finds objects by without looking at all of them.
pub(crate) const INDEXED_FIELDS: [&str; 2] = ["involvedObject.name", "involvedObject.uid"];

/// An object at one resource version, with its text made at most once.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) value: Value,
    pub(crate) version: u64,
    text: OnceLock<Bytes>,
}

/// A shared object.
pub(crate) type Stored = Arc<Object>;

impl Object {
    pub(crate) fn new(value: Value, version: u64) -> Stored {
        Arc::new(Self {
            value,
            version,
            text: OnceLock::new(),
        })
    }

    pub(crate) fn text(&self) -> Bytes {
        self.text
            .get_or_init(|| Bytes::from(self.value.to_string()))
            .clone()
    }
}

/// The place of an object among those of its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of(value: &Value) -> Self {
        Self::new(
            text(value, "/metadata/namespace"),
            text(value, "/metadata/name"),
        )
    }
}

/// The text at a JSON pointer, empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The number at a JSON pointer.
pub(crate) fn number(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// The members of the object at a pointer.
pub(crate) fn members<'a>(
    value: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value
        .pointer(pointer)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// The items of the list at a pointer.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The object at `name` within `value`, made if it is not there.
pub(crate) fn child<'a>(value: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    let slot = &mut value[name];
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("just made an object"),
    }
}

/// Sets a member that is not there yet.
pub(crate) fn default(map: &mut Map<String, Value>, name: &str, value: Value) {
    let slot = map.entry(name).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value;
    }
}

/// The value of a field as selectors compare it.
pub(crate) fn field(value: &Value, path: &str) -> String {
    if path == "status.successful" {
        return number(value, "/status/succeeded").unwrap_or(0).to_string();
    }
    let found = path.split('.').fold(value, |inner, part| &inner[part]);
    match found {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The uids of an object's owners.
pub(crate) fn owners(value: &Value) -> impl Iterator<Item = &str> {
    items(value, "/metadata/ownerReferences").filter_map(|owner| owner["uid"].as_str())
}

/// Whether the object waits for its finalizers.
pub(crate) fn is_deleting(value: &Value) -> bool {
    value
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(Value::is_string)
}

/// Whether anything holds up the removal of the object.
pub(crate) fn has_finalizers(value: &Value) -> bool {
    items(value, "/metadata/finalizers").next().is_some()
}
