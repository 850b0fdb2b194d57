//! Jobs in memory that run and end, seen and supervised by several replicas of an agent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use agent_core::{
    Agent, AgentBuilder, Error, Finding, FlowRun, FlowRunId, JobBackend, JobRef, JobState,
    LogEntry, LogLevel, Observation, Phase, Result, Sighting, Submission, Turn, async_trait,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::Memory;

/// How long a replica leads without a sign of life.
const LEASE: Duration = Duration::from_secs(12);

#[derive(Clone)]
struct MemoryJob {
    run: FlowRunId,
    made: Instant,
    created_at: Timestamp,
    ends: Instant,
    fails: bool,
    notes: BTreeMap<String, Option<String>>,
}

/// All jobs, and who leads.
pub struct Cluster {
    source: Arc<Memory>,
    jobs: Mutex<BTreeMap<String, MemoryJob>>,
    pub made: Mutex<BTreeMap<String, usize>>,
    lease: Mutex<Option<(u64, Instant)>>,
    /// After what time there is something to tell of each job that is still at work.
    pub news: Mutex<Option<Duration>>,
    /// Every job that is at work is seen not to start, and whether that is so.
    pub stuck: Mutex<Option<bool>>,
    /// How long it takes to look at a job again.
    pub look_takes: Mutex<Duration>,
    /// How long each job lasts, if not up to five seconds.
    pub lasts: Mutex<Option<Duration>>,
    /// How often a replica began to watch.
    pub watches: AtomicUsize,
    /// The next look at the jobs ends the watch, or panics.
    pub watch_ends: AtomicBool,
    pub watch_panics: AtomicBool,
    /// Nothing can be noted with a job.
    pub notes_away: AtomicBool,
    /// Jobs go when something is to be noted with them.
    pub goes_when_noted: AtomicBool,
    /// Jobs are of agents with other labels.
    pub others: AtomicBool,
    /// Every job is made, but for so long that is not answered, and then it fails.
    pub makes_lost: Mutex<Option<Duration>>,
    /// It is never answered that a turn was taken over.
    pub take_overs_lost: AtomicBool,
    /// Flows report nothing.
    pub silent: AtomicBool,
}

/// The cluster as one replica sees it.
pub struct Replica {
    cluster: Arc<Cluster>,
    id: u64,
}

impl Cluster {
    pub fn new(source: &Arc<Memory>) -> Arc<Self> {
        Arc::new(Self {
            source: source.clone(),
            jobs: Mutex::default(),
            made: Mutex::default(),
            lease: Mutex::default(),
            news: Mutex::default(),
            stuck: Mutex::default(),
            look_takes: Mutex::default(),
            lasts: Mutex::default(),
            watches: AtomicUsize::new(0),
            watch_ends: AtomicBool::new(false),
            watch_panics: AtomicBool::new(false),
            notes_away: AtomicBool::new(false),
            goes_when_noted: AtomicBool::new(false),
            others: AtomicBool::new(false),
            makes_lost: Mutex::default(),
            take_overs_lost: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        })
    }

    /// The cluster as a replica sees it.
    pub fn replica(self: &Arc<Self>, id: u64) -> Replica {
        Replica {
            cluster: self.clone(),
            id,
        }
    }

    /// An agent that is this replica.
    pub fn agent(self: &Arc<Self>, id: u64) -> AgentBuilder {
        Agent::builder(self.source.clone(), Arc::new(self.replica(id)))
    }

    pub fn is_empty(&self) -> bool {
        self.jobs().is_empty()
    }

    /// Another replica leads, until its lease runs out.
    pub fn led_by_another(&self) {
        *self.lease.lock().expect("no panics") = Some((u64::MAX, Instant::now()));
    }

    /// Whether a job has ended.
    pub fn has_ended(&self, job: &str) -> bool {
        self.jobs()
            .get(job)
            .is_some_and(|job| job.ends <= Instant::now())
    }

    /// The replica that leads.
    pub fn leader(&self) -> Option<u64> {
        let lease = self.lease.lock().expect("no panics");
        let holds = lease.filter(|(_, renewed)| renewed.elapsed() < LEASE);
        holds.map(|(id, _)| id)
    }

    /// Whether nobody leads, or has let go of it.
    pub fn is_free(&self) -> bool {
        self.lease.lock().expect("no panics").is_none()
    }

    /// Somebody deletes every job.
    pub fn remove_all(&self) {
        self.jobs().clear();
    }

    /// Has somebody begun to tell of a finding of every job.
    pub fn begun_by(&self, teller: &str, key: &str) {
        for job in self.jobs().values_mut() {
            job.notes.insert(key.to_owned(), Some(teller.to_owned()));
        }
    }

    /// Whether this is the one who tells of a finding, of some job.
    pub fn is_told_by(&self, teller: &str, key: &str) -> bool {
        let begun = Some(teller.to_owned());
        let jobs = self.jobs();
        jobs.values().any(|job| job.notes.get(key) == Some(&begun))
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, MemoryJob>> {
        self.jobs.lock().expect("no panics")
    }

    /// Has the flows report, and tells what there is to see.
    fn look(&self) -> BTreeMap<String, Observation> {
        let now = Instant::now();
        let jobs = self.jobs();
        let mut runs = self.source.runs();
        let mut seen = BTreeMap::new();
        for (name, job) in jobs.iter() {
            let ended = job.ends <= now;
            let run = runs.get_mut(&job.run).expect("known");
            let is_its_job = *name == format!("job-{}/{}", job.run, run.scheduled);
            let reports = is_its_job && !self.silent.load(Ordering::SeqCst);
            if reports && matches!(run.phase, Phase::Submitted | Phase::Running) {
                run.phase = match ended && !job.fails {
                    true => Phase::Finished,
                    false => Phase::Running,
                };
            }
            let state = match (ended, job.fails) {
                (false, _) => JobState::Active,
                (true, false) => JobState::Succeeded,
                (true, true) => JobState::Failed,
            };
            let told = |key: &str| job.notes.get(key) == Some(&None);
            let mut findings = Vec::new();
            let news = *self.news.lock().expect("no panics");
            if let Some(after) = news.filter(|_| state == JobState::Active) {
                let mut finding = Finding::new("news", Vec::new());
                finding.not_before = Some(job.made + after);
                findings.push(finding);
            }
            let stuck = *self.stuck.lock().expect("no panics");
            if stuck.is_some() && state == JobState::Active {
                let mut finding = Finding::new("w", Vec::new());
                finding.failure = Some(format!("{name} cannot start"));
                finding.deletes = true;
                finding.told = told("w");
                findings.push(finding);
            }
            if state == JobState::Failed {
                let entry = error(&job.run, format!("Pod of {name} failed"));
                let mut pod = Finding::new("p", vec![entry]);
                pod.told = told("p");
                let mut failure = Finding::new("job", Vec::new());
                failure.failure = Some(format!("{name} failed"));
                failure.told = told("job");
                findings = vec![pod, failure];
            }
            let observation = Observation {
                job: name.clone(),
                flow_run_id: job.run.clone(),
                state,
                own: !self.others.load(Ordering::SeqCst),
                created_at: Some(job.created_at),
                ended_at: None,
                kept: false,
                findings,
            };
            seen.insert(name.clone(), observation);
        }
        seen
    }
}

impl Replica {
    async fn fault(&self) -> (bool, bool) {
        self.cluster.source.weather().await
    }

    fn note(&self, job: &str, change: impl FnOnce(&mut BTreeMap<String, Option<String>>)) {
        if let Some(job) = self.cluster.jobs().get_mut(job) {
            change(&mut job.notes);
        }
    }
}

fn error(run: &FlowRunId, message: String) -> LogEntry {
    LogEntry {
        flow_run_id: run.clone(),
        name: "k8s-infra".to_owned(),
        message,
        level: LogLevel::Error,
        timestamp: None,
    }
}

/// What there is to tell of a job that has gone, by how it was seen last.
fn of_gone(last: &Observation) -> Vec<Finding> {
    let message = match last.state {
        JobState::Active => format!("{} was deleted", last.job),
        JobState::Succeeded => format!("{} has ended and is gone", last.job),
        _ => return Vec::new(),
    };
    let entry = error(&last.flow_run_id, message.clone());
    let finding = Finding {
        failure: Some(message),
        unreported: last.state == JobState::Succeeded,
        unfinished: last.state == JobState::Active,
        ..Finding::new("gone", vec![entry])
    };
    vec![finding]
}

fn lost(fault: bool) -> Result<()> {
    match fault {
        true => Err(Error::transient("connection broken")),
        false => Ok(()),
    }
}

#[async_trait]
impl JobBackend for Replica {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        let (before, after) = self.fault().await;
        lost(before)?;
        let job = format!("job-{}", run.attempt);
        let created = {
            let mut made = self.cluster.made.lock().expect("no panics");
            let times = made.entry(job.clone()).or_default();
            let created = *times == 0 || !self.cluster.jobs().contains_key(&job);
            if created {
                *times += 1;
                let number: u64 = run.id.as_str().parse().expect("a number");
                let lasts = *self.cluster.lasts.lock().expect("no panics");
                let lasts = lasts.unwrap_or(Duration::from_millis(number * 37 % 5_000));
                let made = MemoryJob {
                    run: run.id.clone(),
                    made: Instant::now(),
                    created_at: self.cluster.source.clock.now(),
                    ends: Instant::now() + lasts,
                    fails: number.is_multiple_of(3),
                    notes: BTreeMap::new(),
                };
                self.cluster.jobs().insert(job.clone(), made);
            }
            created
        };
        let makes_lost = *self.cluster.makes_lost.lock().expect("no panics");
        if let Some(after) = makes_lost {
            sleep(after).await;
            return Err(Error::transient("connection broken"));
        }
        lost(after)?;
        Ok(Submission { job, created })
    }

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        let (before, _) = self.fault().await;
        lost(before)?;
        let jobs = self.cluster.jobs();
        let mut found: HashMap<FlowRunId, Vec<JobRef>> = HashMap::new();
        for (name, job) in jobs.iter().filter(|(_, job)| runs.contains(&job.run)) {
            found.entry(job.run.clone()).or_default().push(JobRef {
                name: name.clone(),
                finished: job.ends <= Instant::now(),
            });
        }
        Ok(found)
    }

    fn is_of(&self, job: &str, attempt: &str) -> bool {
        job == format!("job-{attempt}")
    }

    async fn stands(&self, _job: &str, _key: &str) -> Result<bool> {
        lost(self.fault().await.0)?;
        let takes = *self.cluster.look_takes.lock().expect("no panics");
        sleep(takes).await;
        let stuck = *self.cluster.stuck.lock().expect("no panics");
        Ok(stuck != Some(false))
    }

    fn observations(&self) -> BoxStream<'static, Sighting> {
        struct Seen {
            cluster: Arc<Cluster>,
            known: HashMap<String, Observation>,
            waiting: VecDeque<Sighting>,
            complete: bool,
        }
        self.cluster.watches.fetch_add(1, Ordering::SeqCst);
        let seen = Seen {
            cluster: self.cluster.clone(),
            known: HashMap::new(),
            waiting: VecDeque::new(),
            complete: false,
        };
        stream::unfold(seen, async |mut seen| {
            loop {
                if let Some(next) = seen.waiting.pop_front() {
                    return Some((next, seen));
                }
                if seen.complete {
                    sleep(Duration::from_millis(100)).await;
                }
                if seen.cluster.watch_ends.swap(false, Ordering::SeqCst) {
                    return None;
                }
                if seen.cluster.watch_panics.swap(false, Ordering::SeqCst) {
                    panic!("nothing can be watched");
                }
                let now = seen.cluster.look();
                let gone: Vec<String> = seen
                    .known
                    .keys()
                    .filter(|job| !now.contains_key(*job))
                    .cloned()
                    .collect();
                for job in gone {
                    let mut last = seen.known.remove(&job).expect("it was known");
                    last.findings = of_gone(&last);
                    last.state = JobState::Gone;
                    seen.waiting.push_back(Sighting::Job(last));
                }
                for (job, observation) in now {
                    if seen.known.get(&job) != Some(&observation) {
                        seen.known.insert(job, observation.clone());
                        seen.waiting.push_back(Sighting::Job(observation));
                    }
                }
                if !std::mem::replace(&mut seen.complete, true) {
                    seen.waiting.push_back(Sighting::Complete);
                }
            }
        })
        .boxed()
    }

    fn leadership(&self) -> BoxStream<'static, bool> {
        let state = (self.cluster.clone(), self.id, None);
        stream::unfold(state, async |(cluster, id, before)| {
            loop {
                let leads = {
                    let mut lease = cluster.lease.lock().expect("no panics");
                    let free = lease
                        .is_none_or(|(holder, renewed)| holder == id || renewed.elapsed() >= LEASE);
                    if free {
                        *lease = Some((id, Instant::now()));
                    }
                    free
                };
                if before != Some(leads) {
                    return Some((leads, (cluster, id, Some(leads))));
                }
                sleep(Duration::from_secs(2)).await;
            }
        })
        .boxed()
    }

    async fn resign(&self) {
        let mut lease = self.cluster.lease.lock().expect("no panics");
        *lease = lease.filter(|(holder, _)| *holder != self.id);
    }

    async fn begin_telling(
        &self,
        job: &str,
        keys: &[String],
        teller: &str,
        take_over: bool,
    ) -> Result<Vec<Turn>> {
        let (before, after) = self.fault().await;
        lost(before || self.cluster.notes_away.load(Ordering::SeqCst))?;
        if self.cluster.goes_when_noted.load(Ordering::SeqCst) {
            self.cluster.remove_all();
        }
        let mut turns = vec![Turn::Unknown; keys.len()];
        self.note(job, |notes| {
            for (turn, key) in turns.iter_mut().zip(keys) {
                *turn = match notes.get(key) {
                    Some(None) => Turn::Told,
                    Some(Some(other)) if other != teller && !take_over => Turn::Theirs,
                    _ => {
                        notes.insert(key.clone(), Some(teller.to_owned()));
                        Turn::Ours
                    }
                };
            }
        });
        let unanswered = take_over && self.cluster.take_overs_lost.load(Ordering::SeqCst);
        lost(after || unanswered)?;
        Ok(turns)
    }

    async fn told(&self, job: &str, keys: &[String]) -> Result<()> {
        let (before, after) = self.fault().await;
        lost(before)?;
        self.note(job, |notes| {
            notes.extend(keys.iter().map(|key| (key.clone(), None)));
        });
        lost(after)
    }

    async fn delete(&self, job: &str) -> Result<()> {
        let (before, after) = self.fault().await;
        lost(before)?;
        self.cluster.jobs().remove(job);
        lost(after)
    }
}
