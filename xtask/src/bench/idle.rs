//! Many Jobs run and nothing happens: what that costs in a minute.

use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::agent::Agent;
use super::report::{Figure, Report};
use super::world::{Requests, World, between};

/// How long a new agent has to list what there is, before idling is measured. It looks at the runs of
/// all Jobs that it has found half a minute after that, once.
const SETTLE: Duration = Duration::from_secs(50);

/// Measures one agent that finds `jobs` running Jobs when it starts.
pub(super) async fn run(
    options: &Options,
    jobs: usize,
    agent: &Agent,
    report: &mut Report,
) -> Result<()> {
    eprintln!("idle, {jobs} Jobs");
    let world = World::start(options, true).await?;
    if jobs > 0 {
        world.populate(jobs, agent.start(&world, options)?).await?;
    }
    let mut running = agent.start(&world, options)?;
    tokio::time::sleep(SETTLE).await;
    let before = (running.usage()?, world.requests());
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let after = (running.usage()?, world.requests());
    let per_minute = 60.0 / options.seconds as f64;
    let (used, began) = (after.0, before.0);
    let mut counts = rates(&before.1.0, &after.1.0, per_minute);
    let mut figures = vec![
        Figure::new(
            "CPU per minute",
            "ms",
            (used.cpu - began.cpu).as_secs_f64() * 1e3 * per_minute,
        ),
        Figure::new("memory", "MiB", used.resident),
        Figure::new("its own part of that", "MiB", used.own),
        Figure::new("peak memory", "MiB", used.peak),
        Figure::new("CPU until settled", "ms", began.cpu.as_secs_f64() * 1e3),
        Figure::new(
            "requests per minute, Prefect",
            "",
            between(&before.1.0, &after.1.0) as f64 * per_minute,
        ),
    ];
    if let (Some(before), Some(after)) = (&before.1.1, &after.1.1) {
        counts.extend(rates(before, after, per_minute));
        let count = between(before, after) as f64 * per_minute;
        figures.push(Figure::new("requests per minute, Kubernetes", "", count));
    }
    report.add("idle", agent.name, jobs, figures);
    report.remark(format!(
        "idle, {jobs} Jobs, {}: requests per minute: {}",
        agent.name,
        counts.join(", ")
    ));
    running.stop().await?;
    world.end().await
}

/// How often each request was made, where it was.
fn rates(before: &Requests, after: &Requests, per_minute: f64) -> Vec<String> {
    let made = after.iter().filter_map(|(name, count)| {
        let made = count - before.get(name).unwrap_or(&0);
        (made > 0).then(|| format!("{name} {:.1}", made as f64 * per_minute))
    });
    made.collect()
}
