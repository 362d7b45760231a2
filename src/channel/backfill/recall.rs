//! What the journal says of the time around a gap: what was received, and how far the server's clock was
//! behind ours.

use std::collections::BTreeMap;

use tokio::time::Instant;
use tracing::warn;

use super::{BATCH, BATCH_BYTES, OVERLAP, gap::Gap};
use crate::{
    base::{
        clock::{self, UnixMillis},
        event::{Event, Origin, Seq},
    },
    gateway::{GapClock, LATE, intake::Fetch},
    journal::{Journal, StoreError},
};

/// Seconds of which is remembered how far the server's clock was behind ours: more than a gap looks
/// back.
const CLOCKS: usize = 1024;

/// The part of the journal that was read. When every connection ends at once, each of thousands of channels
/// has a gap, and all of them look back on the same minutes.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// What was received from this time on is known.
    since: UnixMillis,
    /// Until when at least.
    until: UnixMillis,
    /// When that was.
    at: Option<Instant>,
    /// And through which event.
    through: Seq,
    /// How far the server's clock was behind ours, by the second: its last message will do.
    clocks: BTreeMap<UnixMillis, i64>,
}

impl Recalled {
    /// Remembers what was received around the gap, and answers how far the server's clock is behind ours:
    /// by the last message before the gap, or the first after it.
    pub(super) async fn recall(
        &mut self,
        gap: &Gap,
        journal: &Journal,
        fetch: &Fetch<'_>,
    ) -> Option<i64> {
        // The journal's times are ours.
        let from = match gap.clock {
            GapClock::Ours => gap.from,
            GapClock::Gateway | GapClock::Unknown => {
                gap.from.saturating_add_signed(gap.ahead.unwrap_or(0))
            }
        };
        // Where that is still to come, the last minutes are what there is.
        let since = from.min(clock::now()).saturating_sub(2 * clock::millis_of(OVERLAP));
        if let Err(error) = self.recall_since(since, journal, fetch).await {
            warn!(%error, "the journal cannot be read; something may be delivered twice");
        }
        let before = self.clocks.range(..=from / 1000).next_back();
        before.or_else(|| self.clocks.first_key_value()).map(|(_, behind)| *behind)
    }

    /// Reads what has not been read yet.
    async fn recall_since(
        &mut self,
        since: UnixMillis,
        journal: &Journal,
        fetch: &Fetch<'_>,
    ) -> Result<(), StoreError> {
        let now = clock::now();
        // What was noted longer ago may be forgotten.
        let is_known = self.at.is_some_and(|at| at.elapsed() < LATE);
        if !is_known || since < self.since || since > self.until {
            // Other gaps may have begun a little earlier.
            let since = since.saturating_sub(clock::millis_of(OVERLAP));
            let blocking = journal.clone();
            let first = tokio::task::spawn_blocking(move || blocking.first_since(since)).await;
            let first = match first {
                Ok(first) => first?,
                // The relay is stopping.
                Err(_) => return Ok(()),
            };
            // Where nothing was received since, there is nothing to be read.
            let last = journal.figures().last;
            let through = first.map_or(last, |first| first.saturating_sub(1));
            *self = Self { since, until: since, through, ..Self::default() };
        }
        let last = journal.figures().last;
        while self.through < last {
            let batch = journal.read(self.through, last, BATCH, BATCH_BYTES).await?;
            for record in &batch.records {
                let event = &record.event;
                fetch.recall(event);
                self.note_clock(event);
            }
            if batch.through <= self.through {
                break;
            }
            self.through = batch.through;
        }
        (self.until, self.at) = (now, Some(Instant::now()));
        Ok(())
    }

    /// How far the server's clock is behind ours, by a message that it sent.
    fn note_clock(&mut self, event: &Event) {
        if event.origin == Origin::Live
            && !event.place.topic.starts_with("relay.")
            && let Some(said) = clock::parse_rfc3339(&event.ts)
        {
            let behind = signed(event.received) - signed(said);
            self.clocks.insert(event.received / 1000, behind);
            if self.clocks.len() > CLOCKS {
                self.clocks.pop_first();
            }
        }
    }
}

fn signed(time: UnixMillis) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::{super::gap::tests::gap, *};
    use crate::{
        astro::activity::ACTIVITIES,
        base::event::{self, Waited},
        gateway::intake::Intake,
    };

    /// A live activity of that id.
    fn activity(id: &str, received: UnixMillis) -> Event {
        let data = json!({"_id": id});
        let event = event::own(ACTIVITIES, &"main".into(), &"r".into(), &data, received);
        Event { origin: Origin::Live, ..event }
    }

    /// Whether the history's activity of that id would be taken for one that was received.
    fn is_known(fetch: &Fetch<'_>, id: &str) -> bool {
        let event = Event { origin: Origin::Backfilled, ..activity(id, 1) };
        fetch.append([event]) == 0
    }

    #[tokio::test(start_paused = true)]
    async fn many_gaps_look_back_on_the_same_minutes_once() {
        let journal = Journal::in_memory(1 << 20);
        let mut recalled = Recalled::default();
        // What is found out by trying is not to be recalled: it goes into journals of their own.
        let intakes: [Intake; 4] =
            std::array::from_fn(|_| Intake::new(Journal::in_memory(1 << 20)));
        let [first, second, third, fourth] = intakes.each_ref().map(Intake::fetch);
        let now = clock::now();
        let minute = 60_000;
        let after = |from| Gap { from, to: now, ..gap() };
        for (id, ago) in [("long ago", 60), ("before", 1)] {
            let waited = Waited::already(Duration::from_mins(ago));
            journal.append_waited(&mut vec![activity(id, now - ago * minute)], waited);
        }
        recalled.recall(&after(now - minute), &journal, &first).await;
        assert!(is_known(&first, "before") && !is_known(&first, "long ago"));

        // What was read once is not read again: only the fetch that was there knows it.
        journal.append(&mut vec![activity("since", now)]);
        recalled.recall(&after(now - minute), &journal, &second).await;
        assert!(is_known(&second, "since") && !is_known(&second, "before"));

        // One that began earlier looks back further, and so does one long after.
        recalled.recall(&after(now - 60 * minute), &journal, &third).await;
        assert!(is_known(&third, "long ago") && is_known(&third, "since"));
        tokio::time::advance(LATE).await;
        // The journal's time has gone on with the timers, the wall clock has not.
        recalled.recall(&after(now - 60 * minute), &journal, &fourth).await;
        assert!(is_known(&fourth, "before") && is_known(&fourth, "since"));
    }

    #[tokio::test]
    async fn what_was_received_around_a_gap_is_known_where_our_clock_is_behind() {
        let now = clock::now();
        let minute = 60_000;
        // Ten minutes ago by our clock, which is twenty behind; and by one that was set back by an hour.
        for (clock, from, ahead, ago) in [
            (GapClock::Gateway, now + 10 * minute, Some(-20 * 60_000), 10),
            (GapClock::Unknown, now + 60 * minute, None, 1),
        ] {
            let journal = Journal::in_memory(1 << 20);
            let intake = Intake::new(Journal::in_memory(1 << 20));
            let fetch = intake.fetch();
            let waited = Waited::already(Duration::from_mins(ago));
            journal.append_waited(&mut vec![activity("a", now - ago * minute)], waited);
            let gap = Gap { from, to: from + minute, clock, ahead, ..gap() };
            Recalled::default().recall(&gap, &journal, &fetch).await;
            assert!(is_known(&fetch, "a"), "{clock:?}");
        }
    }
}
