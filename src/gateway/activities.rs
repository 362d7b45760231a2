//! Which activities, tips and redemptions have been appended, so that one that comes both live and from its
//! history is appended once. All of them are called activities here.
//!
//! A live message and the history's item have different ids of their own; what they share is the
//! activity's. Something may be received before it is fetched, or fetched before it is received: whichever
//! comes first is appended. Two live messages about one activity are two messages (its state may have
//! changed), so only what came from the history is ever a reason to drop something: an item of it, where
//! the activity is known, and a live message that says the same as an item (their keys are equal).
//!
//! Live events are in the journal. So nothing is remembered until a history is asked for: then what the
//! journal holds is recalled, and what is received from that moment on.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use foldhash::fast::FixedState;
use tokio::time::Instant;

use super::seen::digest;
use crate::{
    astro::rest::History,
    base::event::{Event, Origin, key},
};

/// Activities that are remembered: the largest backfill several times over.
const REMEMBERED: usize = 65_536;

/// How long after a fetch one of its activities may still come as a live message: what was on its way
/// meanwhile comes within seconds.
pub const LATE: Duration = Duration::from_mins(10);

#[derive(Debug, Default)]
pub(super) struct Activities {
    /// Histories that are being fetched.
    fetches: usize,
    /// When the last of them was.
    fetched_at: Option<Instant>,
    order: VecDeque<u64>,
    /// By a digest of topic and id: the digest of its key, where it came from the history.
    fetched: HashMap<u64, Option<u64>, FixedState>,
}

impl Activities {
    pub(super) fn begin_fetch(&mut self) {
        self.fetches += 1;
    }

    pub(super) fn end_fetch(&mut self) {
        self.fetches -= 1;
        self.fetched_at = Some(Instant::now());
    }

    /// Whether anything is remembered. What cannot be needed any more is forgotten.
    pub(super) fn is_watching(&mut self) -> bool {
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

    /// Remembers what an event of the journal says.
    pub(super) fn recall(&mut self, event: &Event) {
        if let Some(activity) = activity_of(event) {
            let fetched = (event.origin == Origin::Backfilled).then(|| digest(event.key(), ""));
            self.note(activity, fetched);
        }
    }

    /// Whether a live event is new: not if the history had it first.
    pub(super) fn admit(&mut self, event: &Event) -> bool {
        let Some(activity) = activity_of(event) else { return true };
        let fetched = self.fetched.get(&activity).copied().flatten();
        // What comes after its duplicate is something new about the same activity.
        self.note(activity, None);
        fetched != Some(digest(event.key(), ""))
    }

    /// Whether an activity of the history is new.
    pub(super) fn admit_fetched(&mut self, event: &Event) -> bool {
        let Some(activity) = activity_of(event) else { return false };
        let is_new = !self.fetched.contains_key(&activity);
        if is_new {
            self.note(activity, Some(digest(event.key(), "")));
        }
        is_new
    }

    /// Whether it is known already, live or fetched.
    pub(super) fn knows(&self, event: &Event) -> bool {
        activity_of(event).is_some_and(|activity| self.fetched.contains_key(&activity))
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

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.fetched.is_empty()
    }
}

/// What an activity is known by: its id, in its topic. The channel does not count: the id is the vendor's, and a
/// live message may belong to no channel where the item of the history does. `None`: it is none.
fn activity_of(event: &Event) -> Option<u64> {
    let topic = &*event.place.topic;
    History::of(topic)?;
    let id = key::own_id(topic, event.data())?;
    Some(digest(topic, &id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{astro::activity::ACTIVITIES as TOPIC, base::event::own};

    #[test]
    fn remembered_activities_are_bounded() {
        let mut known = Activities::default();
        for number in 0..REMEMBERED + 100 {
            let data = json!({"_id": number.to_string()});
            known.recall(&own(TOPIC, &"main".into(), &"r".into(), &data, 1));
        }
        assert_eq!((known.order.len(), known.fetched.len()), (REMEMBERED, REMEMBERED));
    }
}
