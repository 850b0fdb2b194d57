//! The operations of the Prefect API that an agent needs, checked against `schema.graphql`.
#![allow(non_snake_case, non_camel_case_types, reason = "names as on the wire")]

use serde_json::Value;

use crate::state;

#[cynic::schema("prefect")]
#[allow(unreachable_pub, reason = "generated")]
mod schema {}

/// An id; the API calls it `uuid`.
#[derive(cynic::Scalar, Debug, Clone, PartialEq, Eq)]
#[cynic(graphql_type = "uuid")]
pub(crate) struct Uuid(pub(crate) String);

/// A time as text, RFC 3339.
#[derive(cynic::Scalar, Debug, Clone, PartialEq, Eq)]
#[cynic(graphql_type = "timestamptz")]
pub(crate) struct Time(pub(crate) String);

/// Any JSON value.
#[derive(cynic::Scalar, Debug, Clone, PartialEq)]
#[cynic(graphql_type = "JSON")]
pub(crate) struct Json(pub(crate) Value);

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root")]
pub(crate) struct Hello {
    #[allow(dead_code, reason = "only that it answers matters")]
    pub(crate) hello: Option<String>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "api_info")]
pub(crate) struct ApiInfo {
    pub(crate) version: Option<String>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root")]
pub(crate) struct About {
    pub(crate) api: Option<ApiInfo>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "tenant")]
pub(crate) struct Tenant {
    pub(crate) id: Uuid,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root")]
pub(crate) struct Tenants {
    pub(crate) tenant: Vec<Tenant>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "auth_info")]
pub(crate) struct AuthInfo {
    #[cynic(rename = "tenant_id")]
    pub(crate) tenant_id: Option<Uuid>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root")]
pub(crate) struct Auth {
    #[cynic(rename = "auth_info")]
    pub(crate) auth_info: Option<AuthInfo>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct ById {
    pub(crate) id: Uuid,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "agent_config")]
pub(crate) struct AgentConfig {
    pub(crate) settings: Option<Json>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "ById")]
pub(crate) struct AgentConfigs {
    #[cynic(rename = "agent_config")]
    #[arguments(where: { id: { _eq: $id } })]
    pub(crate) agent_config: Vec<AgentConfig>,
}

/// What the agent has to know of a flow run to deploy it.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run")]
pub(crate) struct FlowRun {
    pub(crate) id: Uuid,
    pub(crate) version: Option<i32>,
    #[cynic(rename = "serialized_state")]
    pub(crate) serialized_state: Option<Json>,
    #[cynic(rename = "scheduled_start_time")]
    pub(crate) scheduled_start_time: Option<Time>,
    #[cynic(rename = "run_config")]
    pub(crate) run_config: Option<Json>,
    pub(crate) name: Option<String>,
    pub(crate) flow: Flow,
}

/// A flow run with those of its task runs that have been due for a while.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run", variables = "ReadyRows")]
pub(crate) struct ReadyFlowRun {
    #[cynic(spread)]
    pub(crate) row: FlowRun,
    #[cynic(rename = "task_runs")]
    #[arguments(where: { state_start_time: { _lte: $buffer } })]
    pub(crate) task_runs: Vec<TaskRun>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow")]
pub(crate) struct Flow {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) environment: Option<Json>,
    pub(crate) storage: Option<Json>,
    #[cynic(rename = "core_version")]
    pub(crate) core_version: Option<String>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "task_run")]
pub(crate) struct TaskRun {
    pub(crate) id: Uuid,
    pub(crate) version: Option<i32>,
    #[cynic(rename = "serialized_state")]
    pub(crate) serialized_state: Option<Json>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct ReadyRows {
    pub(crate) ids: Option<Vec<Uuid>>,
    pub(crate) buffer: Time,
}

/// The rows of runs that are ready: scheduled, or running with task runs that have been due for a
/// while.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "ReadyRows")]
pub(crate) struct ReadyFlowRuns {
    #[cynic(rename = "flow_run")]
    #[arguments(where: {
        id: { _in: $ids },
        _or: [
            { state: { _eq: "Scheduled" } },
            { state: { _eq: "Running" }, task_runs: { state_start_time: { _lte: $buffer } } }
        ]
    })]
    #[allow(dead_code, reason = "rows are read one by one")]
    pub(crate) flow_run: Vec<ReadyFlowRun>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct ClaimedBefore {
    pub(crate) agent: Uuid,
    pub(crate) before: Time,
    pub(crate) offset: i32,
    pub(crate) limit: i32,
}

/// Runs that an agent claimed before a time and whose process has not reported: they are
/// Submitted, or they are Running and task runs of theirs are, which were to be retried. Page by
/// page, the latest first.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "ClaimedBefore")]
pub(crate) struct ClaimedIds {
    #[cynic(rename = "flow_run")]
    #[arguments(
        where: {
            agent_id: { _eq: $agent },
            _or: [
                { state: { _eq: "Submitted" }, state_timestamp: { _lte: $before } },
                {
                    state: { _eq: "Running" },
                    task_runs: { state: { _eq: "Submitted" }, state_timestamp: { _lte: $before } }
                }
            ]
        },
        order_by: [{ state_timestamp: desc }],
        limit: $limit,
        offset: $offset
    )]
    #[allow(dead_code, reason = "rows are read one by one")]
    pub(crate) flow_run: Vec<ClaimOfRun>,
}

/// The claims of a flow run: its own, or those of its task runs.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run")]
pub(crate) struct ClaimOfRun {
    pub(crate) id: Uuid,
    #[cynic(rename = "serialized_state")]
    pub(crate) serialized_state: Option<Json>,
    #[cynic(rename = "task_runs")]
    #[arguments(where: { state: { _eq: "Submitted" } })]
    pub(crate) task_runs: Vec<ClaimOfTask>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "task_run")]
pub(crate) struct ClaimOfTask {
    #[cynic(rename = "serialized_state")]
    pub(crate) serialized_state: Option<Json>,
}

impl ClaimOfRun {
    /// Whether one of the claims was made for this place.
    pub(crate) fn claimed_for(&self, place: Option<&str>) -> bool {
        let own = std::iter::once(&self.serialized_state);
        let states = own.chain(self.task_runs.iter().map(|task| &task.serialized_state));
        let claims = states.flatten().map(|json| &json.0);
        claims
            .filter(|state| state::kind(state) == "Submitted")
            .any(|state| state::place(state) == place)
    }
}

/// A flow run with those of its task runs that are Submitted.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run")]
pub(crate) struct ClaimedFlowRun {
    #[cynic(spread)]
    pub(crate) row: FlowRun,
    #[cynic(rename = "task_runs")]
    #[arguments(where: { state: { _eq: "Submitted" } })]
    pub(crate) task_runs: Vec<TaskRun>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct ClaimedByIds {
    pub(crate) agent: Uuid,
    pub(crate) ids: Option<Vec<Uuid>>,
}

/// Those of some runs that are claimed by an agent and whose process has not reported. Claiming the
/// task runs of one that is Running does not make the agent known with it.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "ClaimedByIds")]
pub(crate) struct ClaimedFlowRuns {
    #[cynic(rename = "flow_run")]
    #[arguments(where: {
        id: { _in: $ids },
        _or: [
            { state: { _eq: "Submitted" }, agent_id: { _eq: $agent } },
            { state: { _eq: "Running" }, task_runs: { state: { _eq: "Submitted" } } }
        ]
    })]
    #[allow(dead_code, reason = "rows are read one by one")]
    pub(crate) flow_run: Vec<ClaimedFlowRun>,
}

/// A flow run without what is to be executed.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run")]
pub(crate) struct BareFlowRun {
    pub(crate) id: Uuid,
    pub(crate) version: Option<i32>,
    #[cynic(rename = "serialized_state")]
    pub(crate) serialized_state: Option<Json>,
    #[cynic(rename = "scheduled_start_time")]
    pub(crate) scheduled_start_time: Option<Time>,
    pub(crate) name: Option<String>,
}

/// Flow runs whose descriptions are too large.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "ByIds")]
pub(crate) struct BareFlowRuns {
    #[cynic(rename = "flow_run")]
    #[arguments(where: { id: { _in: $ids } })]
    #[allow(dead_code, reason = "rows are read one by one")]
    pub(crate) flow_run: Vec<BareFlowRun>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct EndedRows {
    pub(crate) tenant: Uuid,
    pub(crate) states: Option<Vec<String>>,
    pub(crate) since: Time,
    pub(crate) offset: i32,
    pub(crate) limit: i32,
}

/// Runs of a tenant that have got one of some states since a time, page by page.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "EndedRows")]
pub(crate) struct EndedFlowRuns {
    #[cynic(rename = "flow_run")]
    #[arguments(
        where: {
            tenant_id: { _eq: $tenant },
            state: { _in: $states },
            state_timestamp: { _gte: $since }
        },
        order_by: [{ state_timestamp: desc }],
        limit: $limit,
        offset: $offset
    )]
    #[allow(dead_code, reason = "rows are read one by one")]
    pub(crate) flow_run: Vec<EndedRun>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run")]
pub(crate) struct EndedRun {
    pub(crate) id: Uuid,
    pub(crate) state: Option<String>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct LogsOfRuns {
    pub(crate) ids: Option<Vec<Uuid>>,
    pub(crate) names: Option<Vec<String>>,
    pub(crate) messages: Option<Vec<String>>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "LogsOfRuns")]
pub(crate) struct LoggedRuns {
    #[cynic(rename = "flow_run")]
    #[arguments(where: { id: { _in: $ids } })]
    pub(crate) flow_run: Vec<LoggedRun>,
}

/// A flow run with what certain loggers have written to its log, and certain messages of any logger.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run", variables = "LogsOfRuns")]
pub(crate) struct LoggedRun {
    pub(crate) id: Uuid,
    #[arguments(where: { _or: [{ name: { _in: $names } }, { message: { _in: $messages } }] })]
    pub(crate) logs: Vec<Logged>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "log")]
pub(crate) struct Logged {
    pub(crate) name: Option<String>,
    pub(crate) message: Option<String>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct ByIds {
    pub(crate) ids: Option<Vec<Uuid>>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "flow_run")]
pub(crate) struct RunState {
    pub(crate) id: Uuid,
    pub(crate) state: Option<String>,
    pub(crate) version: Option<i32>,
    #[cynic(rename = "agent_id")]
    pub(crate) agent_id: Option<Uuid>,
    #[cynic(rename = "serialized_state")]
    pub(crate) serialized_state: Option<Json>,
}

/// The states of flow runs.
#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "query_root", variables = "ByIds")]
pub(crate) struct RunStates {
    #[cynic(rename = "flow_run")]
    #[arguments(where: { id: { _in: $ids } })]
    #[allow(dead_code, reason = "rows are read one by one")]
    pub(crate) flow_run: Vec<RunState>,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "register_agent_input", rename_all = "None")]
pub(crate) struct RegisterAgentInput {
    #[cynic(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<Vec<String>>,
    pub(crate) tenant_id: Uuid,
    pub(crate) agent_config_id: Option<Uuid>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct RegisterAgentVariables {
    pub(crate) input: RegisterAgentInput,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "register_agent_payload")]
pub(crate) struct RegisteredAgent {
    pub(crate) id: Option<Uuid>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "mutation_root", variables = "RegisterAgentVariables")]
pub(crate) struct RegisterAgent {
    #[cynic(rename = "register_agent")]
    #[arguments(input: $input)]
    pub(crate) register_agent: Option<RegisteredAgent>,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "get_runs_in_queue_input", rename_all = "None")]
pub(crate) struct RunsInQueueInput {
    pub(crate) before: Option<Time>,
    pub(crate) labels: Option<Vec<String>>,
    pub(crate) tenant_id: Uuid,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct RunsInQueueVariables {
    pub(crate) input: RunsInQueueInput,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "runs_in_queue_payload")]
pub(crate) struct QueuedRuns {
    #[cynic(rename = "flow_run_ids")]
    pub(crate) flow_run_ids: Option<Vec<Uuid>>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "mutation_root", variables = "RunsInQueueVariables")]
pub(crate) struct RunsInQueue {
    #[cynic(rename = "get_runs_in_queue")]
    #[arguments(input: $input)]
    pub(crate) get_runs_in_queue: Option<QueuedRuns>,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "set_flow_run_state_input", rename_all = "None")]
pub(crate) struct FlowRunStateInput {
    pub(crate) flow_run_id: Uuid,
    pub(crate) version: Option<i32>,
    pub(crate) state: Json,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "set_flow_run_states_input", rename_all = "None")]
pub(crate) struct FlowRunStatesInput {
    pub(crate) states: Vec<FlowRunStateInput>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct FlowRunStatesVariables {
    pub(crate) input: FlowRunStatesInput,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "state_result")]
pub(crate) struct StateResult {
    pub(crate) status: Option<String>,
    pub(crate) message: Option<String>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "set_flow_run_states_payload")]
pub(crate) struct FlowRunStatesResult {
    pub(crate) states: Vec<StateResult>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "mutation_root", variables = "FlowRunStatesVariables")]
pub(crate) struct SetFlowRunStates {
    #[cynic(rename = "set_flow_run_states")]
    #[arguments(input: $input)]
    pub(crate) set_flow_run_states: Option<FlowRunStatesResult>,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "set_task_run_state_input", rename_all = "None")]
pub(crate) struct TaskRunStateInput {
    pub(crate) task_run_id: Uuid,
    pub(crate) version: Option<i32>,
    pub(crate) state: Json,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "set_task_run_states_input", rename_all = "None")]
pub(crate) struct TaskRunStatesInput {
    pub(crate) states: Vec<TaskRunStateInput>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct TaskRunStatesVariables {
    pub(crate) input: TaskRunStatesInput,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "set_task_run_states_payload")]
pub(crate) struct TaskRunStatesResult {
    pub(crate) states: Vec<StateResult>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "mutation_root", variables = "TaskRunStatesVariables")]
pub(crate) struct SetTaskRunStates {
    #[cynic(rename = "set_task_run_states")]
    #[arguments(input: $input)]
    pub(crate) set_task_run_states: Option<TaskRunStatesResult>,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "write_run_log_input", rename_all = "None")]
pub(crate) struct RunLogInput {
    pub(crate) flow_run_id: Option<Uuid>,
    pub(crate) name: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) level: Option<String>,
    #[cynic(skip_serializing_if = "Option::is_none")]
    pub(crate) timestamp: Option<Time>,
}

#[derive(cynic::InputObject)]
#[cynic(graphql_type = "write_run_logs_input", rename_all = "None")]
pub(crate) struct RunLogsInput {
    pub(crate) logs: Vec<RunLogInput>,
}

#[derive(cynic::QueryVariables)]
pub(crate) struct RunLogsVariables {
    pub(crate) input: RunLogsInput,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "success_payload")]
pub(crate) struct Success {
    pub(crate) success: Option<bool>,
}

#[derive(cynic::QueryFragment)]
#[cynic(graphql_type = "mutation_root", variables = "RunLogsVariables")]
pub(crate) struct WriteRunLogs {
    #[cynic(rename = "write_run_logs")]
    #[arguments(input: $input)]
    pub(crate) write_run_logs: Option<Success>,
}

#[cfg(test)]
mod tests {
    use cynic::{MutationBuilder, QueryBuilder};

    use super::*;

    #[test]
    fn queries_read_as_on_the_wire() {
        let query = ReadyFlowRuns::build(ReadyRows {
            ids: None,
            buffer: Time(String::new()),
        })
        .query;
        for part in [
            "flow_run(where: {",
            "_in: $ids",
            "_lte: $buffer",
            "_eq: \"Scheduled\"",
            "serialized_state",
            "core_version",
        ] {
            assert!(query.contains(part), "{part} in {query}");
        }
        let mutation = WriteRunLogs::build(RunLogsVariables {
            input: RunLogsInput { logs: vec![] },
        })
        .query;
        assert!(
            mutation.contains("$input: write_run_logs_input!"),
            "{mutation}"
        );
    }
}
