//! Where flow runs come from, and where their states and logs go.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{FlowRun, FlowRunId, LogEntry, Result, State};

/// What the source knows about this agent after [`FlowRunSource::register`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registration {
    /// The agent's id at the source.
    pub agent_id: String,
    /// The source's address, for people.
    pub address: String,
    /// The tenant, workspace or account whose runs are deployed.
    pub tenant: String,
}

/// Which ready runs are wanted.
#[derive(Debug)]
pub struct ReadyQuery<'a> {
    /// Runs that are due up to this time.
    pub before: Timestamp,
    /// Runs that are in hand already; the source need not describe them.
    pub known: &'a HashSet<FlowRunId>,
    /// At most so many runs, those that are due first; the others come with a later query.
    pub limit: usize,
}

/// The answer to a [`ReadyQuery`].
#[derive(Debug, Default)]
pub struct Ready {
    /// The runs, those that are due first at the beginning. None of them was in `known`.
    pub runs: Vec<FlowRun>,
    /// How many runs the source has ready, including known ones, as far as it tells.
    pub queued: usize,
}

/// How an attempt to claim a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// The run is ours to deploy.
    Claimed,
    /// Somebody else has it, or it is no longer ready; the reason is for the agent's log.
    Lost(String),
    /// The source keeps it in its queue (a concurrency limit, for instance) and will offer it
    /// again by itself.
    StillQueued(String),
}

/// Where flow runs come from, and where their states and logs go.
///
/// Implementations retry passing failures for a short while themselves, so that one lost packet
/// is nobody's concern; what they return as [`crate::Error::Transient`] has outlasted that.
#[async_trait]
pub trait FlowRunSource: Send + Sync + 'static {
    /// The time by the clock in which the source means its start times. By default this
    /// machine's.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Introduces the agent. Called before anything else; calling it again changes nothing.
    ///
    /// # Errors
    /// Permanent when the source refuses this agent: a wrong key, an unknown tenant.
    async fn register(&self) -> Result<Registration>;

    /// The runs for this agent that are due up to a time.
    ///
    /// # Errors
    /// Either kind; the agent reports it and asks again later.
    async fn ready(&self, query: ReadyQuery<'_>) -> Result<Ready>;

    /// Reads a run again; `None` when it is not ready any more.
    ///
    /// # Errors
    /// Either kind; the run is left alone until a later poll finds it.
    async fn reread(&self, run: &FlowRun) -> Result<Option<FlowRun>>;

    /// Claims a run, so that nobody else deploys it. A claim whose answer was lost is resolved by
    /// asking, never by guessing. Claiming again what this agent has claimed is harmless.
    ///
    /// # Errors
    /// Transient when the outcome could not be found out; permanent fails the run.
    async fn claim(&self, run: &FlowRun) -> Result<Claim>;

    /// Claims a run that [cannot be claimed](Self::claim) as usual, by the least that makes it this
    /// agent's, only to fail it: a run that somebody else may have is not failed. By default it cannot
    /// be, and the run stays queued.
    ///
    /// # Errors
    /// Any kind; the run stays queued.
    async fn claim_to_fail(&self, _run: &FlowRun) -> Result<Claim> {
        Ok(Claim::Lost("it cannot be claimed".to_owned()))
    }

    /// Ends a run that this agent has claimed with a message for its owner. A run that has ended
    /// already is left as it is.
    ///
    /// # Errors
    /// Either kind.
    async fn fail(&self, run: &FlowRunId, message: &str) -> Result<()>;

    /// Appends to the logs of flow runs, in order.
    ///
    /// # Errors
    /// Either kind; after an error none, some or all of the entries may have been written.
    async fn write_logs(&self, entries: &[LogEntry]) -> Result<()>;

    /// The states of many runs in one go. Runs that the source does not know are missing.
    ///
    /// # Errors
    /// Either kind.
    async fn states(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, State>>;

    /// Which of these entries are in the logs of their runs already, in the order of `entries`: for
    /// finding out what became of a writing whose answer was lost. An entry counts as there when a
    /// logged message of the same logger begins with its message; that a job was
    /// [submitted](LogEntry::SUBMITTED), whatever the agent is called that has told of it. By default none
    /// is taken to be.
    ///
    /// # Errors
    /// Either kind.
    async fn logged(&self, entries: &[LogEntry]) -> Result<Vec<bool>> {
        Ok(vec![false; entries.len()])
    }

    /// Runs that have ended since a time by the source's clock, whoever deployed them. By default
    /// none, and then nobody notices that a run was cancelled while its job goes on.
    ///
    /// # Errors
    /// Either kind.
    async fn ended_since(&self, _since: Timestamp) -> Result<HashMap<FlowRunId, State>> {
        Ok(HashMap::new())
    }

    /// Runs that this agent has claimed at least `age` ago and whose process has not reported:
    /// among them are those that were claimed by a process which died before it made the job. Not
    /// among them are those whose jobs another agent makes in another place, out of sight of this one's
    /// backend: they would be made here, too.
    ///
    /// # Errors
    /// Either kind.
    async fn claimed(&self, age: Duration) -> Result<Vec<FlowRunId>>;

    /// Those of these runs that this agent has claimed and whose process has not reported, read now;
    /// of those that were [under way](FlowRun::under_way), who has claimed them need not be known. One that was scheduled again and claimed again meanwhile is at its new attempt.
    ///
    /// # Errors
    /// Either kind.
    async fn claimed_runs(&self, runs: &[FlowRunId]) -> Result<Vec<FlowRun>>;
}
