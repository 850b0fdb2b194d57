//! Runs that the source refuses to have claimed or ended: since when, and whether their owners know.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::FlowRunId;

/// How long nothing has to happen to a run until it is forgotten.
const FORGET: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Refused {
    first: Instant,
    last: Instant,
    told: bool,
}

#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<FlowRunId, Refused>>);

impl Refusals {
    /// Notes that a run is refused; for how long it has been by now.
    pub(super) fn again(&self, run: &FlowRunId) -> Duration {
        self.note(run, |refused| refused.first.elapsed())
    }

    /// Whether the run's owner is still to be told why it cannot be deployed; not so afterwards.
    pub(super) fn is_to_be_told(&self, run: &FlowRunId) -> bool {
        self.note(run, |refused| !std::mem::replace(&mut refused.told, true))
    }

    /// The run is not refused any more.
    pub(super) fn forget(&self, run: &FlowRunId) {
        self.lock().remove(run);
    }

    fn note<T>(&self, run: &FlowRunId, note: impl FnOnce(&mut Refused) -> T) -> T {
        let now = Instant::now();
        let mut all = self.lock();
        all.retain(|_, refused| refused.last + FORGET > now);
        let refused = all.entry(run.clone()).or_insert(Refused {
            first: now,
            last: now,
            told: false,
        });
        refused.last = now;
        note(refused)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlowRunId, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
