//! Follows jobs to their end: tells the run's owner what was seen, fails runs whose job cannot
//! succeed any more, and deletes jobs that have ended.
//!
//! What is seen is taken in at once, in every replica; what follows from it is worked off job by
//! job, and only by the replica that leads.

mod announce;
mod cancelled;
mod handle;
mod states;
mod table;
mod tell;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use self::announce::Announcements;
use self::states::States;
use self::table::Table;
use super::Shared;
use crate::backoff::Backoff;
use crate::observation::{Finding, Observation, Sighting};
use crate::{Error, Result};

/// Jobs that are handled at the same time.
const CONCURRENCY: usize = 32;
/// For how long something is tried without a look at other jobs: what fails for one job alone must not
/// hold up the others.
const INSISTS: Duration = Duration::from_secs(60);
/// The pause before a watch that has ended begins again.
const PAUSE: Duration = Duration::from_secs(1);

struct Supervisor {
    shared: Arc<Shared>,
    table: Table,
    states: States,
    announcements: Announcements,
    /// How many jobs' words may be written besides.
    tellings: Arc<Semaphore>,
}

/// Follows the backend's observations until the agent stops, and then finishes what has begun.
pub(super) async fn run(shared: Arc<Shared>) {
    let supervisor = Supervisor {
        states: States::new(shared.source.clone()),
        table: Table::default(),
        announcements: Announcements::default(),
        tellings: Arc::new(Semaphore::new(tell::TELLINGS)),
        shared,
    };
    supervisor.shared.in_flight.begin();
    tokio::select! {
        () = supervisor.lead() => {}
        never = supervisor.take_in() => match never {},
        never = supervisor.table.remind() => match never {},
        never = supervisor.states.answer() => match never {},
    }
}

impl Supervisor {
    /// Takes in what the backend sees.
    async fn take_in(&self) -> Infallible {
        loop {
            let mut sightings = self.shared.backend.observations();
            self.table.begin_watch();
            while let Some(sighting) = sightings.next().await {
                match sighting {
                    Sighting::Job(seen) => self.saw(seen),
                    Sighting::Complete => {
                        for last in self.table.not_shown() {
                            self.saw(Arc::unwrap_or_clone(last).gone());
                        }
                        self.shared.in_flight.complete();
                    }
                    Sighting::Broken { watch, reason } => {
                        self.shared.health.watch_broke(watch, reason);
                    }
                }
            }
            tracing::warn!("The watch over jobs has ended; it begins again");
            sleep(PAUSE).await;
        }
    }

    fn saw(&self, mut seen: Observation) {
        seen.findings.iter_mut().for_each(Finding::clip);
        self.shared.in_flight.saw(&seen);
        self.shared.made.saw();
        let seen = Arc::new(seen);
        if self.table.saw(seen.clone()) {
            self.announce(&seen);
        }
    }

    /// Works while this process leads; returns when the agent stops.
    async fn lead(&self) {
        let stopping = &self.shared.stopping;
        let mut leadership = self.shared.backend.leadership();
        self.leads(false);
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                () = self.until(&mut leadership, true) => {}
            }
            self.leads(true);
            let ended = tokio::select! {
                biased;
                () = self.term() => true,
                () = self.until(&mut leadership, false) => false,
            };
            if ended {
                // Nobody else is to lead before the last words are written.
                let ended = self.shared.ended.clone();
                let leading = async move { while leadership.next().await.is_some() {} };
                tokio::spawn(ended.run_until_cancelled_owned(leading));
                return;
            }
            self.table.end_term();
            self.announcements.clear();
            tracing::info!("This replica does not supervise the jobs any more");
            self.leads(false);
        }
    }

    fn leads(&self, leads: bool) {
        self.shared.made.leads(leads);
        self.shared.health.leads(leads);
    }

    /// Waits until this process leads, or does not.
    async fn until(&self, leadership: &mut BoxStream<'static, bool>, leads: bool) {
        loop {
            match leadership.next().await {
                Some(now) if now == leads => return,
                Some(_) => {}
                None => {
                    sleep(PAUSE).await;
                    *leadership = self.shared.backend.leadership();
                }
            }
        }
    }

    /// One time of leading: works off everything that is known, and what comes. Returns when the
    /// agent stops and what had begun is finished.
    async fn term(&self) {
        let teller = format!("{:08x}", fastrand::u32(..));
        for seen in self.table.begin_term() {
            self.announce(&seen);
        }
        let names = stream::unfold(&self.table, async |table| Some((table.next().await, table)));
        let stopping = self.shared.stopping.clone();
        let work = names
            .take_until(stopping.cancelled_owned())
            .for_each_concurrent(CONCURRENCY, |name| self.work_off(name, &teller));
        tokio::select! {
            () = work => {}
            never = cancelled::look(self) => match never {},
            never = self.announce_all() => match never {},
        }
    }

    /// Tries for a while as long as the failure may pass and the agent runs.
    async fn insistently<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        attempt: impl FnMut() -> F,
    ) -> Result<T> {
        self.insistently_for(INSISTS, what, attempt).await
    }

    /// The same for so long.
    async fn insistently_for<T, F: Future<Output = Result<T>>>(
        &self,
        time: Duration,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T> {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        let until = Instant::now() + time;
        loop {
            let error = match attempt().await {
                Err(error) if may_pass(&error) => error,
                Err(error) => {
                    tracing::error!("{what}: {error}");
                    return Err(error);
                }
                done => return done,
            };
            tracing::warn!("{what}, will try again: {error}");
            if Instant::now() > until {
                return Err(error);
            }
            let pause = sleep(backoff.pause(error.retry_after()));
            tokio::select! {
                () = self.shared.stopping.cancelled() => return Err(stopped(error)),
                () = pause => {}
            }
        }
    }
}

/// Returns whether the same request may succeed soon, without anybody's doing.
fn may_pass(error: &Error) -> bool {
    !matches!(error, Error::Permanent(_) | Error::Agent(_))
}

/// The error of an attempt that is not repeated because the agent stops.
fn stopped(error: Error) -> Error {
    Error::transient(format!("the agent stops: {error}"))
}
