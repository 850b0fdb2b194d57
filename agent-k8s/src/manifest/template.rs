//! Which template a Job is made from, and its content.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_core::run_config::KubernetesRun;
use agent_core::{Error, Result, Template, TemplateLocation, TemplateOrigin, TemplateStore};
use serde_json::{Value, json};

use super::shape::{Misfit, describe};
use crate::yaml;

/// So many parsed templates are kept.
const KEPT: usize = 64;

/// A template that was found, and who named it.
pub(super) struct Found {
    pub(super) content: Arc<Value>,
    /// The run config has a template of its own.
    pub(super) of_flow: bool,
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
    fn new(content: Value, source: Source) -> Self {
        Self {
            content: Arc::new(content),
            of_flow: !matches!(source, Source::BuiltIn),
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
            Source::Stored(template) => return error(&template.location, &place, misfit),
        };
        error(name, &place, misfit)
    }
}

const INLINE: &str = "the run config's job_template";

fn error(name: &str, place: &str, what: &dyn std::fmt::Display) -> Error {
    Error::permanent(format!("{name}{place}: {what}"))
}

/// Templates with their content, by location.
type Parsed = HashMap<(String, TemplateOrigin), (Arc<Template>, Arc<Value>)>;

/// Finds templates, and parses each only once while it does not change.
pub(super) struct Templates {
    store: Arc<dyn TemplateStore>,
    parsed: Mutex<Parsed>,
}

impl Templates {
    pub(super) fn new(store: Arc<dyn TemplateStore>) -> Self {
        Self {
            store,
            parsed: Mutex::default(),
        }
    }

    /// The template for a run config: its own, else the agent's, else a built-in one.
    pub(super) async fn find(&self, config: &KubernetesRun, agent: Option<&str>) -> Result<Found> {
        match &config.job_template {
            Some(Value::String(text)) => {
                let content = parse(text.as_bytes(), INLINE)?;
                if let Some(content) = filled(content, INLINE)? {
                    return Ok(Found::new(content, Source::Text(text.clone())));
                }
            }
            Some(object) => return Ok(Found::new(object.clone(), Source::Object)),
            None => {}
        }
        if let Some(location) = &config.job_template_path {
            let found = self.load(location, TemplateOrigin::Flow).await?;
            // What is local to the run config's author was read by the run config itself, to
            // which an empty template is none.
            let counts = !TemplateLocation::parse(location).is_local()
                || filled(found.content.as_ref().clone(), location)?.is_some();
            if counts {
                return Ok(Found {
                    of_flow: true,
                    ..found
                });
            }
        }
        match agent {
            Some(location) => {
                let found = self.load(location, TemplateOrigin::Agent).await?;
                Ok(Found {
                    of_flow: false,
                    ..found
                })
            }
            None => Ok(Found::new(built_in(), Source::BuiltIn)),
        }
    }

    async fn load(&self, location: &str, origin: TemplateOrigin) -> Result<Found> {
        let template = self.store.load(location, origin).await?;
        let key = (location.to_owned(), origin);
        let known = self.parsed().get(&key).cloned();
        let content = match known {
            Some((before, content)) if Arc::ptr_eq(&before, &template) => content,
            _ => {
                let content = Arc::new(parse(&template.bytes, &template.location)?);
                let mut parsed = self.parsed();
                if parsed.len() >= KEPT {
                    parsed.clear();
                }
                parsed.insert(key, (template.clone(), content.clone()));
                content
            }
        };
        Ok(Found {
            content,
            of_flow: origin == TemplateOrigin::Flow,
            source: Source::Stored(template),
        })
    }

    fn parsed(&self) -> MutexGuard<'_, Parsed> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mapping that holds something; nothing at all is no template.
fn filled(content: Value, name: &str) -> Result<Option<Value>> {
    match &content {
        Value::Null => Ok(None),
        Value::Object(members) if members.is_empty() => Ok(None),
        Value::Object(_) => Ok(Some(content)),
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
