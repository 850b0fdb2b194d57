//! The poll loop: asks for ready runs, hands each to a deployment of its own, pauses.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::deploy::Due;
use super::in_flight::Ticket;
use super::in_hand::{Held, Stage};
use super::jobless::{self, Jobless};
use super::{PREFETCH, Shared, deploy};
use crate::{FlowRun, FlowRunId, ReadyQuery};

/// The pause after a round that brought work, and how long to wait for its claims before the next
/// one when there is room for more.
const BUSY: Duration = Duration::from_millis(250);
/// The pauses after rounds that brought nothing, one after the other; the last one stays.
const IDLE: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(10),
];

/// What a round brought.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    /// Runs that are due: more may be waiting behind them.
    Due,
    /// Only runs that are not due yet.
    Upcoming,
    /// Nothing new.
    Nothing,
    /// No answer; the source asked to be left alone for so long, if it did.
    Failed(Option<Duration>),
}

/// Polls until the polls are used up.
pub(super) async fn run(shared: &Arc<Shared>) {
    let mut idle = 0;
    let mut polls = 0;
    loop {
        let round = round(shared).await;
        polls += 1;
        if shared.options.max_polls.is_some_and(|max| polls >= max) {
            return;
        }
        match round {
            Round::Due => {
                idle = 0;
                claims(shared).await;
            }
            Round::Upcoming => {
                idle = 0;
                pause(shared, BUSY).await;
            }
            Round::Failed(Some(asked)) => {
                idle += 1;
                tracing::warn!(
                    seconds = asked.as_secs_f64(),
                    "Not polling for as long as the API asks"
                );
                leave_alone(shared, asked).await;
            }
            Round::Nothing | Round::Failed(None) => {
                let step = IDLE[idle.min(IDLE.len() - 1)];
                idle += 1;
                tracing::debug!(
                    "Sleeping flow run poller for {} seconds...",
                    step.as_secs_f64()
                );
                pause(shared, step).await;
            }
        }
    }
}

/// Waits until everything due is claimed, so that the next poll shows what is behind it; or, when
/// that takes long, until there is room to deploy more.
async fn claims(shared: &Shared) {
    let claimed = shared.in_hand.wait_for(|counts| counts.due == 0);
    if timeout(BUSY, claimed).await.is_ok() {
        return;
    }
    // At most a prefetch, so that start times are still met and the source sees us alive.
    let claimed = shared.in_hand.wait_for(|counts| counts.due == 0);
    let room = timeout(PREFETCH, async {
        tokio::select! {
            () = claimed => {}
            slot = shared.slots.acquire() => drop(slot),
        }
    });
    let _ = room.await;
}

/// Leaves the source alone for as long as it asks; the loop is alive all the same.
async fn leave_alone(shared: &Shared, asked: Duration) {
    let until = Instant::now() + asked;
    while Instant::now() < until {
        shared.health.poll_waits();
        sleep_until(until.min(Instant::now() + PREFETCH)).await;
    }
}

/// Pauses; ends early when poked.
async fn pause(shared: &Shared, pause: Duration) {
    tokio::select! {
        () = sleep(pause) => {}
        () = shared.poke.notified() => {}
    }
}

async fn round(shared: &Arc<Shared>) -> Round {
    let first = shared.health.poll_begins();
    let known = shared.in_hand.begin_poll();
    let counts = shared.in_hand.counts();
    let room = room_for(shared);
    let limit = room.saturating_sub(counts.due) + room.saturating_sub(counts.waiting);
    let ahead = SignedDuration::try_from(PREFETCH).unwrap_or_default();
    let now = shared.source.now();
    tracing::debug!("Querying for ready flow runs...");
    let answer = shared
        .source
        .ready(ReadyQuery {
            before: now.saturating_add(ahead).unwrap_or(now),
            known: &known,
            limit,
        })
        .await;
    shared.health.poll_answered(answer.as_ref().err());
    let outcome = if answer.is_ok() { "answered" } else { "failed" };
    metrics::counter!("prefect_agent_polls_total", "outcome" => outcome).increment(1);
    let ready = match answer {
        Ok(ready) => {
            metrics::gauge!("prefect_agent_queue_length").set(ready.queued as f64);
            ready
        }
        Err(error) => {
            tracing::error!("Failed to query for ready flow runs: {error}");
            return Round::Failed(error.retry_after());
        }
    };
    if first {
        tracing::debug!("The first poll was answered");
    }
    if ready.runs.is_empty() {
        tracing::debug!("No new flow runs found ({} in the queue).", ready.queued);
        return Round::Nothing;
    }
    tracing::debug!("Found {} ready flow run(s).", ready.runs.len());
    let taken = ready.runs.into_iter();
    let taken: Vec<Taken> = taken.filter_map(|run| take(shared, run, room)).collect();
    let round = match &taken[..] {
        [] => Round::Nothing,
        taken if taken.iter().all(|taken| taken.ticket.is_none()) => Round::Upcoming,
        _ => Round::Due,
    };
    deploy_all(shared, taken);
    round
}

/// Hands each run to a deployment of its own; those that are due are asked about together.
fn deploy_all(shared: &Arc<Shared>, taken: Vec<Taken>) {
    let due = taken.iter().filter(|taken| taken.ticket.is_some());
    let due: Vec<FlowRunId> = due.map(|taken| taken.run.id.clone()).collect();
    let groups = due.chunks(jobless::MOST);
    let groups: Vec<Arc<Jobless>> = groups
        .map(|runs| Arc::new(Jobless::new(runs.to_vec())))
        .collect();
    let mut nth = 0;
    for taken in taken {
        let Taken {
            run,
            held,
            ticket,
            memory,
        } = taken;
        let found = ticket.map(|ticket| {
            // One by itself is asked for as it would be anyway.
            let jobless = (due.len() > 1).then(|| groups[nth / jobless::MOST].clone());
            nth += 1;
            Due { ticket, jobless }
        });
        tracing::debug!("Submitting flow run {} for deployment...", run.id);
        shared.deploy(deploy::run(shared.clone(), run, held, memory, found));
    }
}

/// How many runs may be in hand unclaimed, of those due and of those waiting each. Enough to keep
/// every slot busy; the rest of a backlog stays at the source.
fn room_for(shared: &Shared) -> usize {
    (shared.options.concurrency * 2).max(64)
}

/// A run that was taken in hand; with a ticket if it is due.
struct Taken {
    run: FlowRun,
    held: Held,
    ticket: Option<Ticket>,
    /// Its description's room in memory.
    memory: OwnedSemaphorePermit,
}

/// Takes a run in hand, if there is room.
fn take(shared: &Arc<Shared>, run: FlowRun, room: usize) -> Option<Taken> {
    let counts = shared.in_hand.counts();
    let waits = run.due.is_some_and(|due| due > shared.source.now());
    let (stage, full) = if waits {
        (Stage::Waiting, counts.waiting >= room)
    } else {
        (Stage::Due, counts.due >= room)
    };
    if full {
        return None;
    }
    // What has no room in memory stays at the source, as the rest of a backlog does.
    let memory = shared.try_reserve_memory(&run)?;
    let held = shared.in_hand.take(&run.id, stage, run.due)?;
    let ticket = (stage == Stage::Due).then(|| shared.in_flight.line_up(&run));
    Some(Taken {
        run,
        held,
        ticket,
        memory,
    })
}
