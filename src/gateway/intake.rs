//! The way into the journal for everything that StreamElements says: duplicates out, then the append.
//!
//! Live events come from the gateway's connections, backfilled ones from the history. Both pass one lock:
//! between looking up and appending, nothing slips in from the other side.

use std::sync::Mutex;

use super::{activities::Activities, seen::Seen};
use crate::{
    base::{
        event::Event,
        metrics::{self, DUPLICATES},
        sync::lock,
    },
    journal::Journal,
};

#[derive(Debug)]
pub struct Intake {
    journal: Journal,
    known: Mutex<KnownEvents>,
}

#[derive(Debug, Default)]
struct KnownEvents {
    seen: Seen,
    activities: Activities,
}

impl Intake {
    pub fn new(journal: Journal) -> Self {
        Self { journal, known: Mutex::default() }
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Remembers an event of an earlier run, so that a duplicate over a restart is recognised.
    pub(super) fn remember(&self, event: &Event) {
        lock(&self.known).seen.admit(event);
    }

    /// Appends live events to the journal, but for duplicates. Leaves the vector empty.
    pub(super) fn live(&self, events: &mut Vec<Event>) {
        let before = events.len();
        let KnownEvents { seen, activities } = &mut *lock(&self.known);
        let is_watching = activities.is_watching();
        events.retain(|event| seen.admit(event) && (!is_watching || activities.admit(event)));
        let duplicates = before - events.len();
        self.journal.append(events);
        metrics::add(DUPLICATES, u64::try_from(duplicates).unwrap_or(0));
    }

    /// Begins to fetch a history: what is received from now on is remembered.
    pub fn fetch(&self) -> Fetch<'_> {
        lock(&self.known).activities.begin_fetch();
        Fetch(self)
    }
}

/// A history that is being fetched, until it is dropped.
#[derive(Debug)]
pub struct Fetch<'a>(&'a Intake);

impl Fetch<'_> {
    /// Remembers what an event of the journal says.
    pub fn recall(&self, event: &Event) {
        lock(&self.0.known).activities.recall(event);
    }

    /// Whether an event that came from the history was received, or was appended before.
    pub fn knows(&self, event: &Event) -> bool {
        lock(&self.0.known).activities.knows(event)
    }

    /// Appends what is not known yet of `events`, which came from the history; answers how many.
    pub fn append(&self, events: impl IntoIterator<Item = Event>) -> usize {
        let mut known = lock(&self.0.known);
        let admitted = events.into_iter().filter(|event| known.activities.admit_fetched(event));
        let mut fresh: Vec<_> = admitted.collect();
        let count = fresh.len();
        self.0.journal.append(&mut fresh);
        count
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        lock(&self.0.known).activities.end_fetch();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::activities::LATE, *};
    use crate::{
        astro::activity::ACTIVITIES as TOPIC,
        base::event::{Origin, Place, key, own},
    };

    fn intake() -> Intake {
        Intake::new(Journal::in_memory(1 << 20))
    }

    fn event(id: &str, origin: Origin) -> Event {
        state(id, origin, false)
    }

    fn state(id: &str, origin: Origin, flagged: bool) -> Event {
        let data = json!({"_id": id, "activityId": id, "type": "tip", "flagged": flagged});
        let key = key::of("01J", "", TOPIC, "r", data.to_string().as_bytes());
        let event = own(TOPIC, &"main".into(), &"r".into(), &data, 1);
        Event { origin, distinct_key: Some(key), ..event }
    }

    fn append(fetch: &Fetch<'_>, ids: &[&str]) -> usize {
        fetch.append(ids.iter().map(|id| event(id, Origin::Backfilled)))
    }

    /// Whether a live event was appended.
    fn live(intake: &Intake, event: Event) -> bool {
        let before = intake.journal.figures().last;
        intake.live(&mut vec![event]);
        intake.journal.figures().last > before
    }

    #[test]
    fn whichever_comes_first_is_appended() {
        let intake = intake();
        let fetch = intake.fetch();
        assert!(live(&intake, event("a", Origin::Live)));
        assert!(live(&intake, event("a", Origin::Live)), "news of the same activity");
        assert_eq!(append(&fetch, &["a", "b", "b", "c"]), 2);
        assert_eq!(intake.journal.figures().last, 4);
        assert!(!live(&intake, event("b", Origin::Live)), "the history had it");
        assert!(live(&intake, event("b", Origin::Live)), "and this is news");
        assert_eq!(append(&fetch, &["b", "c"]), 0);
        let tip = own("channel.tips", &"main".into(), &"r".into(), &json!({"_id": "c"}), 1);
        assert!(live(&intake, tip), "another topic");
    }

    #[test]
    fn an_activity_that_came_without_a_channel_is_known_in_the_history() {
        let intake = intake();
        let fetch = intake.fetch();
        let nowhere =
            |id: &str| Event { place: Place::of(TOPIC, "", ""), ..event(id, Origin::Live) };
        assert!(live(&intake, nowhere("a")));
        fetch.recall(&nowhere("b"));
        assert_eq!(append(&fetch, &["a", "b", "c"]), 1);
        assert!(!live(&intake, nowhere("c")), "the history had it");
    }

    #[test]
    fn two_channels_of_one_account_have_a_history_each() {
        let intake = intake();
        let fetch = intake.fetch();
        let of_other =
            |id: &str, origin| Event { place: Place::of(TOPIC, "r", "other"), ..event(id, origin) };
        assert!(live(&intake, of_other("a", Origin::Live)));
        fetch.recall(&of_other("b", Origin::Backfilled));
        assert_eq!(append(&fetch, &["a", "b", "c"]), 3);
        assert_eq!(fetch.append(["a", "b", "c"].map(|id| of_other(id, Origin::Backfilled))), 1);
    }

    #[test]
    fn tips_and_redemptions_are_known_like_activities_and_moderation_is_not() {
        let intake = intake();
        let fetch = intake.fetch();
        let of = |topic: &str, origin: Origin| {
            let data = json!({"_id": "a"});
            let key = key::of("01J", "", topic, "r", data.to_string().as_bytes());
            let event = own(topic, &"main".into(), &"r".into(), &data, 1);
            Event { origin, distinct_key: Some(key), ..event }
        };
        for topic in ["channel.tips", "channel.loyalty.redemptions"] {
            assert!(!fetch.knows(&of(topic, Origin::Backfilled)));
            assert!(live(&intake, of(topic, Origin::Live)));
            assert!(fetch.knows(&of(topic, Origin::Backfilled)));
            assert_eq!(fetch.append([of(topic, Origin::Backfilled)]), 0, "{topic}");
        }
        let moderation = of("channel.tips.moderation", Origin::Live);
        assert!(live(&intake, moderation.clone()) && !fetch.knows(&moderation));
    }

    #[test]
    fn a_state_that_the_history_did_not_have_is_appended() {
        let intake = intake();
        let fetch = intake.fetch();
        assert_eq!(append(&fetch, &["a"]), 1);
        assert!(live(&intake, state("a", Origin::Live, true)));
        let data = json!({"_id": "b \u{fffd}"}).to_string().replace('\u{fffd}', "\\ud83d");
        let odd = || crate::base::event::own_text(TOPIC, &"main".into(), &"r".into(), &data, 1);
        assert_eq!(fetch.append([odd(), odd()]), 1, "an id that is no text is an id");
    }

    #[test]
    fn an_activity_of_the_journal_is_known() {
        let intake = intake();
        let fetch = intake.fetch();
        fetch.recall(&event("a", Origin::Live));
        fetch.recall(&event("b", Origin::Backfilled));
        assert_eq!(append(&fetch, &["a", "b"]), 0);
        assert!(live(&intake, event("a", Origin::Live)));
        assert!(!live(&intake, event("b", Origin::Live)));
    }

    #[tokio::test(start_paused = true)]
    async fn activities_are_remembered_for_a_while_after_the_fetch_and_not_before() {
        let intake = intake();
        assert!(live(&intake, event("a", Origin::Live)));
        assert!(lock(&intake.known).activities.is_empty(), "the journal has it");
        let (one, other) = (intake.fetch(), intake.fetch());
        append(&one, &["b", "c"]);
        drop(one);
        tokio::time::advance(2 * LATE).await;
        assert!(!live(&intake, event("b", Origin::Live)), "the other fetch goes on");
        drop(other);
        assert!(!live(&intake, event("c", Origin::Live)));
        tokio::time::advance(2 * LATE).await;
        assert!(live(&intake, event("d", Origin::Live)));
        assert!(lock(&intake.known).activities.is_empty());
    }
}
