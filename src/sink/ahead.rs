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

/// Accepted events before which some are not.
#[derive(Debug, Default)]
pub(super) struct OutOfOrderAcks {
    events: BTreeSet<(Seq, u8)>,
}

impl OutOfOrderAcks {
    /// Forgets what lies before `event`, with nothing in flight: all before it is accepted.
    pub(super) fn begin(&mut self, event: &Outgoing) {
        if !self.events.is_empty() {
            self.events = self.events.split_off(&(event.record.seq, 0));
        }
    }

    /// Remembers one, and at most `limit` in all.
    pub(super) fn insert(&mut self, event: (Seq, u8), limit: usize) {
        self.events.insert(event);
        if self.events.len() > limit {
            // The oldest are needed first.
            self.events.pop_last();
        }
    }

    /// It is reported as accepted. Whoever sends it again (a replay) wants it sent again.
    pub(super) fn remove(&mut self, event: (Seq, u8)) {
        if !self.events.is_empty() {
            self.events.remove(&event);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Seq, u8)> {
        self.events.iter().copied()
    }

    pub(super) fn has(&self, event: &Outgoing) -> bool {
        !self.events.is_empty() && self.events.contains(&event.number())
    }
}
