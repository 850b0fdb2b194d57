//! The agent: polls a source, claims what is due, submits it to a backend, recovers what an
//! earlier process left behind, and stops cleanly.

mod deploy;
mod health;
mod in_hand;
mod logs;
mod poll;
mod recover;
mod supervise;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::health::AgentHealth;
use self::in_hand::InHand;
use self::logs::LogSink;
use crate::{FlowRunSource, JobBackend, Result};

/// How far ahead runs are fetched. It is the longest pause between two polls, so that a run is in
/// hand before its start time whenever it was scheduled that early.
const PREFETCH: Duration = Duration::from_secs(10);

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
}

/// What all parts of a running agent share.
struct Shared {
    options: Options,
    source: Arc<dyn FlowRunSource>,
    backend: Arc<dyn JobBackend>,
    in_hand: Arc<InHand>,
    slots: Semaphore,
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
        let (logs, log_writer) = LogSink::start(self.source.clone(), ended.clone());
        let shared = Arc::new(Shared {
            in_hand: Arc::default(),
            slots: Semaphore::new(self.options.concurrency),
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
        let work = async {
            tokio::select! {
                () = poll::run(&shared) => shared.finish_all().await,
                never = recover::run(&shared) => match never {},
                never = supervise::run(&shared) => match never {},
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown => {}
        }
        stopping.cancel();
        shared.drain().await;
        drop(shared);
        log_writer.finish(Duration::from_secs(5)).await;
        Ok(())
    }
}

impl Shared {
    /// Starts something that is finished before a shutdown ends, within the drain time.
    fn deploy(
        &self,
        deployment: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<Option<()>> {
        let ended = self.ended.clone();
        self.deployments
            .spawn(async move { ended.run_until_cancelled(deployment).await })
    }

    /// Waits for everything in hand, also for runs that are not due yet.
    async fn finish_all(&self) {
        self.deployments.close();
        self.deployments.wait().await;
    }

    /// Waits for what is being claimed or submitted, but not for ever: the rest is recovered by
    /// the next process.
    async fn drain(&self) {
        self.deployments.close();
        let left = self.in_hand.counts().total();
        if left > 0 {
            tracing::info!("Finishing {left} deployment(s) before the end...");
        }
        if tokio::time::timeout(self.options.drain, self.deployments.wait())
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

    /// Whether jobs are deleted when they have ended and everything about them was told.
    /// Default: they are.
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
    /// deleted. Default: 60 s.
    #[must_use]
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.options.cancel_grace = grace;
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
