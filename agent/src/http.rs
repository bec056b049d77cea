//! `/livez`, `/readyz`, `/metrics` and `/status`, on every agent.

use std::{sync::Arc, time::Instant};

use async_nats::{Client, connection::State};
use axum::{Json, Router, extract, http::StatusCode, response::IntoResponse, routing::get};
use coordinator::{ledger::Report, registry::ChildStatus};
use hierarchy::{Path, rollup::Health};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::store::StoreState,
    link::{uplink::UplinkState, watchdog::Stuck},
    metrics::Metrics,
    replicas::ReplicaState,
    status::{Addresses, Status},
};

/// What the answers are made of.
pub struct Facts {
    /// Where the agent stands.
    pub path: Path,
    /// Its nats-server's version.
    pub nats_server: String,
    /// When it was started.
    pub started: Instant,
    /// Where it can be reached.
    pub addresses: Addresses,
    /// The connection in account MESH.
    pub mesh: Client,
    /// How it fares.
    pub health: watch::Receiver<Health>,
    /// How the own store fares.
    pub store: watch::Receiver<StoreState>,
    /// The link to the parent.
    pub uplink: Option<watch::Receiver<UplinkState>>,
    /// What is wrong with the link.
    pub stuck: watch::Receiver<Option<Stuck>>,
    /// Its children.
    pub children: watch::Receiver<Vec<ChildStatus>>,
    /// What became of all events; only global knows.
    pub losses: watch::Receiver<Option<Report>>,
    /// How the replicas of this path stand; `None` where there is one agent alone.
    pub replica: Option<watch::Receiver<ReplicaState>>,
    /// What it counts.
    pub metrics: Metrics,
}

/// Serves until cancelled.
pub async fn run(listener: TcpListener, facts: Arc<Facts>, cancel: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/losses", get(losses))
        .with_state(facts);
    axum::serve(listener, router).with_graceful_shutdown(async move { cancel.cancelled().await }).await
}

type Known = extract::State<Arc<Facts>>;

/// Serves until cancelled while there is no room to start in: alive, and not ready.
pub async fn run_waiting(
    listener: TcpListener,
    reason: String,
    cancel: CancellationToken,
) -> std::io::Result<()> {
    let ready = move || async move {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "ready": false, "natsServer": false, "store": reason })),
        )
    };
    let router = Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(ready));
    axum::serve(listener, router).with_graceful_shutdown(async move { cancel.cancelled().await }).await
}

/// Ready means that events are taken: the own server is there and stores. A cut link does not make an agent
/// unready, since working on without a parent is what it is for. Nor does standing by: a replica that is ready
/// to act is what whoever restarts one after the other has to wait for.
async fn ready(facts: Known) -> impl IntoResponse {
    let connected = facts.mesh.connection_state() == State::Connected;
    let uplink = facts.uplink.as_ref().map(|uplink| uplink.borrow().open);
    let trouble = facts.store.borrow().trouble.clone();
    let ready = connected && trouble.is_none();
    let acts = facts.replica.as_ref().map(|replica| replica.borrow().acts);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (
        code,
        Json(json!({ "ready": ready, "natsServer": connected, "store": trouble, "parentLink": uplink,
        "linkStuck": *facts.stuck.borrow(), "acts": acts })),
    )
}

async fn metrics(facts: Known) -> impl IntoResponse {
    let content_type = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (content_type, facts.metrics.encode())
}

/// 404 where nobody knows: below global, and before global has looked.
async fn losses(facts: Known) -> Result<Json<Report>, StatusCode> {
    facts.losses.borrow().clone().map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn status(facts: Known) -> Json<Status> {
    Json(Status {
        path: facts.path.clone(),
        level: facts.path.level(),
        version: crate::VERSION.to_owned(),
        nats_server: facts.nats_server.clone(),
        health: *facts.health.borrow(),
        uptime_seconds: facts.started.elapsed().as_secs(),
        refused: facts.metrics.refused_total(),
        store: facts.store.borrow().clone(),
        parent: facts.uplink.as_ref().map(|uplink| uplink.borrow().clone()),
        link_stuck: facts.stuck.borrow().clone(),
        replica: facts.replica.as_ref().map(|replica| replica.borrow().clone()),
        children: facts.children.borrow().clone(),
        addresses: facts.addresses.clone(),
    })
}
