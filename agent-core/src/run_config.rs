//! How Prefect 1 describes the environment of a flow run.

use std::fmt;

use serde_json::{Map, Value};

/// The run configs that Prefect 1 knows but that are for other agents.
const OTHERS: &[&str] = &["DockerRun", "ECSRun", "LocalRun", "VertexRun"];

/// The members that every run config has.
const COMMON: &[&str] = &["type", "__version__", "env", "labels"];

/// The members of a `KubernetesRun` beyond those.
const KUBERNETES: &[&str] = &[
    "job_template",
    "job_template_path",
    "image",
    "cpu_limit",
    "cpu_request",
    "memory_limit",
    "memory_request",
    "service_account_name",
    "image_pull_secrets",
    "image_pull_policy",
];

/// The run config of a flow run that this agent can deploy.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RunConfig {
    /// `KubernetesRun`: made for this agent.
    Kubernetes(Box<KubernetesRun>),
    /// `UniversalRun`: for any agent, so only an environment.
    Universal {
        /// Environment variables for the flow's process.
        env: Map<String, Value>,
    },
}

/// The members of a `KubernetesRun`; whatever is absent or null is left to the agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KubernetesRun {
    /// A job template: an object, or YAML as text. Never empty.
    pub job_template: Option<Value>,
    /// Where a job template is.
    pub job_template_path: Option<String>,
    /// The image of the flow's container.
    pub image: Option<String>,
    /// Environment variables for the flow's process.
    pub env: Map<String, Value>,
    /// CPU limit of the flow's container, a Kubernetes quantity.
    pub cpu_limit: Option<String>,
    /// CPU request of the flow's container, a Kubernetes quantity.
    pub cpu_request: Option<String>,
    /// Memory limit of the flow's container, a Kubernetes quantity.
    pub memory_limit: Option<String>,
    /// Memory request of the flow's container, a Kubernetes quantity.
    pub memory_request: Option<String>,
    /// The pod's service account.
    pub service_account_name: Option<String>,
    /// Names of the pod's image pull secrets.
    pub image_pull_secrets: Option<Vec<String>>,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: Option<String>,
}

/// Why a run config cannot be deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunConfigError {
    /// It is for another kind of agent.
    Unsupported(String),
    /// It is of a type that Prefect 1 does not know.
    Unknown(String),
    /// It does not say of which type it is.
    Untyped,
    /// A member cannot be read.
    Invalid(String),
}

impl fmt::Display for RunConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(kind) => write!(
                f,
                "has a `run_config` of type `{kind}`, only `KubernetesRun` is supported (or `UniversalRun`)"
            ),
            Self::Unknown(kind) => write!(
                f,
                "has a `run_config` of a type that Prefect 1 does not have: {{'type': ['Unsupported value: {kind}']}}; use `KubernetesRun` or `UniversalRun`"
            ),
            Self::Untyped => f.write_str(
                "has a `run_config` without a type: {'type': ['Missing data for required field.']}; use `KubernetesRun` or `UniversalRun`",
            ),
            Self::Invalid(what) => write!(f, "has a `run_config` that cannot be read: {what}"),
        }
    }
}

impl std::error::Error for RunConfigError {}

impl RunConfig {
    /// Reads the run config of a run as the API returned it; null, for a flow from before run
    /// configs, is a `KubernetesRun` that asks for nothing. Members that nobody knows are ignored
    /// with a warning.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with the flow run.
    pub fn from_json(value: &Value) -> Result<Self, RunConfigError> {
        let mut members = match value {
            Value::Null => return Ok(Self::Kubernetes(Box::default())),
            Value::Object(members) => Members {
                members,
                wrong: Vec::new(),
            },
            other => {
                let found = if other.is_array() {
                    "a list"
                } else {
                    "a scalar"
                };
                return Err(RunConfigError::Invalid(format!(
                    "expected an object, found {found}"
                )));
            }
        };
        let kind = match members.get("type") {
            None => return Err(RunConfigError::Untyped),
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(RunConfigError::Unknown(other.to_string())),
        };
        let config = match kind {
            "KubernetesRun" => {
                members.warn_of_unknown(&[COMMON, KUBERNETES]);
                Self::Kubernetes(Box::new(members.kubernetes()))
            }
            "UniversalRun" => {
                members.warn_of_unknown(&[COMMON]);
                Self::Universal { env: members.env() }
            }
            other if OTHERS.contains(&other) => {
                return Err(RunConfigError::Unsupported(other.to_owned()));
            }
            other => return Err(RunConfigError::Unknown(other.to_owned())),
        };
        if members.wrong.is_empty() {
            Ok(config)
        } else {
            Err(RunConfigError::Invalid(members.wrong.join("; ")))
        }
    }
}

/// Reads members and collects what is wrong with them.
struct Members<'a> {
    members: &'a Map<String, Value>,
    wrong: Vec<String>,
}

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    fn warn_of_unknown(&self, known: &[&[&str]]) {
        for name in self.members.keys() {
            if !known.iter().any(|known| known.contains(&name.as_str())) {
                tracing::warn!("the run config's member {name} is not known and ignored");
            }
        }
    }

    fn kubernetes(&mut self) -> KubernetesRun {
        KubernetesRun {
            env: self.env(),
            job_template: self.template(),
            job_template_path: self.text("job_template_path"),
            image: self.text("image"),
            cpu_limit: self.text("cpu_limit"),
            cpu_request: self.text("cpu_request"),
            memory_limit: self.text("memory_limit"),
            memory_request: self.text("memory_request"),
            service_account_name: self.text("service_account_name"),
            image_pull_secrets: self.texts("image_pull_secrets"),
            image_pull_policy: self.pull_policy(),
        }
    }

    /// The environment; the labels, which mean nothing here, are checked beside it.
    fn env(&mut self) -> Map<String, Value> {
        if self.members.get("labels").is_some_and(Value::is_null) {
            self.wrong.push("labels: may not be null".to_owned());
        }
        self.texts("labels");
        match self.get("env") {
            None => Map::new(),
            Some(Value::Object(env)) => env.clone(),
            Some(other) => {
                self.expected("env", "an object", other);
                Map::new()
            }
        }
    }

    fn template(&mut self) -> Option<Value> {
        match self.get("job_template")? {
            Value::String(text) => (!text.is_empty()).then(|| text.clone().into()),
            Value::Object(map) => (!map.is_empty()).then(|| map.clone().into()),
            other => {
                self.expected("job_template", "an object or YAML as a string", other);
                None
            }
        }
    }

    fn pull_policy(&mut self) -> Option<String> {
        let policy = self.text("image_pull_policy")?;
        if !matches!(policy.as_str(), "Always" | "IfNotPresent" | "Never") {
            self.wrong.push(format!(
                "Invalid image_pull_policy '{policy}'.  Expected 'Always', 'IfNotPresent', or 'Never'"
            ));
        }
        Some(policy)
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.get(name)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.expected(name, "a string", other);
                None
            }
        }
    }

    fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let Value::Array(items) = self.get(name)? else {
            self.expected(name, "a list of strings", &self.members[name]);
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item {
                Value::String(text) => texts.push(text.clone()),
                other => self.expected(&format!("{name}[{index}]"), "a string", other),
            }
        }
        Some(texts)
    }

    fn expected(&mut self, name: &str, what: &str, found: &Value) {
        let found = match found {
            Value::Null => "null".to_owned(),
            Value::Bool(_) | Value::Number(_) => found.to_string(),
            // Texts, lists and objects may hold a secret.
            Value::String(_) => "a string".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        };
        self.wrong
            .push(format!("{name}: expected {what}, found {found}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_the_run_configs_it_can_deploy_and_names_the_others() {
        let none = RunConfig::from_json(&Value::Null);
        assert_eq!(none, Ok(RunConfig::Kubernetes(Box::default())));
        let image = json!({"type": "KubernetesRun", "image": "x", "env": null, "new_member": 1});
        assert!(
            matches!(RunConfig::from_json(&image), Ok(RunConfig::Kubernetes(run)) if run.image.as_deref() == Some("x"))
        );
        let error = |config| {
            RunConfig::from_json(&config)
                .expect_err("refused")
                .to_string()
        };
        let docker = error(json!({"type": "DockerRun"}));
        assert!(
            docker.contains("of type `DockerRun`, only `KubernetesRun` is supported"),
            "{docker}"
        );
        let unknown = error(json!({"type": "SlurmRun"}));
        assert!(
            unknown.contains("{'type': ['Unsupported value: SlurmRun']}"),
            "{unknown}"
        );
    }

    #[test]
    fn names_every_member_that_cannot_be_read() {
        let config = json!({"type": "KubernetesRun", "cpu_limit": 2, "labels": ["a", 1],
            "image_pull_secrets": "x", "image_pull_policy": "always", "job_template": [1]});
        let error = RunConfig::from_json(&config)
            .expect_err("refused")
            .to_string();
        for part in [
            "cpu_limit: expected a string, found 2",
            "labels[1]: expected a string, found 1",
            "image_pull_secrets: expected a list of strings, found a string",
            "Invalid image_pull_policy 'always'",
            "job_template: expected an object or YAML as a string, found a list",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
