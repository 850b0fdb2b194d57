//! Entries for the log of a flow run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::FlowRunId;

/// How much an entry matters; the names are those of Prefect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// For finding out what happened, later.
    Debug,
    /// The normal course of things.
    Info,
    /// Something a person may want to look at.
    Warning,
    /// What made the run fail.
    Error,
}

impl LogLevel {
    /// The level's name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
        }
    }
}

impl LogEntry {
    /// The logger's name of what is told of a run's jobs; that of the Python agent.
    pub const JOBS: &str = "k8s-infra";
    /// What an agent's entry about the job of a run begins with; the job's name follows.
    pub const SUBMITTED: &str = "Submitted for execution: Job ";
}

/// One entry in the log of a flow run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// The run whose log it is.
    pub flow_run_id: FlowRunId,
    /// The logger's name: the agent's, or `k8s-infra` for what the cluster reported.
    pub name: String,
    /// The text.
    pub message: String,
    /// The level.
    pub level: LogLevel,
    /// When it happened; `None` means when it arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
}
