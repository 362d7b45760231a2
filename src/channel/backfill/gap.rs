//! The gaps of which the activities can be fetched.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Seq},
    },
    gateway::ACTIVITIES,
};

/// A gap to be filled.
#[derive(Debug, Clone)]
pub(super) struct Gap {
    /// Of its report in the journal.
    pub(super) seq: Seq,
    pub(super) channel: Arc<str>,
    pub(super) room: Arc<str>,
    pub(super) from: UnixMillis,
    pub(super) to: UnixMillis,
    pub(super) clock: Clock,
}

/// By which clock a gap was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Clock {
    #[default]
    Ours,
    Gateway,
    /// When it ended is not known.
    #[serde(other)]
    Unknown,
}

/// Whether an event reports a channel's gap.
pub(super) fn concerns(event: &Event) -> bool {
    &*event.place.topic == "relay.gap" && !event.place.channel.is_empty()
}

impl Gap {
    /// Reads a `relay.gap`; `None` where no activities are missing.
    pub(super) fn read(event: &Event, seq: Seq) -> Option<Self> {
        #[derive(Deserialize)]
        struct Report {
            from: String,
            to: String,
            subscriptions: Vec<Missed>,
            #[serde(default)]
            clock: Clock,
        }
        #[derive(Deserialize)]
        struct Missed {
            topic: String,
            #[serde(default)]
            room: String,
            restored: bool,
        }
        if !concerns(event) {
            return None;
        }
        // A sink's own loss is reported on the same topic, and has no subscriptions.
        let report: Report = serde_json::from_slice(event.data()).ok()?;
        let missed = report
            .subscriptions
            .into_iter()
            .find(|missed| missed.topic == ACTIVITIES && missed.restored)?;
        Some(Self {
            seq,
            channel: Arc::clone(&event.place.channel),
            room: missed.room.into(),
            from: clock::parse_rfc3339(&report.from)?,
            to: clock::parse_rfc3339(&report.to)?,
            clock: report.clock,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event;

    pub(in crate::channel::backfill) fn gap() -> Gap {
        let (from, to) = (1_708_008_762_000, 1_708_008_763_000);
        Gap { seq: 1, channel: "main".into(), room: "r".into(), from, to, clock: Clock::Ours }
    }

    #[test]
    fn only_a_gap_of_restored_activities_is_filled() {
        let subscription = |topic: &str, restored: bool| {
            json!({"from": "2024-02-15T14:52:42Z", "to": "2024-02-15T14:52:43Z",
                   "subscriptions": [{"topic": topic, "room": "r", "restored": restored}]})
        };
        for (topic, data, filled) in [
            ("relay.gap", subscription("channel.activities", true), true),
            ("relay.gap", subscription("channel.activities", false), false),
            ("relay.gap", subscription("channel.tips", true), false),
            ("relay.gap", json!({"sink": "home", "count": 3}), false),
            ("relay.session", subscription("channel.activities", true), false),
        ] {
            let event = event::own(topic, &"main".into(), &"r".into(), &data, 1);
            let read = Gap::read(&event, 1);
            assert_eq!(read.is_some(), filled, "{topic} {data}");
            if let Some(read) = read {
                assert_eq!((read.from, read.to), (gap().from, gap().to));
            }
        }
    }
}
