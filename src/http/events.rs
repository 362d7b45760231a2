//! `/events`: events as they are written to the journal, as server-sent events.
//!
//! A follower gets no donor's personal data, whatever the sinks are configured to send. There
//! is no filter but the topic: a condition of a caller's own would be work that anybody could give us.
//!
//! A follower reads the journal for itself. One that reads slowly delays nothing, and nothing is kept for
//! it.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    extract::{Query, State as Extract},
    http::StatusCode,
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event as SseEvent, KeepAlive},
    },
};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::{State, refused};
use crate::{
    astro::summary::Summary,
    base::{
        event::{Record, Seq},
        json,
        text::{harmless, harmless_json},
    },
    delivery::route::{Pattern, Redactor},
    journal::StoreError,
};

/// The event that tells of events that cannot be shown: a follower was too slow, or the disk has lost
/// them. No topic of Astro's is one word.
const LOST: &str = "lost";

/// Events read for a follower at once.
const FOLLOW: usize = 256;

/// Bytes of events read for a follower at once.
const FOLLOW_BYTES: usize = 256 * 1024;

/// Events of the past that a follower may ask for: what a page or a terminal can show.
const MOST_PAST: u64 = 1000;

/// Bytes of them, about. They are read before the first is sent.
const MOST_PAST_BYTES: usize = 4 * 1024 * 1024;

/// How far back the past is looked through for a topic: what is read within a moment.
const SEARCHED: u64 = 10_000;

/// What a follower asks for.
#[derive(Debug, Deserialize)]
pub(super) struct Follow {
    /// Only topics of this pattern.
    topic: Option<String>,
    /// Starts with the last N events (of that topic).
    #[serde(default)]
    last: u64,
    /// Each with what the relay knows of it, as in `journal export`; else Astro's message alone.
    #[serde(default)]
    whole: bool,
}

pub(super) async fn events(
    Extract(state): Extract<State>,
    Query(follow): Query<Follow>,
) -> Response {
    let pattern = match follow.topic.as_deref().map(Pattern::parse).transpose() {
        Ok(pattern) => pattern,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let Ok(permit) = Arc::clone(&state.followers).try_acquire_owned() else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "too many followers of the events");
    };
    let now = state.journal.figures().last;
    let past = usize::try_from(follow.last.min(MOST_PAST)).unwrap_or(0);
    let Ok(waiting) = newest(&state, now, past, pattern.as_ref()).await else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "the journal cannot be read now");
    };
    let follower = Follower {
        after: now,
        state,
        waiting,
        lost: 0,
        pattern,
        whole: follow.whole,
        redactor: Redactor::personal(),
        _permit: permit,
    };
    let events = stream::unfold(follower, Follower::next);
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// The newest `most` events up to `now`, of those that fit the pattern.
async fn newest(
    state: &State,
    now: Seq,
    most: usize,
    pattern: Option<&Pattern>,
) -> Result<VecDeque<Arc<Record>>, StoreError> {
    let mut found = VecDeque::new();
    let mut bytes = 0;
    let back = if pattern.is_some() { SEARCHED } else { u64::try_from(most).unwrap_or(0) };
    let mut after = now.saturating_sub(if most == 0 { 0 } else { back });
    while after < now {
        let batch = state.journal.read(after, now, FOLLOW, FOLLOW_BYTES).await?;
        if batch.through <= after {
            break;
        }
        after = batch.through;
        for record in batch.records {
            if pattern.is_none_or(|pattern| pattern.matches(&record.event.place.topic)) {
                bytes += record.event.weight();
                found.push_back(record);
            }
            while found.len() > most || (bytes > MOST_PAST_BYTES && found.len() > 1) {
                bytes -= found.pop_front().map_or(0, |oldest: Arc<Record>| oldest.event.weight());
            }
        }
    }
    Ok(found)
}

/// The line of `journal export`, and what people see of the event.
fn whole(record: &Record, message: &[u8]) -> String {
    let event = &record.event;
    // Of the message as it is shown: what is redacted there is not here either.
    let value = json::value(message).unwrap_or_default();
    let data = value.get("data").unwrap_or(&serde_json::Value::Null);
    let summary = Summary::of_value(&event.place.topic, data, event.origin);
    let mut line = record.line(message);
    line.pop();
    let summary = serde_json::to_string(&summary).unwrap_or_default();
    format!("{line},\"summary\":{summary}}}")
}

/// Somebody who watches events go by.
struct Follower {
    state: State,
    after: Seq,
    waiting: VecDeque<Arc<Record>>,
    /// Events that the journal had no more when they were to be read, and that were not yet told.
    lost: u64,
    pattern: Option<Pattern>,
    whole: bool,
    redactor: Redactor,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<SseEvent, Infallible>, Self)> {
        loop {
            if self.lost > 0 {
                let lost = format!("{{\"lost\":{}}}", std::mem::take(&mut self.lost));
                return Some((Ok(SseEvent::default().event(LOST).data(lost)), self));
            }
            while let Some(record) = self.waiting.pop_front() {
                let topic = &*record.event.place.topic;
                if self.pattern.as_ref().is_none_or(|pattern| pattern.matches(topic)) {
                    return Some((Ok(self.sse(&record)), self));
                }
            }
            let next = self.state.journal.next(self.after, FOLLOW, FOLLOW_BYTES);
            let batch = self.state.stop.run_until_cancelled(next).await?.ok()?;
            self.after = batch.through;
            self.lost = batch.lost;
            self.waiting = batch.records.into();
        }
    }

    fn sse(&self, record: &Record) -> SseEvent {
        let event = &record.event;
        let message = self.redactor.message(event);
        let data = if self.whole {
            whole(record, &message)
        } else {
            String::from_utf8_lossy(&message).replace(['\n', '\r', '\t'], " ")
        };
        // A line break in these would be the library's panic; Astro's own have none.
        SseEvent::default()
            .id(harmless(&event.id))
            .event(harmless(&event.place.topic))
            .data(harmless_json(&data))
    }
}
