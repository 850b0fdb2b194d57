//! Several replicas: one supervises, and another takes over.

use std::time::{Duration, Instant};

use agent_testkit::faults::{Fault, Rule};
use agent_testkit::{Course, FlowRunSeed, KubernetesApi, PrefectApi};
use nix::sys::signal::Signal;

use crate::crashing::submissions;
use crate::supervising::retried;
use crate::world::{Agent, Endpoint, PATIENCE, World};

/// Two replicas that both work, of which the first one supervises.
async fn two(world: &World) -> [(Agent, Endpoint); 2] {
    let (first, endpoint) = world.start_with_endpoint(&[]);
    endpoint.is(&first, supervises).await;
    let (second, standby) = world.start_with_endpoint(&[]);
    standby
        .is(&second, |health| health.get("reason").is_none())
        .await;
    [(first, endpoint), (second, standby)]
}

fn supervises(health: &serde_json::Value) -> bool {
    health["supervises"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_supervises_and_another_takes_over_when_it_dies() {
    let world = World::with_course(Course::hangs()).await;
    let [(first, _), (second, standby)] = two(&world).await;
    let run = world.prefect.seed(FlowRunSeed::new());
    world.cluster(&second, |api| api.count("pods") == 1).await;
    standby.is(&second, |health| health["in_flight"] == 1).await;
    assert!(!supervises(&standby.health().await));

    first.signal(Signal::SIGKILL);
    let died = Instant::now();
    standby.is(&second, supervises).await;
    let took = died.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");

    let job = world.kubernetes.creations().remove(0).name;
    assert!(world.kubernetes.remove("jobs", "default", &job));
    world.fails(run, &second).await;
    assert_eq!(world.told(run, "ERROR").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_lets_the_other_supervise_at_once() {
    let world = World::new().await;
    let [(first, _), (second, standby)] = two(&world).await;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ended().await.0, Some(0));
    let ended = Instant::now();
    standby.is(&second, supervises).await;
    assert!(
        ended.elapsed() < Duration::from_secs(6),
        "{:?}",
        ended.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dead_replica_has_told_is_not_told_again() {
    let world = World::with_course(Course::exits_with(1, Duration::ZERO)).await;
    let args = ["--disable-job-deletion"];
    let (first, endpoint) = world.start_with_endpoint(&args);
    endpoint.is(&first, supervises).await;
    let (second, standby) = world.start_with_endpoint(&args);
    let run = world.prefect.seed(retried(0));
    world.fails(run, &first).await;
    world.told(run, "ERROR").await;
    first.signal(Signal::SIGKILL);
    standby.is(&second, supervises).await;
    // A later run shows that everything before it was dealt with.
    let later = world.prefect.seed(retried(0));
    world.fails(later, &second).await;
    world.told(later, "ERROR").await;
    assert_eq!(world.log(run, "ERROR").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_for_leases_one_replica_works_and_says_so() {
    let world = World::with_course(Course::exits_with(1, Duration::ZERO)).await;
    world.kubernetes.deny("*", "leases");
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = world.start(&[]);
    world.told(run, "ERROR").await;
    agent.prints("Leases cannot be used").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_another_name_does_not_repeat_that_a_job_was_submitted() {
    let world = World::with_course(Course::hangs()).await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let first = world.start(&["--name", "first"]);
    let told = |_: &_| submissions(&world, run) == 1;
    let told = world.prefect.wait_until(PATIENCE, told).await;
    assert!(told.is_ok(), "{}", first.output());
    first.signal(Signal::SIGTERM);
    assert_eq!(first.ended().await.0, Some(0));

    world.prefect.keep_requests(100);
    let second = world.start(&["--name", "second"]);
    let looked = |prefect: &PrefectApi| {
        let kept = prefect.last_requests();
        let mut bodies = kept.iter().map(|one| String::from_utf8_lossy(&one.body));
        bodies.any(|body| body.contains("logs("))
    };
    let looked = world.prefect.wait_until(PATIENCE, looked).await;
    assert!(looked.is_ok(), "{}", second.output());
    // What it would write it writes before its end.
    second.signal(Signal::SIGTERM);
    assert_eq!(second.ended().await.0, Some(0));
    assert_eq!(submissions(&world, run), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_somebody_deletes_is_made_again() {
    let world = World::new().await;
    let (agent, endpoint) = world.start_with_endpoint(&["--lease-duration", "2s"]);
    endpoint.is(&agent, supervises).await;
    let lease = format!("prefect-agent-{}", world.prefect.tenant_id());
    assert!(world.kubernetes.remove("leases", "default", &lease));
    world.cluster(&agent, |api| api.count("leases") == 1).await;
    endpoint.is(&agent, supervises).await;
    let output = agent.output();
    assert!(!output.contains("Leases cannot be used"), "{output}");
}

/// The other replica sees that it is gone, and that its holder may not know yet.
#[tokio::test(flavor = "multi_thread")]
async fn who_held_a_lease_that_somebody_deletes_has_it_again() {
    let world = World::new().await;
    let [(_first, first), (second, standby)] = two(&world).await;
    let holder = |api: &KubernetesApi| {
        let leases = api.objects("leases");
        leases
            .first()
            .map(|it| it["spec"]["holderIdentity"].clone())
    };
    let before = holder(&world.kubernetes);
    // It knows of the Lease from having looked at it once more.
    let looks = world.kubernetes.request_count("get leases");
    let looked = |api: &KubernetesApi| api.request_count("get leases") > looks;
    world.cluster(&second, looked).await;
    let lease = format!("prefect-agent-{}", world.prefect.tenant_id());
    assert!(world.kubernetes.remove("leases", "default", &lease));
    world.cluster(&second, |api| api.count("leases") == 1).await;
    assert_eq!(holder(&world.kubernetes), before);
    assert!(supervises(&first.health().await));
    assert!(!supervises(&standby.health().await));
}

/// The one waits for the claim of the second task run; the other sees a claimed run without a Job.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_another_replica_recovers_during_its_claim_gets_one_job() {
    let world = World::new().await;
    world.retry().await;
    let faults = world.prefect.faults();
    let away = |operation| Rule::new(operation, Fault::status(503));
    let claims = faults.add(away("set_task_run_states").skip(1));
    let first = world.start(&[]);
    let claiming = |api: &PrefectApi| api.request_count("set_task_run_states") >= 2;
    let claiming = world.prefect.wait_until(PATIENCE, claiming).await;
    assert!(claiming.is_ok(), "{}", first.output());

    // What is in its own queue it would not recover.
    faults.add(away("get_runs_in_queue"));
    let second = world.start(&[]);
    world
        .cluster(&second, |api| api.creation_count() == 1)
        .await;
    second.signal(Signal::SIGKILL);
    faults.remove(claims);
    first.prints("Completed deployment").await;
    assert_eq!(world.kubernetes.creation_count(), 1, "{}", first.output());
}
