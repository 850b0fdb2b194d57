//! The state of a flow run, as far as an agent has to understand it.

use serde::{Deserialize, Serialize};

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Phase {
    /// Waits for its start time, or for an agent.
    Scheduled,
    /// An agent has claimed it; its process has not reported yet.
    Submitted,
    /// Its process has reported.
    Running,
    /// It has ended and will not run again by itself.
    Finished,
    /// None of these, for instance paused before it was ever scheduled.
    Other,
}

/// The state of a flow run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The name that the source gives the state, for instance `TriggerFailed`.
    pub name: String,
    /// What it means for the agent.
    pub phase: Phase,
    /// What the source keeps with the state for people, such as why the run failed.
    pub message: Option<String>,
}

impl State {
    /// Whether the run has ended.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }
}
