//! The agent dies at each boundary of its work, and the next one finds nothing lost and does nothing
//! twice.

use std::time::Duration;

use agent_testkit::{Course, FlowRunSeed, KubernetesApi};
use serde_json::json;
use uuid::Uuid;

use crate::supervising::retried;
use crate::world::{Agent, PATIENCE, World};

/// The agent dies at `point`; then another one is started.
async fn dies_at(world: &World, point: &str, args: &[&str]) -> Agent {
    let args = [&["--lease-duration", "1s"], args].concat();
    let mut command = world.command();
    command.args(&args).env("PREFECT_AGENT_FAILPOINT", point);
    let (code, output) = Agent::spawn(&mut command).ended().await;
    assert_eq!(code, None, "it was to die at {point}:\n{output}");
    world.start(&args)
}

/// The lines in a run's log that tell of its Job.
pub(crate) fn submissions(world: &World, run: Uuid) -> usize {
    let logs = world.prefect.logs(run).into_iter();
    let messages = logs.filter_map(|log| log.message);
    messages
        .filter(|text| text.starts_with("Submitted for execution: Job "))
        .count()
}

/// A run whose pod fails, and which has to end as Failed, told of once, without its Job.
async fn survives_in_supervision(point: &str) {
    let world = World::with_course(Course::exits_with(1, Duration::ZERO)).await;
    let run = world.prefect.seed(retried(0));
    let agent = dies_at(&world, point, &[]).await;
    world.fails(run, &agent).await;
    let gone = |api: &KubernetesApi| api.count("jobs") == 0;
    world.cluster(&agent, gone).await;
    // A later run shows that everything before it was dealt with.
    let later = world.prefect.seed(retried(0));
    world.fails(later, &agent).await;
    world.told(later, "ERROR").await;
    let reports = world.log(run, "ERROR");
    assert_eq!(reports.len(), 1, "{reports:?}\n{}", agent.output());
    assert_eq!(world.kubernetes.creation_count(), 2);
    let states = world.prefect.run(run).expect("seeded");
    let failures = states
        .state_names()
        .into_iter()
        .filter(|name| *name == "Failed");
    assert_eq!(failures.count(), 1, "{:?}", states.state_names());
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_claim_nothing_has_happened() {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = dies_at(&world, "before-claim", &[]).await;
    world.cluster(&agent, |api| api.creation_count() == 1).await;
    assert_eq!(world.prefect.state(run).as_deref(), Some("Submitted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_claim_the_next_agent_makes_the_job() {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = dies_at(&world, "after-claim", &[]).await;
    world.cluster(&agent, |api| api.creation_count() == 1).await;
    let claims = world.prefect.run(run).expect("seeded");
    let claims = claims
        .state_names()
        .into_iter()
        .filter(|name| *name == "Submitted");
    assert_eq!(claims.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_claim_an_agent_of_the_same_name_for_another_namespace_makes_no_job() {
    let world = World::new().await;
    world.prefect.seed(FlowRunSeed::new());
    let mut command = world.command();
    command.env("PREFECT_AGENT_FAILPOINT", "after-claim");
    Agent::spawn(&mut command).ended().await;
    // It has looked for such runs by the time at which the one that was started after it has.
    let elsewhere = world.start(&["--namespace", "flows"]);
    elsewhere.prints("Waiting for flow runs").await;
    let agent = world.start(&[]);
    world.cluster(&agent, |api| api.creation_count() > 0).await;
    let made = world.kubernetes.creations();
    let namespaces: Vec<_> = made.iter().map(|job| job.namespace.as_str()).collect();
    assert_eq!(namespaces, ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_claim_of_a_retry_the_next_agent_makes_the_job() {
    let world = World::new().await;
    let run = world.retry().await;
    let agent = dies_at(&world, "after-claim", &[]).await;
    world.cluster(&agent, |api| api.creation_count() == 1).await;
    let job = world.kubernetes.creations().remove(0);
    assert_eq!(job.flow_run_id(), Some(run.to_string().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_creation_the_owner_is_told_of_the_job_once() {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = dies_at(&world, "after-create", &[]).await;
    let told = world
        .prefect
        .wait_until(PATIENCE, |_| submissions(&world, run) > 0);
    assert!(told.await.is_ok(), "{}", agent.output());
    assert_eq!(submissions(&world, run), 1);
    assert_eq!(world.kubernetes.creation_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_run_that_cannot_be_deployed_fails_the_next_agent_fails_it() {
    let world = World::new().await;
    let seed = FlowRunSeed::new().run_config(json!({"type": "DockerRun"}));
    let run = world.prefect.seed(seed);
    let agent = dies_at(&world, "before-give-up", &[]).await;
    let message = world.fails(run, &agent).await;
    assert!(message.contains("DockerRun"), "{message}");
    let told = world.prefect.logs(run);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(world.kubernetes.creation_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_run_fails() {
    survives_in_supervision("before-fail").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_run_has_failed() {
    survives_in_supervision("after-fail").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_report_is_written() {
    survives_in_supervision("after-begin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_report_was_written() {
    survives_in_supervision("after-write").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_report_was_noted() {
    survives_in_supervision("after-told").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_job_was_deleted() {
    survives_in_supervision("after-delete").await;
}
