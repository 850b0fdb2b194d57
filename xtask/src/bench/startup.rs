//! From the start of the process to its first poll, and the size of the binary.

use std::time::Instant;

use anyhow::{Context, Result};

use super::Options;
use super::agent::Agent;
use super::report::{Figure, Report, median_of};
use super::world::World;

/// Measures both agents in turns.
pub(super) async fn run(
    options: &Options,
    ours: &Agent,
    peer: Option<&Agent>,
    report: &mut Report,
) -> Result<()> {
    let agents = [Some(ours), peer];
    let mut found = [Vec::new(), Vec::new()];
    for round in 1..=options.rounds {
        eprintln!("startup, round {round} of {}", options.rounds);
        for (agent, found) in agents.iter().zip(&mut found) {
            if let Some(agent) = agent {
                found.push(measure(options, agent).await?);
            }
        }
    }
    for (agent, found) in agents.into_iter().zip(found) {
        if let Some(agent) = agent {
            report.add("startup", agent.name, 0, median_of(&found));
        }
    }
    let binary = ours.program();
    let size = std::fs::metadata(binary)
        .with_context(|| format!("cannot look at {}", binary.display()))?
        .len();
    let mib = size as f64 / 1024.0 / 1024.0;
    report.remark(format!(
        "the binary has {:.1} MB ({mib:.1} MiB)",
        size as f64 / 1e6
    ));
    Ok(())
}

async fn measure(options: &Options, agent: &Agent) -> Result<Vec<Figure>> {
    let world = World::start(options, false).await?;
    let began = Instant::now();
    let mut running = agent.start(&world, options)?;
    world.polled().await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    let used = running.usage()?;
    running.stop().await?;
    world.end().await?;
    Ok(vec![
        Figure::new("start to first poll", "ms", took),
        Figure::new("CPU until then", "ms", used.cpu.as_secs_f64() * 1e3),
        Figure::new("memory then", "MiB", used.resident),
        Figure::new("its own part of that", "MiB", used.own),
    ])
}
