//! By which id a stream recognises an event that is handed over once more.
//!
//! It is the event's key where the sink makes of an event what any does by default. What two sinks that make
//! something else of it put into one stream are two messages, so that such a sink has ids of its own; relays
//! that are configured alike have the same.

use std::borrow::Cow;

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::settings::{DEFAULT_SUBJECT, Settings};
use crate::{config::SinkConfig, sink::Outgoing};

/// The ids of one sink.
#[derive(Debug, Default)]
pub(super) struct MessageIds {
    /// What stands behind the key; empty where all is as by default.
    suffix: String,
}

impl MessageIds {
    pub(super) fn of(settings: &Settings, config: &SinkConfig) -> Self {
        let subject = settings.subject.as_deref().filter(|subject| *subject != DEFAULT_SUBJECT);
        let payload = Some(&*config.payload).filter(|payload| *payload != "message");
        if subject.is_none() && payload.is_none() && config.redact.is_none() {
            return Self::default();
        }
        let made = json!([subject, payload, config.redact]).to_string();
        Self { suffix: format!(".{:016x}", xxh3_64(made.as_bytes())) }
    }

    /// That of an event; empty where nothing tells a repeat of it.
    pub(super) fn of_event<'o>(&self, outgoing: &'o Outgoing) -> Cow<'o, str> {
        let key = outgoing.record.event.key();
        let replay = outgoing.record.replay.as_deref();
        if key.is_empty() || self.suffix.is_empty() && replay.is_none() {
            return Cow::Borrowed(key);
        }
        let mut id = format!("{key}{}", self.suffix);
        // A stream would take the event for a repeat of what it has.
        if let Some(replay) = replay {
            id.push('.');
            id.push_str(replay);
        }
        Cow::Owned(id)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::event::{Record, own};

    fn ids(settings: &serde_json::Value, config: &serde_json::Value) -> MessageIds {
        let mut merged = json!({"type": "nats"});
        for (key, value) in config.as_object().unwrap() {
            merged[key] = value.clone();
        }
        let config: SinkConfig = serde_json::from_value(merged).unwrap();
        let mut merged = json!({"url": "nats://host", "jetstream": true});
        for (key, value) in settings.as_object().unwrap() {
            merged[key] = value.clone();
        }
        MessageIds::of(&serde_json::from_value(merged).unwrap(), &config)
    }

    fn outgoing(id: &str, replay: Option<&str>) -> Outgoing {
        let mut event = own("relay.test", &"".into(), &"".into(), &json!({}), 1);
        event.id = id.into();
        let payload = event.message.clone();
        Outgoing {
            record: Arc::new(Record { replay: replay.map(Into::into), ..Record::new(1, event) }),
            address: "astro.tips".into(),
            payload,
            content_type: "application/json",
            expires_in: None,
            part: 0,
        }
    }

    #[test]
    fn sinks_that_make_something_else_of_an_event_give_it_another_id() {
        let event = outgoing("01J", None);
        let id = |settings: serde_json::Value, config: serde_json::Value| {
            ids(&settings, &config).of_event(&event).into_owned()
        };
        for (settings, config) in [
            (json!({}), json!({})),
            (json!({"subject": DEFAULT_SUBJECT}), json!({"payload": "message"})),
            (json!({"headers": "all"}), json!({"topics": ["channel.tips"]})),
        ] {
            assert_eq!(id(settings, config), "01J");
        }
        let all = [
            id(json!({"subject": "a.{{ topic }}"}), json!({})),
            id(json!({"subject": "b.{{ topic }}"}), json!({})),
            id(json!({}), json!({"payload": "cloudevent"})),
            id(json!({}), json!({"payload": "{{ data.amount }}"})),
            id(json!({"subject": "a.{{ topic }}"}), json!({"payload": "data"})),
            id(json!({}), json!({"redact": []})),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(one.starts_with("01J.") && one.len() == 20, "{one}");
            assert!(!all[..index].contains(one), "{all:?}");
        }
        let again = id(json!({"subject": "a.{{ topic }}"}), json!({"topics": ["channel.tips"]}));
        assert_eq!(again, all[0], "it makes the same of an event");
    }

    #[test]
    fn a_replay_that_is_resumed_gives_its_events_the_same_ids() {
        let of = |id, replay| MessageIds::default().of_event(&outgoing(id, replay)).into_owned();
        assert_eq!(of("01J", Some("7-2")), "01J.7-2");
        assert_eq!(of("01J", Some("7-2")), of("01J", Some("7-2")));
        assert_ne!(of("01J", Some("8-3")), of("01J", Some("7-2")), "somebody asks once more");
    }

    #[test]
    fn an_event_without_an_id_has_none_in_a_replay_either() {
        let ids = ids(&json!({"subject": "a.{{ topic }}"}), &json!({}));
        assert_eq!(ids.of_event(&outgoing("", None)), "");
        assert_eq!(ids.of_event(&outgoing("", Some("7-2"))), "");
    }
}
