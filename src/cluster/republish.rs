//! Puts events of a journal into the log again, after a disaster of all servers.
//!
//! The log removes those that it has had within its duplicate window; the others come to the sinks once
//! more. What a member reports of a channel is not among them: of a gap that another member covered no sink ever heard.

use std::{path::Path, time::Duration};

use async_nats::jetstream::publish::PublishAck;
use tokio::time::sleep;

use super::{
    connection::{Connection, member_name},
    error::ClusterError,
    message, parts,
};
use crate::{
    base::{clock::UnixMillis, event::Event},
    config,
    journal::store::Store,
};

/// Events read at once, and their bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1024 * 1024;

/// As often is an event published of which the log knows the id and that it has not stored: in such a state a server
/// is for a moment, after it has lost its leader.
const TRIES: u32 = 5;

/// How long to wait before each of these but the first.
const PAUSE: Duration = Duration::from_secs(2);

/// What became of the events.
#[derive(Debug, Default)]
pub(crate) struct Republished {
    pub(crate) published: u64,
    pub(crate) duplicates: u64,
}

/// Publishes the events that the journal in `dir` holds since `from`, in order. A log that has to be made begins with
/// a cursor for each of these sinks.
pub(crate) async fn republish(
    settings: &config::Cluster,
    sinks: &[String],
    dir: &Path,
    from: UnixMillis,
) -> Result<Republished, ClusterError> {
    let member = member_name(settings);
    let connection = Connection::reach(settings, &format!("republish {member}")).await?;
    connection.ensure(sinks).await?;
    let unreadable = |error: &dyn std::fmt::Display| {
        ClusterError::Unusable(format!("the journal cannot be read: {error}"))
    };
    let store = Store::open_reader(dir).map_err(|error| unreadable(&error))?;
    let first = store.first_since(from).map_err(|error| unreadable(&error))?;
    let mut done = Republished::default();
    let Some(mut after) = first.map(|first| first.saturating_sub(1)) else { return Ok(done) };
    loop {
        let read = store.read(after, BATCH, BATCH_BYTES).map_err(|error| unreadable(&error))?;
        let Some(through) = read.through else { return Ok(done) };
        for record in read.records.iter().filter(|record| !is_report(&record.event)) {
            let headers = message::headers(record, &member);
            let subject = message::subject(&settings.name, &record.event);
            let max_payload = connection.client.server_info().max_payload;
            let pieces = parts::pieces(&record.event.message, max_payload);
            let context = &connection.context;
            let publish = async || {
                let (subject, headers) = (subject.clone(), headers.clone());
                parts::publish(context, &settings.name, subject, headers, pieces.clone()).await
            };
            let failed = |why: &dyn std::fmt::Display| {
                let count = done.published + done.duplicates;
                ClusterError::Unavailable(format!(
                    "after {count} events the log takes no more: {why}"
                ))
            };
            let ack = stored(publish).await.map_err(|error| failed(&error))?;
            if ack.sequence == 0 {
                let key = message::key(&record.event);
                return Err(failed(&format!(
                    "it knows the id {key:?} and has not stored the event; try again later"
                )));
            }
            if ack.duplicate {
                done.duplicates += 1;
            } else {
                done.published += 1;
            }
        }
        after = through;
    }
}

/// Publishes an event until the log has stored it, as often as is tried.
async fn stored<E>(publish: impl AsyncFn() -> Result<PublishAck, E>) -> Result<PublishAck, E> {
    let mut ack = publish().await?;
    for _ in 1..TRIES {
        if ack.sequence > 0 {
            break;
        }
        sleep(PAUSE).await;
        ack = publish().await?;
    }
    Ok(ack)
}

/// Whether a member reports something of a channel: a gap, a session, what was fetched. The others may have found it
/// otherwise, so the members agree on who publishes it.
fn is_report(event: &Event) -> bool {
    event.place.topic.starts_with("relay.") && !event.place.channel.is_empty()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_that_the_log_knows_and_has_not_stored_is_published_again() {
        for (unstored, sequence, published) in [(0, 7, 1), (2, 7, 3), (TRIES, 0, TRIES)] {
            let count = Cell::new(0);
            let publish = async || {
                count.set(count.get() + 1);
                let sequence = if count.get() > unstored { 7 } else { 0 };
                Ok::<_, Infallible>(PublishAck { sequence, ..PublishAck::default() })
            };
            let ack = stored(publish).await.unwrap();
            assert_eq!((ack.sequence, count.get()), (sequence, published), "{unstored}");
        }
    }
}
