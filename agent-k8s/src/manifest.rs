//! The Job for a flow run: template, run config and agent settings in, manifest out.

use std::collections::BTreeMap;

use agent_core::run_config::{KubernetesRun, RunConfig};
use agent_core::{Error, Flow, FlowRun, Result, TemplateOrigin, TemplateStore, Work};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::yaml;

/// Label that groups a Job with its pods; the value also ends the Job's name.
pub const IDENTIFIER: &str = "prefect.io/identifier";
/// Label that holds the flow run's id.
pub const FLOW_RUN_ID: &str = "prefect.io/flow_run_id";
/// Label that holds the flow's id.
pub const FLOW_ID: &str = "prefect.io/flow_id";

/// How much of a template's name goes into a Job's name, in characters.
const NAME: usize = 48;

/// What the agent's settings contribute to every Job.
#[derive(Debug, Clone, Default)]
pub struct ManifestSettings {
    /// Where the agent's job template is; `None` is a built-in one.
    pub job_template: Option<String>,
    /// The pod's service account, unless the run config names one.
    pub service_account_name: Option<String>,
    /// Names of the pod's image pull secrets, unless the run config names some.
    pub image_pull_secrets: Option<Vec<String>>,
    /// Environment variables for every flow.
    pub env: BTreeMap<String, String>,
    /// The agent's labels as flows are told them, in Python notation.
    pub labels: String,
    /// `cloud` or `server`.
    pub backend: String,
    /// The API's address for flows.
    pub api: String,
    /// The API key for flows.
    pub key: Option<SecretString>,
    /// The tenant's id.
    pub tenant_id: String,
    /// The logging level of flows.
    pub logging_level: String,
    /// Whether flows send their logs to the API.
    pub send_flow_run_logs: bool,
}

/// Eight hexadecimal digits that are the same whenever and wherever the same attempt at a run is
/// submitted; `salt` gives others when those are taken by somebody else.
pub fn identifier(attempt: &str, salt: u32) -> String {
    let mut hash = Sha256::new();
    hash.update(attempt.as_bytes());
    hash.update(salt.to_be_bytes());
    hash.finalize()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Builds the manifest for a run.
///
/// # Errors
/// Permanent when the run config or the template makes no Job; transient when a template's place
/// does not answer.
pub async fn build(
    run: &FlowRun,
    settings: &ManifestSettings,
    templates: &dyn TemplateStore,
    identifier: &str,
) -> Result<Value> {
    let Work::Flow(flow) = &run.work else {
        return Err(Error::permanent("this agent cannot deploy such work"));
    };
    let (config, env) = match RunConfig::from_json(&flow.run_config)
        .map_err(|error| Error::permanent(format!("Flow run {}: {error}", run.id)))?
    {
        RunConfig::Kubernetes(mut config) => {
            let env = config.env.take().unwrap_or_default();
            (*config, env)
        }
        RunConfig::Universal { env } => (KubernetesRun::default(), env),
        _ => {
            return Err(Error::permanent(
                "this agent cannot deploy such a run config",
            ));
        }
    };
    let job = template(&config, settings, templates).await?;
    fill(job, run, flow, &config, env, settings, identifier)
}

async fn template(
    config: &KubernetesRun,
    settings: &ManifestSettings,
    templates: &dyn TemplateStore,
) -> Result<Value> {
    let (location, origin) = match (
        &config.job_template,
        &config.job_template_path,
        &settings.job_template,
    ) {
        (Some(Value::String(text)), ..) if !text.is_empty() => {
            return parse(text.as_bytes(), "the run config's job_template");
        }
        (Some(object @ Value::Object(members)), ..) if !members.is_empty() => {
            return Ok(object.clone());
        }
        (_, Some(path), _) if !path.is_empty() => (path, TemplateOrigin::Flow),
        (_, _, Some(path)) => (path, TemplateOrigin::Agent),
        _ => {
            return Ok(json!({"apiVersion": "batch/v1", "kind": "Job",
                "spec": {"template": {"spec": {"containers": [{"name": "flow"}]}}}}));
        }
    };
    let template = templates.load(location, origin).await?;
    parse(&template.bytes, &template.location)
}

fn parse(bytes: &[u8], place: &str) -> Result<Value> {
    yaml::parse(bytes).map_err(|error| {
        Error::permanent(format!("the job template {place} cannot be read: {error}"))
    })
}

#[allow(
    clippy::too_many_arguments,
    reason = "all of it goes into one manifest"
)]
fn fill(
    mut job: Value,
    run: &FlowRun,
    flow: &Flow,
    config: &KubernetesRun,
    run_env: BTreeMap<String, Value>,
    settings: &ManifestSettings,
    identifier: &str,
) -> Result<Value> {
    let labels = [
        (IDENTIFIER, identifier),
        (FLOW_RUN_ID, run.id.as_str()),
        (FLOW_ID, flow.id.as_str()),
    ];
    let metadata = object(&mut job, &["metadata"])?;
    let name: String = match metadata.get("name") {
        Some(Value::String(name)) => name.chars().take(NAME).collect(),
        _ => "prefect-job".to_owned(),
    };
    metadata.insert("name".to_owned(), format!("{name}-{identifier}").into());
    for path in [
        &["metadata", "labels"][..],
        &["spec", "template", "metadata", "labels"],
    ] {
        let map = object(&mut job, path)?;
        map.extend(labels.map(|(key, value)| (key.to_owned(), value.into())));
    }
    let pod = object(&mut job, &["spec", "template", "spec"])?;
    pod.entry("restartPolicy").or_insert_with(|| "Never".into());
    let account = config
        .service_account_name
        .as_ref()
        .or(settings.service_account_name.as_ref());
    if let Some(account) = account {
        pod.insert("serviceAccountName".to_owned(), account.as_str().into());
    }
    let secrets = config
        .image_pull_secrets
        .as_ref()
        .or(settings.image_pull_secrets.as_ref());
    if let Some(secrets) = secrets {
        let secrets = secrets.iter().map(|name| json!({"name": name}));
        pod.insert("imagePullSecrets".to_owned(), secrets.collect());
    }
    let containers = pod.entry("containers").or_insert_with(|| json!([]));
    let Value::Array(containers) = containers else {
        return Err(expected(
            "spec.template.spec.containers",
            "a list",
            containers,
        ));
    };
    if containers.is_empty() {
        containers.push(json!({"name": "flow"}));
    }
    let Value::Object(container) = &mut containers[0] else {
        return Err(expected(
            "spec.template.spec.containers[0]",
            "a mapping",
            &containers[0],
        ));
    };
    let image = image(container, flow, config)?;
    container.insert("image".to_owned(), image.as_str().into());
    container.insert("args".to_owned(), arguments(flow.core_version.as_deref()));
    if let Some(policy) = &config.image_pull_policy {
        container.insert("imagePullPolicy".to_owned(), policy.as_str().into());
    }
    resources(container, config)?;
    let given = container.remove("env");
    let env = environment(given, run, flow, &image, run_env, settings)?;
    container.insert("env".to_owned(), env);
    Ok(job)
}

/// The object at a path, made where it is missing.
fn object<'a>(job: &'a mut Value, path: &[&str]) -> Result<&'a mut Map<String, Value>> {
    let mut here = job;
    for (depth, member) in path.iter().enumerate() {
        let found = describe(here);
        let Value::Object(map) = here else {
            let place = if depth == 0 {
                "the job template".to_owned()
            } else {
                path[..depth].join(".")
            };
            return Err(Error::permanent(format!(
                "{place}: expected a mapping, found {found}"
            )));
        };
        here = map.entry(*member).or_insert_with(|| json!({}));
    }
    let found = describe(here);
    match here {
        Value::Object(map) => Ok(map),
        _ => Err(Error::permanent(format!(
            "{}: expected a mapping, found {found}",
            path.join(".")
        ))),
    }
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn expected(place: &str, what: &str, found: &Value) -> Error {
    Error::permanent(format!(
        "{place}: expected {what}, found {}",
        describe(found)
    ))
}

fn image(container: &Map<String, Value>, flow: &Flow, config: &KubernetesRun) -> Result<String> {
    if flow.storage["type"] == "Docker" {
        let part = |member: &str| {
            flow.storage[member]
                .as_str()
                .filter(|text| !text.is_empty())
        };
        let (Some(name), Some(tag)) = (part("image_name"), part("image_tag")) else {
            return Err(Error::permanent(
                "Docker storage is missing required fields image_name and image_tag",
            ));
        };
        return Ok(match part("registry_url") {
            Some(registry) => format!("{}/{name}:{tag}", registry.trim_end_matches('/')),
            None => format!("{name}:{tag}"),
        });
    }
    let given = config
        .image
        .as_deref()
        .or_else(|| container.get("image")?.as_str());
    Ok(given.map_or_else(
        || {
            let version = flow.core_version.as_deref().unwrap_or("latest");
            let version = version.split('+').next().unwrap_or(version);
            format!("prefecthq/prefect:{version}")
        },
        str::to_owned,
    ))
}

fn arguments(core_version: Option<&str>) -> Value {
    let old = core_version.is_none_or(|version| {
        let mut parts = version
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (0, 13)
    });
    json!([
        "prefect",
        "execute",
        if old { "cloud-flow" } else { "flow-run" }
    ])
}

fn resources(container: &mut Map<String, Value>, config: &KubernetesRun) -> Result<()> {
    let place = "spec.template.spec.containers[0].resources";
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    let Value::Object(resources) = resources else {
        return Err(expected(place, "a mapping", resources));
    };
    for (member, cpu, memory) in [
        ("requests", &config.cpu_request, &config.memory_request),
        ("limits", &config.cpu_limit, &config.memory_limit),
    ] {
        let amounts = resources.entry(member).or_insert_with(|| json!({}));
        let Value::Object(amounts) = amounts else {
            return Err(expected(&format!("{place}.{member}"), "a mapping", amounts));
        };
        for (unit, amount) in [("cpu", cpu), ("memory", memory)] {
            if let Some(amount) = amount {
                amounts.insert(unit.to_owned(), amount.as_str().into());
            }
        }
    }
    Ok(())
}

/// The environment: each source over the one before it; entries of the template that nothing
/// overrides come last, in their own order.
fn environment(
    given: Option<Value>,
    run: &FlowRun,
    flow: &Flow,
    image: &str,
    run_env: BTreeMap<String, Value>,
    settings: &ManifestSettings,
) -> Result<Value> {
    let mut entries: Vec<(String, Value)> = Vec::with_capacity(16);
    let mut set =
        |name: &str, value: Value| match entries.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => entries.push((name.to_owned(), value)),
        };
    set(
        "PREFECT__LOGGING__LEVEL",
        settings.logging_level.as_str().into(),
    );
    for (name, value) in &settings.env {
        set(name, value.as_str().into());
    }
    for (name, value) in run_env {
        set(&name, value);
    }
    let logs = if settings.send_flow_run_logs {
        "true"
    } else {
        "false"
    };
    let key = settings.key.as_ref().map_or("", |key| key.expose_secret());
    for (name, value) in [
        ("PREFECT__CLOUD__SEND_FLOW_RUN_LOGS", logs),
        ("PREFECT__BACKEND", &settings.backend),
        ("PREFECT__CLOUD__AGENT__LABELS", &settings.labels),
        ("PREFECT__CLOUD__API", &settings.api),
        ("PREFECT__CLOUD__API_KEY", key),
        ("PREFECT__CLOUD__TENANT_ID", &settings.tenant_id),
        ("PREFECT__CLOUD__USE_LOCAL_SECRETS", "false"),
        ("PREFECT__CONTEXT__FLOW_RUN_ID", run.id.as_str()),
        ("PREFECT__CONTEXT__FLOW_ID", &flow.id),
        ("PREFECT__CONTEXT__IMAGE", image),
        (
            "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS",
            "prefect.engine.cloud.CloudFlowRunner",
        ),
        ("PREFECT__LOGGING__LOG_TO_CLOUD", logs),
        ("PREFECT__CLOUD__AUTH_TOKEN", key),
    ] {
        set(name, value.into());
    }
    let template = match given {
        None => Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(other) => {
            return Err(expected(
                "spec.template.spec.containers[0].env",
                "a list",
                &other,
            ));
        }
    };
    let kept: Vec<Value> = template
        .into_iter()
        .filter(|entry| {
            !entries
                .iter()
                .any(|(name, _)| entry["name"] == name.as_str())
        })
        .collect();
    let ours = entries
        .into_iter()
        .map(|(name, value)| json!({"name": name, "value": value}));
    Ok(ours.chain(kept).collect())
}
