//! What a backend sees of its jobs, and what follows for their runs.

use jiff::Timestamp;
use tokio::time::Instant;

use crate::{FlowRunId, LONGEST_MESSAGE, LogEntry, LogLevel, clip};

/// What a backend's watch over its jobs yields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sighting {
    /// A job as it is now.
    Job(Observation),
    /// Every job that existed when the watch began has been seen.
    Complete,
    /// A part of the watch has broken off, or has not come up again; it tries by itself, at least
    /// twice a minute.
    Broken {
        /// Which part, for instance `pods`.
        watch: &'static str,
        /// Why, in a sentence for people.
        reason: String,
    },
}

/// A job as it is now, with what there is to tell the run's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The job's name.
    pub job: String,
    /// The run that it executes.
    pub flow_run_id: FlowRunId,
    /// Where it stands.
    pub state: JobState,
    /// Whether it was made by an agent with the labels of this one.
    pub own: bool,
    /// When it was made, if that is known. Without it, only whoever has made the job tells of it.
    pub created_at: Option<Timestamp>,
    /// When it ended, if it has and if that is known.
    pub ended_at: Option<Timestamp>,
    /// Whether the agent that created it keeps its jobs, whatever this one does with its own.
    pub kept: bool,
    /// What was found about it, in the order in which it is told.
    pub findings: Vec<Finding>,
}

impl Observation {
    /// The job when it has gone since it was seen like this: with what there is left to tell of one that
    /// had failed, or else the finding [`Finding::GONE`].
    #[must_use]
    pub fn gone(mut self) -> Self {
        let job = &self.job;
        let before = match self.state {
            JobState::Active => Some(format!("Job {job} was gone before it had ended")),
            JobState::Succeeded => Some(format!(
                "Job {job} has ended and is gone, and its flow run never started"
            )),
            JobState::Failed | JobState::Gone => None,
        };
        self.findings = match before {
            Some(message) => {
                let entry = LogEntry {
                    flow_run_id: self.flow_run_id.clone(),
                    name: LogEntry::JOBS.to_owned(),
                    message,
                    level: LogLevel::Error,
                    timestamp: None,
                };
                vec![Finding::gone(self.state, entry)]
            }
            None => Finding::left(self.findings),
        };
        self.state = JobState::Gone;
        self
    }
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

/// Whose turn it is to tell of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Whoever asked.
    Ours,
    /// Another teller's, who has not said yet that it is done.
    Theirs,
    /// Nobody's: it was told.
    Told,
    /// The job is gone, and with it what was noted.
    Unknown,
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
    /// Whether the job is of no more use and is deleted. Asked for
    /// [once more](crate::JobBackend::stands) before that.
    pub deletes: bool,
    /// Whether it counts only as long as the run's process has not reported, or when the run has
    /// failed by it.
    pub unreported: bool,
    /// Whether it counts only as long as the run has not ended, or when the run has failed by it.
    pub unfinished: bool,
    /// Whether it was [told](crate::JobBackend::told) already.
    pub told: bool,
    /// It counts only when it still stands at this time.
    pub not_before: Option<Instant>,
    /// Processes whose last output belongs below the first entry, by names that
    /// [`JobBackend::output`](crate::JobBackend::output) understands.
    pub output_of: Vec<String>,
}

impl Finding {
    /// The key of the finding that a job is [gone](Observation::gone).
    pub const GONE: &str = "gone";

    /// The finding that a job is gone that was in this state before: its run fails with what is told.
    pub fn gone(before: JobState, told: LogEntry) -> Self {
        Self {
            failure: Some(told.message.clone()),
            unfinished: before == JobState::Active,
            unreported: before == JobState::Succeeded,
            ..Self::new(Self::GONE, vec![told])
        }
    }

    /// Of what was found of a job that had failed, what there is still to tell when it has gone: now,
    /// or never. What would have ended it does not stand any more.
    pub fn left(mut findings: Vec<Self>) -> Vec<Self> {
        findings.retain(|finding| !finding.told && !finding.deletes);
        for finding in &mut findings {
            finding.not_before = None;
        }
        findings
    }

    /// Cuts what the finding says to the length of a message, and leaves nothing in it that a log cannot
    /// hold: a pod may say anything.
    pub(crate) fn clip(&mut self) {
        let entries = self.logs.iter_mut().map(|entry| &mut entry.message);
        for text in entries.chain(&mut self.failure) {
            if text.len() > LONGEST_MESSAGE {
                *text = clip(text, LONGEST_MESSAGE).into_owned();
            }
            if text.contains('\0') {
                *text = text.replace('\0', "\u{2400}");
            }
        }
    }

    /// A finding that is only to be told and has no consequence.
    pub fn new(key: impl Into<String>, logs: Vec<LogEntry>) -> Self {
        Self {
            key: key.into(),
            logs,
            failure: None,
            deletes: false,
            unreported: false,
            unfinished: false,
            told: false,
            not_before: None,
            output_of: Vec::new(),
        }
    }
}
