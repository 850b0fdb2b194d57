//! What the server accepts as a new state, and what it refuses in which words.

use std::collections::BTreeSet;
use std::time::Duration;

use async_graphql::ErrorExtensions;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::store::Store;
use crate::clock::{iso_micros, parse_time};

const KNOWN: [&str; 21] = [
    "Pending",
    "Scheduled",
    "Paused",
    "Resume",
    "Retrying",
    "Submitted",
    "ClientFailed",
    "Queued",
    "Running",
    "Cancelling",
    "Finished",
    "Looped",
    "Cancelled",
    "Success",
    "Cached",
    "Mapped",
    "Skipped",
    "Failed",
    "TimedOut",
    "TriggerFailed",
    "ValidationFailed",
];

const FINISHED: [&str; 11] = [
    "Finished",
    "Looped",
    "Cancelled",
    "Success",
    "Cached",
    "Mapped",
    "Skipped",
    "Failed",
    "TimedOut",
    "TriggerFailed",
    "ValidationFailed",
];

const LARGEST_STATE: usize = 1_000_000;

/// How one server treats new states.
#[derive(Clone, Debug)]
pub(crate) struct StateRules {
    /// Refuse a state that comes with an outdated version.
    pub(crate) check_versions: bool,
    /// For how long a second Submitted is refused.
    pub(crate) submitted_lock: Duration,
}

/// Why a state was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("State update failed: this run has already been submitted.")]
    AlreadySubmitted,
    #[error("State update failed for flow run ID {0}")]
    UnknownFlowRun(Uuid),
    #[error("State update failed for task run ID {0}")]
    UnknownTaskRun(Uuid),
    #[error("State payload is too large.")]
    TooLarge,
    #[error("Unsupported state: {0:?}")]
    UnknownType(String),
    #[error("State update failed: version {given} was given, but the run has version {current}")]
    Version { given: i64, current: i64 },
    #[error(
        "State update failed for task run ID {task}: provided a running state but associated flow run {run} is not in a running state."
    )]
    FlowRunNotRunning { task: Uuid, run: Uuid },
}

impl Refusal {
    /// The error as GraphQL shows it, with a code where the API has one.
    pub(crate) fn into_graphql(self) -> async_graphql::Error {
        let code = match self {
            Self::Version { .. } => "VERSION_LOCKING_ERROR",
            _ => "INTERNAL_SERVER_ERROR",
        };
        async_graphql::Error::new(self.to_string())
            .extend_with(|_, values| values.set("code", code))
    }
}

/// What came of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Set,
    Queued,
}

impl Outcome {
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::Set => "SUCCESS",
            Self::Queued => "QUEUED",
        }
    }
}

/// The type of a serialized state.
pub(crate) fn kind_of(state: &Value) -> &str {
    state["type"].as_str().unwrap_or_default()
}

/// Whether a state of this type ends a run.
pub(crate) fn is_finished(kind: &str) -> bool {
    FINISHED.contains(&kind)
}

/// The start time of a state that has one; of a scheduled state without it, now.
pub(crate) fn start_time(state: &Value, now: Timestamp) -> Option<Timestamp> {
    if let Some(start) = state["start_time"].as_str().and_then(parse_time) {
        return Some(start);
    }
    matches!(
        kind_of(state),
        "Scheduled" | "Resume" | "Retrying" | "Queued"
    )
    .then_some(now)
}

/// A Scheduled state as the server writes it.
pub(crate) fn scheduled(message: &str, start: Timestamp) -> Value {
    json!({
        "type": "Scheduled", "message": message, "start_time": iso_micros(start),
        "context": {"tags": []}, "cached_inputs": {}, "__version__": "1.4.1",
        "_result": {"type": "NoResultType", "__version__": "1.4.1"},
    })
}

impl Store {
    /// Sets a flow run's state on a client's behalf.
    pub(crate) fn set_flow_run_state(
        &mut self,
        rules: &StateRules,
        id: Uuid,
        version: Option<i64>,
        state: Value,
        agent_id: Option<Uuid>,
        now: Timestamp,
    ) -> Result<Outcome, Refusal> {
        check_payload(&state)?;
        let current = match self.run(&id) {
            Some(run) => run.row.version,
            None => return Err(Refusal::UnknownFlowRun(id)),
        };
        rules.check_version(version, current)?;
        let submits = kind_of(&state) == "Submitted";
        if (submits || kind_of(&state) == "Running") && self.queued.contains(&id) {
            return Ok(Outcome::Queued);
        }
        if submits {
            self.lock_submitted(rules, id, now)?;
        }
        self.apply_state(&id, state, now, agent_id);
        Ok(Outcome::Set)
    }

    /// Sets a task run's state on a client's behalf.
    pub(crate) fn set_task_run_state(
        &mut self,
        rules: &StateRules,
        id: Uuid,
        version: Option<i64>,
        state: Value,
        now: Timestamp,
    ) -> Result<Outcome, Refusal> {
        check_payload(&state)?;
        let Some(task) = self.tasks.get(&id) else {
            return Err(Refusal::UnknownTaskRun(id));
        };
        rules.check_version(version, task.version)?;
        let run = task.flow_run_id;
        let runs = self.run(&run).is_some_and(|run| run.row.state == "Running");
        if kind_of(&state) == "Running" && !runs {
            return Err(Refusal::FlowRunNotRunning { task: id, run });
        }
        if kind_of(&state) == "Submitted" {
            self.lock_submitted(rules, id, now)?;
        }
        self.apply_task_state(&id, state, now);
        Ok(Outcome::Set)
    }

    fn lock_submitted(
        &mut self,
        rules: &StateRules,
        id: Uuid,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if let Some(since) = self.submitted_locks.get(&id)
            && now.duration_since(*since) < rules.lock()
        {
            return Err(Refusal::AlreadySubmitted);
        }
        self.submitted_locks.insert(id, now);
        Ok(())
    }

    /// Reschedules runs that show no sign of life, as the Lazarus service does.
    pub(crate) fn lazarus(&mut self, silent_for: SignedDuration, now: Timestamp) -> Vec<Uuid> {
        const AT_MOST: i64 = 3;
        let under_way = |id: &Uuid| {
            let task = self.tasks.get(id);
            task.is_some_and(|task| matches!(task.state.as_str(), "Submitted" | "Running"))
        };
        let lost: BTreeSet<Uuid> = self
            .runs()
            .map(|run| &run.row)
            .filter(|row| matches!(row.state.as_str(), "Submitted" | "Running"))
            .filter(|row| row.times_resurrected < AT_MOST)
            .filter(|row| {
                row.heartbeat
                    .is_none_or(|beat| now.duration_since(beat) >= silent_for)
            })
            .filter(|row| !row.task_runs.iter().any(under_way))
            .map(|row| row.id)
            .collect();
        for id in &lost {
            self.update_run(id, |row| row.times_resurrected += 1);
            // Ten minutes after the submission its lock is long over.
            self.submitted_locks.remove(id);
            self.apply_state(
                id,
                scheduled("Rescheduled by a Lazarus process.", now),
                now,
                None,
            );
        }
        lost.into_iter().collect()
    }
}

impl StateRules {
    fn check_version(&self, given: Option<i64>, current: i64) -> Result<(), Refusal> {
        match given {
            Some(given) if self.check_versions && given != current => {
                Err(Refusal::Version { given, current })
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> SignedDuration {
        SignedDuration::try_from(self.submitted_lock).unwrap_or(SignedDuration::MAX)
    }
}

fn check_payload(state: &Value) -> Result<(), Refusal> {
    let kind = kind_of(state);
    if !KNOWN.contains(&kind) {
        return Err(Refusal::UnknownType(kind.to_owned()));
    }
    if rough_size(state) > LARGEST_STATE {
        return Err(Refusal::TooLarge);
    }
    Ok(())
}

fn rough_size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| rough_size(item) + 1).sum::<usize>(),
        Value::Object(members) => {
            let sizes = members
                .iter()
                .map(|(name, value)| name.len() + 4 + rough_size(value));
            2 + sizes.sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}
