//! YAML 1.1 as PyYAML and the older Kubernetes tools read it: `yes` and `012` are not text.
//!
//! The scanner is one for YAML 1.2; here its events become a JSON value by the rules of 1.1. Aliases are copied, merge
//! keys are merged, tags other than the standard ones are refused. What that takes in memory is counted
//! before it is taken, so that a small text makes no huge value.

mod events;
mod input;
mod locate;
mod scalar;
mod write;

use std::collections::HashMap;
use std::fmt;

use agent_core::{LONGEST_MESSAGE, clip};
use serde_json::{Map, Value};

use self::events::{Anchor, Data, Event, Events, Mark};
pub use self::locate::{Path, Step, locate};
use self::scalar::Scalar;
pub use self::write::write;
use crate::weight::{self, weight};

/// How deep collections may be nested: no manifest comes near it.
const DEPTH: usize = 100;
/// How much memory the values of a document may take once its aliases are copied, in bytes.
const LARGEST_VALUE: usize = 16 << 20;
/// What an anchor takes beside the copy of its node, in bytes.
const ANCHOR: usize = 256;

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
        taken: 0,
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

/// A node, and what it is as a key of a mapping.
struct Node {
    value: Value,
    kind: Kind,
}

enum Kind {
    /// What its value is.
    Plain,
    /// The plain `<<`, which merges.
    Merge,
    /// A date, whose value is a text.
    Date,
}

/// What a node is as a key of a mapping.
enum Key {
    Text(String),
    Merge,
    /// Cannot be a key, because of this.
    Not(&'static str),
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        let kind = Kind::Plain;
        Self { value, kind }
    }
}

impl Node {
    /// The node as a key, spelled as JSON spells keys that are not text.
    fn into_key(self) -> Key {
        match (self.kind, self.value) {
            (Kind::Merge, _) => Key::Merge,
            (Kind::Date, _) => Key::Not("a date"),
            (Kind::Plain, Value::Null) => Key::Text("null".to_owned()),
            (Kind::Plain, Value::Bool(value)) => Key::Text(value.to_string()),
            (Kind::Plain, Value::Number(number)) => Key::Text(match number.as_f64() {
                Some(float) if number.is_f64() => scalar::python_float(float),
                _ => number.to_string(),
            }),
            (Kind::Plain, Value::String(text)) => Key::Text(text),
            (Kind::Plain, Value::Array(_)) => Key::Not("a list"),
            (Kind::Plain, Value::Object(_)) => Key::Not("a mapping"),
        }
    }
}

struct Reader<'t> {
    events: Events<'t>,
    /// Copies of finished nodes by anchor, with what a copy takes; `None` while a node is being read.
    anchors: HashMap<Anchor, Option<(Value, usize)>>,
    /// What was taken of the memory that there is for a document, in bytes.
    taken: usize,
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
        match event.data {
            Data::Alias(anchor) => self.alias(anchor, mark),
            Data::Scalar {
                anchor,
                tag,
                value,
                plain,
            } => {
                self.take(weight::of_text(value.len()), mark)?;
                let node = scalar_node(tag.as_deref(), value, plain, mark)?;
                self.finish(anchor, &node.value, mark)?;
                Ok(node)
            }
            Data::SequenceStart(anchor, tag) => {
                standard(tag.as_deref(), "seq", mark)?;
                self.begin(anchor);
                let mut items = Vec::new();
                loop {
                    let event = self.events.next()?;
                    if matches!(event.data, Data::SequenceEnd) {
                        break;
                    }
                    self.take(weight::of_item(items.len()), event.start)?;
                    items.push(self.node(event, depth + 1)?.value);
                }
                let value = Value::Array(items);
                self.finish(anchor, &value, mark)?;
                Ok(value.into())
            }
            Data::MappingStart(anchor, tag) => {
                standard(tag.as_deref(), "map", mark)?;
                self.begin(anchor);
                let value = Value::Object(self.mapping(depth)?);
                self.finish(anchor, &value, mark)?;
                Ok(value.into())
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
            self.take(weight::of_member(own.len(), 0), mark)?;
            let key = self.node(event, depth + 1)?.into_key();
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
                    self.take(weight::of_member(own.len(), 0), mark)?;
                    own.entry(key).or_insert(value);
                }
            }
        }
        Ok(own)
    }

    fn alias(&mut self, anchor: Anchor, mark: Mark) -> Result<Node, YamlError> {
        let size = match self.anchors.get(&anchor) {
            Some(Some((_, size))) => *size,
            Some(None) => return Err(at(mark, "the anchor of this alias contains the alias")),
            None => return Err(at(mark, "the anchor of this alias is not defined")),
        };
        self.take(size, mark)?;
        let value = self.anchors.get(&anchor).and_then(Option::as_ref);
        Ok(value.map_or(Value::Null, |(value, _)| value.clone()).into())
    }

    /// Notes that the node of an anchor is being read.
    fn begin(&mut self, anchor: Anchor) {
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
    }

    /// Keeps a copy of an anchor's node.
    fn finish(&mut self, anchor: Anchor, value: &Value, mark: Mark) -> Result<(), YamlError> {
        if anchor != 0 {
            let size = weight(value);
            self.take(size + ANCHOR, mark)?;
            self.anchors.insert(anchor, Some((value.clone(), size)));
        }
        Ok(())
    }

    /// Takes so many bytes of the memory that there is for a document, before they are used.
    fn take(&mut self, bytes: usize, mark: Mark) -> Result<(), YamlError> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > LARGEST_VALUE {
            return Err(at(
                mark,
                format!(
                    "the values up to here take more than {} MiB of memory; write fewer, or copy less with aliases and merge keys",
                    LARGEST_VALUE >> 20
                ),
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
        None => Ok(Scalar::Text),
        Some(tag) => match tag.strip_prefix(TAGS) {
            Some(kind) => scalar::construct(kind, &text).unwrap_or_else(|| Err(unknown(tag))),
            None => Err(unknown(tag)),
        },
    };
    Ok(match resolved.map_err(|message| at(mark, message))? {
        Scalar::Merge => Node {
            value: Value::String(text),
            kind: Kind::Merge,
        },
        Scalar::Date(text) => Node {
            value: Value::String(text),
            kind: Kind::Date,
        },
        Scalar::Text => Value::String(text).into(),
        Scalar::Value(value) => value.into(),
    })
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
    let tag = clip(tag, scalar::LONGEST_SHOWN);
    format!("could not determine a constructor for the tag '{tag}'")
}

fn at(mark: Mark, message: impl AsRef<str>) -> YamlError {
    YamlError {
        line: mark.line,
        column: mark.column,
        message: clip(message.as_ref(), LONGEST_MESSAGE).into_owned(),
    }
}

#[cfg(test)]
mod tests;
