//! What is due gets its Job: once, on time, whatever breaks.

use std::time::Duration;

use agent_testkit::faults::{Fault, Faults, Rule};
use agent_testkit::{FlowRunSeed, PrefectApi};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::world::{PATIENCE, World};

fn seed_due(prefect: &PrefectApi, count: i64) -> Vec<uuid::Uuid> {
    let now = Timestamp::now();
    (0..count)
        .map(|n| {
            let start = now - SignedDuration::from_millis(600_000 - n);
            prefect.seed(
                FlowRunSeed::new()
                    .name(format!("run-{n}"))
                    .start_time(start),
            )
        })
        .collect()
}

async fn all_deployed_once(world: &World, runs: &[uuid::Uuid], agent: &crate::world::Agent) {
    let done = world
        .prefect
        .wait_until(PATIENCE, |prefect| {
            prefect.count_in_state("Submitted") == runs.len()
                && world.kubernetes.count("jobs") == runs.len()
                // Noted a moment after the Job is there.
                && world.kubernetes.creation_count() >= runs.len()
        })
        .await;
    let jobs = world.kubernetes.creations_by_run();
    assert!(
        done.is_ok(),
        "{} Jobs, {} Submitted; the agent said:\n{}",
        jobs.len(),
        world.prefect.count_in_state("Submitted"),
        agent.output()
    );
    for run in runs {
        assert_eq!(jobs.get(&run.to_string()), Some(&1), "Jobs of run {run}");
        let states = world.prefect.run(*run).expect("seeded");
        assert_eq!(
            states.state_names(),
            ["Scheduled", "Submitted"],
            "run {run}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_due_runs_are_deployed_exactly_once() {
    let world = World::new().await;
    let runs = seed_due(&world.prefect, 1000);
    let agent = world.start(&[]);
    all_deployed_once(&world, &runs, &agent).await;
    agent.signal(Signal::SIGTERM);
    let (code, output) = agent.ended().await;
    assert_eq!(code, Some(0), "{output}");
    for run in runs {
        let logs = world.prefect.logs(run);
        assert_eq!(logs.len(), 1, "run {run}: {logs:?}");
        let message = logs[0].message.clone().unwrap_or_default();
        assert!(
            message.starts_with("Submitted for execution: Job prefect-job-"),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_due_runs_are_deployed_exactly_once_with_every_kind_of_fault_on_both_sides() {
    let world = World::with_faults(Faults::mixed(7, 0.05), Faults::mixed(8, 0.05)).await;
    // A hanging API is another test's matter at the start.
    world.prefect.faults().clear();
    let runs = seed_due(&world.prefect, 1000);
    let mut command = world.command();
    command.env("PREFECT__CLOUD__REQUEST_TIMEOUT", "2");
    let agent = crate::world::Agent::spawn(&mut command);
    agent.prints("Waiting for flow runs").await;
    for fault in [
        Fault::Latency(Duration::from_millis(100)),
        Fault::status(500),
        Fault::status(503),
        Fault::too_many_requests(1),
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Garbage,
        Fault::GraphqlErrors(json!([{"message": "busy", "extensions": {"code": "API_ERROR"}}])),
        Fault::Truncate,
    ] {
        world
            .prefect
            .faults()
            .add(Rule::new("*", fault).probability(0.0055));
    }
    world
        .prefect
        .faults()
        .add(Rule::new("set_flow_run_states", Fault::Hang).probability(0.005));
    all_deployed_once(&world, &runs, &agent).await;
    assert!(world.prefect.faults().total() > 20, "faults were injected");
    assert!(
        world.kubernetes.faults().total() > 20,
        "faults were injected"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_created_before_its_time_and_none_much_later() {
    let world = World::new().await;
    let agent = world.start(&[]);
    agent.prints("Waiting for flow runs").await;
    let now = Timestamp::now();
    let starts: Vec<_> = [200, 1_000, 1_001, 2_500, 4_000, 7_777]
        .map(|ms| now + SignedDuration::from_millis(ms))
        .into();
    // The poll loop is asked to look, as it would by itself within 10 s.
    let runs: Vec<_> = starts
        .iter()
        .map(|start| world.prefect.seed(FlowRunSeed::new().start_time(*start)))
        .collect();
    let made = world
        .kubernetes
        .wait_until(PATIENCE, |api| api.creation_count() == 6)
        .await;
    assert!(made.is_ok(), "{}", agent.output());
    for creation in world.kubernetes.creations() {
        let n = runs
            .iter()
            .position(|run| Some(run.to_string().as_str()) == creation.flow_run_id())
            .expect("a seeded run");
        let late = creation.at.duration_since(starts[n]).as_millis();
        // Far less than the pause between two polls, and enough for a machine that is busy.
        assert!(
            (0..=2_500).contains(&late),
            "run {n} was deployed {late} ms late"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_deployed_fails_with_the_reason_in_its_log() {
    let world = World::new().await;
    let run_config = json!({"type": "DockerRun", "image": "x"});
    let wrong = world
        .prefect
        .seed(FlowRunSeed::new().run_config(run_config));
    let refused = world.prefect.seed(FlowRunSeed::new().run_config(
        json!({"type": "KubernetesRun", "job_template": {
            "metadata": {"name": "Not_A_Name"},
            "spec": {"template": {"spec": {"containers": [{"name": "flow"}]}}},
        }}),
    ));
    let secret = world.prefect.seed(
        FlowRunSeed::new()
            .run_config(json!({"type": "KubernetesRun", "job_template_path": "/etc/passwd"})),
    );
    let agent = world.start(&[]);
    for (run, part) in [
        (wrong, "DockerRun"),
        (refused, "Not_A_Name"),
        (secret, "--allow-flow-template-scheme"),
    ] {
        world.fails(run, &agent).await;
        let run = world.prefect.run(run).expect("seeded");
        assert!(run.message().contains(part), "{}", run.message());
        let errors: Vec<_> = run
            .logs
            .iter()
            .filter(|log| log.level.as_deref() == Some("ERROR"))
            .collect();
        assert_eq!(errors.len(), 1, "{:?}", run.logs);
        assert_eq!(errors[0].message.as_deref(), Some(run.message()));
    }
    assert_eq!(world.kubernetes.creation_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_within_a_running_run_gets_a_job_and_its_task_runs_are_claimed() {
    let world = World::new().await;
    let due = Timestamp::now() - SignedDuration::from_secs(60);
    let run = world.prefect.seed_retry(FlowRunSeed::new(), [due, due]);
    let agent = world.start(&[]);
    let made = world
        .kubernetes
        .wait_until(PATIENCE, |api| api.creation_count() == 1)
        .await;
    assert!(made.is_ok(), "{}", agent.output());
    let tasks = world.prefect.task_runs(run);
    assert_eq!(tasks.len(), 2);
    assert!(
        tasks.iter().all(|task| task.state == "Submitted"),
        "{tasks:?}"
    );
    assert_eq!(world.prefect.state(run).as_deref(), Some("Running"));
}

/// The run was started by another agent, whose id it keeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_gets_its_job_also_when_that_cannot_be_made_at_once() {
    let world = World::new().await;
    let unavailable = Rule::new("create jobs", Fault::status(503)).times(1);
    world.kubernetes.faults().add(unavailable);
    let due = Timestamp::now() - SignedDuration::from_secs(60);
    world.prefect.seed_retry(FlowRunSeed::new(), [due]);
    let agent = world.start(&[]);
    world.cluster(&agent, |api| api.creation_count() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_an_unfinished_job_leaves_the_queue_without_a_second_one() {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = world.start(&[]);
    let made = world
        .kubernetes
        .wait_until(PATIENCE, |api| api.creation_count() == 1)
        .await;
    assert!(made.is_ok(), "{}", agent.output());
    world.prefect.forget_submitted_locks();
    assert_eq!(world.prefect.lazarus_after(Duration::ZERO), [run]);
    let left = world
        .prefect
        .wait_until(PATIENCE, |prefect| {
            prefect.run(run).expect("seeded").state_names()
                == ["Scheduled", "Submitted", "Scheduled", "Submitted"]
        })
        .await;
    assert!(left.is_ok(), "{}", agent.output());
    agent.prints("keeping that job").await;
    assert_eq!(world.kubernetes.creation_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_a_concurrency_limit_keeps_queued_gets_no_job() {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    world.prefect.queue_run(run);
    let agent = world.start(&[]);
    agent.prints("stays in the queue").await;
    assert_eq!(world.kubernetes.creation_count(), 0);
    assert!(world.prefect.run(run).expect("seeded").logs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_claimed_by_a_killed_agent_gets_its_job_from_the_next() {
    let world = World::new().await;
    world
        .kubernetes
        .faults()
        .add(Rule::new("create jobs", Fault::Hang));
    let run = world.prefect.seed(FlowRunSeed::new());
    let first = world.start(&[]);
    let claimed = world
        .prefect
        .wait_until(PATIENCE, |prefect| {
            prefect.state(run).as_deref() == Some("Submitted")
        })
        .await;
    assert!(claimed.is_ok(), "{}", first.output());
    first.signal(Signal::SIGKILL);
    first.ended().await;
    world.kubernetes.faults().clear();
    // The next agent looks for claims of a certain age, by the API's clock.
    world.prefect.clock().advance(Duration::from_secs(60));
    let second = world.start(&[]);
    let made = world
        .kubernetes
        .wait_until(PATIENCE, |api| api.creation_count() == 1)
        .await;
    assert!(made.is_ok(), "{}", second.output());
    assert_eq!(
        world.prefect.run(run).expect("seeded").state_names(),
        ["Scheduled", "Submitted"]
    );
}
