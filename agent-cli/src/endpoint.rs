//! The HTTP endpoint of the agent: `/api/health`, `/api/live` and `/api/poke`.

use std::net::SocketAddr;
use std::time::Duration;

use agent_core::AgentHealth;
use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

/// How old the last answer of the API may be. The longest pause between polls is 10 s, and one
/// poll may retry for 30 s.
const LATELY: Duration = Duration::from_secs(60);

/// Serves the endpoint until the process ends.
///
/// # Errors
/// When nothing can listen at the address.
pub async fn serve(address: SocketAddr, health: AgentHealth) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at the agent address {address}"))?;
    tracing::info!("Agent API listening on http://{}", listener.local_addr()?);
    let router = Router::new()
        .route("/api/health", get(check))
        .route("/api/live", get(alive))
        .route("/api/poke", get(poke))
        .with_state(health);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("The agent API has ended: {error}");
        }
    });
    Ok(())
}

async fn check(State(health): State<AgentHealth>) -> impl IntoResponse {
    answer(health.check(LATELY))
}

async fn alive(State(health): State<AgentHealth>) -> impl IntoResponse {
    answer(health.check_alive(LATELY))
}

fn answer(health: Result<(), String>) -> impl IntoResponse {
    match health {
        Ok(()) => (StatusCode::OK, Json(json!({}))),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"reason": reason})),
        ),
    }
}

async fn poke(State(health): State<AgentHealth>) {
    health.poke();
}
