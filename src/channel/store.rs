//! The live state as it is now, for the publishers that keep it at a destination.
//!
//! An event is an edge, and every edge goes through the journal. State is a level: only what holds now is
//! of use, so it is held once, in memory, and a publisher compares what it has published with what is
//! here. What changed a thousand times since is published once, as it is then.
//!
//! An [`Entry`]'s version is the store's at its last change. What has the version that was published need
//! not be published again; what was published and is here no more is to be cleared.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::base::{
    clock::{self, UnixMillis},
    json::{self, Json},
    sync::lock,
};

/// The label that no channel may have beside a sink that keeps state: the relay's own state is
/// where a channel of this name would be.
pub const RELAY: &str = "relay";

/// What of a channel, or of the relay, a part of the state belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// The elements of the session, by name.
    Session,
    /// Since when the session has counted, and on which platform.
    SessionInfo,
    /// Whether the stream is live.
    Stream,
    /// What the bot is.
    Bot,
    /// The bot's counters, by name.
    Counters,
    /// What was paid last of each kind that has no element in the session, by the kind.
    Paid,
    /// Figures of the relay.
    Diagnostics,
    /// Whether the relay works, or a channel of it. Last in order, so that whoever waits for `online`
    /// finds the others.
    Status,
}

impl Section {
    const ALL: [Self; 8] = [
        Self::Session,
        Self::SessionInfo,
        Self::Stream,
        Self::Bot,
        Self::Counters,
        Self::Paid,
        Self::Diagnostics,
        Self::Status,
    ];

    /// Whether it has parts with names.
    pub fn is_named(self) -> bool {
        matches!(self, Self::Session | Self::Counters | Self::Paid)
    }

    /// The word in addresses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::SessionInfo => "session-info",
            Self::Stream => "stream",
            Self::Bot => "bot",
            Self::Counters => "counters",
            Self::Paid => "paid",
            Self::Diagnostics => "diagnostics",
            Self::Status => "status",
        }
    }
}

/// The address of a part of the state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateKey {
    /// The channel's label; empty: the relay itself.
    pub channel: Arc<str>,
    /// What of it.
    pub section: Section,
    /// The name within the section; empty where the section is one value.
    pub name: Arc<str>,
}

impl StateKey {
    /// A section of a channel that is one value.
    pub fn of(channel: &str, section: Section) -> Self {
        Self { channel: channel.into(), section, name: "".into() }
    }

    /// A section of the relay itself.
    pub fn relay(section: Section) -> Self {
        Self::of("", section)
    }

    /// The channel's label, or the word for the relay.
    pub fn owner(&self) -> &str {
        if self.channel.is_empty() { RELAY } else { &self.channel }
    }

    /// As one text, for writing down.
    pub fn text(&self) -> String {
        format!("{}/{}/{}", self.channel, self.section.as_str(), self.name)
    }

    /// The other direction of [`StateKey::text`].
    pub fn from_text(text: &str) -> Option<Self> {
        // No label has a slash; a name may have some.
        let mut words = text.splitn(3, '/');
        let (channel, section, name) = (words.next()?, words.next()?, words.next()?);
        let section = Section::ALL.into_iter().find(|known| known.as_str() == section)?;
        Some(Self { channel: channel.into(), section, name: name.into() })
    }

    /// The value as it is published: JSON, but a channel's status is a plain word.
    pub fn payload(&self, value: &Json) -> Bytes {
        let word = (self.section == Section::Status).then(|| value.read());
        match word {
            Some(Value::String(word)) => word.into(),
            _ => value.text().to_owned().into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub value: Json,
    /// The store's version when it became that; never 0.
    pub version: u64,
}

#[derive(Debug, Default)]
pub struct StateStore {
    entries: Mutex<BTreeMap<StateKey, Entry>>,
    /// Grows with every change.
    version: watch::Sender<u64>,
}

impl StateStore {
    /// Sets values; `None` removes one. The writers limit how many there are.
    pub fn insert(&self, changes: impl IntoIterator<Item = (StateKey, Option<Json>)>) {
        let mut entries = lock(&self.entries);
        let version = *self.version.borrow() + 1;
        let mut changed = false;
        for (key, value) in changes {
            changed |= match value {
                None => entries.remove(&key).is_some(),
                Some(value) if entries.get(&key).is_some_and(|entry| entry.value == value) => false,
                Some(value) => {
                    entries.insert(key, Entry { value, version });
                    true
                }
            };
        }
        if changed {
            // Under the lock, so that a reader of the version sees its entries.
            self.version.send_replace(version);
        }
    }

    /// Removes the entries for which `goes` answers true.
    pub fn remove(&self, mut goes: impl FnMut(&StateKey) -> bool) {
        let mut entries = lock(&self.entries);
        let before = entries.len();
        entries.retain(|key, _| !goes(key));
        if entries.len() < before {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Reads all of it at one version.
    pub fn snapshot<T>(&self, read: impl FnOnce(&BTreeMap<StateKey, Entry>, u64) -> T) -> T {
        let entries = lock(&self.entries);
        let version = *self.version.borrow();
        read(&entries, version)
    }

    /// Changes when anything does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

/// A channel's status: the words that Home Assistant expects.
pub fn word(online: bool) -> Json {
    Json::from(&Value::from(if online { "online" } else { "offline" }))
}

/// The relay's own status where there is nobody to work it out: in a last will, which cannot say since when,
/// and in the last message of a stop.
pub fn offline(reason: &str, since: Option<UnixMillis>) -> Json {
    let mut status = json!({
        "status": "offline",
        "health": "not working",
        "reason": reason,
        "version": env!("CARGO_PKG_VERSION"),
    });
    if let Some(since) = since {
        json::set(&mut status, "since", clock::rfc3339(since).into());
    }
    Json::from(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Option<Json> {
        Json::from_text("1")
    }

    fn two() -> Option<Json> {
        Json::from_text("2")
    }

    fn element(name: &str) -> StateKey {
        StateKey { channel: "main".into(), section: Section::Session, name: name.into() }
    }

    #[test]
    fn only_what_changes_gets_a_new_version() {
        let store = StateStore::default();
        store.insert([(element("a"), one()), (element("b"), one())]);
        store.insert([(element("a"), one()), (element("b"), two())]);
        let versions = |entries: &BTreeMap<StateKey, Entry>, now| {
            (entries.values().map(|entry| entry.version).collect::<Vec<_>>(), now)
        };
        assert_eq!(store.snapshot(versions), (vec![1, 2], 2));
        let changes = store.changes();
        store.insert([(element("a"), one()), (element("c"), None)]);
        store.remove(|key| &*key.channel == "other");
        assert!(!changes.has_changed().unwrap(), "nothing is other than it was");
        store.insert([(element("a"), None)]);
        assert!(changes.has_changed().unwrap());
        store.remove(|key| &*key.channel == "main");
        assert_eq!(store.snapshot(versions), (vec![], 4));
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        for key in [
            element("tip-latest"),
            element("a/b c"),
            element(""),
            StateKey::relay(Section::Diagnostics),
            StateKey::of("main", Section::Status),
        ] {
            assert_eq!(StateKey::from_text(&key.text()), Some(key));
        }
        for text in ["", "main", "main/session", "main/other/x"] {
            assert_eq!(StateKey::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_status_is_a_word_and_all_else_is_json() {
        assert_eq!(StateKey::of("main", Section::Status).payload(&word(true)), "online");
        assert_eq!(element("a").payload(&word(true)), "\"online\"");
    }

    #[test]
    fn the_last_status_has_health_and_version_and_since_where_that_is_known() {
        for (since, expected) in [(None, json!(null)), (Some(0), json!("1970-01-01T00:00:00Z"))] {
            let status = offline("stopped", since).read();
            let version = env!("CARGO_PKG_VERSION");
            let whole = json!({
                "status": "offline", "health": "not working", "reason": "stopped", "version": version,
            });
            for (key, value) in whole.as_object().unwrap() {
                assert_eq!(&status[key], value, "{key}");
            }
            assert_eq!(status["since"], expected);
        }
    }
}
