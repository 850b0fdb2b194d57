//! Takes up runs that were claimed by a process which died before it made their jobs, or before it
//! told of them.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::in_hand::{Held, Stage};
use super::{Shared, deploy, logs};
use crate::{FlowRunId, JobRef, LogEntry, Result};

/// Runs that are recovered at the same time, so that memory is bounded: each is held with its run
/// config.
const MOST: usize = 500;
/// The pause when there are more.
const MORE: Duration = Duration::from_secs(1);

/// Lines by run.
type Seen = HashMap<FlowRunId, String>;

/// Looks for such runs at the start, twice soon after it, because what died just before was too young
/// then, and because this replica may lead only since, and from time to time.
pub(super) async fn run(shared: &Arc<Shared>) -> Infallible {
    let options = &shared.options;
    let soon = options.recover_age + Duration::from_secs(1);
    let soon = soon.min(options.recover_every);
    let mut pauses = [Duration::ZERO, soon, soon].into_iter();
    // What the owner of a run is to have been told, as far as its log was looked into already.
    let mut seen = HashMap::new();
    let mut more = false;
    loop {
        let pause = match std::mem::take(&mut more) {
            true => MORE,
            false => pauses.next().unwrap_or(options.recover_every),
        };
        sleep(pause).await;
        match look(shared, &mut seen).await {
            Ok(rest) => more = rest,
            Err(error) => tracing::warn!("Cannot look for claimed runs without a job: {error}"),
        }
    }
}

/// Looks once; whether there is more to do than could be begun.
async fn look(shared: &Arc<Shared>, seen: &mut Seen) -> Result<bool> {
    if shared.in_hand.counts().claimed >= MOST {
        return Ok(true);
    }
    let runs = shared.source.claimed(shared.options.recover_age).await?;
    let still: HashSet<&FlowRunId> = runs.iter().collect();
    seen.retain(|run, _| still.contains(run));
    let held: HashMap<FlowRunId, Held> = runs
        .into_iter()
        .filter_map(|id| Some((id.clone(), shared.in_hand.take(&id, Stage::Claimed)?)))
        .collect();
    if held.is_empty() {
        return Ok(false);
    }
    let ids: Vec<FlowRunId> = held.keys().cloned().collect();
    let jobs = shared.backend.jobs(&ids).await?;
    let job = |id: &FlowRunId| unfinished(&jobs, id);
    let (with, without): (Vec<_>, Vec<_>) = held.into_iter().partition(|(id, _)| job(id).is_some());
    let with: Vec<FlowRunId> = with.into_iter().map(|(id, _)| id).collect();
    // Jobs of earlier attempts may be left; that of this one is not made twice.
    let more = resume(shared, without).await?;
    // Several replicas may look at the same time: one of them tells.
    if shared.health.is_leading() {
        let lines = with
            .iter()
            .filter_map(|id| Some(deploy::submitted(shared, id, &job(id)?)))
            .filter(|line| {
                let before = seen.insert(line.flow_run_id.clone(), line.message.clone());
                before.as_ref() != Some(&line.message)
            })
            .collect();
        tell(shared, lines, seen).await;
    }
    Ok(more)
}

fn unfinished(jobs: &HashMap<FlowRunId, Vec<JobRef>>, run: &FlowRunId) -> Option<String> {
    let jobs = jobs.get(run)?;
    let job = jobs.iter().find(|job| !job.finished)?;
    Some(job.name.clone())
}

/// Deploys runs that have no job, as far as not too many are in hand already.
async fn resume(shared: &Arc<Shared>, runs: Vec<(FlowRunId, Held)>) -> Result<bool> {
    let room = MOST.saturating_sub(shared.in_hand.counts().claimed - runs.len());
    let more = runs.len() > room;
    let mut held: HashMap<FlowRunId, Held> = runs.into_iter().take(room).collect();
    if held.is_empty() {
        return Ok(more);
    }
    let ids: Vec<FlowRunId> = held.keys().cloned().collect();
    for run in shared.source.claimed_runs(&ids).await? {
        if let Some(held) = held.remove(&run.id) {
            shared.deploy(deploy::resume(shared.clone(), run, held));
        }
    }
    Ok(more)
}

/// Tells the owners of runs that have a job, unless they were told.
async fn tell(shared: &Arc<Shared>, lines: Vec<LogEntry>, seen: &mut Seen) {
    if lines.is_empty() {
        return;
    }
    // Whoever has just made a job tells of it.
    sleep(logs::OTHERS).await;
    match shared.source.logged(&lines).await {
        Ok(there) => {
            for (line, _) in lines.into_iter().zip(there).filter(|(_, there)| !there) {
                // Or this process has it in hand.
                shared.logs.write_if_missing(line).await;
            }
        }
        Err(error) => {
            tracing::warn!("Cannot look whether runs with a job have been told of it: {error}");
            for line in lines {
                seen.remove(&line.flow_run_id);
            }
        }
    }
}
