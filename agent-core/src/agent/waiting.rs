//! Claimed runs that wait for their Job because its creation has failed, by whom that concerns.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::backend_health::Concern;
use crate::FlowRunId;

/// The runs that wait, each since when and by whose fault.
#[derive(Debug, Default)]
pub(super) struct WaitingRuns(Mutex<HashMap<FlowRunId, (Concern, Instant)>>);

/// A run that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct WaitingRun {
    run: FlowRunId,
    all: Arc<WaitingRuns>,
}

impl WaitingRuns {
    /// Records that a run begins to wait.
    pub(super) fn begin(self: &Arc<Self>, run: &FlowRunId, concern: Concern) -> WaitingRun {
        self.lock().insert(run.clone(), (concern, Instant::now()));
        self.update_gauges();
        WaitingRun {
            run: run.clone(),
            all: self.clone(),
        }
    }

    /// Returns how many runs wait, by whom that concerns.
    pub(super) fn counts(&self) -> BTreeMap<Concern, usize> {
        let mut counts = BTreeMap::new();
        for (concern, _) in self.lock().values() {
            *counts.entry(*concern).or_default() += 1;
        }
        counts
    }

    /// Returns for how long the oldest of them has waited.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let all = self.lock();
        all.values().map(|(_, since)| since.elapsed()).max()
    }

    fn update_gauges(&self) {
        let counts = self.counts();
        for concern in [Concern::Run, Concern::Agent, Concern::Side] {
            let count = counts.get(&concern).copied().unwrap_or_default();
            metrics::gauge!("prefect_agent_runs_waiting_for_job", "by" => concern.name())
                .set(count as f64);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlowRunId, (Concern, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingRun {
    /// Records by whose fault the run waits from now on.
    pub(super) fn set_concern(&self, concern: Concern) {
        if let Some(entry) = self.all.lock().get_mut(&self.run) {
            entry.0 = concern;
        }
        self.all.update_gauges();
    }
}

impl Drop for WaitingRun {
    fn drop(&mut self) {
        self.all.lock().remove(&self.run);
        self.all.update_gauges();
    }
}
