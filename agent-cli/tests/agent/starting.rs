//! A start that cannot work ends soon, with one line that says why.

use std::time::{Duration, Instant};

use agent_testkit::faults::{Fault, Rule};
use agent_testkit::prefect::Auth;
use agent_testkit::{FlowRunSeed, KubernetesApi, PrefectApi};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

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

/// A server whose answers never end.
async fn endless() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await?;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{";
                stream.write_all(head.as_bytes()).await?;
                let spaces = vec![b' '; 1 << 20];
                while stream.write_all(&spaces).await.is_ok() {}
                std::io::Result::Ok(())
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_never_end_fill_no_memory() {
    let world = World::new().await;
    let server = endless().await;
    let message = fails(world.start(&["--api", &server])).await;
    assert!(message.contains("larger than 64 MiB"), "{message}");
    let file = world.path().join("kubeconfig");
    let kubeconfig = std::fs::read_to_string(&file).expect("written");
    let elsewhere = kubeconfig.replace(&world.kubernetes.url(), &server);
    std::fs::write(&file, elsewhere).expect("written");
    let message = fails(world.start(&[])).await;
    assert!(message.contains("length limit"), "{message}");
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
    let world = World::new().await;
    let (agent, endpoint) = world.start_with_endpoint(&[]);
    let healthy = |health: &Value| health.get("reason").is_none();
    endpoint.is(&agent, healthy).await;
    assert_eq!(endpoint.get("/api/health").await.0, 200);
    let polls = world.prefect.request_count("get_runs_in_queue");
    world.prefect.set_auth(Auth::Status401("other".to_owned()));
    agent.prints("Failed to query for ready flow runs").await;
    assert_eq!(endpoint.get("/api/live").await.0, 200, "it still tries");
    world.prefect.set_auth(Auth::Open);
    assert_eq!(endpoint.get("/api/poke").await.0, 200);
    assert_eq!(endpoint.get("/other").await.0, 404);
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

#[tokio::test(flavor = "multi_thread")]
async fn what_users_name_forges_no_line_of_the_log() {
    let world = World::new().await;
    let name = "a\r\n2026-01-01T00:00:00Z  INFO forged\u{1b}[2J";
    for format in ["text", "json"] {
        let agent = world.start(&["--name", name, "--log-format", format, "--max-polls", "1"]);
        let (code, output) = agent.ended().await;
        assert_eq!(code, Some(0), "{output}");
        assert!(output.contains("forged"), "{output}");
        let forged = output.lines().any(|line| line.starts_with("2026-01-01"));
        assert!(!forged && !output.contains('\u{1b}'), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_the_addresses_of_both_sides_are_not_logged() {
    let world = World::new().await;
    let kubeconfig = std::fs::read_to_string(world.path().join("kubeconfig")).expect("there");
    let kubeconfig = kubeconfig.replace("://", "://me:hush@");
    std::fs::write(world.path().join("kubeconfig"), kubeconfig).expect("written");
    let api = world.prefect.url().replace("://", "://me:hush@");
    for format in ["text", "json"] {
        let args = ["--api", &api, "--log-format", format, "--max-polls", "1"];
        let (_, output) = world.start(&args).ended().await;
        assert!(!output.contains("hush"), "{output}");
        assert!(output.contains("…@127.0.0.1"), "{output}");
    }
}

/// Gives the user of the kubeconfig these credentials in place of its own.
fn user(world: &World, user: Value) {
    let path = world.path().join("kubeconfig");
    let kubeconfig = std::fs::read(&path).expect("there");
    let mut kubeconfig: Value = serde_yaml::from_slice(&kubeconfig).expect("YAML");
    kubeconfig["users"][0]["user"] = user;
    std::fs::write(path, kubeconfig.to_string()).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_plugin_that_hangs_does_not_keep_the_agent_from_being_stopped() {
    let world = World::new().await;
    let script = "echo begun >&2; exec sleep 600";
    user(
        &world,
        json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh",
            "args": ["-c", script], "interactiveMode": "IfAvailable",
        }}),
    );
    let agent = world.start(&[]);
    agent.prints("begun").await;
    agent.signal(Signal::SIGTERM);
    let (code, output) = agent.ended().await;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("SIGTERM received"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_plugin_that_fails_is_named() {
    let world = World::new().await;
    let exec = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh",
        "args": ["-c", "echo hush; exit 3"], "interactiveMode": "Never",
    }});
    user(&world, exec);
    let message = fails(world.start(&[])).await;
    assert!(
        message.contains("the credential plugin /bin/sh"),
        "{message}"
    );
    assert!(!message.contains("hush"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn line_breaks_behind_a_token_do_not_count_and_within_it_are_told() {
    let world = World::new().await;
    std::fs::write(world.path().join("token"), "token\n").expect("written");
    let file = world.path().join("token");
    let exec = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh",
        "args": ["-c", r#"echo '{"status": {"token": "token\\n"}}'"#],
        "interactiveMode": "Never",
    }});
    for good in [
        json!({"token": "token\n"}),
        json!({"tokenFile": file}),
        exec,
    ] {
        user(&world, good.clone());
        let (code, output) = world.start(&["--max-polls", "1"]).ended().await;
        assert_eq!(code, Some(0), "{good}: {output}");
    }
    for bad in [json!({"token": "hu\nsh"}), json!({"token": "hü"})] {
        user(&world, bad);
        let message = fails(world.start(&[])).await;
        assert!(
            message.contains("the token of the kubeconfig's user"),
            "{message}"
        );
        assert!(!message.contains("hu"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_server_gets_neither_key_nor_request() {
    let world = World::new().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = elsewhere.local_addr().expect("bound");
    let api = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", api.local_addr().expect("bound"));
    let answer = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://me:hush@{target}/?token=hush\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = api.accept().await.expect("a connection");
            let mut request = vec![0; 1 << 16];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let message = fails(world.start(&["--api", &url, "--key", "hush"])).await;
    assert!(
        message.contains(&format!("another server, http://{target},")) && message.contains("--api"),
        "{message}"
    );
    assert!(!message.contains("hush"), "{message}");
    let led = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(led.is_err(), "it was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_whose_clock_cannot_be_right_neither_stops_nor_hastens_runs() {
    const DAY: SignedDuration = SignedDuration::from_hours(24);
    for skew in [DAY * 365, DAY * -365 * 50] {
        let prefect = PrefectApi::builder().clock_skew(skew);
        let world = World::with(prefect, KubernetesApi::builder()).await;
        let now = Timestamp::now();
        let seed = |start: SignedDuration| {
            let start = now.saturating_add(start).expect("a time");
            world.prefect.seed(FlowRunSeed::new().start_time(start))
        };
        let (due, later) = (seed(DAY * -1), seed(DAY * 200));
        let agent = world.start(&[]);
        world.cluster(&agent, |api| api.creation_count() >= 1).await;
        let polls = || world.prefect.request_count("get_runs_in_queue");
        let enough = polls() + 3;
        let polled = world.prefect.wait_until(PATIENCE, |_| polls() >= enough);
        assert!(polled.await.is_ok(), "{}", agent.output());
        agent.prints("clocks that differ by more than").await;
        let made = world.kubernetes.creations();
        let made: Vec<_> = made.iter().filter_map(|one| one.flow_run_id()).collect();
        assert_eq!(made, [due.to_string()], "{later} is not due");
    }
}
