//! A flow run that is ready, or soon will be.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Moment;

/// The id of a flow run, as its source spells it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(from = "String")]
pub struct FlowRunId(Arc<str>);

impl FlowRunId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Arc<str>>> From<T> for FlowRunId {
    fn from(id: T) -> Self {
        Self(id.into())
    }
}

impl Serialize for FlowRunId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Borrow<str> for FlowRunId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FlowRunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FlowRunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A flow run as its source described it at [`read_at`](Self::read_at).
#[derive(Debug, Clone)]
pub struct FlowRun {
    /// The run's id.
    pub id: FlowRunId,
    /// The run's name, for people.
    pub name: String,
    /// When it may start; `None` means now. It is never deployed earlier.
    pub due: Option<Timestamp>,
    /// Whether it was under way already when it became ready, to try again a part of it; a claim
    /// does not change its phase then.
    pub under_way: bool,
    /// What tells this attempt at the run from every other: equal before the claim, after it and
    /// in every replica of the agent, different when the run is scheduled again. Backends derive
    /// the name of the job from it, so that submitting twice cannot make two jobs.
    pub attempt: String,
    /// What is to be executed.
    pub work: Work,
    /// What the source needs to claim the run; means nothing to anybody else.
    pub token: Value,
    /// When the source read this. An old reading is read again before the run is claimed.
    pub read_at: Moment,
    /// Bytes of memory that the description takes, by a rough estimate: how many runs are in hand at
    /// the same time depends on it.
    pub weight: usize,
}

impl FlowRun {
    /// A run that may start now, whose id tells its only attempt from all others.
    pub fn new(id: impl Into<FlowRunId>, name: impl Into<String>, work: Work) -> Self {
        let id = id.into();
        Self {
            attempt: id.to_string(),
            name: name.into(),
            id,
            due: None,
            under_way: false,
            work,
            token: Value::Null,
            read_at: Moment::now(),
            weight: 0,
        }
    }
}

/// What is to be executed for a flow run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Work {
    /// A flow of Prefect 1: the backend builds the job from the flow and its run config.
    Flow(Box<Flow>),
    /// A run whose description cannot be read, for this reason: it is claimed and failed.
    Unreadable(String),
}

/// A flow of Prefect 1 and the environment that one run of it asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flow {
    /// The flow's id.
    pub id: String,
    /// The flow's name.
    pub name: String,
    /// The version of `prefect` that registered the flow, if known.
    pub core_version: Option<String>,
    /// Where the flow's code is, as the API returned it (`type` and its members), or null.
    pub storage: Value,
    /// The run config as the API returned it, or null. [`crate::run_config`] reads it.
    pub run_config: Value,
    /// The environment of flows from before run configs, as the API returned it, or null.
    pub environment: Value,
}
