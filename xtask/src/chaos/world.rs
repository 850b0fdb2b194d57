//! The two servers, and what strikes them and the replicas.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_testkit::kubernetes::Attempt;
use agent_testkit::{Fault, Faults, FlowRunSeed, KubernetesApi, PodEnd, PrefectApi, Rule};
use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;

use super::plan::{Blow, Kind, Plan};
use super::poison;
use super::replica::Replicas;
use super::templates::TemplateServer;

/// How long a run has been Submitted that is scheduled again: the server's service waits for ten
/// minutes; here it is so long that no request which belongs to the claim is under way any more.
const LAZARUS: Duration = Duration::from_secs(6);

/// What was seen of the pods of runs.
#[derive(Default)]
pub(super) struct Pods {
    /// How many are running now, by run.
    running: HashMap<Uuid, usize>,
    /// How many ran at the same time at the most.
    pub(super) most: BTreeMap<Uuid, usize>,
}

/// The servers and the runs in them.
pub(super) struct World {
    pub(super) prefect: Arc<PrefectApi>,
    pub(super) kubernetes: KubernetesApi,
    /// The runs, in the order of the plan.
    pub(super) runs: Vec<Uuid>,
    /// The bad runs, in the order of the plan.
    pub(super) bad: Vec<Uuid>,
    /// When the plan began.
    pub(super) began: Timestamp,
    pub(super) pods: Arc<Mutex<Pods>>,
    /// Runs that were scheduled again, and may have ended one way or the other.
    pub(super) rescheduled: Mutex<Vec<Uuid>>,
    dir: TempDir,
    _templates: TemplateServer,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_of(attempt: &Attempt) -> Option<Uuid> {
    attempt.flow_run_id()?.parse().ok()
}

impl World {
    /// Servers with the plan's runs and faults.
    pub(super) async fn build(plan: &Plan) -> Result<Self> {
        let faults = || {
            let faults = Faults::new(plan.seed);
            for fault in [
                Fault::DropBefore,
                Fault::DropAfter,
                Fault::Truncate,
                Fault::status(500),
                Fault::status(503),
                Fault::too_many_requests(1),
                Fault::Latency(Duration::from_millis(700)),
            ] {
                faults.add(Rule::new("*", fault).probability(plan.faults));
            }
            faults
        };
        let prefect = PrefectApi::builder().seed(plan.seed).faults(faults());
        let prefect = Arc::new(prefect.start().await?);
        let now = Timestamp::now();
        let mut runs = Vec::new();
        let mut courses = HashMap::new();
        for run in &plan.runs {
            let due = now + SignedDuration::try_from(run.due)?;
            let template = json!({"spec": {"backoffLimit": 0, "template": {"spec": {
                "containers": [{"name": "flow"}]}}}});
            let seed = FlowRunSeed::new()
                .start_time(due)
                .run_config(json!({"type": "KubernetesRun", "job_template": template}));
            let id = prefect.seed(seed);
            courses.insert(id, run.course.clone());
            runs.push(id);
        }
        let templates = TemplateServer::start().await?;
        let mut bad_runs = Vec::new();
        for bad in &plan.bad {
            let due = now + SignedDuration::try_from(bad.due)?;
            let mut run_config = bad.run_config.clone();
            if let Some(path) = &bad.template_path {
                run_config["job_template_path"] = json!(format!("{}{path}", templates.url));
            }
            let state = json!({
                "type": "Scheduled", "message": "", "start_time": due.to_string(),
                "context": bad.context,
            });
            let seed = FlowRunSeed::new().start_time(due).run_config(run_config);
            let id = prefect.seed(seed.state(state));
            courses.insert(id, bad.course.clone());
            bad_runs.push(id);
        }
        let pods = Arc::<Mutex<Pods>>::default();
        let (started, ended) = (prefect.clone(), prefect.clone());
        let (starting, ending) = (pods.clone(), pods.clone());
        let fallback = agent_testkit::Course::succeeds_after(Duration::ZERO);
        let kubernetes = KubernetesApi::builder()
            .seed(plan.seed)
            .faults(faults())
            .admission(|job, _| poison::verdict(job))
            .course(move |attempt| {
                let course = run_of(attempt).and_then(|run| courses.get(&run));
                course.unwrap_or(&fallback).clone()
            })
            .on_pod_started(move |attempt| {
                if let Some(run) = run_of(attempt) {
                    lock(&starting).start(run);
                    started.set_state_named(run, "Running", "");
                }
            })
            .on_pod_finished(move |attempt, end| {
                if let Some(run) = run_of(attempt) {
                    lock(&ending).end(run);
                    if *end == PodEnd::Succeeded {
                        ended.set_state_named(run, "Success", "");
                    }
                }
            })
            .start()
            .await?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("kubeconfig"), kubernetes.kubeconfig_yaml())?;
        Ok(Self {
            prefect,
            kubernetes,
            runs,
            bad: bad_runs,
            began: now,
            pods,
            rescheduled: Mutex::default(),
            dir,
            _templates: templates,
        })
    }

    pub(super) fn prefect_url(&self) -> String {
        self.prefect.url()
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        Path::join(self.dir.path(), "kubeconfig")
    }

    /// How many requests went wrong.
    pub(super) fn faults(&self) -> u64 {
        let both = [self.prefect.faults(), self.kubernetes.faults()];
        both.iter().map(|faults| faults.total()).sum()
    }

    /// Lets a blow fall; what it was.
    pub(super) async fn strike(&self, replicas: &mut Replicas, blow: &Blow) -> Result<String> {
        let n = blow.replica;
        Ok(match blow.kind {
            Kind::Kill { back } => {
                replicas.signal(n, Signal::SIGKILL)?;
                replicas.ended(n).await?;
                tokio::time::sleep(back).await;
                replicas.up(n, self)?;
                format!("replica {n} killed, back after {back:?}")
            }
            Kind::Stop => {
                replicas.signal(n, Signal::SIGTERM)?;
                replicas.ended(n).await?;
                replicas.up(n, self)?;
                format!("replica {n} restarted")
            }
            Kind::Freeze { thaw } => {
                replicas.signal(n, Signal::SIGSTOP)?;
                tokio::time::sleep(thaw).await;
                replicas.signal(n, Signal::SIGCONT)?;
                format!("replica {n} frozen for {thaw:?}")
            }
            Kind::CutWatches => {
                self.kubernetes.cut_watches();
                "watches cut".to_owned()
            }
            Kind::ExpireWatches => {
                self.kubernetes.compact();
                self.kubernetes.expire_watches();
                "watches expired".to_owned()
            }
            Kind::Lazarus => {
                let again = self.prefect.lazarus_after(LAZARUS);
                let what = format!("{} runs scheduled again", again.len());
                lock(&self.rescheduled).extend(again);
                what
            }
            Kind::Restart { back } => {
                let rule = self.prefect.faults().add(Rule::new("*", Fault::DropBefore));
                tokio::time::sleep(back).await;
                self.prefect.forget_submitted_locks();
                self.prefect.faults().remove(rule);
                format!("Prefect server restarted within {back:?}")
            }
            Kind::Outage { prefect, back } => {
                let faults = match prefect {
                    true => self.prefect.faults(),
                    false => self.kubernetes.faults(),
                };
                let rule = faults.add(Rule::new("*", Fault::DropBefore));
                tokio::time::sleep(back).await;
                faults.remove(rule);
                let who = if prefect { "Prefect" } else { "Kubernetes" };
                format!("{who} API away for {back:?}")
            }
        })
    }

    /// Ends all faults.
    pub(super) fn calm(&self) {
        self.prefect.faults().clear();
        self.kubernetes.faults().clear();
    }

    /// Waits until every run has ended and every Job is gone.
    pub(super) async fn rests(&self, bound: Duration) -> Result<(), String> {
        let unfinished = || {
            let runs = self.prefect.runs().into_iter();
            let left = runs.filter(|run| !run.is_finished());
            left.map(|run| format!("{} is {}", run.id, run.state))
                .collect::<Vec<_>>()
        };
        // One that is being deleted may wait for a finalizer that a template has put on it.
        let undeleted = || {
            let jobs = self.kubernetes.objects("jobs").into_iter();
            let jobs = jobs.filter(|job| job["metadata"]["deletionTimestamp"].is_null());
            jobs.map(|job| job["metadata"]["name"].to_string())
                .collect::<Vec<_>>()
        };
        let rested = self
            .prefect
            .wait_until(bound, |_| unfinished().is_empty() && undeleted().is_empty());
        if rested.await.is_ok() {
            return Ok(());
        }
        let left = unfinished();
        Err(format!(
            "after {bound:?} {} runs have not ended ({}), and Jobs are left: {:?}",
            left.len(),
            left.iter().take(5).cloned().collect::<Vec<_>>().join(", "),
            undeleted()
        ))
    }
}

impl Pods {
    fn start(&mut self, run: Uuid) {
        let running = self.running.entry(run).or_default();
        *running += 1;
        let most = self.most.entry(run).or_default();
        *most = (*most).max(*running);
    }

    fn end(&mut self, run: Uuid) {
        if let Some(running) = self.running.get_mut(&run) {
            *running = running.saturating_sub(1);
        }
    }
}
