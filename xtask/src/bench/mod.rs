//! `cargo xtask bench`: what the agent costs, beside the Python agent and beside what the servers
//! can take at all. The servers run in this process and each agent in one of its own, so that its
//! CPU time and memory are its own; the rates of all of them suffer alike from sharing the machine.

mod agent;
mod deploy;
mod given;
mod idle;
mod local;
pub(crate) mod plot;
pub(crate) mod process;
mod python;
mod raw;
pub(crate) mod report;
mod startup;
mod supervise;
mod world;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use self::agent::Agent;
pub(crate) use self::raw::Options as RawOptions;
pub(crate) use self::raw::run as raw;
use self::report::Report;
use crate::interrupt::unless_interrupted;

/// The flags of the benchmarks.
#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// What is measured
    #[arg(value_enum, default_value = "all")]
    scenario: Scenario,
    /// How many runs or Jobs; several numbers, for a curve, with commas between them
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    runs: Vec<usize>,
    /// Rounds of `deploy` and `startup`; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Deployments at the same time
    #[arg(long, default_value_t = 32)]
    concurrency: u16,
    /// How long `idle` measures, in seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Status changes per second in `supervise`
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Measure another agent too, in turns with this one
    #[arg(long, value_enum)]
    against: Option<Peer>,
    /// Runs per round of the other agent, which is slower; as many as of this one at most
    #[arg(long, default_value_t = 100)]
    peer_runs: usize,
    /// Which Kubernetes API
    #[arg(long, value_enum, default_value = "testkit")]
    cluster: Place,
    /// The kubeconfig of the current cluster [default: KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Write all figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot per scenario into this directory, when there are several numbers of runs
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// What to do inside the namespaces of a local cluster
    #[arg(long, hide = true, value_name = "FILE")]
    inside: Option<PathBuf>,
}

/// Which Kubernetes API is used.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// That of the testkit
    Testkit,
    /// An API server and etcd of upstream parts in namespaces of this machine, without controllers;
    /// needs Linux and root
    Local,
    /// That of the kubeconfig's current context; Jobs are suspended there, in a namespace that is
    /// made and deleted
    Current,
}

/// What is measured.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// Due runs are deployed
    Deploy,
    /// Jobs fail at a given rate among many that go on
    Supervise,
    /// Many Jobs run and nothing happens
    Idle,
    /// From the start of the process to its first poll; size of the binary
    Startup,
    /// All of these
    All,
}

/// Another agent.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// Prefect's own, 1.4.1
    Python,
}

/// Runs the benchmarks and prints what they found.
pub(crate) async fn run(mut options: Options) -> Result<()> {
    if cfg!(debug_assertions) {
        return again_optimized();
    }
    if let Some(plan) = options.inside.clone() {
        return local::inside(&plan, options).await;
    }
    let binary = match options.binary.clone() {
        // Agents run in directories of their own.
        Some(binary) => std::path::absolute(binary)?,
        None => {
            eprintln!("Building agent-cli in release mode...");
            crate::build_agent(crate::Profile::Release)?
        }
    };
    match options.cluster {
        Place::Testkit => options.kubeconfig = None,
        Place::Current => {
            let given = options.kubeconfig.take();
            options.kubeconfig = Some(given.map_or_else(crate::e2e::kubeconfig_path, Ok)?);
        }
        Place::Local => {
            if options.against.is_some() {
                python::environment()?;
            }
            return local::outside(&binary).await;
        }
    }
    let measured = unless_interrupted(measure(&options, binary)).await;
    if let (Err(_), Some(kubeconfig)) = (&measured, &options.kubeconfig)
        && let Err(error) = given::delete_unfinished(kubeconfig).await
    {
        eprintln!("A namespace prefect-bench-... may be left: {error:#}");
    }
    measured
}

/// Measures this binary on the servers that the options name.
async fn measure(options: &Options, binary: PathBuf) -> Result<()> {
    let ours = Agent::ours(binary);
    let peer = match options.against {
        Some(Peer::Python) => Some(Agent::python(python::environment()?)),
        None => None,
    };
    let mut report = Report::new();
    let wanted = |scenario| [scenario, Scenario::All].contains(&options.scenario);
    if wanted(Scenario::Startup) {
        startup::run(options, &ours, peer.as_ref(), &mut report).await?;
    }
    for &runs in &options.runs {
        if wanted(Scenario::Deploy) {
            deploy::run(options, runs, &ours, peer.as_ref(), &mut report).await?;
        }
        if wanted(Scenario::Idle) {
            idle::run(options, runs, &ours, &mut report).await?;
        }
        if wanted(Scenario::Supervise) {
            supervise::run(options, runs, &ours, peer.as_ref(), &mut report).await?;
        }
    }
    report.print();
    if let Some(file) = &options.json {
        report.write(file)?;
    }
    if let Some(directory) = &options.plots {
        report.plot(directory)?;
    }
    Ok(())
}

/// Becomes this command, built with optimization: the servers, too, take part in what is measured. No
/// process is left between the terminal and the one that measures, so that signals reach it.
fn again_optimized() -> Result<()> {
    eprintln!("Building the servers with optimization...");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--profile", "servers"]);
    let arguments = std::env::args_os().skip(1);
    let failed = cargo
        .args(["--package", "xtask", "--"])
        .args(arguments)
        .exec();
    Err(failed).context("cannot run cargo")
}
