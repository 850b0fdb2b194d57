//! The jobs that this process makes or has made a moment ago, of which it tells by itself, and those of
//! which it has still to tell.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::logs::Settled;
use crate::FlowRunId;
use crate::observation::Observation;

/// How long a job may take to be seen after it was made.
const UNSEEN: Duration = Duration::from_secs(60);
/// Names that are kept in any case.
const MANY: usize = 1024;
/// How long a job is kept for the sake of what is to be told of it.
const TELLS: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Known {
    /// With the jobs that were seen first meanwhile.
    making: HashMap<FlowRunId, Vec<String>>,
    made: HashMap<String, Instant>,
    /// How many are about to tell of a job, and since when somebody is.
    untold: HashMap<String, (usize, Instant)>,
    /// How many names may be kept before those which were never seen are looked for.
    many: usize,
    /// Whether this process tells of what others have made.
    leads: bool,
    /// Whether jobs are seen, so that whoever leads next can tell of them.
    seen: bool,
}

#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Known>);

/// A job that is being made, until this is dropped.
#[derive(Debug)]
pub(super) struct Making<'a> {
    run: &'a FlowRunId,
    made: &'a Made,
}

/// A job whose run's owner may not know of it, until this is dropped.
#[derive(Debug)]
pub(super) struct Untold {
    job: String,
    made: Arc<Made>,
}

impl Made {
    /// Begins to make the job of a run.
    pub(super) fn begin<'a>(&'a self, run: &'a FlowRunId) -> Making<'a> {
        self.lock().making.insert(run.clone(), Vec::new());
        Making { run, made: self }
    }

    /// Whether this process has made a job that is seen for the first time, or may do so just now.
    pub(super) fn is_ours(&self, seen: &Observation) -> bool {
        let mut known = self.lock();
        if known.made.remove(&seen.job).is_some() {
            return true;
        }
        let making = known.making.get_mut(&seen.flow_run_id);
        let jobs = making.map(|jobs| jobs.push(seen.job.clone()));
        jobs.is_some()
    }

    /// Notes whether this process tells of what others have made.
    pub(super) fn leads(&self, leads: bool) {
        self.lock().leads = leads;
    }

    /// A job was seen.
    pub(super) fn saw(&self) {
        self.lock().seen = true;
    }

    /// The agent stops: what cannot be told at once is told by whoever leads next.
    pub(super) fn stop(&self) {
        let mut known = self.lock();
        known.leads &= !known.seen;
    }

    /// Somebody is about to tell of a job.
    pub(super) fn untold(self: &Arc<Self>, job: &str) -> Untold {
        let mut known = self.lock();
        let tellers = known.untold.entry(job.to_owned());
        tellers.or_insert_with(|| (0, Instant::now())).0 += 1;
        drop(known);
        Untold {
            job: job.to_owned(),
            made: self.clone(),
        }
    }

    /// Whether a job is to be told of yet, so that it may not go: nobody else would know of it.
    pub(super) fn is_untold(&self, seen: &Observation) -> bool {
        let known = self.lock();
        let making = known.making.get(&seen.flow_run_id);
        let untold = known.untold.get(&seen.job);
        untold.is_some_and(|(_, since)| since.elapsed() < TELLS)
            || making.is_some_and(|jobs| jobs.contains(&seen.job))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making<'_> {
    /// This job was made, or none; the others of its run that were taken for it.
    pub(super) fn end(self, job: Option<&String>) -> Vec<String> {
        let mut known = self.made.lock();
        let mut seen = known.making.remove(self.run).unwrap_or_default();
        let Some(job) = job else {
            return seen;
        };
        if !seen.contains(job) {
            if known.made.len() >= known.many.max(MANY) {
                known.made.retain(|_, at| at.elapsed() < UNSEEN);
                known.many = known.made.len() * 2;
            }
            known.made.insert(job.clone(), Instant::now());
        }
        seen.retain(|other| other != job);
        seen
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.made.lock().making.remove(self.run);
    }
}

impl Settled for Untold {
    /// Whoever leads tells of every job of which nobody else has told in time: two who tell of one at
    /// the same time would not know of each other.
    fn leave(&self) -> bool {
        let mut known = self.made.lock();
        if !known.leads {
            known.made.remove(&self.job);
        }
        !known.leads
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        let mut known = self.made.lock();
        if let Some(tellers) = known.untold.get_mut(&self.job) {
            tellers.0 -= 1;
            if tellers.0 == 0 {
                known.untold.remove(&self.job);
            }
        }
    }
}
