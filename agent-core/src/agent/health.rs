//! How the agent is doing, for a health endpoint and for people.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::backend_health::{BackendHealth, Concern};
use super::in_flight::InFlight;
use super::in_hand::InHand;
use super::waiting::WaitingRuns;
use crate::{Error, FlowRunSource};

/// A watch that has not broken off again for so long is up; while it is not, it tries twice a
/// minute at least.
const BROKEN: Duration = Duration::from_secs(60);

/// A due run that nobody claims for so long is worth a look.
const UNCLAIMED: Duration = Duration::from_secs(60);
/// Supervision that has work and ends none of it for so long stands still.
const STALLED: Duration = Duration::from_secs(300);

/// A handle on a running [`crate::Agent`]. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AgentHealth {
    seen: Arc<Mutex<Seen>>,
    poke: Arc<Notify>,
}

/// What is looked at when somebody asks how the runs get on.
#[derive(Clone)]
struct Runs {
    backend: Arc<BackendHealth>,
    waiting: Arc<WaitingRuns>,
    in_hand: Arc<InHand>,
    source: Arc<dyn FlowRunSource>,
}

impl std::fmt::Debug for Runs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runs").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Seen {
    runs: Option<Runs>,
    /// The source refuses this agent.
    refused: Option<String>,
    /// Jobs that are being supervised, and when the last one was done with.
    supervision: Option<(usize, Instant)>,
    last_answer: Option<Instant>,
    last_round: Option<Instant>,
    last_error: Option<String>,
    first_round: bool,
    polls: u64,
    leads: bool,
    broken: BTreeMap<&'static str, Broken>,
    in_flight: Option<Arc<InFlight>>,
}

/// A part of the watch over jobs that has broken off.
#[derive(Debug)]
struct Broken {
    since: Instant,
    last: Instant,
    reason: String,
}

/// What an agent is at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Whether this replica is the one that supervises the jobs.
    pub leads: bool,
    /// Unfinished jobs of agents with the labels of this one, and those about to be made.
    pub in_flight: usize,
    /// How many there may be before runs have to wait in the queue.
    pub max_in_flight: Option<usize>,
    /// Why no runs are claimed at present, whom that concerns, and since when.
    pub blocked: Option<(Concern, Duration, String)>,
    /// Claimed runs whose jobs could not be created yet, by whom that concerns.
    pub waiting_for_job: BTreeMap<Concern, usize>,
    /// For how long the oldest of them has waited.
    pub longest_wait: Option<Duration>,
    /// For how long the oldest run has been due that nobody has claimed, if longer than a minute.
    pub unclaimed_for: Option<Duration>,
    /// For how long the supervision has got nowhere although there is work, if for minutes.
    pub supervision_stalled: Option<Duration>,
    /// The parts of the watch over jobs that have broken off, each with how long ago and why.
    pub broken_watches: BTreeMap<&'static str, (Duration, String)>,
}

impl AgentHealth {
    /// Asks the agent to poll now instead of at the end of its pause.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// How many polls the agent has begun.
    pub fn polls(&self) -> u64 {
        self.with(|seen| seen.polls)
    }

    /// Returns `Ok` while the agent can do its work: the poll loop is alive, its source has answered
    /// within `lately` and does not refuse it, and the backend creates jobs; else the reason.
    ///
    /// # Errors
    /// The reason, in a sentence.
    pub fn check(&self, lately: Duration) -> Result<(), String> {
        let runs = self.with(|seen| seen.runs.clone());
        let blocked = runs.and_then(|runs| runs.backend.blocked());
        self.with(|seen| {
            if let Some(blocked) = blocked {
                let seconds = blocked.since.elapsed().as_secs();
                return Err(format!(
                    "no Jobs could be created for {seconds} s: {}",
                    blocked.reason
                ));
            }
            if let Some(reason) = &seen.refused {
                return Err(format!("the API refuses this agent: {reason}"));
            }
            let because = seen
                .last_error
                .as_deref()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            match (seen.last_round, seen.last_answer) {
                (None, _) => Err("the agent has not begun to poll".to_owned()),
                (Some(round), _) if round.elapsed() > lately => Err(still(round)),
                (_, None) => Err(format!("the API has not answered a poll yet{because}")),
                (_, Some(answer)) if answer.elapsed() > lately => Err(format!(
                    "the API has not answered a poll for {} s{because}",
                    answer.elapsed().as_secs()
                )),
                _ => Ok(()),
            }
        })
    }

    /// What the agent is at; of no consequence for whether it is healthy.
    pub fn status(&self) -> AgentStatus {
        let runs = self.with(|seen| seen.runs.clone());
        let blocked = runs.as_ref().and_then(|runs| runs.backend.blocked());
        let blocked = blocked.map(|it| (it.concern, it.since.elapsed(), it.reason));
        let waiting = runs.as_ref().map(|runs| &runs.waiting);
        let unclaimed = runs.as_ref().and_then(|runs| {
            let oldest = runs.in_hand.oldest_unclaimed()?;
            Duration::try_from(runs.source.now().duration_since(oldest)).ok()
        });
        self.with(|seen| AgentStatus {
            blocked,
            waiting_for_job: waiting.map(|runs| runs.counts()).unwrap_or_default(),
            longest_wait: waiting.and_then(|runs| runs.oldest()),
            unclaimed_for: unclaimed.filter(|since| *since > UNCLAIMED),
            supervision_stalled: seen
                .supervision
                .filter(|(jobs, _)| *jobs > 0)
                .map(|(_, since)| since.elapsed())
                .filter(|since| *since > STALLED),
            leads: seen.leads,
            in_flight: seen.in_flight.as_ref().map_or(0, |jobs| jobs.count()),
            max_in_flight: seen.in_flight.as_ref().and_then(|jobs| jobs.limit()),
            broken_watches: seen
                .broken
                .iter()
                .filter(|(_, broken)| broken.last.elapsed() < BROKEN)
                .map(|(watch, broken)| (*watch, (broken.since.elapsed(), broken.reason.clone())))
                .collect(),
        })
    }

    pub(super) fn counts_in_flight(&self, jobs: Arc<InFlight>) {
        self.with(|seen| seen.in_flight = Some(jobs));
    }

    pub(super) fn watch_runs(
        &self,
        backend: Arc<BackendHealth>,
        waiting: Arc<WaitingRuns>,
        in_hand: Arc<InHand>,
        source: Arc<dyn FlowRunSource>,
    ) {
        let runs = Runs {
            backend,
            waiting,
            in_hand,
            source,
        };
        self.with(|seen| seen.runs = Some(runs));
    }

    /// Records that the supervision of a job begins.
    pub(super) fn supervision_begins(&self) {
        self.with(|seen| {
            let (jobs, since) = seen.supervision.get_or_insert((0, Instant::now()));
            if *jobs == 0 {
                *since = Instant::now();
            }
            *jobs += 1;
        });
    }

    /// Records that the supervision of a job has ended.
    pub(super) fn supervision_ended(&self) {
        self.with(|seen| {
            if let Some((jobs, since)) = &mut seen.supervision {
                *jobs = jobs.saturating_sub(1);
                *since = Instant::now();
            }
        });
    }

    pub(super) fn leads(&self, leads: bool) {
        metrics::gauge!("prefect_agent_leader").set(if leads { 1.0 } else { 0.0 });
        self.with(|seen| seen.leads = leads);
    }

    pub(super) fn watch_broke(&self, watch: &'static str, reason: String) {
        metrics::counter!("prefect_agent_watch_restarts_total", "watch" => watch).increment(1);
        let now = Instant::now();
        self.with(|seen| {
            let broken = seen.broken.remove(watch);
            let before = broken.filter(|broken| broken.last.elapsed() < BROKEN);
            let broken = Broken {
                since: before.map_or(now, |broken| broken.since),
                last: now,
                reason,
            };
            seen.broken.insert(watch, broken);
        });
    }

    /// `Ok` while the poll loop moves, whatever its source answers, within `lately`; else the reason.
    /// An agent that has not begun yet is alive.
    ///
    /// # Errors
    /// The reason, in a sentence.
    pub fn check_alive(&self, lately: Duration) -> Result<(), String> {
        self.with(|seen| match seen.last_round {
            Some(round) if round.elapsed() > lately => Err(still(round)),
            _ => Ok(()),
        })
    }

    pub(super) fn poke_signal(&self) -> Arc<Notify> {
        self.poke.clone()
    }

    /// Notes that a poll begins; true for the first one.
    pub(super) fn poll_begins(&self) -> bool {
        self.with(|seen| {
            seen.polls += 1;
            seen.last_round = Some(Instant::now());
            !std::mem::replace(&mut seen.first_round, true)
        })
    }

    /// Records that the poll loop waits because the source asked for that.
    pub(super) fn poll_waits(&self) {
        self.with(|seen| seen.last_round = Some(Instant::now()));
    }

    pub(super) fn poll_answered(&self, error: Option<&crate::Error>) {
        self.with(|seen| {
            let now = Instant::now();
            seen.last_round = Some(now);
            seen.refused = match error {
                Some(Error::Agent(reason)) => Some(reason.clone()),
                _ => None,
            };
            match error {
                None => {
                    seen.last_answer = Some(now);
                    seen.last_error = None;
                }
                Some(error) => seen.last_error = Some(error.to_string()),
            }
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut Seen) -> T) -> T {
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn still(round: Instant) -> String {
    let seconds = round.elapsed().as_secs();
    format!("the poll loop has not moved for {seconds} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATELY: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn is_healthy_only_while_polls_are_answered() {
        let health = AgentHealth::default();
        assert!(health.check(LATELY).is_err(), "not begun");
        assert_eq!(health.check_alive(LATELY), Ok(()));
        health.poll_begins();
        health.poll_answered(None);
        assert_eq!(health.check(LATELY), Ok(()));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(health.check(LATELY).unwrap_err().contains("not moved"));
        assert!(health.check_alive(LATELY).is_err(), "it hangs");
        health.poll_begins();
        health.poll_answered(Some(&Error::transient("connection refused")));
        let reason = health.check(LATELY).unwrap_err();
        assert!(reason.contains("61 s: connection refused"), "{reason}");
        assert_eq!(health.check_alive(LATELY), Ok(()), "it tries");
        health.poll_answered(None);
        assert_eq!(health.check(LATELY), Ok(()));
    }
}
