//! One bad run, replica or peer harms nobody else: ordinary runs beside it get one Job each, at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_testkit::faults::{Fault, Rule};
use agent_testkit::prefect::verbatim;
use agent_testkit::{Course, FlowRunSeed, KubernetesApi, PrefectApi, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::crashing::submissions;
use crate::supervising::retried;
use crate::world::{Agent, Endpoint, PATIENCE, World, free_port};

/// Within what time ordinary runs have their Jobs: two polls of an idle agent, on a busy machine.
const PROMPT: Duration = Duration::from_secs(30);
/// How long what concerns one run is tried again.
const BUDGET: [&str; 2] = ["--submit-retry-budget", "6s"];
/// The most memory that the binary may have had, in KiB. Built without optimizations it has 114 MiB
/// here, and has some room for what varies; a release takes less and stays below 128 MiB.
const MAX_RSS_KIB: u64 = 144 << 10;
/// The longest reason that a run's state and log have, in bytes.
const MAX_REASON_BYTES: usize = 6 << 10;

/// Ordinary runs that are due.
fn ordinary(world: &World, count: usize) -> Vec<Uuid> {
    (0..count).map(|_| world.prefect.seed(retried(0))).collect()
}

/// A run whose run config has this beside its type.
fn seed_with(world: &World, config: Value) -> Uuid {
    world
        .prefect
        .seed(FlowRunSeed::new().run_config(with_type(config)))
}

fn with_type(mut config: Value) -> Value {
    config["type"] = json!("KubernetesRun");
    config
}

/// A template whose only container has this beside its name.
fn template(container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("flow");
    json!({"spec": {"backoffLimit": 0, "template": {"spec": {"containers": [container]}}}})
}

/// Waits for the Jobs of runs; each has one, in time.
async fn get_their_jobs(world: &World, runs: &[Uuid], agent: &Agent) {
    let began = Instant::now();
    let jobs_of = |api: &KubernetesApi, run: &Uuid| {
        let jobs = api.creations_by_run();
        jobs.get(&run.to_string()).copied().unwrap_or_default()
    };
    let all = |api: &KubernetesApi| runs.iter().all(|run| jobs_of(api, run) > 0);
    let made = world.kubernetes.wait_until(PATIENCE, all).await;
    let took = began.elapsed();
    assert!(made.is_ok(), "{}", agent.output());
    assert!(took < PROMPT, "{took:?}\n{}", agent.output());
    for run in runs {
        assert_eq!(jobs_of(&world.kubernetes, run), 1, "{}", agent.output());
        assert_ne!(world.prefect.state(*run).as_deref(), Some("Failed"));
    }
}

/// Waits until runs have failed without a Job; each with one of these words in its reason and its log.
async fn fail_with(world: &World, runs: &[Uuid], words: &[&str], agent: &Agent) {
    for run in runs {
        let message = world.fails(*run, agent).await;
        let named = words.iter().any(|word| message.contains(word));
        assert!(named, "{words:?} in {message}");
        assert!(message.len() <= MAX_REASON_BYTES, "{} bytes", message.len());
        let logs = world.prefect.logs(*run);
        let told = logs.iter().any(|log| {
            log.level.as_deref() == Some("ERROR") && log.message.as_deref() == Some(&message)
        });
        assert!(told, "{logs:?}");
        let jobs = world.kubernetes.creations_by_run();
        assert_eq!(jobs.get(&run.to_string()), None);
    }
}

/// Waits until runs are claimed.
async fn are_claimed(world: &World, runs: &[Uuid], agent: &Agent) {
    let claimed = |api: &PrefectApi| {
        let state = |run: &Uuid| api.state(*run);
        runs.iter()
            .all(|run| state(run).as_deref() != Some("Scheduled"))
    };
    let became = world.prefect.wait_until(PATIENCE, claimed).await;
    assert!(became.is_ok(), "{}", agent.output());
}

/// The most memory that a process has had so far, in KiB.
fn peak_rss_kib(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|text| text.parse().ok()).expect("a size")
}

/// Serves answers, whole with their heads, by what `answer` says to a path. The address.
async fn serve(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 8 << 10];
                let read = stream.read(&mut request).await.unwrap_or_default();
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let _ = stream.write_all(answer(path).as_bytes()).await;
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_whose_jobs_cannot_be_created_delay_no_others_and_fail_with_the_reason() {
    let world = World::new().await;
    world.kubernetes.set_admission(|job, _| {
        match job["spec"]["template"]["spec"]["containers"][0]["image"].as_str() {
            Some("slow") => Verdict::Timeout(Duration::from_secs(3)),
            _ => Verdict::Allow,
        }
    });
    let args = [
        "--submit-retry-budget",
        "20s",
        "--allow-private-flow-templates",
    ];
    let (agent, endpoint) = world.start_with_endpoint(&args);
    let mut exported = template(json!({}));
    exported["metadata"] = json!({"resourceVersion": "77"});
    let closed = format!("http://127.0.0.1:{}/job.yaml", free_port());
    let bad: BTreeMap<&str, Vec<Uuid>> = [
        (
            "resourceVersion should not be set",
            json!({"job_template": exported}),
        ),
        (
            "failed calling webhook",
            json!({"job_template": template(json!({"image": "slow"}))}),
        ),
        ("127.0.0.1", json!({"job_template_path": closed})),
        (
            "no-such-host.invalid",
            json!({"job_template_path": "https://no-such-host.invalid/job.yaml"}),
        ),
    ]
    .into_iter()
    .map(|(word, config)| {
        (
            word,
            (0..4).map(|_| seed_with(&world, config.clone())).collect(),
        )
    })
    .collect();
    let all: Vec<Uuid> = bad.values().flatten().copied().collect();
    are_claimed(&world, &all, &agent).await;
    for _ in 0..3 {
        let runs = ordinary(&world, 20);
        get_their_jobs(&world, &runs, &agent).await;
        let (status, health) = endpoint.get("/api/health").await;
        assert_eq!(status, 200, "{health}");
        let (_, metrics) = endpoint.get("/metrics").await;
        assert!(
            metrics.contains("\nprefect_agent_concurrency 32\n"),
            "{metrics}"
        );
    }
    for (word, runs) in &bad {
        fail_with(&world, runs, &[word], &agent).await;
    }
    // The owner of one that is tried for long is told before it fails.
    let warned = |run: &&Uuid| {
        let logs = world.prefect.logs(**run);
        logs.iter()
            .any(|log| log.level.as_deref() == Some("WARNING"))
    };
    let unwarned = all.iter().filter(|run| !warned(run)).count();
    assert_eq!(unwarned, 0, "{}", agent.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_may_create_no_jobs_leaves_runs_to_one_that_may() {
    let world = World::new().await;
    world.kubernetes.deny_user("denied", "create", "jobs");
    for user in ["denied", "allowed"] {
        let kubeconfig = world.kubernetes.kubeconfig_yaml_of(user);
        std::fs::write(world.path().join(user), kubeconfig).expect("written");
    }
    let start = |user: &str| {
        let endpoint = Endpoint::free();
        let mut command = world.command();
        command
            .env("KUBECONFIG", world.path().join(user))
            .args(["--agent-address", &format!("http://{}", endpoint.address())]);
        (Agent::spawn(&mut command), endpoint)
    };
    let (denied, its_health) = start("denied");
    let blocked = |health: &Value| {
        let reason = health["reason"].as_str().unwrap_or_default();
        health["blocked"]["by"] == "agent" && reason.contains("cannot create resource \"jobs\"")
    };
    its_health.is(&denied, blocked).await;
    let runs = ordinary(&world, 60);
    let (allowed, _) = start("allowed");
    get_their_jobs(&world, &runs, &allowed).await;
    let (status, _) = its_health.get("/api/health").await;
    assert_eq!(status, 503);
    let (_, metrics) = its_health.get("/metrics").await;
    assert!(
        metrics.contains("\nprefect_agent_blocked{by=\"agent\"} 1\n"),
        "{metrics}"
    );
    assert!(!metrics.contains("outcome=\"claimed\"}"), "{metrics}");
    // The rule is changed, and it works by itself.
    allowed.signal(Signal::SIGTERM);
    allowed.ended().await;
    let runs = ordinary(&world, 5);
    world.kubernetes.allow_user("denied", "create", "jobs");
    get_their_jobs(&world, &runs, &denied).await;
    its_health
        .is(&denied, |health| health.get("reason").is_none())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creations_that_race_for_a_quota_fail_no_run() {
    let world = World::new().await;
    world.kubernetes.set_quota("jobs", 1000);
    world.kubernetes.race_for_quota(25);
    let runs = ordinary(&world, 40);
    let agent = world.start(&BUDGET);
    get_their_jobs(&world, &runs, &agent).await;
}

/// A template with a name.
fn named(name: &str) -> Value {
    let mut template = template(json!({}));
    template["metadata"] = json!({"name": name});
    template
}

/// Has the agent's template say this name.
fn rename(world: &World, name: &str) {
    let path = world.path().join("template.yaml");
    std::fs::write(path, named(name).to_string()).expect("written");
}

/// Seeds runs whose creations take effect and are answered with nothing. When the first of them is
/// about to, the agent's template is renamed.
async fn created_in_doubt(world: &World) -> (Vec<Uuid>, Agent) {
    rename(world, "before");
    let agent = world.start(&["--job-template", "template.yaml", "--lease-duration", "1s"]);
    agent.prints("Waiting for flow runs").await;
    let path = world.path().join("template.yaml");
    world.kubernetes.set_admission(move |_, dry_run| {
        if !dry_run {
            std::fs::write(&path, named("after").to_string()).expect("written");
        }
        Verdict::Allow
    });
    let lost = Rule::new("create jobs", Fault::DropAfter).times(8);
    world.kubernetes.faults().add(lost);
    let runs = ordinary(world, 8);
    let made = |api: &KubernetesApi| api.creation_count() >= 8;
    world.cluster(&agent, made).await;
    (runs, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_is_renamed_before_the_retry_of_a_creation_makes_no_second_job() {
    let world = World::new().await;
    let (runs, agent) = created_in_doubt(&world).await;
    let told = world.prefect.wait_until(PATIENCE, |_| {
        runs.iter().all(|run| submissions(&world, *run) > 0)
    });
    assert!(told.await.is_ok(), "{}", agent.output());
    let later = ordinary(&world, 3);
    get_their_jobs(&world, &later, &agent).await;
    get_their_jobs(&world, &runs, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_is_renamed_before_the_next_process_makes_no_second_job() {
    let world = World::new().await;
    let (runs, agent) = created_in_doubt(&world).await;
    agent.signal(Signal::SIGKILL);
    agent.ended().await;
    world.prefect.clock().advance(Duration::from_secs(60));
    let agent = world.start(&["--job-template", "template.yaml", "--lease-duration", "1s"]);
    let told = world.prefect.wait_until(PATIENCE, |_| {
        runs.iter().all(|run| submissions(&world, *run) > 0)
    });
    assert!(told.await.is_ok(), "{}", agent.output());
    let later = ordinary(&world, 3);
    get_their_jobs(&world, &later, &agent).await;
    get_their_jobs(&world, &runs, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ended_unreported_is_not_made_again_from_a_renamed_template() {
    let world = World::new().await;
    rename(&world, "before");
    let run = ordinary(&world, 1);
    let args = ["--job-template", "template.yaml", "--lease-duration", "1s"];
    let mut command = world.command();
    command
        .args(args)
        .env("PREFECT_AGENT_FAILPOINT", "after-create");
    let (code, output) = Agent::spawn(&mut command).ended().await;
    assert_eq!(code, None, "{output}");
    // Its flow ends without a word.
    world.kubernetes.resume_node();
    let ended = world.kubernetes.wait_until(PATIENCE, |api| {
        let jobs = api.objects("jobs");
        jobs.iter().any(|job| job["status"]["succeeded"] == 1)
    });
    assert!(ended.await.is_ok());
    world.kubernetes.pause_node();
    rename(&world, "after");
    world.prefect.clock().advance(Duration::from_secs(60));
    let agent = world.start(&args);
    let told = world
        .prefect
        .wait_until(PATIENCE, |_| submissions(&world, run[0]) > 0);
    assert!(told.await.is_ok(), "{}", agent.output());
    let later = ordinary(&world, 3);
    get_their_jobs(&world, &later, &agent).await;
    let jobs = world.kubernetes.creations_by_run();
    assert_eq!(jobs[&run[0].to_string()], 1, "{}", agent.output());
}

/// A value in so many lists.
fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_read_fail_their_own_runs_alone() {
    let world = World::new().await;
    let text = format!("spec: {}{}", "[".repeat(200), "]".repeat(200));
    let large = "x".repeat(4_900_000);
    let scheduled =
        |context: Value| json!({"type": "Scheduled", "context": context, "message": ""});
    let odd_states = [nested(200), verbatim("1e999")].map(|value| {
        let seed = FlowRunSeed::new().run_config(with_type(json!({})));
        world
            .prefect
            .seed(seed.state(scheduled(json!({"odd": value}))))
    });
    let deep = seed_with(&world, json!({"env": {"A": nested(200)}}));
    let written = seed_with(&world, json!({"job_template": text}));
    let huge = seed_with(&world, json!({"cpu_limit": verbatim("1e999")}));
    let wide: Vec<Uuid> = (0..14)
        .map(|_| seed_with(&world, json!({"env": {"A": &large}})))
        .collect();
    let runs = ordinary(&world, 20);
    let (agent, endpoint) = world.start_with_endpoint(&BUDGET);
    get_their_jobs(&world, &runs, &agent).await;
    fail_with(
        &world,
        &[deep, written],
        &["recursion", "depth", "nested", "deep"],
        &agent,
    )
    .await;
    fail_with(&world, &[huge], &["number out of range"], &agent).await;
    fail_with(&world, &wide, &["KiB"], &agent).await;
    fail_with(
        &world,
        &odd_states,
        &["recursion limit", "number out of range"],
        &agent,
    )
    .await;
    let runs = ordinary(&world, 20);
    get_their_jobs(&world, &runs, &agent).await;
    let (status, health) = endpoint.get("/api/health").await;
    assert_eq!(status, 200, "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_flow_with_an_odd_state_does_not_stop_the_look_for_cancelled_runs() {
    let world = World::with_course(Course::hangs()).await;
    let runs = ordinary(&world, 3);
    let agent = world.start(&["--cancel-grace", "1s"]);
    get_their_jobs(&world, &runs, &agent).await;
    let running = |api: &PrefectApi| api.count_in_state("Running") == 3;
    assert!(world.prefect.wait_until(PATIENCE, running).await.is_ok());
    for (run, odd) in [(runs[0], nested(200)), (runs[1], verbatim("1e999"))] {
        let state = json!({"type": "Running", "message": "", "context": {"odd": odd}});
        world.prefect.set_state(run, state);
    }
    world
        .prefect
        .set_state_named(runs[2], "Cancelled", "by its owner");
    let cancelled = runs[2].to_string();
    let gone = |api: &KubernetesApi| {
        let mut jobs = api.jobs().into_iter();
        jobs.all(|job| {
            let labels = job.metadata.labels.unwrap_or_default();
            labels.get("prefect.io/flow_run_id") != Some(&cancelled)
        })
    };
    world.cluster(&agent, gone).await;
    assert_eq!(world.kubernetes.count("jobs"), 2, "{}", agent.output());
}

/// YAML whose aliases double so often, or stand for so many copies of a long text.
fn bomb(doublings: usize, len: usize) -> String {
    let mut text = format!("a0: &a0 {:?}\n", "x".repeat(len));
    for n in 1..=doublings {
        let before = n - 1;
        text.push_str(&format!("a{n}: &a{n} [*a{before}, *a{before}]\n"));
    }
    text.push_str("spec: {template: {spec: {containers: [{name: flow}]}}}\n");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn what_flows_send_takes_no_more_memory_than_is_allotted() {
    let world = World::new().await;
    let flat = format!(
        "a: &a {:?}\nb: [{}]\n",
        "x".repeat(20_000),
        "*a,".repeat(6_000)
    );
    let bombs: Vec<Uuid> = [bomb(24, 10), bomb(12, 40_000), flat]
        .iter()
        .cycle()
        .take(12)
        .map(|text| seed_with(&world, json!({"job_template": text})))
        .collect();
    let many: Value = (0..40_000)
        .map(|n| (format!("K{n}"), json!("v")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let long = "x".repeat(1_900_000);
    let mut large: Vec<Uuid> = Vec::new();
    for n in 0..8 {
        large.push(seed_with(&world, json!({"env": many})));
        large.push(seed_with(
            &world,
            json!({"env": {"A": format!("{n}{long}")}}),
        ));
        large.push(seed_with(
            &world,
            json!({"job_template": template(json!({"x": long}))}),
        ));
    }
    let runs = ordinary(&world, 20);
    let (agent, endpoint) = world.start_with_endpoint(&BUDGET);
    get_their_jobs(&world, &runs, &agent).await;
    fail_with(&world, &bombs, &["alias", "memory"], &agent).await;
    let all: Vec<Uuid> = bombs.iter().chain(&large).copied().collect();
    are_claimed(&world, &all, &agent).await;
    let runs = ordinary(&world, 20);
    get_their_jobs(&world, &runs, &agent).await;
    let (status, health) = endpoint.get("/api/health").await;
    assert_eq!(status, 200, "{health}");
    let peak = peak_rss_kib(&agent);
    println!("peak of {} MiB", peak >> 10);
    assert!(peak < MAX_RSS_KIB, "{} MiB", peak >> 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_leaves_behind_delays_no_other_entries_in_logs() {
    let odd = |run: Option<&str>| run.is_some_and(|run| run.starts_with("00000000"));
    let course = move |attempt: &agent_testkit::Attempt| {
        let course = Course::exits_with(1, Duration::ZERO);
        match odd(attempt.flow_run_id()) {
            true => course
                .with_log("before\0after\n")
                .with_termination_message("bad\0worse"),
            false => course
                .with_log("plain\n")
                .with_termination_message("no space left"),
        }
    };
    let world = World::with_courses(course, &[]).await;
    let seed = || retried(0).id(Uuid::from_u128(u128::from(fastrand::u64(..))));
    let _agent = world.start(&[]);
    let bad: Vec<Uuid> = (0..5).map(|_| world.prefect.seed(seed())).collect();
    let runs: Vec<Uuid> = (0..20).map(|_| world.prefect.seed(retried(0))).collect();
    let began = Instant::now();
    for run in runs.iter().chain(&bad) {
        let told = world.told(*run, "ERROR").await;
        assert!(told[0].contains("Exit Code:: 1"), "{told:?}");
    }
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
    let told = world.told(bad[0], "ERROR").await.join("\n");
    assert!(told.contains("bad\u{2400}worse"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_repeats_all_it_was_sent_fails_the_run_in_a_few_words() {
    let world = World::new().await;
    world.kubernetes.set_admission(|job, _| {
        let image = &job["spec"]["template"]["spec"]["containers"][0]["image"];
        match image.as_str() {
            Some("echo") => Verdict::deny(format!("in {} this is wrong", "x".repeat(1 << 20))),
            _ => Verdict::Allow,
        }
    });
    let bad = seed_with(
        &world,
        json!({"job_template": template(json!({"image": "echo"}))}),
    );
    let runs = ordinary(&world, 20);
    let agent = world.start(&BUDGET);
    get_their_jobs(&world, &runs, &agent).await;
    fail_with(&world, &[bad], &["this is wrong"], &agent).await;
    let longest = agent.output().lines().map(str::len).max();
    assert!(longest < Some(2 * MAX_REASON_BYTES), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_server_that_wants_to_be_left_alone_holds_no_slot() {
    let world = World::new().await;
    let server = serve(|_| {
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
    })
    .await;
    let path = |n| json!({"job_template_path": format!("{server}/{n}.yaml")});
    let bad: Vec<Uuid> = (0..6).map(|n| seed_with(&world, path(n))).collect();
    let args = [
        &BUDGET[..],
        &["--concurrency", "2", "--allow-private-flow-templates"],
    ]
    .concat();
    let agent = world.start(&args);
    are_claimed(&world, &bad, &agent).await;
    let runs = ordinary(&world, 20);
    get_their_jobs(&world, &runs, &agent).await;
    fail_with(&world, &bad, &["503"], &agent).await;
}

/// Two agents with labels of their own, of which the first one supervises the Jobs of both; the second
/// one's run ends first. How many of their Jobs are left in the end.
async fn kept(leader: &[&str], other: &[&str]) -> Vec<String> {
    let world = World::with_course(Course::succeeds_after(Duration::ZERO)).await;
    let args = [leader, &["--label", "leader"]].concat();
    let (first, endpoint) = world.start_with_endpoint(&args);
    endpoint
        .is(&first, |health| health["supervises"] == true)
        .await;
    let second = world.start(&[other, &["--label", "other"]].concat());
    for label in ["other", "leader", "other", "leader"] {
        let run = world.prefect.seed(retried(0).labels([label]));
        let ended = world
            .prefect
            .wait_until(PATIENCE, |api| api.state(run).as_deref() == Some("Success"));
        assert!(ended.await.is_ok(), "{}", second.output());
    }
    // Each agent's Jobs are deleted or kept alike.
    let settled = |api: &KubernetesApi| {
        api.count("jobs") == 2
            && api.jobs().iter().all(|job| {
                let status = job.status.as_ref();
                status.is_some_and(|status| status.succeeded == Some(1))
            })
    };
    world.cluster(&first, settled).await;
    let jobs = world.kubernetes.creations();
    let left = world.kubernetes.jobs();
    let is_left = |name: &str| {
        left.iter()
            .any(|job| job.metadata.name.as_deref() == Some(name))
    };
    let owners = ["other", "leader", "other", "leader"].into_iter().zip(jobs);
    owners
        .filter(|(_, job)| is_left(&job.name))
        .map(|(label, _)| label.to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_keeps_the_jobs_of_an_agent_that_keeps_its_own() {
    let keep = ["--disable-job-deletion"];
    assert_eq!(kept(&[], &keep).await, ["other", "other"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_kills_the_process_three_times_is_failed_and_others_get_their_jobs() {
    let world = World::new().await;
    let victim = Arc::new(AtomicI32::new(0));
    let asked = Arc::new(Mutex::new(0));
    let (target, count) = (victim.clone(), asked.clone());
    let server = serve(move |_| {
        *count.lock().expect("no panics") += 1;
        let _ = kill(
            Pid::from_raw(target.load(Ordering::SeqCst)),
            Signal::SIGKILL,
        );
        String::new()
    })
    .await;
    let bad = seed_with(
        &world,
        json!({"job_template_path": format!("{server}/job.yaml")}),
    );
    let args = ["--allow-private-flow-templates", "--lease-duration", "1s"];
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend(ordinary(&world, 5));
        let agent = world.start(&args);
        victim.store(agent.pid(), Ordering::SeqCst);
        let (code, output) = agent.ended().await;
        assert_eq!(code, None, "{output}");
        world.prefect.clock().advance(Duration::from_secs(60));
    }
    let agent = world.start(&args);
    victim.store(agent.pid(), Ordering::SeqCst);
    all.extend(ordinary(&world, 5));
    get_their_jobs(&world, &all, &agent).await;
    fail_with(&world, &[bad], &["has ended 3 times"], &agent).await;
    assert_eq!(*asked.lock().expect("no panics"), 3);
}
