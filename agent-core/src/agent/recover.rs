//! Takes up runs that were claimed by a process which died before it made their jobs, or before it
//! told of them.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::in_hand::Stage;
use super::{Shared, deploy, logs};
use crate::{FlowRun, FlowRunId, LogEntry};

/// Looks for such runs at the start, twice soon after it, because what died just before was too young
/// then, and because this replica may lead only since, and from time to time.
pub(super) async fn run(shared: &Arc<Shared>) -> Infallible {
    let options = &shared.options;
    let soon = options.recover_age + Duration::from_secs(1);
    let soon = soon.min(options.recover_every);
    let mut pauses = [Duration::ZERO, soon, soon].into_iter();
    // Runs whose log was looked into already.
    let mut seen = HashSet::new();
    loop {
        sleep(pauses.next().unwrap_or(options.recover_every)).await;
        match shared.source.claimed(shared.options.recover_age).await {
            Ok(runs) => look(shared, runs, &mut seen).await,
            Err(error) => tracing::warn!("Cannot look for claimed runs without a job: {error}"),
        }
    }
}

async fn look(shared: &Arc<Shared>, runs: Vec<FlowRun>, seen: &mut HashSet<FlowRunId>) {
    let still: HashSet<FlowRunId> = runs.iter().map(|run| run.id.clone()).collect();
    seen.retain(|run| still.contains(run));
    let mut lines = Vec::new();
    for run in runs {
        lines.extend(recover(shared, run).await);
    }
    if !shared.health.is_leading() {
        // Several replicas may look at the same time: one of them tells.
        return;
    }
    lines.retain(|line| seen.insert(line.flow_run_id.clone()));
    if lines.is_empty() {
        return;
    }
    // Whoever has just made a job tells of it.
    sleep(logs::OTHERS).await;
    match shared.source.logged(&lines).await {
        Ok(there) => {
            for (line, _) in lines.into_iter().zip(there).filter(|(_, there)| !there) {
                shared.logs.write(line).await;
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

/// Deploys a run that has no job. Of one that has, what its owner was to be told.
async fn recover(shared: &Arc<Shared>, run: FlowRun) -> Option<LogEntry> {
    let held = shared.in_hand.take(&run.id, Stage::Claimed)?;
    match shared.backend.jobs(&run).await {
        Ok(jobs) => match jobs.iter().find(|job| !job.finished) {
            Some(job) => Some(deploy::submitted(shared, &run, &job.name)),
            // Jobs of earlier attempts may be left; that of this one is not made twice.
            None => {
                shared.deploy(deploy::resume(shared.clone(), run, held));
                None
            }
        },
        Err(error) => {
            tracing::warn!("Cannot tell whether flow run {} has a job: {error}", run.id);
            None
        }
    }
}
