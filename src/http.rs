//! The local HTTP endpoint: probes, status, metrics, live events, dead letters, reload, and a page
//! that shows them.
//!
//! It reads what the other parts report, and keeps nothing but the figures of the last day ([`history`]). It
//! changes nothing itself: dead letters are
//! requests in the journal's file, a reload and a command are requests to the tasks that execute them.
//!
//! [`guard`] stands before every route and decides by the request alone who may do what: on a new route,
//! too, a change needs the token. Requests are served within the one task that the supervisor started: a
//! panic in one ends that connection, not the task.

mod actions;
mod attempts;
mod commands;
mod connections;
mod dead_letters;
mod events;
mod guard;
pub mod health;
pub(crate) mod history;
mod page;
pub mod relay_status;
mod reloads;
mod sessions;
mod status;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State as Extract},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    base::text,
    channel::store::StateStore,
    command::CommandQueue,
    config::{self, Config},
    journal::Journal,
};

pub use self::{
    attempts::Attempts,
    guard::ExposedWithoutToken,
    history::History,
    reloads::{Reloads, Request},
};
pub(crate) use self::{
    guard::constant_time_eq,
    page::{BASE_SCRIPT, Document, STYLE},
    status::lag,
};

/// The largest body: a list of some thousand dead letters' numbers.
const BODY: usize = 64 * 1024;

/// Bytes of a line of an answer in text, and lines of it: a reason for each of many subscriptions.
const LINE: usize = 1000;
const LINES: usize = 1000;

/// What the handlers share.
#[derive(Clone)]
pub struct State {
    /// What every part says of itself.
    pub status: Arc<relay_status::RelayStatus>,
    pub journal: Journal,
    /// Its directory, for requests about dead letters; `None` where it lives in memory.
    pub dir: Option<PathBuf>,
    /// The metrics; `None` in a process that has none.
    pub metrics: Option<PrometheusHandle>,
    /// Who may do what; changes with a reload.
    pub access: watch::Receiver<config::Http>,
    /// The configuration that runs.
    pub config: watch::Receiver<Arc<Config>>,
    /// What the session of each channel is now.
    pub store: Arc<StateStore>,
    pub history: Arc<History>,
    /// Reloads the configuration; `None` where it came from no file.
    pub reloads: Option<Reloads>,
    /// Where commands go.
    pub commands: CommandQueue,
    /// Where it listens.
    pub address: SocketAddr,
    /// Followers of events that may still come.
    pub followers: Arc<Semaphore>,
    /// Ends what would go on for ever.
    pub stop: CancellationToken,
    /// Wrong tokens that were presented.
    pub attempts: Arc<Attempts>,
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

/// Serves until `stop`.
pub async fn serve(listener: Arc<TcpListener>, mut state: State, stop: CancellationToken) {
    state.stop = stop.clone();
    connections::serve(&listener, routes(state), &stop).await;
}

fn routes(state: State) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(status::readyz))
        .route("/status", get(status::status))
        .route("/metrics", get(status::metrics))
        .route("/events", get(events::events))
        .route("/api/dead-letters", get(dead_letters::list))
        .route("/api/dead-letters/retry", post(dead_letters::retry))
        .route("/api/admin", post(actions::admin))
        .route("/api/history", get(history::history))
        .route("/api/replay", post(actions::replay))
        .route("/api/sessions", get(sessions::sessions))
        .route("/api/sessions/{channel}/refresh", post(commands::refresh))
        .route("/api/sinks/{name}/retry", post(actions::retry_sink))
        .route("/api/test", post(actions::test))
        .route("/api/dead-letters/drop", post(dead_letters::drop))
        .route("/channels/{channel}/{*command}", post(commands::command))
        .route("/reload", post(reload))
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}

async fn reload(Extract(state): Extract<State>) -> Response {
    let Some(reloads) = state.reloads else {
        return refused(StatusCode::CONFLICT, "there is no configuration to reload");
    };
    match reloads.request("http").await {
        None => refused(StatusCode::SERVICE_UNAVAILABLE, "the relay is stopping"),
        Some(report) if report.problems.is_empty() => json(StatusCode::OK, &report),
        Some(report) => json(StatusCode::UNPROCESSABLE_ENTITY, &report),
    }
}

/// An answer for a human: lines of text. What others wrote in it is cut and does nothing.
fn refused(status: StatusCode, why: &str) -> Response {
    let lines = why.lines().take(LINES).map(|line| format!("{}\n", text::excerpt(line, LINE)));
    (status, lines.collect::<String>()).into_response()
}

/// An answer in JSON. `curl` writes it on a terminal: nothing in it does anything there.
fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let Ok(json) = serde_json::to_string(value) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, text::harmless_json(&json).into_owned()).into_response()
}
