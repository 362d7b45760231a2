//! What the broker retains in our name, and whether another client has written over it.
//!
//! It does no I/O: the publisher reports what it has published and what it receives, and asks for the
//! next correction. In MQTT 5 our own messages do not come back; in 3.1.1 they do, so there each of them is
//! expected back once.
//!
//! The other client may be a relay that corrects as we do. So a topic is corrected a few times at once and
//! rarely after that, and then it is named among the remarks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::sink::mqtt::connection::Message;

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

/// How often a correction is logged.
const LOGGED: Duration = Duration::from_mins(1);

/// How often a topic may be corrected.
#[derive(Debug)]
struct Allowance {
    left: u32,
    /// When `left` was last true.
    since: Instant,
    reported: bool,
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
pub(super) struct RetainedTopics {
    /// What the broker retains, by topic.
    published: BTreeMap<String, Bytes>,
    /// What is to be retained instead, by topic: it is on its way.
    sent: BTreeMap<String, Bytes>,
    /// What we have sent and has not yet come back, by topic; nothing where it does not.
    echoes: Option<BTreeMap<String, VecDeque<Bytes>>>,
    filters: BTreeSet<String>,
    overwritten: BTreeSet<String>,
    allowances: BTreeMap<String, Allowance>,
    logged: Option<Instant>,
}

impl RetainedTopics {
    /// There is a new connection; `echoes`: what we publish comes back.
    pub(super) fn begin(&mut self, echoes: bool) {
        self.echoes = echoes.then(BTreeMap::new);
        self.published.clear();
        self.sent.clear();
        self.filters.clear();
        self.overwritten.clear();
    }

    /// Whether a filter is not yet subscribed; from now on it is.
    pub(super) fn is_new(&mut self, filter: &str) -> bool {
        !self.filters.contains(filter) && self.filters.insert(filter.to_owned())
    }

    /// A value is on its way. It writes over what another client has written until now.
    pub(super) fn sending(&mut self, topic: &str, payload: &Bytes) {
        self.overwritten.remove(topic);
        if self.sent.contains_key(topic) || self.sent.len() < TOPICS {
            self.sent.insert(topic.to_owned(), payload.clone());
        }
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

    /// The broker retains a value; an empty one clears the topic. What another client has written since it
    /// was sent may have come to the broker later: that is still to be corrected.
    pub(super) fn published(&mut self, topic: &str, payload: &Bytes) {
        self.sent.remove(topic);
        if payload.is_empty() {
            self.published.remove(topic);
            self.overwritten.remove(topic);
        } else if self.published.contains_key(topic) || self.published.len() < TOPICS {
            self.published.insert(topic.to_owned(), payload.clone());
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

    /// Takes note of what stands under a topic; whether another client has written there what we would.
    pub(super) fn received(&mut self, message: &Message) -> bool {
        if self.is_echo(message) {
            return false;
        }
        let Message { topic, payload, retain, .. } = message;
        // Before the first of ours is there, what comes is from before it.
        let Some(published) = self.published.get(topic) else { return false };
        let is_right = self.sent.get(topic).unwrap_or(published) == payload;
        if is_right {
            self.overwritten.remove(topic);
        } else if published != payload && (*retain || self.echoes.is_some()) {
            // What was published last may have been there before what is on its way. In 3.1.1 nobody can see
            // whether the broker retains it.
            self.overwritten.insert(topic.clone());
        }
        is_right
    }

    /// What is to be published again now.
    pub(super) fn next_correction(&mut self, now: Instant) -> Option<(String, Bytes)> {
        let found = self.overwritten.iter().find(|topic| {
            let Some(allowance) = self.allowances.get_mut(*topic) else { return true };
            allowance.refill(now);
            allowance.left > 0
        });
        let topic = found?.clone();
        self.overwritten.remove(&topic);
        let payload = self.published.get(&topic)?.clone();
        let allowance = self.allowances.entry(topic.clone()).or_insert(Allowance {
            left: AT_ONCE,
            since: now,
            reported: false,
        });
        if allowance.left == AT_ONCE {
            allowance.since = now;
            allowance.reported = false;
        }
        allowance.left -= 1;
        let (loud, contested) =
            (self.logged.is_none_or(|at| at + LOGGED <= now), allowance.left == 0);
        if contested && !std::mem::replace(&mut allowance.reported, true) {
            tracing::warn!(
                topic,
                "another client keeps writing over this; it is corrected rarely now"
            );
        } else if loud {
            self.logged = Some(now);
            tracing::info!(topic, "another client wrote over this; it is corrected");
        } else {
            tracing::debug!(topic, "another client wrote over this; it is corrected");
        }
        Some((topic, payload))
    }

    /// The broker did not take a correction at the moment: it is made again, and does not count. Whether
    /// there is still something to correct.
    pub(super) fn not_taken(&mut self, topic: &str) -> bool {
        if let Some(allowance) = self.allowances.get_mut(topic) {
            allowance.left = AT_ONCE.min(allowance.left + 1);
        }
        let is_published = self.published.contains_key(topic);
        if is_published {
            self.overwritten.insert(topic.to_owned());
        }
        is_published
    }

    /// When a correction is due that is not now.
    pub(super) fn due(&self) -> Option<Instant> {
        let when = |topic: &String| self.allowances.get(topic).map(|one| one.since + RARELY);
        self.overwritten.iter().filter_map(when).min()
    }

    /// What an operator should know: who else writes where we write.
    pub(super) fn remark(&self, now: Instant) -> Option<String> {
        let contested: Vec<&str> = self
            .allowances
            .iter()
            .filter(|(_, one)| one.reported && now < one.since + RARELY.saturating_mul(AT_ONCE))
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

    fn message(topic: &str, payload: &'static str, retain: bool) -> Message {
        let payload = Bytes::from_static(payload.as_bytes());
        let (response_topic, correlation) = (None, None);
        Message {
            topic: topic.into(),
            payload,
            retain,
            duplicate: false,
            response_topic,
            correlation,
        }
    }

    fn publishing(echoes: bool) -> RetainedTopics {
        let mut topics = RetainedTopics::default();
        topics.begin(echoes);
        topics.published("a", &"1".into());
        topics
    }

    #[test]
    fn an_overwritten_value_is_corrected_and_a_passing_one_is_not() {
        let (mut topics, now) = (publishing(false), Instant::now());
        for (payload, retained, wrong) in
            [("1", true, false), ("2", false, false), ("2", true, true), ("", true, true)]
        {
            topics.received(&message("a", payload, retained));
            let right = wrong.then(|| ("a".to_owned(), Bytes::from("1")));
            assert_eq!(topics.next_correction(now), right, "{payload} {retained}");
        }
        topics.received(&message("b", "2", true));
        assert_eq!(topics.next_correction(now), None, "not ours");
        // What has changed meanwhile, or is no more, is not written again.
        topics.received(&message("a", "2", true));
        topics.published("a", &Bytes::new());
        assert_eq!(topics.next_correction(now), None);
    }

    #[test]
    fn what_is_written_over_a_value_on_its_way_is_corrected() {
        for (payload, wrong) in [("1", false), ("2", false), ("3", true), ("", true)] {
            let (mut topics, now) = (publishing(false), Instant::now());
            topics.sending("a", &"2".into());
            topics.received(&message("a", payload, true));
            topics.published("a", &"2".into());
            let right = wrong.then(|| ("a".to_owned(), Bytes::from("2")));
            assert_eq!(topics.next_correction(now), right, "{payload}");
        }
        // What was written before is written over by ours.
        let (mut topics, now) = (publishing(false), Instant::now());
        topics.received(&message("a", "3", true));
        topics.sending("a", &"2".into());
        topics.published("a", &"2".into());
        assert_eq!(topics.next_correction(now), None);
        // What we clear may be another client's from then on.
        topics.sending("a", &Bytes::new());
        topics.received(&message("a", "3", true));
        topics.published("a", &Bytes::new());
        assert_eq!(topics.next_correction(now), None);
    }

    #[test]
    fn an_echo_is_not_an_overwrite() {
        let (mut topics, now) = (publishing(true), Instant::now());
        for payload in ["2", "3", "2"] {
            topics.sending("a", &payload.into());
            topics.published("a", &payload.into());
        }
        for payload in ["2", "3", "2"] {
            topics.received(&message("a", payload, false));
            assert_eq!(topics.next_correction(now), None);
        }
        topics.received(&message("a", "3", false));
        assert_eq!(topics.next_correction(now), Some(("a".into(), "2".into())));
    }

    #[test]
    fn a_correction_that_the_broker_does_not_take_is_made_again_and_does_not_count() {
        let (mut topics, now) = (publishing(false), Instant::now());
        topics.received(&message("a", "2", true));
        for _ in 0..3 * AT_ONCE {
            assert_eq!(topics.next_correction(now), Some(("a".into(), "1".into())));
            assert_eq!(topics.next_correction(now), None, "it is on its way");
            topics.not_taken("a");
        }
        assert_eq!(topics.remark(now), None);
        // What was cleared meanwhile is not written again.
        topics.published("a", &Bytes::new());
        topics.not_taken("a");
        assert_eq!(topics.next_correction(now), None);
    }

    #[test]
    fn corrections_of_a_contested_topic_become_rare() {
        let (mut topics, begun) = (publishing(false), Instant::now());
        let (mut corrected, mut named) = (0, false);
        // An hour, in which the other one answers each time at once.
        for second in 0..3600 {
            let now = begun + Duration::from_secs(second);
            topics.received(&message("a", "2", true));
            corrected += u32::from(topics.next_correction(now).is_some());
            named |= topics.remark(now).is_some_and(|remark| remark.contains(": a;"));
        }
        assert!((30..=36).contains(&corrected), "{corrected}");
        assert!(named);
        let later = begun + Duration::from_hours(2);
        assert_eq!(topics.remark(later), None, "it is over");
        assert!(topics.due().is_some());
    }
}
