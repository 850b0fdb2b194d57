//! How Prefect 1 describes the environment of a flow run.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The run config of a flow run that this agent can deploy.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RunConfig {
    /// `KubernetesRun`: made for this agent.
    Kubernetes(Box<KubernetesRun>),
    /// `UniversalRun`: for any agent, so only an environment.
    Universal {
        /// Environment variables for the flow's process.
        env: BTreeMap<String, Value>,
    },
}

/// The members of a `KubernetesRun`; whatever is absent or null is left to the agent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct KubernetesRun {
    /// A job template: an object, or YAML as text.
    pub job_template: Option<Value>,
    /// Where a job template is.
    pub job_template_path: Option<String>,
    /// The image of the flow's container.
    pub image: Option<String>,
    /// Environment variables for the flow's process.
    pub env: Option<BTreeMap<String, Value>>,
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

#[derive(Deserialize)]
struct Universal {
    #[serde(default)]
    env: Option<BTreeMap<String, Value>>,
}

impl RunConfig {
    /// Reads the run config of a run as the API returned it; null, for a flow from before run
    /// configs, is a `KubernetesRun` that asks for nothing.
    ///
    /// # Errors
    /// A sentence that names the type or the member and what to use instead.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Self::Kubernetes(Box::default()));
        }
        let kind = match &value["type"] {
            Value::String(kind) => kind.as_str(),
            other => {
                return Err(format!(
                    "the run config has no type that is text but {other}; use `KubernetesRun` or `UniversalRun`"
                ));
            }
        };
        let broken =
            |error: serde_json::Error| format!("the run config `{kind}` cannot be read: {error}");
        match kind {
            "KubernetesRun" => {
                let run: KubernetesRun = read(value).map_err(broken)?;
                match run.image_pull_policy.as_deref() {
                    None | Some("Always" | "IfNotPresent" | "Never") => {}
                    Some(other) => {
                        return Err(format!(
                            "Invalid image_pull_policy {other:?}: use \"Always\", \"IfNotPresent\" or \"Never\""
                        ));
                    }
                }
                Ok(Self::Kubernetes(Box::new(run)))
            }
            "UniversalRun" => {
                let run: Universal = read(value).map_err(broken)?;
                Ok(Self::Universal {
                    env: run.env.unwrap_or_default(),
                })
            }
            other => Err(format!(
                "the run config has type `{other}`, only `KubernetesRun` and `UniversalRun` are supported"
            )),
        }
    }
}

fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, serde_json::Error> {
    T::deserialize(value)
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
        let error = RunConfig::from_json(&json!({"type": "DockerRun"})).expect_err("refused");
        assert!(
            error.contains("DockerRun") && error.contains("KubernetesRun"),
            "{error}"
        );
        let error =
            RunConfig::from_json(&json!({"type": "KubernetesRun", "image_pull_policy": "always"}))
                .expect_err("refused");
        assert!(error.contains("always"), "{error}");
    }
}
