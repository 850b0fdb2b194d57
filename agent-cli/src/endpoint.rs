//! The HTTP endpoint of the agent: `/api/health`, `/api/live`, `/api/poke` and `/metrics`.

mod places;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_core::AgentHealth;
use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use self::places::Places;

/// How old the last answer of the API may be. The longest pause between polls is 10 s, and one
/// poll may retry for 30 s.
const LATELY: Duration = Duration::from_secs(60);

/// The shortest time between polls that somebody asked for.
const POKES: Duration = Duration::from_secs(1);
/// Connections at the same time: probes, a scraper or two, a person.
const CONNECTIONS: usize = 64;
/// How long the headers of a request may take, how large they may be, and how long a connection may
/// last in all.
const HEADERS: Duration = Duration::from_secs(5);
const LARGEST_HEADERS: usize = 16 << 10;
const CONNECTION: Duration = Duration::from_secs(60);

/// What the endpoint tells of.
#[derive(Clone)]
struct Told {
    health: AgentHealth,
    metrics: PrometheusHandle,
    poked: Arc<Notify>,
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
    let poked = Arc::new(Notify::new());
    tokio::spawn(pass_on(poked.clone(), health.clone()));
    let told = Told {
        health,
        metrics,
        poked,
    };
    let router = Router::new()
        .route("/api/health", get(check))
        .route("/api/live", get(alive))
        .route("/api/poke", get(poke))
        .route("/metrics", get(exposition))
        .with_state(told);
    tokio::spawn(accept(listener, router));
    Ok(())
}

/// Passes pokes on, at most one a second: all that come meanwhile are one, and none is lost.
async fn pass_on(poked: Arc<Notify>, health: AgentHealth) {
    loop {
        poked.notified().await;
        health.poke();
        tokio::time::sleep(POKES).await;
    }
}

/// Answers connections. Whoever comes is let in, if need be in place of another: a probe that has
/// to wait has failed.
async fn accept(listener: TcpListener, router: Router) {
    let places = Places::new(CONNECTIONS);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, for instance: that passes.
                tracing::warn!("The agent API cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let place = places.take(peer.ip()).await;
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(LARGEST_HEADERS)
            .serve_connection(TokioIo::new(place.watched(stream)), service);
        tokio::spawn(async move {
            // What a client does wrong, or too slowly, ends its connection.
            tokio::select! {
                _ = tokio::time::timeout(CONNECTION, connection) => {}
                () = place.needed() => {}
            }
        });
    }
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
    let waiting: Value = status
        .waiting_for_job
        .into_iter()
        .map(|(concern, runs)| (concern.name().to_owned(), Value::from(runs)))
        .collect();
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs());
    let mut body = json!({
        "supervises": status.leads,
        "in_flight": status.in_flight,
        "max_in_flight": status.max_in_flight,
        "broken_watches": broken,
        "runs_waiting_for_job": waiting,
        "longest_wait_seconds": seconds(status.longest_wait),
        "unclaimed_seconds": seconds(status.unclaimed_for),
        "supervision_stalled_seconds": seconds(status.supervision_stalled),
    });
    if let Some((concern, since, reason)) = status.blocked {
        body["blocked"] = json!({
            "by": concern.name(), "for_seconds": since.as_secs(), "reason": reason,
        });
    }
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
    told.poked.notify_one();
}

async fn exposition(State(told): State<Told>) -> impl IntoResponse {
    let format = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (
        format,
        crate::metrics::exposition(&told.metrics, &told.health.status()),
    )
}
