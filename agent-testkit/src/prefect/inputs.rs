//! The input types of the schema: mutation inputs, filters and orders.

use async_graphql::{Enum, InputObject};

use super::scalars::{Id, Json, Time};

#[derive(InputObject)]
#[graphql(name = "register_agent_input", rename_fields = "snake_case")]
pub(crate) struct RegisterAgentInput {
    #[graphql(name = "type")]
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<Vec<String>>,
    pub(crate) tenant_id: Option<Id>,
    pub(crate) agent_config_id: Option<Id>,
}

#[derive(InputObject)]
#[graphql(name = "get_runs_in_queue_input", rename_fields = "snake_case")]
pub(crate) struct GetRunsInQueueInput {
    pub(crate) before: Option<Time>,
    pub(crate) labels: Option<Vec<String>>,
    pub(crate) tenant_id: Option<Id>,
}

#[derive(InputObject)]
#[graphql(name = "set_flow_run_states_input", rename_fields = "snake_case")]
pub(crate) struct SetFlowRunStatesInput {
    pub(crate) states: Vec<SetFlowRunStateInput>,
}

#[derive(InputObject)]
#[graphql(name = "set_flow_run_state_input", rename_fields = "snake_case")]
pub(crate) struct SetFlowRunStateInput {
    pub(crate) flow_run_id: Id,
    pub(crate) version: Option<i64>,
    pub(crate) state: Json,
}

#[derive(InputObject)]
#[graphql(name = "set_task_run_states_input", rename_fields = "snake_case")]
pub(crate) struct SetTaskRunStatesInput {
    pub(crate) states: Vec<SetTaskRunStateInput>,
}

#[derive(InputObject)]
#[graphql(name = "set_task_run_state_input", rename_fields = "snake_case")]
pub(crate) struct SetTaskRunStateInput {
    pub(crate) task_run_id: Id,
    pub(crate) version: Option<i64>,
    pub(crate) state: Json,
}

#[derive(InputObject)]
#[graphql(name = "write_run_logs_input", rename_fields = "snake_case")]
pub(crate) struct WriteRunLogsInput {
    pub(crate) logs: Vec<WriteRunLogInput>,
}

#[derive(InputObject)]
#[graphql(name = "write_run_log_input", rename_fields = "snake_case")]
pub(crate) struct WriteRunLogInput {
    pub(crate) flow_run_id: Id,
    pub(crate) task_run_id: Option<Id>,
    pub(crate) timestamp: Option<Time>,
    pub(crate) name: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) level: Option<String>,
    pub(crate) info: Option<Json>,
}

macro_rules! comparison {
    ($name:ident, $graphql:literal, $value:ty) => {
        #[derive(InputObject, Clone, Debug, Default)]
        #[graphql(name = $graphql)]
        pub(crate) struct $name {
            #[graphql(name = "_eq")]
            pub(crate) eq: Option<$value>,
            #[graphql(name = "_neq")]
            pub(crate) neq: Option<$value>,
            #[graphql(name = "_in")]
            pub(crate) within: Option<Vec<$value>>,
            #[graphql(name = "_nin")]
            pub(crate) without: Option<Vec<$value>>,
            #[graphql(name = "_lt")]
            pub(crate) lt: Option<$value>,
            #[graphql(name = "_lte")]
            pub(crate) lte: Option<$value>,
            #[graphql(name = "_gt")]
            pub(crate) gt: Option<$value>,
            #[graphql(name = "_gte")]
            pub(crate) gte: Option<$value>,
            #[graphql(name = "_is_null")]
            pub(crate) is_null: Option<bool>,
        }
    };
}

comparison!(UuidComparison, "uuid_comparison_exp", Id);
comparison!(StringComparison, "String_comparison_exp", String);
comparison!(TimeComparison, "timestamptz_comparison_exp", Time);
comparison!(IntComparison, "Int_comparison_exp", i64);

#[derive(InputObject, Clone, Debug, Default)]
#[graphql(name = "flow_run_bool_exp", rename_fields = "snake_case")]
pub(crate) struct FlowRunFilter {
    #[graphql(name = "_and")]
    pub(crate) all: Option<Vec<FlowRunFilter>>,
    #[graphql(name = "_or")]
    pub(crate) any: Option<Vec<FlowRunFilter>>,
    #[graphql(name = "_not")]
    pub(crate) not: Option<Box<FlowRunFilter>>,
    pub(crate) id: Option<UuidComparison>,
    pub(crate) tenant_id: Option<UuidComparison>,
    pub(crate) flow_id: Option<UuidComparison>,
    pub(crate) agent_id: Option<UuidComparison>,
    pub(crate) name: Option<StringComparison>,
    pub(crate) state: Option<StringComparison>,
    pub(crate) version: Option<IntComparison>,
    pub(crate) times_resurrected: Option<IntComparison>,
    pub(crate) state_timestamp: Option<TimeComparison>,
    pub(crate) state_start_time: Option<TimeComparison>,
    pub(crate) scheduled_start_time: Option<TimeComparison>,
    pub(crate) heartbeat: Option<TimeComparison>,
    pub(crate) updated: Option<TimeComparison>,
    pub(crate) task_runs: Option<TaskRunFilter>,
}

#[derive(InputObject, Clone, Debug, Default)]
#[graphql(name = "task_run_bool_exp", rename_fields = "snake_case")]
pub(crate) struct TaskRunFilter {
    #[graphql(name = "_and")]
    pub(crate) all: Option<Vec<TaskRunFilter>>,
    #[graphql(name = "_or")]
    pub(crate) any: Option<Vec<TaskRunFilter>>,
    #[graphql(name = "_not")]
    pub(crate) not: Option<Box<TaskRunFilter>>,
    pub(crate) id: Option<UuidComparison>,
    pub(crate) flow_run_id: Option<UuidComparison>,
    pub(crate) task_id: Option<UuidComparison>,
    pub(crate) state: Option<StringComparison>,
    pub(crate) version: Option<IntComparison>,
    pub(crate) state_timestamp: Option<TimeComparison>,
    pub(crate) state_start_time: Option<TimeComparison>,
    pub(crate) heartbeat: Option<TimeComparison>,
}

#[derive(InputObject, Clone, Debug, Default)]
#[graphql(name = "log_bool_exp", rename_fields = "snake_case")]
pub(crate) struct LogFilter {
    #[graphql(name = "_or")]
    pub(crate) any: Option<Vec<LogFilter>>,
    pub(crate) name: Option<StringComparison>,
    pub(crate) level: Option<StringComparison>,
    pub(crate) message: Option<StringComparison>,
    pub(crate) timestamp: Option<TimeComparison>,
}

/// For small tables that are asked by id only.
#[derive(InputObject, Clone, Debug, Default)]
#[graphql(name = "agent_config_bool_exp")]
pub(crate) struct ByIdFilter {
    pub(crate) id: Option<UuidComparison>,
}

#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[graphql(name = "order_by", rename_items = "snake_case")]
pub(crate) enum Direction {
    Asc,
    AscNullsFirst,
    AscNullsLast,
    Desc,
    DescNullsFirst,
    DescNullsLast,
}

#[derive(InputObject, Clone, Debug, Default)]
#[graphql(name = "flow_run_order_by", rename_fields = "snake_case")]
pub(crate) struct FlowRunOrder {
    pub(crate) id: Option<Direction>,
    pub(crate) name: Option<Direction>,
    pub(crate) state: Option<Direction>,
    pub(crate) version: Option<Direction>,
    pub(crate) state_timestamp: Option<Direction>,
    pub(crate) state_start_time: Option<Direction>,
    pub(crate) scheduled_start_time: Option<Direction>,
    pub(crate) heartbeat: Option<Direction>,
    pub(crate) updated: Option<Direction>,
}
