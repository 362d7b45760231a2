//! The availability topic: a retained `online` while the relay is connected, and `offline` otherwise.
//!
//! It is for sinks that publish no state; with state there is the status of the relay, on a connection
//! that has the last will instead. When another client writes over the topic it is corrected, but not more
//! often than every [`CORRECTIONS`]: the other may be a relay that corrects as we do. What the broker does
//! not take at the moment is published again after a wait.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    connection::{Connection, Event, Message, Publication, Tag, Terms, Unsent, Will},
    lost::{Lost, Verdict, Why},
};
use crate::base::backoff::Backoff;

/// The words are those that Home Assistant expects.
const ONLINE: &[u8] = b"online";
const OFFLINE: &[u8] = b"offline";

/// Time between two corrections.
const CORRECTIONS: Duration = Duration::from_mins(1);

/// The first wait after a refusal, at most, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// No event has this number.
pub(super) const TAG: Tag = Tag::MAX;

#[derive(Debug)]
pub(super) struct Availability {
    topic: String,
    /// Another client has written over it.
    overwritten: bool,
    corrected: Option<Instant>,
    /// The broker did not take ours: when it is published again.
    retry: Option<Instant>,
    refusals: Backoff,
    /// Whether the broker lets us read it.
    readable: bool,
}

impl Availability {
    pub(super) fn new(topic: String) -> Self {
        Self {
            topic,
            overwritten: false,
            corrected: None,
            retry: None,
            refusals: Backoff::new(RETRY.0, RETRY.1),
            readable: true,
        }
    }

    pub(super) fn will(&self) -> Will {
        Will { topic: self.topic.clone(), payload: Bytes::from_static(OFFLINE) }
    }

    /// Publishes `online` on a new connection, and subscribes so that it stays.
    pub(super) async fn announce(
        &mut self,
        connection: &mut Connection,
        qos: u8,
    ) -> Result<(), Lost> {
        self.overwritten = false;
        self.retry = None;
        self.publish(connection, ONLINE, qos)?;
        let verdict = answer(connection).await?;
        self.answered(&verdict);
        connection.subscribe(vec![self.topic.clone()], connection.qos(qos.min(1)))?;
        loop {
            match connection.next().await? {
                Event::Subscribed { refused } => break self.readable = refused == 0,
                // In 3.1.1 our own comes back.
                Event::Received(message) => self.received(&message, connection.terms()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Publishes `offline`.
    pub(super) async fn withdraw(&self, connection: &mut Connection, qos: u8) -> Result<(), Lost> {
        self.publish(connection, OFFLINE, qos)?;
        let verdict = answer(connection).await?;
        if verdict != Verdict::Accepted {
            self.complain(&verdict);
        }
        Ok(())
    }

    /// The broker has answered `online`.
    pub(super) fn answered(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Accepted => self.refusals.reset(),
            Verdict::Busy(_) => {
                self.retry = Some(Instant::now() + self.refusals.wait());
                if self.refusals.attempts() == 1 {
                    self.complain(verdict);
                }
            }
            Verdict::Refused(_) | Verdict::Denied(_) => self.complain(verdict),
            Verdict::Pending => {}
        }
    }

    pub(super) fn received(&mut self, message: &Message, terms: &Terms) {
        // Of 3.1.1 nobody can see whether the broker retains it.
        if message.topic == self.topic && (message.retain || terms.echoes) {
            // As long as ours is not taken, the last will stands there.
            self.overwritten = self.retry.is_none() && message.payload != ONLINE;
        }
    }

    pub(super) fn correction_due(&self) -> Option<Instant> {
        let due = || self.corrected.map_or_else(Instant::now, |last| last + CORRECTIONS);
        self.overwritten.then(due).into_iter().chain(self.retry).min()
    }

    pub(super) fn correct(&mut self, connection: &mut Connection, qos: u8) -> Result<(), Lost> {
        if std::mem::take(&mut self.overwritten) {
            tracing::warn!(topic = self.topic, "another client wrote over this; it is corrected");
            self.corrected = Some(Instant::now());
        }
        self.retry = None;
        self.publish(connection, ONLINE, qos)
    }

    pub(super) fn fact(&self) -> Option<String> {
        let text = "the broker does not let us read the availability topic: it is not corrected when \
                    another client writes over it";
        (!self.readable).then(|| text.to_owned())
    }

    fn publish(
        &self,
        connection: &mut Connection,
        payload: &'static [u8],
        qos: u8,
    ) -> Result<(), Lost> {
        let publication = Publication {
            topic: &self.topic,
            payload: Bytes::from_static(payload),
            qos: connection.qos(qos.min(1)),
            retain: true,
            ..Publication::default()
        };
        connection.publish(publication, TAG).map_err(|unsent| match unsent {
            Unsent::Lost(lost) => lost,
            Unsent::Refused(reason) => Lost::new(
                Why::Denied,
                format!("the availability topic cannot be published: {reason}"),
            ),
        })
    }

    fn complain(&self, verdict: &Verdict) {
        tracing::warn!(topic = self.topic, ?verdict, "the broker does not take our availability");
    }
}

/// Waits for the broker's answer to what was published here.
async fn answer(connection: &mut Connection) -> Result<Verdict, Lost> {
    loop {
        match connection.next().await? {
            Event::Written(TAG) => return Ok(Verdict::Accepted),
            Event::Answered(TAG, verdict) => return Ok(verdict),
            _ => {}
        }
    }
}
