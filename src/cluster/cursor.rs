//! A sink's cursor in the log: a key that is updated by revision.
//!
//! A server without power may lose the last messages of the log, and gives their numbers to those that come
//! then; a log can also be deleted, and made again. So a cursor has, beside the number, the time at which its
//! message was stored: where another message has that number, the sink goes on with the first that was
//! stored since.

use std::{fmt::Display, time::Duration};

use async_nats::jetstream::{
    kv::{CreateErrorKind, Entry, Operation, Store},
    stream::{LastRawMessageErrorKind, Stream},
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{error, warn};

use super::{Cluster, error::ClusterError, log_range};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::Seq,
    },
    config::Start,
};

/// A new leader may not have come to its log's end yet: so long after, it is asked again.
const LEADER: Duration = Duration::from_secs(1);

/// The value of a cursor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cursor {
    /// All through this is done.
    pub(super) seq: Seq,
    /// When the log stored that one, by the servers' clock; 0: not known.
    #[serde(skip_serializing_if = "is_unknown")]
    pub(super) stored: UnixMillis,
    /// What the destination has accepted behind it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) behind: Vec<Seq>,
    /// What is missing behind it and reported: the first number, and the last, of each range.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) reported: Vec<(Seq, Seq)>,
    pub(super) member: String,
    pub(super) run: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_unknown(stored: &UnixMillis) -> bool {
    *stored == 0
}

/// Makes the cursor of a sink that has none, where the sink is to begin.
pub(super) async fn ensure(
    (cursors, log): (&Store, &Stream),
    sink: &str,
    start: Start,
) -> Result<(), ClusterError> {
    if found(cursors, sink).await?.is_some() {
        return Ok(());
    }
    let unavailable = |error: &dyn Display| unavailable(sink, error);
    let state = log.get_info().await.map_err(|error| unavailable(&error))?.state;
    let (first, last) = (state.first_sequence, state.last_sequence);
    let seq = match start {
        Start::End => last,
        Start::Earliest => first.saturating_sub(1),
        Start::Age(age) => log_range::first_within(log, age)
            .await
            .map_err(|error| unavailable(&error))?
            .map_or(last, |seq| seq - 1),
    };
    let stored = stored(log, seq).await.map_err(|error| unavailable(&error))?;
    let made = make(cursors, sink, &Cursor { seq, stored, ..Cursor::default() }).await?;
    // The log is made last.
    let is_remade = cursors.stream.cached_info().created > log.cached_info().created;
    if made.is_some() && is_remade && seq + 1 > first {
        warn!(
            sink,
            begins = seq + 1,
            "the bucket of cursors is younger than the log: a member that drives the sink sets the cursor to where it \
             is; if none does, and the sink is not a new one, it does not get what it had still to get before"
        );
    }
    Ok(())
}

async fn found(cursors: &Store, sink: &str) -> Result<Option<Entry>, ClusterError> {
    let entry = cursors.entry(sink).await.map_err(|error| unavailable(sink, &error))?;
    Ok(entry.filter(|entry| entry.operation == Operation::Put))
}

/// Makes the cursor of a sink; answers its revision, or `None`: there is one.
pub(super) async fn make(
    cursors: &Store,
    sink: &str,
    cursor: &Cursor,
) -> Result<Option<u64>, ClusterError> {
    let value = serde_json::to_vec(cursor).unwrap_or_default();
    match cursors.create(sink, value.into()).await {
        Ok(revision) => Ok(Some(revision)),
        Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(unavailable(sink, &error)),
    }
}

/// Sets the cursor of a sink that this run of the member drives; where another has made it its own it stays.
pub(super) async fn set(cursors: &Store, sink: &str, cursor: &Cursor) -> Result<(), ClusterError> {
    let Some(entry) = found(cursors, sink).await? else {
        return make(cursors, sink, cursor).await.map(drop);
    };
    let known: Cursor = serde_json::from_slice(&entry.value).unwrap_or_default();
    // One without a run was made again, and nobody has driven the sink since.
    if known.run != cursor.run && !known.run.is_empty() {
        return Ok(());
    }
    let value = serde_json::to_vec(cursor).unwrap_or_default();
    let update = cursors.update(sink, value.into(), entry.revision).await;
    update.map(drop).map_err(|error| unavailable(sink, &error))
}

fn unavailable(sink: &str, error: &dyn Display) -> ClusterError {
    ClusterError::Unavailable(format!("the cursor of sink {sink} cannot be had: {error}"))
}

/// Makes the cursor this member's, so that nobody who drove the sink before can move it any more. Answers it
/// with its revision.
pub(super) async fn claim(
    cluster: &Cluster,
    (cursors, log): (&Store, &Stream),
    sink: &str,
    start: Start,
) -> Result<(Cursor, u64), ClusterError> {
    let unavailable = |error: &dyn Display| unavailable(sink, error);
    let mut entry = found(cursors, sink).await?;
    if entry.is_none() {
        ensure((cursors, log), sink, start).await?;
        entry = found(cursors, sink).await?;
    }
    let entry = entry.ok_or_else(|| unavailable(&"it was deleted"))?;
    let mut cursor: Cursor = serde_json::from_slice(&entry.value)
        .map_err(|error| unavailable(&format!("it cannot be read: {error}")))?;
    cursor.member = cluster.member().to_owned();
    cursor.run = cluster.run().to_owned();
    let moved = moved(log, cursor.seq, cursor.stored).await;
    let moved = moved.map_err(|error| unavailable(&error))?;
    if let Some(seq) = moved {
        error!(
            sink,
            cursor = cursor.seq,
            begins = seq + 1,
            "the log has lost events, or was made again: the sink goes on with what was stored since, and does not get \
             what it had still to get before"
        );
        cursor.seq = seq;
        cursor.behind.clear();
        cursor.reported.clear();
    }
    if moved.is_some() || cursor.stored == 0 {
        cursor.stored = stored(log, cursor.seq).await.map_err(|error| unavailable(&error))?;
    }
    let value = serde_json::to_vec(&cursor).unwrap_or_default();
    let update = cursors.update(sink, value.into(), entry.revision).await;
    let revision = update.map_err(|error| unavailable(&error))?;
    Ok((cursor, revision))
}

/// When the log stored this message; 0: it has none of this number.
pub(super) async fn stored(log: &Stream, seq: Seq) -> Result<UnixMillis, async_nats::Error> {
    if seq == 0 {
        return Ok(0);
    }
    match log.get_raw_message(seq).await {
        Ok(message) => Ok(clock::millis(message.time)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Whoever has come to `seq`, which was stored at `at` (0: not known), goes on behind this one, if that is no
/// longer what the log has there; `None`: it is.
pub(super) async fn moved(
    log: &Stream,
    seq: Seq,
    at: UnixMillis,
) -> Result<Option<Seq>, async_nats::Error> {
    let mut state = log.get_info().await?.state;
    if seq > state.last_sequence {
        sleep(LEADER).await;
        state = log.get_info().await?.state;
    }
    if seq <= state.last_sequence {
        let found = if at == 0 { 0 } else { stored(log, seq).await? };
        // What is there no more was older than the log keeps.
        if found == 0 || found == at {
            return Ok(None);
        }
    }
    Ok(Some(match at {
        0 => state.first_sequence.saturating_sub(1),
        _ => log_range::first_since(log, at).await?.map_or(state.last_sequence, |seq| seq - 1),
    }))
}
