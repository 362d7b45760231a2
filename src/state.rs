//! The live session of each channel: what its overlays show, folded from what is heard and fetched.
//!
//! [`Session`] is pure: events, snapshots and times go in, [`Change`]s come out. [`keeper`] is the
//! task around it: it follows the journal, fetches, and writes changes down as events of the topic
//! [`TOPIC`]. What a sink makes of them is not decided here.
//!
//! A snapshot takes time to fetch, and events go on meanwhile. What was heard after the fetch began
//! is at least as new as the snapshot, or is followed by an event that is, so it stays. Where a reset
//! was heard meanwhile, nothing of the snapshot can be trusted and it is fetched again.
//!
//! The one thing to know: the vendor's pages spell the same element in two ways (`latest_follower`,
//! `follower-latest`). [`Session::name`] brings them together, and drops no name that it does not
//! know.

pub mod keeper;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use crate::{
    board::{Path, Section},
    clock,
    event::{Event, Seq, UnixMillis},
};

/// The topic of a change.
pub const TOPIC: &str = "relay.session";

/// Topics that a session's elements are folded from.
pub const SESSION_TOPICS: [&str; 2] = ["channel.session.update", "channel.session.reset"];

/// Elements of one channel, at most: the documented session has 62, and a counter has one each.
const MOST: usize = 4096;

/// How an element came to its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An event said so.
    Live,
    /// The REST API said so.
    Fetched,
    /// A reset said so.
    Reset,
    /// It stood in the journal's file when the relay was started.
    Kept,
}

impl Source {
    /// The word in an event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Fetched => "fetched",
            Self::Reset => "reset",
            Self::Kept => "kept",
        }
    }
}

/// One element.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// Its value.
    pub value: Value,
    /// When that was last known to be true.
    pub at: UnixMillis,
    /// How it is known.
    pub source: Source,
    /// The event that said so last, or 0.
    heard: Seq,
}

/// An element has another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its name.
    pub element: String,
    /// Its value before; `None`: it was not there.
    pub before: Option<Value>,
    /// Its value now; `None`: it is no longer there.
    pub after: Option<Value>,
    /// How it is known.
    pub source: Source,
}

/// The state of one channel.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// The elements of the session, by their name in the REST API.
    elements: BTreeMap<String, Element>,
    /// What is no part of the session and is a state all the same: whether the stream is live, what
    /// the bot is, counters. By topic without `channel.`; only ever heard.
    facts: BTreeMap<String, Element>,
    /// The last reset.
    reset: Seq,
    /// When a snapshot was last taken in.
    fetched: Option<UnixMillis>,
}

impl Session {
    /// Elements and facts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Element)> {
        self.elements.iter().chain(&self.facts).map(|(name, element)| (name.as_str(), element))
    }

    /// When a snapshot was last taken in.
    pub fn fetched(&self) -> Option<UnixMillis> {
        self.fetched
    }

    /// Takes up what an earlier run had written down.
    pub fn restore(&mut self, name: String, value: Value, at: UnixMillis) {
        let element = Element { value, at, source: Source::Kept, heard: 0 };
        // No element of the vendor's has a dot in its name; every fact has.
        let map = if name.contains('.') { &mut self.facts } else { &mut self.elements };
        map.insert(name, element);
    }

    /// The name of an element that somebody calls `key`.
    pub fn name(&self, key: &str) -> String {
        if self.elements.contains_key(key) {
            return key.to_owned();
        }
        let dashed = key.replace('_', "-");
        match dashed.strip_prefix("latest-") {
            Some(family) if !self.elements.contains_key(&dashed) => format!("{family}-latest"),
            _ => dashed,
        }
    }

    /// An event of this channel was heard. What is no state, or makes no sense, changes nothing.
    pub fn hear(&mut self, event: &Event, seq: Seq) -> Vec<Change> {
        let Ok(data) = serde_json::from_slice::<Value>(event.data()) else { return Vec::new() };
        let heard = Heard { seq, at: event.received, source: Source::Live };
        match &*event.topic {
            "channel.session.update" => {
                let Some(key) = data.get("key").and_then(Value::as_str) else { return Vec::new() };
                let value = data.get("data").cloned().unwrap_or(Value::Null);
                let name = self.name(key);
                set(&mut self.elements, name, value, heard).into_iter().collect()
            }
            "channel.session.reset" => self.reset(data, heard),
            "channel.stream.status" | "channel.chatbot.status" => {
                let Value::Object(fields) = data else { return Vec::new() };
                // A time-out of a viewer comes on the bot's topic too, and is no state of anything.
                if fields.is_empty() || !fields.values().all(Value::is_boolean) {
                    return Vec::new();
                }
                let name = event.topic.trim_start_matches("channel.");
                let known = match self.facts.get(name) {
                    Some(Element { value: Value::Object(known), .. }) => known.clone(),
                    _ => Map::new(),
                };
                let fact = Value::Object(fact(known, fields, event.received));
                set(&mut self.facts, name.to_owned(), fact, heard).into_iter().collect()
            }
            "channel.chatbot.counters" => {
                let Some(counter) = data.get("counter").and_then(Value::as_str) else {
                    return Vec::new();
                };
                let name = format!("chatbot.counters.{counter}");
                let value = data.get("value").cloned().unwrap_or(Value::Null);
                set(&mut self.facts, name, value, heard).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The documentation's example has the elements themselves, its table has them in a session.
    fn reset(&mut self, data: Value, heard: Heard) -> Vec<Change> {
        let elements = match data {
            Value::Object(mut data) => match data.remove("session") {
                Some(Value::Object(mut session)) => match session.remove("data") {
                    Some(Value::Object(elements)) => elements,
                    _ => session,
                },
                Some(other) => {
                    data.insert("session".into(), other);
                    data
                }
                None => data,
            },
            _ => return Vec::new(),
        };
        self.reset = heard.seq;
        let heard = Heard { source: Source::Reset, ..heard };
        let names: Vec<_> =
            elements.into_iter().map(|(key, value)| (self.name(&key), value)).collect();
        let mut changes = self.remove(|name, _| names.iter().any(|(kept, _)| kept == name), heard);
        for (name, value) in names {
            changes.extend(set(&mut self.elements, name, value, heard));
        }
        changes
    }

    /// Takes in a snapshot that was asked for when `since` was the last event. `None`: there has been
    /// a reset since, so the snapshot may be of the session before it.
    pub fn merge(
        &mut self,
        snapshot: &Map<String, Value>,
        since: Seq,
        now: UnixMillis,
    ) -> Option<Vec<Change>> {
        if self.reset > since {
            return None;
        }
        self.fetched = Some(now);
        let fetched = Heard { seq: 0, at: now, source: Source::Fetched };
        let kept =
            |name: &str, element: &Element| element.heard > since || snapshot.contains_key(name);
        let mut changes = self.remove(kept, fetched);
        for (name, value) in snapshot {
            if self.elements.get(name).is_some_and(|known| known.heard > since) {
                continue;
            }
            changes.extend(set(&mut self.elements, name.clone(), value.clone(), fetched));
        }
        Some(changes)
    }

    fn remove(&mut self, kept: impl Fn(&str, &Element) -> bool, heard: Heard) -> Vec<Change> {
        let gone: Vec<_> =
            self.elements.extract_if(.., |name, element| !kept(name, element)).collect();
        let change = |(element, before): (String, Element)| Change {
            element,
            before: Some(before.value),
            after: None,
            source: heard.source,
        };
        gone.into_iter().map(change).collect()
    }
}

/// Where an element or a fact stands on the board.
pub fn place(channel: &Arc<str>, name: &str) -> Path {
    let (section, name) = match name {
        "stream.status" => (Section::Stream, ""),
        "chatbot.status" => (Section::Bot, ""),
        name => match name.strip_prefix("chatbot.counters.") {
            Some(counter) => (Section::Counters, counter),
            None => (Section::Session, name),
        },
    };
    Path { channel: Arc::clone(channel), section, name: name.into() }
}

/// What is known of the stream or the bot, with what was just said of it: Astro's own fields, `since`
/// when they are as they are, and for the stream a word beside.
fn fact(
    mut known: Map<String, Value>,
    said: Map<String, Value>,
    at: UnixMillis,
) -> Map<String, Value> {
    let news = said.iter().any(|(key, value)| known.get(key) != Some(value));
    known.extend(said);
    if news || !known.contains_key("since") {
        known.insert("since".into(), clock::rfc3339(at).into());
    }
    if let Some(live) = known.get("isLive").and_then(Value::as_bool) {
        let word = if live { "online" } else { "offline" };
        known.insert("status".into(), word.into());
    }
    known
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy)]
struct Heard {
    seq: Seq,
    at: UnixMillis,
    source: Source,
}

fn set(
    map: &mut BTreeMap<String, Element>,
    name: String,
    value: Value,
    heard: Heard,
) -> Option<Change> {
    let Heard { seq, at, source } = heard;
    let fresh = Element { value: value.clone(), at, source, heard: seq };
    let full = map.len() >= MOST;
    let before = match map.get_mut(&name) {
        Some(known) if same(&known.value, &value) => {
            (known.at, known.source, known.heard) = (at, source, known.heard.max(seq));
            return None;
        }
        Some(known) => Some(std::mem::replace(known, fresh).value),
        None if full => {
            tracing::warn!(element = name, most = MOST, "too many elements; one is left out");
            return None;
        }
        None => {
            map.insert(name.clone(), fresh);
            None
        }
    };
    Some(Change { element: name, before, after: Some(value), source })
}

/// Whether two values are the same; `5` and `5.0` are: the REST API and the gateway differ in that.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests;
