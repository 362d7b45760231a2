//! An event as a message of the log, and back.
//!
//! The payload is the event's own bytes; all else is in headers, so that any program that speaks NATS can
//! read it:
//!
//! | header | what |
//! |---|---|
//! | `Nats-Msg-Id` | the deduplication key: the same on every member, for live and fetched copies |
//! | `Astro-Topic`, `Astro-Room`, `Astro-Channel`, `Astro-Ts` | the envelope |
//! | `Astro-Id` | its id, where that is not the key |
//! | `Astro-Origin` | `backfilled`, `replayed` or `test`; without it: live |
//! | `Astro-Relay` | four words: when it was read, milliseconds since 1970 by the member's clock; milliseconds from then to the moment it was handed to the log; where `data` lies in the payload, `start-end`; the member that published it |
//!
//! What only relays need is one header, since each costs as much as some hundred bytes of payload.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Cluster;
use crate::{
    base::{
        clock,
        event::{Event, Origin, Place, Record, Seq, Waited},
    },
    sink::nats::headers::{CHANNEL, ID, MESSAGE_ID, ORIGIN, ROOM, TOPIC, TS, presentable},
};

const RELAY: HeaderName = HeaderName::from_static("Astro-Relay");

/// The last word of the subject of an event that belongs to no channel. No label has capitals.
const NO_CHANNEL: &str = "RELAY";

/// What the message id of an event ends with whose key the log knows without having stored it.
pub(super) const AGAIN: char = '~';

/// The subject of an event.
pub(super) fn subject(cluster: &str, event: &Event) -> String {
    let channel = &*event.place.channel;
    format!("{cluster}.log.{}", if channel.is_empty() { NO_CHANNEL } else { channel })
}

/// What the log knows a copy of an event by. A message that has no key of its own is known by its bytes: two
/// members received it, and nothing else tells that it is one.
pub(super) fn key(event: &Event) -> String {
    if event.key().is_empty() {
        let place = xxh3_64_with_seed(event.place.topic.as_bytes(), 0);
        return format!("m{:016x}", xxh3_64_with_seed(&event.message, place));
    }
    event.key().to_owned()
}

/// The headers of an event.
pub(super) fn headers(record: &Record, member: &str) -> HeaderMap {
    let event = &record.event;
    let mut headers = HeaderMap::new();
    let mut insert = |name: HeaderName, value: &str| {
        if !value.is_empty() {
            headers.insert(name, &*presentable(value));
        }
    };
    let key = key(event);
    insert(MESSAGE_ID, &key);
    insert(TOPIC, &event.place.topic);
    insert(ROOM, &event.place.room);
    insert(CHANNEL, &event.place.channel);
    insert(TS, &event.ts);
    if event.origin != Origin::Live {
        insert(ORIGIN, event.origin.as_str());
    }
    let (received, waited) = (event.received, record.age().as_millis());
    let (start, end) = (event.data.start, event.data.end);
    insert(RELAY, &format!("{received} {waited} {start}-{end} {member}"));
    if key != *event.id {
        headers.insert(ID, &*presentable(&event.id));
    }
    headers
}

/// What an event is published with: its subject and its headers.
pub(super) fn of(cluster: &Cluster, record: &Record) -> (String, HeaderMap) {
    let subject = subject(&cluster.settings().name, &record.event);
    (subject, headers(record, cluster.member()))
}

/// Reads a message of the log; `stored` is how long ago the log stored it. What lacks a header is an event
/// all the same: somebody else may have written it.
pub(super) fn record(seq: Seq, headers: &HeaderMap, payload: &Bytes, stored: Duration) -> Record {
    let text = |name: HeaderName| headers.get(name).map_or("", |value| value.as_str());
    let key = key_in(headers).unwrap_or_default();
    let id = headers.get(ID).map_or(key, |id| id.as_str());
    let mut words = text(RELAY).splitn(4, ' ');
    let received = words.next().and_then(|word| word.parse().ok());
    let waited = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let data = words
        .next()
        .and_then(|word| word.split_once('-'))
        .and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?))
        .filter(|data: &std::ops::Range<usize>| payload.get(data.clone()).is_some())
        .unwrap_or_default();
    let waited = Duration::from_millis(waited).saturating_add(stored);
    let event = Event {
        id: id.into(),
        distinct_key: (key != id).then(|| key.into()),
        place: Place::of(text(TOPIC), text(ROOM), text(CHANNEL)),
        ts: text(TS).into(),
        received: received.unwrap_or_else(|| clock::ago(waited)),
        origin: Origin::from_word(text(ORIGIN)).unwrap_or_default(),
        message: payload.clone(),
        data,
        may_have_personal_fields: true,
    };
    Record { seq, stored: event.received, event, waited: Waited::already(waited), replay: None }
}

/// The member that published a message.
pub(super) fn member(headers: &HeaderMap) -> &str {
    headers.get(RELAY).and_then(|value| value.as_str().splitn(4, ' ').nth(3)).unwrap_or_default()
}

/// The key of a message of the log, under whichever message id it was published.
pub(super) fn key_in(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(MESSAGE_ID)?.as_str();
    Some(id.strip_suffix(AGAIN).unwrap_or(id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event::{key as event_key, own};

    fn there_and_back(event: Event) -> Event {
        let record = Record::new(7, event);
        let headers = headers(&record, "relay-1");
        super::record(9, &headers, &record.event.message, Duration::ZERO).event
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let event = own("channel.tips", &"main".into(), &"r".into(), &json!({"_id": "a"}), 7);
        assert_eq!(there_and_back(event.clone()), event);
        let key = event_key::of("01J", "", "channel.tips", "r", event.data());
        let event = Event { distinct_key: Some(key), origin: Origin::Backfilled, ..event };
        assert_eq!(there_and_back(event.clone()), event);
        assert_eq!(there_and_back(event.clone()).data(), event.data());
        let event = Event { id: "".into(), distinct_key: Some("m1".into()), ..event };
        assert_eq!(there_and_back(event.clone()), event);
    }

    #[test]
    fn an_event_under_a_second_message_id_has_its_own_key() {
        let event = own("channel.tips", &"main".into(), &"r".into(), &json!({"_id": "a"}), 7);
        let mut headers = headers(&Record::new(7, event.clone()), "relay-1");
        headers.insert(MESSAGE_ID, format!("{}{AGAIN}", event.key()));
        assert_eq!(record(9, &headers, &event.message, Duration::ZERO).event, event);
    }

    #[test]
    fn a_message_without_a_key_is_known_by_its_bytes() {
        let event = |data: &str| Event {
            id: "".into(),
            distinct_key: Some("".into()),
            ..crate::base::event::own_text("astro", &"".into(), &"".into(), data, 7)
        };
        let (one, other) = (event("1"), event("2"));
        let one = Event { message: "{1}".into(), data: 1..2, ..one };
        let other = Event { message: "{2}".into(), data: 1..2, ..other };
        assert_eq!(key(&one), key(&one.clone()));
        assert_ne!(key(&one), key(&other));
        assert_eq!(subject("astro", &one), "astro.log.RELAY");
    }

    #[test]
    fn what_lacks_a_header_is_an_event_all_the_same() {
        let found = record(1, &HeaderMap::new(), &"{}".into(), Duration::from_secs(3));
        assert_eq!((found.event.key(), found.event.data()), ("", &b"null"[..]));
        let mut headers = HeaderMap::new();
        headers.insert(RELAY, "x -1 5-900");
        assert_eq!(record(1, &headers, &"{}".into(), Duration::ZERO).event.data(), b"null");
        assert!(found.age() >= Duration::from_secs(3));
    }

    /// What a server may write must not begin another header.
    #[test]
    fn a_line_end_in_a_field_ends_no_header() {
        let event = own("a\r\nNats-Rollup: all", &"main".into(), &"".into(), &json!({}), 7);
        let headers = headers(&Record::new(1, event), "relay-1");
        assert!(headers.get("Nats-Rollup").is_none());
        assert!(headers.get(TOPIC).is_some_and(|topic| !topic.as_str().contains('\n')));
    }
}
