//! Messages seen lately, so that a twin is recognised.
//!
//! While a connection hands over to its successor both carry the same messages, and a restarted relay
//! may hear again what the one before it heard. A twin has the same `id`, topic, room and data. The
//! same `id` with something else in it is another message (Astro's documents show a tip and its
//! moderation under one id): it is kept, and told apart by a digest of its content.
//!
//! The one thing to know: it remembers a bounded number of messages, the oldest go first.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::{BuildHasher, Hasher},
};

use foldhash::fast::FixedState;
use sha2::{Digest, Sha256};

use crate::event::Event;

/// Messages remembered. A handover lasts seconds; at a thousand messages a second this is a minute.
pub const REMEMBERED: usize = 65_536;

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
    order: VecDeque<(u64, u64)>,
    /// Digest of the id to the digest of the content seen under it.
    ids: HashMap<u64, u64, FixedState>,
    /// The digests of further contents, where one id was used for several: that is rare.
    others: HashMap<u64, Vec<u64>, FixedState>,
    limit: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self::new(REMEMBERED)
    }
}

impl Seen {
    /// Remembers the last `limit` messages.
    pub fn new(limit: usize) -> Self {
        Self {
            order: VecDeque::new(),
            ids: HashMap::default(),
            others: HashMap::default(),
            limit: limit.max(1),
        }
    }

    /// Looks a message up and remembers it. A message without an id is always new.
    pub fn admit(&mut self, event: &Event) -> Verdict {
        if event.id.is_empty() {
            return Verdict::New;
        }
        let id = digest(&[event.id.as_bytes()]);
        let content = content(event);
        let verdict = match self.ids.entry(id) {
            Entry::Vacant(vacant) => {
                vacant.insert(content);
                Verdict::New
            }
            Entry::Occupied(known) if *known.get() == content => return Verdict::Twin,
            Entry::Occupied(_) => {
                let others = self.others.entry(id).or_default();
                if others.contains(&content) {
                    return Verdict::Twin;
                }
                others.push(content);
                Verdict::Namesake(distinct_key(event))
            }
        };
        self.order.push_back((id, content));
        if self.order.len() > self.limit {
            self.forget_oldest();
        }
        verdict
    }

    fn forget_oldest(&mut self) {
        let Some((id, content)) = self.order.pop_front() else { return };
        let Entry::Occupied(mut known) = self.ids.entry(id) else { return };
        let first = *known.get() == content;
        let Some(others) = self.others.get_mut(&id) else {
            if first {
                known.remove();
            }
            return;
        };
        if !first {
            others.retain(|other| *other != content);
        } else if let Some(other) = others.pop() {
            known.insert(other);
        }
        if others.is_empty() {
            self.others.remove(&id);
        }
    }
}

/// What makes two messages under one id the same.
fn content(event: &Event) -> u64 {
    digest(&[event.topic.as_bytes(), event.room.as_bytes(), event.data()])
}

/// The key of a namesake: its id, and 64 bits of a digest of what makes it different. The far side
/// remembers it for longer than this process lives, so the digest is one that no library changes.
fn distinct_key(event: &Event) -> Box<str> {
    let mut hasher = Sha256::new();
    for part in [event.topic.as_bytes(), event.room.as_bytes(), event.data()] {
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
    use crate::event::Origin;

    fn event(id: &str, topic: &str, data: &str) -> Event {
        Event {
            id: id.into(),
            distinct_key: None,
            topic: topic.into(),
            room: "r".into(),
            channel: "main".into(),
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
        }
        assert_eq!((seen.order.len(), seen.ids.len()), (100, 100));
        assert_eq!(seen.admit(&event("999", "t", "{}")), Verdict::Twin);
        assert_eq!(seen.admit(&event("0", "t", "{}")), Verdict::New);
    }

    #[test]
    fn namesakes_are_forgotten_too() {
        let mut seen = Seen::new(3);
        for data in ["1", "2", "3", "4", "5", "6", "7"] {
            assert_ne!(seen.admit(&event("same", "t", data)), Verdict::Twin);
        }
        assert_eq!(seen.order.len(), 3);
        assert_eq!(seen.ids.len() + seen.others.values().map(Vec::len).sum::<usize>(), 3);
    }
}
