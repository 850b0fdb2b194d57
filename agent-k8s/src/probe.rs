//! Whether a cluster has and allows what the agent needs. Nothing is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;
use http::{HeaderValue, Request};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{self as core, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::client::Body;
use kube::core::Status;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::access::Rule;
use crate::error::reason;
use crate::reads::reads;

/// How long one answer may take. Admission webhooks have up to 30 s.
const ANSWER: Duration = Duration::from_secs(40);
/// The types of Secrets with which the kubelet pulls images.
const PULL_TYPES: [&str; 2] = ["kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"];

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
    /// It is, and is of no use: why.
    Unfit(String),
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

    /// Whether the namespace is there, and is to stay.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn namespace(&self) -> Result<Found, String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = within(api.get_metadata_opt(&self.namespace)).await?;
        judge(found, |namespace| {
            let ends = namespace.metadata.deletion_timestamp.is_some();
            ends.then(|| "is being deleted".to_owned())
        })
    }

    /// Whether a service account is there.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn service_account(&self, name: &str) -> Result<Found, String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        judge(within(api.get_metadata_opt(name)).await?, |_| None)
    }

    /// Whether a Secret is there, and of a type with which images are pulled.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn pull_secret(&self, name: &str) -> Result<Found, String> {
        judge(self.secret(name).await?, |secret| {
            let kind = secret.kind.as_deref().unwrap_or_default();
            (!PULL_TYPES.contains(&kind))
                .then(|| format!("is of type {kind:?}, with which no image is pulled"))
        })
    }

    /// Whether a Secret is there, and has a key.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn secret_with(&self, name: &str, key: &str) -> Result<Found, String> {
        judge(self.secret(name).await?, |secret| {
            let keys: Vec<&str> = secret.data.keys().map(String::as_str).collect();
            (!secret.data.contains_key(key)).then(|| match keys.as_slice() {
                [] => format!("is empty, without a key {key}"),
                _ => format!("has no key {key}, but {}", keys.join(", ")),
            })
        })
    }

    async fn secret(&self, name: &str) -> Result<kube::Result<Option<Secret>>, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        within(api.get_opt(name)).await
    }

    /// What of `rule` is not allowed; `None` when everything is.
    ///
    /// # Errors
    /// What the API server said instead.
    pub async fn missing(&self, rule: &Rule) -> Result<Option<Rule>, String> {
        let names = match rule.names.is_empty() {
            true => vec![None],
            false => rule.names.iter().map(Some).collect(),
        };
        let asked = rule.verbs.iter().map(|verb| {
            let each = names.iter().map(|name| self.may(rule, verb, name.cloned()));
            try_join_all(each)
        });
        let answers = try_join_all(asked).await?.into_iter();
        let answers = answers.map(|answers| answers.into_iter().all(|may| may));
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

    async fn may(&self, rule: &Rule, verb: &str, name: Option<String>) -> Result<bool, String> {
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
                    name,
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

    /// Whether the API server, with all that has a say in it, would take a Job; of what it warns.
    ///
    /// # Errors
    /// Why not.
    pub async fn dry_run(&self, manifest: &Value) -> Result<Vec<String>, String> {
        let path = format!(
            "/apis/batch/v1/namespaces/{}/jobs?dryRun=All",
            self.namespace
        );
        let request = Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(manifest.to_string().into_bytes()))
            .map_err(|error| error.to_string())?;
        // Only the whole answer has its warnings.
        let answer = async {
            let (head, body) = self.client.send(request).await?.into_parts();
            kube::Result::Ok((head, body.collect_bytes().await?))
        };
        let (head, body) = within(answer).await?.map_err(|error| reason(&error))?;
        if head.status.is_success() {
            let warnings = head.headers.get_all(http::header::WARNING).into_iter();
            return Ok(warnings.filter_map(warning).collect());
        }
        let status = serde_json::from_slice(&body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&body);
            Status::failure(text.trim(), "no Status").with_code(head.status.as_u16())
        });
        Err(reason(&kube::Error::Api(status.boxed())))
    }
}

/// The text of a warning: `299 - "what it says"`.
fn warning(header: &HeaderValue) -> Option<String> {
    let (_, text) = header.to_str().ok()?.split_once('"')?;
    let (text, _) = text.rsplit_once('"')?;
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(plain)
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

/// What an answer says of an object; `flaw` is why one that is there is of no use.
fn judge<T>(
    answer: kube::Result<Option<T>>,
    flaw: impl FnOnce(&T) -> Option<String>,
) -> Result<Found, String> {
    match answer {
        Ok(Some(object)) => Ok(flaw(&object).map_or(Found::Yes, Found::Unfit)),
        Ok(None) => Ok(Found::No),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Found::Hidden),
        Err(error) => Err(reason(&error)),
    }
}

/// A Secret without its values, which are passed over as it is read.
#[derive(Debug, Clone, Deserialize)]
struct Secret {
    metadata: ObjectMeta,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    data: BTreeMap<String, IgnoredAny>,
}

reads!(Secret, core::Secret);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::json;

    use super::*;

    async fn tried(status: u16, warnings: &[&str], body: &str) -> Result<Vec<String>, String> {
        let mut answer = http::Response::builder().status(status);
        for warning in warnings {
            answer = answer.header(http::header::WARNING, *warning);
        }
        let answer = answer.body(Body::from(body.as_bytes().to_vec()));
        let mut answer = Some(answer.expect("an answer"));
        let server = tower::service_fn(move |_: Request<Body>| {
            let answer = answer.take().expect("one request");
            async { Ok::<_, Infallible>(answer) }
        });
        let client = Client::new(server, "flows");
        Probe::new(client, "flows").dry_run(&json!({})).await
    }

    #[tokio::test]
    async fn a_dry_run_tells_the_servers_warnings_in_its_words() {
        let warnings = [
            r#"299 - "would violate PodSecurity \"restricted:latest\": runAsNonRoot != true""#,
            r#"299 - "second""#,
        ];
        let told = tried(201, &warnings, "{}").await.expect("taken");
        assert_eq!(
            told,
            [
                r#"would violate PodSecurity "restricted:latest": runAsNonRoot != true"#,
                "second"
            ]
        );
        assert_eq!(tried(201, &[], "{}").await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn a_refusal_of_a_dry_run_is_told_whether_or_not_it_is_a_status() {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422,
            "reason": "Invalid", "message": "spec: no",
        });
        let told = tried(422, &[], &status.to_string()).await;
        assert_eq!(told, Err("422 Invalid: spec: no".to_owned()));
        let told = tried(502, &[], "<h1>Bad Gateway</h1>")
            .await
            .expect_err("refused");
        assert!(
            told.contains("502") && told.contains("Bad Gateway"),
            "{told}"
        );
    }
}
