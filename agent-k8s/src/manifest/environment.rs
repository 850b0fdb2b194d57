//! The environment of the flow's container.

use agent_core::{Flow, FlowRun};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::shape::Misfit;
use super::{LABELS, ManifestSettings};

/// The variables that hold the API key; the older one is for old images.
const KEYS: [&str; 2] = ["PREFECT__CLOUD__API_KEY", "PREFECT__CLOUD__AUTH_TOKEN"];
/// Where flows send their logs to, or not.
const SEND_LOGS: &str = "PREFECT__CLOUD__SEND_FLOW_RUN_LOGS";

/// Variables in the order of their first mention; a later value replaces an earlier one.
#[derive(Default)]
struct Environment(Map<String, Value>);

impl Environment {
    fn set(&mut self, name: &str, value: Value) {
        match self.0.get_mut(name) {
            Some(old) => *old = value,
            None => {
                self.0.insert(name.to_owned(), value);
            }
        }
    }
}

/// The entries: each source over the one before it; entries of the template that nothing overrides
/// come last, in their own order.
pub(super) fn environment(
    given: Option<Value>,
    run: &FlowRun,
    flow: &Flow,
    image: &Value,
    run_env: &Map<String, Value>,
    settings: &ManifestSettings,
) -> Result<Value, Misfit> {
    let given = entries(given)?;
    let mut env = Environment::default();
    env.set(
        "PREFECT__LOGGING__LEVEL",
        settings.logging_level.as_str().into(),
    );
    for (name, value) in &settings.env {
        env.set(name, value.as_str().into());
    }
    for (name, value) in run_env {
        env.set(name, text(value));
    }
    let logs = settings.send_flow_run_logs.as_str();
    if logs == "false" || !env.0.contains_key(SEND_LOGS) {
        env.set(SEND_LOGS, logs.into());
    }
    let key = settings.key.as_ref().map_or("", |key| key.expose_secret());
    // A tenant without a key means nothing to a flow.
    let tenant = if key.is_empty() && settings.key_secret.is_none() {
        ""
    } else {
        &settings.tenant_id
    };
    for (name, value) in [
        ("PREFECT__BACKEND", settings.backend.as_str()),
        (LABELS, &settings.labels),
        ("PREFECT__CLOUD__API", &settings.api),
        (KEYS[0], key),
        ("PREFECT__CLOUD__TENANT_ID", tenant),
        ("PREFECT__CLOUD__USE_LOCAL_SECRETS", "false"),
        ("PREFECT__CONTEXT__FLOW_RUN_ID", run.id.as_str()),
        ("PREFECT__CONTEXT__FLOW_ID", &flow.id),
    ] {
        env.set(name, value.into());
    }
    env.set("PREFECT__CONTEXT__IMAGE", image.clone());
    for (name, value) in [
        (
            "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS",
            "prefect.engine.cloud.CloudFlowRunner",
        ),
        ("PREFECT__LOGGING__LOG_TO_CLOUD", logs),
        (KEYS[1], key),
    ] {
        env.set(name, value.into());
    }
    let kept: Vec<Value> = given
        .into_iter()
        .filter(|entry| {
            let name = entry["name"].as_str();
            !name.is_some_and(|name| env.0.contains_key(name))
        })
        .collect();
    let ours = env
        .0
        .into_iter()
        .map(|(name, value)| match &settings.key_secret {
            Some(secret) if KEYS.contains(&name.as_str()) => json!({
                "name": name,
                "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}},
            }),
            _ => json!({"name": name, "value": value}),
        });
    Ok(ours.chain(kept).collect())
}

/// The entries of a template, each with a name.
fn entries(given: Option<Value>) -> Result<Vec<Value>, Misfit> {
    let entries = match given {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(Misfit::new("a list", &other)),
    };
    for (index, entry) in entries.iter().enumerate() {
        let Value::Object(members) = entry else {
            return Err(Misfit::new("a mapping", entry).within(index));
        };
        match members.get("name") {
            None => return Err(Misfit::missing("a name").within(index)),
            Some(name @ (Value::Array(_) | Value::Object(_))) => {
                return Err(Misfit::new("a string", name).within("name").within(index));
            }
            Some(_) => {}
        }
    }
    Ok(entries)
}

/// Kubernetes takes nothing but text; null is an empty text to it.
fn text(value: &Value) -> Value {
    match value {
        Value::Null | Value::String(_) => value.clone(),
        other => other.to_string().into(),
    }
}
