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
//! `follower-latest`). [`name`] brings them together, and drops no name that it does not
//! know.

pub mod keeper;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde_json::{Map, Value, value::RawValue};

use crate::{
    board::{Path, Section},
    clock,
    event::{Event, Seq, UnixMillis},
    json::{self, Json},
};

/// The topic of a change.
pub const TOPIC: &str = "relay.session";

/// Topics that a session's elements are folded from.
pub const SESSION_TOPICS: [&str; 2] = ["channel.session.update", "channel.session.reset"];

/// Elements of one channel, at most: the documented session has 62, and a counter has one each.
const MOST: usize = 4096;

/// Names that are shared: the documented sixty, and some counters. Others stand where they are used.
const SHARED: usize = 1024;

/// The elements of a snapshot by name, as the server wrote them.
pub type Elements = BTreeMap<Box<str>, Box<RawValue>>;

/// How a change is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An event said so.
    Live,
    /// The REST API said so.
    Fetched,
    /// A reset said so.
    Reset,
}

impl Source {
    /// The word in an event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Fetched => "fetched",
            Self::Reset => "reset",
        }
    }
}

/// One element.
#[derive(Debug, Clone)]
struct Element {
    value: Json,
    /// The event that said so last, or 0.
    heard: Seq,
}

/// An element has another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its name.
    pub element: Arc<str>,
    /// Its value before; `None`: it was not there.
    pub before: Option<Json>,
    /// Its value now; `None`: it is no longer there.
    pub after: Option<Json>,
    /// How it is known.
    pub source: Source,
    /// The id of the activity that caused it, where the gateway named one.
    pub activity: Option<Box<str>>,
    /// The provider that it came from (`twitch`, `youtube`, …), where the gateway named one.
    pub provider: Option<Box<str>>,
}

/// The state of one channel.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// The elements of the session, by their name in the REST API.
    elements: BTreeMap<Arc<str>, Element>,
    /// What is no part of the session and is a state all the same: whether the stream is live, what
    /// the bot is, counters. By topic without `channel.`; only ever heard.
    facts: BTreeMap<Arc<str>, Element>,
    /// The last reset.
    reset: Seq,
    /// When a snapshot was last taken in.
    fetched: Option<UnixMillis>,
}

impl Session {
    /// Elements and facts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Json)> {
        self.elements.iter().chain(&self.facts).map(|(name, element)| (name, &element.value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.elements.len() + self.facts.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When a snapshot was last taken in.
    pub fn fetched(&self) -> Option<UnixMillis> {
        self.fetched
    }

    /// Takes up what an earlier run had written down.
    pub fn restore(&mut self, name: Arc<str>, value: Json) {
        // No element of the vendor's has a dot in its name; every fact has.
        let map = if name.contains('.') { &mut self.facts } else { &mut self.elements };
        map.insert(name, Element { value: value_only(value), heard: 0 });
    }

    /// An event of this channel was heard. What is no state, or makes no sense, changes nothing.
    pub fn hear(&mut self, event: &Event, seq: Seq) -> Vec<Change> {
        let Some(data) = json::value(event.data()) else { return Vec::new() };
        let heard = Heard { seq, source: Source::Live };
        match &*event.place.topic {
            "channel.session.update" => {
                let Some(key) = data.get("key").and_then(Value::as_str) else { return Vec::new() };
                let mut value = data.get("data").cloned().unwrap_or_default();
                let activity = take_activity(&mut value);
                let provider = data.get("provider").and_then(Value::as_str).map(Into::into);
                let name = name(key, |name| self.elements.contains_key(name));
                let change = set(&mut self.elements, &name, Json::from(&value), heard);
                change.map(|change| Change { activity, provider, ..change }).into_iter().collect()
            }
            "channel.session.reset" => self.reset(data, heard),
            "channel.stream.status" | "channel.chatbot.status" => {
                let Value::Object(fields) = data else { return Vec::new() };
                // A time-out of a viewer comes on the bot's topic too, and is no state of anything.
                if fields.is_empty() || !fields.values().all(Value::is_boolean) {
                    return Vec::new();
                }
                let name = event.place.topic.trim_start_matches("channel.");
                let known = match self.facts.get(name).map(|known| known.value.read()) {
                    Some(Value::Object(known)) => known,
                    _ => Map::new(),
                };
                let fact = Json::from(&Value::Object(fact(known, fields, event.received)));
                set(&mut self.facts, name, fact, heard).into_iter().collect()
            }
            "channel.chatbot.counters" => {
                let Some(counter) = data.get("counter").and_then(Value::as_str) else {
                    return Vec::new();
                };
                let name = format!("chatbot.counters.{counter}");
                let value = Json::from(data.get("value").unwrap_or(&Value::Null));
                set(&mut self.facts, &name, value, heard).into_iter().collect()
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
        let known = |name: &str| self.elements.contains_key(name);
        let elements: BTreeMap<String, Value> =
            elements.into_iter().map(|(key, value)| (name(&key, known), value)).collect();
        let mut changes = self.remove(|name, _| elements.contains_key(name), heard);
        for (name, mut value) in elements {
            take_activity(&mut value);
            changes.extend(set(&mut self.elements, &name, Json::from(&value), heard));
        }
        changes
    }

    /// Takes in a snapshot that was asked for when `since` was the last event. `None`: there has been
    /// a reset since, so the snapshot may be of the session before it.
    ///
    /// Where it says what is known, in the same words, that costs no more than comparing them.
    pub fn merge(
        &mut self,
        snapshot: &Elements,
        since: Seq,
        now: UnixMillis,
        names: &mut Names,
    ) -> Option<Vec<Change>> {
        if self.reset > since {
            return None;
        }
        self.fetched = Some(now);
        let fetched = Heard { seq: 0, source: Source::Fetched };
        let kept =
            |name: &str, element: &Element| element.heard > since || snapshot.contains_key(name);
        let mut changes = self.remove(kept, fetched);
        let first = self.elements.is_empty();
        for (name, value) in snapshot {
            match self.elements.get(&**name) {
                Some(known) if known.heard > since || known.value.text() == value.get() => {}
                Some(_) => {
                    let value = value_only((&**value).into());
                    changes.extend(set(&mut self.elements, name, value, fetched));
                }
                None => {
                    let (name, value) = (names.shared(name), value_only((&**value).into()));
                    changes.extend(add(&mut self.elements, name, value, fetched));
                }
            }
        }
        if first {
            // Made anew from what stands in order, a tree has no empty places.
            self.elements = std::mem::take(&mut self.elements).into_iter().collect();
        }
        Some(changes)
    }

    fn remove(&mut self, kept: impl Fn(&str, &Element) -> bool, heard: Heard) -> Vec<Change> {
        let gone: Vec<_> =
            self.elements.extract_if(.., |name, element| !kept(name, element)).collect();
        let change = |(element, before): (Arc<str>, Element)| Change {
            element,
            before: Some(before.value),
            after: None,
            source: heard.source,
            activity: None,
            provider: None,
        };
        gone.into_iter().map(change).collect()
    }
}

/// Names of elements, each once in memory: thousands of channels have the same.
#[derive(Debug, Default)]
pub struct Names(HashSet<Arc<str>>);

impl Names {
    /// The name, shared where others have it too.
    pub fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let fresh: Arc<str> = name.into();
        if self.0.len() < SHARED {
            self.0.insert(Arc::clone(&fresh));
        }
        fresh
    }
}

/// The name of an element that somebody calls `key`, where these are known.
pub fn name(key: &str, known: impl Fn(&str) -> bool) -> String {
    if known(key) {
        return key.to_owned();
    }
    let dashed = key.replace('_', "-");
    match dashed.strip_prefix("latest-") {
        Some(family) if !known(&dashed) => format!("{family}-latest"),
        _ => dashed,
    }
}

/// Where an element or a fact stands on the board.
pub fn place(channel: &Arc<str>, name: &Arc<str>) -> Path {
    let (section, name) = match &**name {
        "stream.status" => (Section::Stream, "".into()),
        "chatbot.status" => (Section::Bot, "".into()),
        text => match text.strip_prefix("chatbot.counters.") {
            Some(counter) => (Section::Counters, counter.into()),
            None => (Section::Session, Arc::clone(name)),
        },
    };
    Path { channel: Arc::clone(channel), section, name }
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

/// The key under which the gateway adds to a value the activity that caused it (documents of September
/// 2026). It is no part of the value: the REST API does not have it.
const ACTIVITY: &str = "activityId";

/// Takes the activity out of a value.
fn take_activity(value: &mut Value) -> Option<Box<str>> {
    match value.as_object_mut()?.remove(ACTIVITY)? {
        Value::String(id) => Some(id.into()),
        other => Some(other.to_string().into()),
    }
}

/// A value without the activity.
fn value_only(value: Json) -> Json {
    if !value.text().contains(ACTIVITY) {
        return value;
    }
    let mut read = value.read();
    take_activity(&mut read);
    Json::from(&read)
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy)]
struct Heard {
    seq: Seq,
    source: Source,
}

fn set(
    map: &mut BTreeMap<Arc<str>, Element>,
    name: &str,
    value: Json,
    heard: Heard,
) -> Option<Change> {
    let Some(known) = map.get_mut(name) else { return add(map, name.into(), value, heard) };
    known.heard = known.heard.max(heard.seq);
    if known.value == value || alike(&known.value, &value) {
        return None;
    }
    let before = std::mem::replace(&mut known.value, value.clone());
    let element = map.get_key_value(name).map(|(name, _)| Arc::clone(name))?;
    Some(Change {
        element,
        before: Some(before),
        after: Some(value),
        source: heard.source,
        activity: None,
        provider: None,
    })
}

/// Takes in what was not there.
fn add(
    map: &mut BTreeMap<Arc<str>, Element>,
    name: Arc<str>,
    value: Json,
    heard: Heard,
) -> Option<Change> {
    if map.len() >= MOST {
        tracing::warn!(element = &*name, most = MOST, "too many elements; one is left out");
        return None;
    }
    map.insert(Arc::clone(&name), Element { value: value.clone(), heard: heard.seq });
    Some(Change {
        element: name,
        before: None,
        after: Some(value),
        source: heard.source,
        activity: None,
        provider: None,
    })
}

/// Whether two texts say the same.
fn alike(a: &Json, b: &Json) -> bool {
    same(&a.read(), &b.read())
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
