//! Which activities have been handed on, so that one that is both heard and found in the history is
//! handed on once.
//!
//! A live message and the history's item have different ids of their own; what they share is the
//! activity's. Something may be heard before it is fetched, or fetched before it is heard: whichever
//! comes first goes on. Two live messages about one activity are two messages (its state may have
//! changed), so only what came from the history is ever a reason to drop something.
//!
//! The one thing to know: looking up and appending happen under one lock, so that between the two
//! nothing slips in from the other side.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use foldhash::fast::FixedState;
use serde::Deserialize;

use crate::{
    event::{Event, Origin},
    journal::Journal,
};

/// The topic of activities.
pub const TOPIC: &str = "channel.activities";

/// Activities that are remembered: the largest backfill several times over.
const REMEMBERED: usize = 65_536;

/// The activities that were handed on lately.
#[derive(Debug, Default)]
pub struct Activities(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    order: VecDeque<u64>,
    /// Whether it came from the history, by a digest of channel and id.
    fetched: HashMap<u64, bool, FixedState>,
}

impl Activities {
    /// Whether a live event is to go on: not if the history had it first.
    pub fn hear(&self, event: &Event) -> bool {
        if &*event.topic != TOPIC {
            return true;
        }
        let Some(key) = key_of(event) else { return true };
        let mut known = self.lock();
        let fetched = known.fetched.get(&key).copied().unwrap_or(false);
        // What comes after its twin is something new about the same activity.
        known.note(key, false);
        !fetched
    }

    /// Remembers what an event of the journal says.
    pub fn note(&self, event: &Event) {
        if &*event.topic == TOPIC
            && let Some(key) = key_of(event)
        {
            self.lock().note(key, event.origin == Origin::Backfilled);
        }
    }

    /// Appends what is not known yet of `events`, which came from the history; answers how many.
    pub fn append(&self, events: impl IntoIterator<Item = Event>, journal: &Journal) -> usize {
        let mut known = self.lock();
        let mut fresh: Vec<_> = events
            .into_iter()
            .filter(|event| {
                let key = key_of(event).filter(|key| !known.fetched.contains_key(key));
                key.inspect(|key| known.note(*key, true)).is_some()
            })
            .collect();
        let count = fresh.len();
        journal.append(&mut fresh);
        count
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one entry: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn note(&mut self, key: u64, fetched: bool) {
        if self.fetched.insert(key, fetched).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.fetched.remove(&oldest);
        }
    }
}

/// What an activity is known by: its id, in its channel.
fn key_of(event: &Event) -> Option<u64> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(rename = "_id", borrow, default)]
        id: Option<&'a str>,
        #[serde(rename = "activityId", borrow, default)]
        activity_id: Option<&'a str>,
    }
    let data: Data<'_> = serde_json::from_slice(event.data()).ok()?;
    let id = data.id.or(data.activity_id)?;
    let mut hasher = FixedState::with_seed(0).build_hasher();
    hasher.write(event.channel.as_bytes());
    hasher.write_u8(0);
    hasher.write(id.as_bytes());
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::own;

    fn event(id: &str, origin: Origin) -> Event {
        let data = json!({"_id": id, "activityId": id, "type": "tip"});
        Event { origin, ..own(TOPIC, &"main".into(), &"r".into(), &data, 1) }
    }

    fn append(known: &Activities, journal: &Journal, ids: &[&str]) -> usize {
        known.append(ids.iter().map(|id| event(id, Origin::Backfilled)), journal)
    }

    #[test]
    fn whichever_comes_first_goes_on() {
        let (known, journal) = (Activities::default(), Journal::in_memory(1 << 20));
        assert!(known.hear(&event("a", Origin::Live)));
        assert!(known.hear(&event("a", Origin::Live)), "news of the same activity");
        assert_eq!(append(&known, &journal, &["a", "b", "b", "c"]), 2);
        assert_eq!(journal.figures().last, 2);
        assert!(!known.hear(&event("b", Origin::Live)), "the history had it");
        assert!(known.hear(&event("b", Origin::Live)), "and this is news");
        assert_eq!(append(&known, &journal, &["b", "c"]), 0);
        let elsewhere = Event { channel: "other".into(), ..event("c", Origin::Live) };
        assert!(known.hear(&elsewhere));
        assert!(known.hear(&own("channel.tips", &"main".into(), &"r".into(), &json!({}), 1)));
    }

    #[test]
    fn what_the_journal_holds_is_known_after_a_restart() {
        let (known, journal) = (Activities::default(), Journal::in_memory(1 << 20));
        known.note(&event("a", Origin::Live));
        known.note(&event("b", Origin::Backfilled));
        assert_eq!(append(&known, &journal, &["a", "b"]), 0);
        assert!(known.hear(&event("a", Origin::Live)));
        assert!(!known.hear(&event("b", Origin::Live)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = Activities::default();
        for number in 0..REMEMBERED + 100 {
            known.note(&event(&number.to_string(), Origin::Live));
        }
        let known = known.lock();
        assert_eq!((known.order.len(), known.fetched.len()), (REMEMBERED, REMEMBERED));
    }
}
