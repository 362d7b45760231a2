//! One reading of the log: its messages, in order, out of one consumer; and what a message is.
//!
//! Where a consumer is lost the client library makes another, which begins at the log's first message if none
//! has come yet, and else by number, whatever has that number now. So a reading ends with its consumer, and
//! whoever reads begins again where it is right.

use std::{sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        Message,
        consumer::{DeliverPolicy, pull},
        stream::Stream,
    },
};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{message, parts};
use crate::base::{
    clock::{self, ServerClock, UnixMillis},
    event::{Record, Seq},
};

/// Messages that one request asks for: the client holds what it has asked for, however large that is, and has
/// no bound in bytes for an ordered consumer.
const REQUEST: i64 = 64;

pub(super) struct Reading {
    messages: pull::Ordered,
    consumer: String,
    /// Messages that the log has behind the last one that came.
    pub(super) pending: u64,
}

impl Reading {
    /// Of all behind a message.
    pub(super) async fn behind(log: &Stream, seq: Seq) -> Result<Self, async_nats::Error> {
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: seq + 1 },
            max_batch: REQUEST,
            ..pull::OrderedConfig::default()
        };
        Self::begin(log, config).await
    }

    /// Of the headers of what was stored at that time or later, by the servers' clock; of one subject, or of
    /// all where it is empty.
    pub(super) async fn headers_since(
        log: &Stream,
        time: UnixMillis,
        subject: String,
    ) -> Result<Self, async_nats::Error> {
        let nanos = i128::from(time) * 1_000_000;
        let start_time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos)?;
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartTime { start_time },
            filter_subject: subject,
            headers_only: true,
            ..pull::OrderedConfig::default()
        };
        Self::begin(log, config).await
    }

    async fn begin(log: &Stream, config: pull::OrderedConfig) -> Result<Self, async_nats::Error> {
        let consumer = log.create_consumer(config).await?;
        let info = consumer.cached_info();
        let (name, pending) = (info.name.clone(), info.num_pending);
        Ok(Self { messages: consumer.messages().await?, consumer: name, pending })
    }

    /// The next message; `None`: none has come for so long.
    pub(super) async fn next(
        &mut self,
        patience: Duration,
    ) -> Result<Option<Message>, async_nats::Error> {
        let Ok(next) = timeout(patience, self.messages.next()).await else { return Ok(None) };
        let message = next.ok_or("the consumer has ended")??;
        let info = message.info()?;
        if info.consumer != self.consumer {
            return Err("the consumer was lost".into());
        }
        self.pending = info.pending;
        Ok(Some(message))
    }

    /// The next message of a log that has more.
    pub(super) async fn pending(
        &mut self,
        patience: Duration,
    ) -> Result<Message, async_nats::Error> {
        Ok(self.next(patience).await?.ok_or("the log says nothing")?)
    }
}

/// The clock of the server that a consumer is made at.
pub(super) async fn server_clock(log: &Stream) -> Result<ServerClock, async_nats::Error> {
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::New,
        headers_only: true,
        ..pull::OrderedConfig::default()
    };
    let consumer = log.create_consumer(config).await?;
    Ok(ServerClock::shows(clock::millis(consumer.cached_info().created)))
}

/// What a message of the log is.
pub(super) enum Decoded {
    /// A piece of a large event.
    Piece,
    /// An event of which a piece is gone.
    Lost,
    Event(Arc<Record>),
}

/// Makes an event of a message, with its pieces; `clock` is that of the servers.
pub(super) async fn decode(
    log: &Stream,
    message: &Message,
    clock: ServerClock,
) -> Result<Decoded, async_nats::Error> {
    if parts::is_piece(&message.subject) {
        return Ok(Decoded::Piece);
    }
    let empty = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&empty);
    let Some(payload) = parts::whole(log, headers, &message.payload).await? else {
        return Ok(Decoded::Lost);
    };
    let info = message.info()?;
    let stored = clock::millis(info.published);
    let age = clock.since(stored);
    let record = message::record(info.stream_sequence, headers, &payload, age);
    Ok(Decoded::Event(Arc::new(Record { stored, ..record })))
}
