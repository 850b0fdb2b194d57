//! The Job for a flow run: template, run config and agent settings in, manifest out.
//!
//! The rules are those of the Python agent of Prefect 1.4.1.

mod environment;
mod image;
mod patch;
mod resources;
mod room;
mod shape;
mod storage;
mod template;

use std::ops::Deref;
use std::sync::Arc;

use agent_core::run_config::{KubernetesRun, RunConfig};
use agent_core::{Error, Flow, FlowRun, LONGEST_MESSAGE, Result, TemplateStore, Work, clip};
use k8s_openapi::api::batch::v1::Job;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use self::patch::JobPatch;
pub use self::resources::JobResources;
use self::room::{Room, Taken};
use self::shape::{Misfit, describe, mapping, mapping_at};
use self::template::{Found, Templates};
use crate::weight::{json_length, weight};

/// Label that groups a Job with its pods; the value also ends the Job's name.
pub const IDENTIFIER: &str = "prefect.io/identifier";
/// Label that holds the flow run's id.
pub const FLOW_RUN_ID: &str = "prefect.io/flow_run_id";
/// Label that holds the flow's id.
pub const FLOW_ID: &str = "prefect.io/flow_id";

/// Annotation of a Job, `true` where its agent keeps its Jobs: the replica that supervises may have been
/// started with other flags.
pub const KEEP: &str = "prefect.io/keep";

/// Variable that tells a flow the labels of the agent which made its Job.
pub(crate) const LABELS: &str = "PREFECT__CLOUD__AGENT__LABELS";

/// How much of a template's name goes into a Job's name, in characters.
const NAME: usize = 48;
/// How large a manifest may be as JSON, in bytes: the store of Kubernetes takes no larger object.
pub const LARGEST: usize = 3 << 19;
/// The pod's specification in a Job.
const POD: [&str; 3] = ["spec", "template", "spec"];

/// What the agent's settings contribute to every Job.
#[derive(Debug, Clone, Default)]
pub struct ManifestSettings {
    /// Where the agent's job template is; `None` is a built-in one.
    pub job_template: Option<String>,
    /// The pod's service account, unless the run config or its template has one. An empty name
    /// takes the service account of the agent's template away.
    pub service_account_name: Option<String>,
    /// Names of the pod's image pull secrets, unless the run config or its template has some.
    pub image_pull_secrets: Option<Vec<String>>,
    /// Environment variables for every flow.
    pub env: Vec<(String, String)>,
    /// Volumes for every pod, as in a pod's `volumes`; one of the template with the same name wins.
    pub volumes: Vec<Value>,
    /// Mounts for the flow's container, as in a container's `volumeMounts`; one of the template at
    /// the same path wins.
    pub volume_mounts: Vec<Value>,
    /// What flows may use, where neither their run config nor their template says anything.
    pub resources: JobResources,
    /// The pull policy of the flow's image, where neither the run config nor the template has one.
    pub image_pull_policy: Option<String>,
    /// The agent's labels as flows are told them, in Python notation.
    pub labels: String,
    /// `cloud` or `server`.
    pub backend: String,
    /// The API's address for flows.
    pub api: String,
    /// The API key for flows.
    pub key: Option<SecretString>,
    /// Where flows get the key from, instead of being told it in the Job.
    pub key_secret: Option<KeySecret>,
    /// The tenant's id; flows are told it if there is a key.
    pub tenant_id: String,
    /// The logging level of flows.
    pub logging_level: String,
    /// Whether flows send their logs to the API: `true`, `false`, or what else somebody wrote, which
    /// Prefect takes for true.
    pub send_flow_run_logs: String,
    /// Changes to every Job, made last.
    pub patch: Option<JobPatch>,
}

/// A key of a Kubernetes Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySecret {
    /// The Secret's name.
    pub name: String,
    /// The key in its data.
    pub key: String,
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

/// Builds manifests with the same settings and templates.
pub struct Manifests {
    settings: ManifestSettings,
    templates: Templates,
    /// For run configs that are read.
    room: Room,
}

/// A finished manifest. Large ones have room for a few in memory, so each should be dropped as soon as
/// it is sent.
#[derive(Debug)]
pub struct Manifest {
    value: Value,
    _room: Taken,
}

impl Manifest {
    /// Says in an annotation that the Job is kept.
    pub(crate) fn keep(&mut self) {
        // What is no mapping there is refused with the rest.
        if let Ok(annotations) = mapping_at(&mut self.value, &["metadata", "annotations"]) {
            annotations.insert(KEEP.to_owned(), "true".into());
        }
    }

    /// The manifest as JSON.
    pub fn into_value(self) -> Value {
        self.value
    }
}

impl Deref for Manifest {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}

impl Manifests {
    /// A builder with these settings, whose templates come from `store`.
    pub fn new(settings: ManifestSettings, store: Arc<dyn TemplateStore>) -> Self {
        Self {
            settings,
            templates: Templates::new(store),
            room: Room::new(),
        }
    }

    /// The agent's labels, as flows are told them.
    pub(crate) fn labels(&self) -> &str {
        &self.settings.labels
    }

    /// Builds the manifest for a run. When several are large, it waits until some were dropped.
    ///
    /// # Errors
    /// Permanent when the run config or the flow's template makes no Job that Kubernetes can store;
    /// [`Error::Agent`] when the agent's own template makes none; transient when a template's place
    /// does not answer.
    pub async fn build(&self, run: &FlowRun, identifier: &str) -> Result<Manifest> {
        let built = self.filled(run, identifier).await;
        built.map_err(|error| match error {
            Error::Permanent(message) => Error::Permanent(clipped(message)),
            Error::Agent(message) => Error::Agent(clipped(message)),
            other => other,
        })
    }

    async fn filled(&self, run: &FlowRun, identifier: &str) -> Result<Manifest> {
        let Work::Flow(flow) = &run.work else {
            return Err(Error::permanent("this agent cannot deploy such work"));
        };
        let _room = self.room.take(2 * weight(&flow.run_config)).await;
        let config = match RunConfig::from_json(&flow.run_config)
            .map_err(|error| Error::permanent(format!("Flow run {} {error}", run.id)))?
        {
            RunConfig::Kubernetes(config) => *config,
            RunConfig::Universal { env } => KubernetesRun {
                env,
                ..KubernetesRun::default()
            },
            _ => {
                return Err(Error::permanent(
                    "this agent cannot deploy such a run config",
                ));
            }
        };
        let agents = self.settings.job_template.as_deref();
        let template = self.templates.find(&config, agents).await?;
        let of_template = json_length(&template.content);
        if of_template > LARGEST {
            return Err(template.wrong(format!(
                "the job template of flow run {} {}",
                run.id,
                too_large(of_template)
            )));
        }
        let mut job = template.content.as_ref().clone();
        let parts = Parts {
            run,
            flow,
            config: &config,
            settings: &self.settings,
            identifier,
            template: &template,
        };
        parts.fill(&mut job)?;
        if let Some(patch) = &self.settings.patch {
            parts.patch(&mut job, patch)?;
        }
        let length = json_length(&job);
        if length > LARGEST {
            return Err(Error::permanent(format!(
                "the Job of flow run {} {}",
                run.id,
                too_large(length)
            )));
        }
        let Found { mut room, .. } = template;
        room.shrink(weight(&job) + length);
        Ok(Manifest {
            value: job,
            _room: room,
        })
    }
}

/// That something has more bytes than Kubernetes stores.
fn too_large(length: usize) -> String {
    format!(
        "has {length} bytes as JSON, and Kubernetes stores at most {LARGEST}; make the template and the run config smaller"
    )
}

fn clipped(message: String) -> String {
    match clip(&message, LONGEST_MESSAGE) {
        std::borrow::Cow::Borrowed(_) => message,
        std::borrow::Cow::Owned(clipped) => clipped,
    }
}

/// What Kubernetes will refuse a manifest for, by the look of it: the place, and the kind of value
/// that belongs there.
///
/// # Errors
/// The first value that is not of its kind.
pub fn check(manifest: &Value) -> Result<(), String> {
    let mut manifest = manifest.clone();
    spell_quantities(&mut manifest);
    serde_path_to_error::deserialize(&manifest)
        .map(|_: Job| ())
        .map_err(|error| error.to_string())
}

/// Kubernetes takes a number for a quantity, the types do not.
fn spell_quantities(value: &mut Value) {
    let spell = |value: &mut Value| {
        if value.is_number() {
            *value = value.to_string().into();
        }
    };
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match (name.as_str(), value) {
                    ("requests" | "limits", Value::Object(amounts)) => {
                        amounts.values_mut().for_each(spell);
                    }
                    ("sizeLimit" | "divisor", value) => spell(value),
                    (_, value) => spell_quantities(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(spell_quantities),
        _ => {}
    }
}

/// All that goes into one manifest.
struct Parts<'a> {
    run: &'a FlowRun,
    flow: &'a Flow,
    config: &'a KubernetesRun,
    settings: &'a ManifestSettings,
    identifier: &'a str,
    template: &'a Found,
}

impl Parts<'_> {
    fn fill(&self, job: &mut Value) -> Result<()> {
        self.describe(job)
            .map_err(|misfit| self.template.misfit(&misfit))?;
        let pod = pod(job).map_err(|misfit| self.template.misfit(&misfit))?;
        self.pod(pod)
            .map_err(|misfit| self.template.misfit(&misfit.under(&POD)))?;
        let within = |misfit: Misfit| {
            let misfit = misfit.within(0).within("containers").under(&POD);
            self.template.misfit(&misfit)
        };
        let container =
            container(pod).map_err(|misfit| self.template.misfit(&misfit.under(&POD)))?;
        let image = image::image(container, self.flow, self.config).map_err(Error::permanent)?;
        container.insert("image".to_owned(), image.clone());
        let version = self.flow.core_version.as_deref();
        container.insert("args".to_owned(), image::arguments(version));
        if let Some(policy) = &self.config.image_pull_policy {
            container.insert("imagePullPolicy".to_owned(), policy.as_str().into());
        }
        if let Some(policy) = &self.settings.image_pull_policy {
            let policy = || policy.as_str().into();
            container.entry("imagePullPolicy").or_insert_with(policy);
        }
        resources::fill(container, self.config, &self.settings.resources)
            .map_err(|misfit| within(misfit.within("resources")))?;
        let mounts = &self.settings.volume_mounts;
        add(container, "volumeMounts", "mountPath", mounts).map_err(within)?;
        let given = container.get_mut("env").map(Value::take);
        let env = environment::environment(
            given,
            self.run,
            self.flow,
            &image,
            &self.config.env,
            self.settings,
        )
        .map_err(|misfit| within(misfit.within("env")))?;
        container.insert("env".to_owned(), env);
        Ok(())
    }

    /// Name and labels.
    fn describe(&self, job: &mut Value) -> Result<(), Misfit> {
        let metadata = mapping_at(job, &["metadata"])?;
        let name = match metadata.get("name") {
            Some(Value::String(name)) => name.chars().take(NAME).collect(),
            None => "prefect-job".to_owned(),
            Some(other) => {
                return Err(Misfit::new("a string", other).under(&["metadata", "name"]));
            }
        };
        let name = format!("{name}-{}", self.identifier);
        metadata.insert("name".to_owned(), name.into());
        for path in [
            &["metadata", "labels"][..],
            &["spec", "template", "metadata", "labels"],
        ] {
            let labels = mapping_at(job, path)?;
            for (key, value) in self.labels() {
                labels.insert(key.to_owned(), value.into());
            }
        }
        Ok(())
    }

    fn labels(&self) -> [(&'static str, &str); 3] {
        [
            (IDENTIFIER, self.identifier),
            (FLOW_RUN_ID, self.run.id.as_str()),
            (FLOW_ID, self.flow.id.as_str()),
        ]
    }

    fn pod(&self, pod: &mut Map<String, Value>) -> Result<(), Misfit> {
        pod.entry("restartPolicy").or_insert_with(|| "Never".into());
        // A field in the flow's own template, even null, is the flow's word.
        let settled =
            |pod: &Map<String, Value>, field| self.template.of_flow && pod.contains_key(field);
        let (ours, agents) = (
            &self.config.service_account_name,
            &self.settings.service_account_name,
        );
        let field = "serviceAccountName";
        let account = ours
            .as_ref()
            .or(agents.as_ref().filter(|_| !settled(pod, field)));
        if let Some(account) = account {
            pod.insert(field.to_owned(), account.as_str().into());
        }
        let ours = self.config.image_pull_secrets.as_ref();
        let ours = ours.filter(|names| !names.is_empty());
        let agents = &self.settings.image_pull_secrets;
        let field = "imagePullSecrets";
        let secrets = ours.or(agents.as_ref().filter(|_| !settled(pod, field)));
        if let Some(secrets) = secrets {
            let secrets = secrets.iter().map(|name| json!({"name": name}));
            pod.insert(field.to_owned(), secrets.collect());
        }
        add(pod, "volumes", "name", &self.settings.volumes)
    }

    /// Changes the finished manifest, but not what the agent knows its Jobs by.
    fn patch(&self, job: &mut Value, patch: &JobPatch) -> Result<()> {
        let name = job["metadata"]["name"].clone();
        patch.apply(job).map_err(Error::permanent)?;
        let labels = ["/metadata/labels", "/spec/template/metadata/labels"];
        let kept = job.pointer("/metadata/name") == Some(&name)
            && labels.iter().all(|labels| {
                job.pointer(labels).is_some_and(|labels| {
                    self.labels()
                        .iter()
                        .all(|(key, value)| labels[*key] == **value)
                })
            });
        if kept {
            Ok(())
        } else {
            Err(Error::permanent(format!(
                "the job patch {} changes the Job's name or its prefect.io labels, by which the agent finds it again",
                patch.name()
            )))
        }
    }
}

/// The pod's specification, which a template must have.
fn pod(job: &mut Value) -> Result<&mut Map<String, Value>, Misfit> {
    let pod = mapping_at(job, &POD[..2])?.get_mut(POD[2]);
    match pod {
        Some(pod) => mapping(pod).map_err(|misfit| misfit.under(&POD)),
        None => Err(Misfit::missing("a mapping").under(&POD)),
    }
}

/// The flow's container: the first one, made if there is none.
fn container(pod: &mut Map<String, Value>) -> Result<&mut Map<String, Value>, Misfit> {
    let containers = pod.entry("containers").or_insert_with(|| json!([]));
    let containers = match containers {
        Value::Array(containers) => containers,
        other => return Err(Misfit::new("a list", other).within("containers")),
    };
    if containers.is_empty() {
        containers.push(json!({}));
    }
    mapping(&mut containers[0]).map_err(|misfit| misfit.within(0).within("containers"))
}

/// Adds items to a list, but none that the list has already by this key.
fn add(
    holder: &mut Map<String, Value>,
    field: &str,
    key: &str,
    items: &[Value],
) -> Result<(), Misfit> {
    if items.is_empty() {
        return Ok(());
    }
    let list = holder.entry(field).or_insert_with(|| json!([]));
    let list = match list {
        Value::Array(list) => list,
        other => return Err(Misfit::new("a list", other).within(field)),
    };
    for item in items {
        if !list.iter().any(|known| known[key] == item[key]) {
            list.push(item.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
