//! Follows jobs to their end: tells the run's owner what was seen, fails runs whose job cannot
//! succeed any more, and deletes jobs that have ended.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::backoff::Backoff;
use crate::observation::{Finding, JobState, Observation};
use crate::{FlowRunId, LogEntry, LogLevel, Phase, Result};

/// Jobs that are handled at the same time.
const CONCURRENCY: usize = 32;
/// Runs whose states are asked in one request.
const CHUNK: usize = 500;
/// How long an ended job waits for others, so that their runs are asked for together.
const LINGER: Duration = Duration::from_millis(250);
/// How long a job is kept whose run has not reported although the job has ended.
const UNREPORTED: Duration = Duration::from_secs(60);

/// The logger's name of what concerns jobs; that of the Python agent.
const LOGGER: &str = "k8s-infra";
/// The key of the finding that a run has ended without its job.
const ENDED_WITHOUT: &str = "wrun";

/// What is known of one job.
#[derive(Default)]
struct Tracked {
    latest: Option<Observation>,
    /// Keys of findings that were dealt with.
    handled: HashSet<String>,
    deleting: bool,
}

type Job = Arc<tokio::sync::Mutex<Tracked>>;

/// A job that has ended and may go.
struct Ended {
    job: String,
    run: FlowRunId,
}

struct Supervisor {
    shared: Arc<Shared>,
    jobs: Mutex<HashMap<String, Job>>,
    ended: mpsc::UnboundedSender<Ended>,
    /// Cancelled when the supervision ends: nothing that waits outlives it, and nothing of it
    /// keeps the log open.
    stop: CancellationToken,
}

/// Follows the backend's observations for as long as the agent runs.
pub(super) async fn run(shared: &Arc<Shared>) -> Infallible {
    let (ended, queue) = mpsc::unbounded_channel();
    let supervisor = Arc::new(Supervisor {
        shared: shared.clone(),
        jobs: Mutex::default(),
        ended,
        stop: CancellationToken::new(),
    });
    let _stop = supervisor.stop.clone().drop_guard();
    let follow = async {
        loop {
            let observations = shared.backend.observations();
            observations
                .for_each_concurrent(CONCURRENCY, |observation| supervisor.see(observation))
                .await;
            tracing::warn!("The watch over jobs has ended; it begins again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        never = follow => never,
        never = clean_up(&supervisor, queue) => never,
        never = cancel(&supervisor) => never,
    }
}

impl Supervisor {
    async fn see(self: &Arc<Self>, observation: Observation) {
        let name = observation.job.clone();
        let job = self.job(&name);
        let mut tracked = job.lock().await;
        tracked.latest = Some(observation);
        self.handle(&mut tracked).await;
        let gone = tracked
            .latest
            .as_ref()
            .is_some_and(|o| o.state == JobState::Gone);
        drop(tracked);
        if gone {
            self.jobs().remove(&name);
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<String, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn job(&self, name: &str) -> Job {
        self.jobs().entry(name.to_owned()).or_default().clone()
    }

    /// Deals with the findings that are new and due, and sees to those that are not due yet.
    async fn handle(self: &Arc<Self>, tracked: &mut Tracked) {
        let Some(observation) = tracked.latest.clone() else {
            return;
        };
        // The backend dates findings by this machine's clock.
        let now = Timestamp::now();
        let mut delete = observation.state != JobState::Active;
        for finding in &observation.findings {
            if tracked.handled.contains(&finding.key) {
                delete |= finding.deletes;
                continue;
            }
            if let Some(due) = finding.not_before.filter(|due| *due > now) {
                self.look_again(&observation.job, due, now);
                delete = false;
                continue;
            }
            self.deal_with(&observation, finding).await;
            tracked.handled.insert(finding.key.clone());
            delete |= finding.deletes;
        }
        if observation.state == JobState::Gone {
            return;
        }
        if delete && self.shared.options.delete_finished && !tracked.deleting {
            tracked.deleting = true;
            let kept = self.kept(&observation, now);
            self.delete_after(
                kept,
                Ended {
                    job: observation.job,
                    run: observation.flow_run_id,
                },
            );
        }
    }

    /// How much longer an ended job is kept.
    fn kept(&self, observation: &Observation, now: Timestamp) -> Duration {
        let keep = match observation.state {
            JobState::Succeeded => self.shared.options.keep_succeeded,
            JobState::Failed => self.shared.options.keep_failed,
            _ => Duration::ZERO,
        };
        let since = observation.ended_at.unwrap_or(now);
        let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        keep.saturating_sub(passed)
    }

    fn delete_after(self: &Arc<Self>, pause: Duration, ended: Ended) {
        if pause.is_zero() {
            let _ = self.ended.send(ended);
            return;
        }
        let (supervisor, stop) = (self.clone(), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            tokio::time::sleep(pause).await;
            let _ = supervisor.ended.send(ended);
        }));
    }

    /// Deals with a finding; what has begun outlives the supervision when the agent is told to
    /// stop, lest a run fails without the words that say why.
    async fn deal_with(self: &Arc<Self>, observation: &Observation, finding: &Finding) {
        let (this, observation, finding) = (self.clone(), observation.clone(), finding.clone());
        let telling = async move { this.tell(&observation, &finding).await };
        let telling = self.shared.deploy(telling);
        if let Err(error) = telling.await {
            tracing::error!("Telling what was found ended early: {error}");
        }
    }

    /// First the consequence, which is harmless to repeat, then the words, which are not.
    async fn tell(&self, observation: &Observation, finding: &Finding) {
        let (job, run) = (&observation.job, &observation.flow_run_id);
        if let Some(message) = &finding.failure {
            tracing::info!("Failing flow run {run}, Job {job}: {message}");
            let failing = || self.shared.source.fail(run, message);
            insistently(&format!("Cannot fail flow run {run}"), failing).await;
        }
        let keys = [finding.key.clone()];
        let first = || self.shared.backend.remember(job, &keys);
        let first = insistently(&format!("Cannot note on Job {job} what was told"), first).await;
        if first.unwrap_or(true) {
            for entry in &finding.logs {
                self.shared.logs.write(entry.clone()).await;
            }
        }
    }

    fn look_again(self: &Arc<Self>, job: &str, due: Timestamp, now: Timestamp) {
        let pause = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        let (supervisor, name) = (self.clone(), job.to_owned());
        let stop = self.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            tokio::time::sleep(pause).await;
            let job = supervisor.jobs().get(&name).cloned();
            if let Some(job) = job {
                supervisor.handle(&mut *job.lock().await).await;
            }
        }));
    }
}

/// Tries for as long as the failure may pass; `None` when it cannot.
async fn insistently<T, F: Future<Output = Result<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Option<T> {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    loop {
        match attempt().await {
            Ok(value) => return Some(value),
            Err(error) if error.is_transient() => {
                tracing::warn!("{what}, will try again: {error}");
                tokio::time::sleep(backoff.pause(error.retry_after())).await;
            }
            Err(error) => {
                tracing::error!("{what}: {error}");
                return None;
            }
        }
    }
}

/// Deletes jobs that have ended, once their runs have reported: a run that is still Submitted
/// without a job would be taken for one whose job was never made.
async fn clean_up(
    supervisor: &Arc<Supervisor>,
    mut queue: mpsc::UnboundedReceiver<Ended>,
) -> Infallible {
    loop {
        let mut batch = Vec::new();
        if queue.recv_many(&mut batch, CHUNK).await == 0 {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LINGER).await;
        while batch.len() < CHUNK {
            match queue.try_recv() {
                Ok(ended) => batch.push(ended),
                Err(_) => break,
            }
        }
        let runs: Vec<FlowRunId> = batch.iter().map(|ended| ended.run.clone()).collect();
        let states = || supervisor.shared.source.states(&runs);
        let Some(states) = insistently("Cannot read the states of flow runs", states).await else {
            continue;
        };
        futures::stream::iter(batch)
            .for_each_concurrent(CONCURRENCY, |ended| {
                let waits = states
                    .get(&ended.run)
                    .is_some_and(|state| state.phase == Phase::Submitted);
                supervisor.delete(ended, waits)
            })
            .await;
    }
}

/// Deletes jobs that go on although their runs have ended, as a cancelled run's does.
async fn cancel(supervisor: &Arc<Supervisor>) -> Infallible {
    let grace = supervisor.shared.options.cancel_grace;
    let mut ticks = tokio::time::interval((grace / 2).max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut since: HashMap<String, tokio::time::Instant> = HashMap::new();
    loop {
        ticks.tick().await;
        let active = supervisor.active().await;
        let mut still = HashMap::new();
        for chunk in active.chunks(CHUNK) {
            let runs: Vec<FlowRunId> = chunk.iter().map(|job| job.run.clone()).collect();
            let states = match supervisor.shared.source.states(&runs).await {
                Ok(states) => states,
                Err(error) => {
                    tracing::warn!("Cannot read the states of flow runs with a Job: {error}");
                    continue;
                }
            };
            for job in chunk {
                let Some(state) = states.get(&job.run).filter(|state| state.is_finished()) else {
                    continue;
                };
                let seen = since.get(&job.job).copied();
                let seen = seen.unwrap_or_else(tokio::time::Instant::now);
                if seen.elapsed() >= grace {
                    supervisor.give_up(job, &state.name).await;
                } else {
                    still.insert(job.job.clone(), seen);
                }
            }
        }
        since = still;
    }
}

impl Supervisor {
    /// The jobs that are at work.
    async fn active(&self) -> Vec<Ended> {
        let jobs: Vec<Job> = self.jobs().values().cloned().collect();
        let mut active = Vec::new();
        for job in jobs {
            let tracked = job.lock().await;
            let Some(latest) = &tracked.latest else {
                continue;
            };
            if latest.state == JobState::Active && !tracked.deleting {
                active.push(Ended {
                    job: latest.job.clone(),
                    run: latest.flow_run_id.clone(),
                });
            }
        }
        active
    }

    /// Ends a job whose run has ended without it.
    async fn give_up(self: &Arc<Self>, ended: &Ended, state: &str) {
        let message = format!("Job {} is deleted: its flow run is {state}", ended.job);
        tracing::info!("{message}");
        let job = self.job(&ended.job);
        job.lock().await.deleting = true;
        let observation = Observation {
            job: ended.job.clone(),
            flow_run_id: ended.run.clone(),
            state: JobState::Active,
            ended_at: None,
            findings: Vec::new(),
        };
        let entry = LogEntry {
            flow_run_id: ended.run.clone(),
            name: LOGGER.to_owned(),
            message,
            level: LogLevel::Info,
            timestamp: None,
        };
        let finding = Finding::told(ENDED_WITHOUT, vec![entry]);
        self.deal_with(&observation, &finding).await;
        let deleting = || self.shared.backend.delete(&ended.job);
        insistently(&format!("Cannot delete Job {}", ended.job), deleting).await;
    }

    async fn delete(self: &Arc<Self>, ended: Ended, waits: bool) {
        if waits {
            tracing::debug!(
                "Job {} has ended, but flow run {} has not reported; it is kept for now",
                ended.job,
                ended.run
            );
            self.delete_after(UNREPORTED, ended);
            return;
        }
        tracing::debug!("Deleting job {}", ended.job);
        let deleting = || self.shared.backend.delete(&ended.job);
        insistently(&format!("Cannot delete Job {}", ended.job), deleting).await;
    }
}
