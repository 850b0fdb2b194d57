//! The raw limits: what the servers can take when nothing but the calls themselves is made, by
//! `cargo xtask bench-raw` in a process of its own as an agent would be.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent_api_client::{ApiSettings, Backend, PrefectApi};
use agent_core::{FlowRunSource, ReadyQuery};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use http::Request;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use super::agent::Agent;
use super::process::Usage;
use super::report::Figure;
use super::world::World;
use super::{Options as BenchOptions, given};

/// The flags of the bare loop.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Create Jobs from this manifest
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    manifest: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Claim the runs of this API
    #[arg(long, conflicts_with = "manifest")]
    api: Option<String>,
    #[arg(long)]
    runs: usize,
    #[arg(long)]
    concurrency: usize,
}

/// The rate of bare Job creations: the manifest that the agent makes, the same concurrency, no
/// Prefect API.
pub(super) async fn jobs(
    options: &BenchOptions,
    runs: usize,
    agent: &Agent,
) -> Result<Vec<Figure>> {
    let world = World::start(options, false).await?;
    let run_config = world.path().join("run-config.json");
    std::fs::write(&run_config, r#"{"type": "KubernetesRun"}"#)?;
    let mut render = Command::new(agent.program());
    render
        .args(["render", "-o", "json", "--namespace", &world.namespace])
        .arg("--run-config")
        .arg(&run_config)
        .env("HOME", world.path());
    if let Some(template) = &world.template {
        render.arg("--job-template").arg(template);
    }
    let rendered = render.output().await.context("cannot run the agent")?;
    ensure!(
        rendered.status.success(),
        "the agent renders no Job: {}",
        String::from_utf8_lossy(&rendered.stderr)
    );
    let manifest = world.path().join("job.json");
    std::fs::write(&manifest, rendered.stdout)?;
    let mut command = itself(options, runs)?;
    command
        .arg("--manifest")
        .arg(&manifest)
        .arg("--kubeconfig")
        .arg(&world.kubeconfig)
        .args(["--namespace", &world.namespace]);
    let figures = figures(command, runs).await?;
    world.created(runs).await?;
    world.end().await?;
    Ok(figures)
}

/// The rate of the GraphQL calls of a deployment alone: queue, runs, claims.
pub(super) async fn calls(options: &BenchOptions, runs: usize) -> Result<Vec<Figure>> {
    let world = World::start(&testkit(options), false).await?;
    world.seed(runs);
    let mut command = itself(options, runs)?;
    command.args(["--api", &world.prefect.url()]);
    let figures = figures(command, runs).await?;
    let claimed = world.prefect.count_in_state("Submitted");
    ensure!(claimed == runs, "{claimed} of {runs} runs were claimed");
    Ok(figures)
}

/// The Prefect API is the testkit's in any case.
fn testkit(options: &BenchOptions) -> BenchOptions {
    BenchOptions {
        kubeconfig: None,
        ..options.clone()
    }
}

fn itself(options: &BenchOptions, runs: usize) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["bench-raw", "--runs", &runs.to_string()])
        .args(["--concurrency", &options.concurrency.to_string()]);
    Ok(command)
}

async fn figures(mut command: Command, runs: usize) -> Result<Vec<Figure>> {
    let output = command.stderr(Stdio::inherit()).output().await?;
    ensure!(output.status.success(), "the bare loop failed");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let seconds = |name: &str| told[name].as_f64().context("the bare loop told no time");
    let (took, cpu, runs) = (seconds("took")?, seconds("cpu")?, runs as f64);
    Ok(vec![
        Figure::new("rate", "runs/s", runs / took),
        Figure::new("CPU per run", "ms", cpu * 1e3 / runs),
    ])
}

/// Makes the calls, and prints how long that took.
pub(crate) async fn run(options: Options) -> Result<()> {
    let took = match (&options.manifest, &options.kubeconfig, &options.api) {
        (Some(manifest), Some(kubeconfig), _) => {
            let manifest = serde_json::from_slice(&std::fs::read(manifest)?)?;
            let client = given::client(kubeconfig).await?;
            create(&options, client, &manifest).await?
        }
        (_, _, Some(api)) => claim(&options, api).await?,
        _ => anyhow::bail!("give a manifest and a kubeconfig, or an API"),
    };
    let cpu = Usage::of(std::process::id())?.cpu;
    println!(
        "{}",
        json!({"took": took.as_secs_f64(), "cpu": cpu.as_secs_f64()})
    );
    Ok(())
}

async fn create(options: &Options, client: kube::Client, manifest: &Value) -> Result<Duration> {
    let path = format!("/apis/batch/v1/namespaces/{}/jobs", options.namespace);
    let bodies: Vec<Vec<u8>> = (0..options.runs)
        .map(|n| {
            let mut job = manifest.clone();
            let run = json!(Uuid::new_v4());
            job["metadata"]["name"] = json!(format!("raw-{n}"));
            job["metadata"]["labels"]["prefect.io/flow_run_id"] = run.clone();
            job["spec"]["template"]["metadata"]["labels"]["prefect.io/flow_run_id"] = run;
            serde_json::to_vec(&job)
        })
        .collect::<Result<_, _>>()?;
    let began = Instant::now();
    stream::iter(bodies)
        .map(|body| {
            let (client, path) = (&client, &path);
            async move {
                let json = "application/json";
                let request = Request::post(path).header(http::header::CONTENT_TYPE, json);
                client.request_text(request.body(body)?).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(options.concurrency)
        .try_collect::<()>()
        .await?;
    Ok(began.elapsed())
}

async fn claim(options: &Options, api: &str) -> Result<Duration> {
    let api = PrefectApi::new(ApiSettings::new(api, Backend::Server));
    let api = api.map_err(anyhow::Error::msg)?;
    api.register().await?;
    let began = Instant::now();
    let mut claimed = 0;
    while claimed < options.runs {
        let now = Timestamp::now();
        let query = ReadyQuery {
            before: now + SignedDuration::from_secs(10),
            known: &HashSet::new(),
            limit: usize::MAX,
        };
        let ready = api.ready(query).await?;
        ensure!(!ready.runs.is_empty(), "the queue is empty");
        claimed += ready.runs.len();
        stream::iter(&ready.runs)
            .map(|run| api.claim(run))
            .buffer_unordered(options.concurrency)
            .try_collect::<Vec<_>>()
            .await?;
    }
    Ok(began.elapsed())
}
