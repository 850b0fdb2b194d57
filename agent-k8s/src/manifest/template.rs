//! Which template a Job is made from, and its content.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_core::run_config::KubernetesRun;
use agent_core::{Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore};
use serde_json::{Value, json};

use super::room::{ALL_LARGE, Room, Taken};
use super::shape::{Misfit, describe};
use crate::weight::weight;
use crate::yaml;

/// How much memory the parsed templates that are kept take together, in bytes.
const MOST_KEPT: usize = 16 << 20;
/// How much memory a parsed template may take to be kept, in bytes.
const LARGEST_KEPT: usize = 4 << 20;
/// How many times as much memory as its text has bytes a template takes, while a Job is built from it.
const PER_BYTE: usize = 64;
/// What a manifest takes in memory beside what is in its template, in bytes.
const MANIFEST: usize = 64 << 10;

/// A template that was found, and who named it.
pub(super) struct Found {
    pub(super) content: Arc<Value>,
    /// The run config has a template of its own.
    pub(super) of_flow: bool,
    /// Room for a Job that is built from it.
    pub(super) room: Taken,
    source: Source,
}

/// Where a template's text is, for messages.
enum Source {
    BuiltIn,
    Object,
    Text(String),
    Stored(Arc<Template>),
}

impl Found {
    fn new(content: Value, source: Source, room: Taken) -> Self {
        Self {
            content: Arc::new(content),
            of_flow: !matches!(source, Source::BuiltIn),
            room,
            source,
        }
    }

    /// The error for a value that does not fit, with its place.
    pub(super) fn misfit(&self, misfit: &Misfit) -> Error {
        let text = match &self.source {
            Source::BuiltIn | Source::Object => None,
            Source::Text(text) => Some(text.as_bytes()),
            Source::Stored(template) => Some(template.bytes.as_slice()),
        };
        let place = text.and_then(|text| yaml::locate(text, misfit.path()));
        let place = place.map_or_else(String::new, |(line, column)| {
            format!(", line {line}, column {column}")
        });
        let name = match &self.source {
            Source::BuiltIn => "the built-in job template",
            Source::Object | Source::Text(_) => INLINE,
            Source::Stored(template) => &template.location,
        };
        self.wrong(format!("{name}{place}: {misfit}"))
    }

    /// The error for a template with which something is wrong: of a flow's, that of its run, and of
    /// the agent's, that of the agent.
    pub(super) fn wrong(&self, what: String) -> Error {
        match self.source {
            Source::Stored(_) if !self.of_flow => Error::Agent(what),
            _ => Error::Permanent(what),
        }
    }
}

const INLINE: &str = "the run config's job_template";

fn error(name: &str, place: &str, what: &dyn std::fmt::Display) -> Error {
    Error::permanent(format!("{name}{place}: {what}"))
}

/// Who asks is part of the key: what the agent may read, a flow perhaps may not.
type Key = (String, TemplateOrigin);

/// Templates with their content; those that were used last, as far as memory suffices.
#[derive(Default)]
struct Parsed {
    kept: HashMap<Key, Kept>,
    /// Uses so far, by which it is told which was the last.
    uses: u64,
}

#[derive(Clone)]
struct Kept {
    template: Arc<Template>,
    content: Arc<Value>,
    weight: usize,
    used: u64,
}

impl Parsed {
    /// The content of this very template, if it is kept.
    fn get(&mut self, key: &Key, template: &Arc<Template>) -> Option<Kept> {
        self.uses += 1;
        let kept = self.kept.get_mut(key)?;
        kept.used = self.uses;
        Arc::ptr_eq(&kept.template, template).then(|| kept.clone())
    }

    /// Keeps a template, and forgets those that were not used for the longest time if all take too
    /// much memory. One that takes a lot itself is not kept.
    fn keep(&mut self, key: Key, template: Arc<Template>, content: Arc<Value>, weight: usize) {
        self.kept.remove(&key);
        if weight > LARGEST_KEPT {
            return;
        }
        let (used, size) = (self.uses, |(key, kept): (&Key, &Kept)| {
            kept.weight + kept.template.bytes.len() + 2 * key.0.len()
        });
        let one = Kept {
            template,
            content,
            weight,
            used,
        };
        self.kept.insert(key, one);
        let mut all: usize = self.kept.iter().map(size).sum();
        while all > MOST_KEPT {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used);
            let Some((key, kept)) = oldest else { break };
            all -= size((key, kept));
            let key = key.clone();
            self.kept.remove(&key);
        }
    }
}

/// Finds templates, and parses each only once while it does not change.
pub(super) struct Templates {
    store: Arc<dyn TemplateStore>,
    parsed: Mutex<Parsed>,
    room: Room,
}

impl Templates {
    pub(super) fn new(store: Arc<dyn TemplateStore>) -> Self {
        Self {
            store,
            parsed: Mutex::default(),
            room: Room::new(),
        }
    }

    /// The template for a run config: its own, else the agent's, else a built-in one.
    pub(super) async fn find(&self, config: &KubernetesRun, agent: Option<&str>) -> Result<Found> {
        match &config.job_template {
            Some(Value::String(text)) => {
                let room = self.room.take(cost(text.as_bytes())).await;
                let content = parse(text.as_bytes(), INLINE)?;
                if let Some(content) = filled(content, INLINE)? {
                    return Ok(Found::new(content, Source::Text(text.clone()), room));
                }
            }
            Some(object) => {
                let room = self.room.take(2 * weight(object) + MANIFEST).await;
                return Ok(Found::new(object.clone(), Source::Object, room));
            }
            None => {}
        }
        if let Some(location) = &config.job_template_path {
            let found = self.load(location, TemplateOrigin::Flow).await?;
            // What is local to the run config's author was read by the run config itself, to
            // which an empty template is none.
            let counts = !TemplateLocation::parse(location).is_local()
                || is_filled(&found.content, location)?;
            if counts {
                return Ok(Found {
                    of_flow: true,
                    ..found
                });
            }
        }
        match agent {
            Some(location) => {
                // What is wrong with it concerns the agent, and not whichever run comes next.
                let found = self.load(location, TemplateOrigin::Agent).await;
                let found = found.map_err(|error| match error {
                    Error::Permanent(message) => Error::Agent(message),
                    other => other,
                })?;
                Ok(Found {
                    of_flow: false,
                    ..found
                })
            }
            None => {
                let room = self.room.take(MANIFEST).await;
                Ok(Found::new(built_in(), Source::BuiltIn, room))
            }
        }
    }

    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Found> {
        let loaded = self.store.load(location, origin).await;
        let template = loaded.map_err(|error| match (origin, error) {
            // A place that a flow names and that does not answer is the run's trouble, not everybody's.
            (
                TemplateOrigin::Flow,
                Error::Transient { message, .. } | Error::Unclear { message, .. },
            ) => Error::Refused(message),
            (_, error) => error,
        })?;
        let key = (location.to_owned(), origin);
        let known = self.parsed().get(&key, &template);
        let (content, room) = match known {
            Some(known) => {
                let room = self.room.take(2 * known.weight + MANIFEST).await;
                (known.content, room)
            }
            None => {
                let room = self.room.take(cost(&template.bytes)).await;
                let content = Arc::new(parse(&template.bytes, &template.location)?);
                let weight = weight(&content);
                let mut parsed = self.parsed();
                parsed.keep(key, template.clone(), content.clone(), weight);
                (content, room)
            }
        };
        Ok(Found {
            content,
            room,
            of_flow: origin == TemplateOrigin::Flow,
            source: Source::Stored(template),
        })
    }

    fn parsed(&self) -> MutexGuard<'_, Parsed> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What it takes in memory to build a Job from a text, rather too much than too little, in bytes.
fn cost(text: &[u8]) -> usize {
    // Without aliases, every value stands in the text.
    match text.contains(&b'*') && text.contains(&b'&') {
        true => ALL_LARGE,
        false => text.len().saturating_mul(PER_BYTE) + MANIFEST,
    }
}

/// A mapping that holds something; nothing at all is no template.
fn filled(content: Value, name: &str) -> Result<Option<Value>> {
    Ok(is_filled(&content, name)?.then_some(content))
}

fn is_filled(content: &Value, name: &str) -> Result<bool> {
    match content {
        Value::Null => Ok(false),
        Value::Object(members) => Ok(!members.is_empty()),
        other => {
            let what = format!("expected a mapping, found {}", describe(other));
            Err(error(name, "", &what))
        }
    }
}

fn parse(bytes: &[u8], name: &str) -> Result<Value> {
    yaml::parse(bytes).map_err(|what| match (what.line, what.column) {
        (0, _) => error(name, "", &what.message),
        (line, column) => error(
            name,
            &format!(", line {line}, column {column}"),
            &what.message,
        ),
    })
}

/// One container, and nothing else.
fn built_in() -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {"template": {"spec": {"containers": [{"name": "flow"}]}}},
    })
}
