//! What a replay would send: how many of the events in a range are chosen and a sink wants, and what becomes
//! of the rest.
//!
//! Each event is rendered as the delivery would render it, marked as replayed. Nothing is sent.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::route::{Pattern, Rendered, Route};
use crate::{
    base::{
        event::{Event, Origin, Record},
        template::{Condition, View},
    },
    journal::Replay,
};

/// Which events a replay is to send, beside what the sink itself wants.
#[derive(Debug, Default)]
pub struct Choice {
    topic: Option<Pattern>,
    when: Option<Condition>,
}

impl Choice {
    /// By a pattern of topics, and by a condition as a sink's `when`.
    pub fn of(topic: Option<&str>, when: Option<&str>) -> Result<Self, String> {
        let topic = topic.map(Pattern::parse).transpose().map_err(|error| error.to_string())?;
        let when = when.map(Condition::requested).transpose()?;
        Ok(Self { topic, when })
    }

    /// That of a request.
    pub fn of_replay(replay: &Replay) -> Result<Self, String> {
        // Whoever took the request has kept to the limit.
        let when = replay.when.as_deref().map(Condition::compile).transpose()?;
        Ok(Self { when, ..Self::of(replay.topic.as_deref(), None)? })
    }

    /// Why an event is not chosen; `None`: it is.
    pub fn excludes(&self, record: &Arc<Record>) -> Option<&'static str> {
        if self.topic.as_ref().is_some_and(|topic| !topic.matches(&record.event.place.topic)) {
            return Some(OTHER_TOPIC);
        }
        match self.when.as_ref()?.holds(&View::of(Arc::clone(record))) {
            Ok(true) => None,
            Ok(false) => Some(NOT_CHOSEN),
            Err(_) => Some(CHOICE_FAILS),
        }
    }
}

/// An event as the replay of this name hands it on.
pub fn replayed(record: &Record, replay: Option<Arc<str>>) -> Arc<Record> {
    let event = Event { origin: Origin::Replayed, ..record.event.clone() };
    Arc::new(Record { event, replay, ..*record })
}

/// The reason of an event of a topic that the replay does not choose.
pub const OTHER_TOPIC: &str = "topic";

/// The reason of an event for which the replay's condition does not hold.
pub const NOT_CHOSEN: &str = "when";

/// The reason of an event on which the replay's condition fails.
pub const CHOICE_FAILS: &str = "when_error";

/// The reason of an event that would become a dead letter.
pub const UNRENDERED: &str = "cannot be rendered";

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Events that were looked at.
    pub events: u64,
    /// Those that would be sent, by topic.
    pub sent: BTreeMap<String, u64>,
    /// Those that would not, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
}

impl Preview {
    /// Adds what would become of an event. `route`: the sink's, where it is known.
    pub fn add(&mut self, route: Option<&mut Route>, choice: &Choice, record: &Record) {
        self.events += 1;
        let record = replayed(record, None);
        if let Some(reason) = choice.excludes(&record) {
            *self.skipped.entry(reason).or_default() += 1;
            return;
        }
        let name = &record.event.place.topic;
        match route.map(|route| route.render(&record)) {
            None | Some(Rendered::Wanted(..)) => {
                *self.sent.entry(name.to_string()).or_default() += 1;
            }
            Some(Rendered::Skipped(skip)) => *self.skipped.entry(skip.as_str()).or_default() += 1,
            Some(Rendered::Failed(_)) => *self.skipped.entry(UNRENDERED).or_default() += 1,
        }
    }
}
