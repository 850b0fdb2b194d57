//! What must be true when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;
use uuid::Uuid;

use super::plan::{End, Plan};
use super::replica::SUBMIT_BUDGET;
use super::world::{World, lock};

/// How much longer than its budget a bad run may take to fail. A budget begins with the first failure,
/// and with a template server that does not get done each attempt takes 15 s before it fails; when the
/// replica is killed meanwhile, the run waits to be recovered and begins anew.
const BUDGET_ALLOWANCE: Duration = Duration::from_secs(75);
/// The longest reason for a failure that fits a message, in bytes.
const MAX_REASON_BYTES: usize = 8 << 10;
/// The share of the latency without bad runs that there may be with them, and what may come on top of
/// that on a busy machine.
const LATENCY_FACTOR: u32 = 2;
const LATENCY_ALLOWANCE: Duration = Duration::from_secs(3);
/// The most memory that a replica may have had, in KiB, built without optimizations.
const MAX_MEMORY_KIB: u64 = 160 << 10;

/// Everything that is not as it must be.
pub(super) fn violations(world: &World, plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    let mut jobs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for made in world.kubernetes.creations() {
        let run = made.flow_run_id().unwrap_or_default().to_owned();
        jobs.entry(run).or_default().push(made.name);
    }
    let known = world.runs.iter().chain(&world.bad);
    let known: BTreeSet<String> = known.map(ToString::to_string).collect();
    for (run, jobs) in jobs.iter().filter(|(run, _)| !known.contains(*run)) {
        found.push(format!(
            "Jobs of no run that was seeded ({run:?}): {jobs:?}"
        ));
    }
    let rescheduled = lock(&world.rescheduled);
    let pods = lock(&world.pods);
    for (id, planned) in world.runs.iter().zip(&plan.runs) {
        let Some(run) = world.prefect.run(*id) else {
            found.push(format!("run {id}: the server does not know it any more"));
            continue;
        };
        let mut wrong =
            |what: String| found.push(format!("run {id}: {what}; {:?}", run.state_names()));
        let none = Vec::new();
        let jobs = jobs.get(&id.to_string()).unwrap_or(&none);
        let again = rescheduled.contains(id);
        let claims = run
            .state_names()
            .iter()
            .filter(|name| **name == "Submitted")
            .count();
        if jobs.is_empty() {
            wrong("it got no Job".to_owned());
        }
        if jobs.len() > claims || (claims.max(jobs.len()) > 1 && !again) {
            wrong(format!("{claims} claims, {} Jobs: {jobs:?}", jobs.len()));
        }
        if jobs.iter().collect::<BTreeSet<_>>().len() != jobs.len() {
            wrong(format!("a Job was made twice: {jobs:?}"));
        }
        if let Some(most) = pods.most.get(id).filter(|most| **most > 1) {
            wrong(format!("{most} pods ran at the same time"));
        }
        let expected = match planned.end {
            End::Success => "Success",
            End::Failed => "Failed",
        };
        if run.state != expected && !again {
            wrong(format!("it should be {expected}"));
        }
        let mut told = BTreeMap::new();
        for log in &run.logs {
            let message = log.message.clone().unwrap_or_default();
            let arrivals: &mut Vec<_> = told.entry((log.name.clone(), message)).or_default();
            arrivals.push(log.arrived.to_string());
        }
        for ((_, message), arrivals) in told {
            if arrivals.len() > 1 {
                let (times, arrivals) = (arrivals.len(), arrivals.join(", "));
                wrong(format!("told {times} times, {arrivals}: {message:?}"));
            }
        }
        for job in jobs {
            let submitted = format!("Submitted for execution: Job {job}");
            if !run
                .logs
                .iter()
                .any(|log| log.message.as_deref() == Some(&*submitted))
            {
                wrong(format!("its owner was not told of Job {job}"));
            }
        }
        let reports = run
            .logs
            .iter()
            .filter(|log| log.level.as_deref() == Some("ERROR"));
        if planned.end == End::Failed && !again && reports.count() == 0 {
            wrong("its owner was not told why it failed".to_owned());
        }
    }
    drop((rescheduled, pods));
    for (id, planned) in world.bad.iter().zip(&plan.bad) {
        let made = jobs.get(&id.to_string()).map_or(0, Vec::len);
        let due = planned.due.max(plan.storm_ends());
        let wrong = bad_run(world, *id, made, planned.hopeless, due);
        found.extend(wrong.map(|wrong| format!("bad run {id} ({}): {wrong}", planned.what)));
    }
    found
}

/// What is not as it must be with a bad run that has so many Jobs, and by which nobody was troubled
/// any more from `due` on.
fn bad_run(world: &World, id: Uuid, jobs: usize, hopeless: bool, due: Duration) -> Option<String> {
    let Some(run) = world.prefect.run(id) else {
        return Some("the server does not know it any more".to_owned());
    };
    let states = run.state_names();
    let claims = states.iter().filter(|name| **name == "Submitted").count();
    let again = lock(&world.rescheduled).contains(&id);
    if jobs > claims || (jobs > 1 && !again) {
        return Some(format!("{claims} claims, {jobs} Jobs; {states:?}"));
    }
    match run.state.as_str() {
        "Success" if jobs > 0 && !hopeless => return None,
        "Failed" => {}
        other => return Some(format!("it is {other} with {jobs} Jobs")),
    }
    let message = run.message();
    if message.is_empty() || message.len() > MAX_REASON_BYTES {
        return Some(format!("its reason has {} bytes", message.len()));
    }
    if jobs == 0
        && !run
            .logs
            .iter()
            .any(|log| log.level.as_deref() == Some("ERROR"))
    {
        return Some(format!("its owner was not told why it failed: {message}"));
    }
    let failed = run.history.last()?.at.duration_since(world.began);
    let bound = due + SUBMIT_BUDGET + BUDGET_ALLOWANCE;
    (failed > SignedDuration::try_from(bound).ok()?)
        .then(|| format!("it has failed after {failed:#} only: {message}"))
}

/// How late the first Job was of each run that was not scheduled again, in order.
pub(super) fn latencies(world: &World, plan: &Plan) -> Vec<Duration> {
    let mut first = BTreeMap::new();
    for made in world.kubernetes.creations() {
        let run = made.flow_run_id().unwrap_or_default().to_owned();
        first.entry(run).or_insert(made.at);
    }
    let runs = world.runs.iter().zip(&plan.runs);
    let mut latencies: Vec<Duration> = runs
        .filter_map(|(id, planned)| {
            let at = first.get(&id.to_string())?.duration_since(world.began);
            Some(Duration::try_from(at).ok()?.saturating_sub(planned.due))
        })
        .collect();
    latencies.sort();
    latencies
}

/// The latency within which 99 of 100 have their Job.
pub(super) fn p99(latencies: &[Duration]) -> Duration {
    let nth = (latencies.len() * 99).div_ceil(100).saturating_sub(1);
    latencies.get(nth).copied().unwrap_or_default()
}

/// What bad runs have done to others: to how late they are, compared to the same plan without the bad
/// ones, and to the memory of the replicas.
pub(super) fn harm(without: Duration, with: Duration, peak_kib: u64) -> Vec<String> {
    let mut found = Vec::new();
    if with > without * LATENCY_FACTOR + LATENCY_ALLOWANCE {
        found.push(format!(
            "99 of 100 ordinary runs have their Job within {with:.1?}, and within {without:.1?} without bad runs"
        ));
    }
    if peak_kib > MAX_MEMORY_KIB {
        let (peak, most) = (peak_kib >> 10, MAX_MEMORY_KIB >> 10);
        found.push(format!(
            "a replica had {peak} MiB of memory, more than {most} MiB"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn without_an_agent_every_run_is_lost() {
        let plan = Plan::draw(1, 5, 1);
        let world = World::build(&plan).await.expect("servers");
        let found = violations(&world, &plan);
        let jobless = found.iter().filter(|what| what.contains("it got no Job"));
        assert_eq!(jobless.count(), 5, "{found:#?}");
        let unended = found.iter().filter(|what| what.contains("it should be"));
        assert_eq!(unended.count(), 5, "{found:#?}");
        assert!(world.rests(Duration::ZERO).await.is_err());
    }
}
