//! The gaps of which something can be fetched.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Found, OVERLAP};
use crate::{
    astro::rest::History,
    base::{
        clock::{self, UnixMillis},
        event::{Event, Seq},
        json,
    },
    gateway::GapClock,
};

/// A gap to be filled.
#[derive(Debug, Clone)]
pub(super) struct Gap {
    /// Of its report in the journal.
    pub(super) seq: Seq,
    pub(super) channel: Arc<str>,
    pub(super) from: UnixMillis,
    pub(super) to: UnixMillis,
    pub(super) clock: GapClock,
    /// How far our clock is ahead of the gateway's, where that was known.
    pub(super) ahead: Option<i64>,
    /// Whether each subscription of the report can be fetched.
    pub(super) missed: Vec<Missed>,
    /// What the report said beside that.
    pub(super) report: Map<String, Value>,
}

/// A subscription that a gap concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) topic: Arc<str>,
    pub(super) room: Arc<str>,
    pub(super) restored: bool,
}

impl Missed {
    /// What can be fetched of it. Of what was not restored nothing is wanted any more, or nothing may be
    /// had.
    pub(super) fn history(&self) -> Option<History> {
        History::of(&self.topic).filter(|_| self.restored)
    }
}

/// Whether an event reports a channel's gap.
pub(super) fn concerns(event: &Event) -> bool {
    &*event.place.topic == TOPIC && !event.place.channel.is_empty()
}

/// The topic of gaps, and of what became of them.
pub(super) const TOPIC: &str = "relay.gap";

/// The field of a report that tells what became of a gap. One that has it is no gap of its own.
const RECOVERY: &str = "recovery";

impl Gap {
    /// Reads a `relay.gap`; `None` where nothing of it can be fetched.
    pub(super) fn read(event: &Event, seq: Seq) -> Option<Self> {
        if !concerns(event) {
            return None;
        }
        let Some(Value::Object(mut report)) = json::value(event.data()) else { return None };
        let time = |name: &str| clock::parse_rfc3339(report.get(name)?.as_str()?);
        let (from, to) = (time("from")?, time("to")?);
        let word = report.get("clock").cloned();
        let clock =
            word.map_or(Ok(GapClock::Ours), serde_json::from_value).unwrap_or(GapClock::Unknown);
        let ahead = report.get("clock_ahead").and_then(Value::as_f64);
        // A sink's own loss is reported on the same topic, and has no subscriptions.
        let Some(Value::Array(subscriptions)) = report.remove("subscriptions") else { return None };
        let missed: Vec<Missed> = subscriptions.iter().filter_map(missed).collect();
        if report.contains_key(RECOVERY) || missed.iter().all(|one| one.history().is_none()) {
            return None;
        }
        let channel = Arc::clone(&event.place.channel);
        let ahead = ahead.map(whole_millis);
        Some(Self { seq, channel, from, to, clock, ahead, missed, report })
    }

    /// Takes up another gap of the channel where the two are next to each other; answers whether it did.
    /// Several in a row are one longer gap.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        let near = 2 * clock::millis_of(OVERLAP);
        let is_next = self.channel == other.channel
            && self.clock == other.clock
            && self.from <= other.to.saturating_add(near)
            && other.from <= self.to.saturating_add(near);
        if !is_next {
            return false;
        }
        (self.from, self.to) = (self.from.min(other.from), self.to.max(other.to));
        self.ahead = other.ahead.or(self.ahead);
        for missed in &other.missed {
            let same =
                |known: &&mut Missed| (&known.topic, &known.room) == (&missed.topic, &missed.room);
            match self.missed.iter_mut().find(same) {
                Some(known) => known.restored |= missed.restored,
                None => self.missed.push(missed.clone()),
            }
        }
        true
    }

    /// The report of what became of it: the gap's own, with what was recovered of each subscription and
    /// why the rest could not be.
    pub(super) fn outcome(&self, found: &[(Missed, Result<Found, String>)]) -> Value {
        let mut total = Found { complete: true, ..Found::default() };
        let mut subscriptions = Vec::new();
        for missed in &self.missed {
            let mut subscription = json!({
                "topic": &*missed.topic, "room": &*missed.room, "restored": missed.restored,
                "history": History::of(&missed.topic).is_some(),
            });
            let outcome = found.iter().find(|(of, _)| of == missed).map(|(_, outcome)| outcome);
            let more = match outcome {
                Some(Ok(found)) => {
                    total.add(found);
                    found.to_json()
                }
                Some(Err(why)) => {
                    total.complete = false;
                    json!({"recovered": 0, "complete": false, "reason": why})
                }
                None => {
                    total.complete = false;
                    let why = if missed.restored { NO_HISTORY } else { NOT_RESTORED };
                    json!({"recovered": 0, "complete": false, "reason": why})
                }
            };
            if let (Value::Object(members), Value::Object(more)) = (&mut subscription, more) {
                members.extend(more);
            }
            subscriptions.push(subscription);
        }
        let mut report = self.report.clone();
        let seconds = self.to.saturating_sub(self.from);
        for (name, value) in [
            ("from", clock::rfc3339(self.from).into()),
            ("to", clock::rfc3339(self.to).into()),
            ("seconds", (std::time::Duration::from_millis(seconds).as_secs_f64()).into()),
            ("subscriptions", subscriptions.into()),
            (RECOVERY, total.to_json()),
        ] {
            report.insert(name.to_owned(), value);
        }
        report.into()
    }
}

const NO_HISTORY: &str = "Astro has no history of this topic";
const NOT_RESTORED: &str = "the subscription was not restored";

fn missed(subscription: &Value) -> Option<Missed> {
    let text = |name: &str| subscription.get(name).and_then(Value::as_str);
    Some(Missed {
        topic: text("topic")?.into(),
        room: text("room").unwrap_or_default().into(),
        restored: subscription.get("restored").and_then(Value::as_bool)?,
    })
}

fn whole_millis(seconds: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "a cast of a float is never out of range")]
    let millis = (seconds * 1000.0) as i64;
    millis
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::event;

    pub(in crate::channel::backfill) fn gap() -> Gap {
        let subscription = json!({"topic": "channel.activities", "room": "r", "restored": true});
        of(&json!({"from": "2024-02-15T14:52:42Z", "to": "2024-02-15T14:52:43Z",
                   "subscriptions": [subscription]}))
        .unwrap()
    }

    fn of(data: &Value) -> Option<Gap> {
        Gap::read(&event::own(TOPIC, &"main".into(), &"r".into(), data, 1), 1)
    }

    fn report(subscriptions: &[(&str, bool)]) -> Value {
        let all = subscriptions
            .iter()
            .map(|(topic, restored)| json!({"topic": topic, "room": "r", "restored": restored}));
        json!({"from": "2024-02-15T14:52:42Z", "to": "2024-02-15T14:52:43Z", "seconds": 1.0,
               "cause": "c", "channel": "main", "subscriptions": all.collect::<Vec<_>>()})
    }

    #[test]
    fn only_a_gap_of_what_has_a_history_is_filled() {
        let mut recovered = report(&[("channel.tips", true)]);
        recovered["recovery"] = json!({});
        for (data, fetched) in [
            (report(&[("channel.activities", true)]), vec!["channel.activities"]),
            (report(&[("channel.activities", false)]), vec![]),
            (
                report(&[("channel.tips", true), ("channel.chat.message", true)]),
                vec!["channel.tips"],
            ),
            (report(&[("channel.loyalty.redemptions", true)]), vec!["channel.loyalty.redemptions"]),
            (report(&[("channel.tips.moderation", true)]), vec![]),
            (json!({"sink": "home", "count": 3}), vec![]),
            (recovered, vec![]),
        ] {
            let read = of(&data);
            let topics: Vec<&str> = read
                .iter()
                .flat_map(|gap| &gap.missed)
                .filter(|missed| missed.history().is_some())
                .map(|missed| &*missed.topic)
                .collect();
            assert_eq!(topics, fetched, "{data}");
            assert_eq!(read.is_some(), !fetched.is_empty());
            if let Some(read) = read {
                assert_eq!((read.from, read.to), (1_708_008_762_000, 1_708_008_763_000));
            }
        }
        let other = event::own("relay.session", &"main".into(), &"r".into(), &report(&[]), 1);
        assert!(Gap::read(&other, 1).is_none());
    }

    #[test]
    fn gaps_in_a_row_are_one_and_distant_ones_are_not() {
        let mut first = gap();
        let mut next = gap();
        (next.from, next.to) = (first.to + 60_000, first.to + 70_000);
        next.missed = of(&report(&[("channel.tips", true)])).unwrap().missed;
        assert!(first.join(&next));
        assert_eq!((first.to, first.missed.len()), (next.to, 2));
        let mut distant = gap();
        (distant.from, distant.to) = (first.to + 3_600_000, first.to + 3_700_000);
        assert!(!first.join(&distant));
        let elsewhere = Gap { channel: "other".into(), ..gap() };
        assert!(!first.join(&elsewhere));
    }

    #[test]
    fn the_outcome_tells_what_was_recovered_and_why_the_rest_was_not() {
        let topics =
            [("channel.tips", true), ("channel.chat.message", true), ("channel.activities", false)];
        let gap = of(&report(&topics)).unwrap();
        let found = Found { listed: 3, recovered: 2, complete: true, ..Found::default() };
        let outcome = gap.outcome(&[(gap.missed[0].clone(), Ok(found))]);
        let one = |topic: &str, restored: bool, history: bool, why: &str| {
            json!({"topic": topic, "room": "r", "restored": restored, "history": history,
                   "recovered": 0, "complete": false, "reason": why})
        };
        let tips = json!({"topic": "channel.tips", "room": "r", "restored": true, "history": true,
                          "found": 3, "recovered": 2, "complete": true});
        let chat = one("channel.chat.message", true, false, NO_HISTORY);
        let activities = one("channel.activities", false, true, NOT_RESTORED);
        assert_eq!(outcome["subscriptions"], json!([tips, chat, activities]));
        let total = json!({"found": 3, "recovered": 2, "complete": false});
        assert_eq!((&outcome["recovery"], &outcome["cause"]), (&total, &json!("c")));
        let failed = gap.outcome(&[(gap.missed[0].clone(), Err("HTTP 403: no".into()))]);
        assert_eq!(failed["subscriptions"][0]["reason"], "HTTP 403: no");
        // It is no gap of its own.
        assert!(of(&outcome).is_none());
    }
}
