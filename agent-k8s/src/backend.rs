//! Kubernetes as a [`JobBackend`].

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent_core::{
    Error, FlowRun, FlowRunId, JobBackend, JobRef, Observation, Result, Submission, async_trait,
};
use futures::stream::BoxStream;
use http::Request;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::error::{classify, is_ambiguous};
use crate::manifest::{self, FLOW_RUN_ID, Manifests};
use crate::observe::{self, Graces};

/// How long one request may take. Admission webhooks have up to 30 s.
const REQUEST: Duration = Duration::from_secs(40);
/// How many names are tried when somebody else's Job has the name of ours.
const SALTS: u32 = 8;

/// Deploys flow runs as Jobs in one namespace.
pub struct KubernetesBackend {
    client: Client,
    jobs: Api<Job>,
    namespace: String,
    manifests: Manifests,
    graces: Graces,
    /// Runs whose Job may have been made by a request that got no answer: when the next attempt
    /// finds it, it was ours.
    unanswered: Mutex<HashSet<FlowRunId>>,
}

impl KubernetesBackend {
    /// Jobs in `namespace`, built by `manifests`.
    pub fn new(client: Client, namespace: impl Into<String>, manifests: Manifests) -> Self {
        let namespace = namespace.into();
        Self {
            jobs: Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            manifests,
            graces: Graces::default(),
            unanswered: Mutex::default(),
        }
    }

    /// How patient it is with Jobs that do not get on.
    #[must_use]
    pub fn with_graces(mut self, graces: Graces) -> Self {
        self.graces = graces;
        self
    }

    /// Creates a Job from a manifest; `false` when there is one of that name already.
    async fn create(&self, run: &FlowRun, name: &str, manifest: &Value) -> Result<bool> {
        let what = || format!("Creating Job {name} in namespace {} failed", self.namespace);
        let body = serde_json::to_vec(manifest)
            .map_err(|error| Error::permanent(format!("{}: {error}", what())))?;
        let request = Request::post(format!("/apis/batch/v1/namespaces/{}/jobs", self.namespace))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| Error::permanent(format!("{}: {error}", what())))?;
        let created = self.client.request::<PartialObjectMeta<Job>>(request);
        match tokio::time::timeout(REQUEST, created).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(kube::Error::Api(status)))
                if status.code == 409 && status.reason == "AlreadyExists" =>
            {
                Ok(false)
            }
            Ok(Err(error)) => {
                if is_ambiguous(&error) {
                    self.unanswered().insert(run.id.clone());
                }
                Err(classify(&what(), &error))
            }
            Err(_) => {
                self.unanswered().insert(run.id.clone());
                Err(Error::transient(format!(
                    "{}: no answer within {} s",
                    what(),
                    REQUEST.as_secs()
                )))
            }
        }
    }

    /// Whether the Job of this name is one of this run; `None` when there is none any more.
    async fn is_ours(&self, run: &FlowRun, name: &str) -> Result<Option<bool>> {
        let found = self
            .timed("Reading a Job", self.jobs.get_metadata_opt(name))
            .await?;
        Ok(found
            .map(|job| job.labels().get(FLOW_RUN_ID).map(String::as_str) == Some(run.id.as_str())))
    }

    async fn timed<T>(
        &self,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(REQUEST, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(classify(
                &format!("{what} in namespace {} failed", self.namespace),
                &error,
            )),
            Err(_) => Err(Error::transient(format!(
                "{what} in namespace {} failed: no answer within {} s",
                self.namespace,
                REQUEST.as_secs()
            ))),
        }
    }

    fn unanswered(&self) -> std::sync::MutexGuard<'_, HashSet<FlowRunId>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl JobBackend for KubernetesBackend {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        for salt in 0..SALTS {
            let identifier = manifest::identifier(&run.attempt, salt);
            let manifest = self.manifests.build(run, &identifier).await?;
            let name = manifest["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if self.create(run, &name, &manifest).await? {
                self.unanswered().remove(&run.id);
                return Ok(Submission {
                    job: name,
                    created: true,
                });
            }
            match self.is_ours(run, &name).await? {
                Some(true) => {
                    let created = self.unanswered().remove(&run.id);
                    return Ok(Submission { job: name, created });
                }
                // It was deleted just now; whoever did that wanted this attempt gone.
                None => {
                    return Err(Error::transient(format!(
                        "Job {name} was deleted while it was looked up"
                    )));
                }
                Some(false) => {}
            }
        }
        Err(Error::permanent(format!(
            "{SALTS} names for the Job of flow run {} are taken by other Jobs in namespace {}",
            run.id, self.namespace
        )))
    }

    async fn jobs(&self, run: &FlowRun) -> Result<Vec<JobRef>> {
        let selector = ListParams::default().labels(&format!("{FLOW_RUN_ID}={}", run.id));
        let listed = self
            .timed("Listing Jobs", self.jobs.list(&selector))
            .await?;
        Ok(listed
            .items
            .iter()
            .map(|job| JobRef {
                name: job.name_any(),
                finished: is_finished(job),
            })
            .collect())
    }

    fn observations(&self) -> BoxStream<'static, Observation> {
        observe::observations(&self.client, &self.namespace, self.graces.clone())
    }

    async fn remember(&self, job: &str, keys: &[String]) -> Result<bool> {
        loop {
            let found = self
                .timed("Reading a Job", self.jobs.get_metadata_opt(job))
                .await?;
            // What is gone cannot be noted, and is told by whoever saw it.
            let Some(found) = found else {
                return Ok(true);
            };
            let noted = found
                .annotations()
                .get(observe::REPORTED)
                .cloned()
                .unwrap_or_default();
            let told = observe::told(&noted);
            let new: Vec<&str> = keys
                .iter()
                .map(String::as_str)
                .filter(|key| !told.contains(*key))
                .collect();
            if new.is_empty() {
                return Ok(false);
            }
            let noted = [noted.as_str(), &new.join(",")].join(",");
            let patch = json!({"metadata": {
                "resourceVersion": found.resource_version(),
                "annotations": {observe::REPORTED: noted.trim_start_matches(',')},
            }});
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let patched = self.jobs.patch_metadata(job, &parameters, &patch);
            match tokio::time::timeout(REQUEST, patched).await {
                Ok(Ok(_)) => return Ok(true),
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(true),
                Ok(Err(error)) => {
                    return Err(classify(&format!("Noting on Job {job} failed"), &error));
                }
                Err(_) => return Err(Error::transient(format!("Noting on Job {job}: no answer"))),
            }
        }
    }

    async fn delete(&self, job: &str) -> Result<()> {
        let parameters = DeleteParams::foreground();
        match tokio::time::timeout(REQUEST, self.jobs.delete(job, &parameters)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(classify(&format!("Deleting Job {job} failed"), &error)),
            Err(_) => Err(Error::transient(format!("Deleting Job {job}: no answer"))),
        }
    }
}

/// Whether a Job has ended, well or not.
fn is_finished(job: &Job) -> bool {
    let conditions = job
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|condition| {
            condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
        })
    })
}
