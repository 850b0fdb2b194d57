//! What the server remembers, indexed for the questions that agents ask.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::filter::{compare_rows, flow_run_matches};
use super::inputs::{FlowRunFilter, FlowRunOrder};
use super::rows::{AgentRow, FlowRunRow, LogRow, StateRecord, TaskRunRow};
use super::states;

/// A run with what is not a column of it.
#[derive(Debug)]
pub(crate) struct StoredRun {
    pub(crate) row: Arc<FlowRunRow>,
    pub(crate) history: Vec<StateRecord>,
    pub(crate) logs: Vec<LogRow>,
}

/// What makes two registrations the same agent.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AgentKey {
    tenant_id: Uuid,
    kind: String,
    name: String,
    labels: BTreeSet<String>,
    core_version: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) tenant_id: Uuid,
    pub(crate) has_tenant: bool,
    pub(crate) agents: HashMap<Uuid, AgentRow>,
    pub(crate) agent_configs: HashMap<Uuid, Value>,
    /// When each run or task run was last set to Submitted.
    pub(crate) submitted_locks: HashMap<Uuid, Timestamp>,
    /// Runs for which a concurrency limit is full.
    pub(crate) queued: HashSet<Uuid>,
    pub(crate) tasks: HashMap<Uuid, TaskRunRow>,
    runs: HashMap<Uuid, StoredRun>,
    by_number: BTreeMap<u64, Uuid>,
    by_state: HashMap<String, BTreeSet<u64>>,
    /// Scheduled runs by start time; none sorts last.
    scheduled: BTreeSet<(Timestamp, u64)>,
    /// Task runs with a start time.
    due_tasks: BTreeSet<(Timestamp, u64, Uuid)>,
    agent_ids: HashMap<AgentKey, Uuid>,
    ids: fastrand::Rng,
    next_number: u64,
}

impl Store {
    pub(crate) fn new(seed: u64) -> Self {
        let mut ids = fastrand::Rng::with_seed(seed);
        Self {
            tenant_id: random_id(&mut ids),
            has_tenant: true,
            agents: HashMap::new(),
            agent_configs: HashMap::new(),
            submitted_locks: HashMap::new(),
            queued: HashSet::new(),
            tasks: HashMap::new(),
            runs: HashMap::new(),
            by_number: BTreeMap::new(),
            by_state: HashMap::new(),
            scheduled: BTreeSet::new(),
            due_tasks: BTreeSet::new(),
            agent_ids: HashMap::new(),
            ids,
            next_number: 0,
        }
    }

    /// A new id; the same seed gives the same sequence of ids.
    pub(crate) fn new_id(&mut self) -> Uuid {
        random_id(&mut self.ids)
    }

    pub(crate) fn run(&self, id: &Uuid) -> Option<&StoredRun> {
        self.runs.get(id)
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = &StoredRun> {
        self.by_number.values().filter_map(|id| self.runs.get(id))
    }

    pub(crate) fn count_in_state(&self, state: &str) -> usize {
        self.by_state.get(state).map_or(0, BTreeSet::len)
    }

    pub(crate) fn insert_run(&mut self, mut row: FlowRunRow, history: Vec<StateRecord>) -> Uuid {
        let id = row.id;
        self.remove_run(&id);
        row.number = self.next_number;
        self.next_number += 1;
        self.index(&row);
        self.by_number.insert(row.number, id);
        self.runs.insert(
            id,
            StoredRun {
                row: Arc::new(row),
                history,
                logs: Vec::new(),
            },
        );
        id
    }

    pub(crate) fn remove_run(&mut self, id: &Uuid) -> bool {
        let Some(run) = self.runs.remove(id) else {
            return false;
        };
        self.unindex(&run.row);
        self.by_number.remove(&run.row.number);
        for task in &run.row.task_runs {
            self.remove_task(task, run.row.number);
        }
        true
    }

    fn remove_task(&mut self, id: &Uuid, number: u64) {
        if let Some(task) = self.tasks.remove(id)
            && let Some(start) = task.state_start_time
        {
            self.due_tasks.remove(&(start, number, *id));
        }
    }

    /// Adds a task run to a run that exists.
    pub(crate) fn insert_task(&mut self, task: TaskRunRow) {
        let Some(run) = self.runs.get_mut(&task.flow_run_id) else {
            return;
        };
        let row = Arc::make_mut(&mut run.row);
        row.task_runs.push(task.id);
        if let Some(start) = task.state_start_time {
            self.due_tasks.insert((start, row.number, task.id));
        }
        self.tasks.insert(task.id, task);
    }

    /// Changes a run and keeps the indexes true.
    pub(crate) fn update_run(&mut self, id: &Uuid, change: impl FnOnce(&mut FlowRunRow)) -> bool {
        let Some(mut run) = self.runs.remove(id) else {
            return false;
        };
        self.unindex(&run.row);
        change(Arc::make_mut(&mut run.row));
        self.index(&run.row);
        self.runs.insert(*id, run);
        true
    }

    /// Sets a state of a run: version, times, indexes and history follow.
    pub(crate) fn apply_state(
        &mut self,
        id: &Uuid,
        state: Value,
        now: Timestamp,
        agent_id: Option<Uuid>,
    ) {
        let known_agent = agent_id.filter(|agent| self.agents.contains_key(agent));
        let kind = states::kind_of(&state).to_owned();
        let start = states::start_time(&state, now);
        let mut version = 0;
        self.update_run(id, |row| {
            row.version += 1;
            version = row.version;
            if kind == "Submitted" && known_agent.is_some() {
                row.agent_id = known_agent;
            }
            if matches!(kind.as_str(), "Submitted" | "Running") {
                row.heartbeat = Some(now);
            }
            row.state = kind;
            row.serialized_state = state.clone();
            row.state_timestamp = now;
            row.state_start_time = start;
            row.updated = now;
        });
        if let Some(run) = self.runs.get_mut(id) {
            run.history.push(StateRecord {
                version,
                state,
                at: now,
                agent_id,
            });
        }
    }

    /// Sets a state of a task run.
    pub(crate) fn apply_task_state(&mut self, id: &Uuid, state: Value, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let number = self
            .runs
            .get(&task.flow_run_id)
            .map_or(0, |run| run.row.number);
        if let Some(start) = task.state_start_time {
            self.due_tasks.remove(&(start, number, *id));
        }
        task.version += 1;
        task.state = states::kind_of(&state).to_owned();
        task.state_start_time = states::start_time(&state, now);
        task.state_timestamp = now;
        if matches!(task.state.as_str(), "Submitted" | "Running") {
            task.heartbeat = Some(now);
        }
        task.serialized_state = state;
        if let Some(start) = task.state_start_time {
            self.due_tasks.insert((start, number, *id));
        }
    }

    pub(crate) fn append_log(&mut self, log: LogRow) -> bool {
        match self.runs.get_mut(&log.flow_run_id) {
            Some(run) => {
                run.logs.push(log);
                true
            }
            None => false,
        }
    }

    /// The ids of the runs an agent with these labels may take: at most 25 of the 75 earliest.
    pub(crate) fn queue(&self, before: Timestamp, labels: &BTreeSet<String>) -> Vec<Uuid> {
        const LOOKED_AT: usize = 75;
        const ANSWERED: usize = 25;
        let scheduled = self
            .scheduled
            .range(..=(before, u64::MAX))
            .map(|(_, number)| *number);
        let mut seen = HashSet::new();
        let retries = self
            .due_tasks
            .range(..=(before, u64::MAX, Uuid::max()))
            .map(|(_, number, _)| *number)
            .filter(|number| self.is_running(*number))
            .filter(move |number| seen.insert(*number));
        scheduled
            .chain(retries)
            .take(LOOKED_AT)
            .filter_map(|number| self.by_number.get(&number))
            .filter_map(|id| self.runs.get(id))
            .filter(|run| labels_fit(&run.row.labels, labels))
            .take(ANSWERED)
            .map(|run| run.row.id)
            .collect()
    }

    fn is_running(&self, number: u64) -> bool {
        self.by_state
            .get("Running")
            .is_some_and(|running| running.contains(&number))
    }

    /// The runs that match, in order.
    pub(crate) fn find(
        &self,
        filter: Option<&FlowRunFilter>,
        order: &[FlowRunOrder],
        limit: Option<usize>,
        offset: usize,
    ) -> Vec<Arc<FlowRunRow>> {
        let matches = |run: &&StoredRun| {
            filter.is_none_or(|filter| flow_run_matches(filter, &run.row, &self.tasks))
        };
        let candidates = filter.and_then(|filter| self.candidates(filter));
        let found: Box<dyn Iterator<Item = &StoredRun>> = match &candidates {
            Some(ids) => Box::new(ids.iter().filter_map(|id| self.runs.get(id))),
            None => Box::new(self.runs()),
        };
        let rows = found.filter(matches).map(|run| run.row.clone());
        let limit = limit.unwrap_or(usize::MAX);
        if order.is_empty() {
            return rows.skip(offset).take(limit).collect();
        }
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by(|one, other| {
            order
                .iter()
                .map(|order| compare_rows(order, one, other))
                .find(|ordering| ordering.is_ne())
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        rows.into_iter().skip(offset).take(limit).collect()
    }

    /// The ids among which all matches are, when an index can tell.
    fn candidates(&self, filter: &FlowRunFilter) -> Option<Vec<Uuid>> {
        if let Some(id) = &filter.id {
            if let Some(id) = &id.eq {
                return Some(vec![id.0]);
            }
            if let Some(ids) = &id.within {
                let unique: BTreeSet<Uuid> = ids.iter().map(|id| id.0).collect();
                return Some(unique.into_iter().collect());
            }
        }
        if let Some(state) = &filter.state {
            let names: Option<BTreeSet<&String>> = match (&state.eq, &state.within) {
                (Some(one), _) => Some(BTreeSet::from([one])),
                (None, Some(several)) => Some(several.iter().collect()),
                (None, None) => None,
            };
            if let Some(names) = names {
                let sets = names.into_iter().filter_map(|name| self.by_state.get(name));
                let numbers: BTreeSet<u64> = sets.flatten().copied().collect();
                let ids = numbers
                    .iter()
                    .filter_map(|number| self.by_number.get(number));
                return Some(ids.copied().collect());
            }
        }
        filter
            .all
            .iter()
            .flatten()
            .find_map(|one| self.candidates(one))
    }

    /// Registers an agent, or finds the one that registered the same way before.
    pub(crate) fn register_agent(
        &mut self,
        tenant_id: Uuid,
        kind: String,
        name: String,
        labels: BTreeSet<String>,
        core_version: Option<String>,
    ) -> Uuid {
        let key = AgentKey {
            tenant_id,
            kind: kind.clone(),
            name: name.clone(),
            labels: labels.clone(),
            core_version: core_version.clone(),
        };
        if let Some(id) = self.agent_ids.get(&key) {
            return *id;
        }
        let id = self.new_id();
        self.agent_ids.insert(key, id);
        let agent = AgentRow {
            id,
            kind,
            name,
            labels,
            core_version,
            last_queried: None,
        };
        self.agents.insert(id, agent);
        id
    }

    fn index(&mut self, row: &FlowRunRow) {
        match self.by_state.get_mut(&row.state) {
            Some(numbers) => {
                numbers.insert(row.number);
            }
            None => {
                self.by_state
                    .insert(row.state.clone(), BTreeSet::from([row.number]));
            }
        }
        if row.state == "Scheduled" {
            let start = row.state_start_time.unwrap_or(row.state_timestamp);
            self.scheduled.insert((start, row.number));
        }
    }

    fn unindex(&mut self, row: &FlowRunRow) {
        if let Some(numbers) = self.by_state.get_mut(&row.state) {
            numbers.remove(&row.number);
        }
        if row.state == "Scheduled" {
            let start = row.state_start_time.unwrap_or(row.state_timestamp);
            self.scheduled.remove(&(start, row.number));
        }
    }
}

/// A run goes to an agent that has all its labels; one without labels only to one without.
fn labels_fit(run: &BTreeSet<String>, agent: &BTreeSet<String>) -> bool {
    run.is_subset(agent) && (!run.is_empty() || agent.is_empty())
}

fn random_id(rng: &mut fastrand::Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.u128(..).to_le_bytes()).into_uuid()
}
