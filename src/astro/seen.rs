//! Messages seen lately, so that a twin is recognised.
//!
//! While a connection hands over to its successor both carry the same messages, and a restarted relay
//! may hear again what the one before it heard. A twin has the same `id`, topic, room and data. The
//! same `id` with something else in it is another message (Astro's documents show a tip and its
//! moderation under one id): it is kept, and told apart by a digest of its content.
//!
//! The one thing to know: it remembers a bounded number of messages. They are forgotten half at a time,
//! the older half first: to forget each by itself would cost as much again as to remember it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
};

use foldhash::fast::FixedState;
use sha2::{Digest, Sha256};

use crate::event::Event;

/// Messages remembered, at least. A handover lasts seconds; at a thousand messages a second this is
/// half a minute. It is what a table of 2^15 places takes before it grows.
pub const REMEMBERED: usize = 28_672;

/// What a new message is.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen before.
    New,
    /// Seen before, the same in all.
    Twin,
    /// Its id was seen with another content: this is the key that tells it apart.
    Namesake(Box<str>),
}

/// The messages seen lately.
#[derive(Debug)]
pub struct Seen {
    new: Half,
    old: Half,
    limit: usize,
}

/// Messages that are forgotten together.
#[derive(Debug, Default)]
struct Half {
    /// Digest of the id to the digest of the content seen under it.
    ids: HashMap<u64, u64, FixedState>,
    /// The digests of further contents, where one id was used for several: that is rare.
    others: HashMap<u64, Vec<u64>, FixedState>,
    /// Contents in all.
    count: usize,
}

/// What is known of an id and a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    No,
    /// The id, with other contents.
    Id,
    Both,
}

impl Default for Seen {
    fn default() -> Self {
        Self::new(REMEMBERED)
    }
}

impl Seen {
    /// Remembers the last `limit` messages at least, and at most twice as many.
    pub fn new(limit: usize) -> Self {
        Self { new: Half::default(), old: Half::default(), limit: limit.max(1) }
    }

    /// Looks a message up and remembers it. A message without an id is always new.
    pub fn admit(&mut self, event: &Event) -> Verdict {
        if event.id.is_empty() {
            return Verdict::New;
        }
        let id = digest(&[event.id.as_bytes()]);
        let content = content(event);
        let verdict = match (self.new.look(id, content), self.old.look(id, content)) {
            (Known::Both, _) | (_, Known::Both) => return Verdict::Twin,
            (Known::No, Known::No) => Verdict::New,
            (Known::Id, _) | (_, Known::Id) => Verdict::Namesake(distinct_key(event)),
        };
        if self.new.count >= self.limit {
            std::mem::swap(&mut self.new, &mut self.old);
            self.new.clear();
        }
        self.new.note(id, content);
        verdict
    }
}

impl Half {
    fn look(&self, id: u64, content: u64) -> Known {
        match self.ids.get(&id) {
            None => Known::No,
            Some(known) if *known == content => Known::Both,
            Some(_) => match self.others.get(&id) {
                Some(others) if others.contains(&content) => Known::Both,
                _ => Known::Id,
            },
        }
    }

    fn note(&mut self, id: u64, content: u64) {
        self.count += 1;
        if let Some(before) = self.ids.insert(id, content) {
            self.others.entry(id).or_default().push(before);
        }
    }

    /// Forgets all, and keeps the tables' memory.
    fn clear(&mut self) {
        self.ids.clear();
        self.others.clear();
        self.count = 0;
    }
}

/// What makes two messages under one id the same.
fn content(event: &Event) -> u64 {
    digest(&[event.place.topic.as_bytes(), event.place.room.as_bytes(), event.data()])
}

/// The key of a namesake: its id, and 64 bits of a digest of what makes it different. The far side
/// remembers it for longer than this process lives, so the digest is one that no library changes.
fn distinct_key(event: &Event) -> Box<str> {
    let mut hasher = Sha256::new();
    for part in [event.place.topic.as_bytes(), event.place.room.as_bytes(), event.data()] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let bits = digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    format!("{}-{bits:016x}", event.id).into()
}

fn digest(parts: &[&[u8]]) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Origin, Place};

    fn event(id: &str, topic: &str, data: &str) -> Event {
        Event {
            id: id.into(),
            distinct_key: None,
            place: Place::of(topic, "r", "main"),
            impersonal: false,
            ts: "".into(),
            received: 0,
            origin: Origin::Live,
            message: data.to_owned().into(),
            data: 0..data.len(),
        }
    }

    #[test]
    fn a_twin_is_recognised_and_a_namesake_is_not_mistaken_for_one() {
        let mut seen = Seen::new(10);
        let tip = event("01J", "channel.tips", r#"{"approved":"allowed"}"#);
        let moderation = event("01J", "channel.tips.moderation", r#"{"approved":"pending"}"#);
        assert_eq!(seen.admit(&tip), Verdict::New);
        let Verdict::Namesake(key) = seen.admit(&moderation) else { panic!("another message") };
        assert_eq!(&*key, "01J-fb2127c87b8da7d8", "the same in every version");
        assert_eq!(seen.admit(&tip), Verdict::Twin);
        assert_eq!(seen.admit(&moderation), Verdict::Twin);
    }

    #[test]
    fn a_message_without_an_id_is_always_new() {
        let mut seen = Seen::new(10);
        for _ in 0..3 {
            assert_eq!(seen.admit(&event("", "astro", "{}")), Verdict::New);
        }
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_memory_is_bounded() {
        let mut seen = Seen::new(100);
        for number in 0..1000 {
            assert_eq!(seen.admit(&event(&number.to_string(), "t", "{}")), Verdict::New);
            assert!(seen.new.ids.len() <= 100 && seen.old.ids.len() <= 100);
        }
        for number in 900..1000 {
            assert_eq!(seen.admit(&event(&number.to_string(), "t", "{}")), Verdict::Twin);
        }
        assert_eq!(seen.admit(&event("799", "t", "{}")), Verdict::New);
    }

    #[test]
    fn namesakes_are_recognised_across_the_halves_and_forgotten_too() {
        let mut seen = Seen::new(3);
        for (data, before) in
            [("1", None), ("2", Some("1")), ("3", Some("1")), ("4", Some("1")), ("5", Some("3"))]
        {
            assert_ne!(seen.admit(&event("same", "t", data)), Verdict::Twin);
            if let Some(before) = before {
                assert_eq!(seen.admit(&event("same", "t", before)), Verdict::Twin);
            }
        }
        for data in ["6", "7", "8", "9"] {
            assert_ne!(seen.admit(&event("same", "t", data)), Verdict::Twin);
        }
        let kept = |half: &Half| half.ids.len() + half.others.values().map(Vec::len).sum::<usize>();
        assert_eq!((kept(&seen.new), kept(&seen.old)), (3, 3));
        assert_eq!((seen.new.count, seen.old.count), (3, 3));
        assert_ne!(seen.admit(&event("same", "t", "1")), Verdict::Twin, "forgotten");
    }
}
