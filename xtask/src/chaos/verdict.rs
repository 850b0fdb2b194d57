//! What must be true when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{End, Plan};
use super::world::{World, lock};

/// Everything that is not as it must be.
pub(super) fn violations(world: &World, plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    let mut jobs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for made in world.kubernetes.creations() {
        let run = made.flow_run_id().unwrap_or_default().to_owned();
        jobs.entry(run).or_default().push(made.name);
    }
    let known: BTreeSet<String> = world.runs.iter().map(ToString::to_string).collect();
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
