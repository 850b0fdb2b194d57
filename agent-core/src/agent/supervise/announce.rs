//! Sees to it that owners are told of jobs that other processes have made: these may have died before
//! they told of them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Supervisor;
use crate::LogEntry;
use crate::agent::made::Untold;
use crate::agent::{deploy, logs};
use crate::observation::{JobState, Observation};

/// Older jobs are not told of: whoever made them has lived to do it, or was replaced long ago.
const YOUNG: SignedDuration = SignedDuration::from_hours(1);
/// Jobs that are looked for in the logs of their runs at once, and the pause after that: one who begins to
/// lead may find thousands, and what fails meanwhile is told first.
const BATCH: usize = 100;
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
    /// Has the owner of a run told of a job that another process has made, if it is young.
    pub(super) fn announce(&self, seen: &Arc<Observation>) {
        let shared = &self.shared;
        let young = |at| shared.source.now().duration_since(at) <= YOUNG;
        let young = seen.created_at.is_some_and(young);
        if !young || !seen.own || seen.state == JobState::Gone || shared.made.is_ours(seen) {
            return;
        }
        let untold = shared.made.untold(&seen.job);
        self.announcements.put(seen.clone(), untold);
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
        let entries = jobs
            .iter()
            .map(|(seen, _)| deploy::submitted(&self.shared, &seen.flow_run_id, &seen.job));
        let entries: Vec<LogEntry> = entries.collect();
        let there = match self.shared.source.logged(&entries).await {
            Ok(there) => there,
            Err(error) if error.is_transient() => {
                tracing::warn!(
                    "Cannot read whether owners were told of {} jobs: {error}",
                    jobs.len()
                );
                // Behind all others: it may be one of these that makes it fail.
                for (seen, untold) in jobs {
                    self.announcements.put(seen, untold);
                }
                return;
            }
            // A source that cannot tell: rather twice than never.
            Err(_) => Vec::new(),
        };
        let mut there = there.into_iter();
        for ((_, untold), entry) in jobs.into_iter().zip(entries) {
            if !there.next().unwrap_or(false) {
                self.shared.logs.write_if_missing(entry, untold).await;
            }
        }
    }
}
