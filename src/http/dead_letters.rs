//! `/api/dead-letters`: lists, retries and deletes the events that a destination rejected.
//!
//! As on the command line, a request is written into the journal's file, or in a cluster to where all members
//! read it, and the delivery takes it up within a second. The donor's personal data is not shown here.

use std::path::PathBuf;

use axum::{
    body::Bytes,
    extract::{Query, State as Extract},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{State, json, refused};
use crate::{
    base::clock,
    cluster::{ClusterError, shared},
    delivery::route::Redactor,
    journal::{
        DeadLetter, StoreError,
        store::{LetterChange, Store},
    },
};

/// Dead letters in one answer: what a page can show. The counts are in `/status`.
const MOST: usize = 200;

/// Bytes of events that are read for one answer in a cluster, about; without one the journal has the same limit.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of an event that is shown whole; of a larger one, its size.
const LARGEST_SHOWN: usize = 16 * 1024;

/// Which are listed.
#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    /// Only those of this sink.
    sink: Option<String>,
}

/// Which are selected. At least one of the two is given: "all" must not come from a misspelling.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selection {
    /// All of this sink, or of these numbers those of this sink.
    sink: Option<String>,
    /// Their numbers.
    numbers: Option<Vec<i64>>,
}

pub(super) async fn list(
    Extract(state): Extract<State>,
    Query(query): Query<ListQuery>,
) -> Response {
    if let Some(cluster) = state.status.cluster() {
        let which = shared::Which { sink: query.sink.as_deref(), numbers: None };
        let letters = async { cluster.shared()?.letters(which, (MOST, MOST_BYTES)).await };
        let letters = match letters.await {
            Ok(letters) => letters.into_iter().rev(),
            Err(error) => return unavailable(&error),
        };
        return match tokio::task::spawn_blocking(move || listed(letters)).await {
            Ok(letters) => json(StatusCode::OK, &letters),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        };
    }
    // The newest are those that somebody looks for.
    let read = move |store: &Store| {
        Ok(listed(store.newest_dead_letters(query.sink.as_deref(), MOST)?.into_iter()))
    };
    match with_store(state.dir, read).await {
        Ok(letters) => json(StatusCode::OK, &letters),
        Err(response) => response,
    }
}

fn listed(letters: impl Iterator<Item = DeadLetter>) -> Vec<Shown> {
    let redactor = Redactor::personal();
    letters.map(|letter| Shown::new(letter, &redactor)).collect()
}

/// What the cluster shares cannot be had.
pub(super) fn unavailable(error: &ClusterError) -> Response {
    refused(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

/// A dead letter as it is listed.
#[derive(Serialize)]
struct Shown {
    number: i64,
    sink: String,
    at: String,
    reason: String,
    retry: bool,
    topic: String,
    event: Contents,
}

/// The event: a large one, and broken JSON, as a text.
#[derive(Serialize)]
#[serde(untagged)]
enum Contents {
    Json(Box<RawValue>),
    Text(String),
}

impl Shown {
    fn new(letter: DeadLetter, redactor: &Redactor) -> Self {
        let event = &letter.record.event;
        let size = event.message.len();
        let contents = if size > LARGEST_SHOWN {
            Contents::Text(format!(
                "{size} bytes: `astro-relay dead-letters show {}` shows them",
                letter.number
            ))
        } else {
            let line = letter.record.line(&redactor.message(event));
            RawValue::from_string(line.clone()).map_or(Contents::Text(line), Contents::Json)
        };
        Self {
            number: letter.number,
            at: clock::rfc3339(letter.at),
            topic: event.place.topic.to_string(),
            event: contents,
            sink: letter.sink,
            reason: letter.reason,
            retry: letter.retry,
        }
    }
}

pub(super) async fn retry(Extract(state): Extract<State>, body: Bytes) -> Response {
    change(state, &body, LetterChange::Retry).await
}

pub(super) async fn drop(Extract(state): Extract<State>, body: Bytes) -> Response {
    change(state, &body, LetterChange::Drop).await
}

async fn change(state: State, body: &[u8], change: LetterChange) -> Response {
    let selection: Selection = match serde_json::from_slice(body) {
        Ok(selection) => selection,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if selection.sink.is_none() && selection.numbers.is_none() {
        let why = "say which: {\"numbers\": [1, 2]}, {\"sink\": \"name\"}, or both";
        return refused(StatusCode::BAD_REQUEST, why);
    }
    if let (LetterChange::Retry, Some(sink)) = (change, &selection.sink)
        && !state.config.borrow().sinks.contains_key(sink)
    {
        return refused(StatusCode::NOT_FOUND, &format!("there is no sink {sink:?}"));
    }
    let done = if let Some(cluster) = state.status.cluster() {
        let which = shared::Which {
            sink: selection.sink.as_deref(),
            numbers: selection.numbers.as_deref(),
        };
        let done = async {
            match change {
                LetterChange::Retry => cluster.shared()?.retry(which).await,
                LetterChange::Drop => cluster.shared()?.drop(which).await,
            }
        };
        done.await.map_err(|error| unavailable(&error))
    } else {
        let done = with_store(state.dir, move |store| {
            let (numbers, sink) = (selection.numbers.as_deref(), selection.sink.as_deref());
            store.change_dead_letters(change, numbers, sink)
        });
        done.await
    };
    match done {
        Ok(count) => json(StatusCode::OK, &serde_json::json!({ "count": count })),
        Err(response) => response,
    }
}

/// Does something with the journal's file, where it may take its time.
pub(super) async fn with_store<T: Send + 'static>(
    dir: Option<PathBuf>,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Response> {
    let Some(dir) = dir else {
        let why =
            "the journal is in memory only: what is rejected is lost, and nothing can be replayed";
        return Err(refused(StatusCode::CONFLICT, why));
    };
    let done = tokio::task::spawn_blocking(move || work(&Store::open_reader(&dir)?)).await;
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the journal's file cannot be used for a request");
            Err(refused(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()))
        }
        Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_journal_in_memory_says_that_nothing_can_be_replayed() {
        let refusal = with_store(None, Store::dead_letter_counts).await.unwrap_err();
        assert_eq!(refusal.status(), StatusCode::CONFLICT);
        let body = axum::body::to_bytes(refusal.into_body(), 1000).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("in memory only") && text.contains("replayed"), "{text}");
    }
}
