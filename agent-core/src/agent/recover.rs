//! Takes up runs that were claimed by a process which died before it made their jobs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::in_hand::{Held, Stage};
use super::{Shared, deploy};
use crate::{FlowRunId, JobRef, Result};

/// Runs that are recovered at the same time.
const MOST: usize = 500;
/// The pause when there are more.
const MORE: Duration = Duration::from_secs(1);

/// Looks for such runs at the start, soon after it, because what died just before was too young then,
/// and from time to time.
pub(super) async fn run(shared: &Arc<Shared>) -> Infallible {
    let options = &shared.options;
    let soon = options.recover_age + Duration::from_secs(1);
    let soon = soon.min(options.recover_every);
    let mut pauses = [Duration::ZERO, soon].into_iter();
    let mut more = false;
    loop {
        let pause = match more {
            true => MORE,
            false => pauses.next().unwrap_or(options.recover_every),
        };
        sleep(pause).await;
        more = look(shared, more).await.unwrap_or_else(|error| {
            tracing::warn!("Cannot look for claimed runs without a job: {error}");
            false
        });
    }
}

/// Looks once; whether there is more to do than could be begun, as there was `before` or not.
async fn look(shared: &Arc<Shared>, before: bool) -> Result<bool> {
    if shared.in_hand.counts().claimed >= MOST {
        return Ok(true);
    }
    let runs = shared.source.claimed(shared.options.recover_age).await?;
    let some = !runs.is_empty();
    let held: HashMap<FlowRunId, Held> = runs
        .into_iter()
        .filter_map(|id| Some((id.clone(), shared.in_hand.take(&id, Stage::Claimed, None)?)))
        .collect();
    if held.is_empty() {
        // What was let go is not taken up before the next poll.
        return Ok(before && some);
    }
    let ids: Vec<FlowRunId> = held.keys().cloned().collect();
    let jobs = shared.backend.jobs(&ids).await?;
    // Jobs of earlier attempts may be left; that of this one is not made twice.
    let without = held.into_iter().filter(|(id, _)| !is_at_work(&jobs, id));
    let mut without: Vec<_> = without.collect();
    if !without.is_empty() {
        // That took a while, in which an agent for another place may have claimed one of them.
        let still = shared.source.claimed(shared.options.recover_age).await?;
        without.retain(|(id, _)| still.contains(id));
    }
    Ok(resume(shared, without))
}

fn is_at_work(jobs: &HashMap<FlowRunId, Vec<JobRef>>, run: &FlowRunId) -> bool {
    let jobs = jobs.get(run).into_iter().flatten();
    jobs.into_iter().any(|job| !job.finished)
}

/// Deploys runs that have no job, as far as not too many are in hand already. Those with which a
/// process has died come last.
fn resume(shared: &Arc<Shared>, mut runs: Vec<(FlowRunId, Held)>) -> bool {
    let room = MOST.saturating_sub(shared.in_hand.counts().claimed - runs.len());
    let more = runs.len() > room;
    runs.sort_by_key(|(id, _)| shared.journal.deaths(id));
    for (id, held) in runs.into_iter().take(room) {
        shared.deploy(deploy::resume(shared.clone(), id, held));
    }
    more
}
