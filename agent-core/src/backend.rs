//! Where flow runs are executed.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::observation::Observation;
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

    /// What happens to the jobs: for each one that exists its present state, and then every
    /// change. A finding stays in a job's observations for as long as it stands, unless it was
    /// [remembered](Self::remember). By default nothing is seen.
    fn observations(&self) -> BoxStream<'static, Observation> {
        futures::stream::pending().boxed()
    }

    /// Notes with a job which of its findings were told, so that no later process and no other
    /// replica tells them again; `false` when somebody else had noted all of them before.
    ///
    /// # Errors
    /// Either kind.
    async fn remember(&self, _job: &str, _keys: &[String]) -> Result<bool> {
        Ok(true)
    }

    /// Deletes a job with its pods; one that is gone already is deleted.
    ///
    /// # Errors
    /// Either kind.
    async fn delete(&self, _job: &str) -> Result<()> {
        Ok(())
    }
}
