//! An event: what Astro said, its bytes untouched, and when the relay read it.
//!
//! The relay parses the envelope once and keeps the message as it came from the socket; everything
//! that a sink may need beside it (topic, room, channel, id) stands here. Events of the relay's own
//! (topics `relay.*`) are written in the same envelope, so that nothing after this point has to tell
//! the two apart.
//!
//! [`Event::key`] is what a destination deduplicates by. It is a function of the message alone, see
//! [`key`] for its form.

pub(crate) mod key;

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::base::clock::{Moment, UnixMillis};

/// The names of fields that say who a donor is, in any case of letters: the last words of the configuration's
/// `PERSONAL_FIELDS`.
pub(crate) const PERSONAL_NAMES: [&str; 4] = ["email", "geo", "paymentMethod", "transactionId"];

/// A position in the journal. The first event of a journal has number 1; 0 is "before all".
pub type Seq = u64;

/// One message, as it came, and what the relay knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Astro's `id` (a ULID), or one that the relay made for an event of its own.
    pub id: Box<str>,
    /// The deduplication key ([`key`]) of a message of Astro's. `None` in the relay's own events, whose ids
    /// are unique, and in those that an earlier version wrote to the journal: there it is `id`.
    pub distinct_key: Option<Box<str>>,
    pub place: Arc<Place>,
    /// When it happened, as the sender wrote it (RFC 3339), or empty where it did not say.
    pub ts: Box<str>,
    /// When the relay read it, by the wall clock: for people and other programs. How long ago that was
    /// tells [`Record::age`].
    pub received: UnixMillis,
    pub origin: Origin,
    /// The whole message as JSON text, byte for byte as it came.
    pub message: Bytes,
    /// Where the value of `data` lies in `message`; empty where there is none.
    pub data: Range<usize>,
    /// Whether a member of the message may have one of the [`PERSONAL_NAMES`]; `true` where nobody has looked.
    pub may_have_personal_fields: bool,
}

/// Where an event belongs. The events of one place share it: to hand an event on touches one count then,
/// and not three.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Astro's `topic`, or `relay.…` for an event of the relay's own.
    pub topic: Arc<str>,
    /// The canonical room, or empty where it is not known.
    pub room: Arc<str>,
    /// The label of the configured channel, or empty where there is none.
    pub channel: Arc<str>,
}

impl Place {
    pub fn of(
        topic: impl Into<Arc<str>>,
        room: impl Into<Arc<str>>,
        channel: impl Into<Arc<str>>,
    ) -> Arc<Self> {
        Arc::new(Self { topic: topic.into(), room: room.into(), channel: channel.into() })
    }
}

/// How an event came to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Origin {
    /// Read from the gateway's socket, or made by the relay itself at that moment.
    #[default]
    Live,
    /// Fetched from a history after a gap.
    Backfilled,
    /// Handed on again at somebody's request.
    Replayed,
    /// Made by `send-test`; nothing happened on any channel.
    Test,
}

impl Origin {
    /// Every origin, in order: the journal writes down an origin's place here, so a new one comes at the
    /// end.
    pub const ALL: [Self; 4] = [Self::Live, Self::Backfilled, Self::Replayed, Self::Test];

    /// The word for it in headers and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Backfilled => "backfilled",
            Self::Replayed => "replayed",
            Self::Test => "test",
        }
    }

    /// The other direction of [`Origin::as_str`]; an unknown word is `None`.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| origin.as_str() == word)
    }
}

/// An event with its place in the journal.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number. Numbers only grow; a number is never used for two events.
    pub seq: Seq,
    pub event: Event,
    pub waited: Waited,
    /// When the journal, or the log of a cluster, stored it, by the clock there: grows with `seq` unless that
    /// clock is set back, and is the same whoever reads it.
    pub stored: UnixMillis,
    /// The replay that hands it on, where somebody asked for one: a destination is to take it once more, and
    /// to recognise a repeat of that.
    pub replay: Option<Arc<str>>,
}

/// The same event at the same place; how long it has waited differs with every look.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        (self.seq, &self.event) == (other.seq, &other.event)
    }
}

impl Eq for Record {}

/// How long an event has waited since the relay read it: by a clock that does not step, over restarts
/// too.
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    at: Moment,
    before: Duration,
}

impl Waited {
    /// It was read now.
    pub fn now() -> Self {
        Self::already(Duration::ZERO)
    }

    /// It has waited so long already.
    pub fn already(before: Duration) -> Self {
        Self { at: Moment::now(), before }
    }

    /// How much later it was read than `first`.
    pub fn behind(self, first: Self) -> Duration {
        first.before.saturating_sub(self.before).saturating_add(self.at.since(first.at))
    }

    /// How long that is by now.
    pub(crate) fn so_far(self) -> Duration {
        self.before.saturating_add(self.at.elapsed())
    }
}

impl Event {
    /// What a destination recognises a repeat by. Empty: nothing tells a repeat of this message.
    pub fn key(&self) -> &str {
        self.distinct_key.as_deref().unwrap_or(&self.id)
    }

    /// The value of `data` as JSON text; `null` where the message has none.
    pub fn data(&self) -> &[u8] {
        match self.message.get(self.data.clone()) {
            Some(data) if !data.is_empty() => data,
            _ => b"null",
        }
    }

    /// Bytes that this event holds in memory, roughly: for limits, not for accounts.
    pub(crate) fn weight(&self) -> usize {
        // 160 is the struct itself with its counters and the small boxes' headers.
        let key = self.distinct_key.as_ref().map_or(0, |key| key.len());
        160 + self.message.len() + self.id.len() + self.ts.len() + key
    }
}

impl Record {
    /// An event that was read now.
    pub fn new(seq: Seq, event: Event) -> Self {
        Self { seq, stored: event.received, event, waited: Waited::now(), replay: None }
    }

    pub fn age(&self) -> Duration {
        self.waited.so_far()
    }

    /// The event as one line of JSON: what the relay knows of it, and behind that `message`, which is
    /// the event's own or what is left of it for those who read the line.
    pub fn line(&self, message: &[u8]) -> String {
        let event = &self.event;
        let about = serde_json::json!({
            "seq": self.seq,
            "received": crate::base::clock::rfc3339(event.received),
            "origin": event.origin.as_str(),
            "channel": &*event.place.channel,
            "room": &*event.place.room,
        });
        let mut line = about.to_string();
        line.pop();
        let message = String::from_utf8_lossy(message).replace(['\n', '\r'], " ");
        format!("{line},\"message\":{message}}}")
    }
}

/// An event of the relay's own, in Astro's envelope. `topic` begins with `relay.`.
pub fn own(
    topic: &str,
    channel: &Arc<str>,
    room: &Arc<str>,
    data: &serde_json::Value,
    now: UnixMillis,
) -> Event {
    own_text(topic, channel, room, &data.to_string(), now)
}

/// The same, of data that is JSON text already.
pub fn own_text(
    topic: &str,
    channel: &Arc<str>,
    room: &Arc<str>,
    data: &str,
    now: UnixMillis,
) -> Event {
    made(ulid::Ulid::new().to_string(), topic, channel, room, data, now)
}

/// The topic of a report that events are missing.
pub(crate) const GAP: &str = "relay.gap";

/// A report of events that a sink will never get, for all channels alike.
pub(crate) fn lost(cause: &str, sink: &str, count: u64) -> Event {
    let data = serde_json::json!({"cause": cause, "sink": sink, "count": count});
    let no_channel: Arc<str> = "".into();
    own(GAP, &no_channel, &no_channel, &data, crate::base::clock::now())
}

/// An event that did not happen, for trying a way out: marked in each way that reaches some destination,
/// by its origin, by an id that begins with `test-`, and by `test` in its data.
pub fn test(
    topic: &str,
    channel: &Arc<str>,
    room: &Arc<str>,
    mut data: serde_json::Map<String, serde_json::Value>,
    now: UnixMillis,
) -> Event {
    data.insert("test".to_owned(), true.into());
    let (id, data) =
        (format!("test-{}", ulid::Ulid::new()), serde_json::Value::from(data).to_string());
    Event { origin: Origin::Test, ..made(id, topic, channel, room, &data, now) }
}

fn made(
    id: String,
    topic: &str,
    channel: &Arc<str>,
    room: &Arc<str>,
    data: &str,
    now: UnixMillis,
) -> Event {
    let ts = crate::base::clock::rfc3339(now);
    let (message, data) = envelope(&id, &ts, topic, room, data);
    Event {
        id: id.into(),
        distinct_key: None,
        place: Place::of(topic, Arc::clone(room), Arc::clone(channel)),
        ts: ts.into(),
        received: now,
        origin: Origin::Live,
        message,
        data,
        may_have_personal_fields: true,
    }
}

/// A message in Astro's envelope, and where its data lies in it. `data` is JSON text.
pub(crate) fn envelope(
    id: &str,
    ts: &str,
    topic: &str,
    room: &str,
    data: &str,
) -> (Bytes, Range<usize>) {
    let [id, ts, topic, room] = [id, ts, topic, room].map(serde_json::Value::from);
    let mut message =
        format!(r#"{{"id":{id},"ts":{ts},"type":"message","topic":{topic},"room":{room},"data":"#);
    let start = message.len();
    message.push_str(data);
    let end = message.len();
    message.push('}');
    (message.into(), start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_the_relays_own_reads_like_one_of_astros() {
        let data = serde_json::json!({"cause": "a \"quoted\" thing"});
        let event = own("relay.gap", &"main".into(), &"r1".into(), &data, 1_708_008_762_000);
        let text = std::str::from_utf8(&event.message).unwrap();
        let Ok(crate::astro::wire::ServerFrame::Message(envelope)) = crate::astro::wire::read(text)
        else {
            panic!("{text}")
        };
        assert_eq!((&*envelope.topic, &*envelope.room), ("relay.gap", "r1"));
        assert_eq!((&*envelope.id, &*envelope.ts), (&*event.id, "2024-02-15T14:52:42Z"));
        assert_eq!(envelope.data, event.data);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(event.data()).unwrap(), data);
    }
}
