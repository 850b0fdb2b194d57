//! Due runs are deployed: how fast, and what each costs.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, Result};
use jiff::Timestamp;
use uuid::Uuid;

use super::Options;
use super::agent::Agent;
use super::raw;
use super::report::{Figure, Report, median_of, quantile};
use super::world::{World, between};

/// Both agents in turns, then the servers alone.
pub(super) async fn run(
    options: &Options,
    runs: usize,
    ours: &Agent,
    peer: Option<&Agent>,
    report: &mut Report,
) -> Result<()> {
    let theirs = options.peer_runs.min(runs);
    let (mut of_ours, mut of_peer) = (Vec::new(), Vec::new());
    let (mut jobs, mut calls) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        eprintln!("deploy, {runs} runs, round {round} of {}", options.rounds);
        of_ours.push(measure(options, runs, ours).await?);
        if let Some(peer) = peer {
            of_peer.push(measure(options, theirs, peer).await?);
        }
        jobs.push(raw::jobs(options, runs, ours).await?);
        calls.push(raw::calls(options, runs).await?);
    }
    let rate = report.add("deploy", ours.name, runs, median_of(&of_ours))[0].value;
    let jobs = report.add("deploy", "only Jobs", runs, median_of(&jobs))[0].value;
    let calls = report.add("deploy", "only GraphQL", runs, median_of(&calls))[0].value;
    let both = 1.0 / (1.0 / jobs + 1.0 / calls);
    report.remark(format!(
        "deploy, {runs} runs: {:.0} % of the rate of bare Job creations, {:.0} % of that of both \
         servers' calls one after the other",
        100.0 * rate / jobs,
        100.0 * rate / both
    ));
    if let Some(peer) = peer {
        let theirs = report.add("deploy", peer.name, theirs, median_of(&of_peer))[0].value;
        report.remark(format!(
            "deploy, {runs} runs: {:.1} times the rate of the {} agent",
            rate / theirs,
            peer.name
        ));
    }
    Ok(())
}

async fn measure(options: &Options, runs: usize, agent: &Agent) -> Result<Vec<Figure>> {
    let world = World::start(options, false).await?;
    let ids = world.seed(runs);
    let mut running = agent.start(&world, options)?;
    world.polled().await?;
    let (polled, before) = (Instant::now(), running.usage()?);
    world.created(runs).await?;
    let took = polled.elapsed().as_secs_f64();
    world.told(&ids).await?;
    let after = running.usage()?;
    let (prefect, kubernetes) = world.requests();
    let mut latencies = latencies(&world, &ids)?;
    let each = runs as f64;
    let mut figures = vec![
        Figure::new("rate", "runs/s", each / took),
        Figure::new("first poll to last Job", "s", took),
        Figure::new("claim to Job, p50", "ms", quantile(&mut latencies, 0.5)),
        Figure::new("claim to Job, p99", "ms", quantile(&mut latencies, 0.99)),
        Figure::new(
            "CPU per run",
            "ms",
            (after.cpu - before.cpu).as_secs_f64() * 1e3 / each,
        ),
        Figure::new("peak memory", "MiB", after.peak),
        Figure::new(
            "requests per run, Prefect",
            "",
            prefect.values().sum::<u64>() as f64 / each,
        ),
    ];
    if let Some(kubernetes) = kubernetes {
        let count = between(&Default::default(), &kubernetes) as f64 / each;
        figures.push(Figure::new("requests per run, Kubernetes", "", count));
    }
    running.stop().await?;
    world.end().await?;
    Ok(figures)
}

/// From each run's state Submitted to its Job, in milliseconds; on a given cluster to when a watch
/// shows the Job.
fn latencies(world: &World, runs: &[Uuid]) -> Result<Vec<f64>> {
    let created: HashMap<String, Timestamp> = world.creations()?;
    let latency = |run: &Uuid| {
        let job = created
            .get(&run.to_string())
            .with_context(|| format!("the run {run} has no Job"))?;
        let history = world.prefect.run(*run).map(|run| run.history);
        let history = history.context("a seeded run is gone")?;
        let claimed = history.iter().find(|state| state.kind() == "Submitted");
        let claimed = claimed.with_context(|| format!("the run {run} was not claimed"))?;
        Ok(job.duration_since(claimed.at).as_secs_f64() * 1e3)
    };
    runs.iter().map(latency).collect()
}
