//! Both servers, and the runs in them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_testkit::{Course, FlowRunSeed, KubernetesApi, PrefectApi};
use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::Options;
use super::agent::Running;
use super::given::Given;

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);
/// Jobs that no controller makes pods for, on a cluster that is not ours.
const SUSPENDED: &str = "\
apiVersion: batch/v1
kind: Job
spec:
  suspend: true
  template:
    spec:
      containers:
      - name: flow
";

/// A Prefect API and a cluster.
pub(super) struct World {
    pub(super) prefect: Arc<PrefectApi>,
    pub(super) cluster: Cluster,
    pub(super) namespace: String,
    pub(super) kubeconfig: PathBuf,
    /// The job template that agents are told to use.
    pub(super) template: Option<PathBuf>,
    dir: tempfile::TempDir,
}

/// Where the Jobs are.
pub(super) enum Cluster {
    /// On the testkit's Kubernetes API.
    Testkit(KubernetesApi),
    /// On the cluster of a kubeconfig.
    Given(Given),
}

impl World {
    /// Servers without runs. With `pods`, Jobs get pods that run for ever and report so; without, and
    /// on a given cluster, Jobs just sit there.
    pub(super) async fn start(options: &Options, pods: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let prefect = Arc::new(PrefectApi::start().await?);
        if let Some(file) = &options.kubeconfig {
            let namespace = format!("prefect-bench-{:08x}", Uuid::new_v4().as_fields().0);
            let template = dir.path().join("suspended.yaml");
            std::fs::write(&template, SUSPENDED)?;
            let kubeconfig = std::path::absolute(file)?;
            return Ok(Self {
                cluster: Cluster::Given(Given::start(&kubeconfig, &namespace).await?),
                prefect,
                namespace,
                kubeconfig,
                template: Some(template),
                dir,
            });
        }
        let reports = prefect.clone();
        let builder = KubernetesApi::builder()
            .history(100_000)
            .course(|_| Course::hangs())
            .on_pod_started(move |attempt| {
                if let Some(run) = attempt.flow_run_id().and_then(|id| id.parse().ok()) {
                    reports.set_state_named(run, "Running", "Running flow.");
                }
            });
        let builder = if pods { builder } else { builder.node_off() };
        let kubernetes = builder.start().await?;
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, kubernetes.kubeconfig_yaml())?;
        Ok(Self {
            prefect,
            cluster: Cluster::Testkit(kubernetes),
            namespace: "default".to_owned(),
            kubeconfig,
            template: None,
            dir,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds runs that have been due for ten minutes, a millisecond after each other.
    pub(super) fn seed(&self, runs: usize) -> Vec<Uuid> {
        let due = Timestamp::now() - SignedDuration::from_mins(10);
        let seed = |n: usize| {
            let start = due + SignedDuration::from_millis(n as i64);
            self.prefect.seed(FlowRunSeed::new().start_time(start))
        };
        (0..runs).map(seed).collect()
    }

    /// Waits until so many Jobs were created.
    pub(super) async fn created(&self, jobs: usize) -> Result<()> {
        match &self.cluster {
            Cluster::Testkit(kubernetes) => {
                let made = |api: &KubernetesApi| api.creation_count() >= jobs;
                kubernetes.wait_until(PATIENCE, made).await?;
            }
            Cluster::Given(given) => given.created(jobs, PATIENCE).await?,
        }
        Ok(())
    }

    /// When the Job of each run was created; an error when a run has more than one.
    pub(super) fn creations(&self) -> Result<HashMap<String, Timestamp>> {
        let (jobs, times) = match &self.cluster {
            Cluster::Testkit(kubernetes) => {
                let jobs = kubernetes.creations();
                let times = jobs
                    .iter()
                    .filter_map(|job| Some((job.flow_run_id()?.to_owned(), job.at)));
                (jobs.len(), times.collect::<HashMap<_, _>>())
            }
            Cluster::Given(given) => given.creations(),
        };
        let doubled = jobs - times.len();
        ensure!(doubled == 0, "{doubled} runs have more than one Job");
        Ok(times)
    }

    /// Waits until the log of each of these runs says that it was submitted, so that everything
    /// that a deployment costs has been spent.
    pub(super) async fn told(&self, runs: &[Uuid]) -> Result<()> {
        let mut left = runs;
        let told = self.prefect.wait_until(PATIENCE, |prefect| {
            while let Some((run, others)) = left.split_first()
                && !prefect.logs(*run).is_empty()
            {
                left = others;
            }
            left.is_empty()
        });
        told.await.context("not every run was told of its Job")
    }

    /// Waits for the first poll.
    pub(super) async fn polled(&self) -> Result<()> {
        let polled = |prefect: &PrefectApi| prefect.request_count("get_runs_in_queue") > 0;
        let polled = self.prefect.wait_until(PATIENCE, polled).await;
        polled.context("the agent did not poll")
    }

    /// The requests that each server got until now, by operation; none are counted on a given cluster.
    pub(super) fn requests(&self) -> (Requests, Option<Requests>) {
        let kubernetes = match &self.cluster {
            Cluster::Testkit(kubernetes) => Some(kubernetes.requests()),
            Cluster::Given(_) => None,
        };
        (self.prefect.requests(), kubernetes)
    }

    /// Deploys this many runs and lets their Jobs run: what supervision works on.
    pub(super) async fn populate(&self, jobs: usize, agent: Running) -> Result<Vec<Uuid>> {
        let runs = self.seed(jobs);
        self.created(jobs).await?;
        self.told(&runs).await?;
        if matches!(self.cluster, Cluster::Given(_)) {
            for run in &runs {
                self.prefect.set_state_named(*run, "Running", "");
            }
        }
        let running = |prefect: &PrefectApi| prefect.count_in_state("Running") >= jobs;
        let running = self.prefect.wait_until(PATIENCE, running).await;
        running.context("the pods did not start")?;
        agent.stop().await?;
        Ok(runs)
    }

    /// Removes what was made on a given cluster.
    pub(super) async fn end(self) -> Result<()> {
        match self.cluster {
            Cluster::Testkit(_) => Ok(()),
            Cluster::Given(given) => given.end().await,
        }
    }
}

/// Counts of requests by operation.
pub(super) type Requests = BTreeMap<String, u64>;

/// How many requests were made between two counts, but for watches that only stay open.
pub(super) fn between(before: &Requests, after: &Requests) -> u64 {
    after.values().sum::<u64>() - before.values().sum::<u64>()
}
