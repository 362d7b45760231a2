//! The local HTTP endpoint: `/livez`, `/readyz`, `/status`, `/metrics`, and `/events` (server-sent
//! events). It reads what the other parts say of themselves, and changes nothing.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State as Extract},
    http::{StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event as SseEvent, KeepAlive},
    },
    routing::get,
};
use futures_util::{Stream, stream};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use tokio::{net::TcpListener, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    event::Seq,
    journal::{Batch, Journal},
    relay::gauges,
    route::Pattern,
    status::Status,
};

/// Histograms are condensed this often, scraped or not: otherwise they grow.
const UPKEEP: Duration = Duration::from_secs(5);

/// Events read for a follower at once.
const FOLLOW: usize = 256;

/// Bytes of events read for a follower at once.
const FOLLOW_BYTES: usize = 256 * 1024;

/// What the endpoint shows.
#[derive(Clone)]
pub struct State {
    /// What every part says of itself.
    pub status: Arc<Status>,
    /// The journal.
    pub journal: Journal,
    /// The metrics; `None` in a process that has none.
    pub metrics: Option<PrometheusHandle>,
    /// The configured sinks.
    pub sinks: Vec<String>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} sinks)", self.sinks.len())
    }
}

/// Serves until it is told to stop.
pub async fn serve(listener: Arc<TcpListener>, state: State, stop: CancellationToken) {
    let app = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/events", get(events))
        .with_state((state.clone(), stop.clone()));
    let serving =
        axum::serve(Shared(listener), app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let mut upkeep = interval(UPKEEP);
    let upkeeping = async {
        loop {
            upkeep.tick().await;
            if let Some(metrics) = &state.metrics {
                metrics.run_upkeep();
            }
        }
    };
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                error!(%error, "the endpoint failed");
            }
        }
        () = upkeeping => {}
    }
}

type Parts = Extract<(State, CancellationToken)>;

async fn readyz(Extract((state, _)): Parts) -> Response {
    let reasons = state.status.pages().reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n")))
        .into_response()
}

async fn status(Extract((state, _)): Parts) -> Response {
    gauges(&state.status, &state.journal, &state.sinks);
    let pages = state.status.pages();
    let reasons = pages.reasons();
    let figures = state.journal.figures();
    let health = match &figures.health {
        crate::journal::Health::Sound => "sound".to_owned(),
        crate::journal::Health::MemoryOnly => "memory only".to_owned(),
        crate::journal::Health::Degraded(why) => format!("degraded: {why}"),
    };
    Json(serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "journal": {
            "health": health, "oldest": figures.oldest, "last": figures.last,
            "written": figures.written, "synced": figures.synced, "bytes": figures.size,
            "memory_bytes": figures.memory,
        },
        "dead_letters": state.journal.dead_letter_counts(),
        "pages": pages,
    }))
    .into_response()
}

async fn metrics(Extract((state, _)): Parts) -> Response {
    let Some(metrics) = &state.metrics else {
        return StatusCode::NOT_FOUND.into_response();
    };
    gauges(&state.status, &state.journal, &state.sinks);
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, metrics.render()).into_response()
}

#[derive(Debug, Deserialize)]
struct Follow {
    topic: Option<String>,
}

async fn events(
    Extract((state, stop)): Parts,
    Query(follow): Query<Follow>,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, (StatusCode, String)> {
    let pattern = follow.topic.as_deref().map(Pattern::parse).transpose();
    let pattern = pattern.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let after = state.journal.figures().last;
    let follower =
        Follower { journal: state.journal, stop, after, batch: Batch::default(), pattern };
    Ok(Sse::new(stream::unfold(follower, Follower::next)).keep_alive(KeepAlive::default()))
}

/// Somebody who watches events go by. One that reads slowly misses some and harms nobody.
struct Follower {
    journal: Journal,
    stop: CancellationToken,
    after: Seq,
    batch: Batch,
    pattern: Option<Pattern>,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<SseEvent, Infallible>, Self)> {
        loop {
            while !self.batch.records.is_empty() {
                let record = self.batch.records.remove(0);
                let event = &record.event;
                if self.pattern.as_ref().is_none_or(|pattern| pattern.matches(&event.topic)) {
                    let message =
                        String::from_utf8_lossy(&event.message).replace(['\n', '\r'], " ");
                    let sse = SseEvent::default().id(&*event.id).event(&*event.topic).data(message);
                    return Some((Ok(sse), self));
                }
            }
            let next = self.journal.next(self.after, FOLLOW, FOLLOW_BYTES);
            let batch = tokio::select! {
                () = self.stop.cancelled() => return None,
                batch = next => batch.ok()?,
            };
            self.after = batch.through;
            self.batch = batch;
        }
    }
}

/// A listener that outlives the server on it, so that the server can be started again.
struct Shared(Arc<TcpListener>);

impl axum::serve::Listener for Shared {
    type Io = tokio::net::TcpStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        /// Out of descriptors, most likely: they come back.
        const WAIT: Duration = Duration::from_millis(100);
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    error!(%error, "cannot accept a connection");
                    tokio::time::sleep(WAIT).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}
