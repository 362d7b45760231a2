//! What is only read: the probes, the status and the metrics.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Extension,
    extract::State as Extract,
    http::{Extensions, HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    State,
    guard::{Trusted, may_see_reasons},
    health, json, refused,
    relay_status::{Reason, RelayStatus, Snapshot},
};
use crate::{
    astro::session::SubscriptionState,
    base::metrics,
    delivery::status::STANDBY,
    journal::{Health, Journal},
};

pub(super) async fn readyz(
    Extract(state): Extract<State>,
    extensions: Extensions,
    headers: HeaderMap,
) -> Response {
    let snapshot = state.status.snapshot();
    let health = state.status.health(&snapshot);
    let word = health.state.as_str();
    if health.state == health::State::Working {
        return format!("{word}\n").into_response();
    }
    let shown = may_see_reasons(&state, &extensions, &headers).await;
    let reasons = if shown { snapshot.reasons().join("\n") } else { String::new() };
    refused(StatusCode::SERVICE_UNAVAILABLE, format!("{word}\n{reasons}").trim_end())
}

pub(super) async fn status(
    Extract(state): Extract<State>,
    trusted: Option<Extension<Trusted>>,
) -> Response {
    let snapshot = state.status.snapshot();
    gauges(&snapshot, &state.status, &state.journal);
    let health = state.status.health(&snapshot);
    let reasons = snapshot.reasons();
    let figures = state.journal.figures();
    let journal = match &figures.health {
        Health::Sound => health::State::Working.as_str().to_owned(),
        Health::MemoryOnly => "memory only".to_owned(),
        Health::Degraded(why) => format!("degraded: {why}"),
    };
    let access = state.access.borrow().clone();
    let status = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "health": health,
        "ready": health.state == health::State::Working,
        "reasons": reasons,
        "journal": {
            "health": journal, "oldest": figures.oldest, "last": figures.last,
            "events": figures.events, "written": figures.written, "synced": figures.synced, "bytes": figures.size,
            "memory_bytes": figures.memory,
        },
        "dead_letters": state.status.dead_letter_counts(),
        // Whether anything can be changed here at all.
        "admin": access.admin_token.is_some() || trusted.is_some(),
        "pages": snapshot.to_json(|sink| lag(&state.status, &state.journal, sink)),
    });
    json(StatusCode::OK, &status)
}

pub(super) async fn metrics(Extract(state): Extract<State>) -> Response {
    let Some(metrics) = &state.metrics else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let snapshot = state.status.snapshot();
    gauges(&snapshot, &state.status, &state.journal);
    let health = state.status.health(&snapshot).state;
    for word in health::State::ALL {
        let holds = f64::from(u8::from(word == health));
        ::metrics::gauge!(metrics::HEALTH, "state" => word.as_str()).set(holds);
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, metrics.render()).into_response()
}

/// What a sink has still to get, and how long the oldest of that waits. In a cluster it is known of the
/// sinks that are driven here.
pub(crate) fn lag(status: &RelayStatus, journal: &Journal, sink: &str) -> (u64, Duration) {
    match status.cluster() {
        Some(cluster) => cluster.lag(sink).unwrap_or_default(),
        None => journal.lag(sink),
    }
}

/// A number as metrics have them: exact up to 2^53.
fn real(number: u64) -> f64 {
    let word = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    word(number >> 32) * 4_294_967_296.0 + word(number & u64::from(u32::MAX))
}

/// Metrics of the journal and the sinks that are read off, not counted.
fn gauges(snapshot: &Snapshot, status: &RelayStatus, journal: &Journal) {
    use ::metrics::gauge;
    let figures = journal.figures();
    gauge!(metrics::JOURNAL_BYTES).set(real(figures.size));
    // What is in memory only because that is configured is as it should be.
    let sound = !matches!(figures.health, Health::Degraded(_));
    gauge!(metrics::JOURNAL_SOUND).set(f64::from(u8::from(sound)));
    let mut letters_of = status.counted_letters();
    for (sink, page) in &snapshot.sinks.sinks {
        // What another member drives, that one counts.
        let driven = page.state != STANDBY;
        let (events, waits) = if driven { lag(status, journal, sink) } else { Default::default() };
        let letters = letters_of.remove(sink).filter(|_| driven).unwrap_or(0);
        gauge!(metrics::DEAD_LETTERS_WAITING, "sink" => sink.clone()).set(real(letters));
        gauge!(metrics::LAG_EVENTS, "sink" => sink.clone()).set(real(events));
        gauge!(metrics::LAG_SECONDS, "sink" => sink.clone()).set(waits.as_secs_f64());
        // Of one that is busy it becomes 0 with time alone.
        let up = f64::from(u8::from(page.delivers()));
        gauge!(metrics::SINK_UP, "sink" => sink.clone()).set(up);
    }
    // Those of a sink that is no longer configured. In a cluster every member has the same count of them.
    let removed = letters_of.into_iter().filter(|_| status.cluster().is_none());
    for (sink, letters) in removed {
        gauge!(metrics::DEAD_LETTERS_WAITING, "sink" => sink).set(real(letters));
    }
    for (label, token) in &snapshot.tokens {
        let times = [
            (metrics::TOKEN_EXPIRY, token.expires_at),
            (metrics::TOKEN_REFRESHED, token.refreshed_at),
        ];
        for (name, at) in times {
            // A token that replaces another may not say when it expires.
            let at = at.map_or(f64::NAN, |at| real(at / 1000));
            gauge!(name, "channel" => label.clone()).set(at);
        }
    }
    if let Some(at) = snapshot.gateway.last_event {
        gauge!(metrics::LAST_EVENT).set(Duration::from_millis(at).as_secs_f64());
    }
    let mut reasons: BTreeMap<&str, usize> = Reason::KINDS.iter().map(|kind| (*kind, 0)).collect();
    for reason in snapshot.why() {
        *reasons.entry(reason.kind()).or_default() += 1;
    }
    for (kind, number) in reasons {
        gauge!(metrics::HEALTH_REASONS, "kind" => kind.to_owned()).set(real(number as u64));
    }
    if let Some(cluster) = status.cluster() {
        cluster.gauges();
    }
    let state = &snapshot.gateway;
    gauge!(metrics::CONNECTIONS).set(real(state.open_connections() as u64));
    for word in SubscriptionState::WORDS {
        let number = state.assigned().filter(|(_, row)| row.state.as_str() == word).count();
        gauge!(metrics::SUBSCRIPTIONS, "state" => word).set(real(number as u64));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::{
        base::{
            clock::Moment,
            event::{self, Record},
        },
        config,
        delivery::status::Sink,
    };

    #[test]
    fn a_journal_that_is_in_memory_by_configuration_is_sound() {
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            let journal = Journal::in_memory(1 << 20);
            gauges(&Snapshot::default(), &RelayStatus::default(), &journal);
        });
        let text = recorder.handle().render();
        assert!(text.contains("astro_relay_journal_sound 1"), "{text}");
    }

    #[test]
    fn a_sink_that_stays_busy_and_accepts_nothing_is_not_up() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let journal = Journal::in_memory(1 << 20);
        // The last one works again.
        for (state, ago, up) in [("busy", 0, 1), ("busy", 120, 0), ("up", 120, 1)] {
            let mut snapshot = Snapshot::default();
            let left_up = Some(Moment::now().before(Duration::from_secs(ago)));
            let sink = Sink { state, left_up, ..Sink::default() };
            snapshot.sinks.sinks.insert("hook".to_owned(), sink);
            ::metrics::with_local_recorder(&recorder, || {
                gauges(&snapshot, &RelayStatus::default(), &journal);
            });
            let text = recorder.handle().render();
            let line = format!("astro_relay_sink_up{{sink=\"hook\"}} {up}\n");
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn dead_letters_of_a_sink_that_is_no_longer_configured_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::Journal { dir: dir.path().to_owned(), ..config::Journal::default() };
        let (journal, _) = Journal::open(&config).unwrap();
        let event = event::own("relay.gap", &"".into(), &"".into(), &serde_json::json!({}), 1);
        journal.dead_letter("removed", &Arc::new(Record::new(1, event)), "HTTP 400");
        let status = RelayStatus::new(0).with(journal.clone(), String::new());
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            gauges(&status.snapshot(), &status, &journal);
        });
        let text = recorder.handle().render();
        let line = "astro_relay_dead_letters_waiting{sink=\"removed\"} 1\n";
        assert!(text.contains(line), "{text}");
        journal.close();
    }

    #[test]
    fn large_numbers_are_exact() {
        for (number, expected) in
            [(0, 0.0), (7, 7.0), (5_000_000_000, 5e9), (1 << 53, 9_007_199_254_740_992.0)]
        {
            assert_eq!(real(number).to_bits(), f64::to_bits(expected), "{number}");
        }
    }
}
