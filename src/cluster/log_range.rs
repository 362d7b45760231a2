//! Ranges of the log, read once more: for replays and their previews, and where a time lies in it.

use std::time::Duration;

use async_nats::jetstream::stream::Stream;

use super::reading::{self, Decoded, Reading};
use crate::{
    base::{
        clock::{ServerClock, UnixMillis},
        event::Seq,
    },
    journal::Batch,
};

/// How long the log may say nothing while it has more.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first message that the log stored at that time or later, by the servers' clock.
pub(super) async fn first_since(
    log: &Stream,
    time: UnixMillis,
) -> Result<Option<Seq>, async_nats::Error> {
    let mut reading = Reading::headers_since(log, time, String::new()).await?;
    if reading.pending == 0 {
        return Ok(None);
    }
    let first = reading.pending(PATIENCE).await?;
    Ok(Some(first.info()?.stream_sequence))
}

/// The first message that the log stored within that time until now.
pub(super) async fn first_within(
    log: &Stream,
    age: Duration,
) -> Result<Option<Seq>, async_nats::Error> {
    let clock = reading::server_clock(log).await?;
    first_since(log, clock.ago(age)).await
}

/// The first and the last message that the log stored within these times; `None`: there are none.
pub(super) async fn between(
    log: &Stream,
    from: UnixMillis,
    until: Option<UnixMillis>,
) -> Result<Option<(Seq, Seq)>, async_nats::Error> {
    let last = log.get_info().await?.state.last_sequence;
    let until = match until {
        None => last,
        Some(time) => first_since(log, time + 1).await?.map_or(last, |seq| seq - 1),
    };
    let first = first_since(log, from).await?;
    Ok(first.filter(|first| *first <= until).map(|first| (first, until)))
}

/// Reads what the log has after `after`, through `through`: as many events, and bytes of them. `clock` is that of the
/// servers.
pub(super) async fn read(
    log: &Stream,
    clock: ServerClock,
    (after, through): (Seq, Seq),
    limit: usize,
    max_bytes: usize,
) -> Result<Batch, async_nats::Error> {
    let mut batch = Batch { records: Vec::new(), lost: 0, through: after };
    let mut reading = Reading::behind(log, after).await?;
    let mut bytes = 0;
    while reading.pending > 0 {
        if batch.records.len() >= limit || bytes >= max_bytes {
            return Ok(batch);
        }
        let message = reading.pending(PATIENCE).await?;
        let seq = message.info()?.stream_sequence;
        batch.lost += seq.min(through + 1).saturating_sub(batch.through + 1);
        if seq > through {
            break;
        }
        batch.through = seq;
        match reading::decode(log, &message, clock).await? {
            Decoded::Piece => {}
            Decoded::Lost => batch.lost += 1,
            Decoded::Event(record) => {
                bytes += record.event.weight();
                batch.records.push(record);
            }
        }
    }
    batch.through = batch.through.max(through);
    Ok(batch)
}
