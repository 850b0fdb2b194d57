//! The jobs that this process makes or has made a moment ago, of which it tells by itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::FlowRunId;
use crate::observation::Observation;

/// How long a job may take to be seen after it was made.
const UNSEEN: Duration = Duration::from_secs(60);
/// Names that are kept before those which were never seen are looked for.
const MANY: usize = 1024;

#[derive(Debug, Default)]
struct Known {
    making: HashSet<FlowRunId>,
    made: HashMap<String, Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Known>);

/// A job that is being made, until this is dropped.
#[derive(Debug)]
pub(super) struct Making<'a> {
    run: &'a FlowRunId,
    made: &'a Made,
}

impl Made {
    /// Begins to make the job of a run.
    pub(super) fn begin<'a>(&'a self, run: &'a FlowRunId) -> Making<'a> {
        self.lock().making.insert(run.clone());
        Making { run, made: self }
    }

    /// Whether this process has made a job that is seen for the first time, or makes it just now.
    pub(super) fn is_ours(&self, seen: &Observation) -> bool {
        let mut known = self.lock();
        known.made.remove(&seen.job).is_some() || known.making.contains(&seen.flow_run_id)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making<'_> {
    /// The job was made.
    pub(super) fn made(&self, job: &str) {
        let mut known = self.made.lock();
        if known.made.len() >= MANY {
            known.made.retain(|_, at| at.elapsed() < UNSEEN);
        }
        known.made.insert(job.to_owned(), Instant::now());
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.made.lock().making.remove(self.run);
    }
}
