//! Whether a cluster has and allows what the agent needs. Nothing is changed.

use std::time::Duration;

use futures::future::try_join_all;
use http::Request;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, PartialObjectMeta, PostParams};
use serde_json::Value;

use crate::access::Rule;
use crate::error::reason;

/// How long one answer may take. Admission webhooks have up to 30 s.
const ANSWER: Duration = Duration::from_secs(40);

/// Looks at one namespace of a cluster, as whoever the client is.
#[derive(Clone)]
pub struct Probe {
    client: Client,
    namespace: String,
}

/// Whether something is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// Whoever asks may not know.
    Hidden,
}

impl Probe {
    /// Looks at `namespace`.
    pub fn new(client: Client, namespace: impl Into<String>) -> Self {
        Self {
            client,
            namespace: namespace.into(),
        }
    }

    /// Whether the namespace is there.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn namespace(&self) -> Result<Found, String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        found(within(api.get_metadata_opt(&self.namespace)).await)
    }

    /// Whether a service account is there.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn service_account(&self, name: &str) -> Result<Found, String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        found(within(api.get_metadata_opt(name)).await)
    }

    /// Whether a Secret is there; what is in it is not asked for.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn secret(&self, name: &str) -> Result<Found, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        found(within(api.get_metadata_opt(name)).await)
    }

    /// What of `rule` is not allowed; `None` when everything is.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn missing(&self, rule: &Rule) -> Result<Option<Rule>, String> {
        let asked = rule.verbs.iter().map(|verb| self.may(rule, verb));
        let answers = try_join_all(asked).await?;
        let verbs = rule.verbs.iter().zip(answers);
        let verbs: Vec<&'static str> = verbs
            .filter(|(_, may)| !may)
            .map(|(verb, _)| *verb)
            .collect();
        Ok((!verbs.is_empty()).then(|| Rule {
            verbs,
            ..rule.clone()
        }))
    }

    async fn may(&self, rule: &Rule, verb: &str) -> Result<bool, String> {
        let (resource, subresource) = match rule.resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (rule.resource, None),
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(rule.group.to_owned()),
                    namespace: Some(self.namespace.clone()),
                    resource: Some(resource.to_owned()),
                    subresource,
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = within(api.create(&PostParams::default(), &review)).await?;
        let answer = answer.map_err(|error| reason(&error))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Whether the API server, with all that has a say in it, would take a Job.
    ///
    /// # Errors
    /// Why not.
    pub async fn dry_run(&self, manifest: &Value) -> Result<(), String> {
        let path = format!(
            "/apis/batch/v1/namespaces/{}/jobs?dryRun=All",
            self.namespace
        );
        let request = Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(manifest.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        let created = self.client.request::<PartialObjectMeta<Job>>(request);
        let created = within(created).await?;
        created.map(|_| ()).map_err(|error| reason(&error))
    }
}

async fn within<T>(
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<kube::Result<T>, String> {
    let late = |_| {
        format!(
            "the API server did not answer within {} s",
            ANSWER.as_secs()
        )
    };
    tokio::time::timeout(ANSWER, answer).await.map_err(late)
}

fn found<T>(answer: Result<kube::Result<Option<T>>, String>) -> Result<Found, String> {
    match answer? {
        Ok(Some(_)) => Ok(Found::Yes),
        Ok(None) => Ok(Found::No),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Found::Hidden),
        Err(error) => Err(reason(&error)),
    }
}
