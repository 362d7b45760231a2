//! What a replay would send: how many of the events in a range a sink wants, and what becomes of the rest.
//!
//! Each event is rendered as the delivery would render it, marked as replayed. Nothing is sent.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::route::{Pattern, Rendered, Route};
use crate::base::event::{Event, Origin, Record};

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
    /// Adds what would become of an event. `route`: the sink's, where it is known; `topic`: the replay's own
    /// choice of topics.
    pub fn add(&mut self, route: Option<&mut Route>, topic: Option<&Pattern>, record: &Record) {
        self.events += 1;
        let name = &record.event.place.topic;
        if topic.is_some_and(|topic| !topic.matches(name)) {
            *self.skipped.entry("topic").or_default() += 1;
            return;
        }
        let event = Event { origin: Origin::Replayed, ..record.event.clone() };
        let record = Arc::new(Record { event, ..record.clone() });
        match route.map(|route| route.render(&record)) {
            None | Some(Rendered::Wanted(..)) => {
                *self.sent.entry(name.to_string()).or_default() += 1;
            }
            Some(Rendered::Skipped(skip)) => *self.skipped.entry(skip.as_str()).or_default() += 1,
            Some(Rendered::Failed(_)) => *self.skipped.entry(UNRENDERED).or_default() += 1,
        }
    }
}
