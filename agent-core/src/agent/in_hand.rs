//! The runs that this process has in hand, so that none is deployed twice at the same time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::FlowRunId;

/// How far a run in hand has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not due yet.
    Waiting,
    /// Due, but not claimed yet.
    Due,
    /// Claimed.
    Claimed,
}

impl Stage {
    fn gauge(self) -> metrics::Gauge {
        let stage = match self {
            Self::Waiting => "waiting",
            Self::Due => "due",
            Self::Claimed => "claimed",
        };
        metrics::gauge!("prefect_agent_runs_in_hand", "stage" => stage)
    }
}

/// How many runs are in each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) waiting: usize,
    pub(super) due: usize,
    pub(super) claimed: usize,
}

impl Counts {
    pub(super) fn total(self) -> usize {
        self.waiting + self.due + self.claimed
    }

    fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Waiting => &mut self.waiting,
            Stage::Due => &mut self.due,
            Stage::Claimed => &mut self.claimed,
        }
    }
}

/// The runs in hand.
#[derive(Debug, Default)]
pub(super) struct InHand {
    runs: Mutex<Runs>,
    counts: watch::Sender<Counts>,
}

#[derive(Debug, Default)]
struct Runs {
    /// Runs in hand, with their start times as far as they are known.
    held: HashMap<FlowRunId, (Stage, Option<Timestamp>)>,
    /// Runs that were let go since the current poll began: its answer may still show them as
    /// they were before.
    let_go: HashSet<FlowRunId>,
}

impl InHand {
    /// Begins a poll: the ids that are in hand now.
    pub(super) fn begin_poll(&self) -> HashSet<FlowRunId> {
        let mut runs = self.lock();
        runs.let_go.clear();
        runs.held.keys().cloned().collect()
    }

    /// Takes a run in hand; `None` when it is already, or was during the current poll.
    pub(super) fn take(
        self: &Arc<Self>,
        id: &FlowRunId,
        stage: Stage,
        due: Option<Timestamp>,
    ) -> Option<Held> {
        let mut runs = self.lock();
        if runs.held.contains_key(id) || runs.let_go.contains(id) {
            return None;
        }
        runs.held.insert(id.clone(), (stage, due));
        self.counts.send_modify(|counts| *counts.of(stage) += 1);
        stage.gauge().increment(1.0);
        Some(Held {
            id: id.clone(),
            in_hand: self.clone(),
        })
    }

    /// Whether a run is claimed, and gets its job just now.
    pub(super) fn is_claimed(&self, id: &FlowRunId) -> bool {
        let runs = self.lock();
        runs.held
            .get(id)
            .is_some_and(|(stage, _)| *stage == Stage::Claimed)
    }

    /// Returns the earliest start time of those that are not claimed yet.
    pub(super) fn oldest_unclaimed(&self) -> Option<Timestamp> {
        let runs = self.lock();
        let unclaimed = runs.held.values();
        let unclaimed = unclaimed.filter(|(stage, _)| *stage != Stage::Claimed);
        unclaimed.filter_map(|(_, due)| *due).min()
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until the counts satisfy a condition.
    pub(super) async fn wait_for(&self, condition: impl FnMut(&Counts) -> bool) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.counts.subscribe().wait_for(condition).await;
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run in hand; lets go of it when dropped.
#[derive(Debug)]
pub(super) struct Held {
    id: FlowRunId,
    in_hand: Arc<InHand>,
}

impl Held {
    /// Notes how far the run has come.
    pub(super) fn enter(&self, stage: Stage) {
        let mut runs = self.in_hand.lock();
        if let Some((held, _)) = runs.held.get_mut(&self.id) {
            let before = std::mem::replace(held, stage);
            self.in_hand.counts.send_modify(|counts| {
                *counts.of(before) -= 1;
                *counts.of(stage) += 1;
            });
            before.gauge().decrement(1.0);
            stage.gauge().increment(1.0);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut runs = self.in_hand.lock();
        if let Some((stage, _)) = runs.held.remove(&self.id) {
            runs.let_go.insert(self.id.clone());
            self.in_hand
                .counts
                .send_modify(|counts| *counts.of(stage) -= 1);
            stage.gauge().decrement(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_let_go_during_a_poll_is_not_taken_from_its_stale_answer() {
        let in_hand = Arc::new(InHand::default());
        let id = FlowRunId::from("a");
        in_hand.begin_poll();
        let held = in_hand.take(&id, Stage::Due, None).expect("free");
        assert!(in_hand.take(&id, Stage::Due, None).is_none(), "held");
        assert!(in_hand.begin_poll().contains(&id));
        drop(held);
        assert!(
            in_hand.take(&id, Stage::Due, None).is_none(),
            "let go meanwhile"
        );
        in_hand.begin_poll();
        assert!(
            in_hand.take(&id, Stage::Due, None).is_some(),
            "offered anew"
        );
    }

    #[test]
    fn counts_follow_the_stages() {
        let in_hand = Arc::new(InHand::default());
        let held = in_hand
            .take(&"a".into(), Stage::Waiting, None)
            .expect("free");
        let _other = in_hand.take(&"b".into(), Stage::Due, None).expect("free");
        held.enter(Stage::Claimed);
        let expected = Counts {
            waiting: 0,
            due: 1,
            claimed: 1,
        };
        assert_eq!(in_hand.counts(), expected);
        drop(held);
        assert_eq!(in_hand.counts().total(), 1);
    }
}
