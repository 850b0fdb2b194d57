//! The servers, the runs in them, and the agent between them.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_testkit::{Attempt, Fault, Faults, FlowRunSeed, KubernetesApi, PodEnd, PrefectApi, Rule};
use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::process::Child;
use uuid::Uuid;

use super::fate::Fate;
use crate::agent;

/// How long after its start its owner cancels a run that is to be cancelled.
const CANCELLED: Duration = Duration::from_secs(2);
/// After this time a run has ended and its Job is gone, retention included.
pub(super) const LIFE: Duration = Duration::from_secs(90);
/// For how long events are kept; a real API server keeps them for an hour.
const EVENTS: SignedDuration = SignedDuration::from_secs(60);
/// The share of requests that go wrong, for each kind of fault.
const FAULTS: f64 = 0.002;

type Fates = Arc<Mutex<HashMap<Uuid, Fate>>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both servers and their runs.
pub(super) struct World {
    prefect: Arc<PrefectApi>,
    pub(super) kubernetes: KubernetesApi,
    fates: Fates,
    /// The runs that are not forgotten yet, oldest first.
    seeded: VecDeque<(Instant, Uuid)>,
    pub(super) runs: usize,
    /// Runs that did not end as they should, or not in time.
    pub(super) astray: Vec<String>,
    dir: TempDir,
}

impl World {
    pub(super) async fn start() -> Result<Self> {
        let faults = |seed| {
            let faults = Faults::new(seed);
            for fault in [Fault::DropBefore, Fault::DropAfter, Fault::status(503)] {
                faults.add(Rule::new("*", fault).probability(FAULTS));
            }
            faults
        };
        let prefect = Arc::new(PrefectApi::builder().faults(faults(1)).start().await?);
        let fates = Fates::default();
        let kubernetes = cluster(&prefect, &fates).faults(faults(2)).start().await?;
        let dir = tempfile::Builder::new().prefix("soak").tempdir()?;
        std::fs::write(dir.path().join("kubeconfig"), kubernetes.kubeconfig_yaml())?;
        Ok(Self {
            prefect,
            kubernetes,
            fates,
            seeded: VecDeque::new(),
            runs: 0,
            astray: Vec::new(),
            dir,
        })
    }

    /// Starts an agent that serves its metrics at this port.
    pub(super) fn start_agent(&self, binary: &Path, port: u16) -> Result<Child> {
        let kubeconfig = self.dir.path().join("kubeconfig");
        let mut call = agent::start(binary, &self.prefect.url(), &kubeconfig);
        call.args(["--agent-address", &format!("http://127.0.0.1:{port}")])
            .args(["--keep-failed-jobs", "20s", "--keep-succeeded-jobs", "5s"])
            .args(["--cancel-grace", "5s"])
            // Some images come at the second attempt.
            .args(["--image-pull-grace", "10s"])
            .env("HOME", self.dir.path());
        agent::spawn(&mut call, &self.output())
    }

    /// What the agent writes.
    pub(super) fn output(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    /// Leaves what the agent wrote on the disk.
    pub(super) fn keep(self) -> PathBuf {
        self.dir.keep()
    }

    /// Adds a run that is due now.
    pub(super) fn seed(&mut self) {
        let (id, fate) = (Uuid::new_v4(), Fate::of(self.runs));
        // Before the run, which may be deployed at once.
        lock(&self.fates).insert(id, fate);
        let seed = FlowRunSeed::new().id(id).run_config(fate.run_config());
        self.prefect.seed(seed);
        self.seeded.push_back((Instant::now(), id));
        self.runs += 1;
    }

    /// Forgets runs that are so old, after a look at how they ended, and old events, so that the servers
    /// stay as large as they are.
    pub(super) fn forget(&mut self, age: Duration) {
        while let Some((since, id)) = self.seeded.front().copied()
            && since.elapsed() >= age
        {
            self.seeded.pop_front();
            let expected = lock(&self.fates).remove(&id).map(Fate::end);
            let state = self.prefect.state(id);
            if state.as_deref() != expected {
                let [state, expected] =
                    [state.as_deref(), expected].map(|state| state.unwrap_or("nowhere"));
                self.astray
                    .push(format!("run {id} is {state} instead of {expected}"));
            }
            self.prefect.remove(id);
        }
        let before = Timestamp::now() - EVENTS;
        for event in self.kubernetes.events() {
            let metadata = event.metadata;
            let made = metadata.creation_timestamp.map(|time| time.0);
            if let (Some(namespace), Some(name)) = (metadata.namespace, metadata.name)
                && made.is_some_and(|made| made < before)
            {
                self.kubernetes.remove("events", &namespace, &name);
            }
        }
    }

    /// Waits until every run has ended and every Job is gone.
    pub(super) async fn rest(&mut self) -> Result<()> {
        let (prefect, kubernetes) = (&self.prefect, &self.kubernetes);
        let ended = |id: &Uuid| prefect.run(*id).is_none_or(|run| run.is_finished());
        let rested = prefect.wait_until(LIFE, |_| {
            kubernetes.count("jobs") == 0 && self.seeded.iter().all(|(_, id)| ended(id))
        });
        rested.await.with_context(|| {
            let left = self.seeded.iter().filter(|(_, id)| !ended(id)).count();
            let jobs = kubernetes.count("jobs");
            format!("{left} runs have not ended after {LIFE:?}, and {jobs} Jobs are left")
        })
    }
}

/// A cluster whose pods take their run's fate, and report as flows do.
fn cluster(
    prefect: &Arc<PrefectApi>,
    fates: &Fates,
) -> agent_testkit::kubernetes::KubernetesApiBuilder {
    let run = |attempt: &Attempt| attempt.flow_run_id().and_then(|id| id.parse::<Uuid>().ok());
    let of = |fates: &Fates, run: &Uuid| lock(fates).get(run).copied();
    let (started, ended) = (prefect.clone(), prefect.clone());
    let (starting, planned) = (fates.clone(), fates.clone());
    KubernetesApi::builder()
        .course(move |attempt| {
            let fate = run(attempt).and_then(|run| of(&planned, &run));
            fate.unwrap_or(Fate::Succeeds).course(attempt)
        })
        .on_pod_started(move |attempt| {
            let Some(run) = run(attempt) else { return };
            started.set_state_named(run, "Running", "Running flow.");
            if of(&starting, &run) == Some(Fate::IsCancelled) {
                let prefect = started.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(CANCELLED).await;
                    prefect.set_state_named(run, "Cancelled", "Its owner cancelled it.");
                });
            }
        })
        .on_pod_finished(move |attempt, end| {
            if let (Some(run), PodEnd::Succeeded) = (run(attempt), end) {
                ended.set_state_named(run, "Success", "All reference tasks succeeded.");
            }
        })
}
