//! The local HTTP endpoint: probes, status, metrics, live events, dead letters, reload, and a page
//! that shows them.
//!
//! It reads what the other parts say of themselves. What it changes it asks others for: dead letters
//! in the journal's file, a reload and a command of the tasks that do it. It renders nothing but its
//! one page, and keeps nothing.
//!
//! The one thing to know: [`guard`] stands before every route and decides by the request alone who
//! may do what; a route that is added is closed to changes until it says a token. Requests are served
//! within the one task that the supervisor started: a panic in one ends that connection, not the task.

mod commands;
mod connections;
mod dead_letters;
mod events;
mod guard;
mod page;
mod reading;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State as Extract},
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{command::Intake, config, journal::Journal, reload::Reloads, status::Status};

pub use self::guard::Trouble;

/// The largest body: a list of some thousand dead letters' numbers.
const BODY: usize = 64 * 1024;

/// What the endpoint shows, and whom it asks.
#[derive(Clone)]
pub struct State {
    /// What every part says of itself.
    pub status: Arc<Status>,
    /// The journal.
    pub journal: Journal,
    /// Its directory, for requests about dead letters; `None` where it lives in memory.
    pub dir: Option<PathBuf>,
    /// The metrics; `None` in a process that has none.
    pub metrics: Option<PrometheusHandle>,
    /// Who may ask; changes when the configuration is loaded anew.
    pub access: watch::Receiver<config::Http>,
    /// Who loads the configuration anew; `None` where it did not come from anywhere.
    pub reloads: Option<Reloads>,
    /// Where commands go.
    pub commands: Intake,
    /// Where it listens.
    pub address: SocketAddr,
    /// Followers of events that may still come.
    pub followers: Arc<Semaphore>,
    /// Ends what would go on for ever.
    pub stop: CancellationToken,
}

impl State {
    /// Followers of events at once: each may read the journal's file.
    pub const FOLLOWERS: usize = 32;
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({})", self.address)
    }
}

/// Serves until it is told to stop.
pub async fn serve(listener: Arc<TcpListener>, mut state: State, stop: CancellationToken) {
    state.stop = stop.clone();
    connections::serve(&listener, routes(state), &stop).await;
}

fn routes(state: State) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(reading::readyz))
        .route("/status", get(reading::status))
        .route("/metrics", get(reading::metrics))
        .route("/events", get(events::events))
        .route("/api/dead-letters", get(dead_letters::list))
        .route("/api/dead-letters/retry", post(dead_letters::retry))
        .route("/api/dead-letters/drop", post(dead_letters::let_go))
        .route("/channels/{channel}/{*command}", post(commands::command))
        .route("/reload", post(reload))
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}

async fn reload(Extract(state): Extract<State>) -> Response {
    let Some(reloads) = state.reloads else {
        return refused(StatusCode::CONFLICT, "there is no configuration to load anew");
    };
    match reloads.ask("http").await {
        None => refused(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping"),
        Some(report) if report.problems.is_empty() => Json(report).into_response(),
        Some(report) => (StatusCode::UNPROCESSABLE_ENTITY, Json(report)).into_response(),
    }
}

/// An answer for a human: one line.
fn refused(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}
