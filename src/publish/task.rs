//! The task that publishes the state of one sink: connects, publishes what differs, and publishes at the end that it is offline.
//!
//! What is to be published is [`published_state`](super::published_state)'s business, and how the publisher's. This is the
//! loop between them, with its waits: after a lost connection, and while the destination refuses. A
//! publisher that does not work is shown with its reason; the sink's events know nothing of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    StatePublisher,
    published_state::{Changes, PublishedState},
    scope::Scope,
};
use crate::{
    base::{backoff::Backoff, clock, fault::explain},
    channel::store::{StateKey, StateStore},
    config::SinkConfig,
    delivery::{health::TaskHealth, status::Status},
    journal::Journal,
    sink::{Cause, Failure},
};

/// The first wait after a lost connection is at most this.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// How long a destination is left alone that has denied us: a human has to change something.
const HOLD: Duration = Duration::from_mins(1);

/// A connection that has stood for so long has worked.
const PROVEN: Duration = Duration::from_secs(10);

/// At a stop, the last messages may take so long.
const LAST_MESSAGES: Duration = Duration::from_secs(2);

/// After a publication, what goes beside the parts is answered by then.
const ANSWERED: Duration = Duration::from_secs(1);

/// How often the same complaint is repeated in the log.
const COMPLAIN: Duration = Duration::from_mins(1);

/// Publishes the state of one sink.
pub struct Publishing {
    name: Arc<str>,
    publisher: Box<dyn StatePublisher>,
    state: PublishedState,
    scope: Scope,
    status: Arc<Status>,
    health: Arc<TaskHealth>,
    /// The limit of one connect, and of each part.
    deadline: Duration,
    backoff: Backoff,
    /// Somebody asks for this sink to be tried now.
    retries: watch::Receiver<u64>,
    remarks: Vec<String>,
    complained: Option<(Instant, String)>,
    /// What the destination refuses of this connection's state, with the reason.
    refused: BTreeMap<StateKey, String>,
}

impl std::fmt::Debug for Publishing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Publishing({})", self.name)
    }
}

impl Publishing {
    /// Publishes what stands in `store` and the sink may have. Blocks on the disk.
    pub fn new(
        (name, config): (&str, &SinkConfig),
        publisher: Box<dyn StatePublisher>,
        scope: Scope,
        (store, journal): (Arc<StateStore>, Journal),
        (status, health): (Arc<Status>, Arc<TaskHealth>),
    ) -> Self {
        // What was known of another destination is so no longer.
        status.sink(name, |row| row.state_remarks.clear());
        Self {
            name: name.into(),
            publisher,
            state: if config.state {
                PublishedState::new(name, store, journal)
            } else {
                PublishedState::of_nothing(name, journal)
            },
            scope,
            health,
            deadline: config.timeout.0,
            backoff: Backoff::new(FIRST_WAIT, config.backoff_max.0),
            retries: status.retries(name),
            status,
            remarks: Vec::new(),
            complained: None,
            refused: BTreeMap::new(),
        }
    }

    /// Publishes until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        self.health.report(Some("not yet connected"));
        while let Some(wait) = stop.run_until_cancelled(self.connection()).await {
            stop.run_until_cancelled(self.rest(wait)).await;
        }
        let end = Instant::now() + self.deadline.min(LAST_MESSAGES);
        self.publish_end(end).await;
        if timeout_at(end, self.publisher.close()).await.is_err() {
            debug!(sink = %self.name, "the connection of the state was not closed in time");
        }
    }

    /// Has a connection for as long as it lasts; answers how long to wait for the next.
    async fn connection(&mut self) -> Duration {
        let connected = timeout(self.deadline, self.publisher.connect()).await;
        let failure = match connected {
            Ok(Ok(())) => {
                let since = Instant::now();
                self.state.connected();
                self.state.publish_again(self.refused.keys());
                self.refused.clear();
                let failure = self.publish().await;
                if since.elapsed() >= PROVEN {
                    self.backoff.reset();
                }
                failure
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::down("no connection within the sink's timeout"),
        };
        let wait = self.backoff.wait();
        let wait = match &failure.cause {
            Cause::Busy { wait: Some(asked), .. } => wait.max((*asked).min(HOLD)),
            Cause::Denied { .. } | Cause::Gone { .. } => wait.max(HOLD),
            Cause::Down(_) | Cause::Busy { .. } | Cause::Rejected { .. } => wait,
        };
        self.failed(&failure.cause, wait);
        wait
    }

    /// Publishes over a connection until it is lost.
    async fn publish(&mut self) -> Failure {
        let (mut answered, mut again) = (None, None);
        loop {
            let wants_again = tokio::select! {
                failure = self.publisher.idle() => return failure,
                () = self.state.due() => false,
                // What is refused may be allowed by now.
                () = clock::until(again) => true,
                Ok(()) = self.retries.changed() => true,
                () = clock::until(answered) => {
                    answered = None;
                    if self.complained.is_none() {
                        self.works();
                    }
                    continue;
                }
            };
            if wants_again {
                again = None;
                self.state.publish_again(self.refused.keys());
            }
            if let Err(failure) = self.publish_what_differs().await {
                return failure;
            }
            answered = Some(Instant::now() + ANSWERED);
            if again.is_none() && !self.refused.is_empty() {
                again = Some(Instant::now() + HOLD);
            }
        }
    }

    /// Publishes the next of what is to be published. A destination that takes nothing at the moment gets it
    /// later over the same connection.
    async fn publish_what_differs(&mut self) -> Result<(), Failure> {
        if !self.publisher.sees_overwrites() {
            self.state.republish_if_old();
        }
        let changes = self.state.next_changes(&self.scope);
        let mut refused = BTreeMap::new();
        let mut done = 0;
        loop {
            let mut rest = changes.parts.get(done..).unwrap_or_default();
            // One that was refused before goes alone: what is behind a refused one is sent once more.
            if let [first, ..] = rest
                && self.refused.contains_key(&first.path)
            {
                rest = std::slice::from_ref(first);
            }
            let limit =
                self.deadline.saturating_mul(u32::try_from(rest.len() + 1).unwrap_or(u32::MAX));
            let failure = match timeout(limit, self.publisher.publish(rest)).await {
                Ok(Ok(())) => {
                    done += rest.len();
                    if done < changes.parts.len() {
                        continue;
                    }
                    break;
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::down("the destination has not answered in time"),
            };
            done += failure.accepted.min(rest.len());
            match (failure.cause, changes.parts.get(done)) {
                (Cause::Rejected { reason }, Some(part)) => {
                    refused.insert(part.path.clone(), reason);
                    done += 1;
                }
                (cause @ (Cause::Down(_) | Cause::Gone { .. }), _) => {
                    self.taken(&changes, done, refused);
                    // It may have ended at the state: over the next connection that comes later.
                    self.state.postpone();
                    return Err(cause.into());
                }
                (cause, _) => {
                    self.taken(&changes, done, refused);
                    let wait = self.state.postpone();
                    self.failed(&cause, wait);
                    return Ok(());
                }
            }
        }
        self.taken(&changes, changes.parts.len(), refused);
        self.works();
        Ok(())
    }

    /// The destination has answered for the first `done` of `changes`: it has all of them but `refused`, which
    /// it does not take as they are.
    fn taken(&mut self, changes: &Changes, done: usize, refused: BTreeMap<StateKey, String>) {
        self.state.published(changes, done, &refused);
        let mut warned = !self.refused.is_empty();
        for (path, reason) in &refused {
            let path = path.text();
            if warned {
                debug!(sink = %self.name, path, reason, "the destination refuses a part of the state");
            } else {
                warn!(sink = %self.name, path, reason, "the destination refuses a part of the state");
            }
            warned = true;
        }
        for part in changes.parts.iter().take(done) {
            self.refused.remove(&part.path);
        }
        self.refused.extend(refused);
    }

    /// All that can be published is.
    fn works(&mut self) {
        let parts = self.refused.first_key_value().map(|(path, reason)| {
            let first = format!("{} is refused: {reason}", path.text());
            match self.refused.len() - 1 {
                0 => first,
                more => format!("{first}; and {more} more"),
            }
        });
        let reasons: Vec<String> = parts.into_iter().chain(self.publisher.refused()).collect();
        self.health.report((!reasons.is_empty()).then(|| reasons.join("; ")).as_deref());
        self.complained = None;
        let remarks = self.publisher.remarks();
        for remark in remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            info!(sink = %self.name, remark, "about the destination of the state");
        }
        if remarks != self.remarks {
            self.status.sink(&self.name, |row| row.state_remarks.clone_from(&remarks));
            self.remarks = remarks;
        }
    }

    /// It is tried again after `wait`. The same is logged once a minute, not with every attempt.
    fn failed(&mut self, cause: &Cause, wait: Duration) {
        let text = explain(cause);
        self.health.report(Some(&text));
        let now = Instant::now();
        if self.complained.as_ref().is_some_and(|(at, last)| *last == text && now < *at + COMPLAIN)
        {
            debug!(sink = %self.name, error = text, ?wait, "the state is still not published");
        } else {
            warn!(sink = %self.name, error = text, ?wait, "the state is not published; it is tried again");
            self.complained = Some((now, text));
        }
    }

    /// Waits for the next attempt, or until there is reason to think that it is worth one.
    async fn rest(&mut self, wait: Duration) {
        let mut sleeps = clock::sleeps();
        tokio::select! {
            () = sleep_until(Instant::now() + wait) => {}
            Ok(()) = sleeps.changed() => {}
            Ok(()) = self.retries.changed() => {}
        }
    }

    /// Publishes that the relay goes.
    async fn publish_end(&mut self, end: Instant) {
        let parts = self.state.offline_parts();
        if parts.is_empty() {
            return;
        }
        let error = match timeout_at(end, self.publisher.publish(&parts)).await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => explain(&failure.cause),
            Err(_) => "no answer in time".to_owned(),
        };
        warn!(sink = %self.name, error, "the destination does not know that the relay goes");
    }
}
