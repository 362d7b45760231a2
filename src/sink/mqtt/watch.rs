//! What stands retained at the broker in our name, and whether somebody else has written over it.
//!
//! It does no I/O: the sink tells what it has said and what it hears, and asks what is to be written
//! [`Watch::next`]. In MQTT 5 we do not hear ourselves; in 3.1.1 we do, so there every message of ours is
//! expected back once.
//!
//! The one thing to know: the other one may be a relay that corrects as we do. So a topic is corrected a
//! few times at once and rarely after that, and then it is named among the remarks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::inbox::Message;

/// Corrections of one topic that are made at once.
const AT_ONCE: u32 = 5;

/// One more is allowed after so long.
const RARELY: Duration = Duration::from_mins(2);

/// Topics that are watched.
const TOPICS: usize = 50_000;

/// Own messages of one topic that are expected back.
const ECHOES: usize = 16;

/// Contested topics that a remark names.
const NAMED: usize = 3;

/// How often the log tells of a correction.
const TELL: Duration = Duration::from_mins(1);

/// How often a topic may be corrected.
#[derive(Debug)]
struct Allowance {
    left: u32,
    /// When `left` was last true.
    since: Instant,
    told: bool,
}

impl Allowance {
    fn refill(&mut self, now: Instant) {
        while self.left < AT_ONCE && self.since + RARELY <= now {
            self.left += 1;
            self.since += RARELY;
        }
    }
}

/// The retained values of one connection.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What stands at the broker, by topic.
    said: BTreeMap<String, Bytes>,
    /// What we have sent and not yet heard, by topic; nothing where we do not hear ourselves.
    echoes: Option<BTreeMap<String, VecDeque<Bytes>>>,
    filters: BTreeSet<String>,
    /// Topics that are to be written again.
    wrong: BTreeSet<String>,
    allowances: BTreeMap<String, Allowance>,
    told: Option<Instant>,
}

impl Watch {
    /// There is a new connection; `echoes`: what we publish comes back.
    pub(super) fn begin(&mut self, echoes: bool) {
        self.echoes = echoes.then(BTreeMap::new);
        self.said.clear();
        self.filters.clear();
        self.wrong.clear();
    }

    /// Whether a filter is not yet subscribed; from now on it is.
    pub(super) fn is_new(&mut self, filter: &str) -> bool {
        !self.filters.contains(filter) && self.filters.insert(filter.to_owned())
    }

    /// A value is on its way.
    pub(super) fn handed(&mut self, topic: &str, payload: &Bytes) {
        let Some(echoes) = &mut self.echoes else { return };
        if !echoes.contains_key(topic) && echoes.len() >= TOPICS {
            return;
        }
        let echoes = echoes.entry(topic.to_owned()).or_default();
        if echoes.len() >= ECHOES {
            echoes.pop_front();
        }
        echoes.push_back(payload.clone());
    }

    /// A value stands at the broker; an empty one stands no more.
    pub(super) fn said(&mut self, topic: &str, payload: &Bytes) {
        self.wrong.remove(topic);
        if payload.is_empty() {
            self.said.remove(topic);
        } else if self.said.contains_key(topic) || self.said.len() < TOPICS {
            self.said.insert(topic.to_owned(), payload.clone());
        }
    }

    /// Whether a message is one of ours that comes back.
    fn is_echo(&mut self, message: &Message) -> bool {
        let echoes = self.echoes.as_mut().and_then(|echoes| echoes.get_mut(&message.topic));
        let Some(echoes) = echoes else { return false };
        let Some(place) = echoes.iter().position(|echo| *echo == message.payload) else {
            return false;
        };
        echoes.drain(..=place);
        true
    }

    /// A message was heard.
    pub(super) fn hear(&mut self, message: &Message) {
        if self.is_echo(message) {
            return;
        }
        let Message { topic, payload, retained } = message;
        let Some(said) = self.said.get(topic) else { return };
        if said == payload {
            self.wrong.remove(topic);
        } else if *retained || self.echoes.is_some() {
            // In 3.1.1 nobody can see whether the broker keeps it.
            self.wrong.insert(topic.clone());
        }
    }

    /// What is to be written again now.
    pub(super) fn next(&mut self, now: Instant) -> Option<(String, Bytes)> {
        let found = self.wrong.iter().find(|topic| {
            let Some(allowance) = self.allowances.get_mut(*topic) else { return true };
            allowance.refill(now);
            allowance.left > 0
        });
        let topic = found?.clone();
        self.wrong.remove(&topic);
        let payload = self.said.get(&topic)?.clone();
        let allowance = self.allowances.entry(topic.clone()).or_insert(Allowance {
            left: AT_ONCE,
            since: now,
            told: false,
        });
        if allowance.left == AT_ONCE {
            allowance.since = now;
            allowance.told = false;
        }
        allowance.left -= 1;
        let (loud, contested) =
            (self.told.is_none_or(|told| told + TELL <= now), allowance.left == 0);
        if contested && !std::mem::replace(&mut allowance.told, true) {
            tracing::warn!(
                topic,
                "another client keeps writing over this; it is put right rarely now"
            );
        } else if loud {
            self.told = Some(now);
            tracing::info!(topic, "another client wrote over this; it is put right");
        } else {
            tracing::debug!(topic, "another client wrote over this; it is put right");
        }
        Some((topic, payload))
    }

    /// When something may be written again that may not be now.
    pub(super) fn due(&self) -> Option<Instant> {
        let when = |topic: &String| self.allowances.get(topic).map(|one| one.since + RARELY);
        self.wrong.iter().filter_map(when).min()
    }

    /// What an operator should know: who else writes where we write.
    pub(super) fn remark(&self, now: Instant) -> Option<String> {
        let contested: Vec<&str> = self
            .allowances
            .iter()
            .filter(|(_, one)| one.told && now < one.since + RARELY.saturating_mul(AT_ONCE))
            .map(|(topic, _)| topic.as_str())
            .collect();
        let first = contested.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = contested.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!contested.is_empty()).then(|| {
            format!(
                "another client writes over retained values of ours, again and again: {first}{more}; \
                 give one of the two another state_topic or client_id, or take its rights away"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(topic: &str, payload: &'static str, retained: bool) -> Message {
        let payload = Bytes::from_static(payload.as_bytes());
        Message { topic: topic.into(), payload, retained }
    }

    fn saying(echoes: bool) -> Watch {
        let mut watch = Watch::default();
        watch.begin(echoes);
        watch.said("a", &"1".into());
        watch
    }

    #[test]
    fn what_another_writes_is_put_right_and_what_passes_by_is_not() {
        let (mut watch, now) = (saying(false), Instant::now());
        for (payload, retained, wrong) in
            [("1", true, false), ("2", false, false), ("2", true, true), ("", true, true)]
        {
            watch.hear(&heard("a", payload, retained));
            let right = wrong.then(|| ("a".to_owned(), Bytes::from("1")));
            assert_eq!(watch.next(now), right, "{payload} {retained}");
        }
        watch.hear(&heard("b", "2", true));
        assert_eq!(watch.next(now), None, "not ours");
        // What has changed meanwhile, or is no more, is not written again.
        watch.hear(&heard("a", "2", true));
        watch.said("a", &Bytes::new());
        assert_eq!(watch.next(now), None);
    }

    #[test]
    fn what_comes_back_to_us_is_our_own() {
        let (mut watch, now) = (saying(true), Instant::now());
        for payload in ["2", "3", "2"] {
            watch.handed("a", &payload.into());
            watch.said("a", &payload.into());
        }
        for payload in ["2", "3", "2"] {
            watch.hear(&heard("a", payload, false));
            assert_eq!(watch.next(now), None);
        }
        watch.hear(&heard("a", "3", false));
        assert_eq!(watch.next(now), Some(("a".into(), "2".into())));
    }

    #[test]
    fn two_that_correct_each_other_do_not_do_it_for_ever() {
        let (mut watch, begun) = (saying(false), Instant::now());
        let (mut corrected, mut named) = (0, false);
        // An hour, in which the other one answers each time at once.
        for second in 0..3600 {
            let now = begun + Duration::from_secs(second);
            watch.hear(&heard("a", "2", true));
            corrected += u32::from(watch.next(now).is_some());
            named |= watch.remark(now).is_some_and(|remark| remark.contains(": a;"));
        }
        assert!((30..=36).contains(&corrected), "{corrected}");
        assert!(named);
        let later = begun + Duration::from_hours(2);
        assert_eq!(watch.remark(later), None, "it is over");
        assert!(watch.due().is_some());
    }
}
