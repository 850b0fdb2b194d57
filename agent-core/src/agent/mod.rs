//! The agent: polls a source, claims what is due, submits it to a backend, recovers what an
//! earlier process left behind, and stops cleanly.

mod backend_health;
mod deploy;
mod health;
mod in_flight;
mod in_hand;
mod jobless;
mod journal;
mod logs;
mod made;
mod poll;
mod recover;
mod refusals;
mod slots;
mod supervise;
mod waiting;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::backend_health::BackendHealth;
pub use self::backend_health::Concern;
pub use self::health::{AgentHealth, AgentStatus};
use self::in_flight::InFlight;
use self::in_hand::InHand;
use self::journal::Journal;
use self::logs::LogSink;
use self::made::Made;
use self::refusals::Refusals;
use self::slots::Slots;
use self::waiting::WaitingRuns;
use crate::{FlowRun, FlowRunSource, JobBackend, Moment, Result};

/// How far ahead runs are fetched. It is the longest pause between two polls, so that a run is in
/// hand before its start time whenever it was scheduled that early.
const PREFETCH: Duration = Duration::from_secs(10);

/// How much the descriptions of all runs in hand may weigh together. A run that would exceed it stays
/// at the source.
const MAX_RUN_BYTES: usize = 24 << 20;
/// The unit in which they are weighed: a semaphore has 32 bits.
const WEIGHT_UNIT: usize = 1 << 10;

/// How many claimed runs are read again at the same time: their descriptions have no room yet.
const MAX_LOOKS: usize = 4;
/// How long runs may wait for the backend after the last poll.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// How long each of the last steps of a shutdown may take.
const FINISH: Duration = Duration::from_secs(5);

/// What an [`Agent`] can be told; see the setters of [`AgentBuilder`].
#[derive(Debug, Clone)]
struct Options {
    name: String,
    concurrency: usize,
    max_polls: Option<u64>,
    drain: Duration,
    recover_every: Duration,
    recover_age: Duration,
    delete_finished: bool,
    keep_succeeded: Duration,
    keep_failed: Duration,
    cancel_grace: Duration,
    max_in_flight: Option<usize>,
    submit_budget: Duration,
    take_over: Duration,
    journal: Option<PathBuf>,
}

/// What all parts of a running agent share.
struct Shared {
    options: Options,
    source: Arc<dyn FlowRunSource>,
    backend: Arc<dyn JobBackend>,
    in_hand: Arc<InHand>,
    in_flight: Arc<InFlight>,
    refusals: Refusals,
    made: Arc<Made>,
    slots: Slots,
    backend_health: Arc<BackendHealth>,
    waiting: Arc<WaitingRuns>,
    journal: Journal,
    /// Claimed runs that are read again, at the same time.
    looks: Semaphore,
    /// Runs that may have killed a process are handled one at a time.
    suspects: Semaphore,
    started: Moment,
    /// Room for the descriptions of runs in hand, in units of [`WEIGHT_UNIT`].
    run_memory: Arc<Semaphore>,
    logs: LogSink,
    health: AgentHealth,
    poke: Arc<Notify>,
    /// Cancelled when no new deployment may begin.
    stopping: CancellationToken,
    /// Cancelled when [`Agent::run`] has ended, however it ended: nothing outlives it.
    ended: CancellationToken,
    deployments: TaskTracker,
}

/// Deploys the runs of a source to a backend. Made by [`Agent::builder`].
pub struct Agent {
    options: Options,
    source: Arc<dyn FlowRunSource>,
    backend: Arc<dyn JobBackend>,
    health: AgentHealth,
}

impl Agent {
    /// An agent between this source and this backend, with default settings.
    pub fn builder(source: Arc<dyn FlowRunSource>, backend: Arc<dyn JobBackend>) -> AgentBuilder {
        AgentBuilder {
            source,
            backend,
            options: Options {
                name: "agent".to_owned(),
                concurrency: 32,
                max_polls: None,
                drain: Duration::from_secs(20),
                recover_every: Duration::from_secs(120),
                recover_age: Duration::from_secs(10),
                delete_finished: true,
                keep_succeeded: Duration::ZERO,
                keep_failed: Duration::ZERO,
                cancel_grace: Duration::from_secs(60),
                max_in_flight: None,
                submit_budget: Duration::from_secs(120),
                take_over: Duration::from_secs(20),
                journal: None,
            },
        }
    }

    /// A handle that tells how the agent is doing and that can ask it to poll at once.
    pub fn health(&self) -> AgentHealth {
        self.health.clone()
    }

    /// Registers, then deploys runs until `shutdown` completes or the polls are used up. What is
    /// being claimed or submitted at that time is finished first, within the drain time.
    /// Dropping the future ends everything at once, as if the process were killed.
    ///
    /// # Errors
    /// The source's error when it refuses to register the agent. Later errors are logged, show
    /// in the [health](Self::health) and end nothing.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        self.source.register().await?;
        let stopping = CancellationToken::new();
        let ended = CancellationToken::new();
        let _ended = ended.clone().drop_guard();
        let in_flight = Arc::new(InFlight::new(self.options.max_in_flight));
        self.health.counts_in_flight(in_flight.clone());
        let backend_health = Arc::<BackendHealth>::default();
        let (waiting, in_hand) = (Arc::<WaitingRuns>::default(), Arc::<InHand>::default());
        self.health.watch_runs(
            backend_health.clone(),
            waiting.clone(),
            in_hand.clone(),
            self.source.clone(),
        );
        let (logs, log_writer) = LogSink::start(self.source.clone(), ended.clone());
        let shared = Arc::new(Shared {
            in_hand,
            in_flight,
            backend_health,
            waiting,
            journal: Journal::open(self.options.journal.as_deref()),
            looks: Semaphore::new(MAX_LOOKS),
            suspects: Semaphore::new(1),
            started: Moment::now(),
            run_memory: Arc::new(Semaphore::new(MAX_RUN_BYTES / WEIGHT_UNIT)),
            refusals: Refusals::default(),
            made: Arc::default(),
            slots: Slots::new(self.options.concurrency),
            logs,
            poke: self.health.poke_signal(),
            health: self.health,
            stopping: stopping.clone(),
            ended: ended.clone(),
            deployments: TaskTracker::new(),
            options: self.options,
            source: self.source,
            backend: self.backend,
        });
        let backend = shared.backend.clone();
        let supervision = {
            let (shared, ended) = (shared.clone(), ended.clone());
            tokio::spawn(async move { ended.run_until_cancelled(supervised(shared)).await })
        };
        let checking = {
            let (shared, ended) = (shared.clone(), ended.clone());
            let check = async move { shared.backend_health.check(&*shared.backend).await };
            tokio::spawn(async move { ended.run_until_cancelled(check).await })
        };
        let _checking = AbortOnDropHandle::new(checking);
        let work = async {
            tokio::select! {
                () = poll::run(&shared) => shared.finish_all().await,
                never = recover::run(&shared) => match never {},
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown => {}
        }
        stopping.cancel();
        tokio::join!(shared.drain(), finish(supervision));
        shared.made.stop();
        shared.journal.remove();
        drop(shared);
        log_writer.finish(FINISH).await;
        // Whoever leads next looks into logs for what was told; from here on nothing is written.
        ended.cancel();
        // Bounded, as everything here: whoever stops the agent will not wait for ever.
        let _ = timeout(FINISH, backend.resign()).await;
        Ok(())
    }
}

/// Supervises until the agent stops; a fault in it ends nothing silently, and it begins again.
async fn supervised(shared: Arc<Shared>) {
    loop {
        let task = tokio::spawn(supervise::run(shared.clone()));
        match AbortOnDropHandle::new(task).await {
            Ok(()) => return,
            Err(error) => tracing::error!("The supervision of jobs has failed: {error}"),
        }
        shared.health.leads(false);
        sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until the supervision has finished what it had begun; what it cannot finish is taken up
/// by the next process.
async fn finish(mut supervision: JoinHandle<Option<()>>) {
    match timeout(FINISH, &mut supervision).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!("The supervision of jobs has failed: {error}"),
        Err(_) => supervision.abort(),
    }
}

impl Shared {
    /// Starts a deployment of its own.
    fn deploy(&self, deployment: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.deployments
            .spawn(async move { ended.run_until_cancelled(deployment).await });
    }

    /// Takes room for the description of a run, if there is some.
    fn try_reserve_memory(&self, run: &FlowRun) -> Option<OwnedSemaphorePermit> {
        let memory = self.run_memory.clone();
        memory.try_acquire_many_owned(units(run)).ok()
    }

    /// Waits for room for the description of a run.
    async fn reserve_memory(&self, run: &FlowRun) -> Option<OwnedSemaphorePermit> {
        let memory = self.run_memory.clone();
        memory.acquire_many_owned(units(run)).await.ok()
    }

    /// Waits for everything in hand, also for runs that are not due yet; but not for ever for a backend
    /// that creates no Jobs: what it has not is left to others.
    async fn finish_all(&self) {
        self.deployments.close();
        let blocked = async {
            let is_long = |since: tokio::time::Instant| since.elapsed() >= LAST_WAIT;
            while !self
                .backend_health
                .blocked()
                .is_some_and(|it| is_long(it.since))
            {
                sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = self.deployments.wait() => {}
            () = blocked => tracing::error!("The agent ends, although not all runs have their Job"),
        }
    }

    /// Waits for what is being claimed or submitted, but not for ever: the rest is recovered by
    /// the next process.
    async fn drain(&self) {
        self.deployments.close();
        let left = self.in_hand.counts().total();
        if left > 0 {
            tracing::info!("Finishing {left} deployment(s) before the end...");
        }
        if timeout(self.options.drain, self.deployments.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                "{} deployment(s) did not finish in {:?}; they will be taken up again at the next start",
                self.in_hand.counts().total(),
                self.options.drain
            );
        }
    }
}

/// Returns what a run's description weighs, in units of [`WEIGHT_UNIT`], and at most half of what there
/// is in all, so that small ones beside it do not keep it out for ever.
fn units(run: &FlowRun) -> u32 {
    let units = run.weight.min(MAX_RUN_BYTES / 2) / WEIGHT_UNIT;
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// Settings of an [`Agent`].
pub struct AgentBuilder {
    source: Arc<dyn FlowRunSource>,
    backend: Arc<dyn JobBackend>,
    options: Options,
}

impl AgentBuilder {
    /// The agent's name, which its entries in flow-run logs carry. Default: `agent`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// How many runs may be claimed and submitted at the same time; at least one. Default: 32.
    /// Memory grows with this, not with the number of runs that wait at the source.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.options.concurrency = concurrency.max(1);
        self
    }

    /// Ends the agent after so many polls, once everything in hand is deployed. Default: no end.
    #[must_use]
    pub fn max_polls(mut self, polls: Option<u64>) -> Self {
        self.options.max_polls = polls;
        self
    }

    /// How long a shutdown waits for deployments that have begun. Default: 20 s, so that it ends
    /// within the 30 s that Kubernetes grants a pod.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.options.drain = timeout;
        self
    }

    /// How often to look for runs that were claimed but have no job, and how old such a claim
    /// must be. Default: every 120 s, 10 s old. The first look is at the start.
    #[must_use]
    pub fn recovery(mut self, every: Duration, age: Duration) -> Self {
        self.options.recover_every = every;
        self.options.recover_age = age;
        self
    }

    /// Whether jobs are deleted when they have ended, or cannot start, and everything about them was
    /// told. Default: they are.
    #[must_use]
    pub fn delete_finished_jobs(mut self, delete: bool) -> Self {
        self.options.delete_finished = delete;
        self
    }

    /// How long jobs that ended well, and jobs that did not, are kept before they are deleted.
    /// Default: not at all.
    #[must_use]
    pub fn keep_jobs(mut self, succeeded: Duration, failed: Duration) -> Self {
        self.options.keep_succeeded = succeeded;
        self.options.keep_failed = failed;
        self
    }

    /// How long a job may go on after its run was cancelled, or has ended otherwise, before it is
    /// deleted. That the run has ended is noticed within half that time, but within two seconds at
    /// the soonest and half a minute at the latest. Default: 60 s.
    #[must_use]
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.options.cancel_grace = grace;
        self
    }

    /// How many unfinished jobs there may be, of agents with the labels of this one; further runs
    /// stay in the source's queue. Several replicas can exceed it for a moment, by what each of
    /// them is making. Default: no limit.
    #[must_use]
    pub fn max_in_flight(mut self, jobs: Option<usize>) -> Self {
        self.options.max_in_flight = jobs;
        self
    }

    /// For how long the job of a run is tried again that the backend
    /// [refuses for now](crate::Error::Refused), or whose creation fails while that of others does
    /// not, before the run fails. Default: 120 s.
    #[must_use]
    pub fn submit_retry_budget(mut self, budget: Duration) -> Self {
        self.options.submit_budget = budget;
        self
    }

    /// How long a finding that another process had begun to tell is left to it, before that process
    /// is taken for dead. Default: 20 s; longer than it takes the backend to change the
    /// [leader](JobBackend::leadership).
    #[must_use]
    pub fn take_over_after(mut self, patience: Duration) -> Self {
        self.options.take_over = patience;
        self
    }

    /// A file, to whose path a number is added, in which the agent keeps which runs it is creating jobs
    /// for. When the process is killed, the next one handles those runs last and one at a time, and
    /// fails a run with which three processes have died. Default: none.
    #[must_use]
    pub fn journal(mut self, path: Option<PathBuf>) -> Self {
        self.options.journal = path;
        self
    }

    /// The agent.
    pub fn build(self) -> Agent {
        Agent {
            options: self.options,
            source: self.source,
            backend: self.backend,
            health: AgentHealth::default(),
        }
    }
}
