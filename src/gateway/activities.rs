//! Which activities have been handed on, so that one that is both heard and found in the history is
//! handed on once.
//!
//! A live message and the history's item have different ids of their own; what they share is the
//! activity's. Something may be heard before it is fetched, or fetched before it is heard: whichever
//! comes first goes on. Two live messages about one activity are two messages (its state may have
//! changed), so only what came from the history is ever a reason to drop something: an item of it, where
//! the activity is known, and a live message that says the same as an item (their keys are equal).
//!
//! What was heard is in the journal. So nothing is remembered until a history is asked for: then what
//! the journal holds is noted ([`Fetch::recall`]), and what is heard from that moment on.
//!
//! The one thing to know: looking up and appending happen under one lock, so that between the two
//! nothing slips in from the other side.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use foldhash::fast::FixedState;
use tokio::time::Instant;

use crate::{
    base::event::{Event, Origin, key},
    journal::Journal,
};

/// The topic of activities.
pub const TOPIC: &str = "channel.activities";

/// Activities that are remembered: the largest backfill several times over.
const REMEMBERED: usize = 65_536;

/// How long after a fetch one of its activities may still come as a live message: what was on its way
/// meanwhile comes within seconds.
pub const LATE: Duration = Duration::from_mins(10);

/// The activities that were handed on lately.
#[derive(Debug, Default)]
pub struct Activities(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Histories that are being fetched.
    fetches: usize,
    /// When the last of them was.
    fetched_at: Option<Instant>,
    order: VecDeque<u64>,
    /// By a digest of channel and id: the digest of its key, where it came from the history.
    fetched: HashMap<u64, Option<u64>, FixedState>,
}

impl Activities {
    /// Appends live events, but for those that the history had first; leaves the vector empty.
    /// Answers how many these were.
    pub fn hear(&self, events: &mut Vec<Event>, journal: &Journal) -> usize {
        let mut known = self.lock();
        let before = events.len();
        if known.is_watching() {
            events.retain(|event| known.hear(event));
        }
        let dropped = before - events.len();
        journal.append(events);
        dropped
    }

    /// Begins to fetch a history: what is heard from now on is remembered.
    pub fn fetch(&self) -> Fetch<'_> {
        self.lock().fetches += 1;
        Fetch(self)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one entry: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A history that is being fetched, until it is dropped.
#[derive(Debug)]
pub struct Fetch<'a>(&'a Activities);

impl Fetch<'_> {
    /// Remembers what an event of the journal says.
    pub fn recall(&self, event: &Event) {
        if let Some(activity) = activity_of(event) {
            let fetched = (event.origin == Origin::Backfilled).then(|| digest(event.key(), ""));
            self.0.lock().note(activity, fetched);
        }
    }

    /// Appends what is not known yet of `events`, which came from the history; answers how many.
    pub fn append(&self, events: impl IntoIterator<Item = Event>, journal: &Journal) -> usize {
        let mut known = self.0.lock();
        let mut fresh: Vec<_> = events
            .into_iter()
            .filter(|event| {
                let Some(activity) = activity_of(event) else { return false };
                if known.fetched.contains_key(&activity) {
                    return false;
                }
                known.note(activity, Some(digest(event.key(), "")));
                true
            })
            .collect();
        let count = fresh.len();
        journal.append(&mut fresh);
        count
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        let mut known = self.0.lock();
        known.fetches -= 1;
        known.fetched_at = Some(Instant::now());
    }
}

impl Known {
    /// Whether anything is remembered. What nobody can need any more is forgotten.
    fn is_watching(&mut self) -> bool {
        if self.fetches > 0 {
            return true;
        }
        let Some(at) = self.fetched_at else { return false };
        if at.elapsed() > LATE {
            *self = Self::default();
            return false;
        }
        true
    }

    /// Whether a live event is to go on: not if the history had it first.
    fn hear(&mut self, event: &Event) -> bool {
        let Some(activity) = activity_of(event) else { return true };
        let fetched = self.fetched.get(&activity).copied().flatten();
        // What comes after its duplicate is something new about the same activity.
        self.note(activity, None);
        fetched != Some(digest(event.key(), ""))
    }

    fn note(&mut self, activity: u64, fetched: Option<u64>) {
        if self.fetched.insert(activity, fetched).is_none() {
            self.order.push_back(activity);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.fetched.remove(&oldest);
        }
    }
}

/// What an activity is known by: its id, in its channel. `None`: it is none.
fn activity_of(event: &Event) -> Option<u64> {
    if &*event.place.topic != TOPIC {
        return None;
    }
    let id = key::own_id(TOPIC, event.data())?;
    Some(digest(&event.place.channel, &id))
}

fn digest(one: &str, other: &str) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    hasher.write(one.as_bytes());
    hasher.write_u8(0);
    hasher.write(other.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event::{Place, own};

    fn event(id: &str, origin: Origin) -> Event {
        state(id, origin, false)
    }

    fn state(id: &str, origin: Origin, flagged: bool) -> Event {
        let data = json!({"_id": id, "activityId": id, "type": "tip", "flagged": flagged});
        let key = key::of("01J", "", TOPIC, "r", data.to_string().as_bytes());
        let event = own(TOPIC, &"main".into(), &"r".into(), &data, 1);
        Event { origin, distinct_key: Some(key), ..event }
    }

    fn append(fetch: &Fetch<'_>, journal: &Journal, ids: &[&str]) -> usize {
        fetch.append(ids.iter().map(|id| event(id, Origin::Backfilled)), journal)
    }

    /// Whether it went on.
    fn hear(known: &Activities, journal: &Journal, event: Event) -> bool {
        known.hear(&mut vec![event], journal) == 0
    }

    #[test]
    fn whichever_comes_first_goes_on() {
        let (known, journal) = (Activities::default(), Journal::in_memory(1 << 20));
        let fetch = known.fetch();
        assert!(hear(&known, &journal, event("a", Origin::Live)));
        assert!(hear(&known, &journal, event("a", Origin::Live)), "news of the same activity");
        assert_eq!(append(&fetch, &journal, &["a", "b", "b", "c"]), 2);
        assert_eq!(journal.figures().last, 4);
        assert!(!hear(&known, &journal, event("b", Origin::Live)), "the history had it");
        assert!(hear(&known, &journal, event("b", Origin::Live)), "and this is news");
        assert_eq!(append(&fetch, &journal, &["b", "c"]), 0);
        let elsewhere = Event { place: Place::of(TOPIC, "r", "other"), ..event("c", Origin::Live) };
        assert!(hear(&known, &journal, elsewhere));
        let tip = own("channel.tips", &"main".into(), &"r".into(), &json!({"_id": "c"}), 1);
        assert!(hear(&known, &journal, tip), "no activity");
    }

    #[test]
    fn a_state_that_the_history_did_not_have_goes_on() {
        let (known, journal) = (Activities::default(), Journal::in_memory(1 << 20));
        let fetch = known.fetch();
        assert_eq!(append(&fetch, &journal, &["a"]), 1);
        assert!(hear(&known, &journal, state("a", Origin::Live, true)));
        let data = json!({"_id": "b \u{fffd}"}).to_string().replace('\u{fffd}', "\\ud83d");
        let odd = || crate::base::event::own_text(TOPIC, &"main".into(), &"r".into(), &data, 1);
        assert_eq!(fetch.append([odd(), odd()], &journal), 1, "an id that is no text is an id");
    }

    #[test]
    fn what_the_journal_holds_is_known() {
        let (known, journal) = (Activities::default(), Journal::in_memory(1 << 20));
        let fetch = known.fetch();
        fetch.recall(&event("a", Origin::Live));
        fetch.recall(&event("b", Origin::Backfilled));
        assert_eq!(append(&fetch, &journal, &["a", "b"]), 0);
        assert!(hear(&known, &journal, event("a", Origin::Live)));
        assert!(!hear(&known, &journal, event("b", Origin::Live)));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_remembered_for_a_while_after_the_fetch_and_not_before() {
        let (known, journal) = (Activities::default(), Journal::in_memory(1 << 20));
        assert!(hear(&known, &journal, event("a", Origin::Live)));
        assert!(known.lock().fetched.is_empty(), "the journal has it");
        let (one, other) = (known.fetch(), known.fetch());
        append(&one, &journal, &["b", "c"]);
        drop(one);
        tokio::time::advance(2 * LATE).await;
        assert!(!hear(&known, &journal, event("b", Origin::Live)), "the other fetch goes on");
        drop(other);
        assert!(!hear(&known, &journal, event("c", Origin::Live)));
        tokio::time::advance(2 * LATE).await;
        assert!(hear(&known, &journal, event("d", Origin::Live)));
        assert!(known.lock().fetched.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = Activities::default();
        let fetch = known.fetch();
        for number in 0..REMEMBERED + 100 {
            fetch.recall(&event(&number.to_string(), Origin::Live));
        }
        let known = known.lock();
        assert_eq!((known.order.len(), known.fetched.len()), (REMEMBERED, REMEMBERED));
    }
}
