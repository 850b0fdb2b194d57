//! Whether the backend creates Jobs at all for this agent: what tells a failure of one run from one
//! of this agent or of the whole side, and keeps runs in the queue while there is no use in claiming
//! them.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
use crate::{Error, FlowRunId, JobBackend, Result};

/// Runs that must have failed without a success between them before the backend is suspected.
const SUSPECT_AFTER_RUNS: usize = 3;
/// A backend that takes longer for one Job is slow, and overloaded if it does for several.
pub(super) const SLOW_CREATION: Duration = Duration::from_secs(5);
/// The pauses between two preflights of a backend that does not create Jobs.
const MIN_PREFLIGHT_PAUSE: Duration = Duration::from_millis(500);
const MAX_PREFLIGHT_PAUSE: Duration = Duration::from_secs(10);
/// How long the first answer is waited for before runs are claimed without it.
const FIRST_PREFLIGHT_WAIT: Duration = Duration::from_secs(2);
/// How long one preflight may take: longer than a backend's own time-outs.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(60);

/// Whom a failure concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Concern {
    /// One run: its template, its run config, the refusal of its Job.
    Run,
    /// This agent: its permissions, credentials or configuration.
    Agent,
    /// The whole side, which is away or overloaded.
    Side,
}

impl Concern {
    /// Returns the name in metrics and health reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Agent => "agent",
            Self::Side => "side",
        }
    }
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How fast the backend creates Jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    Fast,
    /// This Job took long, others may not.
    Slow,
    /// Several Jobs in a row took long.
    Overloaded,
}

/// Why no runs are claimed at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) concern: Concern,
    pub(super) since: Instant,
    pub(super) reason: String,
}

#[derive(Debug, Default)]
struct State {
    last_success: Option<Instant>,
    /// Some of the runs that have failed since the last success.
    failing: HashSet<FlowRunId>,
    /// When the last Job was created, which a dry run does not do, and some of the runs that have
    /// failed since.
    last_created: Option<Instant>,
    failing_since: HashSet<FlowRunId>,
    /// Several runs have failed, and a preflight cannot show whether the side is at fault: it is taken
    /// to be until a Job is created.
    unproven: bool,
    /// How many Jobs in a row took long to be created.
    slow: usize,
    blocked: Option<Blocked>,
}

/// What creations of Jobs have shown of the backend.
#[derive(Debug)]
pub(super) struct BackendHealth {
    state: Mutex<State>,
    /// Whether runs may be claimed. Not before the first preflight.
    open: watch::Sender<bool>,
    suspected: Notify,
}

impl Default for BackendHealth {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            open: watch::Sender::new(false),
            suspected: Notify::new(),
        }
    }
}

impl BackendHealth {
    /// Waits until runs may be claimed.
    pub(super) async fn wait_until_open(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Returns why no runs are claimed, if none are.
    pub(super) fn blocked(&self) -> Option<Blocked> {
        self.lock().blocked.clone()
    }

    /// Records that a Job was created, in this time.
    pub(super) fn record_success(&self, took: Duration) -> Pace {
        {
            let mut state = self.lock();
            state.last_created = Some(Instant::now());
            state.failing_since.clear();
        }
        self.record_working(took)
    }

    /// Returns whether it is a run's own that it has failed since a time: others got their Jobs since,
    /// or few others fail.
    pub(super) fn is_runs_own(&self, since: Instant) -> bool {
        let state = self.lock();
        state.failing_since.len() < SUSPECT_AFTER_RUNS
            || state.last_created.is_some_and(|at| at > since)
    }

    fn record_working(&self, took: Duration) -> Pace {
        let mut state = self.lock();
        state.last_success = Some(Instant::now());
        state.failing.clear();
        state.unproven = false;
        self.unblock(&mut state);
        if took <= SLOW_CREATION {
            state.slow = 0;
            return Pace::Fast;
        }
        state.slow += 1;
        match state.slow {
            SUSPECT_AFTER_RUNS.. => Pace::Overloaded,
            _ => Pace::Slow,
        }
    }

    /// Records that a run's Job could not be created. Returns whom that concerns, for a run that has
    /// failed since `since`.
    pub(super) fn record_failure(&self, run: &FlowRunId, since: Instant, error: &Error) -> Concern {
        if let Error::Agent(reason) = error {
            self.record_agent_error(reason);
            return Concern::Agent;
        }
        let mut state = self.lock();
        if let Error::Unclear { .. } | Error::Transient { .. } = error
            && state.failing_since.len() < SUSPECT_AFTER_RUNS
        {
            state.failing_since.insert(run.clone());
        }
        if state.failing.len() < SUSPECT_AFTER_RUNS && !matches!(error, Error::Permanent(_)) {
            state.failing.insert(run.clone());
            if state.failing.len() == SUSPECT_AFTER_RUNS {
                self.suspected.notify_one();
            }
        }
        match error {
            Error::Transient { .. } => Concern::Side,
            Error::Unclear { .. } => {
                let works_for_others = state.last_success.is_some_and(|at| at > since);
                match &state.blocked {
                    _ if works_for_others => Concern::Run,
                    Some(blocked) => blocked.concern,
                    None if state.unproven => Concern::Side,
                    None => Concern::Run,
                }
            }
            _ => Concern::Run,
        }
    }

    /// Returns whether a Job was created since a time, which a dry run does not show.
    pub(super) fn has_created_since(&self, time: Instant) -> bool {
        self.lock().last_created.is_some_and(|at| at > time)
    }

    /// Returns whether a Job was created, or could have been, since a time.
    pub(super) fn has_succeeded_since(&self, time: Instant) -> bool {
        self.lock().last_success.is_some_and(|at| at > time)
    }

    /// Records that this agent may not do its work: nothing is claimed until it may.
    pub(super) fn record_agent_error(&self, reason: &str) {
        self.block(Concern::Agent, reason);
        self.suspected.notify_one();
    }

    /// Tries at the start, and whenever the backend is suspected, whether it creates Jobs, again and
    /// again until it does. A backend that says nothing at the start is taken to work: what is away
    /// shows soon enough.
    pub(super) async fn check(&self, backend: &dyn JobBackend) -> Infallible {
        let waiting = async {
            sleep(FIRST_PREFLIGHT_WAIT).await;
            if self.blocked().is_none() {
                self.open();
            }
            std::future::pending().await
        };
        let checking = async {
            loop {
                self.check_until_open(backend).await;
                self.suspected.notified().await;
            }
        };
        tokio::select! {
            never = checking => never,
            never = waiting => never,
        }
    }

    async fn check_until_open(&self, backend: &dyn JobBackend) {
        let mut backoff = Backoff::new(MIN_PREFLIGHT_PAUSE, MAX_PREFLIGHT_PAUSE);
        loop {
            let answer = timeout(PREFLIGHT_TIMEOUT, backend.preflight()).await;
            let answer = answer.unwrap_or_else(|_| {
                let seconds = PREFLIGHT_TIMEOUT.as_secs();
                let message = format!("the backend did not answer within {seconds} s");
                Err(Error::transient(message))
            });
            if self.take_answer(&answer) {
                return;
            }
            let pause = backoff.pause(answer.err().and_then(|error| error.retry_after()));
            let opened = async { self.open.subscribe().wait_for(|open| *open).await.is_ok() };
            tokio::select! {
                () = sleep(pause.min(MAX_PREFLIGHT_PAUSE)) => {}
                // A Job was created meanwhile.
                true = opened => return,
            }
        }
    }

    /// Takes in the answer to a preflight. Returns whether runs may be claimed.
    fn take_answer(&self, answer: &Result<()>) -> bool {
        let several_fail = self.lock().failing.len() >= SUSPECT_AFTER_RUNS;
        match answer {
            Ok(()) => {
                self.record_working(Duration::ZERO);
                return true;
            }
            Err(Error::Agent(reason)) => self.block(Concern::Agent, reason),
            // What is refused of the preflight may be taken of a run.
            Err(Error::Permanent(reason)) => {
                tracing::debug!(reason, "The preflight shows nothing");
                let mut state = self.lock();
                state.failing.clear();
                state.unproven |= several_fail;
                self.unblock(&mut state);
                return true;
            }
            // One failure does not show much.
            Err(_) if !several_fail && self.blocked().is_none() => {
                self.open();
                return true;
            }
            Err(error) => self.block(Concern::Side, &error.to_string()),
        }
        false
    }

    /// Lets runs be claimed.
    fn open(&self) {
        let mut state = self.lock();
        self.unblock(&mut state);
    }

    fn block(&self, concern: Concern, reason: &str) {
        let mut state = self.lock();
        let before = state.blocked.take();
        let news = before.as_ref().is_none_or(|it| it.concern != concern);
        if news {
            tracing::error!(
                concern = concern.name(),
                reason,
                "Claiming no flow runs: their Jobs could not be created"
            );
            set_gauge(before.as_ref().map(|it| it.concern), Some(concern));
        }
        let since = before
            .filter(|_| !news)
            .map_or_else(Instant::now, |it| it.since);
        state.blocked = Some(Blocked {
            concern,
            since,
            reason: reason.to_owned(),
        });
        self.open.send_replace(false);
    }

    fn unblock(&self, state: &mut State) {
        if let Some(blocked) = state.blocked.take() {
            set_gauge(Some(blocked.concern), None);
            tracing::info!(
                seconds = blocked.since.elapsed().as_secs(),
                "Claiming flow runs again: Jobs can be created"
            );
        }
        self.open
            .send_if_modified(|open| !std::mem::replace(open, true));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_gauge(before: Option<Concern>, now: Option<Concern>) {
    let gauge = |concern: Concern| metrics::gauge!("prefect_agent_blocked", "by" => concern.name());
    if let Some(before) = before {
        gauge(before).set(0.0);
    }
    if let Some(now) = now {
        gauge(now).set(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &BackendHealth, run: &str, since: Instant) -> Concern {
        health.record_failure(&run.into(), since, &Error::unclear("500"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_the_runs_own_when_others_succeed() {
        let health = BackendHealth::default();
        let since = Instant::now();
        assert_eq!(fail(&health, "a", since), Concern::Run);
        tokio::time::advance(Duration::from_secs(1)).await;
        health.record_success(Duration::ZERO);
        health.block(Concern::Side, "500");
        assert_eq!(fail(&health, "a", since), Concern::Run);
        assert_eq!(fail(&health, "b", Instant::now()), Concern::Side);
    }

    #[tokio::test(start_paused = true)]
    async fn several_failures_without_a_success_ask_for_a_preflight() {
        let health = BackendHealth::default();
        for run in ["a", "b", "a", "b"] {
            fail(&health, run, Instant::now());
        }
        let suspected = health.suspected.notified();
        assert!(timeout(Duration::ZERO, suspected).await.is_err());
        fail(&health, "c", Instant::now());
        let suspected = health.suspected.notified();
        assert!(timeout(Duration::ZERO, suspected).await.is_ok());
    }

    #[tokio::test]
    async fn nothing_is_claimed_before_the_agent_is_known_to_be_able_to_work() {
        let health = BackendHealth::default();
        assert!(
            timeout(Duration::ZERO, health.wait_until_open())
                .await
                .is_err()
        );
        assert!(!health.take_answer(&Err(Error::agent("forbidden"))));
        assert_eq!(health.blocked().map(|it| it.concern), Some(Concern::Agent));
        assert!(!health.take_answer(&Err(Error::unclear("500"))), "still");
        assert!(health.take_answer(&Ok(())));
        health.wait_until_open().await;
        assert_eq!(health.blocked(), None);
    }

    #[tokio::test]
    async fn a_first_failure_that_concerns_the_side_or_the_preflight_alone_shows_nothing() {
        for error in [
            Error::Refused("quota".to_owned()),
            Error::permanent("policy"),
            Error::unclear("500"),
            Error::transient("503"),
        ] {
            let health = BackendHealth::default();
            assert!(health.take_answer(&Err(error)));
            health.wait_until_open().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_preflight_several_failures_alike_are_the_sides() {
        let health = BackendHealth::default();
        for run in ["a", "b", "c"] {
            fail(&health, run, Instant::now());
        }
        let denied = Error::permanent("the webhook does not support dry run");
        assert!(health.take_answer(&Err(denied)), "runs are claimed");
        assert_eq!(fail(&health, "a", Instant::now()), Concern::Side);
        let since = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        health.record_success(Duration::ZERO);
        assert_eq!(fail(&health, "a", since), Concern::Run);
    }

    #[tokio::test]
    async fn a_quota_that_refuses_everybody_keeps_runs_in_the_queue() {
        let health = BackendHealth::default();
        let full = Error::Refused("exceeded quota".to_owned());
        for run in ["a", "b", "c"] {
            let concern = health.record_failure(&run.into(), Instant::now(), &full);
            assert_eq!(concern, Concern::Run, "it uses the run's budget");
        }
        assert!(!health.take_answer(&Err(full)));
        assert!(health.blocked().is_some());
        assert!(health.take_answer(&Ok(())));
    }
}
