//! What a template is and should be, in words.

use std::fmt;

use serde_json::{Map, Value};

use crate::yaml::{Path, Step};

/// A value of another kind than a Job needs at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    path: Vec<Step>,
    what: String,
}

impl Misfit {
    pub(super) fn new(expected: &str, found: &Value) -> Self {
        Self {
            path: Vec::new(),
            what: format!("expected {expected}, found {}", describe(found)),
        }
    }

    pub(super) fn missing(expected: &str) -> Self {
        Self {
            path: Vec::new(),
            what: format!("expected {expected}, found nothing"),
        }
    }

    /// The same, seen from the value that holds it at this step.
    pub(super) fn within(mut self, step: impl Into<Step>) -> Self {
        self.path.insert(0, step.into());
        self
    }

    /// The same, seen from further outside.
    pub(super) fn under(mut self, path: &[&str]) -> Self {
        let steps = path.iter().map(|key| Step::from(*key));
        self.path.splice(0..0, steps);
        self
    }

    pub(super) fn path(&self) -> &[Step] {
        &self.path
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", Path(&self.path))?;
        }
        f.write_str(&self.what)
    }
}

/// A value's kind.
pub(super) fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The value as a mapping.
pub(super) fn mapping(value: &mut Value) -> Result<&mut Map<String, Value>, Misfit> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Misfit::new("a mapping", other)),
    }
}

/// The mapping at a path, made where it is missing.
pub(super) fn mapping_at<'a>(
    value: &'a mut Value,
    path: &[&str],
) -> Result<&'a mut Map<String, Value>, Misfit> {
    match path.split_first() {
        None => mapping(value),
        Some((key, rest)) => {
            let inner = mapping(value)?
                .entry(*key)
                .or_insert_with(|| Value::Object(Map::new()));
            mapping_at(inner, rest).map_err(|misfit| misfit.within(*key))
        }
    }
}
