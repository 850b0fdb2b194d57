//! The output types of the schema.

use std::sync::Arc;

use async_graphql::{Context, Object, SimpleObject};

use super::filter::{log_matches, task_run_matches};
use super::inputs::{LogFilter, TaskRunFilter};
use super::rows::{AgentRow, Flow, FlowRunRow, LogRow, StateRecord, TaskRunRow};
use super::scalars::{Id, Json, Time};
use super::shared::Shared;

#[derive(SimpleObject)]
#[graphql(name = "tenant")]
pub(crate) struct Tenant {
    pub(crate) id: Id,
    pub(crate) name: String,
    pub(crate) slug: String,
}

#[derive(SimpleObject)]
#[graphql(name = "api_info")]
pub(crate) struct ApiInfo {
    pub(crate) backend: String,
    pub(crate) mode: String,
    pub(crate) version: String,
}

#[derive(SimpleObject)]
#[graphql(name = "auth_info", rename_fields = "snake_case")]
pub(crate) struct AuthInfo {
    pub(crate) tenant_id: Option<Id>,
}

#[derive(SimpleObject)]
#[graphql(name = "agent_config")]
pub(crate) struct AgentConfig {
    pub(crate) id: Id,
    pub(crate) settings: Json,
}

#[derive(SimpleObject)]
#[graphql(name = "register_agent_payload")]
pub(crate) struct RegisterAgentPayload {
    pub(crate) id: Id,
}

#[derive(SimpleObject)]
#[graphql(name = "runs_in_queue_payload", rename_fields = "snake_case")]
pub(crate) struct RunsInQueuePayload {
    pub(crate) flow_run_ids: Vec<Id>,
}

#[derive(SimpleObject)]
#[graphql(name = "set_state_payload")]
pub(crate) struct SetStatePayload {
    pub(crate) id: Id,
    pub(crate) status: String,
    pub(crate) message: Option<String>,
}

#[derive(SimpleObject)]
#[graphql(name = "set_flow_run_states_payload")]
pub(crate) struct SetFlowRunStatesPayload {
    pub(crate) states: Vec<SetStatePayload>,
}

#[derive(SimpleObject)]
#[graphql(name = "set_task_run_states_payload")]
pub(crate) struct SetTaskRunStatesPayload {
    pub(crate) states: Vec<SetStatePayload>,
}

#[derive(SimpleObject)]
#[graphql(name = "success_payload")]
pub(crate) struct SuccessPayload {
    pub(crate) success: bool,
    pub(crate) error: Option<String>,
}

pub(crate) struct FlowNode(pub(crate) Arc<Flow>);

#[Object(name = "flow", rename_fields = "snake_case")]
impl FlowNode {
    async fn id(&self) -> Id {
        Id(self.0.id)
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn version(&self) -> i64 {
        self.0.version
    }
    async fn core_version(&self) -> Option<&str> {
        self.0.core_version.as_deref()
    }
    async fn storage(&self) -> Option<Json> {
        some_json(&self.0.storage)
    }
    async fn environment(&self) -> Option<Json> {
        some_json(&self.0.environment)
    }
}

pub(crate) struct AgentNode(pub(crate) AgentRow);

#[Object(name = "agent", rename_fields = "snake_case")]
impl AgentNode {
    async fn id(&self) -> Id {
        Id(self.0.id)
    }
    #[graphql(name = "type")]
    async fn kind(&self) -> &str {
        &self.0.kind
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn labels(&self) -> Json {
        Json(self.0.labels.iter().cloned().collect())
    }
    async fn core_version(&self) -> Option<&str> {
        self.0.core_version.as_deref()
    }
    async fn last_queried(&self) -> Option<Time> {
        self.0.last_queried.map(Time)
    }
}

pub(crate) struct FlowRunNode(pub(crate) Arc<FlowRunRow>);

#[Object(
    name = "flow_run",
    rename_fields = "snake_case",
    rename_args = "snake_case"
)]
impl FlowRunNode {
    async fn id(&self) -> Id {
        Id(self.0.id)
    }
    async fn tenant_id(&self) -> Id {
        Id(self.0.tenant_id)
    }
    async fn flow_id(&self) -> Id {
        Id(self.0.flow.id)
    }
    async fn agent_id(&self) -> Option<Id> {
        self.0.agent_id.map(Id)
    }
    async fn name(&self) -> Option<&str> {
        Some(&self.0.name)
    }
    async fn version(&self) -> i64 {
        self.0.version
    }
    async fn state(&self) -> Option<&str> {
        Some(&self.0.state)
    }
    async fn serialized_state(&self) -> Option<Json> {
        some_json(&self.0.serialized_state)
    }
    async fn state_timestamp(&self) -> Option<Time> {
        Some(Time(self.0.state_timestamp))
    }
    async fn state_start_time(&self) -> Option<Time> {
        self.0.state_start_time.map(Time)
    }
    async fn scheduled_start_time(&self) -> Option<Time> {
        self.0.scheduled_start_time.map(Time)
    }
    async fn heartbeat(&self) -> Option<Time> {
        self.0.heartbeat.map(Time)
    }
    async fn updated(&self) -> Option<Time> {
        Some(Time(self.0.updated))
    }
    async fn times_resurrected(&self) -> Option<i64> {
        Some(self.0.times_resurrected)
    }
    async fn labels(&self) -> Option<Json> {
        Some(Json(self.0.labels.iter().cloned().collect()))
    }
    async fn run_config(&self) -> Option<Json> {
        some_json(&self.0.run_config)
    }
    async fn parameters(&self) -> Option<Json> {
        some_json(&self.0.parameters)
    }
    async fn flow(&self) -> FlowNode {
        FlowNode(self.0.flow.clone())
    }
    async fn agent(&self, context: &Context<'_>) -> Option<AgentNode> {
        let store = context.data_unchecked::<Arc<Shared>>().store();
        let agent = store.agents.get(&self.0.agent_id?)?;
        Some(AgentNode(agent.clone()))
    }
    async fn task_runs(
        &self,
        context: &Context<'_>,
        #[graphql(name = "where")] filter: Option<TaskRunFilter>,
    ) -> Vec<TaskRunNode> {
        let store = context.data_unchecked::<Arc<Shared>>().store();
        let tasks = self.0.task_runs.iter().filter_map(|id| store.tasks.get(id));
        tasks
            .filter(|task| {
                filter
                    .as_ref()
                    .is_none_or(|filter| task_run_matches(filter, task))
            })
            .map(|task| TaskRunNode(task.clone()))
            .collect()
    }
    async fn states(&self, context: &Context<'_>) -> Vec<StateNode> {
        let store = context.data_unchecked::<Arc<Shared>>().store();
        let history = store.run(&self.0.id).map(|run| run.history.clone());
        history.into_iter().flatten().map(StateNode).collect()
    }
    async fn logs(
        &self,
        context: &Context<'_>,
        #[graphql(name = "where")] filter: Option<LogFilter>,
    ) -> Vec<LogNode> {
        let store = context.data_unchecked::<Arc<Shared>>().store();
        let logs = store.run(&self.0.id).map(|run| run.logs.clone());
        let fits = |log: &LogRow| {
            filter
                .as_ref()
                .is_none_or(|filter| log_matches(filter, log))
        };
        logs.into_iter()
            .flatten()
            .filter(fits)
            .map(LogNode)
            .collect()
    }
}

pub(crate) struct TaskRunNode(TaskRunRow);

#[Object(name = "task_run", rename_fields = "snake_case")]
impl TaskRunNode {
    async fn id(&self) -> Id {
        Id(self.0.id)
    }
    async fn flow_run_id(&self) -> Id {
        Id(self.0.flow_run_id)
    }
    async fn task_id(&self) -> Id {
        Id(self.0.task_id)
    }
    async fn version(&self) -> i64 {
        self.0.version
    }
    async fn state(&self) -> Option<&str> {
        Some(&self.0.state)
    }
    async fn serialized_state(&self) -> Option<Json> {
        some_json(&self.0.serialized_state)
    }
    async fn state_timestamp(&self) -> Option<Time> {
        Some(Time(self.0.state_timestamp))
    }
    async fn state_start_time(&self) -> Option<Time> {
        self.0.state_start_time.map(Time)
    }
    async fn heartbeat(&self) -> Option<Time> {
        self.0.heartbeat.map(Time)
    }
}

pub(crate) struct StateNode(StateRecord);

#[Object(name = "flow_run_state", rename_fields = "snake_case")]
impl StateNode {
    async fn version(&self) -> i64 {
        self.0.version
    }
    async fn state(&self) -> &str {
        self.0.kind()
    }
    async fn message(&self) -> Option<&str> {
        self.0.state["message"].as_str()
    }
    async fn timestamp(&self) -> Time {
        Time(self.0.at)
    }
    async fn serialized_state(&self) -> Json {
        Json(self.0.state.clone())
    }
}

pub(crate) struct LogNode(LogRow);

#[Object(name = "log", rename_fields = "snake_case")]
impl LogNode {
    async fn id(&self) -> Id {
        Id(self.0.id)
    }
    async fn flow_run_id(&self) -> Id {
        Id(self.0.flow_run_id)
    }
    async fn task_run_id(&self) -> Option<Id> {
        self.0.task_run_id.map(Id)
    }
    async fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }
    async fn message(&self) -> Option<&str> {
        self.0.message.as_deref()
    }
    async fn level(&self) -> Option<&str> {
        self.0.level.as_deref()
    }
    async fn timestamp(&self) -> Time {
        Time(self.0.timestamp)
    }
}

fn some_json(value: &serde_json::Value) -> Option<Json> {
    (!value.is_null()).then(|| Json(value.clone()))
}
