//! Where flow runs are executed.

use async_trait::async_trait;

use crate::{FlowRun, Result};

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
    /// Makes the job for a claimed run. Idempotent: submitting the same
    /// [attempt](FlowRun::attempt) again finds the job that is there.
    ///
    /// # Errors
    /// Permanent when the run can never be executed as it is: a run config or template that makes
    /// no job, a refusal by the backend. Transient when the backend is away or overloaded.
    async fn submit(&self, run: &FlowRun) -> Result<Submission>;

    /// The jobs of this flow run, of whatever attempt, finished ones included as far as they
    /// still exist.
    ///
    /// # Errors
    /// Either kind.
    async fn jobs(&self, run: &FlowRun) -> Result<Vec<JobRef>>;
}
