//! Kubernetes as a [`JobBackend`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_core::backoff::Backoff;
use agent_core::{
    Error, FlowRun, FlowRunId, JobBackend, JobRef, Result, Sighting, Submission, Turn, Work,
    async_trait,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::Request;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::error::{classify, classify_creation, is_ambiguous};
use crate::lease::Lease;
use crate::manifest::{self, FLOW_RUN_ID, Manifests};
use crate::observe::{self, Graces, Notes, REPORTED};
use crate::output::Output;
use crate::pages::list_all;

/// How long one request may take. Admission webhooks have up to 30 s.
const REQUEST: Duration = Duration::from_secs(40);
/// Runs whose Jobs are asked for in one request: the address of the request names them, and proxies
/// refuse long addresses (8 KB is the usual limit).
const RUNS: usize = 100;
/// After what time a request that got no answer is forgotten. A run that still waits for its Job is
/// submitted again within seconds.
const FORGET: Duration = Duration::from_secs(600);
/// How often something is noted on a Job that others change at the same time.
const NOTES: u32 = 10;
/// Jobs that are remembered from one noting to the next: more than are told of at the same time. Whose
/// noting never ended is among them, so that they are all forgotten when there are more.
const NOTED: usize = 300;
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
    unanswered: Mutex<HashMap<FlowRunId, Instant>>,
    /// Jobs as they were when something was noted on them last, until the noting is finished.
    noted: Mutex<HashMap<String, PartialObjectMeta<Job>>>,
    lease: Option<Arc<Lease>>,
    output: Output,
    keeps_jobs: bool,
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
            noted: Mutex::default(),
            lease: None,
            output: Output::default(),
            keeps_jobs: false,
        }
    }

    /// Says on each Job that it is kept for good, whichever replica supervises.
    #[must_use]
    pub fn with_kept_jobs(mut self, keep: bool) -> Self {
        self.keeps_jobs = keep;
        self
    }

    /// How patient it is with Jobs that do not get on.
    #[must_use]
    pub fn with_graces(mut self, graces: Graces) -> Self {
        self.graces = graces;
        self
    }

    /// Supervises only while it holds the Lease of this name, under an identity that no other
    /// process has; `duration` is how long it holds when it is not renewed, in whole seconds. Another
    /// replica takes over within a quarter more than that. Without a Lease, it takes itself for the only replica.
    #[must_use]
    pub fn with_lease(
        mut self,
        name: impl Into<String>,
        identity: impl Into<String>,
        duration: Duration,
    ) -> Self {
        let lease = Lease::new(
            self.client.clone(),
            &self.namespace,
            name,
            identity,
            duration,
        );
        self.lease = Some(Arc::new(lease));
        self
    }

    /// How many of the last lines that a failed container printed go into the flow run's log; none
    /// with 0. Default: 50.
    #[must_use]
    pub fn with_output_lines(mut self, lines: u16) -> Self {
        self.output.lines = lines;
        self
    }

    /// Sends a manifest for a Job to be created, or only to be looked at with `query`. Returns what
    /// went wrong as kube has it, or nothing if there was no answer in time.
    async fn post(
        &self,
        manifest: &Value,
        query: &str,
    ) -> Result<Result<PartialObjectMeta<Job>, kube::Error>, Error> {
        let namespace = &self.namespace;
        let unusable = |error: &dyn std::fmt::Display| {
            Error::permanent(format!("Creating a Job in namespace {namespace}: {error}"))
        };
        let body = serde_json::to_vec(manifest).map_err(|error| unusable(&error))?;
        let address = format!("/apis/batch/v1/namespaces/{namespace}/jobs{query}");
        let request = Request::post(address)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| unusable(&error))?;
        let created = self.client.request::<PartialObjectMeta<Job>>(request);
        match tokio::time::timeout(REQUEST, created).await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(Error::unclear(format!(
                "Creating a Job in namespace {namespace}: no answer within {} s",
                REQUEST.as_secs()
            ))),
        }
    }

    /// Creates a Job from a manifest; `false` when there is one of that name already.
    async fn create(&self, run: &FlowRun, name: &str, manifest: &Value) -> Result<bool> {
        let what = || format!("Creating Job {name} in namespace {} failed", self.namespace);
        match self.post(manifest, "").await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(kube::Error::Api(status)))
                if status.code == 409 && status.reason == "AlreadyExists" =>
            {
                Ok(false)
            }
            Ok(Err(error)) => {
                if is_ambiguous(&error) {
                    self.got_no_answer(run);
                }
                Err(classify_creation(&what(), &error))
            }
            Err(error) => {
                self.got_no_answer(run);
                Err(error)
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

    /// Changes what is noted on a Job, unless somebody else changes it at the same time, and then
    /// again; `None` when the Job is gone.
    async fn note<T>(&self, job: &str, change: impl Fn(&mut Notes) -> T) -> Result<Option<T>> {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        for _ in 0..NOTES {
            let known = self.noted().remove(job);
            let found = match known {
                Some(known) => Some(known),
                None => {
                    self.timed("Reading a Job", self.jobs.get_metadata_opt(job))
                        .await?
                }
            };
            let Some(found) = found else {
                return Ok(None);
            };
            let annotation = found.annotations().get(REPORTED).map(String::as_str);
            let before = annotation.unwrap_or_default();
            let mut notes = Notes::of(before);
            let done = change(&mut notes);
            let after = notes.write();
            if after == before {
                return Ok(Some(done));
            }
            let patch = json!({"metadata": {
                "resourceVersion": found.resource_version(),
                "annotations": {REPORTED: after},
            }});
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let patched = self.jobs.patch_metadata(job, &parameters, &patch);
            match tokio::time::timeout(REQUEST, patched).await {
                Ok(Ok(patched)) => {
                    let mut noted = self.noted();
                    if noted.len() >= NOTED {
                        noted.clear();
                    }
                    noted.insert(job.to_owned(), patched);
                    return Ok(Some(done));
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    tokio::time::sleep(backoff.pause(None)).await;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(None),
                Ok(Err(error)) => {
                    return Err(classify(&format!("Noting on Job {job} failed"), &error));
                }
                Err(_) => return Err(Error::transient(format!("Noting on Job {job}: no answer"))),
            }
        }
        Err(Error::transient(format!(
            "Noting on Job {job} failed: it changes all the time"
        )))
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, HashMap<String, PartialObjectMeta<Job>>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn got_no_answer(&self, run: &FlowRun) {
        let mut unanswered = self.unanswered();
        unanswered.retain(|_, since| since.elapsed() < FORGET);
        unanswered.insert(run.id.clone(), Instant::now());
    }

    fn unanswered(&self) -> std::sync::MutexGuard<'_, HashMap<FlowRunId, Instant>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl JobBackend for KubernetesBackend {
    async fn preflight(&self) -> Result<()> {
        let work = Work::Flow(Box::default());
        let run = FlowRun::new("preflight", "preflight", work);
        let identifier = manifest::identifier(&run.attempt, 0);
        let manifest = self.manifests.build(&run, &identifier).await?;
        let tried = self.post(&manifest, "?dryRun=All").await?;
        drop(manifest);
        // Without a look at the Jobs there are, none may be created.
        self.jobs(&[run.id]).await?;
        tried.map(|_| ()).map_err(|error| {
            let what = format!("Trying to create a Job in namespace {}", self.namespace);
            classify_creation(&what, &error)
        })
    }

    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        for salt in 0..SALTS {
            let identifier = manifest::identifier(&run.attempt, salt);
            let mut manifest = self.manifests.build(run, &identifier).await?;
            if self.keeps_jobs {
                manifest.keep();
            }
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
                    let created = self.unanswered().remove(&run.id).is_some();
                    return Ok(Submission { job: name, created });
                }
                // It was deleted just now; whoever did that wanted this attempt gone.
                None => {
                    return Err(Error::unclear(format!(
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

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        let mut found: HashMap<FlowRunId, Vec<JobRef>> = HashMap::new();
        for runs in runs.chunks(RUNS) {
            let ids: Vec<&str> = runs.iter().map(FlowRunId::as_str).collect();
            let selector = format!("{FLOW_RUN_ID} in ({})", ids.join(","));
            // Without a resource version: the API server asks its storage, and not its cache.
            let selector = ListParams::default().labels(&selector);
            let listing = list_all(&self.jobs, &selector, |job| {
                let Some(run) = job.labels().get(FLOW_RUN_ID) else {
                    return;
                };
                found.entry(run.as_str().into()).or_default().push(JobRef {
                    name: job.name_any(),
                    // One that is being deleted will do nothing more for its run.
                    finished: is_finished(&job) || job.metadata.deletion_timestamp.is_some(),
                });
            });
            self.timed("Listing Jobs", listing).await?;
        }
        Ok(found)
    }

    fn is_of(&self, job: &str, attempt: &str) -> bool {
        let mut salts = 0..SALTS;
        salts.any(|salt| job.ends_with(&manifest::identifier(attempt, salt)))
    }

    async fn stands(&self, job: &str, key: &str) -> Result<bool> {
        let looking = observe::stands(&self.client, &self.namespace, job, key);
        self.timed("Looking at a Job again", looking).await
    }

    fn observations(&self) -> BoxStream<'static, Sighting> {
        let labels = self.manifests.labels();
        observe::sightings(&self.client, &self.namespace, labels, self.graces.clone())
    }

    fn leadership(&self) -> BoxStream<'static, bool> {
        match &self.lease {
            Some(lease) => lease.clone().leadership(),
            None => stream::iter([true]).chain(stream::pending()).boxed(),
        }
    }

    async fn resign(&self) {
        if let Some(lease) = &self.lease {
            lease.release().await;
        }
    }

    async fn begin_telling(
        &self,
        job: &str,
        keys: &[String],
        teller: &str,
        take_over: bool,
    ) -> Result<Vec<Turn>> {
        let turns = self.note(job, |notes| notes.begin(keys, teller, take_over));
        Ok(turns
            .await?
            .unwrap_or_else(|| vec![Turn::Unknown; keys.len()]))
    }

    async fn told(&self, job: &str, keys: &[String]) -> Result<()> {
        self.note(job, |notes| notes.end(keys)).await?;
        self.noted().remove(job);
        Ok(())
    }

    async fn output(&self, process: &str) -> Result<Option<String>> {
        match process.split_once('/') {
            Some((pod, container)) if self.output.lines > 0 => {
                self.output
                    .read(&self.client, &self.namespace, pod, container)
                    .await
            }
            _ => Ok(None),
        }
    }

    async fn delete(&self, job: &str) -> Result<()> {
        let parameters = DeleteParams::foreground();
        match tokio::time::timeout(REQUEST, self.jobs.delete(job, &parameters)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Error::transient(
                format!("Deleting Job {job} failed: {}", status.message),
            )),
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

#[cfg(test)]
mod tests {
    use agent_core::{Template, TemplateOrigin, TemplateStore};
    use http::Response;
    use kube::client::Body;

    use super::*;
    use crate::manifest::ManifestSettings;

    struct NoTemplates;

    #[async_trait]
    impl TemplateStore for NoTemplates {
        async fn load(&self, location: &str, _: TemplateOrigin) -> Result<Arc<Template>> {
            Err(Error::permanent(format!("no template {location}")))
        }
    }

    /// A backend on an API server that has this answer to everything.
    fn answered(code: u16, body: Value) -> KubernetesBackend {
        let server = tower::service_fn(move |_: Request<Body>| {
            let body = serde_json::to_vec(&body).expect("JSON");
            let answer = Response::builder().status(code).body(Body::from(body));
            std::future::ready(answer)
        });
        let manifests = Manifests::new(ManifestSettings::default(), Arc::new(NoTemplates));
        KubernetesBackend::new(Client::new(server, "flows"), "flows", manifests)
    }

    fn status(code: u16) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "so"})
    }

    #[tokio::test]
    async fn tellings_that_never_end_fill_no_memory() {
        let backend = answered(200, json!({"metadata": {"name": "job"}}));
        for n in 0..NOTED * 2 {
            let (job, keys) = (format!("job-{n}"), ["p1".to_owned()]);
            let turns = backend.begin_telling(&job, &keys, "teller", false).await;
            assert_eq!(turns, Ok(vec![Turn::Ours]));
            assert!((1..=NOTED).contains(&backend.noted().len()));
        }
    }

    #[tokio::test]
    async fn nobody_knows_who_was_to_tell_of_a_job_that_is_gone() {
        let mut gone = status(404);
        gone["reason"] = json!("NotFound");
        let (backend, keys) = (answered(404, gone), ["p1".to_owned()]);
        let turns = backend.begin_telling("job", &keys, "teller", false).await;
        assert_eq!(turns, Ok(vec![Turn::Unknown]));
    }

    #[tokio::test]
    async fn a_job_is_deleted_when_it_is_gone_and_not_when_that_was_a_conflict() {
        let deleted = async |code| answered(code, status(code)).delete("job").await;
        assert!(deleted(404).await.is_ok());
        assert!(deleted(409).await.is_err_and(|error| error.is_transient()));
        let denied = deleted(403).await;
        assert!(matches!(denied, Err(Error::Agent(_))), "{denied:?}");
    }
}
