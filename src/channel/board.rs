//! The board: the live state as it is now, for sinks that have their far side keep it.
//!
//! An event is an edge, and every edge goes through the journal. State is a level: only what holds now
//! is of use, so it stands here once, in memory, and whoever wants to keep it elsewhere compares what
//! he has said with what stands. What changed a thousand times since he looked he says once.
//!
//! The board knows neither who writes (the keeper of the sessions, and [`crate::app::presence`]) nor who
//! reads ([`crate::delivery`]).
//!
//! The one thing to know: an [`Item`]'s version is the board's at its last change. What has the version
//! that was said last need not be said again, and what was said and stands here no more is to be
//! cleared.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::base::json::Json;

/// The label that no channel may have beside a sink that keeps state: the relay's own state stands
/// where a channel of this name would.
pub const RELAY: &str = "relay";

/// What of a channel, or of the relay, a part of the state belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// The elements of the session, by name.
    Session,
    /// Whether the stream is live.
    Stream,
    /// What the bot is.
    Bot,
    /// The bot's counters, by name.
    Counters,
    /// Figures of the relay.
    Diagnostics,
    /// Whether the relay works, or a channel of it. Behind the others in order: who waits for
    /// `online` finds them.
    Status,
}

/// Every section.
const SECTIONS: [Section; 6] = [
    Section::Session,
    Section::Stream,
    Section::Bot,
    Section::Counters,
    Section::Diagnostics,
    Section::Status,
];

impl Section {
    /// The word in addresses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Stream => "stream",
            Self::Bot => "bot",
            Self::Counters => "counters",
            Self::Diagnostics => "diagnostics",
            Self::Status => "status",
        }
    }
}

/// Where a part of the state stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// The channel's label; empty: the relay itself.
    pub channel: Arc<str>,
    /// What of it.
    pub section: Section,
    /// The name within the section; empty where the section is one value.
    pub name: Arc<str>,
}

impl Path {
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

    /// The other direction of [`Path::text`].
    pub fn from_text(text: &str) -> Option<Self> {
        // No label has a slash; a name may have some.
        let mut words = text.splitn(3, '/');
        let (channel, section, name) = (words.next()?, words.next()?, words.next()?);
        let section = SECTIONS.into_iter().find(|known| known.as_str() == section)?;
        Some(Self { channel: channel.into(), section, name: name.into() })
    }

    /// The value as a far side keeps it: JSON, but a channel's status is a plain word.
    pub fn payload(&self, value: &Json) -> Bytes {
        let word = (self.section == Section::Status).then(|| value.read());
        match word {
            Some(Value::String(word)) => word.into(),
            _ => value.text().to_owned().into(),
        }
    }
}

/// A part of the state.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its value.
    pub value: Json,
    /// The board's version when it became that; never 0.
    pub version: u64,
}

/// The board.
#[derive(Debug, Default)]
pub struct Board {
    items: Mutex<BTreeMap<Path, Item>>,
    /// Grows with every change.
    version: watch::Sender<u64>,
}

impl Board {
    /// Writes values over what stood there; `None` takes away. Who writes has a limit of his own.
    pub fn put(&self, changes: impl IntoIterator<Item = (Path, Option<Json>)>) {
        let mut items = self.lock();
        let version = *self.version.borrow() + 1;
        let mut changed = false;
        for (path, value) in changes {
            changed |= match value {
                None => items.remove(&path).is_some(),
                Some(value) if items.get(&path).is_some_and(|item| item.value == value) => false,
                Some(value) => {
                    items.insert(path, Item { value, version });
                    true
                }
            };
        }
        if changed {
            // Under the lock, so that who sees the version sees its items.
            self.version.send_replace(version);
        }
    }

    /// Takes away what `goes` says.
    pub fn take_away(&self, mut goes: impl FnMut(&Path) -> bool) {
        let mut items = self.lock();
        let before = items.len();
        items.retain(|path, _| !goes(path));
        if items.len() < before {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Looks at all of it at one version.
    pub fn look<T>(&self, look: impl FnOnce(&BTreeMap<Path, Item>, u64) -> T) -> T {
        let items = self.lock();
        let version = *self.version.borrow();
        look(&items, version)
    }

    /// Changes when anything does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Path, Item>> {
        // An item is replaced whole; a panic in between leaves a board that is merely older.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel's status: the words that Home Assistant expects.
pub fn word(online: bool) -> Json {
    Json::from(&Value::from(if online { "online" } else { "offline" }))
}

/// The relay's own status where it is no more than that: in a last will, and in a farewell.
pub fn offline(reason: &str) -> Json {
    Json::from(&json!({ "status": "offline", "reason": reason }))
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

    fn element(name: &str) -> Path {
        Path { channel: "main".into(), section: Section::Session, name: name.into() }
    }

    #[test]
    fn only_what_changes_gets_a_new_version() {
        let board = Board::default();
        board.put([(element("a"), one()), (element("b"), one())]);
        board.put([(element("a"), one()), (element("b"), two())]);
        let versions = |items: &BTreeMap<Path, Item>, now| {
            (items.values().map(|item| item.version).collect::<Vec<_>>(), now)
        };
        assert_eq!(board.look(versions), (vec![1, 2], 2));
        let changes = board.changes();
        board.put([(element("a"), one()), (element("c"), None)]);
        board.take_away(|path| &*path.channel == "other");
        assert!(!changes.has_changed().unwrap(), "nothing is other than it was");
        board.put([(element("a"), None)]);
        assert!(changes.has_changed().unwrap());
        board.take_away(|path| &*path.channel == "main");
        assert_eq!(board.look(versions), (vec![], 4));
    }

    #[test]
    fn a_path_is_read_as_it_is_written() {
        for path in [
            element("tip-latest"),
            element("a/b c"),
            element(""),
            Path::relay(Section::Diagnostics),
            Path::of("main", Section::Status),
        ] {
            assert_eq!(Path::from_text(&path.text()), Some(path));
        }
        for text in ["", "main", "main/session", "main/other/x"] {
            assert_eq!(Path::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_status_is_a_word_and_all_else_is_json() {
        assert_eq!(Path::of("main", Section::Status).payload(&word(true)), "online");
        assert_eq!(element("a").payload(&word(true)), "\"online\"");
        let will = Path::relay(Section::Status).payload(&offline("connection lost"));
        assert_eq!(will, r#"{"reason":"connection lost","status":"offline"}"#);
    }
}
