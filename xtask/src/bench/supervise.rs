//! Jobs fail at a given rate among many that go on: how soon the runs' owners know, and what
//! following all of them costs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agent_testkit::KubernetesApi;
use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Options;
use super::agent::Agent;
use super::report::{Figure, Report, quantile};
use super::world::{Cluster, PATIENCE, World, between};

/// For how long Jobs fail.
const CHANGES: Duration = Duration::from_secs(15);
/// For how long as many fail for an agent that looks at its Jobs once a minute: at any time in that
/// minute.
const CHANGES_OF_PEER: Duration = Duration::from_secs(60);

/// Measures both agents, each with Jobs of its own.
pub(super) async fn run(
    options: &Options,
    jobs: usize,
    ours: &Agent,
    peer: Option<&Agent>,
    report: &mut Report,
) -> Result<()> {
    eprintln!("supervise, {jobs} Jobs");
    measure(options, jobs, (ours, ours), None, report).await?;
    if let Some(peer) = peer {
        let jobs = options.peer_runs.min(jobs);
        measure(options, jobs, (ours, peer), Some(CHANGES_OF_PEER), report).await?;
    }
    Ok(())
}

/// Measures one agent that follows `jobs` Jobs, which another has made and of which some fail. On a
/// given cluster nothing runs that could fail, so Jobs are deleted there instead, which fails their
/// runs, too.
async fn measure(
    options: &Options,
    jobs: usize,
    (maker, agent): (&Agent, &Agent),
    time: Option<Duration>,
    report: &mut Report,
) -> Result<()> {
    let world = World::start(options, true).await?;
    let runs = world.populate(jobs, maker.start(&world, options)?).await?;
    let mut running = agent.start(&world, options)?;
    world.polled().await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = (running.usage()?, world.requests());
    let began = Instant::now();
    let wanted = (CHANGES.as_secs_f64() * f64::from(options.rate)) as usize;
    let failing = &runs[..wanted.min(jobs / 2).max(1)];
    let pause = match time {
        Some(time) => time / failing.len() as u32,
        None => Duration::from_secs(1) / options.rate.max(1),
    };
    let changed = change(&world, failing, pause).await?;
    let all_failed = world.prefect.wait_until(PATIENCE, |prefect| {
        prefect.count_in_state("Failed") >= changed.len()
    });
    all_failed.await.context("not every failure was seen")?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let after = (running.usage()?, world.requests());
    let mut latencies = latencies(&world, &changed)?;
    let changes = changed.len() as f64;
    let mut figures = vec![
        Figure::new("detection, p50", "ms", quantile(&mut latencies, 0.5)),
        Figure::new("detection, p99", "ms", quantile(&mut latencies, 0.99)),
        Figure::new("changes", "", changes),
        Figure::new(
            "CPU per change",
            "ms",
            (after.0.cpu - before.0.cpu).as_secs_f64() * 1e3 / changes,
        ),
        Figure::new("peak memory", "MiB", after.0.peak),
        Figure::new(
            "requests per minute, Prefect",
            "",
            between(&before.1.0, &after.1.0) as f64 / minutes,
        ),
    ];
    if let (Some(before), Some(after)) = (&before.1.1, &after.1.1) {
        let count = between(before, after) as f64 / minutes;
        figures.push(Figure::new("requests per minute, Kubernetes", "", count));
    }
    report.add("supervise", agent.name, jobs, figures);
    running.stop().await?;
    world.end().await
}

/// Lets the Jobs of these runs fail, one after the other; when each did.
async fn change(world: &World, runs: &[Uuid], pause: Duration) -> Result<HashMap<Uuid, Timestamp>> {
    let names = names(world);
    let mut ticks = tokio::time::interval(pause);
    let mut changed = HashMap::new();
    for run in runs {
        ticks.tick().await;
        match &world.cluster {
            Cluster::Testkit(kubernetes) => {
                let (job, pod) = names
                    .get(&run.to_string())
                    .with_context(|| format!("the run {run} has no pod"))?;
                changed.insert(*run, Timestamp::now());
                fail(kubernetes, &world.namespace, job, pod);
            }
            Cluster::Given(given) => {
                changed.insert(*run, Timestamp::now());
                given.delete(&run.to_string()).await?;
            }
        }
    }
    Ok(changed)
}

/// The names of each run's Job and pod on the testkit.
fn names(world: &World) -> HashMap<String, (String, String)> {
    let Cluster::Testkit(kubernetes) = &world.cluster else {
        return HashMap::new();
    };
    let pods = kubernetes.pods().into_iter().filter_map(|pod| {
        let labels = pod.metadata.labels?;
        let run = labels.get("prefect.io/flow_run_id")?.clone();
        let job = pod.metadata.owner_references?.into_iter().next()?.name;
        Some((run, (job, pod.metadata.name?)))
    });
    pods.collect()
}

/// What the kubelet and the Job controller note when a flow's process exits with 1 and may not be
/// tried again.
fn fail(kubernetes: &KubernetesApi, namespace: &str, job: &str, pod: &str) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    kubernetes.modify("pods", namespace, pod, |pod| {
        pod["status"]["phase"] = json!("Failed");
        if let Some(Value::Array(containers)) = pod["status"].get_mut("containerStatuses") {
            for container in containers {
                container["state"] = json!({"terminated": {
                    "exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now,
                }});
            }
        }
    });
    kubernetes.modify("jobs", namespace, job, |job| {
        let condition = json!({
            "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
            "lastProbeTime": now, "lastTransitionTime": now,
        });
        job["status"]["conditions"] = json!([condition]);
        job["status"]["failed"] = json!(1);
    });
}

/// From each failure to the run's state Failed, in milliseconds.
fn latencies(world: &World, changed: &HashMap<Uuid, Timestamp>) -> Result<Vec<f64>> {
    let latency = |(run, at): (&Uuid, &Timestamp)| {
        let history = world.prefect.run(*run).map(|run| run.history);
        let history = history.context("a seeded run is gone")?;
        let failed = history.iter().find(|state| state.kind() == "Failed");
        let failed = failed.with_context(|| format!("the run {run} is not Failed"))?;
        Ok(failed.at.duration_since(*at).as_secs_f64() * 1e3)
    };
    changed.iter().map(latency).collect()
}
