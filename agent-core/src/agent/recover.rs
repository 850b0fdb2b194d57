//! Takes up runs that were claimed by a process which died before it made their jobs.

use std::convert::Infallible;
use std::sync::Arc;

use super::in_hand::Stage;
use super::{Shared, deploy};
use crate::FlowRun;

/// Looks for such runs at the start, and from time to time.
pub(super) async fn run(shared: &Arc<Shared>) -> Infallible {
    let mut ticks = tokio::time::interval(shared.options.recover_every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match shared.source.claimed(shared.options.recover_age).await {
            Ok(runs) => {
                for run in runs {
                    recover(shared, run).await;
                }
            }
            Err(error) => tracing::warn!("Cannot look for claimed runs without a job: {error}"),
        }
    }
}

async fn recover(shared: &Arc<Shared>, run: FlowRun) {
    let Some(held) = shared.in_hand.take(&run.id, Stage::Claimed) else {
        return;
    };
    match shared.backend.jobs(&run).await {
        Ok(jobs) if jobs.is_empty() => {
            metrics::counter!("prefect_agent_recovered_total").increment(1);
            shared.deploy(deploy::resume(shared.clone(), run, held));
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("Cannot tell whether flow run {} has a job: {error}", run.id),
    }
}
