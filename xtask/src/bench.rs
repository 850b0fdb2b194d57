//! `cargo xtask bench`: what a deployment costs. The servers run in this process, the agent in its
//! own, so that its CPU time and memory are its own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent_testkit::{FlowRunSeed, KubernetesApi, PrefectApi};
use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use jiff::{SignedDuration, Timestamp};
use tokio::process::{Child, Command};

/// The flags of the benchmark.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many due runs are deployed
    #[arg(long, default_value_t = 1000)]
    runs: u32,
    /// Deployments at the same time
    #[arg(long, default_value_t = 32)]
    concurrency: u16,
}

/// What the kernel says about a process.
struct Usage {
    cpu: Duration,
    peak_kib: u64,
}

/// Runs the benchmark and prints its table.
pub(crate) async fn run(options: Options) -> Result<()> {
    println!("Building agent-cli in release mode...");
    let binary = crate::build_agent(crate::Profile::Release)?;
    let prefect = PrefectApi::start().await?;
    let kubernetes = KubernetesApi::builder().node_off().start().await?;
    let due = Timestamp::now() - SignedDuration::from_mins(10);
    for n in 0..options.runs {
        let start = due + SignedDuration::from_millis(n.into());
        prefect.seed(FlowRunSeed::new().start_time(start));
    }
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, kubernetes.kubeconfig_yaml())?;

    let began = Instant::now();
    let agent = start(&binary, &prefect, &kubeconfig, options.concurrency)?;
    let pid = agent.id().context("the agent has ended by itself")?;
    let patience = Duration::from_secs(600);
    prefect
        .wait_until(patience, |api| api.request_count("get_runs_in_queue") > 0)
        .await
        .context("the agent did not poll")?;
    let first_poll = began.elapsed();
    let before = usage(pid)?;
    let polled = Instant::now();
    let all = options.runs as usize;
    kubernetes
        .wait_until(patience, |api| api.creation_count() >= all)
        .await
        .context("the runs were not deployed in time")?;
    let took = polled.elapsed();
    let after = usage(pid)?;
    let doubled = kubernetes
        .creations_by_run()
        .values()
        .filter(|jobs| **jobs != 1)
        .count();
    ensure!(doubled == 0, "{doubled} runs have more than one Job");

    let runs = f64::from(options.runs);
    let requests = |counts: std::collections::BTreeMap<String, u64>| {
        counts.values().sum::<u64>() as f64 / runs
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (what, value) in [
        ("runs", format!("{all}, each deployed once")),
        (
            "start to first poll",
            format!("{:.0} ms", first_poll.as_secs_f64() * 1e3),
        ),
        (
            "first poll to last Job",
            format!("{:.2} s", took.as_secs_f64()),
        ),
        ("rate", format!("{:.0} runs/s", runs / took.as_secs_f64())),
        (
            "CPU per run",
            format!(
                "{:.2} ms",
                (after.cpu - before.cpu).as_secs_f64() * 1e3 / runs
            ),
        ),
        (
            "peak memory",
            format!("{:.1} MiB", after.peak_kib as f64 / 1024.0),
        ),
        (
            "requests per run, Prefect API",
            format!("{:.2}", requests(prefect.requests())),
        ),
        (
            "requests per run, Kubernetes API",
            format!("{:.2}", requests(kubernetes.requests())),
        ),
    ] {
        table.add_row([what.to_owned(), value]);
    }
    println!("{table}");
    Ok(())
}

fn start(
    binary: &Path,
    prefect: &PrefectApi,
    kubeconfig: &Path,
    concurrency: u16,
) -> Result<Child> {
    Command::new(binary)
        .args(["start", "--api", &prefect.url(), "--log-level", "warning"])
        .args(["--concurrency", &concurrency.to_string()])
        .env("PREFECT__BACKEND", "server")
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

/// CPU time and peak resident memory of a process, from `/proc`.
fn usage(pid: u32) -> Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The fields after the name, which is in parentheses and may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, fields)| fields.split_whitespace().collect())
        .unwrap_or_default();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(11)
        .zip(ticks(12))
        .context("/proc/PID/stat has no times")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .context("/proc/PID/status has no VmHWM")?;
    Ok(Usage {
        // Linux counts in hundredths of a second, whatever the kernel's own tick is.
        cpu: Duration::from_millis((user + system) * 10),
        peak_kib: peak,
    })
}
