//! One reading of the log: its messages, in order, out of one consumer.
//!
//! Where a consumer is lost the client library makes another, which begins at the log's first message if none
//! has come yet, and else by number, whatever has that number now. So a reading ends with its consumer, and
//! whoever reads begins again where it is right.

use std::time::Duration;

use async_nats::jetstream::{Message, consumer::pull, stream::Stream};
use futures_util::StreamExt;
use tokio::time::timeout;

pub(super) struct Reading {
    messages: pull::Ordered,
    consumer: String,
    /// Messages that the log has behind the last one that came.
    pub(super) pending: u64,
}

impl Reading {
    pub(super) async fn begin(
        log: &Stream,
        config: pull::OrderedConfig,
    ) -> Result<Self, async_nats::Error> {
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
}
