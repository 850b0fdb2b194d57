//! `agent-cli start`: connects both sides, says what it will do, and runs the agent.

use std::path::PathBuf;
use std::sync::Arc;

use agent_api_client::PrefectApi;
use agent_core::{Agent, FlowRunSource, Registration};
use agent_k8s::{Cluster, KubernetesBackend, Manifests};
use agent_templates::Templates;
use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use crate::settings::Settings;
use crate::{endpoint, metrics};

/// Runs the agent until it is told to stop.
///
/// # Errors
/// One sentence when the cluster or the API cannot be used, before anything is deployed.
pub async fn run(mut settings: Settings) -> Result<()> {
    let mut shutdown = Box::pin(signals()?);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let begun = tokio::select! {
        begun = connect(&settings) => begun?,
        () = &mut shutdown => {
            tracing::info!("The agent has stopped");
            return Ok(());
        }
    };
    let (cluster, api, registration) = begun;
    settings.manifest.tenant_id = registration.tenant.clone();
    tracing::info!(
        api = registration.address,
        tenant = registration.tenant,
        agent_id = registration.agent_id,
        cluster = cluster.address,
        version = cluster.version,
        namespace = settings.namespace,
        "Starting {} with labels {}",
        settings.name,
        settings.manifest.labels,
    );
    let lease = settings.lease_of(&registration.tenant);
    let metrics = settings.agent_address.map(|_| metrics::collect());
    let metrics = metrics.transpose()?;
    let backend = KubernetesBackend::new(
        cluster.client,
        &settings.namespace,
        Manifests::new(
            settings.manifest,
            Arc::new(Templates::new(settings.templates)),
        ),
    )
    .with_graces(settings.graces)
    .with_output_lines(settings.output_lines)
    .with_kept_jobs(!settings.delete_finished_jobs)
    .with_lease(lease, identity(), settings.lease_duration);
    let agent = Agent::builder(api, Arc::new(backend))
        .name(&settings.name)
        .concurrency(settings.concurrency)
        .max_polls(settings.max_polls)
        .delete_finished_jobs(settings.delete_finished_jobs)
        .keep_jobs(settings.keep_jobs.0, settings.keep_jobs.1)
        .cancel_grace(settings.cancel_grace)
        .max_in_flight(settings.max_in_flight)
        .submit_retry_budget(settings.submit_retry_budget)
        .take_over_after(settings.lease_duration.mul_f64(5.0 / 3.0))
        .journal(journal(&registration.agent_id))
        .build();
    if let Some((address, metrics)) = settings.agent_address.zip(metrics) {
        endpoint::serve(address, agent.health(), metrics).await?;
    }
    tracing::info!("Waiting for flow runs...");
    agent.run(shutdown).await?;
    tracing::info!("The agent has stopped");
    Ok(())
}

/// Variable that names the folder in which the agent keeps which runs it is creating Jobs for.
const STATE_DIR: &str = "PREFECT_AGENT_STATE_DIR";

/// Returns where the agent's journal is, if there is a place for it: a folder that outlives the process,
/// by default in Prefect's own.
fn journal(agent_id: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(STATE_DIR).filter(|folder| !folder.is_empty());
    let folder = folder.map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
        Some(PathBuf::from(home).join(".prefect").join("agent-state"))
    })?;
    // It names a file, whatever the API calls the agent.
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let name: String = agent_id.chars().filter(is_plain).take(64).collect();
    Some(folder.join(name))
}

/// Connects to both sides.
async fn connect(settings: &Settings) -> Result<(Cluster, Arc<PrefectApi>, Registration)> {
    let cluster = agent_k8s::connect().await.map_err(|error| anyhow!(error))?;
    let mut api = settings.api()?;
    api.place = Some(format!("{} in {}", settings.namespace, cluster.id));
    let api = PrefectApi::new(api).map_err(|error| anyhow!(error))?;
    let registration = api.register().await?;
    Ok((cluster, Arc::new(api), registration))
}

/// This process's name in the Lease.
fn identity() -> String {
    let host = hostname::get().unwrap_or_default();
    let process = uuid::Uuid::new_v4();
    format!("{}_{process}", host.to_string_lossy())
}

/// Completes at the first SIGINT or SIGTERM; a second one ends the process at once.
fn signals() -> Result<impl Future<Output = ()> + Send> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let (told, tell) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!("{name} received! Shutting down...");
        let _ = told.send(());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::warn!("A second signal was received; ending at once");
        std::process::exit(130);
    });
    Ok(async move {
        let _ = tell.await;
    })
}
