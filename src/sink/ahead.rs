//! What a destination has accepted behind an event that it has not.
//!
//! Delivery goes on from the first event that was not accepted, yet some destinations answer each event by
//! itself: the third of five may fail while the fourth and fifth arrived. They are remembered here until
//! everything before them is accepted, so that they are not sent twice.
//!
//! The memory is bounded and ends with the process. What is forgotten is sent again, which every sink may
//! do.

use std::collections::BTreeSet;

use super::Outgoing;
use crate::base::event::Seq;

/// Events that are remembered at most, in windows: the one in flight, and what an earlier one left behind
/// its end (it may be shorter when it comes again).
const WINDOWS: usize = 2;

/// Accepted events before which some are not.
#[derive(Debug, Default)]
pub(super) struct OutOfOrderAcks {
    events: BTreeSet<(Seq, u8)>,
    limit: usize,
}

impl OutOfOrderAcks {
    /// Forgets what lies before `events`: all before them is accepted.
    pub(super) fn begin(&mut self, events: &[Outgoing]) {
        self.limit = self.limit.max(WINDOWS * events.len());
        match events.first() {
            Some(first) if !self.events.is_empty() => {
                self.events = self.events.split_off(&(first.record.seq, 0));
            }
            _ => {}
        }
    }

    pub(super) fn accepted(&mut self, event: &Outgoing) {
        self.insert((event.record.seq, event.part), self.limit);
    }

    pub(super) fn insert(&mut self, event: (Seq, u8), limit: usize) {
        self.events.insert(event);
        if self.events.len() > limit {
            // The oldest are needed first.
            self.events.pop_last();
        }
    }

    /// They are reported as accepted. Whoever sends one of them again (a replay) wants it sent again.
    pub(super) fn reported(&mut self, events: &[Outgoing]) {
        for event in events {
            self.remove((event.record.seq, event.part));
        }
    }

    pub(super) fn remove(&mut self, event: (Seq, u8)) {
        if !self.events.is_empty() {
            self.events.remove(&event);
        }
    }

    pub(super) fn has(&self, event: &Outgoing) -> bool {
        !self.events.is_empty() && self.events.contains(&(event.record.seq, event.part))
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
    }
}
