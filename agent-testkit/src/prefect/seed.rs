//! Runs to begin with.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::rows::{Flow, FlowRunRow, StateRecord, TaskRunRow};
use super::states::{kind_of, scheduled, start_time};
use super::store::Store;
use crate::clock::iso_micros;

/// A flow run to put into the server. Without further words: Scheduled for now, with a
/// `KubernetesRun` and without labels.
#[derive(Clone, Debug, Default)]
pub struct FlowRunSeed {
    id: Option<Uuid>,
    flow_id: Option<Uuid>,
    flow_name: Option<String>,
    name: Option<String>,
    labels: BTreeSet<String>,
    start_time: Option<Timestamp>,
    run_config: Option<Value>,
    storage: Option<Value>,
    core_version: Option<Option<String>>,
    parameters: Option<Value>,
    state: Option<Value>,
    agent_id: Option<Uuid>,
    version: Option<i64>,
    due_tasks: Vec<Timestamp>,
}

impl FlowRunSeed {
    /// A run that is due now.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the run this id instead of a random one.
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// Gives the flow this id instead of a random one.
    pub fn flow_id(mut self, id: Uuid) -> Self {
        self.flow_id = Some(id);
        self
    }

    /// Names the flow.
    pub fn flow_name(mut self, name: impl Into<String>) -> Self {
        self.flow_name = Some(name.into());
        self
    }

    /// Names the run.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the run's labels, and those of its default run config.
    pub fn labels<T: Into<String>>(mut self, labels: impl IntoIterator<Item = T>) -> Self {
        self.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Sets when the run is due.
    pub fn start_time(mut self, time: Timestamp) -> Self {
        self.start_time = Some(time);
        self
    }

    /// Replaces the run config; null for a run without one.
    pub fn run_config(mut self, run_config: Value) -> Self {
        self.run_config = Some(run_config);
        self
    }

    /// Replaces the flow's storage.
    pub fn storage(mut self, storage: Value) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Sets the Prefect version the flow was registered with, or none.
    pub fn core_version(mut self, version: Option<&str>) -> Self {
        self.core_version = Some(version.map(str::to_owned));
        self
    }

    /// Sets the parameters.
    pub fn parameters(mut self, parameters: Value) -> Self {
        self.parameters = Some(parameters);
        self
    }

    /// Replaces the whole state, of whatever type.
    pub fn state(mut self, serialized_state: Value) -> Self {
        self.state = Some(serialized_state);
        self
    }

    /// Says which agent submitted the run.
    pub fn agent_id(mut self, id: Uuid) -> Self {
        self.agent_id = Some(id);
        self
    }

    /// Sets the version the run starts with.
    pub fn version(mut self, version: i64) -> Self {
        self.version = Some(version);
        self
    }

    /// Adds a task run that waits for a retry at `start`.
    pub fn due_task(mut self, start: Timestamp) -> Self {
        self.due_tasks.push(start);
        self
    }

    /// Puts the run into the store.
    pub(crate) fn insert(self, store: &mut Store, now: Timestamp) -> Uuid {
        let id = self.id.unwrap_or_else(|| store.new_id());
        let flow_id = self.flow_id.unwrap_or_else(|| store.new_id());
        let due = self.start_time.unwrap_or(now);
        let state = self
            .state
            .unwrap_or_else(|| scheduled("Flow run scheduled.", due));
        let flow_name = self.flow_name.unwrap_or_else(|| "etl".into());
        let short = id.simple().to_string();
        let name = self
            .name
            .unwrap_or_else(|| format!("run-{}", short.get(..8).unwrap_or_default()));
        let labels = self.labels;
        let flow = Flow {
            id: flow_id,
            version: 1,
            core_version: self.core_version.unwrap_or_else(|| Some("1.4.1".into())),
            storage: self.storage.unwrap_or_else(|| local_storage(&flow_name)),
            environment: Value::Null,
            name: flow_name,
        };
        let version = self.version.unwrap_or(1);
        let row = FlowRunRow {
            id,
            tenant_id: store.tenant_id,
            flow: Arc::new(flow),
            version,
            state: kind_of(&state).to_owned(),
            state_start_time: start_time(&state, now),
            state_timestamp: now,
            scheduled_start_time: Some(due),
            agent_id: self.agent_id,
            run_config: self.run_config.unwrap_or_else(|| kubernetes_run(&labels)),
            labels,
            name,
            parameters: self.parameters.unwrap_or_else(|| json!({})),
            heartbeat: matches!(kind_of(&state), "Submitted" | "Running").then_some(now),
            updated: now,
            times_resurrected: 0,
            task_runs: Vec::new(),
            number: 0,
            serialized_state: state.clone(),
        };
        let first = StateRecord {
            version,
            state,
            at: now,
            agent_id: None,
        };
        store.insert_run(row, vec![first]);
        for start in self.due_tasks {
            let task = waiting_task(store, id, start, now);
            store.insert_task(task);
        }
        id
    }
}

const VERBATIM: &str = "testkit-verbatim:";

/// A value that is answered as this JSON text, which need be nothing that a [`Value`] can hold, such
/// as `1e999`. The text has no quotes.
pub fn verbatim(text: &str) -> Value {
    json!(format!("{VERBATIM}{text}"))
}

/// Replaces the values of [`verbatim`] in an answer.
pub(crate) fn spell_out(mut answer: String) -> String {
    let mark = format!("\"{VERBATIM}");
    while let Some(start) = answer.find(&mark) {
        let text = start + mark.len();
        let Some(len) = answer.get(text..).and_then(|rest| rest.find('"')) else {
            break;
        };
        let verbatim = answer[text..text + len].to_owned();
        answer.replace_range(start..=text + len, &verbatim);
    }
    answer
}

/// A `KubernetesRun` that sets nothing but labels.
pub fn kubernetes_run(labels: &BTreeSet<String>) -> Value {
    json!({
        "type": "KubernetesRun", "__version__": "1.4.1", "env": null, "labels": labels,
        "image": null, "job_template": null, "job_template_path": null, "cpu_limit": null,
        "cpu_request": null, "memory_limit": null, "memory_request": null,
        "service_account_name": null, "image_pull_secrets": null, "image_pull_policy": null,
    })
}

fn local_storage(flow: &str) -> Value {
    json!({
        "type": "Local", "directory": "/flows", "flows": {flow: format!("/flows/{flow}.prefect")},
        "path": null, "secrets": [], "stored_as_script": false, "__version__": "1.4.1",
    })
}

/// A state of a run that is under way.
pub(crate) fn running() -> Value {
    json!({
        "type": "Running", "message": "Running flow.", "context": {}, "cached_inputs": {},
        "_result": {"type": "NoResultType", "__version__": "1.4.1"}, "__version__": "1.4.1",
    })
}

fn waiting_task(store: &mut Store, run: Uuid, start: Timestamp, now: Timestamp) -> TaskRunRow {
    TaskRunRow {
        id: store.new_id(),
        flow_run_id: run,
        task_id: store.new_id(),
        version: 3,
        state: "Retrying".into(),
        serialized_state: json!({
            "type": "Retrying", "message": "Retrying task.", "start_time": iso_micros(start),
            "run_count": 1, "context": {}, "cached_inputs": {}, "__version__": "1.4.1",
            "_result": {"type": "NoResultType", "__version__": "1.4.1"},
        }),
        state_timestamp: now,
        state_start_time: Some(start),
        heartbeat: None,
    }
}
