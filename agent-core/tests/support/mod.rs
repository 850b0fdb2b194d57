//! A source and a backend in memory, with faults drawn from a seed, for tests of the agent alone.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "shared by test files, of which none uses all"
)]

pub mod cluster;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use agent_core::{
    AgentBuilder, Claim, Error, FlowRun, FlowRunId, FlowRunSource, JobBackend, JobRef, LogEntry,
    LogLevel, Phase, Ready, ReadyQuery, Registration, Result, State, Submission, Work, async_trait,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Time by tokio's clock, which tests pause.
#[derive(Clone, Copy)]
pub struct Clock {
    started: Instant,
    zero: Timestamp,
}

impl Clock {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            zero: "2030-01-01T00:00:00Z".parse().expect("a time"),
        }
    }

    pub fn now(&self) -> Timestamp {
        self.zero + SignedDuration::try_from(self.started.elapsed()).expect("in range")
    }

    pub fn at(&self, after: Duration) -> Timestamp {
        self.zero + SignedDuration::try_from(after).expect("in range")
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

#[derive(Debug, Clone)]
pub struct Stored {
    pub due: Option<Timestamp>,
    pub scheduled: u32,
    pub phase: Phase,
    pub claims: usize,
    pub claimed_at: Option<Instant>,
    pub failed: Option<String>,
    pub logs: Vec<LogEntry>,
}

impl Stored {
    /// What the run's owner was told to be wrong.
    pub fn errors(&self) -> Vec<String> {
        let errors = self.logs.iter().filter(|log| log.level == LogLevel::Error);
        errors.map(|log| log.message.clone()).collect()
    }

    fn state(&self) -> State {
        State {
            name: format!("{:?}", self.phase),
            phase: self.phase,
            message: self.failed.clone(),
        }
    }
}

/// Chances of faults, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub before: u32,
    pub after: u32,
    pub latency_ms: u64,
}

/// What an entry of one run does to the writing of logs.
#[derive(Debug, Clone, Copy)]
pub enum Poison {
    Fails,
    /// The source refuses it, and all that is written with it.
    IsRefused,
    /// It fails so often, and the next time it is written but the answer is lost.
    FailsAndIsLost(u32),
    Panics,
}

pub struct Memory {
    pub clock: Clock,
    pub runs: Mutex<BTreeMap<FlowRunId, Stored>>,
    pub polls: Mutex<Vec<Duration>>,
    pub page: usize,
    pub faults: Mutex<Faults>,
    pub random: Mutex<fastrand::Rng>,
    pub lose_next_claims: AtomicUsize,
    pub poison: Mutex<Option<(FlowRunId, Poison)>>,
    /// After what time the writing of logs is given up, and after what time more they are there.
    pub late_logs: Mutex<Option<(Duration, Duration)>>,
    /// Those that are on their way.
    coming: Mutex<Vec<(Instant, LogEntry)>>,
    /// No logs can be written, or read.
    pub logs_away: AtomicBool,
    /// How long it takes to write logs.
    pub writing_takes: Mutex<Duration>,
    /// States are told without their messages.
    pub terse: AtomicBool,
    /// Runs are under way when they are ready.
    pub under_way: AtomicBool,
    /// How long a claim takes.
    pub claims_take: Mutex<Duration>,
    /// What is answered to claims, and to failing runs.
    pub refuse_claims: Mutex<Option<Error>>,
    pub refuse_failing: Mutex<Option<Error>>,
    /// What is answered to polls.
    pub refuse_polls: Mutex<Option<Error>>,
    /// Questions for the runs that have ended.
    pub ends_asked: AtomicUsize,
    /// The source keeps every run in its queue.
    pub keeps_queued: AtomicBool,
    /// A run that is read again has ended just before.
    pub ends_when_read_again: AtomicBool,
    pub order: Mutex<Vec<FlowRunId>>,
    /// What the description of a run weighs.
    pub weight: AtomicUsize,
}

impl Memory {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock::new(),
            runs: Mutex::default(),
            polls: Mutex::default(),
            page: 25,
            faults: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            lose_next_claims: AtomicUsize::new(0),
            poison: Mutex::default(),
            late_logs: Mutex::default(),
            coming: Mutex::default(),
            logs_away: AtomicBool::new(false),
            writing_takes: Mutex::default(),
            terse: AtomicBool::new(false),
            under_way: AtomicBool::new(false),
            claims_take: Mutex::default(),
            refuse_claims: Mutex::default(),
            refuse_failing: Mutex::default(),
            refuse_polls: Mutex::default(),
            ends_asked: AtomicUsize::new(0),
            keeps_queued: AtomicBool::new(false),
            ends_when_read_again: AtomicBool::new(false),
            order: Mutex::default(),
            weight: AtomicUsize::new(0),
        })
    }

    pub fn seed(&self, id: &str, due: Option<Timestamp>) {
        let stored = Stored {
            due,
            scheduled: 0,
            phase: Phase::Scheduled,
            claims: 0,
            claimed_at: None,
            failed: None,
            logs: Vec::new(),
        };
        self.runs().insert(id.into(), stored);
    }

    pub fn runs(&self) -> MutexGuard<'_, BTreeMap<FlowRunId, Stored>> {
        let mut runs = self.runs.lock().expect("no panics");
        let mut coming = self.coming.lock().expect("no panics");
        for (_, entry) in coming.extract_if(.., |(at, _)| *at <= Instant::now()) {
            let run = runs.get_mut(&entry.flow_run_id).expect("known");
            run.logs.push(entry);
        }
        runs
    }

    pub fn run(&self, id: &str) -> Stored {
        self.runs()[id].clone()
    }

    pub fn errors(&self, id: &str) -> Vec<String> {
        self.run(id).errors()
    }

    pub fn update(&self, id: &str, change: impl FnOnce(&mut Stored)) {
        change(self.runs().get_mut(id).expect("seeded"));
    }

    fn told(&self, mut state: State) -> State {
        if self.terse.load(Ordering::SeqCst) {
            state.message = None;
        }
        state
    }

    fn flow_run(&self, id: &FlowRunId, stored: &Stored) -> FlowRun {
        FlowRun {
            due: stored.due,
            under_way: self.under_way.load(Ordering::SeqCst),
            attempt: format!("{id}/{}", stored.scheduled),
            weight: self.weight.load(Ordering::SeqCst),
            ..FlowRun::new(id.clone(), id.as_str(), Work::Flow(Box::default()))
        }
    }

    pub async fn weather(&self) -> (bool, bool) {
        let faults = *self.faults.lock().expect("no panics");
        let (pause, before, after) = {
            let mut random = self.random.lock().expect("no panics");
            (
                random.u64(0..=faults.latency_ms),
                random.u32(0..100) < faults.before,
                random.u32(0..100) < faults.after,
            )
        };
        if pause > 0 {
            sleep(Duration::from_millis(pause)).await;
        }
        (before, after)
    }
}

fn broken() -> Error {
    Error::transient("connection broken")
}

#[async_trait]
impl FlowRunSource for Memory {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn register(&self) -> Result<Registration> {
        Ok(Registration::default())
    }

    async fn ready(&self, query: ReadyQuery<'_>) -> Result<Ready> {
        self.polls
            .lock()
            .expect("no panics")
            .push(self.clock.elapsed());
        let (before, after) = self.weather().await;
        if before || after {
            return Err(broken());
        }
        if let Some(error) = self.refuse_polls.lock().expect("no panics").clone() {
            return Err(error);
        }
        let runs = self.runs();
        let mut page: Vec<_> = runs
            .iter()
            .filter(|(_, run)| run.phase == Phase::Scheduled)
            .filter(|(_, run)| run.due.is_none_or(|due| due <= query.before))
            .collect();
        page.sort_by_key(|(_, run)| run.due);
        page.truncate(self.page);
        let queued = page.len();
        let mut runs: Vec<_> = page
            .into_iter()
            .filter(|(id, _)| !query.known.contains(*id))
            .map(|(id, run)| self.flow_run(id, run))
            .collect();
        runs.truncate(query.limit);
        Ok(Ready { runs, queued })
    }

    async fn reread(&self, run: &FlowRun) -> Result<Option<FlowRun>> {
        let mut runs = self.runs();
        let stored = runs.get_mut(&run.id).expect("known");
        if self.ends_when_read_again.load(Ordering::SeqCst) {
            stored.phase = Phase::Finished;
        }
        Ok((stored.phase == Phase::Scheduled).then(|| self.flow_run(&run.id, stored)))
    }

    async fn claim(&self, run: &FlowRun) -> Result<Claim> {
        let (before, after) = self.weather().await;
        if before {
            return Err(broken());
        }
        let takes = *self.claims_take.lock().expect("no panics");
        sleep(takes).await;
        if let Some(error) = self.refuse_claims.lock().expect("no panics").clone() {
            return Err(error);
        }
        if self.keeps_queued.load(Ordering::SeqCst) {
            return Ok(Claim::StillQueued("a limit is reached".to_owned()));
        }
        if self
            .lose_next_claims
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
        {
            self.runs().get_mut(&run.id).expect("known").phase = Phase::Submitted;
            return Ok(Claim::Lost("somebody else has it".to_owned()));
        }
        let mut runs = self.runs();
        let stored = runs.get_mut(&run.id).expect("known");
        if stored.phase != Phase::Scheduled {
            return Ok(Claim::Lost(format!("it is {:?}", stored.phase)));
        }
        stored.phase = Phase::Submitted;
        stored.claims += 1;
        stored.claimed_at = Some(Instant::now());
        self.order.lock().expect("no panics").push(run.id.clone());
        if after {
            Err(broken())
        } else {
            Ok(Claim::Claimed)
        }
    }

    async fn claim_to_fail(&self, run: &FlowRun) -> Result<Claim> {
        let mut runs = self.runs();
        let stored = runs.get_mut(&run.id).expect("known");
        if self.refuse_failing.lock().expect("no panics").is_some() {
            return Ok(Claim::Lost("no state of it can be set".to_owned()));
        }
        if stored.phase != Phase::Scheduled {
            return Ok(Claim::Lost(format!("it is {:?}", stored.phase)));
        }
        stored.phase = Phase::Submitted;
        Ok(Claim::Claimed)
    }

    async fn fail(&self, run: &FlowRunId, message: &str) -> Result<()> {
        let (before, after) = self.weather().await;
        if before {
            return Err(broken());
        }
        if let Some(error) = self.refuse_failing.lock().expect("no panics").clone() {
            return Err(error);
        }
        let mut runs = self.runs();
        let stored = runs.get_mut(run).expect("known");
        stored.phase = Phase::Finished;
        stored.failed = Some(message.to_owned());
        if after { Err(broken()) } else { Ok(()) }
    }

    async fn write_logs(&self, entries: &[LogEntry]) -> Result<()> {
        let (before, after) = self.weather().await;
        let late = *self.late_logs.lock().expect("no panics");
        if let Some((patience, more)) = late {
            sleep(patience).await;
            let at = Instant::now() + more;
            let coming = entries.iter().map(|entry| (at, entry.clone()));
            self.coming.lock().expect("no panics").extend(coming);
            return Err(broken());
        }
        let takes = *self.writing_takes.lock().expect("no panics");
        sleep(takes).await;
        let mut after = after;
        let mut poisoned = self.poison.lock().expect("no panics");
        if let Some((run, poison)) = poisoned.clone()
            && entries.iter().any(|entry| entry.flow_run_id == run)
        {
            match poison {
                Poison::Fails => return Err(broken()),
                Poison::IsRefused => return Err(Error::Refused("no such character".to_owned())),
                Poison::FailsAndIsLost(0) => (*poisoned, after) = (None, true),
                Poison::FailsAndIsLost(more) => {
                    *poisoned = Some((run, Poison::FailsAndIsLost(more - 1)));
                    return Err(broken());
                }
                Poison::Panics => {
                    drop(poisoned);
                    panic!("an entry of run {run}");
                }
            }
        }
        if before || self.logs_away.load(Ordering::SeqCst) {
            return Err(broken());
        }
        let mut runs = self.runs();
        for entry in entries {
            let stored = runs.get_mut(&entry.flow_run_id).expect("known");
            stored.logs.push(entry.clone());
        }
        if after { Err(broken()) } else { Ok(()) }
    }

    async fn logged(&self, entries: &[LogEntry]) -> Result<Vec<bool>> {
        if self.weather().await.0 || self.logs_away.load(Ordering::SeqCst) {
            return Err(broken());
        }
        let runs = self.runs();
        let there = |entry: &LogEntry| {
            let logs = runs[&entry.flow_run_id].logs.iter();
            logs.into_iter()
                .any(|log| log.message.starts_with(&entry.message))
        };
        Ok(entries.iter().map(there).collect())
    }

    async fn ended_since(&self, _since: Timestamp) -> Result<HashMap<FlowRunId, State>> {
        let runs = self.runs();
        self.ends_asked.fetch_add(1, Ordering::SeqCst);
        let ended = runs.iter().filter(|(_, run)| run.phase == Phase::Finished);
        Ok(ended.map(|(id, run)| (id.clone(), run.state())).collect())
    }

    async fn states(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, State>> {
        let stored = self.runs();
        Ok(runs
            .iter()
            .filter_map(|id| Some((id.clone(), stored.get(id)?.state())))
            .map(|(id, state)| (id, self.told(state)))
            .collect())
    }

    async fn claimed(&self, age: Duration) -> Result<Vec<FlowRunId>> {
        let (before, _) = self.weather().await;
        if before {
            return Err(broken());
        }
        let runs = self.runs();
        Ok(runs
            .iter()
            .filter(|(_, run)| run.phase == Phase::Submitted)
            .filter(|(_, run)| run.claimed_at.is_some_and(|at| at.elapsed() >= age))
            .map(|(id, _)| id.clone())
            .collect())
    }

    async fn claimed_runs(&self, ids: &[FlowRunId]) -> Result<Vec<FlowRun>> {
        if self.weather().await.0 {
            return Err(broken());
        }
        let runs = self.runs();
        let claimed = ids.iter().filter_map(|id| runs.get_key_value(id));
        let claimed = claimed.filter(|(_, run)| run.phase == Phase::Submitted);
        Ok(claimed.map(|(id, run)| self.flow_run(id, run)).collect())
    }
}

/// Jobs in memory.
pub struct Jobs {
    pub source: Arc<Memory>,
    /// Creations by attempt: when each took place.
    pub created: Mutex<BTreeMap<String, Vec<Duration>>>,
    pub existing: Mutex<HashMap<FlowRunId, Vec<JobRef>>>,
    pub refuse: Mutex<Option<Error>>,
    /// Nothing can be asked.
    pub away: AtomicBool,
    /// Questions for the jobs of one run, and of many.
    pub asked: AtomicUsize,
    pub asked_for_many: AtomicUsize,
    pub active: AtomicUsize,
    pub most_active: AtomicUsize,
}

impl Jobs {
    pub fn new(source: &Arc<Memory>) -> Arc<Self> {
        Arc::new(Self {
            source: source.clone(),
            created: Mutex::default(),
            existing: Mutex::default(),
            refuse: Mutex::default(),
            away: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            asked_for_many: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            most_active: AtomicUsize::new(0),
        })
    }

    pub fn created(&self) -> BTreeMap<String, Vec<Duration>> {
        self.created.lock().expect("no panics").clone()
    }
}

#[async_trait]
impl JobBackend for Jobs {
    async fn submit(&self, run: &FlowRun) -> Result<Submission> {
        let active = self.active.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_active.fetch_max(active, Ordering::SeqCst);
        let (before, after) = self.source.weather().await;
        self.active.fetch_sub(1, Ordering::SeqCst);
        if let Some(error) = self.refuse.lock().expect("no panics").clone() {
            return Err(error);
        }
        if before {
            return Err(broken());
        }
        let job = format!("job-{}", run.attempt);
        let mut created = self.created.lock().expect("no panics");
        let times = created.entry(run.attempt.clone()).or_default();
        let new = times.is_empty();
        if new {
            times.push(self.source.clock.elapsed());
            let mut existing = self.existing.lock().expect("no panics");
            existing.entry(run.id.clone()).or_default().push(JobRef {
                name: job.clone(),
                finished: false,
            });
        }
        if after {
            return Err(broken());
        }
        Ok(Submission { job, created: new })
    }

    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>> {
        let asked = match runs {
            [_] => &self.asked,
            _ => &self.asked_for_many,
        };
        asked.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(broken());
        }
        let existing = self.existing.lock().expect("no panics");
        let found = runs.iter().filter_map(|id| existing.get_key_value(id));
        Ok(found.map(|(id, jobs)| (id.clone(), jobs.clone())).collect())
    }
}

/// A running agent; ends cleanly on [`Running::stop`].
pub struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<agent_core::Result<()>>,
}

impl Running {
    pub fn start(builder: AgentBuilder) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let agent = builder.build();
        let task = tokio::spawn(agent.run(async {
            let _ = stopped.await;
        }));
        Self { stop, task }
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.expect("no panic").expect("a clean end");
    }

    pub fn kill(self) {
        self.task.abort();
    }
}

/// Waits for a condition, by the paused clock.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(3600), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} never happened"));
}
