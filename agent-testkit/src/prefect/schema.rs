//! The queries and mutations.

use std::sync::Arc;

use async_graphql::{
    Context, EmptySubscription, MergedObject, Object, Request, Response, Result, Schema,
};
use serde_json::Value;

use super::inputs::{
    ByIdFilter, FlowRunFilter, FlowRunOrder, GetRunsInQueueInput, RegisterAgentInput,
    SetFlowRunStatesInput, SetTaskRunStatesInput, WriteRunLogsInput,
};
use super::objects::{
    AgentConfig, AgentNode, ApiInfo, AuthInfo, FlowRunNode, RegisterAgentPayload,
    RunsInQueuePayload, SetFlowRunStatesPayload, SetStatePayload, SetTaskRunStatesPayload,
    SuccessPayload, Tenant,
};
use super::rows::LogRow;
use super::scalars::Id;
use super::shared::{Caller, Shared};
use super::states::{Outcome, Refusal};

/// The version that the server says it is.
const VERSION: &str = "testkit";

/// What both the open-source server and Cloud answer.
#[derive(Default)]
pub(crate) struct CommonQueries;

#[Object(rename_fields = "snake_case", rename_args = "snake_case")]
impl CommonQueries {
    async fn hello(&self) -> &str {
        "👋"
    }

    async fn api(&self) -> ApiInfo {
        ApiInfo {
            backend: "SERVER".into(),
            mode: "normal".into(),
            version: VERSION.into(),
        }
    }

    async fn tenant(&self, context: &Context<'_>) -> Vec<Tenant> {
        let store = shared(context).store();
        let tenant = Tenant {
            id: Id(store.tenant_id),
            name: "default".into(),
            slug: "default".into(),
        };
        store.has_tenant.then_some(tenant).into_iter().collect()
    }

    async fn agent(&self, context: &Context<'_>) -> Vec<AgentNode> {
        let store = shared(context).store();
        store.agents.values().cloned().map(AgentNode).collect()
    }

    async fn agent_config(
        &self,
        context: &Context<'_>,
        #[graphql(name = "where")] filter: Option<ByIdFilter>,
    ) -> Vec<AgentConfig> {
        let wanted = filter.and_then(|filter| filter.id);
        let fits = |id: &uuid::Uuid| {
            let Some(wanted) = &wanted else { return true };
            wanted.eq.is_none_or(|one| one.0 == *id)
                && wanted
                    .within
                    .as_ref()
                    .is_none_or(|ids| ids.contains(&Id(*id)))
        };
        let store = shared(context).store();
        let configs = store.agent_configs.iter().filter(|(id, _)| fits(id));
        configs
            .map(|(id, settings)| AgentConfig {
                id: Id(*id),
                settings: super::scalars::Json(settings.clone()),
            })
            .collect()
    }

    async fn flow_run(
        &self,
        context: &Context<'_>,
        #[graphql(name = "where")] filter: Option<FlowRunFilter>,
        order_by: Option<Vec<FlowRunOrder>>,
        limit: Option<usize>,
        offset: Option<usize>,
    ) -> Vec<FlowRunNode> {
        let order = order_by.unwrap_or_default();
        let store = shared(context).store();
        let rows = store.find(filter.as_ref(), &order, limit, offset.unwrap_or(0));
        rows.into_iter().map(FlowRunNode).collect()
    }

    async fn flow_run_by_pk(&self, context: &Context<'_>, id: Id) -> Option<FlowRunNode> {
        let store = shared(context).store();
        store.run(&id.0).map(|run| FlowRunNode(run.row.clone()))
    }
}

/// What Cloud alone answers.
#[derive(Default)]
pub(crate) struct CloudQueries;

#[Object(rename_fields = "snake_case")]
impl CloudQueries {
    async fn auth_info(&self, context: &Context<'_>) -> AuthInfo {
        let store = shared(context).store();
        AuthInfo {
            tenant_id: store.has_tenant.then_some(Id(store.tenant_id)),
        }
    }
}

#[derive(MergedObject, Default)]
#[graphql(name = "query_root")]
pub(crate) struct ServerQuery(CommonQueries);

#[derive(MergedObject, Default)]
#[graphql(name = "query_root")]
pub(crate) struct CloudQuery(CommonQueries, CloudQueries);

#[derive(Default)]
pub(crate) struct Mutation;

#[Object(name = "mutation_root", rename_fields = "snake_case")]
impl Mutation {
    async fn register_agent(
        &self,
        context: &Context<'_>,
        input: RegisterAgentInput,
    ) -> Option<RegisterAgentPayload> {
        let shared = shared(context);
        let core_version = caller(context).core_version.clone();
        let mut store = shared.store();
        let tenant = input.tenant_id.map_or(store.tenant_id, |id| id.0);
        let labels = input.labels.into_iter().flatten().collect();
        let name = input.name.unwrap_or_else(|| "agent".into());
        let id = store.register_agent(tenant, input.kind, name, labels, core_version);
        drop(store);
        shared.changes.mark();
        Some(RegisterAgentPayload { id: Id(id) })
    }

    async fn get_runs_in_queue(
        &self,
        context: &Context<'_>,
        input: GetRunsInQueueInput,
    ) -> Option<RunsInQueuePayload> {
        let shared = shared(context);
        let now = shared.now();
        let mut store = shared.store();
        if let Some(id) = caller(context).agent_id
            && let Some(agent) = store.agents.get_mut(&id)
        {
            agent.last_queried = Some(now);
        }
        let mine = input.tenant_id.is_none_or(|id| id.0 == store.tenant_id);
        let labels = input.labels.into_iter().flatten().collect();
        let ids = match mine {
            true => store.queue(input.before.map_or(now, |before| before.0), &labels),
            false => Vec::new(),
        };
        Some(RunsInQueuePayload {
            flow_run_ids: ids.into_iter().map(Id).collect(),
        })
    }

    async fn set_flow_run_states(
        &self,
        context: &Context<'_>,
        input: SetFlowRunStatesInput,
    ) -> Result<Option<SetFlowRunStatesPayload>> {
        let (shared, caller) = (shared(context), caller(context));
        let results: Vec<_> = {
            let now = shared.now();
            let mut store = shared.store();
            let each = input.states.into_iter().map(|one| {
                let (id, version, state) = (one.flow_run_id.0, one.version, one.state.0);
                store
                    .set_flow_run_state(&shared.rules, id, version, state, caller.agent_id, now)
                    .map(|outcome| payload(one.flow_run_id, outcome))
            });
            each.collect()
        };
        shared.changes.mark();
        Ok(Some(SetFlowRunStatesPayload {
            states: all_or_error(results)?,
        }))
    }

    async fn set_task_run_states(
        &self,
        context: &Context<'_>,
        input: SetTaskRunStatesInput,
    ) -> Result<Option<SetTaskRunStatesPayload>> {
        let shared = shared(context);
        let results: Vec<_> = {
            let now = shared.now();
            let mut store = shared.store();
            let each = input.states.into_iter().map(|one| {
                let (id, version, state) = (one.task_run_id.0, one.version, one.state.0);
                store
                    .set_task_run_state(&shared.rules, id, version, state, now)
                    .map(|outcome| payload(one.task_run_id, outcome))
            });
            each.collect()
        };
        shared.changes.mark();
        Ok(Some(SetTaskRunStatesPayload {
            states: all_or_error(results)?,
        }))
    }

    async fn write_run_logs(
        &self,
        context: &Context<'_>,
        input: WriteRunLogsInput,
    ) -> async_graphql::Result<Option<SuccessPayload>> {
        // The database takes none of a batch in which there is such a text.
        if input.logs.iter().any(|log| {
            let message = log.message.as_deref();
            message.is_some_and(|text| text.contains('\0'))
        }) {
            return Err(
                r"unsupported Unicode escape sequence: \u0000 cannot be converted to text".into(),
            );
        }
        let shared = shared(context);
        let arrived = shared.now();
        let mut store = shared.store();
        for log in input.logs {
            let id = store.new_id();
            store.append_log(LogRow {
                id,
                flow_run_id: log.flow_run_id.0,
                task_run_id: log.task_run_id.map(|id| id.0),
                name: log.name,
                message: log.message,
                level: log.level,
                timestamp: log.timestamp.map_or(arrived, |time| time.0),
                arrived,
            });
        }
        drop(store);
        shared.changes.mark();
        Ok(Some(SuccessPayload {
            success: true,
            error: None,
        }))
    }
}

fn shared<'a>(context: &Context<'a>) -> &'a Arc<Shared> {
    context.data_unchecked()
}

fn caller<'a>(context: &Context<'a>) -> &'a Caller {
    context.data_unchecked()
}

fn payload(id: Id, outcome: Outcome) -> SetStatePayload {
    SetStatePayload {
        id,
        status: outcome.status().into(),
        message: None,
    }
}

fn all_or_error(results: Vec<Result<SetStatePayload, Refusal>>) -> Result<Vec<SetStatePayload>> {
    let all: Result<Vec<_>, Refusal> = results.into_iter().collect();
    all.map_err(Refusal::into_graphql)
}

/// The schema of either kind of server.
pub(crate) enum Api {
    Server(Schema<ServerQuery, Mutation, EmptySubscription>),
    Cloud(Schema<CloudQuery, Mutation, EmptySubscription>),
}

impl Api {
    pub(crate) fn server(shared: Arc<Shared>) -> Self {
        let builder = Schema::build(ServerQuery::default(), Mutation, EmptySubscription);
        Self::Server(builder.data(shared).finish())
    }

    pub(crate) fn cloud(shared: Arc<Shared>) -> Self {
        let builder = Schema::build(CloudQuery::default(), Mutation, EmptySubscription);
        Self::Cloud(builder.data(shared).finish())
    }

    pub(crate) async fn execute(&self, request: Request) -> Response {
        match self {
            Self::Server(schema) => schema.execute(request).await,
            Self::Cloud(schema) => schema.execute(request).await,
        }
    }
}

/// The schema with everything in it, as a client's code generator wants it.
pub(crate) fn sdl() -> String {
    Schema::build(CloudQuery::default(), Mutation, EmptySubscription)
        .finish()
        .sdl()
}

/// Whether an answer says that the query or its variables were no good. Refusals of our own carry
/// a code, those of the GraphQL library do not.
pub(crate) fn is_invalid_query(response: &Response) -> bool {
    response
        .errors
        .iter()
        .any(|error| error.extensions.is_none())
}

/// Variables as they come: an object, text that holds an object, or nothing.
pub(crate) fn variables(value: Value) -> Option<Value> {
    match value {
        Value::Null => Some(Value::Null),
        object @ Value::Object(_) => Some(object),
        Value::String(text) if text.trim().is_empty() => Some(Value::Null),
        Value::String(text) => match serde_json::from_str(&text).ok()? {
            inner @ (Value::Null | Value::Object(_)) => Some(inner),
            _ => None,
        },
        _ => None,
    }
}
