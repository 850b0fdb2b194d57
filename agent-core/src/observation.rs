//! What a backend sees of its jobs, and what follows for their runs.

use jiff::Timestamp;

use crate::{FlowRunId, LogEntry};

/// A job as it is now, with what its run's owner has not been told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The job's name.
    pub job: String,
    /// The run that it executes.
    pub flow_run_id: FlowRunId,
    /// Where it stands.
    pub state: JobState,
    /// When it ended, if it has and if that is known.
    pub ended_at: Option<Timestamp>,
    /// What was found about it, in the order in which it is told.
    pub findings: Vec<Finding>,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// It may still do something.
    Active,
    /// It has ended well.
    Succeeded,
    /// It has ended, and not well.
    Failed,
    /// It does not exist any more.
    Gone,
}

/// Something about a job that its run's owner should know, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Tells this finding from every other of the same job, in every process.
    pub key: String,
    /// Entries for the run's log.
    pub logs: Vec<LogEntry>,
    /// What the run fails with, unless it has ended.
    pub failure: Option<String>,
    /// Whether the job is of no more use and is deleted.
    pub deletes: bool,
    /// It counts only when it still stands at this time.
    pub not_before: Option<Timestamp>,
}

impl Finding {
    /// A finding that is told and has no consequence.
    pub fn told(key: impl Into<String>, logs: Vec<LogEntry>) -> Self {
        Self {
            key: key.into(),
            logs,
            failure: None,
            deletes: false,
            not_before: None,
        }
    }
}
