//! The agent ends cleanly when it is told to, and at once when it is told twice.

use std::time::{Duration, Instant};

use agent_testkit::FlowRunSeed;
use agent_testkit::faults::{Fault, Rule};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use crate::world::{PATIENCE, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_the_deployment_in_flight_finish_and_begins_no_other() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let world = World::new().await;
        let slow = Fault::Latency(Duration::from_secs(2));
        world
            .kubernetes
            .faults()
            .add(Rule::new("create jobs", slow));
        let due = world.prefect.seed(FlowRunSeed::new());
        let soon = Timestamp::now() + SignedDuration::from_secs(6);
        let later = world.prefect.seed(FlowRunSeed::new().start_time(soon));
        let agent = world.start(&[]);
        let claimed = world
            .prefect
            .wait_until(PATIENCE, |prefect| {
                prefect.state(due).as_deref() == Some("Submitted")
            })
            .await;
        assert!(claimed.is_ok(), "{}", agent.output());
        agent.signal(signal);
        let (code, output) = agent.ended().await;
        assert_eq!(code, Some(0), "{output}");
        assert_eq!(world.kubernetes.creation_count(), 1, "{output}");
        assert_eq!(world.prefect.logs(due).len(), 1, "{output}");
        assert_eq!(world.prefect.state(later).as_deref(), Some("Scheduled"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let world = World::new().await;
    world
        .kubernetes
        .faults()
        .add(Rule::new("create jobs", Fault::Hang));
    let run = world.prefect.seed(FlowRunSeed::new());
    let agent = world.start(&[]);
    let claimed = world
        .prefect
        .wait_until(PATIENCE, |prefect| {
            prefect.state(run).as_deref() == Some("Submitted")
        })
        .await;
    assert!(claimed.is_ok(), "{}", agent.output());
    agent.signal(Signal::SIGTERM);
    agent.prints("Shutting down").await;
    let told = Instant::now();
    agent.signal(Signal::SIGTERM);
    let (code, output) = agent.ended().await;
    assert_ne!(code, Some(0), "{output}");
    assert!(told.elapsed() < Duration::from_secs(2), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn max_polls_ends_the_agent_after_its_deployments() {
    let world = World::new().await;
    let soon = Timestamp::now() + SignedDuration::from_secs(2);
    world.prefect.seed(FlowRunSeed::new().start_time(soon));
    let (code, output) = world.start(&["--max-polls", "1"]).ended().await;
    assert_eq!(code, Some(0), "{output}");
    assert_eq!(world.kubernetes.creation_count(), 1, "{output}");
    assert_eq!(world.prefect.request_count("get_runs_in_queue"), 1);
}
