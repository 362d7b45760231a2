//! Whether the copies of an event are recognised as such. Pure.
//!
//! Astro's documents do not say that a message has the same id on every connection. Where it has not, the log
//! keeps every copy. Whoever reads the log sees that: two members have published the same message of a
//! channel, of the same time, shortly after one another, under two keys. When that is so of a good part of what
//! is read, each channel is to be held once.
//!
//! That the data are the same is not enough: some topics say the same again and again, and whichever member is
//! first publishes it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use xxhash_rust::xxh3::xxh3_64;

use crate::base::{
    clock::UnixMillis,
    event::{Origin, Record},
};

/// Messages of a channel that are remembered.
const REMEMBERED: usize = 512;

/// Without a time of Astro's: a copy comes within moments, or, from a member that has just begun to hold the
/// channel, within seconds.
const SOON: UnixMillis = 5_000;

/// Channels that are looked at: what is so of some is so of all.
const CHANNELS: usize = 64;

/// So many messages with two keys are no coincidence, if they are this part of those that were read.
const PAIRS: u64 = 20;
const PART: u64 = 4;

/// Of the past nothing is concluded.
const LATELY: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Copies {
    lately: HashMap<Arc<str>, VecDeque<Published>>,
    read: u64,
    pairs: u64,
}

#[derive(Debug)]
struct Published {
    data: u64,
    key: u64,
    member: u64,
    /// When it happened, as Astro says; `None`: it does not.
    ts: Option<u64>,
    /// When the log stored it.
    stored: UnixMillis,
}

impl Published {
    /// Whether two members have published one message.
    fn is_copy_of(&self, other: &Self) -> bool {
        let is_of_one_time = match self.ts.zip(other.ts) {
            Some((one, other)) => one == other,
            None => self.stored.abs_diff(other.stored) <= SOON,
        };
        self.data == other.data && self.member != other.member && is_of_one_time
    }
}

impl Copies {
    /// The log has this message, published by that member; whether it is time to conclude that copies are
    /// not recognised.
    pub(super) fn read(&mut self, record: &Record, member: &str) -> bool {
        let event = &record.event;
        let place = &event.place;
        if event.origin != Origin::Live
            || place.channel.is_empty()
            || place.topic.starts_with("relay.")
            || record.age() > LATELY
        {
            return false;
        }
        let published = Published {
            data: xxh3_64(event.data()) ^ xxh3_64(place.topic.as_bytes()),
            key: xxh3_64(event.key().as_bytes()),
            member: xxh3_64(member.as_bytes()),
            ts: (!event.ts.is_empty()).then(|| xxh3_64(event.ts.as_bytes())),
            stored: record.stored,
        };
        if self.lately.len() >= CHANNELS && !self.lately.contains_key(&place.channel) {
            return false;
        }
        let lately = self.lately.entry(Arc::clone(&place.channel)).or_default();
        // Another sink's reading of the same message.
        if lately.iter().any(|one| one.key == published.key) {
            return false;
        }
        self.read += 1;
        self.pairs += u64::from(lately.iter().any(|one| one.is_copy_of(&published)));
        if lately.len() >= REMEMBERED {
            lately.pop_front();
        }
        lately.push_back(published);
        self.pairs >= PAIRS && self.pairs * PART >= self.read
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::advance;

    use super::*;
    use crate::base::{
        clock,
        event::{Event, Place, own},
    };

    fn record(number: u64, key: &str, channel: &str) -> Record {
        let mut event =
            own("channel.tips", &channel.into(), &"r".into(), &json!({ "n": number }), 1);
        event.distinct_key = Some(key.into());
        Record::new(1, event)
    }

    #[test]
    fn messages_that_two_members_publish_under_two_keys_are_noticed() {
        let mut copies = Copies::default();
        let mut noticed = None;
        for number in 0..100 {
            for member in ["a", "b"] {
                let key = format!("{member}-{number}");
                if copies.read(&record(number, &key, "main"), member) {
                    noticed.get_or_insert(number);
                }
            }
        }
        assert_eq!(noticed, Some(PAIRS - 1));
    }

    /// Whether a hundred messages, each under two keys, are a reason when they are like this.
    async fn is_noticed(age: Duration, change: impl Fn(&mut Event)) -> bool {
        let mut records = Vec::new();
        for number in 0..100 {
            for member in ["a", "b"] {
                let mut record = record(number, &format!("{member}-{number}"), "main");
                change(&mut record.event);
                records.push((record, member));
            }
        }
        advance(age).await;
        let mut copies = Copies::default();
        records.iter().any(|(record, member)| copies.read(record, member))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_or_fetched_or_the_relays_own_is_no_reason() {
        assert!(is_noticed(LATELY, |_| {}).await);
        assert!(!is_noticed(LATELY + Duration::from_secs(1), |_| {}).await);
        let fetched = |event: &mut Event| event.origin = Origin::Backfilled;
        assert!(!is_noticed(Duration::ZERO, fetched).await);
        for (topic, channel) in [("channel.tips", ""), ("relay.gap", "main")] {
            let placed = |event: &mut Event| event.place = Place::of(topic, "r", channel);
            assert!(!is_noticed(Duration::ZERO, placed).await, "{topic} {channel}");
        }
    }

    /// Whether a message that says the same every `pace` milliseconds, each published by the member that was
    /// first, is taken for copies.
    fn is_repetition_noticed(pace: u64, with_ts: bool) -> bool {
        let mut copies = Copies::default();
        (0..200_u64).any(|number| {
            let member = if number.is_multiple_of(2) { "a" } else { "b" };
            let mut record = record(0, &format!("k{number}"), "main");
            record.stored = number * pace;
            let ts = if with_ts { clock::rfc3339(record.stored) } else { String::new() };
            record.event.ts = ts.into();
            copies.read(&record, member)
        })
    }

    #[test]
    fn messages_that_say_the_same_again_are_no_copies() {
        assert!(!is_repetition_noticed(1000, true), "each has a time of its own");
        assert!(!is_repetition_noticed(SOON + 1, false), "they come one after another");
        // Nothing tells these apart from copies.
        assert!(is_repetition_noticed(1, false));
        assert!(is_repetition_noticed(0, true));
    }

    #[test]
    fn a_copy_is_found_as_many_messages_later_as_are_remembered() {
        let mut copies = Copies::default();
        let mut noticed = false;
        for member in ["a", "b"] {
            for number in 0..u64::try_from(REMEMBERED).unwrap() {
                let key = format!("{member}-{number}");
                noticed |= copies.read(&record(number, &key, "main"), member);
            }
        }
        assert!(noticed);
    }

    #[test]
    fn so_many_channels_are_watched_and_no_more() {
        let mut copies = Copies::default();
        for number in 0..CHANNELS + 5 {
            copies.read(&record(0, "k", &format!("c{number}")), "a");
        }
        assert_eq!((copies.lately.len(), copies.read), (CHANNELS, CHANNELS as u64));
        copies.read(&record(1, "l", "c0"), "a");
        assert_eq!(copies.read, CHANNELS as u64 + 1);
    }

    #[test]
    fn recognised_copies_and_repeated_messages_are_no_reason() {
        let mut copies = Copies::default();
        for number in 0..1000 {
            // Whoever was first published it, and two sinks read it.
            let member = if number % 3 == 0 { "a" } else { "b" };
            for _ in 0..2 {
                assert!(!copies.read(&record(number, &format!("k{number}"), "main"), member));
            }
            // One that says the same each time, through one member.
            let same = record(0, &format!("s{number}"), "shop");
            assert!(!copies.read(&same, "a"));
        }
        assert!(copies.lately.values().all(|lately| lately.len() <= REMEMBERED));
    }
}
