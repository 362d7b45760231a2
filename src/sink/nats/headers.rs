//! What goes with an event beside its payload.

use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderName, header};

use super::settings::{DEFAULT_SUBJECT, Headers, Settings};
use crate::{base::event::Origin, sink::Outgoing};

/// What a stream recognises a repeat by.
pub(crate) const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
/// The deduplication key, where the message id is more than that.
const KEY: HeaderName = HeaderName::from_static("Astro-Key");
pub(crate) const ID: HeaderName = HeaderName::from_static("Astro-Id");
pub(crate) const TOPIC: HeaderName = HeaderName::from_static("Astro-Topic");
pub(crate) const ROOM: HeaderName = HeaderName::from_static("Astro-Room");
pub(crate) const CHANNEL: HeaderName = HeaderName::from_static("Astro-Channel");
pub(crate) const TS: HeaderName = HeaderName::from_static("Astro-Ts");
pub(crate) const ORIGIN: HeaderName = HeaderName::from_static("Astro-Origin");

/// Which headers an event has.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each stands for a header or a group of them")]
pub(super) struct HeaderPolicy {
    /// The message id, where a stream looks for it or the payload does not hold it.
    id: bool,
    /// Astro's envelope, where the payload is not the whole message.
    envelope: bool,
    /// The channel, where the subject does not name it.
    channel: bool,
    /// Even what everybody assumes: that it came live.
    all: bool,
}

impl HeaderPolicy {
    pub(super) fn of(settings: &Settings, payload: &str) -> Self {
        let subject = settings.subject.as_deref().unwrap_or(DEFAULT_SUBJECT);
        let all = settings.headers == Headers::All;
        let envelope = all || payload != "message";
        Self {
            id: settings.jetstream || envelope,
            envelope,
            channel: all || !subject.contains("channel }}"),
            all,
        }
    }

    /// The headers of an event with this message id. A stream stores it only behind the message `behind`.
    pub(super) fn headers(self, outgoing: &Outgoing, id: &str, behind: Option<&str>) -> HeaderMap {
        const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
        let event = &outgoing.record.event;
        let mut headers = HeaderMap::new();
        let mut insert = |name: HeaderName, value: &str| {
            if !value.is_empty() {
                headers.insert(name, &*presentable(value));
            }
        };
        // The key of a message that shares its id with another stands nowhere else.
        if self.id || event.distinct_key.is_some() {
            insert(MESSAGE_ID, id);
            if id != event.key() {
                insert(KEY, event.key());
            }
        }
        if self.envelope {
            insert(ID, &event.id);
            insert(TOPIC, &event.place.topic);
            insert(ROOM, &event.place.room);
            insert(TS, &event.ts);
            insert(CONTENT_TYPE, outgoing.content_type);
        }
        if self.channel {
            insert(CHANNEL, &event.place.channel);
        }
        if self.all || event.origin != Origin::Live {
            insert(ORIGIN, event.origin.as_str());
        }
        if let Some(behind) = behind {
            insert(header::NATS_EXPECTED_LAST_MESSAGE_ID, behind);
        }
        headers
    }
}

/// A text as a header may hold it: a line end would begin the next header.
pub(crate) fn presentable(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte < b' ') {
        Cow::Owned(text.replace(|c: char| c < ' ', "\u{FFFD}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn outgoing(distinct_key: Option<&str>) -> Outgoing {
        let mut event =
            crate::base::event::own("relay.test", &"".into(), &"".into(), &json!({}), 1);
        event.distinct_key = distinct_key.map(Into::into);
        let message = event.message.clone();
        Outgoing {
            record: Arc::new(crate::base::event::Record::new(1, event)),
            address: "astro.tips".into(),
            payload: message,
            content_type: "application/json",
            expires_in: None,
            part: 0,
        }
    }

    #[test]
    fn the_key_stands_alone_where_the_message_id_is_more() {
        let settings = json!({"url": "nats://host", "jetstream": true});
        let settings: Settings = serde_json::from_value(settings).unwrap();
        let policy = HeaderPolicy::of(&settings, "message");
        for (id, key) in [("01J-f", None), ("01J-f.7-2", Some("01J-f"))] {
            let headers = policy.headers(&outgoing(Some("01J-f")), id, None);
            let value = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
            assert_eq!((value("Nats-Msg-Id"), value("Astro-Key")), (Some(id), key));
        }
    }

    #[test]
    fn a_message_that_shares_its_id_has_a_key_in_its_headers() {
        let message_id = |settings: serde_json::Value, distinct_key: Option<&str>| {
            let outgoing = outgoing(distinct_key);
            let settings: Settings = serde_json::from_value(settings).unwrap();
            let headers = HeaderPolicy::of(&settings, "message").headers(
                &outgoing,
                outgoing.record.event.key(),
                None,
            );
            headers.get("Nats-Msg-Id").map(ToString::to_string)
        };
        let core = json!({"url": "nats://host"});
        assert_eq!(message_id(core.clone(), None), None, "the payload says it");
        assert_eq!(message_id(core, Some("01J-f")).as_deref(), Some("01J-f"));
        let stream = json!({"url": "nats://host", "jetstream": true});
        assert!(message_id(stream.clone(), None).is_some());
        assert_eq!(message_id(stream, Some("01J-f")).as_deref(), Some("01J-f"));
    }

    #[test]
    fn line_ends_in_a_header_are_replaced() {
        assert_eq!(presentable("a\r\nX-Evil: 1"), "a\u{FFFD}\u{FFFD}X-Evil: 1");
        assert!(matches!(presentable("Zoë"), Cow::Borrowed("Zoë")));
    }
}
