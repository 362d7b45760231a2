//! Which configurations at the broker are of our entities, and which of those are out of date.

use std::fmt::Write as _;

use serde_json::Value;

use super::{ChannelTopics, HaDiscovery, RELAY};
use crate::{config::Action, delivery::ha_event::ACTIVITIES};

/// Whose a configuration is that another client has announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It is of an entity of ours.
    Ours,
    /// A relay announced it; of which, it does not say.
    SomeRelays,
}

/// One or several words as one that may stand in a discovery topic: `[a-zA-Z0-9_-]`. Different words
/// never become the same: what is no small letter, digit or hyphen is written as `_` and its number,
/// and between two words stands `__`.
pub(super) fn id(words: &[&str]) -> String {
    let mut id = String::new();
    for (place, word) in words.iter().enumerate() {
        if place > 0 {
            id.push_str("__");
        }
        for byte in word.bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' => id.push(char::from(byte)),
                // Writing to a string cannot fail.
                other => drop(write!(id, "_{other:02x}")),
            }
        }
    }
    id
}

impl HaDiscovery {
    /// The filter that matches every configuration of ours, those of earlier days too.
    pub fn own_filter(&self) -> String {
        format!("{}/+/{}/+/config", self.prefix, id(&[&self.node]))
    }

    /// Whether a topic is matched by [`HaDiscovery::own_filter`](super::HaDiscovery::own_filter).
    pub fn owns(&self, topic: &str) -> bool {
        let rest = topic.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('/'));
        let parts: Vec<&str> = rest.unwrap_or_default().split('/').collect();
        matches!(parts.as_slice(), [_, node, _, "config"] if *node == id(&[&self.node]))
    }

    /// The filter that matches every configuration of everybody.
    pub fn every_filter(&self) -> String {
        format!("{}/+/+/+/config", self.prefix)
    }

    /// Whether it is known what is ours beside our own client id.
    pub fn has_identity(&self) -> bool {
        !self.channels.is_empty()
    }

    /// What the ids of a channel's entities begin with.
    pub(super) fn of_room(&self, channel: &str) -> String {
        match self.channels.get(channel).and_then(|feed| feed.room.as_deref()) {
            Some(room) => format!("{RELAY}-{room}"),
            None => RELAY.to_owned(),
        }
    }

    /// What the ids of the relay's own entities begin with: of all rooms the first.
    pub(super) fn own_identity(&self) -> String {
        match self.channels.values().filter_map(|feed| feed.room.as_deref()).min() {
            Some(room) => format!("{RELAY}-{room}"),
            None => RELAY.to_owned(),
        }
    }

    /// Whether a configuration that we have announced before has the `unique_id` that it would have today.
    pub fn is_of_today(&self, topic: &str, payload: &[u8]) -> bool {
        let place = topic.rsplit('/').nth(1).unwrap_or_default();
        let channel = self.channels.keys().find(|channel| {
            place.strip_prefix(&id(&[channel])).is_some_and(|rest| rest.starts_with("__"))
        });
        let begin = channel.map_or_else(|| self.own_identity(), |channel| self.of_room(channel));
        let known = serde_json::from_slice::<Value>(payload).ok();
        let unique = known.as_ref().and_then(|known| known.get("unique_id")?.as_str());
        unique == Some(&*format!("{}__{place}", id(&[&begin])))
    }

    /// Whether a configuration that another client has announced is a relay's, and whether ours: we had
    /// another client id then. Answers that client's part of the topic too.
    pub fn whose(&self, topic: &str, payload: &[u8]) -> Option<(String, Whose)> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let mut parts = rest.split('/');
        let (_, node, _, last) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if last != "config" || parts.next().is_some() || self.others.iter().any(|o| o == node) {
            return None;
        }
        // Most are of other programs.
        if !payload.windows(RELAY.len()).any(|part| part == RELAY.as_bytes()) {
            return None;
        }
        let config: Value = serde_json::from_slice(payload).ok()?;
        if config.pointer("/origin/name").and_then(Value::as_str) != Some(RELAY) {
            return None;
        }
        let unique = config.get("unique_id").and_then(Value::as_str)?;
        let begins = |words: &[&str]| {
            unique.strip_prefix(&*id(words)).is_some_and(|rest| rest.starts_with("__"))
        };
        let own = self.own_identity();
        let mut ours = own != RELAY && begins(&[&own]);
        for (channel, feed) in &self.channels {
            let identity = self.of_room(channel);
            ours |= identity != RELAY && begins(&[&identity, channel]);
            // Of a version that knew no rooms, or of a channel that names none: it is ours if it is kept
            // where ours is.
            ours |= begins(&[RELAY, channel]) && shows(&config, &feed.base);
        }
        Some((node.to_owned(), if ours { Whose::Ours } else { Whose::SomeRelays }))
    }

    /// Whether a channel's session is received.
    pub fn has_session(&self, channel: &str) -> bool {
        self.channels.get(channel).is_some_and(ChannelTopics::has_session)
    }

    /// Where Home Assistant says that it has started.
    pub fn birth_topic(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// Whether a configuration of ours that the broker keeps is to be cleared. Not where it is of an
    /// element that may yet come to be known: with the entity would go what its user has made of it.
    pub fn is_stale(&self, topic: &str, announced: impl FnOnce(&str) -> bool) -> bool {
        if !self.owns(topic) || announced(topic) {
            return false;
        }
        let mut parts = topic.rsplit('/').skip(1);
        let (place, component) = (parts.next().unwrap_or_default(), parts.nth(1));
        let known = self.channels.iter().find_map(|(label, channel)| {
            let object = place.strip_prefix(&id(&[label]))?.strip_prefix("__")?;
            Some((channel, object))
        });
        let awaited = known.is_some_and(|(channel, object)| match component {
            Some("sensor") => channel.awaits_sensor(object),
            Some("number") => channel.has_session() && self.commands.allow(Action::Set),
            Some("event") => channel.awaits_event(object),
            _ => false,
        });
        !(self.on && awaited)
    }
}

impl ChannelTopics {
    /// Whether what a sensor shows may still come. `object` is as it stands in a discovery topic.
    fn awaits_sensor(&self, object: &str) -> bool {
        let is_of = |objects: &str| object.starts_with(&id(&[objects]));
        if is_of(&counter_object("")) {
            self.subscribes("channel.chatbot.counters")
        } else if is_of(&paid_object("")) {
            self.subscribes(ACTIVITIES)
        } else {
            self.has_session()
        }
    }

    /// Whether it may be the event entity of a kind of payment that is announced when its state is known. The
    /// documented kinds are announced from the start.
    fn awaits_event(&self, object: &str) -> bool {
        self.subscribes(ACTIVITIES) && object.starts_with(&id(&[&event_object("")]))
    }
}

/// What is shown of a kind of payment.
pub(super) fn paid_object(kind: &str) -> String {
    format!("paid/{kind}")
}

/// What is shown of a kind of event.
pub(super) fn event_object(kind: &str) -> String {
    format!("event/{kind}")
}

/// What is shown of a counter.
pub(super) fn counter_object(counter: &str) -> String {
    format!("counter/{counter}")
}

/// Whether an entity shows what is kept below `base`.
fn shows(config: &Value, base: &str) -> bool {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let availability = config.get("availability").and_then(Value::as_array);
    let mut topics: Vec<String> =
        availability.into_iter().flatten().filter_map(|one| text(one.get("topic"))).collect();
    topics.extend(text(config.get("state_topic")));
    topics.iter().any(|topic| topic.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')))
}
