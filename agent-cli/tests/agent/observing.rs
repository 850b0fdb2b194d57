//! What operators see: limits, health and metrics.

use agent_cli::metrics::{Kind, METRICS};
use agent_testkit::{Course, FlowRunSeed};
use jiff::{SignedDuration, Timestamp};

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn further_runs_wait_in_the_queue_while_enough_jobs_are_unfinished() {
    let world = World::with_course(Course::hangs()).await;
    let first = Timestamp::now() - SignedDuration::from_mins(5);
    let runs: Vec<_> = (0..8)
        .map(|n| {
            let start = first + SignedDuration::from_secs(n);
            world.prefect.seed(FlowRunSeed::new().start_time(start))
        })
        .collect();
    let (agent, endpoint) = world.start_with_endpoint(&["--max-in-flight", "3"]);
    world.cluster(&agent, |api| api.creation_count() == 3).await;
    endpoint
        .is(&agent, |health| {
            health["in_flight"] == 3 && health["max_in_flight"] == 3
        })
        .await;
    let (_, metrics) = endpoint.get("/metrics").await;
    for line in [
        "\nprefect_agent_in_flight 3\n",
        "\nprefect_agent_max_in_flight 3\n",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    // More polls show that the limit holds.
    let polls = world.prefect.request_count("get_runs_in_queue");
    let patience = crate::world::PATIENCE;
    let polled = world.prefect.wait_until(patience, |api| {
        api.request_count("get_runs_in_queue") >= polls + 2
    });
    assert!(polled.await.is_ok(), "{}", agent.output());
    assert_eq!(world.kubernetes.creation_count(), 3);
    for left in 4..=8 {
        let job = world.kubernetes.creations().swap_remove(left - 4).name;
        assert!(world.kubernetes.remove("jobs", "default", &job));
        world
            .cluster(&agent, |api| api.creation_count() == left)
            .await;
        assert!(world.kubernetes.count("jobs") <= 3);
    }
    let order = world.kubernetes.creations().into_iter();
    let order: Vec<String> = order
        .filter_map(|one| one.flow_run_id().map(str::to_owned))
        .collect();
    let expected: Vec<String> = runs.iter().map(ToString::to_string).collect();
    // Those that start together may be created in any order.
    assert_eq!(order[3..], expected[3..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_exported_with_its_meaning_and_documented() {
    let world = World::with_course(Course::exits_with(1, std::time::Duration::ZERO)).await;
    let run = world.prefect.seed(FlowRunSeed::new());
    let (agent, endpoint) = world.start_with_endpoint(&[]);
    world.told(run, "ERROR").await;
    let (status, text) = endpoint.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "prefect_agent_claims_total{outcome=\"claimed\"} 1",
        "prefect_agent_deployments_total{outcome=\"created\"} 1",
        "prefect_agent_deploy_latency_seconds_count 1",
        "prefect_agent_leader 1",
        "prefect_agent_jobs{state=",
        "prefect_agent_kubernetes_requests_total{verb=\"create\",resource=\"jobs\",outcome=\"ok\"} 1",
        "prefect_agent_api_requests_total{operation=\"set_flow_run_states\",outcome=\"ok\"}",
        "# HELP prefect_agent_polls_total Polls of the queue",
        "prefect_agent_tasks ",
    ] {
        assert!(text.contains(line), "{line} in\n{text}\n{}", agent.output());
    }
    let exported = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for name in exported.filter_map(|line| line.split(' ').next()) {
        assert!(METRICS.iter().any(|one| one.name == name), "{name}");
    }
    let page = include_str!("../../../docs/metrics.md");
    let rows = METRICS.iter().map(|one| {
        let kind = match one.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        format!(
            "| `{}` | {kind} | {} | {} |",
            one.name, one.labels, one.help
        )
    });
    for row in rows {
        assert!(page.contains(&row), "docs/metrics.md lacks the row\n{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_slow_or_send_too_much_keep_nobody_else_out() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let world = World::new().await;
    let (agent, endpoint) = world.start_with_endpoint(&[]);
    endpoint
        .is(&agent, |health| health.get("reason").is_none())
        .await;
    let address = endpoint.address();
    let mut slow = Vec::new();
    for nth in 0..300 {
        let mut stream = tokio::net::TcpStream::connect(&address)
            .await
            .expect("it listens");
        // Some say nothing, some begin, some never read the answer.
        let begun = [
            "",
            "GET /api/health HTTP/1.1\r\n",
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        ][nth % 3];
        let _ = stream.write_all(begun.as_bytes()).await;
        slow.push(stream);
        if nth % 50 == 0 || nth == 299 {
            let asked = std::time::Instant::now();
            assert_eq!(endpoint.get("/api/health").await.0, 200);
            // A probe's time limit is one second by default.
            assert!(asked.elapsed() < std::time::Duration::from_secs(1));
        }
    }
    let mut large = tokio::net::TcpStream::connect(&address)
        .await
        .expect("it listens");
    let header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    // The answer may come before everything is sent, and then the rest cannot be.
    let _ = large.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = large.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(endpoint.get("/api/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pokes_make_one_poll_a_second_however_many_there_are() {
    let world = World::new().await;
    let (agent, endpoint) = world.start_with_endpoint(&[]);
    endpoint
        .is(&agent, |health| health.get("reason").is_none())
        .await;
    let polls = || world.prefect.request_count("get_runs_in_queue");
    let (before, began) = (polls(), std::time::Instant::now());
    for _ in 0..300 {
        assert_eq!(endpoint.get("/api/poke").await.0, 200);
    }
    let most = before + began.elapsed().as_secs() + 5;
    assert!(polls() <= most, "{} > {most}", polls());
    // The last one is not lost: the pauses of an idle agent get longer.
    let last = polls();
    let polled = world
        .prefect
        .wait_until(std::time::Duration::from_secs(2), |_| polls() > last);
    assert!(polled.await.is_ok(), "{}", agent.output());
}
