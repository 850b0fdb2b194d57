//! How the agent is doing, for a health endpoint and for people.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A handle on a running [`crate::Agent`]. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AgentHealth {
    seen: Arc<Mutex<Seen>>,
    poke: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Seen {
    last_answer: Option<Instant>,
    last_round: Option<Instant>,
    last_error: Option<String>,
    first_round: bool,
    polls: u64,
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

    /// `Ok` while the poll loop is alive and has had an answer from its source within `lately`;
    /// else the reason.
    ///
    /// # Errors
    /// The reason, in a sentence.
    pub fn check(&self, lately: Duration) -> Result<(), String> {
        self.with(|seen| {
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

    pub(super) fn poll_answered(&self, error: Option<&crate::Error>) {
        self.with(|seen| {
            let now = Instant::now();
            seen.last_round = Some(now);
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
    use crate::Error;

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
