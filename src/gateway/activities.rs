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
    /// The digest of its key, where it came from the history. Under no channel: the same of that of any channel,
    /// until a live message comes that belongs to none.
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
        let Some(activity) = Activity::of(event) else { return };
        if event.origin == Origin::Backfilled {
            self.note_fetched(activity, event);
        } else {
            self.note(activity.own, None);
        }
    }

    /// Whether a live event is new: not if the history had it first.
    pub(super) fn admit(&mut self, event: &Event) -> bool {
        let Some(activity) = Activity::of(event) else { return true };
        let fetched = self.fetched.get(&activity.own).copied().flatten();
        // What comes after its duplicate is something new about the same activity.
        self.note(activity.own, None);
        fetched != Some(digest(event.key(), ""))
    }

    /// Whether an activity of the history is new.
    pub(super) fn admit_fetched(&mut self, event: &Event) -> bool {
        let Some(activity) = Activity::of(event) else { return false };
        let is_new = !self.has(activity);
        if is_new {
            self.note_fetched(activity, event);
        }
        is_new
    }

    /// Whether it is known already, live or fetched.
    pub(super) fn knows(&self, event: &Event) -> bool {
        Activity::of(event).is_some_and(|activity| self.has(activity))
    }

    /// Whether it came for its channel, or live for none.
    fn has(&self, Activity { own, of_none }: Activity) -> bool {
        self.fetched.contains_key(&own) || self.fetched.get(&of_none) == Some(&None)
    }

    fn note_fetched(&mut self, Activity { own, of_none }: Activity, event: &Event) {
        let key = Some(digest(event.key(), ""));
        self.note(own, key);
        if !self.fetched.contains_key(&of_none) {
            self.note(of_none, key);
        }
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

/// What an activity is known by: digests of its id, in its topic and channel. Two channels may be one account's:
/// each has its own history. A live message may belong to no channel where the item of the history does.
#[derive(Debug, Clone, Copy)]
struct Activity {
    own: u64,
    /// Without a channel.
    of_none: u64,
}

impl Activity {
    /// `None`: it is none.
    fn of(event: &Event) -> Option<Self> {
        let topic = &*event.place.topic;
        History::of(topic)?;
        let id = format!("{topic} {}", key::own_id(topic, event.data())?);
        Some(Self { own: digest(&event.place.channel, &id), of_none: digest("", &id) })
    }
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
