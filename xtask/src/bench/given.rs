//! A cluster that is there already: a namespace of its own in it, and a watch over the Jobs there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The label by which the Job of a flow run is found.
const FLOW_RUN_LABEL: &str = "prefect.io/flow_run_id";
/// The label by which the namespaces of a benchmark are found, and its value: this process.
const OWNER_LABEL: &str = "prefect-bench";
static OWNER: LazyLock<String> = LazyLock::new(|| Uuid::new_v4().to_string());

/// A namespace in a cluster.
pub(super) struct Given {
    client: Client,
    namespace: String,
    seen: Arc<Seen>,
    watch: JoinHandle<()>,
}

/// The Jobs that were seen: by name, the run and when it was seen first.
#[derive(Default)]
struct Seen {
    jobs: Mutex<HashMap<String, (String, Timestamp)>>,
    more: tokio::sync::Notify,
}

/// Deletes the namespaces of measurements that did not come to their end.
pub(super) async fn delete_unfinished(kubeconfig: &Path) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client(kubeconfig).await?);
    let which = ListParams::default().labels(&format!("{OWNER_LABEL}={}", *OWNER));
    for namespace in namespaces.list(&which).await? {
        let (name, how) = (namespace.name_any(), DeleteParams::background());
        let deleted = namespaces.delete(&name, &how).await;
        deleted.with_context(|| format!("cannot delete the namespace {name}"))?;
    }
    Ok(())
}

/// A client for the current context of a kubeconfig.
pub(super) async fn client(kubeconfig: &Path) -> Result<Client> {
    let shown = kubeconfig.display();
    let config = Kubeconfig::read_from(kubeconfig);
    let config = config.with_context(|| format!("cannot read the kubeconfig {shown}"))?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    let config = config.with_context(|| format!("the kubeconfig {shown} names no cluster"))?;
    Ok(Client::try_from(config)?)
}

impl Given {
    /// Makes the namespace and begins to watch.
    pub(super) async fn start(kubeconfig: &Path, namespace: &str) -> Result<Self> {
        let client = client(kubeconfig).await?;
        let labels = json!({OWNER_LABEL: *OWNER});
        let object = json!({"metadata": {"name": namespace, "labels": labels}});
        let object = serde_json::from_value(object)?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let made = namespaces.create(&PostParams::default(), &object).await;
        made.with_context(|| format!("cannot create the namespace {namespace}"))?;
        let seen = Arc::new(Seen::default());
        let watch = tokio::spawn(watch(
            Api::namespaced(client.clone(), namespace),
            seen.clone(),
        ));
        Ok(Self {
            client,
            namespace: namespace.to_owned(),
            seen,
            watch,
        })
    }

    /// Waits until so many Jobs were seen.
    pub(super) async fn created(&self, jobs: usize, patience: Duration) -> Result<()> {
        let wait = async {
            loop {
                let more = self.seen.more.notified();
                if self.seen.jobs().len() >= jobs {
                    return;
                }
                more.await;
            }
        };
        let done = tokio::time::timeout(patience, wait).await;
        done.context("the Jobs were not created in time")
    }

    /// How many Jobs were seen, and when the Job of each run was.
    pub(super) fn creations(&self) -> (usize, HashMap<String, Timestamp>) {
        let jobs = self.seen.jobs();
        (jobs.len(), jobs.values().cloned().collect())
    }

    /// Deletes the Job of a run.
    pub(super) async fn delete(&self, run: &str) -> Result<()> {
        let name = {
            let jobs = self.seen.jobs();
            let found = jobs.iter().find(|(_, (of, _))| of == run);
            found.map(|(name, _)| name.clone())
        };
        let name = name.with_context(|| format!("no Job of the run {run} was seen"))?;
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &self.namespace);
        jobs.delete(&name, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Deletes everything again.
    pub(super) async fn end(self) -> Result<()> {
        self.watch.abort();
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &self.namespace);
        let (how, which) = (DeleteParams::background(), ListParams::default());
        jobs.delete_collection(&how, &which).await?;
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(&self.namespace, &how).await?;
        Ok(())
    }
}

impl Seen {
    fn jobs(&self) -> MutexGuard<'_, HashMap<String, (String, Timestamp)>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch(jobs: Api<PartialObjectMeta<Job>>, seen: Arc<Seen>) {
    let mut events = watcher::watcher(jobs, watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        if let Ok(watcher::Event::Apply(job) | watcher::Event::InitApply(job)) = event {
            let run = job.labels().get(FLOW_RUN_LABEL).cloned();
            let first = || (run.unwrap_or_default(), Timestamp::now());
            seen.jobs().entry(job.name_any()).or_insert_with(first);
            seen.more.notify_waiters();
        }
    }
}
