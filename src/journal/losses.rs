//! What sinks can no longer get, and what waits for sinks that are gone.
//!
//! A loss is reported when it happens, whatever the sink does at the moment; a sink that reads on later finds
//! the same events missing. Which of them are reported is remembered for each sink while the process runs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Batch, Journal, LeftBehind,
    memory::{Cursor, Memory, OWN},
};
use crate::base::event::Seq;

impl Journal {
    /// What is gone of the events that configured sinks have still to get, as far as that was not reported
    /// before: how many of each sink. From now on it counts as reported.
    pub fn take_losses(&self) -> Vec<(Arc<str>, u64)> {
        self.0.lock().take_losses()
    }

    /// The delivery of `sink` has this in memory from now on: nothing of it is lost where retention removes it.
    /// Answers how many of the events that are missing before it were not reported before; they count as
    /// reported.
    pub(crate) fn was_read(&self, sink: &str, batch: &Batch) -> u64 {
        let mut memory = self.0.lock();
        let before = batch.records.first().map_or(batch.through, |first| first.seq - 1);
        let unreported =
            if batch.lost > 0 { memory.take_lost(sink, before, batch.lost) } else { 0 };
        if let Some(cursor) = memory.cursors.by_sink.get_mut(sink) {
            cursor.read = batch.through;
            if batch.lost > 0 {
                cursor.hole = (batch.lost, before);
            }
        }
        unreported
    }

    /// The same of a replay that nobody asked for: through `through` it is in memory. What is missing before
    /// is told with [`Journal::take_lost_of_backlog`].
    pub(crate) fn backlog_was_read(&self, number: i64, through: Seq) {
        self.0.lock().cursors.backlog_was_read(number, through);
    }

    /// Of a replay that nobody asked for, events before `before` were found missing: how many of them were not
    /// reported before.
    pub(crate) fn take_lost_of_backlog(&self, number: i64, before: Seq, lost: u64) -> u64 {
        self.0.lock().take_lost_of_backlog(number, before, lost)
    }

    /// What waits for sinks that are no longer configured.
    pub fn left_behind(&self) -> Vec<LeftBehind> {
        self.0.lock().left_behind()
    }
}

impl Memory {
    /// A sink has found `lost` events missing through `before`: how many of them were not reported before.
    /// From now on they are.
    pub(super) fn take_lost(&mut self, sink: &str, before: Seq, lost: u64) -> u64 {
        let Some(cursor) = self.cursors.by_sink.get_mut(sink) else { return lost };
        let after = cursor.at.max(cursor.reported);
        cursor.reported = cursor.reported.max(before);
        self.assigned(after, before).min(lost)
    }

    /// Through which event nobody waits for anything: no configured sink, and none that was removed within
    /// that time. What waits for one of those counts as long as all of it is there, but for what was
    /// reported as lost: at a start it is not known since when a sink is gone.
    pub(super) fn history_through(&self, time: Duration) -> Seq {
        let is_whole = |cursor: &Cursor| {
            let after = cursor.at.max(cursor.reported);
            self.assigned(after, self.next_kept(after) - 1) == 0
        };
        let sinks = self.cursors.by_sink.iter().filter(|(sink, _)| !sink.starts_with(OWN));
        let removed = sinks.map(|(_, cursor)| cursor);
        let removed = removed.filter(|cursor| cursor.was_active_within(time) && is_whole(cursor));
        removed.map(|cursor| cursor.at).fold(self.delivered(), Seq::min)
    }

    /// What waits for each sink that is no longer configured.
    pub(super) fn left_behind(&self) -> Vec<LeftBehind> {
        let mut left: BTreeMap<&str, LeftBehind> = BTreeMap::new();
        for (sink, cursor) in self.cursors.by_sink.iter().filter(|(_, cursor)| !cursor.is_active())
        {
            let after = self.next_kept(cursor.at) - 1;
            let events = self.assigned(after, self.numbers.last);
            let whole = self.assigned(cursor.at, after) == 0;
            left.insert(
                sink,
                LeftBehind { sink: sink.to_string(), events, whole, dead_letters: 0 },
            );
        }
        for (sink, letters) in self.letters.iter().filter(|(sink, _)| !self.cursors.is_active(sink))
        {
            let of_sink = left.entry(sink).or_insert_with(|| LeftBehind {
                sink: sink.clone(),
                whole: true,
                ..LeftBehind::default()
            });
            of_sink.dead_letters = letters.count;
        }
        let something = |one: &LeftBehind| one.events > 0 || one.dead_letters > 0;
        left.into_values().filter(|one| something(one) && !one.sink.starts_with(OWN)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Health, store::Letters};

    fn cursor<'m>(memory: &'m mut Memory, sink: &str) -> &'m mut Cursor {
        memory.cursors.by_sink.get_mut(sink).unwrap()
    }

    #[test]
    fn what_waits_for_a_sink_that_was_removed_lately_is_no_history() {
        let mut memory = Memory::new(101, vec![(1, None)], 41, Health::Sound);
        for (sink, at) in [("home", 100), ("renamed", 60), ("late", 30), ("relay.own", 50)] {
            memory.cursors.by_sink.insert(sink.into(), Cursor::new(at, Some(at)));
        }
        assert_eq!(memory.history_through(Duration::ZERO), 30, "they are configured");
        for sink in ["renamed", "late", "relay.own"] {
            cursor(&mut memory, sink).set_active(false);
        }
        let hour = Duration::from_hours(1);
        assert_eq!((memory.delivered(), memory.history_through(Duration::ZERO)), (100, 100));
        // Something of what the other had still to get was gone before this run.
        assert_eq!(memory.history_through(hour), 60);
        cursor(&mut memory, "late").reported = 40;
        assert_eq!(memory.history_through(hour), 30, "it was reported, and the rest waits");
        for sink in ["renamed", "late"] {
            let cursor = cursor(&mut memory, sink);
            cursor.set_active(true);
            cursor.at = 100;
        }
        assert_eq!(memory.history_through(hour), 100);
    }

    #[test]
    fn what_was_found_missing_does_not_wait_before_its_sink_has_stepped_over_it() {
        let journal = Journal::in_memory(1 << 20);
        {
            let mut memory = journal.0.lock();
            *memory = Memory::new(101, vec![(1, None)], 41, Health::MemoryOnly);
            memory.cursors.by_sink.insert("slow".into(), Cursor::new(20, None));
        }
        let lag = || journal.lag("slow").0;
        let read =
            |lost, through| journal.was_read("slow", &Batch { records: Vec::new(), lost, through });
        assert_eq!(lag(), 60);
        journal.0.lock().numbers.oldest = 11;
        read(0, 30);
        journal.0.lock().numbers.oldest = 41;
        assert_eq!(lag(), 10 + 60, "its delivery holds ten");
        assert_eq!((read(10, 40), lag()), (10, 10 + 60));
        read(0, 50);
        assert_eq!(lag(), 10 + 60);
        journal.advance("slow", 30);
        assert_eq!(lag(), 60);
        journal.advance("slow", 45);
        assert_eq!(lag(), 55);
    }

    #[test]
    fn what_waits_for_removed_sinks_is_told_apart_from_what_is_gone() {
        let mut memory = Memory::new(101, vec![(1, None)], 41, Health::Sound);
        for (sink, at) in [("home", 50), ("late", 70), ("old", 20), ("done", 100), ("relay.own", 9)]
        {
            memory.cursors.by_sink.insert(sink.into(), Cursor::new(at, Some(at)));
        }
        let removed = memory.cursors.by_sink.iter_mut().filter(|(sink, _)| &***sink != "home");
        removed.for_each(|(_, cursor)| cursor.set_active(false));
        for (sink, count) in [("home", 3), ("late", 0), ("shop", 5)] {
            memory.letters.insert(sink.to_owned(), Letters { count, bytes: 0 });
        }
        let left = |sink: &str, events, whole, dead_letters| LeftBehind {
            sink: sink.to_owned(),
            events,
            whole,
            dead_letters,
        };
        assert_eq!(
            memory.left_behind(),
            [left("late", 30, true, 0), left("old", 60, false, 0), left("shop", 0, true, 5)]
        );
    }
}
