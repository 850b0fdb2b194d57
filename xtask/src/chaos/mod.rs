//! `cargo xtask chaos`: the real binary in several replicas, which are killed, frozen and restarted
//! at random while both servers misbehave; then it is checked that nothing was lost or done twice.

mod plan;
mod poison;
mod replica;
mod templates;
mod verdict;
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::plan::Plan;
use self::replica::Replicas;
use self::verdict::{harm, latencies, p99, violations};
use self::world::World;
use crate::interrupt::unless_interrupted;

/// How long everything may take to come to rest after the last blow.
const REST: Duration = Duration::from_secs(180);

/// The share of bad runs among all.
const POISON_SHARE: f64 = 0.2;

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
    /// Add bad runs, a fifth of all: templates, run configs, states and pods as no flow should have them,
    /// drawn from the seed. Each seed is run without them first, to tell whether they delay others
    #[arg(long)]
    poison: bool,
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
        let plan = || Plan::draw(seed, options.runs, options.replicas);
        let before = one(options, binary, &plan(), None).await?;
        let sound = match (before.sound, options.poison) {
            (true, true) => {
                let plan = plan().poison(POISON_SHARE);
                one(options, binary, &plan, Some(before.p99)).await?.sound
            }
            (sound, _) => sound,
        };
        if !sound {
            broken.push(seed);
        }
    }
    if !broken.is_empty() {
        bail!("violations with the seeds {broken:?}; repeat one with --seed");
    }
    Ok(())
}

/// What a plan has come to.
struct Outcome {
    /// Whether nothing was violated.
    sound: bool,
    /// The time within which 99 of 100 ordinary runs had their Job.
    p99: Duration,
}

/// Runs one plan. With bad runs in it, `without` is what the same plan has come to without them.
async fn one(
    options: &Options,
    binary: &Path,
    plan: &Plan,
    without: Option<Duration>,
) -> Result<Outcome> {
    let began = Instant::now();
    let world = World::build(plan).await?;
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
    let mut found = violations(&world, plan);
    found.extend(remains.crashes);
    if let Err(unrest) = rested {
        found.insert(0, unrest);
    }
    let p99 = p99(&latencies(&world, plan));
    if let Some(without) = without {
        found.extend(harm(without, p99, remains.peak_kib));
    }
    println!(
        "seed {}: {} runs, {} bad ones, {} blows, {} faults, {:.0} s, p99 {p99:.1?}, {} MiB: {}",
        plan.seed,
        plan.runs.len(),
        plan.bad.len(),
        plan.blows.len(),
        world.faults(),
        began.elapsed().as_secs_f64(),
        remains.peak_kib >> 10,
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
    }
    Ok(Outcome {
        sound: found.is_empty(),
        p99,
    })
}
