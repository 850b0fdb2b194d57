//! The rows of the tables behind the API.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

/// A registered flow.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// The flow's id.
    pub id: Uuid,
    /// The flow's name.
    pub name: String,
    /// The number of its registration.
    pub version: i64,
    /// The Prefect version it was registered with.
    pub core_version: Option<String>,
    /// Where its code is, as serialized by Prefect.
    pub storage: Value,
    /// The deprecated environment, null for flows with a run config.
    pub environment: Value,
}

/// A flow run as the API would show it now.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRunRow {
    /// The run's id.
    pub id: Uuid,
    /// The tenant it belongs to.
    pub tenant_id: Uuid,
    /// The flow that runs.
    pub flow: Arc<Flow>,
    /// Raised by one with every state.
    pub version: i64,
    /// The type of the state, such as `Scheduled`.
    pub state: String,
    /// The whole state.
    pub serialized_state: Value,
    /// When the state was set.
    pub state_timestamp: Timestamp,
    /// The start time in the state, if it has one.
    pub state_start_time: Option<Timestamp>,
    /// When the run was first meant to start.
    pub scheduled_start_time: Option<Timestamp>,
    /// The agent that submitted the run last.
    pub agent_id: Option<Uuid>,
    /// The labels that decide which agents see the run.
    pub labels: BTreeSet<String>,
    /// The run's name.
    pub name: String,
    /// The run config, null when there is none.
    pub run_config: Value,
    /// The flow's parameters for this run.
    pub parameters: Value,
    /// The last sign of life.
    pub heartbeat: Option<Timestamp>,
    /// When anything in this row changed last.
    pub updated: Timestamp,
    /// How often the Lazarus service has rescheduled the run.
    pub times_resurrected: i64,
    /// The ids of its task runs.
    pub task_runs: Vec<Uuid>,
    pub(crate) number: u64,
}

/// A task run as the API would show it now.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRunRow {
    /// The task run's id.
    pub id: Uuid,
    /// The flow run it belongs to.
    pub flow_run_id: Uuid,
    /// The task that runs.
    pub task_id: Uuid,
    /// Raised by one with every state.
    pub version: i64,
    /// The type of the state.
    pub state: String,
    /// The whole state.
    pub serialized_state: Value,
    /// When the state was set.
    pub state_timestamp: Timestamp,
    /// The start time in the state, if it has one.
    pub state_start_time: Option<Timestamp>,
    /// The last sign of life.
    pub heartbeat: Option<Timestamp>,
}

/// A state that was set, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRecord {
    /// The version that the run had from then on.
    pub version: i64,
    /// The whole state.
    pub state: Value,
    /// When it was set, on the server's clock.
    pub at: Timestamp,
    /// The agent named in the request's headers.
    pub agent_id: Option<Uuid>,
}

impl StateRecord {
    /// The type of the state.
    pub fn kind(&self) -> &str {
        self.state["type"].as_str().unwrap_or_default()
    }

    /// The message of the state.
    pub fn message(&self) -> &str {
        self.state["message"].as_str().unwrap_or_default()
    }
}

/// A line of a run's log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRow {
    /// The line's id.
    pub id: Uuid,
    /// The run whose log it is in.
    pub flow_run_id: Uuid,
    /// The task run that wrote it.
    pub task_run_id: Option<Uuid>,
    /// The logger's name.
    pub name: Option<String>,
    /// The text.
    pub message: Option<String>,
    /// The level, such as `INFO`.
    pub level: Option<String>,
    /// When it was written: as sent, else the time of arrival.
    pub timestamp: Timestamp,
    /// When it arrived.
    pub arrived: Timestamp,
}

/// A registered agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRow {
    /// The agent's id.
    pub id: Uuid,
    /// Its type, such as `KubernetesAgent`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeSet<String>,
    /// The version in its request headers.
    pub core_version: Option<String>,
    /// When it asked for runs last.
    pub last_queried: Option<Timestamp>,
}
