//! The HTTP endpoint of the agent: `/api/health`, `/api/live`, `/api/poke` and `/metrics`.

use std::net::SocketAddr;
use std::time::Duration;

use agent_core::AgentHealth;
use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// How old the last answer of the API may be. The longest pause between polls is 10 s, and one
/// poll may retry for 30 s.
const LATELY: Duration = Duration::from_secs(60);

/// What the endpoint tells of.
#[derive(Clone)]
struct Told {
    health: AgentHealth,
    metrics: PrometheusHandle,
}

/// Serves the endpoint until the process ends.
///
/// # Errors
/// When nothing can listen at the address.
pub async fn serve(
    address: SocketAddr,
    health: AgentHealth,
    metrics: PrometheusHandle,
) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at the agent address {address}"))?;
    tracing::info!("Agent API listening on http://{}", listener.local_addr()?);
    let router = Router::new()
        .route("/api/health", get(check))
        .route("/api/live", get(alive))
        .route("/api/poke", get(poke))
        .route("/metrics", get(exposition))
        .with_state(Told { health, metrics });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("The agent API has ended: {error}");
        }
    });
    Ok(())
}

async fn check(State(told): State<Told>) -> impl IntoResponse {
    let status = told.health.status();
    let broken: Value = status
        .broken_watches
        .into_iter()
        .map(|(watch, (since, why))| {
            let broken = json!({"for_seconds": since.as_secs(), "reason": why});
            (watch.to_owned(), broken)
        })
        .collect();
    let mut body = json!({
        "supervises": status.leads,
        "in_flight": status.in_flight,
        "max_in_flight": status.max_in_flight,
        "broken_watches": broken,
    });
    match told.health.check(LATELY) {
        Ok(()) => (StatusCode::OK, Json(body)),
        Err(reason) => {
            body["reason"] = reason.into();
            (StatusCode::SERVICE_UNAVAILABLE, Json(body))
        }
    }
}

async fn alive(State(told): State<Told>) -> impl IntoResponse {
    match told.health.check_alive(LATELY) {
        Ok(()) => (StatusCode::OK, Json(json!({}))),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"reason": reason})),
        ),
    }
}

async fn poke(State(told): State<Told>) {
    told.health.poke();
}

async fn exposition(State(told): State<Told>) -> impl IntoResponse {
    let format = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (format, told.metrics.render())
}
