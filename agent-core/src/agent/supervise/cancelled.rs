//! Finds jobs that go on although their runs have ended, as a cancelled run's does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Supervisor;
use crate::{FlowRunId, Result};

/// The longest pause between two looks, and the shortest one: each look is a question to the source.
const EVERY: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_secs(2);
/// Ends are asked for from so long before the last look: what was not visible then is by now.
const OVERLAP: SignedDuration = SignedDuration::from_secs(60);

/// Looks at each job once when it has appeared, and from then on only at what has ended since.
pub(super) async fn look(supervisor: &Supervisor) -> Infallible {
    let grace = supervisor.shared.options.cancel_grace;
    let mut ticks = interval((grace / 2).clamp(OFTEN, EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = supervisor.shared.source.now();
    loop {
        ticks.tick().await;
        let now = supervisor.shared.source.now();
        match ended(supervisor, since).await {
            Ok(ended) => {
                since = now;
                let at = Instant::now().checked_add(grace);
                for job in supervisor.table.runs_ended(&ended) {
                    if let Some(at) = at {
                        supervisor.table.look_again(&job, at);
                    }
                }
            }
            Err(error) => {
                tracing::warn!("Cannot read which flow runs with a Job have ended: {error}");
            }
        }
    }
}

async fn ended(supervisor: &Supervisor, since: Timestamp) -> Result<HashMap<FlowRunId, String>> {
    let source = &supervisor.shared.source;
    let since = since.saturating_sub(OVERLAP).unwrap_or(Timestamp::MIN);
    let mut states = source.ended_since(since).await?;
    let new = supervisor.table.not_looked_at();
    match supervisor.states.of_all(&new).await {
        Ok(of_new) => states.extend(of_new),
        Err(error) => {
            supervisor.table.look_at_later(&new);
            return Err(error);
        }
    }
    let ended = states.into_iter().filter(|(_, state)| state.is_finished());
    Ok(ended.map(|(run, state)| (run, state.name)).collect())
}
