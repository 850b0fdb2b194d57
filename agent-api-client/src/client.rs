//! The client: who the agent is, and what it asks the API.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use agent_core::{FlowRunId, LogEntry, State};
use cynic::{MutationBuilder, Operation, QueryBuilder};
use jiff::{SignedDuration, Timestamp};
use secrecy::{SecretSlice, SecretString};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::error::{ApiError, Cause};
use crate::operations::*;
use crate::row::FlowRunRow;
use crate::rows::{Row, RowKind};
use crate::transport::{Tls, Transport};
use crate::{state, time};

/// How long a task run must have been due before its flow run is taken as abandoned: a flow that
/// is still alive retries by itself within this time.
const RETRY_BUFFER: SignedDuration = SignedDuration::from_secs(3);
/// How long one request to write logs may take.
const WRITE: Duration = Duration::from_secs(8);
/// Runs whose logs are asked for in one request.
const LOGS: usize = 100;
/// Rows that are asked for at once where there may be any number of them.
const MAX_PAGE_ROWS: i32 = 1000;
/// An answer of fewer rows is not one that the server has cut short.
const CUT: usize = 100;
/// Runs per request, where the number is ours to choose.
pub(crate) const CHUNK: usize = 500;

/// The two kinds of Prefect 1 API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Prefect Cloud: keys belong to a tenant.
    Cloud,
    /// The open-source Prefect Server.
    Server,
}

/// How to reach the API, and as whom.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The API's address; requests go to exactly this address.
    pub url: String,
    /// Which kind of API it is.
    pub backend: Backend,
    /// The API key, if there is one.
    pub key: Option<SecretString>,
    /// The tenant's id, if it is known; else the API is asked.
    pub tenant_id: Option<String>,
    /// The agent's name.
    pub name: String,
    /// The agent's labels, in the order in which they are sent.
    pub labels: Vec<String>,
    /// The agent config to register with.
    pub agent_config_id: Option<String>,
    /// Where the Jobs of this agent are, in words that agents for other places do not use; it is noted in
    /// each claim. The API takes agents with the same name and labels for one and the same, so without
    /// it an agent takes up what such an agent elsewhere has claimed.
    pub place: Option<String>,
    /// Certificates of those who may vouch for the API, in PEM; `None` are those that the system
    /// trusts, or the ones in `SSL_CERT_FILE`.
    pub ca: Option<Vec<u8>>,
    /// A certificate and its key with which the agent shows the API who it is, in PEM.
    pub identity: Option<SecretSlice<u8>>,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// How long passing failures of one call are retried while the agent runs.
    pub retry_for: Duration,
    /// The same at the start, where somebody waits for a word.
    pub retry_start_for: Duration,
}

impl ApiSettings {
    /// Settings for an API without a key, with the usual limits: 15 s per request, 30 s of
    /// retries, 4 s of them at the start.
    pub fn new(url: impl Into<String>, backend: Backend) -> Self {
        Self {
            url: url.into(),
            backend,
            key: None,
            tenant_id: None,
            name: "agent".to_owned(),
            labels: Vec::new(),
            agent_config_id: None,
            place: None,
            ca: None,
            identity: None,
            request_timeout: Duration::from_secs(15),
            retry_for: Duration::from_secs(30),
            retry_start_for: Duration::from_secs(4),
        }
    }
}

/// A client of the Prefect 1 API, and through it a [`agent_core::FlowRunSource`].
#[derive(Debug)]
pub struct PrefectApi {
    pub(crate) settings: ApiSettings,
    pub(crate) transport: Transport,
    pub(crate) registered: tokio::sync::Mutex<Option<agent_core::Registration>>,
}

impl PrefectApi {
    /// A client; nothing is sent yet. A rustls crypto provider must be installed.
    ///
    /// # Errors
    /// A sentence on what is wrong with the settings.
    pub fn new(settings: ApiSettings) -> Result<Self, String> {
        let transport = Transport::new(
            &settings.url,
            settings.key.clone(),
            settings.request_timeout,
            Tls {
                ca: settings.ca.as_deref(),
                identity: settings.identity.as_ref(),
            },
        )?;
        if let Some(tenant) = &settings.tenant_id {
            transport.set_tenant(tenant.clone());
        }
        Ok(Self {
            settings,
            transport,
            registered: tokio::sync::Mutex::default(),
        })
    }

    /// The API's address, without credentials.
    pub fn address(&self) -> &str {
        self.transport.shown()
    }

    /// The tenant's id; asked from the API the first time when it is not in the settings.
    ///
    /// # Errors
    /// What the API said, or that it has no tenant for this agent.
    pub async fn tenant(&self) -> Result<String, ApiError> {
        if let Some(tenant) = self.transport.tenant() {
            return Ok(tenant.to_owned());
        }
        let tenants = self.tenants().await?;
        let tenant = tenants.into_iter().next().ok_or_else(|| {
            self.refused("tenant", "Your Prefect Server instance has no tenants. Create a tenant with `prefect server create-tenant`")
        })?;
        self.transport.set_tenant(tenant.clone());
        Ok(tenant)
    }

    /// The ids of the tenants that the API has for this agent, whatever the settings say: that of
    /// the key with Cloud, all of them with Server.
    ///
    /// # Errors
    /// What the API said, or that the key has no tenant.
    pub async fn tenants(&self) -> Result<Vec<String>, ApiError> {
        let budget = self.settings.retry_start_for;
        if self.settings.backend == Backend::Server {
            let found = self.transport.run("tenant", Tenants::build(()), budget);
            let tenants = found.await?.tenant.into_iter();
            return Ok(tenants.map(|tenant| tenant.id.0).collect());
        }
        if !self.transport.has_key() {
            return Err(self.refused("tenant", "You have not set an API key for authentication; set one with --key or PREFECT__CLOUD__API_KEY, or say --backend server (PREFECT__BACKEND=server) if this is a Prefect Server."));
        }
        let found = self.transport.run("auth_info", Auth::build(()), budget);
        let tenant = found.await?.auth_info.and_then(|info| info.tenant_id);
        let tenant = tenant.ok_or_else(|| {
            self.refused("tenant", "An API token was used as an API key. There is no tenant associated with API tokens. Use an API key for authentication.")
        })?;
        Ok(vec![tenant.0])
    }

    fn refused(&self, operation: &'static str, cause: &str) -> ApiError {
        self.transport
            .error(operation, Cause::Refused(cause.to_owned()))
    }

    /// Registers the agent and returns its id.
    pub(crate) async fn register_agent(&self, tenant: &str) -> Result<String, ApiError> {
        let budget = self.settings.retry_start_for;
        let config = self.settings.agent_config_id.clone().map(Uuid);
        let input = RegisterAgentInput {
            kind: "KubernetesAgent".to_owned(),
            name: Some(self.settings.name.clone()),
            labels: Some(self.settings.labels.clone()),
            tenant_id: Uuid(tenant.to_owned()),
            agent_config_id: config.clone(),
        };
        let mutation = RegisterAgent::build(RegisterAgentVariables { input });
        let agent = self
            .transport
            .run("register_agent", mutation, budget)
            .await?
            .register_agent
            .and_then(|agent| agent.id)
            .filter(|id| !id.0.is_empty())
            .ok_or_else(|| {
                let cause = Cause::Refused("Error registering agent: no id came back".to_owned());
                self.transport.error("register_agent", cause)
            })?;
        if let Some(id) = config {
            let query = AgentConfigs::build(ById { id: id.clone() });
            let configs = self.transport.run("agent_config", query, budget).await?;
            let config = configs.agent_config.into_iter().next().ok_or_else(|| {
                let cause = Cause::Refused(format!(
                    "there is no agent config {}; check --agent-config-id",
                    id.0
                ));
                self.transport.error("agent_config", cause)
            })?;
            let settings = config.settings.map_or(Value::Null, |json| json.0);
            tracing::debug!("Agent config {}: {settings}", id.0);
        }
        self.transport.set_agent(agent.0.clone());
        Ok(agent.0)
    }

    /// The API's version, if it tells one.
    ///
    /// # Errors
    /// What the API said instead.
    pub async fn version(&self) -> Result<Option<String>, ApiError> {
        let budget = self.settings.retry_start_for;
        let about = self.transport.run("api", About::build(()), budget).await?;
        Ok(about.api.and_then(|api| api.version))
    }

    /// How far the API's clock is ahead of this machine's, or behind if negative, also where that is
    /// too much to be followed; zero as long as they are about equal, and before the second answer.
    pub fn clock_ahead(&self) -> SignedDuration {
        self.transport.clock_differs()
    }

    /// Whether the API answers this agent.
    ///
    /// # Errors
    /// What came back instead.
    pub async fn hello(&self) -> Result<(), ApiError> {
        let budget = self.settings.retry_start_for;
        self.transport
            .run("hello", Hello::build(()), budget)
            .await?;
        Ok(())
    }

    /// The ids of runs that are due up to a time, those that are due first at the beginning.
    pub(crate) async fn queue(&self, before: Timestamp) -> Result<Vec<String>, ApiError> {
        let tenant = self.tenant().await?;
        let input = RunsInQueueInput {
            before: Some(Time(time::format(before))),
            labels: Some(self.settings.labels.clone()),
            tenant_id: Uuid(tenant),
        };
        let query = RunsInQueue::build(RunsInQueueVariables { input });
        let queued = self
            .transport
            .run("get_runs_in_queue", query, self.settings.retry_for)
            .await?
            .get_runs_in_queue;
        let ids = queued.and_then(|queued| queued.flow_run_ids);
        Ok(ids.unwrap_or_default().into_iter().map(|id| id.0).collect())
    }

    /// The rows of those runs among `ids` that are ready.
    pub(crate) async fn rows(&self, ids: Vec<String>) -> Result<Vec<FlowRunRow>, ApiError> {
        let now = self.transport.now();
        let buffer = now.saturating_sub(RETRY_BUFFER).unwrap_or(now);
        let query = |ids| {
            ReadyFlowRuns::build(ReadyRows {
                ids: Some(ids),
                buffer: Time(time::format(buffer)),
            })
        };
        let ids: Vec<FlowRunId> = ids.into_iter().map(FlowRunId::from).collect();
        self.described::<_, _, ReadyFlowRun>(&ids, query).await
    }

    /// The rows that describe runs, as far as they have room in memory. One that is too large by itself
    /// is read without what is to be executed.
    async fn described<Q, V, R>(
        &self,
        runs: &[FlowRunId],
        query: impl Fn(Vec<Uuid>) -> Operation<Q, V>,
    ) -> Result<Vec<FlowRunRow>, ApiError>
    where
        V: Serialize,
        R: RowKind,
        FlowRunRow: From<Row<R>>,
    {
        let mut rows = Vec::with_capacity(runs.len());
        let mut chunks: Vec<&[FlowRunId]> = runs.chunks(CHUNK).rev().collect();
        while let Some(chunk) = chunks.pop() {
            let ids = chunk.iter().map(|id| Uuid(id.to_string())).collect();
            let budget = self.settings.retry_for;
            let answer = self
                .transport
                .run_rows::<_, _, R>("flow_run", query(ids), budget);
            match answer.await {
                Ok(found) => rows.extend(found.into_iter().map(FlowRunRow::from)),
                Err(error) if matches!(error.cause, Cause::TooLarge(_)) => match chunk {
                    [run] => rows.extend(self.bare_row(run, &error).await?),
                    _ => {
                        let (first, second) = chunk.split_at(chunk.len() / 2);
                        chunks.extend([second, first]);
                    }
                },
                Err(error) => return Err(error),
            }
        }
        Ok(rows)
    }

    /// A run's row without what is to be executed, because of this error.
    async fn bare_row(
        &self,
        run: &FlowRunId,
        error: &ApiError,
    ) -> Result<Option<FlowRunRow>, ApiError> {
        let query = BareFlowRuns::build(ByIds {
            ids: Some(vec![Uuid(run.to_string())]),
        });
        let budget = self.settings.retry_for;
        let rows = self.transport.run_rows("flow_run", query, budget).await?;
        Ok(rows
            .into_iter()
            .next()
            .map(|read: Row<BareFlowRun>| FlowRunRow {
                defect: Some(error.cause.to_string()),
                ..FlowRunRow::from(read.row)
            }))
    }

    /// Sets the state of a flow run, once: the outcome of a lost answer is for the caller to find
    /// out. A `version` of `None` overwrites any.
    pub(crate) async fn set_flow_run_state(
        &self,
        id: &str,
        version: Option<i32>,
        state: Value,
    ) -> Result<StateResult, ApiError> {
        let state = FlowRunStateInput {
            flow_run_id: Uuid(id.to_owned()),
            version,
            state: Json(state),
        };
        let input = FlowRunStatesInput {
            states: vec![state],
        };
        let mutation = SetFlowRunStates::build(FlowRunStatesVariables { input });
        let operation = "set_flow_run_states";
        let answer = self.transport.once(operation, mutation).await?;
        let states = answer.set_flow_run_states.map(|answer| answer.states);
        self.one_result(operation, states)
    }

    /// Sets the state of a task run, once.
    pub(crate) async fn set_task_run_state(
        &self,
        id: &str,
        version: Option<i32>,
        state: Value,
    ) -> Result<StateResult, ApiError> {
        let state = TaskRunStateInput {
            task_run_id: Uuid(id.to_owned()),
            version,
            state: Json(state),
        };
        let input = TaskRunStatesInput {
            states: vec![state],
        };
        let mutation = SetTaskRunStates::build(TaskRunStatesVariables { input });
        let operation = "set_task_run_states";
        let answer = self.transport.once(operation, mutation).await?;
        let states = answer.set_task_run_states.map(|answer| answer.states);
        self.one_result(operation, states)
    }

    fn one_result(
        &self,
        operation: &'static str,
        results: Option<Vec<StateResult>>,
    ) -> Result<StateResult, ApiError> {
        results
            .and_then(|results| results.into_iter().next())
            .ok_or_else(|| {
                let cause = Cause::Malformed("it holds no result for the state".to_owned());
                self.transport.error(operation, cause)
            })
    }

    /// Appends entries to flow-run logs.
    pub(crate) async fn write_run_logs(&self, entries: &[LogEntry]) -> Result<(), ApiError> {
        let logs = entries.iter().map(|entry| RunLogInput {
            flow_run_id: Some(Uuid(entry.flow_run_id.to_string())),
            name: Some(entry.name.clone()),
            message: Some(without_nul(&entry.message)),
            level: Some(entry.level.name().to_owned()),
            timestamp: entry.timestamp.map(|at| Time(time::format(at))),
        });
        let input = RunLogsInput {
            logs: logs.collect(),
        };
        let mutation = WriteRunLogs::build(RunLogsVariables { input });
        let operation = "write_run_logs";
        // Every failure is for the caller to find out about: entries are not to be written twice, and
        // whoever waits for this process to have written them does not wait for long.
        let writing = self.transport.once(operation, mutation);
        let answer = timeout(WRITE, writing).await.unwrap_or_else(|_| {
            let why = format!("none within {} s", WRITE.as_secs());
            Err(self.transport.error(operation, Cause::Broken(why)))
        })?;
        match answer.write_run_logs.and_then(|answer| answer.success) {
            Some(true) => Ok(()),
            _ => {
                let cause = Cause::Refused("Writing logs failed.".to_owned());
                Err(self.transport.error(operation, cause))
            }
        }
    }

    /// Which of these entries are in the logs of their runs; what an agent has submitted, under whatever
    /// name: it is for all replicas to tell, and they may be called differently.
    pub(crate) async fn logged(&self, entries: &[LogEntry]) -> Result<Vec<bool>, ApiError> {
        let runs: BTreeSet<&str> = entries.iter().map(|one| one.flow_run_id.as_str()).collect();
        let names: BTreeSet<&str> = entries.iter().map(|one| one.name.as_str()).collect();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let messages = entries.iter().map(|one| &one.message);
        let messages = messages.filter(|text| text.starts_with(LogEntry::SUBMITTED));
        let messages: Vec<String> = messages.cloned().collect();
        let mut logs: HashMap<String, Vec<Logged>> = HashMap::new();
        for chunk in runs.into_iter().collect::<Vec<_>>().chunks(LOGS) {
            let query = LoggedRuns::build(LogsOfRuns {
                ids: Some(chunk.iter().map(|id| Uuid((*id).to_owned())).collect()),
                names: Some(names.clone()),
                messages: Some(messages.clone()),
            });
            let budget = self.settings.retry_for;
            let answer = self.transport.run("flow_run", query, budget).await?;
            let runs = answer.flow_run.into_iter();
            logs.extend(runs.map(|run| (run.id.0, run.logs)));
        }
        let is_there = |entry: &LogEntry| {
            let mut of_run = logs.get(entry.flow_run_id.as_str()).into_iter().flatten();
            of_run.any(|logged| {
                let message = logged.message.as_deref().unwrap_or_default();
                let same = logged.name.as_deref() == Some(&entry.name);
                (same || message.starts_with(LogEntry::SUBMITTED))
                    && message.starts_with(&entry.message)
            })
        };
        Ok(entries.iter().map(is_there).collect())
    }

    /// The runs that have ended since a time.
    pub(crate) async fn ended(&self, since: Timestamp) -> Result<Vec<EndedRun>, ApiError> {
        let tenant = self.tenant().await?;
        let states = state::FINISHED.map(str::to_owned).to_vec();
        let page = |offset, limit| {
            EndedFlowRuns::build(EndedRows {
                tenant: Uuid(tenant.clone()),
                states: Some(states.clone()),
                since: Time(time::format(since)),
                offset,
                limit,
            })
        };
        self.pages(page).await
    }

    /// All rows of a query that comes in pages: `page` asks for so many from an offset on. A page that
    /// is too large is asked for in halves, and a row that is so by itself is passed over.
    async fn pages<Q, V, R>(
        &self,
        page: impl Fn(i32, i32) -> Operation<Q, V>,
    ) -> Result<Vec<R>, ApiError>
    where
        R: RowKind,
        V: Serialize,
    {
        let mut pages = Pages::default();
        loop {
            let query = page(pages.offset(), pages.limit);
            let budget = self.settings.retry_for;
            match self.transport.run_rows("flow_run", query, budget).await {
                Ok(more) => {
                    let more = more.into_iter().map(|row| row.row).collect();
                    if pages.take(more) {
                        return Ok(pages.rows);
                    }
                }
                Err(error) if matches!(error.cause, Cause::TooLarge(_)) => pages.shrink(&error),
                Err(error) => return Err(error),
            }
        }
    }

    /// The state rows of runs; unknown runs are missing. If the server may have cut an answer short,
    /// those that are missing are asked for again; of what is too large, half is.
    pub(crate) async fn run_states(&self, ids: &[FlowRunId]) -> Result<Vec<RunState>, ApiError> {
        let mut rows: Vec<RunState> = Vec::with_capacity(ids.len());
        let mut chunks: Vec<Vec<&FlowRunId>> = ids
            .chunks(CHUNK)
            .map(|chunk| chunk.iter().collect())
            .collect();
        while let Some(chunk) = chunks.pop() {
            let query = RunStates::build(ByIds {
                ids: Some(chunk.iter().map(|id| Uuid(id.to_string())).collect()),
            });
            let budget = self.settings.retry_for;
            let answer = self
                .transport
                .run_rows::<_, _, RunState>("flow_run", query, budget);
            let found = match answer.await {
                Ok(found) => found,
                Err(error) if matches!(error.cause, Cause::TooLarge(_)) && chunk.len() > 1 => {
                    let (first, second) = chunk.split_at(chunk.len() / 2);
                    chunks.extend([second.to_vec(), first.to_vec()]);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let there: HashSet<&str> = found.iter().map(|row| row.row.id.0.as_str()).collect();
            let missing = chunk.into_iter().filter(|id| !there.contains(id.as_str()));
            let missing: Vec<&FlowRunId> = missing.collect();
            if found.len() >= CUT && !missing.is_empty() {
                chunks.push(missing);
            }
            rows.extend(found.into_iter().map(|row| row.row));
        }
        Ok(rows)
    }

    /// The runs that this agent has claimed before a time, for this place, and that have not begun.
    pub(crate) async fn claimed_ids(
        &self,
        agent: &str,
        before: Timestamp,
    ) -> Result<Vec<FlowRunId>, ApiError> {
        let page = |offset, limit| {
            ClaimedIds::build(ClaimedBefore {
                agent: Uuid(agent.to_owned()),
                before: Time(time::format(before)),
                offset,
                limit,
            })
        };
        let rows: Vec<ClaimOfRun> = self.pages(page).await?;
        let here = rows.into_iter().filter(|row| row.claimed_for(self.place()));
        Ok(here.map(|row| row.id.0.into()).collect())
    }

    /// Those of these runs that this agent has claimed and that have not begun.
    pub(crate) async fn claimed_rows(
        &self,
        agent: &str,
        runs: &[FlowRunId],
    ) -> Result<Vec<FlowRunRow>, ApiError> {
        let query = |ids| {
            ClaimedFlowRuns::build(ClaimedByIds {
                agent: Uuid(agent.to_owned()),
                ids: Some(ids),
            })
        };
        self.described::<_, _, ClaimedFlowRun>(runs, query).await
    }
}

/// Returns a text that any database can hold: PostgreSQL refuses the character NUL, and with it whatever
/// else the request holds.
pub(crate) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{2400}")
}

/// The rows of a query that comes in pages, whose length the server may cut further.
struct Pages<R> {
    rows: Vec<R>,
    /// Rows that were passed over.
    skipped: usize,
    /// Rows that are asked for at once.
    limit: i32,
    longest: usize,
}

impl<R> Default for Pages<R> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            skipped: 0,
            limit: MAX_PAGE_ROWS,
            longest: CUT,
        }
    }
}

impl<R> Pages<R> {
    /// Where the next page begins.
    fn offset(&self) -> i32 {
        i32::try_from(self.rows.len() + self.skipped).unwrap_or(i32::MAX)
    }

    /// Takes the next page; whether it is the last one.
    fn take(&mut self, more: Vec<R>) -> bool {
        let asked = usize::try_from(self.limit).unwrap_or_default();
        let last = more.len() < self.longest.min(asked);
        self.longest = self.longest.max(more.len());
        self.rows.extend(more);
        last
    }

    /// Asks for less at once, or passes over a row.
    fn shrink(&mut self, error: &ApiError) {
        if self.limit > 1 {
            self.limit /= 2;
        } else {
            tracing::error!(offset = self.offset(), "A row is passed over: {error}");
            self.skipped += 1;
        }
    }
}

impl RunState {
    /// The state as the agent sees it.
    pub(crate) fn state(&self) -> State {
        let serialized = self.serialized_state.as_ref().map(|json| &json.0);
        let kind = serialized.map(state::kind);
        State {
            message: serialized.and_then(state::message).map(str::to_owned),
            ..state::state(self.state.as_deref().or(kind).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_with_what_it_says_for_people() {
        let message = "Kubernetes Error: no such image";
        let failed = RunState {
            id: Uuid("run".to_owned()),
            state: Some("Failed".to_owned()),
            version: None,
            agent_id: None,
            serialized_state: Some(Json(state::failed(message))),
        };
        let read = failed.state();
        assert_eq!(read.message.as_deref(), Some(message));
        assert!(read.is_finished());
    }

    #[test]
    fn all_pages_are_read_however_short_the_server_cuts_them() {
        for (rows, cut, most) in [(0, 1000, 1), (99, 1000, 1), (250, 100, 3), (2000, 1000, 3)] {
            let (mut pages, mut asked) = (Pages::default(), 1);
            while !pages.take((pages.offset()..rows).take(cut).collect()) {
                asked += 1;
            }
            assert_eq!(pages.rows, (0..rows).collect::<Vec<i32>>());
            assert!(asked <= most, "{rows} rows in {asked} pages");
        }
    }
}
