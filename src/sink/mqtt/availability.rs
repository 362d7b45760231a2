//! The availability topic: a retained `online` while the relay is connected, and `offline` otherwise.
//!
//! It is for sinks that publish no state; with state there is the status of the relay, on a connection
//! that has the last will instead. When another client writes over the topic it is corrected, but not more
//! often than every [`CORRECTIONS`]: the other may be a relay that corrects as we do.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    connection::{Connection, Event, Message, Publication, Tag, Terms, Unsent, Will},
    lost::{Lost, Verdict, Why},
};

/// The words are those that Home Assistant expects.
const ONLINE: &[u8] = b"online";
const OFFLINE: &[u8] = b"offline";

/// Time between two corrections.
const CORRECTIONS: Duration = Duration::from_mins(1);

/// No event has this number.
const TAG: Tag = Tag::MAX;

#[derive(Debug)]
pub(super) struct Availability {
    topic: String,
    /// Another client has written over it.
    overwritten: bool,
    corrected: Option<Instant>,
    /// Whether the broker lets us read it.
    readable: bool,
}

impl Availability {
    pub(super) fn new(topic: String) -> Self {
        Self { topic, overwritten: false, corrected: None, readable: true }
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
        self.publish(connection, ONLINE, qos)?;
        self.answered(connection).await?;
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
        self.answered(connection).await
    }

    pub(super) fn received(&mut self, message: &Message, terms: &Terms) {
        // Of 3.1.1 nobody can see whether the broker retains it.
        if message.topic == self.topic && (message.retain || terms.echoes) {
            self.overwritten = message.payload != ONLINE;
        }
    }

    pub(super) fn correction_due(&self) -> Option<Instant> {
        let due = || self.corrected.map_or_else(Instant::now, |last| last + CORRECTIONS);
        self.overwritten.then(due)
    }

    pub(super) fn correct(&mut self, connection: &mut Connection, qos: u8) -> Result<(), Lost> {
        tracing::warn!(topic = self.topic, "another client wrote over this; it is corrected");
        self.overwritten = false;
        self.corrected = Some(Instant::now());
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

    async fn answered(&self, connection: &mut Connection) -> Result<(), Lost> {
        loop {
            match connection.next().await? {
                Event::Written(TAG) | Event::Answered(TAG, Verdict::Accepted) => return Ok(()),
                Event::Answered(TAG, verdict) => {
                    tracing::warn!(
                        topic = self.topic,
                        ?verdict,
                        "the broker does not take our availability"
                    );
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}
