//! How far a term is with the log: what is read ahead, and what is done of it.

use std::{collections::VecDeque, sync::Arc};

use crate::base::{
    clock::UnixMillis,
    event::{Record, Seq},
};

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
    pub(super) revision: u64,
    /// It is of a log that has lost its end: only where the sink goes on is saved.
    pub(super) is_left: bool,
    /// It was not found as it was saved: it is saved again.
    pub(super) is_in_doubt: bool,
}

impl Queue {
    /// When the log stored an event that is done now; 0: not known.
    pub(super) fn done(&mut self, seq: Seq) -> UnixMillis {
        let mut done = 0;
        while let Some((one, stored)) = self.stored.pop_front_if(|(one, _)| *one <= seq) {
            done = if one == seq { stored } else { 0 };
        }
        done
    }
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
    use super::*;

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
