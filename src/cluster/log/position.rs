//! How far a term is with the log: what is read ahead, and what is done of it.

use std::{collections::VecDeque, sync::Arc};

use crate::base::{
    clock::UnixMillis,
    event::{Record, Seq},
};

/// Ranges of the log that are known to be missing, at most.
const HOLES: usize = 64;

/// What is read ahead.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Each with the number of events that should have stood before it and are gone.
    pub(super) events: VecDeque<(u64, Arc<Record>)>,
    pub(super) bytes: usize,
    /// The last that was read, and when the log stored it; 0: not known.
    pub(super) read: Seq,
    pub(super) read_stored: UnixMillis,
    /// The same of those that were read and are not done.
    pub(super) stored: VecDeque<(Seq, UnixMillis)>,
    /// Events that are gone since the last one in the queue.
    pub(super) lost: u64,
    /// How many of those that are gone are reported already: the first ones.
    pub(super) reported: u64,
    /// Those that are gone and not passed: the first number, and the last, of each range.
    pub(super) holes: Vec<(Seq, Seq)>,
    /// Those of them that are reported. That is saved with the cursor: they count once, whoever drives the sink.
    pub(super) reported_holes: Vec<(Seq, Seq)>,
    /// The last that there is.
    pub(super) last: Seq,
}

#[derive(Debug, Default)]
pub(super) struct Position {
    pub(super) at: Seq,
    /// When the log stored that one; 0: not known.
    pub(super) stored: UnixMillis,
    pub(super) behind: Vec<Seq>,
    pub(super) saved: Seq,
    /// What is saved of `behind`.
    pub(super) saved_behind: Vec<Seq>,
    /// What is saved of what is reported as missing.
    pub(super) saved_reported: Vec<(Seq, Seq)>,
    pub(super) revision: u64,
    /// It is of a log that has lost its end: only where the sink goes on is saved.
    pub(super) is_left: bool,
    /// It was not found as it was saved: it is saved again.
    pub(super) is_in_doubt: bool,
}

impl Queue {
    /// Messages that the sink has still to get, as far as that is known.
    pub(super) fn waiting(&self) -> u64 {
        let unread = self.last.saturating_sub(self.read);
        unread.saturating_add(u64::try_from(self.stored.len()).unwrap_or(u64::MAX))
    }

    /// The last message that may still be handed out, or was.
    pub(super) fn last(&self) -> Seq {
        if self.last > self.read {
            return self.last;
        }
        self.events.back().map_or(0, |(_, record)| record.seq)
    }

    /// The log begins with `first` and ends with `last`: what it has deleted unread is missing. Answers how many of
    /// those that are missing are to be reported.
    pub(super) fn check(&mut self, first: Seq, last: Seq) -> u64 {
        self.last = self.last.max(last);
        if first > self.read + 1 {
            self.miss(self.read + 1, first - 1);
            (self.read, self.read_stored) = (first - 1, 0);
        }
        let before_events: u64 = self.events.iter().map(|(lost, _)| lost).sum();
        self.report(before_events + self.lost, Seq::MAX)
    }

    /// The log has nothing behind `read`, and ends with `last`: what was there is missing.
    pub(super) fn end_is_missing(&mut self, read: Seq, last: Seq) {
        // Else it is read again from the cursor, or the log has deleted more.
        if self.read == read {
            self.miss(read + 1, last);
            (self.read, self.read_stored) = (last, 0);
        }
    }

    /// The messages from `first` through `last` are missing.
    pub(super) fn miss(&mut self, first: Seq, last: Seq) {
        if first > last {
            return;
        }
        self.lost += last - first + 1;
        for (from, through) in &self.reported_holes {
            self.reported += (last.min(*through) + 1).saturating_sub(first.max(*from));
        }
        join(&mut self.holes, &[(first, last)]);
    }

    /// So many events are missing before the first one in the queue: how many of those are to be reported.
    pub(super) fn report_first(&mut self, missing: u64) -> u64 {
        let through = self.events.front().map_or(0, |(_, record)| record.seq);
        self.report(missing, through)
    }

    /// So many events are missing, from the first in the queue on, all through this number: how many of those are to
    /// be reported.
    fn report(&mut self, missing: u64, through: Seq) -> u64 {
        let end = self.holes.partition_point(|(first, _)| *first <= through);
        join(&mut self.reported_holes, self.holes.get(..end).unwrap_or_default());
        let count = missing.saturating_sub(self.reported);
        self.reported += count;
        count
    }

    /// Takes out what was handed out: all through `after`.
    pub(super) fn pop(&mut self, after: Seq) {
        while let Some((lost, record)) = self.events.pop_front_if(|(_, record)| record.seq <= after)
        {
            self.bytes = self.bytes.saturating_sub(record.event.weight());
            self.reported = self.reported.saturating_sub(lost);
        }
    }

    /// When the log stored an event that is done now; 0: not known.
    pub(super) fn done(&mut self, seq: Seq) -> UnixMillis {
        let mut done = 0;
        while let Some((one, stored)) = self.stored.pop_front_if(|(one, _)| *one <= seq) {
            done = if one == seq { stored } else { 0 };
        }
        for holes in [&mut self.holes, &mut self.reported_holes] {
            holes.retain(|(_, last)| *last > seq);
        }
        done
    }

    /// What is reported of a log that has nothing of before behind `kept`.
    pub(super) fn reported_within(&self, kept: Seq) -> Vec<(Seq, Seq)> {
        let holes = self.reported_holes.iter().filter(|(first, _)| *first <= kept);
        holes.map(|(first, last)| (*first, kept.min(*last))).collect()
    }
}

/// Adds ranges to others: all in order, and those in one that touch. Of too many the first ones are forgotten.
fn join(known: &mut Vec<(Seq, Seq)>, more: &[(Seq, Seq)]) {
    known.extend_from_slice(more);
    known.sort_unstable();
    known.dedup_by(|(first, last), before| {
        let touches = *first <= before.1 + 1;
        if touches {
            before.1 = before.1.max(*last);
        }
        touches
    });
    known.drain(..known.len().saturating_sub(HOLES));
}

impl Position {
    /// How many messages of the log, behind `kept` and through `last`, the destination has not accepted.
    pub(super) fn unaccepted(&self, kept: Seq, last: Seq) -> u64 {
        let through = self.at.max(kept);
        let accepted = self.behind.iter().filter(|seq| (through + 1..=last).contains(*seq)).count();
        last.saturating_sub(through).saturating_sub(u64::try_from(accepted).unwrap_or(0))
    }

    /// Where the sink goes on in a log that has nothing of before behind `kept`, and what the destination has accepted
    /// behind that.
    pub(super) fn within(&self, kept: Seq) -> (Seq, Vec<Seq>) {
        let behind = self.behind.iter().copied().filter(|seq| *seq <= kept);
        (self.at.min(kept), behind.collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event;

    fn queue() -> Queue {
        let event = event::own("t", &"".into(), &"".into(), &json!({}), 7);
        let mut queue = Queue { read: 5, read_stored: 50, last: 7, ..Queue::default() };
        queue.stored = [(4, 40), (5, 50)].into();
        queue.events =
            [(0, Arc::new(Record::new(4, event.clone()))), (3, Arc::new(Record::new(5, event)))]
                .into();
        queue
    }

    #[test]
    fn a_sink_that_takes_nothing_sees_what_the_log_gets_and_deletes() {
        let mut queue = queue();
        assert_eq!(queue.waiting(), 4);
        assert_eq!(queue.report(3, 4), 3, "before the second");
        assert_eq!(queue.check(3, 20), 0);
        assert_eq!((queue.read, queue.read_stored, queue.waiting()), (5, 50, 17));
        assert_eq!(queue.check(11, 20), 5);
        assert_eq!((queue.read, queue.read_stored, queue.waiting()), (10, 0, 12));
        assert_eq!(queue.check(11, 22), 0, "it is reported once");
        assert_eq!(queue.check(9, 18), 0, "a server that is behind changes nothing");
        assert_eq!((queue.read, queue.lost, queue.waiting()), (10, 5, 14));
        // Of an empty log nothing is left.
        assert_eq!(queue.check(23, 22), 12);
        assert_eq!((queue.done(5), queue.waiting(), queue.last()), (50, 0, 5));
    }

    #[test]
    fn what_is_missing_before_an_event_is_reported_with_it_or_before() {
        let mut queue = queue();
        assert_eq!(queue.check(8, 9), 5);
        // The second is handed out, and taken.
        assert_eq!(queue.report(3, 4), 0);
        queue.pop(5);
        assert_eq!((queue.events.len(), queue.reported, queue.lost), (0, 2, 2));
        // The next is read.
        queue.miss(8, 11);
        assert_eq!(queue.report(6, 11), 4);
        assert_eq!(queue.check(8, 9), 0);
    }

    /// What a term begins with whose cursor is at `read`.
    fn begun(read: Seq, reported: &[(Seq, Seq)]) -> Queue {
        Queue { read, last: read, reported_holes: reported.to_vec(), ..Queue::default() }
    }

    #[test]
    fn what_is_missing_is_reported_once_whoever_drives_the_sink() {
        let mut queue = begun(50, &[]);
        assert_eq!(queue.check(186, 200), 135);
        assert_eq!(queue.reported_holes, [(51, 185)]);
        // The next term had less, and finds the same missing: by the log's beginning, or by its next event.
        let mut next = begun(10, &queue.reported_holes);
        assert_eq!((next.check(186, 200), next.check(186, 200)), (40, 0));
        assert_eq!(next.reported_holes, [(11, 185)]);
        assert_eq!(
            (next.reported_within(100), next.reported_within(10)),
            (vec![(11, 100)], vec![])
        );
        let mut next = begun(50, &queue.reported_holes);
        next.miss(51, 190);
        let event = event::own("t", &"".into(), &"".into(), &json!({}), 7);
        let lost = std::mem::take(&mut next.lost);
        (next.read, next.events) = (191, [(lost, Arc::new(Record::new(191, event)))].into());
        assert_eq!(next.report_first(lost), 5);
        // It is handed out, and not done: whoever comes then has nothing to report.
        next.pop(191);
        assert_eq!(begun(50, &next.reported_holes).check(191, 200), 0);
        // What comes behind it is something else.
        next.done(191);
        assert_eq!((next.reported_holes.len(), next.check(301, 300)), (0, 109));
    }

    #[test]
    fn what_is_between_two_ranges_that_are_missing_is_not_taken_to_be_reported() {
        let mut queue = begun(10, &[]);
        queue.miss(11, 20);
        (queue.read, queue.lost) = (30, 0);
        assert_eq!((queue.check(41, 50), queue.report(10, Seq::MAX)), (10, 0));
        assert_eq!(queue.reported_holes, [(11, 20), (31, 40)]);
        // Those are gone now, too.
        assert_eq!(begun(10, &queue.reported_holes).check(41, 50), 10);
        let mut holes: Vec<_> = (0..100).map(|n| (n * 10, n * 10 + 5)).collect();
        join(&mut holes, &[(6, 9), (994, 1000)]);
        assert_eq!(
            (holes.len(), holes.first(), holes.last()),
            (HOLES, Some(&(360, 365)), Some(&(990, 1000)))
        );
    }

    #[test]
    fn messages_that_were_deleted_at_the_logs_end_are_not_waited_for() {
        let mut queue = begun(5, &[]);
        assert_eq!(queue.check(1, 8), 0);
        queue.end_is_missing(4, 8);
        assert_eq!(queue.waiting(), 3, "it is read from another place now");
        queue.end_is_missing(5, 8);
        assert_eq!((queue.waiting(), queue.last(), queue.check(1, 8)), (0, 0, 3));
    }

    #[test]
    fn what_a_log_has_lost_is_what_the_destination_has_not_accepted() {
        let position = Position { at: 5, behind: vec![7, 9, 30], ..Position::default() };
        // It was made again.
        assert_eq!(position.unaccepted(0, 20), 13);
        // It has lost its end.
        assert_eq!(position.unaccepted(8, 20), 11);
        assert_eq!(position.unaccepted(20, 20), 0);
        // The sink had all of it.
        assert_eq!(position.unaccepted(0, 5), 0);
        assert_eq!(position.unaccepted(0, 4), 0);
    }

    #[test]
    fn of_a_log_that_has_lost_events_nothing_is_passed_over_that_came_since() {
        let position = Position { at: 5, behind: vec![7, 9, 30], ..Position::default() };
        // What has the numbers 9 and 30 now is something else; 6 and 8 are still to be delivered.
        assert_eq!(position.within(8), (5, vec![7]));
        assert_eq!(position.within(3), (3, vec![]));
        assert_eq!(position.within(0), (0, vec![]));
    }
}
