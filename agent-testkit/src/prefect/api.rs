//! The in-process handle of a running server.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::endpoint;
use super::rows::{AgentRow, FlowRunRow, LogRow, StateRecord, TaskRunRow};
use super::schema::{self, Api};
use super::seed::{FlowRunSeed, running};
use super::shared::{Auth, Shared};
use super::states::{StateRules, is_finished};
use super::store::{Store, StoredRun};
use crate::clock::Clock;
use crate::condition::{Changes, TimedOut};
use crate::faults::Faults;
use crate::requests::{RequestRecord, Requests};
use crate::serve::{LOOPBACK, Server};

/// A Prefect API on loopback; it stops when dropped.
#[derive(Debug)]
pub struct PrefectApi {
    shared: Arc<Shared>,
    server: Server,
}

/// Chooses what kind of server to start.
#[derive(Debug)]
pub struct PrefectApiBuilder {
    address: SocketAddr,
    seed: u64,
    cloud: bool,
    rules: StateRules,
    auth: Auth,
    clock: Clock,
    faults: Faults,
    has_tenant: bool,
}

impl PrefectApiBuilder {
    /// Listens at this address instead of a free port on loopback.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Seeds the ids that the server makes up, so that they repeat.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Behaves as Cloud does: `auth_info` is there, versions are checked.
    pub fn cloud(mut self) -> Self {
        self.cloud = true;
        self.rules.check_versions = true;
        self
    }

    /// Whether a state with an outdated version is refused.
    pub fn check_versions(mut self, check: bool) -> Self {
        self.rules.check_versions = check;
        self
    }

    /// For how long after a Submitted another one is refused; 30 s unless said otherwise.
    pub fn submitted_lock(mut self, duration: Duration) -> Self {
        self.rules.submitted_lock = duration;
        self
    }

    /// Requires a key.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Sets the server's clock ahead (or, negative, behind).
    pub fn clock_skew(self, skew: SignedDuration) -> Self {
        self.clock.set_skew(skew);
        self
    }

    /// Injects these faults.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// A server that nobody created a tenant on.
    pub fn without_tenant(mut self) -> Self {
        self.has_tenant = false;
        self
    }

    /// Starts the server on the ambient runtime.
    pub async fn start(self) -> io::Result<PrefectApi> {
        let mut store = Store::new(self.seed);
        store.has_tenant = self.has_tenant;
        let shared = Arc::new(Shared {
            store: Mutex::new(store),
            rules: self.rules,
            auth: Mutex::new(self.auth),
            clock: self.clock,
            faults: self.faults,
            requests: Requests::default(),
            changes: Changes::default(),
        });
        let api = match self.cloud {
            true => Api::cloud(shared.clone()),
            false => Api::server(shared.clone()),
        };
        let server = Server::bind(self.address, endpoint::router(shared.clone(), api)).await?;
        Ok(PrefectApi { shared, server })
    }
}

/// A flow run with its past, as it was when asked for. Derefs to the row.
#[derive(Clone, Debug)]
pub struct FlowRunSnapshot {
    row: Arc<FlowRunRow>,
    /// Every state it was in, oldest first.
    pub history: Vec<StateRecord>,
    /// Its log, in order of arrival.
    pub logs: Vec<LogRow>,
}

impl Deref for FlowRunSnapshot {
    type Target = FlowRunRow;

    fn deref(&self) -> &FlowRunRow {
        &self.row
    }
}

impl FlowRunSnapshot {
    fn of(run: &StoredRun) -> Self {
        Self {
            row: run.row.clone(),
            history: run.history.clone(),
            logs: run.logs.clone(),
        }
    }

    /// The types of all its states, oldest first.
    pub fn state_names(&self) -> Vec<&str> {
        self.history.iter().map(StateRecord::kind).collect()
    }

    /// Whether its state is a final one.
    pub fn is_finished(&self) -> bool {
        is_finished(&self.row.state)
    }

    /// The message of its state.
    pub fn message(&self) -> &str {
        self.row.serialized_state["message"]
            .as_str()
            .unwrap_or_default()
    }
}

impl PrefectApi {
    /// Chooses what kind of server to start.
    pub fn builder() -> PrefectApiBuilder {
        PrefectApiBuilder {
            address: LOOPBACK,
            seed: fastrand::u64(..),
            cloud: false,
            rules: StateRules {
                check_versions: false,
                submitted_lock: Duration::from_secs(30),
            },
            auth: Auth::Open,
            clock: Clock::default(),
            faults: Faults::default(),
            has_tenant: true,
        }
    }

    /// An open-source server with nothing in it.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// The schema in GraphQL's schema language, Cloud's additions included.
    pub fn sdl() -> String {
        schema::sdl()
    }

    /// The address of the API.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The HTTP server: stop it, restart it, count its connections.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The faults that are injected.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The server's clock.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Changes which key is required from now on.
    pub fn set_auth(&self, auth: Auth) {
        *self.shared.auth() = auth;
    }

    /// The id of the tenant that all runs belong to.
    pub fn tenant_id(&self) -> Uuid {
        self.shared.store().tenant_id
    }

    /// Puts a run into the server.
    pub fn seed(&self, seed: FlowRunSeed) -> Uuid {
        let id = seed.insert(&mut self.shared.store(), self.shared.now());
        self.shared.changes.mark();
        id
    }

    /// Puts in a Running run whose task runs wait for a retry at these times.
    pub fn seed_retry(&self, seed: FlowRunSeed, due: impl IntoIterator<Item = Timestamp>) -> Uuid {
        let seed = due
            .into_iter()
            .fold(seed.state(running()), FlowRunSeed::due_task);
        self.seed(seed)
    }

    /// Stores settings for agents that ask for them, and returns their id.
    pub fn seed_agent_config(&self, settings: Value) -> Uuid {
        let mut store = self.shared.store();
        let id = store.new_id();
        store.agent_configs.insert(id, settings);
        id
    }

    /// Removes a run, as a deletion in the UI does.
    pub fn remove(&self, id: Uuid) -> bool {
        let removed = self.shared.store().remove_run(&id);
        self.shared.changes.mark();
        removed
    }

    /// A run as it is now.
    pub fn run(&self, id: Uuid) -> Option<FlowRunSnapshot> {
        self.shared.store().run(&id).map(FlowRunSnapshot::of)
    }

    /// All runs, in the order they were put in.
    pub fn runs(&self) -> Vec<FlowRunSnapshot> {
        self.shared
            .store()
            .runs()
            .map(FlowRunSnapshot::of)
            .collect()
    }

    /// The type of a run's state; cheaper than a snapshot.
    pub fn state(&self, id: Uuid) -> Option<String> {
        let store = self.shared.store();
        store.run(&id).map(|run| run.row.state.clone())
    }

    /// How many runs are in a state of this type; cheap.
    pub fn count_in_state(&self, state: &str) -> usize {
        self.shared.store().count_in_state(state)
    }

    /// A run's log.
    pub fn logs(&self, id: Uuid) -> Vec<LogRow> {
        let store = self.shared.store();
        store
            .run(&id)
            .map(|run| run.logs.clone())
            .unwrap_or_default()
    }

    /// The task runs of a run.
    pub fn task_runs(&self, id: Uuid) -> Vec<TaskRunRow> {
        let store = self.shared.store();
        let ids = store.run(&id).map(|run| run.row.task_runs.clone());
        let tasks = ids.into_iter().flatten();
        tasks
            .filter_map(|id| store.tasks.get(&id).cloned())
            .collect()
    }

    /// All agents that registered.
    pub fn agents(&self) -> Vec<AgentRow> {
        self.shared.store().agents.values().cloned().collect()
    }

    /// Sets a run's state as the flow's own process or the UI would: nothing is checked.
    pub fn set_state(&self, id: Uuid, state: Value) {
        let now = self.shared.now();
        self.shared.store().apply_state(&id, state, now, None);
        self.shared.changes.mark();
    }

    /// As [`Self::set_state`], for a state that is only a type and a message.
    pub fn set_state_named(&self, id: Uuid, kind: &str, message: &str) {
        self.set_state(
            id,
            json!({
                "type": kind, "message": message, "context": {}, "cached_inputs": {},
                "_result": {"type": "NoResultType", "__version__": "1.4.1"}, "__version__": "1.4.1",
            }),
        );
    }

    /// Sets a task run's state without any check.
    pub fn set_task_state(&self, id: Uuid, state: Value) {
        let now = self.shared.now();
        self.shared.store().apply_task_state(&id, state, now);
        self.shared.changes.mark();
    }

    /// A sign of life of a run's own process.
    pub fn heartbeat(&self, id: Uuid) {
        let now = self.shared.now();
        let mut store = self.shared.store();
        store.update_run(&id, |row| row.heartbeat = Some(now));
    }

    /// Fills the concurrency limit of a run: Submitted and Running are answered with QUEUED.
    pub fn queue_run(&self, id: Uuid) {
        self.shared.store().queued.insert(id);
    }

    /// Makes room for a run again.
    pub fn release_run(&self, id: Uuid) {
        self.shared.store().queued.remove(&id);
    }

    /// Forgets who submitted what when, as a restart of the server does.
    pub fn forget_submitted_locks(&self) {
        self.shared.store().submitted_locks.clear();
    }

    /// Lets the Lazarus service pass once, with its usual patience of 10 minutes on the server's
    /// clock, and returns the runs it rescheduled.
    pub fn lazarus(&self) -> Vec<Uuid> {
        self.lazarus_after(Duration::from_secs(600))
    }

    /// As [`Self::lazarus`], with another patience.
    pub fn lazarus_after(&self, silence: Duration) -> Vec<Uuid> {
        let silence = SignedDuration::try_from(silence).unwrap_or(SignedDuration::MAX);
        let rescheduled = self.shared.store().lazarus(silence, self.shared.now());
        self.shared.changes.mark();
        rescheduled
    }

    /// The number of requests by operation. A document that asks for several counts for each.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.shared.requests.counts()
    }

    /// The number of requests for one operation.
    pub fn request_count(&self, operation: &str) -> u64 {
        self.shared.requests.count(operation)
    }

    /// Counts and records of requests, to reset them or keep more.
    pub fn request_log(&self) -> &Requests {
        &self.shared.requests
    }

    /// Keeps the last `count` requests from now on; see [`Self::last_requests`].
    pub fn keep_requests(&self, count: usize) {
        self.shared.requests.keep(count);
    }

    /// The requests that were kept, oldest first.
    pub fn last_requests(&self) -> Vec<RequestRecord> {
        self.shared.requests.last()
    }

    /// A receiver that sees every request and every change of what the server holds.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Returns as soon as `met` is true of this server. It is looked at after every request and
    /// every change, so it should be cheap.
    pub async fn wait_until(
        &self,
        timeout: Duration,
        mut met: impl FnMut(&Self) -> bool,
    ) -> Result<(), TimedOut> {
        self.shared.changes.wait_until(timeout, || met(self)).await
    }
}
