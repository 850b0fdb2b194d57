//! YAML 1.1 as PyYAML and the older Kubernetes tools read it: `yes` and `012` are not text.
//!
//! The scanner is one for YAML 1.2; here its events become a JSON value by the rules of 1.1. Aliases are copied, merge
//! keys are merged, tags other than the standard ones are refused.

mod events;
mod locate;
mod scalar;
mod write;

use std::collections::HashMap;
use std::fmt;

use serde_json::{Map, Value};

use self::events::{Anchor, Data, Event, Events, Mark};
pub use self::locate::{Path, Step, locate};
use self::scalar::Scalar;
pub use self::write::write;

/// How deep collections may be nested: no manifest comes near it.
const DEPTH: usize = 100;
/// How many nodes a document may have once its aliases are copied.
const NODES: usize = 200_000;

const TAGS: &str = "tag:yaml.org,2002:";

/// Why a text is no YAML document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// Line, from 1; 0 when the place is not known.
    pub line: u64,
    /// Column, from 1; 0 when the place is not known.
    pub column: u64,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => f.write_str(&self.message),
            (line, column) => write!(f, "line {line}, column {column}: {}", self.message),
        }
    }
}

impl std::error::Error for YamlError {}

/// Reads one document; nothing at all is null.
///
/// # Errors
/// The place and what was expected there.
pub fn parse(text: &[u8]) -> Result<Value, YamlError> {
    let text = readable(text)?;
    let mut reader = Reader {
        events: Events::new(text),
        anchors: HashMap::new(),
        nodes: 0,
    };
    reader.document()
}

/// The text, if it holds nothing but characters that YAML takes.
fn readable(text: &[u8]) -> Result<&str, YamlError> {
    let (text, wrong) = match std::str::from_utf8(text) {
        Ok(text) => {
            let found = text.char_indices().find(|(_, c)| !is_taken(*c));
            (
                text,
                found.map(|(at, c)| (at, format!("the character {c:?} is not allowed"))),
            )
        }
        Err(error) => {
            let (valid, _) = text.split_at(error.valid_up_to());
            let valid = std::str::from_utf8(valid).unwrap_or_default();
            (
                valid,
                Some((valid.len(), "the text is not UTF-8".to_owned())),
            )
        }
    };
    let Some((at, message)) = wrong else {
        return Ok(text);
    };
    let before = &text[..at];
    let last = before.rsplit('\n').next().unwrap_or_default();
    Err(YamlError {
        line: before.matches('\n').count() as u64 + 1,
        column: last.chars().count() as u64 + 1,
        message,
    })
}

/// Whether a character may stand in YAML as it is.
fn is_taken(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}'
        | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// A node and whether it was the plain `<<` that merges.
struct Node {
    value: Value,
    key: Key,
}

/// What a node is as a key of a mapping.
enum Key {
    Text(String),
    Merge,
    /// Cannot be a key, because of this.
    Not(&'static str),
}

struct Reader<'t> {
    events: Events<'t>,
    /// Finished nodes by anchor, with their size; `None` while a node is being read.
    anchors: HashMap<Anchor, Option<(Value, usize)>>,
    nodes: usize,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<Value, YamlError> {
        self.events.next()?;
        let first = self.events.next()?;
        if matches!(first.data, Data::StreamEnd) {
            return Ok(Value::Null);
        }
        let root = self.events.next()?;
        let value = self.node(root, 0)?.value;
        self.events.next()?;
        let after = self.events.next()?;
        if matches!(after.data, Data::StreamEnd) {
            Ok(value)
        } else {
            Err(at(
                after.start,
                "expected a single document, but found another one",
            ))
        }
    }

    fn node(&mut self, event: Event, depth: usize) -> Result<Node, YamlError> {
        let mark = event.start;
        if depth > DEPTH {
            return Err(at(
                mark,
                format!("collections are nested more than {DEPTH} deep"),
            ));
        }
        self.count(1, mark)?;
        match event.data {
            Data::Alias(anchor) => self.alias(anchor, mark),
            Data::Scalar {
                anchor,
                tag,
                value,
                plain,
            } => {
                let before = self.begin(anchor);
                let node = scalar_node(tag.as_deref(), value, plain, mark)?;
                self.finish(anchor, &node.value, before);
                Ok(node)
            }
            Data::SequenceStart(anchor, tag) => {
                standard(tag.as_deref(), "seq", mark)?;
                let before = self.begin(anchor);
                let mut items = Vec::new();
                loop {
                    let event = self.events.next()?;
                    if matches!(event.data, Data::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, depth + 1)?.value);
                }
                let value = Value::Array(items);
                self.finish(anchor, &value, before);
                Ok(Node {
                    value,
                    key: Key::Not("a list"),
                })
            }
            Data::MappingStart(anchor, tag) => {
                standard(tag.as_deref(), "map", mark)?;
                let before = self.begin(anchor);
                let value = Value::Object(self.mapping(depth)?);
                self.finish(anchor, &value, before);
                Ok(Node {
                    value,
                    key: Key::Not("a mapping"),
                })
            }
            _ => Err(at(mark, "expected a value")),
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Map<String, Value>, YamlError> {
        let mut own = Map::new();
        let mut merged = Vec::new();
        loop {
            let event = self.events.next()?;
            if matches!(event.data, Data::MappingEnd) {
                break;
            }
            let mark = event.start;
            let key = self.node(event, depth + 1)?.key;
            let event = self.events.next()?;
            let value_mark = event.start;
            let value = self.node(event, depth + 1)?.value;
            match key {
                Key::Text(key) => {
                    own.insert(key, value);
                }
                Key::Merge => merged.push((value, value_mark)),
                Key::Not(what) => return Err(at(mark, format!("{what} cannot be a key"))),
            }
        }
        // Own keys win; of several merges the later one, as if its pairs stood there.
        for (value, mark) in merged.into_iter().rev() {
            for source in merge_sources(value, mark)? {
                for (key, value) in source {
                    own.entry(key).or_insert(value);
                }
            }
        }
        Ok(own)
    }

    fn alias(&mut self, anchor: Anchor, mark: Mark) -> Result<Node, YamlError> {
        let (value, size) = match self.anchors.get(&anchor) {
            Some(Some((value, size))) => (value.clone(), *size),
            Some(None) => return Err(at(mark, "the anchor of this alias contains the alias")),
            None => return Err(at(mark, "the anchor of this alias is not defined")),
        };
        self.count(size, mark)?;
        let key = key_of(&value);
        Ok(Node { value, key })
    }

    /// Begins a node; the count of nodes before it.
    fn begin(&mut self, anchor: Anchor) -> usize {
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        self.nodes
    }

    fn finish(&mut self, anchor: Anchor, value: &Value, before: usize) {
        if anchor != 0 {
            let size = self.nodes - before;
            self.anchors.insert(anchor, Some((value.clone(), size)));
        }
    }

    fn count(&mut self, nodes: usize, mark: Mark) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > NODES {
            return Err(at(
                mark,
                format!("the document has more than {NODES} values"),
            ));
        }
        Ok(())
    }
}

fn scalar_node(
    tag: Option<&str>,
    text: String,
    plain: bool,
    mark: Mark,
) -> Result<Node, YamlError> {
    let resolved = match tag {
        Some("!") => scalar::resolve(&text),
        None if plain => scalar::resolve(&text),
        None => Ok(Scalar::Value(Value::String(text.clone()))),
        Some(tag) => match tag.strip_prefix(TAGS) {
            Some(kind) => scalar::construct(kind, &text).unwrap_or_else(|| Err(unknown(tag))),
            None => Err(unknown(tag)),
        },
    };
    match resolved.map_err(|message| at(mark, message))? {
        Scalar::Merge => Ok(Node {
            value: Value::String(text),
            key: Key::Merge,
        }),
        Scalar::Date(text) => Ok(Node {
            value: Value::String(text),
            key: Key::Not("a date"),
        }),
        Scalar::Value(value) => {
            let key = key_of(&value);
            Ok(Node { value, key })
        }
    }
}

/// A value as a key, spelled as JSON spells keys that are not text.
fn key_of(value: &Value) -> Key {
    match value {
        Value::Null => Key::Text("null".to_owned()),
        Value::Bool(value) => Key::Text(value.to_string()),
        Value::Number(number) => Key::Text(match number.as_f64() {
            Some(float) if number.is_f64() => scalar::python_float(float),
            _ => number.to_string(),
        }),
        Value::String(text) => Key::Text(text.clone()),
        Value::Array(_) => Key::Not("a list"),
        Value::Object(_) => Key::Not("a mapping"),
    }
}

fn merge_sources(value: Value, mark: Mark) -> Result<Vec<Map<String, Value>>, YamlError> {
    let items = match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    items
        .into_iter()
        .map(|item| match item {
            Value::Object(map) => Ok(map),
            _ => Err(at(
                mark,
                "expected a mapping or a list of mappings for merging",
            )),
        })
        .collect()
}

fn standard(tag: Option<&str>, kind: &str, mark: Mark) -> Result<(), YamlError> {
    match tag {
        None | Some("!") => Ok(()),
        Some(tag) if tag.strip_prefix(TAGS) == Some(kind) => Ok(()),
        Some(tag) => Err(at(mark, unknown(tag))),
    }
}

fn unknown(tag: &str) -> String {
    format!("could not determine a constructor for the tag '{tag}'")
}

fn at(mark: Mark, message: impl Into<String>) -> YamlError {
    YamlError {
        line: mark.line,
        column: mark.column,
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
