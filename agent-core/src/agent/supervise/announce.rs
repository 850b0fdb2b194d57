//! Sees to it that owners are told of jobs that other processes have made: these may have died before
//! they told of them.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Supervisor;
use crate::agent::made::Untold;
use crate::agent::{deploy, logs};
use crate::observation::{JobState, Observation};
use crate::{FlowRunId, LogEntry, Result};

/// Older jobs are not told of: whoever made them has lived to do it, or was replaced long ago.
const YOUNG: SignedDuration = SignedDuration::from_hours(1);
/// Jobs that are looked for in the logs of their runs at once, and the pause after that: one who begins to
/// lead may find thousands, and what fails meanwhile is told first.
const BATCH: usize = 250;
const PAUSE: Duration = Duration::from_millis(250);

type Waiting = (Instant, Arc<Observation>, Untold);

/// Jobs of others as they were when they were new, and when they are looked for, in that order.
#[derive(Debug)]
pub(super) struct Announcements {
    /// For how long whoever has made a job may tell of it.
    patience: Duration,
    waiting: Mutex<VecDeque<Waiting>>,
    more: Notify,
}

impl Default for Announcements {
    fn default() -> Self {
        Self {
            patience: logs::others(),
            waiting: Mutex::default(),
            more: Notify::default(),
        }
    }
}

impl Announcements {
    /// Forgets all: another one leads, and sees them, too.
    pub(super) fn clear(&self) {
        *self.lock() = VecDeque::new();
    }

    fn put(&self, seen: Arc<Observation>, untold: Untold) {
        let due = Instant::now() + self.patience;
        self.lock().push_back((due, seen, untold));
        self.more.notify_one();
    }

    /// The next jobs, when they are due.
    async fn next(&self) -> Vec<(Arc<Observation>, Untold)> {
        loop {
            let first = self.lock().front().map(|(due, ..)| *due);
            match first {
                Some(due) if due <= Instant::now() => return self.take(),
                Some(due) => sleep_until(due).await,
                None => self.more.notified().await,
            }
        }
    }

    /// Takes some of those that are due.
    fn take(&self) -> Vec<(Arc<Observation>, Untold)> {
        let now = Instant::now();
        let mut waiting = self.lock();
        let due = waiting.iter().take(BATCH);
        let due = due.take_while(|(due, ..)| *due <= now).count();
        let taken = waiting.drain(..due);
        taken.map(|(_, seen, untold)| (seen, untold)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Supervisor {
    /// Has the owner of a run told of a job that another process has made, if it is young. Agents with
    /// other labels may have made it: one replica of all leads.
    pub(super) fn announce(&self, seen: &Arc<Observation>) {
        let shared = &self.shared;
        if !self.is_young(seen) || seen.state == JobState::Gone || shared.made.is_ours(seen) {
            return;
        }
        let untold = shared.made.untold(&seen.job);
        self.announcements.put(seen.clone(), untold);
    }

    fn is_young(&self, seen: &Observation) -> bool {
        let now = self.shared.source.now();
        let young = |at| now.duration_since(at) <= YOUNG;
        seen.created_at.is_some_and(young)
    }

    /// Tells of what is due, as long as this process leads.
    pub(super) async fn announce_all(&self) -> Infallible {
        loop {
            let due = self.announcements.next().await;
            self.tell_of(due).await;
            sleep(PAUSE).await;
        }
    }

    async fn tell_of(&self, jobs: Vec<(Arc<Observation>, Untold)>) {
        let missing = match self.missing(&jobs).await {
            Ok(missing) => missing,
            Err(error) => {
                tracing::warn!(
                    "Cannot read whether owners were told of {} jobs: {error}",
                    jobs.len()
                );
                // Behind all others: it may be one of these that makes it fail.
                for (seen, untold) in jobs {
                    if self.is_young(&seen) {
                        self.announcements.put(seen, untold);
                    }
                }
                return;
            }
        };
        for ((_, untold), entry) in jobs.into_iter().zip(missing) {
            if let Some(entry) = entry {
                self.shared.logs.write_if_missing(entry, untold).await;
            }
        }
    }

    /// What there is to tell of each of these jobs of which it was not told.
    async fn missing(&self, jobs: &[(Arc<Observation>, Untold)]) -> Result<Vec<Option<LogEntry>>> {
        let source = &self.shared.source;
        let submitted =
            |seen: &Observation| deploy::submitted(&self.shared, &seen.flow_run_id, &seen.job);
        let entries: Vec<LogEntry> = jobs.iter().map(|(seen, _)| submitted(seen)).collect();
        let mut there = match source.logged(&entries).await {
            Err(error) if super::may_pass(&error) => return Err(error),
            // A source that cannot tell: rather twice than never.
            there => there.unwrap_or_default(),
        };
        there.resize(entries.len(), false);
        let missing = entries.iter().zip(&there).filter(|(_, there)| !**there);
        let runs: Vec<FlowRunId> = missing
            .map(|(entry, _)| entry.flow_run_id.clone())
            .collect();
        let known = match runs.is_empty() {
            true => HashMap::new(),
            // Agents of another server may use the namespace, too.
            false => source.states(&runs).await?,
        };
        let is_missing = |(entry, there): (LogEntry, bool)| {
            Some(entry).filter(|entry| !there && known.contains_key(&entry.flow_run_id))
        };
        Ok(entries.into_iter().zip(there).map(is_missing).collect())
    }
}
