//! A row of the API's `flow_run` query, and the flow run it describes.

use agent_core::{Flow, FlowRun, FlowRunId, Moment, Phase, Work};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rows::Row;
use crate::{operations, state, time};

/// One element of the answer to the API's `flow_run` query. Every member but the ids may be
/// missing; members that are not listed are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct FlowRunRow {
    /// The run's id.
    pub id: String,
    /// The version of its state.
    #[serde(default)]
    pub version: Option<i32>,
    /// Its state, serialized.
    #[serde(default)]
    pub serialized_state: Value,
    /// When it was first meant to start.
    #[serde(default)]
    pub scheduled_start_time: Option<String>,
    /// Its run config.
    #[serde(default)]
    pub run_config: Value,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its flow.
    pub flow: FlowRow,
    /// Those of its task runs that wait for a retry.
    #[serde(default)]
    pub task_runs: Vec<TaskRunRow>,
    /// Why only a part of the row could be read, if so: the run is claimed and failed for that.
    #[serde(skip)]
    pub defect: Option<String>,
    /// Bytes of memory that the row takes, about.
    #[serde(skip)]
    pub weight: usize,
}

/// The flow of a [`FlowRunRow`].
#[derive(Debug, Clone, Default, Deserialize)]
pub struct FlowRow {
    /// The flow's id.
    pub id: String,
    /// The flow's name.
    #[serde(default)]
    pub name: String,
    /// The environment of flows from before run configs.
    #[serde(default)]
    pub environment: Value,
    /// Where the flow's code is.
    #[serde(default)]
    pub storage: Value,
    /// The version of Prefect that registered the flow.
    #[serde(default)]
    pub core_version: Option<String>,
}

/// A task run of a [`FlowRunRow`].
#[derive(Debug, Clone, Deserialize)]
pub struct TaskRunRow {
    /// The task run's id.
    pub id: String,
    /// The version of its state.
    #[serde(default)]
    pub version: Option<i32>,
    /// Its state, serialized.
    #[serde(default)]
    pub serialized_state: Value,
}

/// What a claim needs of a row; kept in [`FlowRun::token`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) version: Option<i32>,
    pub(crate) state: Value,
    pub(crate) tasks: Vec<TaskToken>,
}

/// What the claim of one task run needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TaskToken {
    pub(crate) id: String,
    pub(crate) version: Option<i32>,
    pub(crate) state: Value,
}

impl FlowRunRow {
    /// Reads a row.
    ///
    /// # Errors
    /// The member that cannot be read, and why.
    pub fn from_json(row: &Value) -> Result<Self, String> {
        serde_path_to_error::deserialize(row).map_err(|error| error.to_string())
    }

    /// The flow run that the row describes, as it is ready: its task runs that are scheduled are
    /// to be claimed with it.
    pub fn into_flow_run(self) -> FlowRun {
        self.into_run_with(state::is_scheduled)
    }

    /// The flow run that the row describes, as somebody has claimed it: its task runs that are
    /// Submitted were claimed with it.
    pub(crate) fn into_claimed_run(self) -> FlowRun {
        self.into_run_with(|state| state::kind(state) == "Submitted")
    }

    fn into_run_with(self, concerned: impl Fn(&Value) -> bool) -> FlowRun {
        let tasks: Vec<TaskToken> = self
            .task_runs
            .into_iter()
            .filter(|task| concerned(&task.serialized_state))
            .map(|task| TaskToken {
                id: task.id,
                version: task.version,
                state: task.serialized_state,
            })
            .collect();
        let scheduled = state::is_scheduled(&self.serialized_state);
        let under_way = state::phase(state::kind(&self.serialized_state)) == Phase::Running;
        let start = state::start_time(&self.serialized_state);
        let wanted = state::wanted_time(&self.serialized_state);
        let attempt = match (wanted, tasks.is_empty()) {
            (None, false) => retry_attempt(&self.id, &tasks),
            (wanted, _) => {
                let first = || self.scheduled_start_time.as_deref().and_then(time::parse);
                format!("{}@{}", self.id, micros(wanted.or_else(first)))
            }
        };
        let token = Token {
            version: self.version,
            state: self.serialized_state,
            tasks,
        };
        let work = match self.defect {
            Some(defect) => Work::Unreadable(format!(
                "the flow run, as the API describes it, cannot be deployed: {defect}; check its run config, and the storage of its flow"
            )),
            None => Work::Flow(Box::new(Flow {
                id: self.flow.id,
                name: self.flow.name,
                core_version: self.flow.core_version,
                storage: self.flow.storage,
                run_config: self.run_config,
                environment: self.flow.environment,
            })),
        };
        FlowRun {
            id: FlowRunId::from(self.id),
            name: self.name.unwrap_or_default(),
            due: start.filter(|_| scheduled),
            under_way,
            attempt,
            work,
            weight: self.weight,
            token: serde_json::to_value(token).unwrap_or_default(),
            read_at: Moment::now(),
        }
    }
}

/// A retry within a run that is still Running has no start time of its own: its task runs do.
fn retry_attempt(id: &str, tasks: &[TaskToken]) -> String {
    let mut starts: Vec<String> = tasks
        .iter()
        .map(|task| format!("{}@{}", task.id, micros(state::wanted_time(&task.state))))
        .collect();
    starts.sort();
    format!("{id}/{}", starts.join(","))
}

fn micros(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.as_microsecond().to_string())
}

impl From<operations::FlowRun> for FlowRunRow {
    fn from(row: operations::FlowRun) -> Self {
        let json = |value: Option<operations::Json>| value.map_or(Value::Null, |json| json.0);
        Self {
            id: row.id.0,
            version: row.version,
            serialized_state: json(row.serialized_state),
            scheduled_start_time: row.scheduled_start_time.map(|time| time.0),
            run_config: json(row.run_config),
            name: row.name,
            flow: FlowRow {
                id: row.flow.id.0,
                name: row.flow.name,
                environment: json(row.flow.environment),
                storage: json(row.flow.storage),
                core_version: row.flow.core_version,
            },
            task_runs: Vec::new(),
            defect: None,
            weight: 0,
        }
    }
}

impl From<operations::BareFlowRun> for FlowRunRow {
    fn from(row: operations::BareFlowRun) -> Self {
        Self {
            id: row.id.0,
            version: row.version,
            serialized_state: row.serialized_state.map_or(Value::Null, |json| json.0),
            scheduled_start_time: row.scheduled_start_time.map(|time| time.0),
            run_config: Value::Null,
            name: row.name,
            flow: FlowRow::default(),
            task_runs: Vec::new(),
            defect: None,
            weight: 0,
        }
    }
}

impl<R> From<Row<R>> for FlowRunRow
where
    Self: From<R>,
{
    fn from(read: Row<R>) -> Self {
        Self {
            defect: read.defect,
            weight: read.weight,
            ..Self::from(read.row)
        }
    }
}

impl From<operations::TaskRun> for TaskRunRow {
    fn from(task: operations::TaskRun) -> Self {
        Self {
            id: task.id.0,
            version: task.version,
            serialized_state: task.serialized_state.map_or(Value::Null, |json| json.0),
        }
    }
}

impl From<operations::ReadyFlowRun> for FlowRunRow {
    fn from(ready: operations::ReadyFlowRun) -> Self {
        Self {
            task_runs: ready.task_runs.into_iter().map(TaskRunRow::from).collect(),
            ..Self::from(ready.row)
        }
    }
}

impl From<operations::ClaimedFlowRun> for FlowRunRow {
    fn from(claimed: operations::ClaimedFlowRun) -> Self {
        Self {
            task_runs: claimed
                .task_runs
                .into_iter()
                .map(TaskRunRow::from)
                .collect(),
            ..Self::from(claimed.row)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(state: Value, tasks: Value) -> FlowRun {
        let row =
            json!({"id": "r", "flow": {"id": "f"}, "serialized_state": state, "task_runs": tasks});
        serde_json::from_value::<FlowRunRow>(row)
            .expect("a row")
            .into_flow_run()
    }

    fn scheduled(at: &str) -> Value {
        json!({"type": "Scheduled", "start_time": at})
    }

    #[test]
    fn an_attempt_is_known_again_after_its_claim_and_differs_from_the_next() {
        let first = scheduled("2023-01-05T10:00:05+00:00");
        let ready = row(first.clone(), json!([]));
        let claimed = row(state::submitted(&first, "", None), json!([]));
        let next = row(scheduled("2023-01-05T10:20:05+00:00"), json!([]));
        assert_eq!(ready.attempt, claimed.attempt);
        assert_ne!(ready.attempt, next.attempt);
        assert!(ready.due.is_some());
        assert_eq!(claimed.due, None);
    }

    #[test]
    fn so_is_one_that_a_limit_has_kept_in_the_queue() {
        let task = |state: &Value| json!([{"id": "a", "serialized_state": state}]);
        let running = json!({"type": "Running"});
        let queued = json!({
            "type": "Queued", "start_time": "2023-01-05T10:10:05+00:00",
            "state": scheduled("2023-01-05T10:00:05+00:00"),
        });
        let ready = row(running.clone(), task(&queued));
        let claimed = json!({
            "id": "r", "flow": {"id": "f"}, "serialized_state": running,
            "task_runs": task(&state::submitted(&queued, "", None)),
        });
        let claimed = serde_json::from_value::<FlowRunRow>(claimed).expect("a row");
        assert_eq!(ready.attempt, claimed.into_claimed_run().attempt);
    }

    #[test]
    fn a_retry_is_told_by_its_task_runs() {
        let task = |id: &str, at| json!({"id": id, "serialized_state": {"type": "Retrying", "start_time": at}});
        let running = json!({"type": "Running"});
        let (a, b) = (
            task("a", "2023-01-05T10:00:05+00:00"),
            task("b", "2023-01-05T10:00:06+00:00"),
        );
        let one = row(running.clone(), json!([a, b]));
        let same = row(running.clone(), json!([b, a]));
        let later = row(running, json!([a, task("b", "2023-01-05T11:00:06+00:00")]));
        assert_eq!(one.attempt, same.attempt);
        assert_ne!(one.attempt, later.attempt);
        assert_eq!(one.due, None, "a retry is due at once");
    }

    #[test]
    fn a_retry_is_known_again_after_its_claim() {
        let retrying = json!({"type": "Retrying", "start_time": "2023-01-05T10:00:05+00:00"});
        let running = json!({"type": "Running"});
        let ready = row(
            running.clone(),
            json!([{"id": "a", "serialized_state": retrying}]),
        );
        let submitted = state::submitted(&retrying, "", None);
        let claimed = json!({"id": "r", "flow": {"id": "f"}, "serialized_state": running,
            "task_runs": [{"id": "a", "serialized_state": submitted}]});
        let claimed = FlowRunRow::from_json(&claimed).expect("a row");
        assert_eq!(claimed.into_claimed_run().attempt, ready.attempt);
    }

    /// Any JSON, in which the members of a row come up often.
    fn any_json() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let name = prop_oneof![
            prop::sample::select(vec![
                "id",
                "version",
                "serialized_state",
                "start_time",
                "state",
                "type",
                "Scheduled",
                "Queued",
                "Submitted",
                "flow",
                "task_runs",
                "2023-01-05T10:00:05+00:00",
                "scheduled_start_time",
                "storage",
                "message",
                "_result",
            ])
            .prop_map(str::to_owned),
            any::<String>(),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            name.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name.clone(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest::proptest! {
        #[test]
        fn any_row_is_a_flow_run_or_an_error(row in any_json(), state in any_json(), tasks in any_json()) {
            let _ = FlowRunRow::from_json(&row).map(FlowRunRow::into_flow_run);
            let likely = json!({"id": "r", "flow": {"id": "f"}, "serialized_state": state.clone(),
                "task_runs": [{"id": "t", "serialized_state": tasks}]});
            let run = FlowRunRow::from_json(&likely).expect("a row").into_flow_run();
            proptest::prop_assert_eq!(run.id.as_str(), "r");
            let _ = state::submitted(&state, "", None);
        }
    }
}
