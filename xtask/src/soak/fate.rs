//! What becomes of a run of the soak, so that every way through the agent is taken again and again.

use std::time::Duration;

use agent_testkit::{Attempt, Course};
use serde_json::{Value, json};

/// How long pods run.
const RUNS: Duration = Duration::from_secs(2);

/// What becomes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Succeeds,
    /// Its first pod fails, and its second one succeeds.
    SucceedsAtLast,
    /// Its image comes at the second attempt.
    StartsLate,
    ExitsWithAnError,
    RunsOutOfMemory,
    HasNoImage,
    /// It runs until its owner cancels it.
    IsCancelled,
    /// It is a run for another kind of agent.
    CannotBeDeployed,
}

impl Fate {
    /// Of the run of this number: of twenty, twelve succeed as soon as they can.
    pub(super) fn of(number: usize) -> Self {
        match number % 20 {
            1 => Self::SucceedsAtLast,
            3 => Self::StartsLate,
            5 | 15 => Self::ExitsWithAnError,
            7 => Self::RunsOutOfMemory,
            9 => Self::HasNoImage,
            11 => Self::IsCancelled,
            13 => Self::CannotBeDeployed,
            _ => Self::Succeeds,
        }
    }

    /// The state in which it ends.
    pub(super) fn end(self) -> &'static str {
        match self {
            Self::Succeeds | Self::SucceedsAtLast | Self::StartsLate => "Success",
            Self::IsCancelled => "Cancelled",
            _ => "Failed",
        }
    }

    pub(super) fn run_config(self) -> Value {
        if self == Self::CannotBeDeployed {
            return json!({"type": "DockerRun", "image": "flow"});
        }
        let retries = u8::from(self == Self::SucceedsAtLast);
        let template = json!({"spec": {"backoffLimit": retries, "template": {"spec": {
            "containers": [{"name": "flow"}]}}}});
        json!({"type": "KubernetesRun", "job_template": template})
    }

    pub(super) fn course(self, attempt: &Attempt) -> Course {
        let output = "a line of the flow's output\n".repeat(20);
        match self {
            Self::SucceedsAtLast if attempt.number == 0 => {
                Course::exits_with(1, RUNS).with_log(output)
            }
            Self::Succeeds | Self::SucceedsAtLast => Course::succeeds_after(RUNS),
            Self::StartsLate => Course::image_pull_recovers("timeout", RUNS),
            Self::ExitsWithAnError => Course::exits_with(3, RUNS).with_log(output),
            Self::RunsOutOfMemory => Course::oom_killed(RUNS).with_log(output),
            Self::HasNoImage => Course::image_pull_failure("manifest unknown"),
            Self::IsCancelled | Self::CannotBeDeployed => Course::hangs(),
        }
    }
}
