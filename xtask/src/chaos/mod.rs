//! `cargo xtask chaos`: the real binary in several replicas, which are killed, frozen and restarted
//! at random while both servers misbehave; then it is checked that nothing was lost or done twice.

mod plan;
mod replica;
mod verdict;
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::plan::Plan;
use self::replica::Replicas;
use self::verdict::violations;
use self::world::World;
use crate::interrupt::unless_interrupted;

/// How long everything may take to come to rest after the last blow.
const REST: Duration = Duration::from_secs(180);

/// The flags of `chaos`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The first seed; the same seed repeats the same plan
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Flow runs per seed
    #[arg(long, default_value_t = 300)]
    runs: usize,
    /// Replicas of the agent
    #[arg(long, default_value_t = 2)]
    replicas: usize,
    /// Print every blow
    #[arg(long)]
    timeline: bool,
}

/// Runs the seeds; an error names those with violations.
pub(crate) async fn run(options: Options) -> Result<()> {
    println!("Building agent-cli...");
    let binary = crate::build_agent(crate::Profile::Debug)?;
    unless_interrupted(seeds(&options, &binary)).await
}

async fn seeds(options: &Options, binary: &Path) -> Result<()> {
    let first = options.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let mut broken = Vec::new();
    for seed in first..first + options.seeds {
        let began = Instant::now();
        let plan = Plan::draw(seed, options.runs, options.replicas);
        let world = World::build(&plan).await?;
        let mut replicas = Replicas::start(binary, &world, options.replicas)?;
        let mut timeline = Vec::new();
        for blow in &plan.blows {
            tokio::time::sleep_until((began + blow.at).into()).await;
            let what = world.strike(&mut replicas, blow).await?;
            timeline.push(format!("{:7.3} s  {what}", began.elapsed().as_secs_f64()));
        }
        world.calm();
        replicas.all_up(&world)?;
        let rested = world.rests(REST).await;
        let remains = replicas.stop().await?;
        let mut found = violations(&world, &plan);
        found.extend(remains.crashes);
        if let Err(unrest) = rested {
            found.insert(0, unrest);
        }
        println!(
            "seed {seed}: {} runs, {} blows, {} faults, {:.0} s: {}",
            plan.runs.len(),
            plan.blows.len(),
            world.faults(),
            began.elapsed().as_secs_f64(),
            match found.len() {
                0 => "nothing lost, nothing twice".to_owned(),
                n => format!("{n} VIOLATIONS"),
            }
        );
        if options.timeline || !found.is_empty() {
            for line in &timeline {
                println!("  {line}");
            }
        }
        if !found.is_empty() {
            for one in &found {
                println!("  violated: {one}");
            }
            let written = remains.dir.keep();
            println!("  what the replicas wrote is in {}", written.display());
            broken.push(seed);
        }
    }
    if !broken.is_empty() {
        bail!("violations with the seeds {broken:?}; repeat one with --seed");
    }
    Ok(())
}
