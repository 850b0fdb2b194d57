//! Runs that come a second time, or long after their time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use agent_testkit::faults::{Fault, Rule};
use agent_testkit::{Course, FlowRunSeed, KubernetesApi, PrefectApi};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use uuid::Uuid;

use crate::world::{PATIENCE, World};

/// A run that was deployed by an agent which has ended; its Job.
async fn deployed() -> (World, Uuid, String) {
    let world = World::new().await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let (code, output) = world.start(&["--max-polls", "1"]).ended().await;
    assert_eq!(code, Some(0), "{output}");
    let job = world.kubernetes.creations().remove(0).name;
    (world, run, job)
}

/// Its owner starts a run again.
fn restart(world: &World, run: Uuid) {
    world.prefect.forget_submitted_locks();
    let state = json!({
        "type": "Scheduled", "message": "Restarted.", "start_time": Timestamp::now().to_string(),
        "context": {}, "cached_inputs": {}, "__version__": "1.4.1",
        "_result": {"type": "NoResultType", "__version__": "1.4.1"},
    });
    world.prefect.set_state(run, state);
}

fn has_failed(world: &World, job: &str) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let changed = world.kubernetes.modify("jobs", "default", job, |job| {
        job["status"]["conditions"] = json!([{
            "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
            "lastProbeTime": now, "lastTransitionTime": now,
        }]);
        job["status"]["failed"] = json!(1);
    });
    assert!(changed);
}

/// Waits until the run has its second Job and the first one was looked at; the run's states.
async fn states(world: &World, run: Uuid) -> Vec<String> {
    let agent = world.start(&["--log-level", "debug"]);
    world.cluster(&agent, |api| api.creation_count() == 2).await;
    agent.prints("has ended, but flow run").await;
    let run = world.prefect.run(run).expect("seeded");
    run.state_names().into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_started_again_is_not_failed_by_its_earlier_job() {
    let (world, run, job) = deployed().await;
    has_failed(&world, &job);
    restart(&world, run);
    let twice = ["Scheduled", "Submitted", "Scheduled", "Submitted"];
    assert_eq!(states(&world, run).await, twice);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_its_second_job_is_not_failed_by_the_first_one() {
    let (world, run, job) = deployed().await;
    has_failed(&world, &job);
    restart(&world, run);
    // The first Job is looked at between the second claim and the second Job.
    let slow = Fault::Latency(Duration::from_secs(5));
    let faults = world.kubernetes.faults();
    faults.add(Rule::new("create jobs", slow));
    let twice = ["Scheduled", "Submitted", "Scheduled", "Submitted"];
    assert_eq!(states(&world, run).await, twice);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_being_deleted_is_not_adopted() {
    let (world, run, job) = deployed().await;
    let changed = world.kubernetes.modify("jobs", "default", &job, |job| {
        job["metadata"]["finalizers"] = json!(["example.com/slow"]);
        job["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
        job["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    });
    assert!(changed);
    restart(&world, run);
    let agent = world.start(&[]);
    world.cluster(&agent, |api| api.creation_count() == 2).await;
    assert!(!agent.output().contains("keeping that job"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backlog_of_an_hour_is_deployed_once_in_the_order_of_start_times() {
    const RUNS: i64 = 150;
    /// As many as the open-source server shows at a time.
    const PAGE: i64 = 25;
    let world = World::new().await;
    let (agent, endpoint) = world.start_with_endpoint(&["--concurrency", "1"]);
    endpoint
        .is(&agent, |health| health.get("reason").is_none())
        .await;
    world.prefect.server().stop().await;
    // Runs come due while the API is away; they were not put in in that order.
    let now = Timestamp::now();
    let runs: Vec<(i64, Uuid)> = (0..RUNS)
        .map(|n| (n * 37) % RUNS)
        .map(|nth| {
            let start = now - SignedDuration::from_secs(20 * (RUNS - nth));
            (
                nth,
                world.prefect.seed(FlowRunSeed::new().start_time(start)),
            )
        })
        .collect();
    world.prefect.clock().advance(Duration::from_secs(3_600));
    world
        .prefect
        .server()
        .restart()
        .await
        .expect("its port is free");
    let all = |api: &KubernetesApi| api.creation_count() >= runs.len();
    world.cluster(&agent, all).await;
    let submitted = |prefect: &PrefectApi| prefect.count_in_state("Submitted") == runs.len();
    let done = world.prefect.wait_until(PATIENCE, submitted).await;
    assert!(done.is_ok(), "{}", agent.output());
    let nths: HashMap<String, i64> = runs
        .into_iter()
        .map(|(nth, run)| (run.to_string(), nth))
        .collect();
    let made = world.kubernetes.creations().into_iter();
    let made: Vec<i64> = made
        .filter_map(|one| nths.get(one.flow_run_id()?).copied())
        .collect();
    assert_eq!(made.iter().collect::<HashSet<_>>().len(), made.len());
    assert_eq!(made.len() as i64, RUNS);
    // Runs that came with the same answer may overtake each other.
    let in_order = |(place, nth): (i64, &i64)| (place - nth).abs() < PAGE;
    assert!((0..).zip(&made).all(in_order), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_scheduled_again_while_its_job_does_not_get_on_is_failed_by_that_job() {
    let world = World::with_course(Course::image_pull_failure("no such image")).await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let (code, output) = world.start(&["--max-polls", "1"]).ended().await;
    assert_eq!(code, Some(0), "{output}");

    let backs_off = |api: &KubernetesApi| format!("{:?}", api.pods()).contains("ImagePullBackOff");
    let waits = world.kubernetes.wait_until(PATIENCE, backs_off).await;
    assert!(waits.is_ok(), "the kubelet does not back off");
    world.prefect.forget_submitted_locks();
    let due = Timestamp::now() + SignedDuration::from_secs(4);
    let state = json!({
        "type": "Scheduled", "message": "Rescheduled.", "start_time": due.to_string(),
        "context": {}, "cached_inputs": {}, "__version__": "1.4.1",
        "_result": {"type": "NoResultType", "__version__": "1.4.1"},
    });
    world.prefect.set_state(run, state);
    let agent = world.start(&["--disable-job-deletion"]);
    let message = world.fails(run, &agent).await;
    assert!(message.contains("image"), "{message}");
    assert_eq!(world.kubernetes.creation_count(), 1);
}
