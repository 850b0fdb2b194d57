//! The agent's metrics, in Prometheus' text format.

use std::time::Duration;

use agent_core::AgentStatus;
use anyhow::{Context, Result};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// How often what histograms have taken in is summed up, whether somebody asks for it or not.
const UPKEEP: Duration = Duration::from_secs(5);
/// Upper bounds of the deploy latency, in seconds: from a run that was in hand before its start
/// time to a backlog of an hour.
const DEPLOY: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 600.0, 3600.0,
];
/// Upper bounds of the duration of a request, in seconds; a request ends after 15.
const REQUEST: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0];

const TASKS: &str = "prefect_agent_tasks";
const LONGEST_WAIT: &str = "prefect_agent_longest_wait_for_job_seconds";
const UNCLAIMED: &str = "prefect_agent_unclaimed_seconds";
const STALLED: &str = "prefect_agent_supervision_stalled_seconds";

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in seconds, by size.
    Histogram,
}

/// A metric that the agent exports.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// Its labels with their values, for people.
    pub labels: &'static str,
    /// What it means.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static str,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

/// Every metric of the agent.
pub const METRICS: [Metric; 27] = [
    metric(
        "prefect_agent_build_info",
        Kind::Gauge,
        "`version`",
        "Always 1; tells the agent's version",
    ),
    metric(
        TASKS,
        Kind::Gauge,
        "",
        "Tasks of the agent's runtime that have not ended; as many after a month as after a day",
    ),
    metric(
        "prefect_agent_polls_total",
        Kind::Counter,
        "`outcome`: `answered`, `failed`",
        "Polls of the queue",
    ),
    metric(
        "prefect_agent_queue_length",
        Kind::Gauge,
        "",
        "Flow runs that the API had ready at the last poll; the open-source server shows 25 at most",
    ),
    metric(
        "prefect_agent_runs_in_hand",
        Kind::Gauge,
        "`stage`: `waiting` (for their start time), `due`, `claimed`",
        "Flow runs that the agent is deploying",
    ),
    metric(
        "prefect_agent_claims_total",
        Kind::Counter,
        "`outcome`: `claimed`, `lost` (somebody else was faster), `queued` (a concurrency limit), `failed`",
        "Attempts to claim a flow run",
    ),
    metric(
        "prefect_agent_deployments_total",
        Kind::Counter,
        "`outcome`: `created`, `found` (its Job was there), `adopted` (its earlier Job goes on), `failed`",
        "Deployments of claimed flow runs",
    ),
    metric(
        "prefect_agent_deploy_latency_seconds",
        Kind::Histogram,
        "",
        "Time from a flow run's start time to its Job",
    ),
    metric(
        "prefect_agent_concurrency",
        Kind::Gauge,
        "",
        "Deployments that may go on at the same time; lower than `--concurrency` while a side is overloaded",
    ),
    metric(
        "prefect_agent_recovered_total",
        Kind::Counter,
        "",
        "Claimed flow runs without a Job that were taken up again",
    ),
    metric(
        "prefect_agent_jobs",
        Kind::Gauge,
        "`state`: `active`, `succeeded`, `failed`",
        "Jobs of flow runs in the namespace, of whatever agent",
    ),
    metric(
        "prefect_agent_in_flight",
        Kind::Gauge,
        "",
        "Unfinished Jobs of agents with the labels of this one, and those about to be created",
    ),
    metric(
        "prefect_agent_max_in_flight",
        Kind::Gauge,
        "",
        "How many of these there may be (`--max-in-flight`); missing without a limit",
    ),
    metric(
        "prefect_agent_runs_failed_total",
        Kind::Counter,
        "`by`: `deployment` (it can make no Job), `supervision` (its Job failed or cannot succeed)",
        "Flow runs that the agent set to Failed",
    ),
    metric(
        "prefect_agent_leader",
        Kind::Gauge,
        "",
        "1 while this replica supervises the Jobs, else 0",
    ),
    metric(
        "prefect_agent_watch_restarts_total",
        Kind::Counter,
        "`watch`: `jobs`, `pods`, `events`",
        "Watches that broke off and began again",
    ),
    metric(
        "prefect_agent_api_requests_total",
        Kind::Counter,
        "`operation`; `outcome`: `ok`, `refused`, `unavailable`, `throttled`, `broken`, `unreachable`, `unauthorized`, `conflict`, `malformed`, `too_large`, `internal`, `status`",
        "Requests to the Prefect API",
    ),
    metric(
        "prefect_agent_api_request_seconds",
        Kind::Histogram,
        "`operation`",
        "Duration of requests to the Prefect API",
    ),
    metric(
        "prefect_agent_kubernetes_requests_total",
        Kind::Counter,
        "`verb`; `resource`; `outcome`: `ok`, `conflict`, `refused`, `throttled`, `failed`, `broken`",
        "Requests to the Kubernetes API; a watch counts when it begins",
    ),
    metric(
        "prefect_agent_logs_written_total",
        Kind::Counter,
        "`level`",
        "Entries written to the logs of flow runs",
    ),
    metric(
        "prefect_agent_logs_dropped_total",
        Kind::Counter,
        "`level`; `reason`: `memory` (too many were waiting), `refused` (by the API)",
        "Entries for the logs of flow runs that were not written",
    ),
    metric(
        "prefect_agent_logs_waiting",
        Kind::Gauge,
        "",
        "Entries for the logs of flow runs that wait to be written",
    ),
    metric(
        "prefect_agent_blocked",
        Kind::Gauge,
        "`by`: `agent` (its permissions, credentials or configuration), `side` (the Kubernetes API refuses everybody)",
        "1 while no flow runs are claimed because their Jobs could not be created; the health report has the reason",
    ),
    metric(
        "prefect_agent_runs_waiting_for_job",
        Kind::Gauge,
        "`by`: `run` (its template or its Job is at fault), `agent`, `side`",
        "Claimed flow runs whose Job could not be created yet",
    ),
    metric(
        LONGEST_WAIT,
        Kind::Gauge,
        "",
        "For how long the oldest of them has waited",
    ),
    metric(
        UNCLAIMED,
        Kind::Gauge,
        "",
        "For how long the oldest flow run in hand has been due without being claimed, if for more than a minute",
    ),
    metric(
        STALLED,
        Kind::Gauge,
        "",
        "For how long the supervision has got nowhere although it has work, if for more than five minutes",
    ),
];

/// Begins to collect metrics; what they are can be read from the handle.
///
/// # Errors
/// When metrics are collected already.
pub fn collect() -> Result<PrometheusHandle> {
    let named = |name: &str| Matcher::Full(name.to_owned());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(named("prefect_agent_deploy_latency_seconds"), &DEPLOY)?
        .set_buckets_for_metric(named("prefect_agent_api_request_seconds"), &REQUEST)?
        .install_recorder()
        .context("cannot collect metrics")?;
    for metric in &METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, Unit::Seconds, metric.help),
        }
    }
    metrics::gauge!("prefect_agent_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// What was collected, and what only shows when it is asked for.
pub fn exposition(collected: &PrometheusHandle, status: &AgentStatus) -> String {
    let runtime = tokio::runtime::Handle::current().metrics();
    metrics::gauge!(TASKS).set(runtime.num_alive_tasks() as f64);
    for (name, duration) in [
        (LONGEST_WAIT, status.longest_wait),
        (UNCLAIMED, status.unclaimed_for),
        (STALLED, status.supervision_stalled),
    ] {
        metrics::gauge!(name).set(duration.unwrap_or_default().as_secs_f64());
    }
    collected.render()
}
