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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, future::pending};

    use futures_util::FutureExt;
    use serde_json::json;
    use tokio::sync::watch;

    use super::*;
    use crate::command::command_queue;

    /// Is not let to listen.
    struct Refused;

    #[async_trait]
    impl CommandListener for Refused {
        async fn run(
            &mut self,
            _: CommandSubmitter,
            _: Replies,
            health: &TaskHealth,
            _: &CancellationToken,
        ) {
            health.report(Some("refused"));
            pending::<()>().await;
        }
    }

    static REFUSED: Kind = Kind { name: "refused", open: |_| Ok(Box::new(Refused)) };

    /// In a cluster the factory outlives the terms in which this member drives the sink.
    #[test]
    fn what_is_said_of_listening_ends_with_it() {
        let (queue, _queued) = command_queue(watch::channel(BTreeSet::new()).1);
        let (status, task) = (Arc::new(Status::default()), "commands of sink far");
        let config: SinkConfig = serde_json::from_value(json!({"type": "refused"})).unwrap();
        let reports = (Arc::clone(&status), task.to_owned());
        let factory = REFUSED.factory(&queue, reports, "far", &config);
        for _ in 0..2 {
            let mut work = factory(CancellationToken::new()).unwrap();
            assert!((&mut work).now_or_never().is_none());
            let tasks = status.snapshot().tasks;
            assert_eq!(tasks.get(task).map(String::as_str), Some("refused"));
            drop(work);
            assert!(status.snapshot().tasks.is_empty());
        }
    }
}
