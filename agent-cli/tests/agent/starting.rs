//! A start that cannot work ends soon, with one line that says why.

use std::time::{Duration, Instant};

use agent_testkit::faults::{Fault, Rule};
use agent_testkit::prefect::Auth;
use nix::sys::signal::Signal;

use crate::world::{Agent, PATIENCE, World};

/// The one line on the error stream.
fn error(output: &str) -> &str {
    let errors: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{output}");
    errors[0]
}

async fn fails(agent: Agent) -> String {
    let started = Instant::now();
    let (code, output) = agent.ended().await;
    assert_eq!(code, Some(1), "{output}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "within seconds"
    );
    error(&output).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_told_without_the_key() {
    let world = World::new().await;
    for auth in [
        Auth::Status401("right".to_owned()),
        Auth::CloudError("right".to_owned()),
    ] {
        world.prefect.set_auth(auth);
        let message = fails(world.start(&["--key", "wrong-hush"])).await;
        assert!(
            message.contains("refused the key") && message.contains(&world.prefect.url()),
            "{message}"
        );
        assert!(!message.contains("hush"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_down_is_named() {
    let world = World::new().await;
    world.prefect.server().stop().await;
    let message = fails(world.start(&[])).await;
    assert!(
        message.contains("cannot connect") && message.contains(&world.prefect.url()),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_hangs_is_not_waited_for_long() {
    let world = World::new().await;
    world.prefect.faults().add(Rule::new("*", Fault::Hang));
    let mut command = world.command();
    command.env("PREFECT__CLOUD__REQUEST_TIMEOUT", "3");
    let message = fails(Agent::spawn(&mut command)).await;
    assert!(message.contains("no answer in time"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_speaks_html_is_told_apart() {
    let world = World::new().await;
    world.prefect.faults().add(Rule::new("*", Fault::Garbage));
    let message = fails(world.start(&[])).await;
    assert!(
        message.contains("no GraphQL answer") && message.contains("html"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_comes_back_in_time_is_no_failure() {
    let world = World::new().await;
    world
        .prefect
        .faults()
        .add(Rule::new("*", Fault::status(503)).times(2));
    let agent = world.start(&[]);
    agent.prints("Waiting for flow runs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_away_or_not_configured_is_named() {
    let world = World::new().await;
    let mut command = world.command();
    command.env_remove("KUBECONFIG");
    let message = fails(Agent::spawn(&mut command)).await;
    assert!(message.contains("KUBECONFIG"), "{message}");
    world.kubernetes.server().stop().await;
    let message = fails(world.start(&[])).await;
    let address = world.kubernetes.url();
    assert!(message.contains(&address), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_later_shows_in_health_and_ends_nothing() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let world = World::new().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address")
        .port();
    let address = format!("http://127.0.0.1:{port}");
    let agent = world.start(&["--agent-address", &address]);
    agent.prints("Waiting for flow runs").await;
    let health = || async {
        let answer = reqwest::get(format!("{address}/api/health"))
            .await
            .expect("it answers");
        (
            answer.status().as_u16(),
            answer.text().await.expect("a body"),
        )
    };
    let healthy = async {
        while health().await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, healthy)
        .await
        .expect("healthy");
    assert_eq!(health().await.1, "{}");
    let polls = world.prefect.request_count("get_runs_in_queue");
    world.prefect.set_auth(Auth::Status401("other".to_owned()));
    agent.prints("Failed to query for ready flow runs").await;
    let alive = reqwest::get(format!("{address}/api/live")).await;
    let alive = alive.expect("it answers").status().as_u16();
    assert_eq!(alive, 200, "it still tries");
    world.prefect.set_auth(Auth::Open);
    let poked = reqwest::get(format!("{address}/api/poke"))
        .await
        .expect("it answers");
    assert_eq!(poked.status().as_u16(), 200);
    let missing = reqwest::get(format!("{address}/other"))
        .await
        .expect("it answers");
    assert_eq!(missing.status().as_u16(), 404);
    let polled = world
        .prefect
        .wait_until(PATIENCE, |prefect| {
            prefect.request_count("get_runs_in_queue") > polls + 2
        })
        .await;
    assert!(polled.is_ok(), "{}", agent.output());
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.ended().await.0, Some(0));
}
