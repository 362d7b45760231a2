//! What the rest of the layer, and whoever uses it, exchange with a connection.

use std::time::Duration;

use bytes::Bytes;

use super::super::lost::{Lost, Verdict};

/// Name, TCP, TLS and the broker's CONNACK together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests beside the window that fit into the client's channel: subscriptions and the DISCONNECT.
pub(super) const SPARE_REQUESTS: usize = 16;

/// Bytes of payload on their way at once, as far as they are more than one publication.
pub(super) const MAX_OUTSTANDING_BYTES: usize = 1024 * 1024;

/// The largest packet that is accepted where anything is subscribed. In MQTT 5 the broker is told, and
/// keeps larger ones to itself.
pub(super) const MAX_PACKET: u32 = 64 * 1024;

/// The same for MQTT 3.1.1, where a larger packet ends the connection: nobody should be able to end it
/// with what a broker lets through by the way.
pub(super) const MAX_PACKET_V4: usize = 1024 * 1024;

/// What the broker publishes for us, retained, when the connection breaks off.
#[derive(Debug, Clone)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
}

/// What the broker allows, from its CONNACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) max_qos: u8,
    /// Whether it keeps retained messages.
    pub(crate) retain: bool,
    /// Whether it takes subscriptions with wildcards.
    pub(crate) wildcards: bool,
    /// How many publications it takes unanswered.
    pub(crate) receive_max: usize,
    /// Whether what we publish comes back to us where we have subscribed: MQTT 3.1.1 cannot say that it
    /// is not to.
    pub(crate) echoes: bool,
}

/// By what its sender knows a publication.
pub(crate) type Tag = u64;

/// What is published. MQTT 3.1.1 has no place for the properties.
#[derive(Debug, Default)]
pub(crate) struct Publication<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: Bytes,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) expires_in: Option<Duration>,
    pub(crate) correlation: Option<Bytes>,
    pub(crate) user_properties: &'a [(&'a str, &'a str)],
}

/// Why nothing was handed to the client.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// It can never be sent over this connection: the topic is illegal, the packet too large.
    Refused(String),
    /// The connection is over.
    Lost(Lost),
}

impl From<Lost> for Unsent {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The publication with this tag was written. It is of QoS 0, so that no answer follows.
    Written(Tag),
    /// The broker has answered the publication with this tag.
    Answered(Tag, Verdict),
    /// Something came on what is subscribed.
    Received(Message),
    /// The broker has answered a subscription, and refused so many of its filters.
    Subscribed { refused: usize },
    /// The broker has answered an unsubscription; all that was written before it has been read.
    Unsubscribed,
    /// The DISCONNECT was written, all is answered.
    Disconnected,
    /// Nothing that matters.
    Other,
}

/// A message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    /// MQTT 5: it was published to be retained. MQTT 3.1.1: it was retained before we subscribed, or is
    /// empty and may clear what was; of all else nobody can see it.
    pub(crate) retain: bool,
    /// The broker sends it again.
    pub(crate) duplicate: bool,
    /// MQTT 5 only.
    pub(crate) response_topic: Option<String>,
    /// MQTT 5 only.
    pub(crate) correlation: Option<Bytes>,
}

/// One event of a client library, in the words of both.
#[derive(Debug)]
pub(super) enum Signal {
    /// The oldest publication without a packet id got this one; 0 in QoS 0.
    Sent(u16),
    Answered(u16, Verdict),
    Event(Event),
}
