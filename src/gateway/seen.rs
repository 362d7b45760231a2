//! Messages seen lately, so that a duplicate is dropped.
//!
//! While a connection hands over to its successor both carry the same messages. A duplicate has the same
//! id and the same deduplication key ([`crate::base::event::key`]). The same id with another key is another
//! message (Astro's documents show a tip and its moderation under one id), and so is another id with the
//! same key: what a destination does with that is not decided here.
//!
//! What is remembered here is only ever a reason to drop something: no message's key depends on it.
//!
//! It remembers a bounded number of messages. They are forgotten half at a time, the older half first: to
//! forget each by itself would cost as much again as to remember it.

use std::{
    collections::HashSet,
    hash::{BuildHasher, Hasher},
};

use foldhash::fast::FixedState;

use crate::base::event::Event;

/// Messages remembered, at least. A handover lasts seconds; at a thousand messages a second this is
/// half a minute. It is what a table of 2^15 slots takes before it grows.
const REMEMBERED: usize = 28_672;

#[derive(Debug)]
pub struct Seen {
    new: HashSet<u64, FixedState>,
    old: HashSet<u64, FixedState>,
    limit: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self::new(REMEMBERED)
    }
}

impl Seen {
    /// Remembers the last `limit` messages at least, and at most twice as many.
    pub fn new(limit: usize) -> Self {
        Self { new: HashSet::default(), old: HashSet::default(), limit: limit.max(1) }
    }

    /// Looks a message up and remembers it; whether it is new. One without an id always is.
    pub fn admit(&mut self, event: &Event) -> bool {
        if event.id.is_empty() {
            return true;
        }
        let message = digest(&event.id, event.key());
        if self.new.contains(&message) || self.old.contains(&message) {
            return false;
        }
        if self.new.len() >= self.limit {
            std::mem::swap(&mut self.new, &mut self.old);
            // This keeps the table's memory.
            self.new.clear();
        }
        self.new.insert(message)
    }
}

/// By which a pair of texts is remembered. It is never written down.
pub(super) fn digest(one: &str, other: &str) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    for part in [one, other] {
        hasher.write_usize(part.len());
        hasher.write(part.as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::event::{Origin, Place, key};

    fn event(id: &str, topic: &str, data: &str) -> Event {
        Event {
            id: id.into(),
            distinct_key: Some(key::of(id, "", topic, "r", data.as_bytes())),
            place: Place::of(topic, "r", "main"),
            ts: "".into(),
            received: 0,
            origin: Origin::Live,
            message: data.to_owned().into(),
            data: 0..data.len(),
            may_have_personal_fields: true,
        }
    }

    #[test]
    fn a_duplicate_is_dropped_and_what_shares_its_id_is_not() {
        let mut seen = Seen::new(10);
        let tip = event("01J", "channel.tips", r#"{"approved":"allowed"}"#);
        let moderation = event("01J", "channel.tips.moderation", r#"{"approved":"pending"}"#);
        assert!(seen.admit(&tip) && seen.admit(&moderation));
        assert!(!seen.admit(&tip) && !seen.admit(&moderation));
    }

    #[test]
    fn two_messages_about_one_activity_are_two() {
        let mut seen = Seen::new(10);
        let activity = |id| event(id, "channel.activities", r#"{"_id":"a","type":"tip"}"#);
        assert_eq!(activity("01A").key(), activity("01B").key());
        assert!(seen.admit(&activity("01A")) && seen.admit(&activity("01B")));
        assert!(!seen.admit(&activity("01A")));
    }

    #[test]
    fn where_the_id_ends_and_the_key_begins_makes_a_difference() {
        assert_ne!(digest("ab", "c"), digest("a", "bc"));
        assert_ne!(digest("a", "b"), digest("b", "a"));
    }

    #[test]
    fn a_message_without_an_id_is_always_new() {
        let mut seen = Seen::new(10);
        for _ in 0..3 {
            assert!(seen.admit(&event("", "astro", "{}")));
        }
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_memory_is_bounded() {
        let mut seen = Seen::new(100);
        for number in 0..1000 {
            assert!(seen.admit(&event(&number.to_string(), "t", "{}")));
            assert!(seen.new.len() <= 100 && seen.old.len() <= 100);
        }
        for number in 900..1000 {
            assert!(!seen.admit(&event(&number.to_string(), "t", "{}")));
        }
        // The older half is there until the newer one is full.
        for number in 1000..1050 {
            assert!(seen.admit(&event(&number.to_string(), "t", "{}")));
        }
        for number in 950..1050 {
            assert!(!seen.admit(&event(&number.to_string(), "t", "{}")));
        }
        assert!(seen.admit(&event("799", "t", "{}")));
    }

    proptest::proptest! {
        #[test]
        fn a_key_does_not_depend_on_what_came_before(
            messages in proptest::collection::vec(("[ab]{1}", "[tu]{1}", "[12]{0,1}"), 1..20),
        ) {
            let mut seen = Seen::new(2);
            let mut keys = std::collections::HashMap::new();
            for (id, topic, data) in messages {
                let event = event(&id, &topic, &data);
                seen.admit(&event);
                let key = event.key().to_owned();
                let before = keys.insert(key.clone(), (id.clone(), topic.clone(), data.clone()));
                proptest::prop_assert!(before.is_none_or(|before| before == (id, topic, data)), "{}", key);
            }
        }
    }
}
