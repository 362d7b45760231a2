//! What can be done here, beside commands and dead letters: a sink tried now, a test event, a replay; and
//! `/api/admin`, which says that a token is the admin's.
//!
//! Each answers what came of it, as JSON.

use std::path::PathBuf;

use axum::{
    body::Bytes,
    extract::{Path, State as Extract},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{State, dead_letters, json as answer, refused};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::Seq,
        json,
    },
    cluster::{ClusterError, shared::SharedRequests},
    config::SinkConfig,
    delivery::{
        replay_preview::{Choice, Preview},
        route::Route,
        task::open_sink,
        test_event::{self, TestKind},
    },
    journal::{Batch, Journal, Replay},
    sink::Purpose,
};

/// Whoever gets here has shown the admin token.
pub(super) async fn admin() -> Response {
    answer(StatusCode::OK, &json!({ "ok": true }))
}

pub(super) async fn retry_sink(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
) -> Response {
    if state.status.sinks.retry_sink(&name) {
        return answer(StatusCode::OK, &json!({ "sink": name }));
    }
    refused(StatusCode::NOT_FOUND, "there is no sink of that name")
}

/// A test event that is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    kind: String,
    /// The channel's label; the first where none is named.
    channel: Option<String>,
    /// Through this sink only.
    sink: Option<String>,
    amount: Option<f64>,
}

pub(super) async fn test(Extract(state): Extract<State>, body: Bytes) -> Response {
    let test: Test = match parsed(&body) {
        Ok(test) => test,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    let config = state.config.borrow().clone();
    if let Some(sink) = test.sink.as_ref().filter(|sink| !config.sinks.contains_key(*sink)) {
        return refused(StatusCode::NOT_FOUND, &format!("there is no sink {sink:?}"));
    }
    let events = test
        .kind
        .parse::<TestKind>()
        .and_then(|kind| test_event::events(&config, test.channel.as_deref(), kind, test.amount));
    let events = match events {
        Ok(events) => events,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    let sinks: Vec<String> = test.sink.into_iter().collect();
    let results = test_event::send(&config, &sinks, &events.events).await;
    tracing::info!(kind = test.kind, channel = events.channel, "a test event was sent");
    let report = json!({
        "kind": test.kind, "channel": events.channel, "note": events.note, "sinks": results,
    });
    answer(StatusCode::OK, &report)
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// A replay that is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayRequest {
    sink: String,
    /// A time in RFC 3339, or an age such as `2h`.
    from: String,
    /// The same; now, where it is not said.
    until: Option<String>,
    /// Only topics of this pattern.
    topic: Option<String>,
    /// Only events for which this holds.
    when: Option<String>,
    /// Only says what would be sent.
    #[serde(default)]
    preview: bool,
}

/// From when, and until when where that is said.
type Times = (UnixMillis, Option<UnixMillis>);

/// Events that a preview looks at: what is read within seconds.
const PREVIEWED: u64 = 50_000;

/// Events, and bytes of them, that are read at once.
const READ: (usize, usize) = (256, 256 * 1024);

pub(super) async fn replay(Extract(state): Extract<State>, body: Bytes) -> Response {
    let asked: ReplayRequest = match parsed(&body) {
        Ok(asked) => asked,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    let config = state.config.borrow().clone();
    let Some(sink) = config.sinks.get(&asked.sink) else {
        let why = format!("there is no sink {:?}", asked.sink);
        return refused(StatusCode::NOT_FOUND, &why);
    };
    let (times, mut route) = match asked.times_and_route(sink) {
        Ok(read) => read,
        Err((status, why)) => return refused(status, &why),
    };
    let choice = match Choice::of(asked.topic.as_deref(), asked.when.as_deref()) {
        Ok(choice) => choice,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    let events = match Events::of(&state) {
        Ok(events) => events,
        Err(error) => return dead_letters::unavailable(&error),
    };
    let (first, until) = match events.between(times).await {
        Ok(Some(range)) => range,
        Ok(None) => return answer(StatusCode::OK, &asked.nothing()),
        Err(response) => return response,
    };
    if asked.preview {
        let mut preview = Preview::default();
        let mut after = first - 1;
        let end = until.min(first.saturating_add(PREVIEWED));
        while after < end {
            let batch = match events.read(after, end).await {
                Ok(batch) => batch,
                Err(response) => return response,
            };
            if batch.through <= after {
                break;
            }
            after = batch.through;
            for record in &batch.records {
                preview.add(Some(&mut route), &choice, record);
            }
        }
        let report = json!({ "first": first, "until": until, "preview": preview,
            "complete": end == until });
        return answer(StatusCode::OK, &report);
    }
    let replay = Replay {
        number: 0,
        at: clock::now(),
        sink: asked.sink,
        position: first - 1,
        until,
        topic: asked.topic,
        when: asked.when,
    };
    match events.request(replay).await {
        Ok(()) => answer(StatusCode::OK, &json!({ "first": first, "until": until })),
        Err(response) => response,
    }
}

/// Where a replay's events are: the journal of this relay, or the log that members share.
enum Events {
    Journal(Journal, Option<PathBuf>),
    Log(Box<SharedRequests>),
}

impl Events {
    fn of(state: &State) -> Result<Self, ClusterError> {
        let Some(cluster) = state.status.cluster() else {
            return Ok(Self::Journal(state.journal.clone(), state.dir.clone()));
        };
        Ok(Self::Log(Box::new(cluster.shared()?)))
    }

    async fn between(&self, (from, until): Times) -> Result<Option<(Seq, Seq)>, Response> {
        match self {
            Self::Journal(_, dir) => {
                dead_letters::with_store(dir.clone(), move |store| store.between(from, until)).await
            }
            Self::Log(shared) => {
                let found = shared.between(from, until).await;
                found.map_err(|error| dead_letters::unavailable(&error))
            }
        }
    }

    async fn read(&self, after: Seq, through: Seq) -> Result<Batch, Response> {
        match self {
            Self::Journal(journal, _) => {
                let read = journal.read(after, through, READ.0, READ.1).await;
                let why = "the journal cannot be read now";
                read.map_err(|_| refused(StatusCode::SERVICE_UNAVAILABLE, why))
            }
            Self::Log(shared) => {
                let read = shared.read(after, through, READ.0, READ.1).await;
                read.map_err(|error| dead_letters::unavailable(&error))
            }
        }
    }

    async fn request(self, replay: Replay) -> Result<(), Response> {
        match self {
            Self::Journal(_, dir) => {
                let requested = dead_letters::with_store(dir, move |store| {
                    store.allow_requests()?;
                    store.request_replay(&replay)
                });
                requested.await
            }
            Self::Log(shared) => {
                let requested = shared.request_replay(&replay).await;
                requested.map(drop).map_err(|error| dead_letters::unavailable(&error))
            }
        }
    }
}

impl ReplayRequest {
    /// What is asked for, and how the sink renders it; or why it cannot be.
    fn times_and_route(&self, sink: &SinkConfig) -> Result<(Times, Route), (StatusCode, String)> {
        let invalid = |why: &str| (StatusCode::BAD_REQUEST, why.to_owned());
        let times = self.times().ok_or_else(|| {
            invalid("from and until: a time such as 2026-01-31T20:00:00Z, or an age such as 2h")
        })?;
        if times.1.is_some_and(|until| until < times.0) {
            return Err(invalid("until is before from"));
        }
        let opened = open_sink(&self.sink, sink, Purpose::Probe);
        let (_, route) = opened.map_err(|error| (StatusCode::CONFLICT, error.to_string()))?;
        Ok((times, route))
    }

    /// The answer where no event is of that time.
    fn nothing(&self) -> Value {
        let mut report = json!({ "first": null, "until": null });
        if self.preview {
            json::set(&mut report, "preview", json!(Preview::default()));
            json::set(&mut report, "complete", true.into());
        }
        report
    }

    fn times(&self) -> Option<Times> {
        let moment = |text: &String| clock::moment(text, clock::now());
        let until = match &self.until {
            Some(until) => Some(moment(until)?),
            None => None,
        };
        Some((moment(&self.from)?, until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_that_cannot_be_says_why() {
        let why_of = |kind: &str, from: &str, until: &str| {
            let mut sink: SinkConfig = serde_json::from_value(json!({ "type": kind })).unwrap();
            sink.settings = json!({});
            let asked: ReplayRequest = parsed(
                json!({ "sink": "home", "from": from, "until": until }).to_string().as_bytes(),
            )
            .unwrap();
            asked.times_and_route(&sink).err().unwrap_or_default()
        };
        let why = |kind: &str, from: &str| why_of(kind, from, "1m");
        assert_eq!(why("stdout", "2h"), Default::default());
        let (status, text) = why("stdout", "yesterday");
        assert!(status == StatusCode::BAD_REQUEST && text.starts_with("from and until"), "{text}");
        let (status, text) = why("fax", "2h");
        assert!(status == StatusCode::CONFLICT && text.contains("fax"), "{text}");
        let (status, text) = why_of("stdout", "1m", "2h");
        assert_eq!((status, &*text), (StatusCode::BAD_REQUEST, "until is before from"));
    }

    #[test]
    fn a_replay_of_no_event_has_the_form_of_any_other() {
        let nothing = |preview: bool| {
            let asked = json!({ "sink": "home", "from": "2h", "preview": preview });
            parsed::<ReplayRequest>(asked.to_string().as_bytes()).unwrap().nothing()
        };
        assert_eq!(nothing(false), json!({ "first": null, "until": null }));
        let preview = json!({ "events": 0, "sent": {}, "skipped": {} });
        let expected =
            json!({ "first": null, "until": null, "preview": preview, "complete": true });
        assert_eq!(nothing(true), expected);
    }
}
