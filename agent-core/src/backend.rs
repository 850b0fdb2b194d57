//! Where flow runs are executed.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::observation::{Sighting, Turn};
use crate::{FlowRun, FlowRunId, Result};

/// A job at the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRef {
    /// The job's name, as its owner would look it up.
    pub name: String,
    /// Whether it has ended.
    pub finished: bool,
}

/// What came of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// The job's name.
    pub job: String,
    /// Whether this call made the job; `false` when the same attempt had made it before.
    pub created: bool,
}

/// Where flow runs are executed.
#[async_trait]
pub trait JobBackend: Send + Sync + 'static {
    /// Tries, without a trace, whether this agent can create jobs at all. Nothing is claimed before
    /// the first one has succeeded, and none while several creations in a row have failed and this
    /// fails, too. By default it succeeds.
    ///
    /// # Errors
    /// Agent when this agent may not create jobs or its own template makes none; Unclear or Transient
    /// when the backend is away. What is refused of the job that was tried alone is no reason to stop.
    async fn preflight(&self) -> Result<()> {
        Ok(())
    }

    /// Makes the job for a claimed run. Idempotent: submitting the same
    /// [attempt](FlowRun::attempt) again finds the job that is there. For any but a fresh claim the
    /// job is looked for among the run's [jobs](Self::jobs) before.
    ///
    /// # Errors
    /// Permanent when the run can never be executed as it is: a run config or template that makes
    /// no job, a refusal by the backend. The other kinds as [`Error`](crate::Error) has them.
    async fn submit(&self, run: &FlowRun) -> Result<Submission>;

    /// The jobs of these flow runs, of whatever attempt, finished ones included as far as they
    /// still exist. Runs without any are missing. The answer must be as new as the question: a run
    /// whose job is overlooked is executed twice.
    ///
    /// # Errors
    /// Either kind.
    async fn jobs(&self, runs: &[FlowRunId]) -> Result<HashMap<FlowRunId, Vec<JobRef>>>;

    /// Whether a job was made for this [attempt](FlowRun::attempt) at a run, and not for an earlier
    /// one. By default it always was.
    fn is_of(&self, _job: &str, _attempt: &str) -> bool {
        true
    }

    /// What happens to the jobs: for each one that exists its present state, then
    /// [`Sighting::Complete`], and then every change. A finding stays in a job's observations for
    /// as long as it stands, also when it was [told](Self::told). A stream that ends is followed by
    /// another, and jobs that this one has not shown when it is complete are taken to be
    /// [gone](crate::Observation::gone). By default nothing is seen.
    fn observations(&self) -> BoxStream<'static, Sighting> {
        stream::iter([Sighting::Complete])
            .chain(stream::pending())
            .boxed()
    }

    /// Looks again whether a finding that [deletes](crate::Finding::deletes) a job still stands, or
    /// that of a job that is [gone](crate::JobState::Gone). The
    /// answer must be as new as the question: what was observed may be old when a watch has broken.
    /// By default it does.
    ///
    /// # Errors
    /// Either kind.
    async fn stands(&self, _job: &str, _key: &str) -> Result<bool> {
        Ok(true)
    }

    /// Whether this process is the one, of several replicas, that supervises the jobs; each item
    /// holds until the next one. By default it always is.
    fn leadership(&self) -> BoxStream<'static, bool> {
        stream::iter([true]).chain(stream::pending()).boxed()
    }

    /// Lets another replica supervise at once. Called when the agent stops, once it writes no more logs.
    async fn resign(&self) {}

    /// Notes with a job that `teller` is about to tell of findings, so that nobody else does at the
    /// same time, and finds out whose turn each of them is, in the order of `keys`. With
    /// `take_over` the turn of another teller, who is taken for dead, ends.
    ///
    /// # Errors
    /// Either kind.
    async fn begin_telling(
        &self,
        _job: &str,
        keys: &[String],
        _teller: &str,
        _take_over: bool,
    ) -> Result<Vec<Turn>> {
        Ok(vec![Turn::Ours; keys.len()])
    }

    /// Notes with a job which of its findings were told, so that no later process and no other
    /// replica tells them again.
    ///
    /// # Errors
    /// Either kind.
    async fn told(&self, _job: &str, _keys: &[String]) -> Result<()> {
        Ok(())
    }

    /// The last lines that a process named in [`Finding::output_of`](crate::Finding::output_of)
    /// has printed; `None` when there are none, or none that this agent may read.
    ///
    /// # Errors
    /// Either kind; the finding is told without them.
    async fn output(&self, _process: &str) -> Result<Option<String>> {
        Ok(None)
    }

    /// Deletes a job with its pods; one that is gone already is deleted.
    ///
    /// # Errors
    /// Either kind.
    async fn delete(&self, _job: &str) -> Result<()> {
        Ok(())
    }
}
