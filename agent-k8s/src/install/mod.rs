//! The agent's own objects in a cluster: what `kubectl apply` needs to run it, as a pure function
//! of a few choices. The same choices give the same objects in the same order.

mod deployment;
mod extras;
mod names;

pub use self::names::subdomain as check_name;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::access;
use crate::manifest::KeySecret;

/// The usual name of the agent's objects, which is that of the Python agent's Deployment.
pub const NAME: &str = "prefect-agent";
/// The variable that holds the API key, and the key under which a Secret holds it.
pub const API_KEY: &str = "PREFECT__CLOUD__API_KEY";
/// The port of the agent's HTTP endpoint.
pub const PORT: u16 = 8080;
/// Where the agent keeps what a crash of its container must not take away.
pub const STATE_DIR: &str = "/var/run/prefect-agent";
/// Where the agent's job template is mounted.
pub const TEMPLATE_DIR: &str = "/etc/prefect-agent/template";

/// What an agent in a cluster is to be like.
#[derive(Debug, Clone)]
pub struct Install {
    /// The name of all its objects.
    pub name: String,
    /// The namespace of the agent itself.
    pub agent_namespace: String,
    /// The namespace of the Jobs.
    pub namespace: String,
    /// The image with its tag.
    pub image: String,
    /// What follows `start` on the command line.
    pub args: Vec<String>,
    /// Environment variables besides the key, in this order.
    pub env: Vec<(String, String)>,
    /// Where the API key comes from, if there is one.
    pub key: Option<Key>,
    /// Secrets for pulling the agent's image.
    pub image_pull_secrets: Vec<String>,
    /// A service account that exists already; without it the agent gets one of its own.
    pub service_account: Option<String>,
    /// Whether the agent is given the permissions that it needs.
    pub rbac: bool,
    /// The Lease that its replicas share, to tell which of them supervises.
    pub lease: String,
    /// How many agents.
    pub replicas: i32,
    /// A ConfigMap that holds the agent's job template.
    pub job_template: Option<ConfigMapKey>,
    /// Whether evictions spare all replicas but one at a time.
    pub pod_disruption_budget: bool,
    /// Whether the agent's traffic is limited; to these TCP ports besides those of DNS.
    pub network_policy: Option<Vec<u16>>,
    /// Whether the Prometheus operator is told where the metrics are.
    pub service_monitor: bool,
}

/// Where the agent's API key comes from.
#[derive(Debug, Clone)]
pub enum Key {
    /// A Secret of the agent's own, with this key.
    Own(SecretString),
    /// A Secret that exists already.
    Existing(KeySecret),
}

/// A key of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    pub name: String,
    /// The key in its data.
    pub key: String,
}

impl Install {
    /// The objects, in the order in which they are to be created.
    ///
    /// # Errors
    /// Which name cannot be one, and why.
    pub fn objects(&self) -> Result<Vec<Value>, String> {
        self.check_names()?;
        let mut objects = Vec::new();
        if self.service_account.is_none() {
            objects.push(typed(&self.own_service_account()));
        }
        if let Some(Key::Own(key)) = &self.key {
            objects.push(typed(&self.secret(key)));
        }
        if self.rbac {
            let mut role = access::role(&self.name, &self.namespace, &access::rules(&self.lease));
            role.metadata = self.metadata(&self.namespace);
            objects.push(typed(&role));
            objects.push(typed(&self.role_binding()));
        }
        objects.push(typed(&self.deployment()));
        if self.pod_disruption_budget {
            objects.push(typed(&self.disruption_budget()));
        }
        if let Some(ports) = &self.network_policy {
            objects.push(typed(&self.network_policy(ports)));
        }
        if self.service_monitor {
            objects.push(typed(&self.service()));
            objects.push(self.monitor());
        }
        Ok(objects)
    }

    /// The service account that the agent's pods run under.
    pub fn service_account_name(&self) -> &str {
        self.service_account.as_deref().unwrap_or(&self.name)
    }

    fn metadata(&self, namespace: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(namespace.to_owned()),
            labels: Some(self.labels()),
            ..ObjectMeta::default()
        }
    }

    /// What the agent's pods are selected by. It is what the Python agent's Deployment selects by,
    /// which cannot be changed: so one can be applied over the other.
    fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("app".to_owned(), self.name.clone())])
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        let common = [
            ("app.kubernetes.io/name", NAME),
            ("app.kubernetes.io/instance", &self.name),
        ];
        labels.extend(common.map(|(key, value)| (key.to_owned(), value.to_owned())));
        labels
    }

    fn own_service_account(&self) -> ServiceAccount {
        ServiceAccount {
            metadata: self.metadata(&self.agent_namespace),
            ..ServiceAccount::default()
        }
    }

    fn secret(&self, key: &SecretString) -> Secret {
        let data = [(API_KEY.to_owned(), key.expose_secret().to_owned())];
        Secret {
            metadata: self.metadata(&self.agent_namespace),
            string_data: Some(data.into()),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }

    fn role_binding(&self) -> RoleBinding {
        RoleBinding {
            metadata: self.metadata(&self.namespace),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "Role".to_owned(),
                name: self.name.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: self.service_account_name().to_owned(),
                namespace: Some(self.agent_namespace.clone()),
                ..Subject::default()
            }]),
        }
    }
}

fn typed(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("Kubernetes' types are JSON objects with text for keys")
}

#[cfg(test)]
mod tests;
