//! `cargo xtask soak`: one agent, and runs that come at a steady rate and end in every way, for as
//! long as told; then it is checked that the agent holds no more than it did at the beginning.

mod fate;
mod sample;
mod verdict;
mod world;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::MissedTickBehavior;

use self::sample::{QUANTITIES, Sample};
use self::world::{LIFE, World};
use crate::interrupt::unless_interrupted;

/// How long the agent may take to serve its metrics, and to end.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often the agent is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often watches break off; every fifth time they also have to list everything again.
const CUT: Duration = Duration::from_secs(60);
/// Below this duration memory is not judged: what a process holds after a minute tells nothing of a
/// day. What leaks with each run otherwise, such as a connection or a task, shows in a minute.
const MEMORY: Duration = Duration::from_secs(600);

/// The flags of `soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long runs come, for instance 30m
    #[arg(long = "for", value_name = "DURATION", default_value = "30m", value_parser = duration)]
    length: Duration,
    /// Runs per second
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Write a plot to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Soak this binary instead of building one for release
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::SignedDuration>().ok();
    let length = span.and_then(|span| Duration::try_from(span).ok());
    length
        .filter(|length| *length >= Duration::from_secs(10))
        .ok_or_else(|| "use a duration of 10 s at least, such as 45s, 30m or 8h".to_owned())
}

/// Soaks an agent; an error says what grew.
pub(crate) async fn run(options: Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => std::path::absolute(binary)?,
        None => {
            println!("Building agent-cli in release mode...");
            crate::build_agent(crate::Profile::Release)?
        }
    };
    unless_interrupted(observe(&options, &binary)).await
}

/// Runs the agent, and judges it.
async fn observe(options: &Options, binary: &Path) -> Result<()> {
    let mut world = World::start().await?;
    // The port is free again when the agent listens.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    drop(listener);
    let mut agent = world.start_agent(binary, port)?;
    let soaked = soak(options, &mut world, &mut agent, port).await;
    let samples = match soaked {
        Ok(samples) => samples,
        Err(error) => {
            let kept = world.keep();
            return Err(error.context(format!("what the agent wrote is in {}", kept.display())));
        }
    };
    sample::print(&samples);
    if let Some(file) = &options.svg {
        let length = jiff::SignedDuration::try_from(options.length)?;
        let title = format!(
            "Soak: {} runs in {length:#}, {} per second",
            world.runs, options.rate
        );
        let written = std::fs::write(file, sample::svg(&samples, title));
        written.with_context(|| format!("cannot write {}", file.display()))?;
    }
    let findings = judge(options, &world, &samples);
    if !findings.is_empty() {
        let kept = world.keep();
        bail!(
            "{}; what the agent wrote is in {}",
            findings.join("; "),
            kept.display()
        );
    }
    println!("{} runs, and nothing grew", world.runs);
    Ok(())
}

/// Lets runs come and looks at the agent until the time is over, and all has come to rest.
async fn soak(
    options: &Options,
    world: &mut World,
    agent: &mut Child,
    port: u16,
) -> Result<Vec<Sample>> {
    let pid = agent.id().context("the agent ended at once")?;
    let began = Instant::now();
    while let Err(error) = Sample::take(pid, port, Duration::ZERO, 0).await {
        if began.elapsed() > PATIENCE || agent.try_wait()?.is_some() {
            return Err(error.context("the agent does not serve its metrics"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let every = |period| {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let mut runs = tokio::time::interval(Duration::from_secs(1) / options.rate);
    let (mut looks, mut cuts) = (every(LOOK), every(CUT));
    let mut tidy = every(Duration::from_secs(5));
    let (mut samples, mut cut) = (Vec::new(), 0u32);
    let (began, end) = (Instant::now(), tokio::time::sleep(options.length));
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = runs.tick() => world.seed(),
            _ = tidy.tick() => world.forget(LIFE),
            _ = cuts.tick() => {
                cut += 1;
                match cut.is_multiple_of(5) {
                    true => world.kubernetes.expire_watches(),
                    false => world.kubernetes.cut_watches(),
                }
            }
            _ = looks.tick() => {
                if let Some(status) = agent.try_wait()? {
                    bail!("the agent has ended by itself: {status}");
                }
                let jobs = world.kubernetes.count("jobs");
                samples.push(Sample::take(pid, port, began.elapsed(), jobs).await?);
            }
        }
    }
    world.rest().await?;
    world.forget(Duration::ZERO);
    kill(Pid::from_raw(pid.try_into()?), Signal::SIGTERM)?;
    let status = tokio::time::timeout(PATIENCE, agent.wait()).await;
    let status = status.context("the agent did not end")??;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(samples)
}

/// Says, quantity by quantity, how it changed; what is wrong.
fn judge(options: &Options, world: &World, samples: &[Sample]) -> Vec<String> {
    let mut findings = Vec::new();
    for quantity in &QUANTITIES {
        let levels = sample::levels(samples, quantity);
        let name = quantity.name;
        let change = format!("{name}: from {:.1} to {:.1}", levels.first, levels.last);
        println!("{change}, {:.1} allowed", levels.bound);
        if name == QUANTITIES[0].name && options.length < MEMORY {
            println!("  not judged, in a soak of less than {MEMORY:?}");
        } else if levels.grew() {
            findings.push(format!("growth of {change}"));
        }
    }
    if let Some(first) = world.astray.first() {
        let count = world.astray.len();
        findings.push(format!(
            "{count} runs went astray, of which the first: {first}"
        ));
    }
    findings
}
