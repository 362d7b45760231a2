//! Puts events of a journal into the log again, after a disaster of all servers.
//!
//! The log removes those that it has had within its duplicate window; the others come to the sinks once
//! more.

use std::path::Path;

use super::{
    connection::{Connection, member_name},
    error::ClusterError,
    message, parts,
};
use crate::{base::clock::UnixMillis, config, journal::store::Store};

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
        for record in &read.records {
            let headers = message::headers(record, &member);
            let subject = message::subject(&settings.name, &record.event);
            let max_payload = connection.client.server_info().max_payload;
            let pieces = parts::pieces(&record.event.message, max_payload);
            let context = &connection.context;
            let published = parts::publish(context, &settings.name, subject, headers, pieces);
            let ack = published.await.map_err(|error| {
                ClusterError::Unavailable(format!(
                    "after {} events the log takes no more: {error}",
                    done.published + done.duplicates
                ))
            })?;
            if ack.duplicate {
                done.duplicates += 1;
            } else {
                done.published += 1;
            }
        }
        after = through;
    }
}
