//! The live session of each channel: what its overlays show, folded from events and snapshots.
//!
//! [`Session`] is pure: events, snapshots and times go in, [`Change`]s come out. [`keeper`](super::keeper)
//! is the task around it. What a sink makes of the changes is not decided here.
//!
//! A snapshot takes time to fetch, and events go on meanwhile. What came after the fetch began is at least
//! as new as the snapshot, or is followed by an event that is, so it stays. What came before is in the
//! snapshot, and changes no element when it is folded only after it. Where a reset came meanwhile,
//! nothing of the snapshot can be trusted and it is fetched again.
//!
//! The vendor's pages spell the same element in two ways (`latest_follower`, `follower-latest`). [`name`]
//! brings them together, and drops no name that it does not know.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value, json};

use crate::{
    astro::activity::{self, ACTIVITIES, ActivityInfo},
    base::{
        clock::{self, UnixMillis},
        event::{Event, Seq},
        json::{self, Json, scan::Scanner},
    },
    channel::store::{Section, StateKey},
};

/// The topic of a change.
pub const TOPIC: &str = "relay.session";

/// The topic of a reset.
pub const RESET: &str = "channel.session.reset";

/// Topics that a session's elements are folded from.
pub const SESSION_TOPICS: [&str; 2] = ["channel.session.update", RESET];

/// Elements and facts of one channel, at most: the documented session has 62, and a counter has one each.
pub const MOST: usize = 1024;

/// Bytes that one value may have: a list of the latest hundred with their messages has less.
pub const LARGEST: usize = 64 * 1024;

/// Bytes that a name may have.
pub const LONGEST: usize = 200;

/// Bytes that the names and values of one channel may have: each change tells the value before and after,
/// and is written down, kept and published.
pub const BYTES: usize = 1024 * 1024;

pub use crate::astro::rest::Elements;

/// How a change is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Live,
    Fetched,
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
    seq: Seq,
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
    /// the bot is, counters, what was paid last of the kinds that the session does not have. By topic
    /// without `channel.`, or `paid.` and the kind; only ever from events.
    facts: BTreeMap<Arc<str>, Element>,
    /// The last reset.
    reset: Seq,
    /// When a snapshot was last taken in.
    fetched: Option<UnixMillis>,
    /// The last event when that snapshot was asked for.
    merged: Seq,
    size: Size,
}

/// How much of its limits a channel's state uses.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    count: usize,
    bytes: usize,
    /// Values that were left out.
    left_out: u64,
}

impl Size {
    /// Whether a value fits in place of one of `before` bytes (with its name; 0: it is new). What does not
    /// is counted.
    fn fits(&mut self, name: &str, value: &Json, before: usize) -> bool {
        let (bytes, fresh) = (weight(name, value), usize::from(before == 0));
        let fits = name.len() <= LONGEST
            && value.text().len() <= LARGEST
            && self.count + fresh <= MOST
            && self.bytes - before + bytes <= BYTES;
        if fits {
            self.count += fresh;
            self.bytes = self.bytes - before + bytes;
        } else {
            self.left_out += 1;
        }
        fits
    }

    fn removed(&mut self, name: &str, value: &Json) {
        self.count -= 1;
        self.bytes -= weight(name, value);
    }
}

fn weight(name: &str, value: &Json) -> usize {
    name.len() + value.text().len()
}

impl Change {
    fn new(element: Arc<str>, before: Option<Json>, after: Option<Json>, source: Source) -> Self {
        Self { element, before, after, source, activity: None, provider: None }
    }
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

    /// The changes where nothing of it holds any more.
    pub fn gone(&self) -> Vec<Change> {
        let gone = |(name, value): (&Arc<str>, &Json)| {
            Change::new(Arc::clone(name), Some(value.clone()), None, Source::Reset)
        };
        self.iter().map(gone).collect()
    }

    /// Removes what is folded from none of these topics; answers the changes.
    pub fn retain_topics(&mut self, topics: &[String]) -> Vec<Change> {
        let is_gone = |name: &Arc<str>, _: &mut Element| {
            !topics.iter().any(|topic| is_folded_from(name, topic))
        };
        let mut gone: Vec<_> = self.elements.extract_if(.., is_gone).collect();
        gone.extend(self.facts.extract_if(.., is_gone));
        for (name, element) in &gone {
            self.size.removed(name, &element.value);
        }
        let change = |(name, gone): (Arc<str>, Element)| {
            Change::new(name, Some(gone.value), None, Source::Reset)
        };
        gone.into_iter().map(change).collect()
    }

    /// Whether the snapshot that was last taken in was asked for after this event had been received.
    pub fn is_in_snapshot(&self, seq: Seq) -> bool {
        seq <= self.merged
    }

    /// How many values were left out, because they were too many or too large.
    pub fn left_out(&self) -> u64 {
        self.size.left_out
    }

    /// Restores what an earlier run had written down; whether it did.
    pub fn restore(&mut self, name: Arc<str>, value: Json) -> bool {
        // No element of the vendor's has a dot in its name; every fact has.
        let map = if name.contains('.') { &mut self.facts } else { &mut self.elements };
        let value = value_only(value);
        let fits = !map.contains_key(&name) && self.size.fits(&name, &value, 0);
        if fits {
            map.insert(name, Element { value, seq: 0 });
        }
        fits
    }

    /// An event of this channel. What is no state, or makes no sense, changes nothing.
    pub fn fold(&mut self, event: &Event, seq: Seq) -> Vec<Change> {
        // Most of what comes: nothing else of it is read.
        if &*event.place.topic == ACTIVITIES && has_element(event.data()) {
            return Vec::new();
        }
        if self.is_in_snapshot(seq) && SESSION_TOPICS.contains(&&*event.place.topic) {
            return Vec::new();
        }
        let Some(data) = json::value(event.data()) else { return Vec::new() };
        let from = Provenance { seq, source: Source::Live };
        match &*event.place.topic {
            "channel.session.update" => {
                // Newer servers say it twice.
                let key = ["key", "name"].iter().find_map(|key| text(data.get(key)));
                let Some(key) = key else { return Vec::new() };
                let mut value = data.get("data").cloned().unwrap_or_default();
                let activity = take_activity(&mut value);
                let provider = data.get("provider").and_then(Value::as_str).map(Into::into);
                let name = name(&key, |name| self.elements.contains_key(name));
                let value = Json::from(&value);
                let change = set(&mut self.elements, &mut self.size, &name, value, from);
                change.map(|change| Change { activity, provider, ..change }).into_iter().collect()
            }
            "channel.session.reset" => self.reset(data, from),
            "channel.stream.status" | "channel.chatbot.status" => {
                let Value::Object(mut fields) = data else { return Vec::new() };
                // What is so or not is a state, whatever else is said with it. A time-out of a viewer comes on
                // the bot's topic too, and is no state of anything.
                fields.retain(|_, value| value.is_boolean());
                if fields.is_empty() {
                    return Vec::new();
                }
                let name = event.place.topic.trim_start_matches("channel.");
                let known = match self.facts.get(name).map(|known| known.value.read()) {
                    Some(Value::Object(known)) => known,
                    _ => Map::new(),
                };
                let fact = Json::from(&Value::Object(fact(known, fields, event.received)));
                set(&mut self.facts, &mut self.size, name, fact, from).into_iter().collect()
            }
            "channel.chatbot.counters" => {
                let Some(counter) = text(data.get("counter")) else { return Vec::new() };
                let name = format!("chatbot.counters.{counter}");
                let value = Json::from(data.get("value").unwrap_or(&Value::Null));
                set(&mut self.facts, &mut self.size, &name, value, from).into_iter().collect()
            }
            ACTIVITIES => {
                let Some((kind, value)) = paid(&data, event.received) else { return Vec::new() };
                let name = format!("{PAID}{kind}");
                let change = set(&mut self.facts, &mut self.size, &name, value, from);
                change.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The documentation's example has the elements themselves, its table has them in a session.
    fn reset(&mut self, data: Value, from: Provenance) -> Vec<Change> {
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
        self.reset = from.seq;
        let from = Provenance { source: Source::Reset, ..from };
        let known = |name: &str| self.elements.contains_key(name);
        let elements: BTreeMap<String, Value> =
            elements.into_iter().map(|(key, value)| (name(&key, known), value)).collect();
        let mut changes = self.remove(|name, _| elements.contains_key(name), from);
        for (name, mut value) in elements {
            take_activity(&mut value);
            let value = Json::from(&value);
            changes.extend(set(&mut self.elements, &mut self.size, &name, value, from));
        }
        changes
    }

    /// Takes in a snapshot that was asked for when `since` was the last event. `None`: there has been
    /// a reset since, so the snapshot may be of the session before it; or one that was asked for later
    /// has been taken in, and events that are in that one may be missing in this.
    ///
    /// Where it says what is known, in the same words, that costs no more than comparing them.
    pub fn merge(
        &mut self,
        snapshot: &Elements,
        since: Seq,
        now: UnixMillis,
        source: Source,
    ) -> Option<Vec<Change>> {
        if self.reset > since || self.merged > since {
            return None;
        }
        self.merged = since;
        self.fetched = Some(now);
        let fetched = Provenance { seq: 0, source };
        let kept =
            |name: &str, element: &Element| element.seq > since || snapshot.contains_key(name);
        let mut changes = self.remove(kept, fetched);
        for (name, value) in snapshot {
            match self.elements.get(&**name) {
                Some(known) if known.seq > since || known.value.text() == value.get() => {}
                Some(_) => {
                    let value = value_only((&**value).into());
                    changes.extend(set(&mut self.elements, &mut self.size, name, value, fetched));
                }
                None => {
                    let (name, value) = ((&**name).into(), value_only((&**value).into()));
                    changes.extend(add(&mut self.elements, &mut self.size, name, value, fetched));
                }
            }
        }
        Some(changes)
    }

    fn remove(&mut self, kept: impl Fn(&str, &Element) -> bool, from: Provenance) -> Vec<Change> {
        let gone: Vec<_> =
            self.elements.extract_if(.., |name, element| !kept(name, element)).collect();
        for (name, element) in &gone {
            self.size.removed(name, &element.value);
        }
        let change = |(name, gone): (Arc<str>, Element)| {
            Change::new(name, Some(gone.value), None, from.source)
        };
        gone.into_iter().map(change).collect()
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

/// The key of an element or a fact in the store.
pub fn key_of(channel: &Arc<str>, name: &Arc<str>) -> StateKey {
    let (section, name) = match &**name {
        "stream.status" => (Section::Stream, "".into()),
        "chatbot.status" => (Section::Bot, "".into()),
        text => match (text.strip_prefix("chatbot.counters."), text.strip_prefix(PAID)) {
            (Some(counter), _) => (Section::Counters, counter.into()),
            (None, Some(kind)) => (Section::Paid, kind.into()),
            (None, None) => (Section::Session, Arc::clone(name)),
        },
    };
    StateKey { channel: Arc::clone(channel), section, name }
}

/// The other direction of [`key_of`]; `None`: it is no element of a channel's state.
pub fn name_of(key: &StateKey) -> Option<Arc<str>> {
    match key.section {
        Section::Stream => Some("stream.status".into()),
        Section::Bot => Some("chatbot.status".into()),
        Section::Counters => Some(format!("chatbot.counters.{}", key.name).into()),
        Section::Paid => Some(format!("{PAID}{}", key.name).into()),
        Section::Session => Some(Arc::clone(&key.name)),
        Section::SessionInfo | Section::Diagnostics | Section::Status => None,
    }
}

/// Whether an element or a fact of this name is folded from a topic.
pub fn is_folded_from(name: &str, topic: &str) -> bool {
    if !name.contains('.') {
        return SESSION_TOPICS.contains(&topic);
    }
    if name.starts_with(PAID) {
        return topic == ACTIVITIES;
    }
    let rest = topic.strip_prefix("channel.").and_then(|topic| name.strip_prefix(topic));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What the names of facts about payments begin with. No element of the vendor's has a dot.
const PAID: &str = "paid.";

/// Kinds of payments whose last one is an element of the session already.
const WITH_ELEMENTS: [&str; 8] = [
    "tip", "cheer", "cheerPurchase", "superchat", "kicks", "merch", "purchase",
    "charityCampaignDonation",
];

/// Whether an activity is of a kind whose payments are elements of the session; `false` where it would have to
/// be read to know. Nothing behind its `type` is looked at.
fn has_element(data: &[u8]) -> bool {
    let mut kind = None;
    let _ = std::str::from_utf8(data).ok().and_then(|data| {
        Scanner::new(data).members(|scan, name| match name {
            "type" => {
                kind = scan.plain_string();
                None
            }
            _ => scan.value().map(drop),
        })
    });
    kind.is_some_and(|kind| WITH_ELEMENTS.contains(&kind))
}

/// A payment of another kind, whether it is known or new, in the shape of the session's elements.
fn paid(data: &Value, at: UnixMillis) -> Option<(String, Json)> {
    let info = ActivityInfo::of(ACTIVITIES, data)?;
    if !info.is_paid() || WITH_ELEMENTS.contains(&&*info.kind) || activity::is_mock(data) {
        return None;
    }
    let mut value = json!({
        "name": info.user.clone().unwrap_or_default(),
        "amount": &info.amount,
        "message": info.message.clone().unwrap_or_default(),
        "at": clock::rfc3339(at),
    });
    for (name, text) in [("currency", info.currency.clone()), ("unit", info.unit())] {
        if let Some(text) = text {
            json::set(&mut value, name, text.into());
        }
    }
    Some((info.kind, Json::from(&value)))
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
struct Provenance {
    seq: Seq,
    source: Source,
}

fn set(
    map: &mut BTreeMap<Arc<str>, Element>,
    size: &mut Size,
    name: &str,
    value: Json,
    from: Provenance,
) -> Option<Change> {
    let Some(known) = map.get_mut(name) else { return add(map, size, name.into(), value, from) };
    known.seq = known.seq.max(from.seq);
    if known.value == value || alike(&known.value, &value) {
        return None;
    }
    let source = from.source;
    if !size.fits(name, &value, weight(name, &known.value)) {
        // No value is better than one that is no longer so.
        let (element, gone) = map.remove_entry(name)?;
        size.removed(name, &gone.value);
        return Some(Change::new(element, Some(gone.value), None, source));
    }
    let before = std::mem::replace(&mut known.value, value.clone());
    let element = map.get_key_value(name).map(|(name, _)| Arc::clone(name))?;
    Some(Change::new(element, Some(before), Some(value), source))
}

/// Takes in what was not there.
fn add(
    map: &mut BTreeMap<Arc<str>, Element>,
    size: &mut Size,
    name: Arc<str>,
    value: Json,
    from: Provenance,
) -> Option<Change> {
    if !size.fits(&name, &value, 0) {
        return None;
    }
    map.insert(Arc::clone(&name), Element { value: value.clone(), seq: from.seq });
    Some(Change::new(name, None, Some(value), from.source))
}

/// A word that may have been sent as a number.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
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
