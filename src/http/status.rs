//! What is only read: the probes, the status and the metrics.

use axum::{
    extract::State as Extract,
    http::{Extensions, HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{State, guard::may_see_reasons, json, refused};
use crate::{
    base::metrics,
    gateway::status::Pages,
    gateway::status::{Standing, Status},
    journal::Health,
    journal::Journal,
};

pub(super) async fn readyz(
    Extract(state): Extract<State>,
    extensions: Extensions,
    headers: HeaderMap,
) -> Response {
    let reasons = state.status.look(Pages::reasons);
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let shown = may_see_reasons(&state, &extensions, &headers).await;
    let reasons = if shown { format!("\n{}", reasons.join("\n")) } else { String::new() };
    refused(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready{reasons}"))
}

pub(super) async fn status(Extract(state): Extract<State>) -> Response {
    gauges(&state.status, &state.journal);
    let pages = state.status.pages();
    let reasons = pages.reasons();
    let figures = state.journal.figures();
    let health = match &figures.health {
        Health::Sound => "sound".to_owned(),
        Health::MemoryOnly => "memory only".to_owned(),
        Health::Degraded(why) => format!("degraded: {why}"),
    };
    let access = state.access.borrow().clone();
    let status = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "journal": {
            "health": health, "oldest": figures.oldest, "last": figures.last,
            "written": figures.written, "synced": figures.synced, "bytes": figures.size,
            "memory_bytes": figures.memory,
        },
        "dead_letters": state.journal.dead_letter_counts(),
        // Whether anything can be changed here at all.
        "admin": access.admin_token.is_some(),
        "pages": pages,
    });
    json(StatusCode::OK, &status)
}

pub(super) async fn metrics(Extract(state): Extract<State>) -> Response {
    let Some(metrics) = &state.metrics else {
        return StatusCode::NOT_FOUND.into_response();
    };
    gauges(&state.status, &state.journal);
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, metrics.render()).into_response()
}

/// Metrics of the journal and the sinks that are read off, not counted.
fn gauges(status: &Status, journal: &Journal) {
    use ::metrics::gauge;
    let figures = journal.figures();
    let real = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    gauge!(metrics::JOURNAL_BYTES).set(real(figures.size));
    let sound = matches!(figures.health, Health::Sound);
    gauge!(metrics::JOURNAL_SOUND).set(f64::from(u8::from(sound)));
    let sinks: Vec<String> = status.look(|pages| pages.sinks.keys().cloned().collect());
    for sink in &sinks {
        let (events, waits) = journal.lag(sink);
        let seconds = waits.as_secs_f64();
        gauge!(metrics::LAG_EVENTS, "sink" => sink.clone()).set(real(events));
        gauge!(metrics::LAG_SECONDS, "sink" => sink.clone()).set(seconds);
        status.sink(sink, |page| {
            page.lag_events = events;
            page.lag_seconds = seconds;
        });
    }
    let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    status.look(|pages| {
        let open = pages.connections.values().filter(|connection| connection.state.is_open());
        gauge!(metrics::CONNECTIONS).set(count(open.count()));
        for state in Standing::ALL {
            let number = pages.subscriptions().filter(|one| one.state == state).count();
            gauge!(metrics::SUBSCRIPTIONS, "state" => state.as_str()).set(count(number));
        }
    });
}
