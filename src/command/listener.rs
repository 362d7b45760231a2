//! What listens for commands at the destination of a sink: the contract.
//!
//! Each sink with `commands` has one task for it, on a connection of its own beside that of its events: a
//! destination that refuses events still gives commands, and the other way round. The connection is the
//! client library's to restore. Nothing is queued there that could be executed late: what cannot be
//! submitted at once is refused, and so is what may have waited while nobody read
//! ([`attention`](super::attention)).

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{CommandQueue, CommandSubmitter, Replies};
use crate::{
    base::supervisor::Factory,
    config::{ConfigError, SinkConfig},
    delivery::{health::TaskHealth, status::Status},
    sink::{Opening, Purpose},
};

/// Listens for commands at one destination.
#[async_trait]
pub trait CommandListener: Send {
    /// Submits what comes and sends the answers, over connections that it makes again and again, until
    /// `stop`; then sends the answers that there are, and closes. It reports whether it works.
    async fn run(
        &mut self,
        submitter: CommandSubmitter,
        replies: Replies,
        health: &TaskHealth,
        stop: &CancellationToken,
    );
}

/// A kind of sink whose destination can give commands: one row.
#[derive(Debug)]
pub struct Kind {
    /// The kind's name, as in `type = "…"`.
    pub name: &'static str,
    /// Makes the listener from the settings, which the sink has checked; connects to nothing.
    pub open: fn(&Opening<'_>) -> Result<Box<dyn CommandListener>, ConfigError>,
}

impl Kind {
    /// Makes the task that listens for the commands of a sink, over and over.
    pub fn factory(
        &'static self,
        queue: &CommandQueue,
        (status, task): (Arc<Status>, String),
        name: &str,
        config: &SinkConfig,
    ) -> Factory {
        let queue = queue.clone();
        let (name, config) = (name.to_owned(), config.clone());
        Box::new(move |stop| {
            let opening = Opening { name: &name, config: &config, purpose: Purpose::Relay };
            let mut listener = (self.open)(&opening).map_err(|error| error.to_string())?;
            let (submitter, replies) =
                queue.submitter(&name, config.channels.as_deref(), &config.commands());
            // Each time that it listens: what is said of it ends with that.
            let health = TaskHealth::new(Arc::clone(&status), task.clone());
            Ok(Box::pin(async move {
                health.report(Some("not yet connected"));
                listener.run(submitter, replies, &health, &stop).await;
            }))
        })
    }
}
