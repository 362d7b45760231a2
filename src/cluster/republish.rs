//! Puts events of a journal into the log again, after a disaster of all servers.
//!
//! The log removes those that it has had within its duplicate window; the others come to the sinks once
//! more. What a member reports of a channel is not among them: of a gap that another member covered no sink ever heard.

use std::path::Path;

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
            let published = parts::publish(context, &settings.name, subject, headers, pieces);
            let failed = |why: &dyn std::fmt::Display| {
                let count = done.published + done.duplicates;
                ClusterError::Unavailable(format!(
                    "after {count} events the log takes no more: {why}"
                ))
            };
            let ack = published.await.map_err(|error| failed(&error))?;
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

/// Whether a member reports something of a channel: a gap, a session, what was fetched. The others may have found it
/// otherwise, so the members agree on who publishes it.
fn is_report(event: &Event) -> bool {
    event.place.topic.starts_with("relay.") && !event.place.channel.is_empty()
}
