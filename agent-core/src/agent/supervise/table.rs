//! What is known of each job, and which jobs there is something to do about.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::time::DelayQueue;

use super::tell::Telling;
use crate::FlowRunId;
use crate::observation::{JobState, Observation};

/// Reminders for later than this come earlier.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How long a replica that does not lead keeps a job that has gone.
const GONE: Duration = Duration::from_secs(60);

/// Where a job stands in the queue.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Turn {
    #[default]
    Idle,
    Queued,
    Busy,
    /// Busy, and there is news already.
    BusyAgain,
}

/// What the one who works on a job keeps from one time to the next.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Keys of findings that were dealt with.
    pub(super) handled: HashSet<String>,
    /// Keys of findings that another teller had begun to tell, and when that was seen first in this
    /// term.
    pub(super) theirs: HashMap<String, Instant>,
    /// The source does not know the run: it is somebody else's.
    pub(super) foreign: bool,
    pub(super) deleted: bool,
    /// Its run was failed by what was found.
    pub(super) failed: bool,
    /// What is being told just now.
    pub(super) telling: Option<Telling>,
    /// When it was seen first that its run waits for another job.
    pub(super) superseded: Option<Instant>,
    /// When it was seen first that the job has ended.
    pub(super) ended: Option<Instant>,
}

/// That a run has ended although its job goes on.
#[derive(Debug, Clone)]
pub(super) struct RunEnded {
    pub(super) state: String,
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Tracked {
    latest: Arc<Observation>,
    /// Whether the present watch has shown it.
    shown: bool,
    turn: Turn,
    own: Own,
    /// Whether the run's state was looked at since the job appeared.
    looked_at: bool,
    run_ended: Option<RunEnded>,
}

/// A job to work on.
pub(super) struct Job {
    pub(super) seen: Arc<Observation>,
    pub(super) own: Own,
    pub(super) run_ended: Option<RunEnded>,
    /// The run that had ended was started again.
    pub(super) run_restarted: bool,
    /// There is something left to do about it, for later.
    pub(super) put_off: bool,
}

#[derive(Default)]
struct Inner {
    jobs: HashMap<String, Tracked>,
    /// Names of jobs by run: seldom more than one.
    by_run: HashMap<FlowRunId, Vec<String>>,
    queue: VecDeque<String>,
    /// Whether somebody works on the queue.
    in_term: bool,
    /// Jobs that went while nobody did, oldest first.
    gone: VecDeque<(Instant, String)>,
}

pub(super) struct Table {
    inner: Mutex<Inner>,
    queued: Notify,
    reminders: mpsc::UnboundedSender<(String, Instant)>,
    reminded: Mutex<Option<mpsc::UnboundedReceiver<(String, Instant)>>>,
}

impl Default for Table {
    fn default() -> Self {
        let (reminders, reminded) = mpsc::unbounded_channel();
        Self {
            inner: Mutex::default(),
            queued: Notify::new(),
            reminders,
            reminded: Mutex::new(Some(reminded)),
        }
    }
}

impl Table {
    /// Takes in what was seen of a job; whether it is new to who leads.
    pub(super) fn saw(&self, seen: Arc<Observation>) -> bool {
        let mut inner = self.lock();
        let (name, state) = (seen.job.clone(), seen.state);
        let before = match inner.jobs.get_mut(&name) {
            Some(tracked) => {
                let before = tracked.latest.state;
                tracked.latest = seen;
                tracked.shown = true;
                Some(before)
            }
            None => {
                let tracked = Tracked {
                    latest: seen,
                    shown: true,
                    turn: Turn::Idle,
                    own: Own::default(),
                    looked_at: false,
                    run_ended: None,
                };
                let run = tracked.latest.flow_run_id.clone();
                inner.by_run.entry(run).or_default().push(name.clone());
                inner.jobs.insert(name.clone(), tracked);
                None
            }
        };
        count(before, state);
        if state == JobState::Gone && !inner.in_term {
            inner.remember_gone(name);
        } else {
            self.enqueue(&mut inner, &name);
        }
        before.is_none() && inner.in_term
    }

    /// A watch begins, which has shown nothing yet.
    pub(super) fn begin_watch(&self) {
        for tracked in self.lock().jobs.values_mut() {
            tracked.shown = false;
        }
    }

    /// The jobs that existed once and that the present watch has not shown.
    pub(super) fn not_shown(&self) -> Vec<Arc<Observation>> {
        let inner = self.lock();
        let there = |tracked: &&Tracked| tracked.latest.state != JobState::Gone;
        let jobs = inner.jobs.values().filter(there);
        let missing = jobs.filter(|tracked| !tracked.shown);
        missing.map(|tracked| tracked.latest.clone()).collect()
    }

    /// Has a job worked on again at a time, if it still exists then.
    pub(super) fn look_again(&self, job: &str, at: Instant) {
        // The receiver lives in `self`.
        let at = at.min(Instant::now() + LONGEST);
        let _ = self.reminders.send((job.to_owned(), at));
    }

    /// Queues the jobs whose time has come.
    pub(super) async fn remind(&self) -> Infallible {
        let taken = {
            let mut reminded = self.reminded.lock().unwrap_or_else(PoisonError::into_inner);
            reminded.take()
        };
        let Some(mut incoming) = taken else {
            return std::future::pending().await;
        };
        let mut waiting = DelayQueue::new();
        let mut earliest: HashMap<String, Instant> = HashMap::new();
        loop {
            tokio::select! {
                Some((job, at)) = incoming.recv() => {
                    if earliest.get(&job).is_none_or(|known| at < *known) {
                        earliest.insert(job.clone(), at);
                        waiting.insert_at((job, at), at);
                    }
                }
                Some(expired) = waiting.next(), if !waiting.is_empty() => {
                    let (job, at) = expired.into_inner();
                    if earliest.get(&job) == Some(&at) {
                        earliest.remove(&job);
                    }
                    let mut inner = self.lock();
                    self.enqueue(&mut inner, &job);
                }
            }
        }
    }

    /// The name of the next job to work on; [`take`](Self::take) it.
    pub(super) async fn next(&self) -> String {
        loop {
            if let Some(name) = self.lock().queue.pop_front() {
                return name;
            }
            self.queued.notified().await;
        }
    }

    /// Takes a job to work on; give it back with [`done`](Self::done).
    pub(super) fn take(&self, name: &str) -> Option<Job> {
        let mut inner = self.lock();
        let tracked = inner.jobs.get_mut(name)?;
        tracked.turn = Turn::Busy;
        Some(Job {
            seen: tracked.latest.clone(),
            own: std::mem::take(&mut tracked.own),
            run_ended: tracked.run_ended.clone(),
            run_restarted: false,
            put_off: false,
        })
    }

    /// Ends the work on a job.
    pub(super) fn done(&self, name: &str, job: Job) {
        let mut inner = self.lock();
        let Some(tracked) = inner.jobs.get_mut(name) else {
            return;
        };
        let again = tracked.turn == Turn::BusyAgain;
        tracked.turn = Turn::Idle;
        tracked.own = job.own;
        if job.run_restarted {
            tracked.run_ended = None;
        }
        if again {
            self.enqueue(&mut inner, name);
        } else if tracked.latest.state == JobState::Gone && !job.put_off {
            inner.forget(name);
        }
    }

    /// Whether the run of this job has another one that is at work.
    pub(super) fn has_another(&self, seen: &Observation) -> bool {
        let inner = self.lock();
        let names = inner.by_run.get(&seen.flow_run_id).into_iter().flatten();
        let mut others = names.filter(|name| **name != seen.job);
        others.any(|name| {
            let other = inner.jobs.get(name);
            other.is_some_and(|other| other.latest.state == JobState::Active)
        })
    }

    /// Everything there is has to be looked at, and is new. What the last term had begun is nobody's
    /// now.
    pub(super) fn begin_term(&self) -> Vec<Arc<Observation>> {
        let mut inner = self.lock();
        inner.in_term = true;
        inner.queue.clear();
        let names: Vec<String> = inner.jobs.keys().cloned().collect();
        for name in names {
            if let Some(tracked) = inner.jobs.get_mut(&name) {
                tracked.turn = Turn::Idle;
                tracked.looked_at = false;
                tracked.own.theirs.clear();
            }
            self.enqueue(&mut inner, &name);
        }
        let all = inner.jobs.values();
        all.map(|tracked| tracked.latest.clone()).collect()
    }

    /// Nobody works on the queue from now on.
    pub(super) fn end_term(&self) {
        self.lock().in_term = false;
    }

    /// The runs of active jobs that were not looked at since the job appeared.
    pub(super) fn not_looked_at(&self) -> Vec<FlowRunId> {
        let mut runs = Vec::new();
        for tracked in self.lock().jobs.values_mut() {
            if !tracked.looked_at && tracked.latest.state == JobState::Active {
                tracked.looked_at = true;
                runs.push(tracked.latest.flow_run_id.clone());
            }
        }
        runs
    }

    /// These runs could not be looked at after all.
    pub(super) fn look_at_later(&self, runs: &[FlowRunId]) {
        let runs: HashSet<&FlowRunId> = runs.iter().collect();
        for tracked in self.lock().jobs.values_mut() {
            if runs.contains(&tracked.latest.flow_run_id) {
                tracked.looked_at = false;
            }
        }
    }

    /// Notes runs that have ended; the active jobs of such runs, as they were not noted before.
    pub(super) fn runs_ended(&self, ended: &HashMap<FlowRunId, String>) -> Vec<String> {
        let mut inner = self.lock();
        let mut news = Vec::new();
        for (name, tracked) in &mut inner.jobs {
            let seen = &tracked.latest;
            if seen.state != JobState::Active || tracked.run_ended.is_some() {
                continue;
            }
            if let Some(state) = ended.get(&seen.flow_run_id) {
                tracked.run_ended = Some(RunEnded {
                    state: state.clone(),
                    since: Instant::now(),
                });
                news.push(name.clone());
            }
        }
        news
    }

    fn enqueue(&self, inner: &mut Inner, name: &str) {
        let Some(tracked) = inner.jobs.get_mut(name) else {
            return;
        };
        if !inner.in_term {
            return;
        }
        match tracked.turn {
            Turn::Idle => {
                tracked.turn = Turn::Queued;
                inner.queue.push_back(name.to_owned());
                self.queued.notify_one();
            }
            Turn::Busy => tracked.turn = Turn::BusyAgain,
            Turn::Queued | Turn::BusyAgain => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Keeps a job that went for a while: should the replica that leads have died just then, the
    /// next one tells of it.
    fn remember_gone(&mut self, name: String) {
        self.gone.push_back((Instant::now(), name));
        while let Some((at, _)) = self.gone.front()
            && at.elapsed() >= GONE
        {
            let Some((_, name)) = self.gone.pop_front() else {
                return;
            };
            let job = self.jobs.get(&name);
            if job.is_some_and(|job| job.latest.state == JobState::Gone) {
                self.forget(&name);
            }
        }
    }

    /// Forgets a job that has gone.
    fn forget(&mut self, name: &str) {
        let Some(job) = self.jobs.remove(name) else {
            return;
        };
        let run = &job.latest.flow_run_id;
        if let Some(names) = self.by_run.get_mut(run) {
            names.retain(|one| one != name);
            if names.is_empty() {
                self.by_run.remove(run);
            }
        }
    }
}

/// A supervision that failed is followed by another, which counts them anew.
impl Drop for Inner {
    fn drop(&mut self) {
        for job in self.jobs.values() {
            count(Some(job.latest.state), JobState::Gone);
        }
    }
}

/// Keeps the numbers of jobs by state.
fn count(before: Option<JobState>, now: JobState) {
    let gauge = |state| {
        let name = match state {
            JobState::Active => "active",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Gone => return None,
        };
        Some(metrics::gauge!("prefect_agent_jobs", "state" => name))
    };
    if before == Some(now) {
        return;
    }
    if let Some(gauge) = before.and_then(gauge) {
        gauge.decrement(1.0);
    }
    if let Some(gauge) = gauge(now) {
        gauge.increment(1.0);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn jobs_are_counted_once_when_the_supervision_begins_again() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let seen = Observation {
            job: "job".to_owned(),
            flow_run_id: "run".into(),
            state: JobState::Active,
            own: true,
            created_at: None,
            ended_at: None,
            kept: false,
            findings: Vec::new(),
        };
        metrics::with_local_recorder(&recorder, || {
            for _ in 0..2 {
                let table = Table::default();
                table.saw(Arc::new(seen.clone()));
                let shown = recorder.handle().render();
                assert!(
                    shown.contains("prefect_agent_jobs{state=\"active\"} 1\n"),
                    "{shown}"
                );
            }
        });
    }
}
