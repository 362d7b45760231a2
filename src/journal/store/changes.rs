//! What is written beside events and cursors.

use std::collections::HashMap;

use super::{DeadLetter, RejectedAgain, StateElement};
use crate::base::event::Seq;

/// Changes in the order in which they were made; of each replay and each element of state the last.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub(in crate::journal) dead: Vec<DeadLetter>,
    /// Bytes of the events in `dead`.
    pub(in crate::journal) dead_bytes: usize,
    pub(in crate::journal) rejected: Vec<RejectedAgain>,
    /// Dead letters that are done with.
    pub(in crate::journal) removed: Vec<i64>,
    /// Replays and how far they are; `None`: done.
    pub(in crate::journal) replays: HashMap<i64, Option<Seq>>,
    /// By channel and element.
    pub(in crate::journal) state: HashMap<(Box<str>, Box<str>), StateElement>,
}

impl Changes {
    pub(in crate::journal) fn is_empty(&self) -> bool {
        self.dead.is_empty()
            && self.rejected.is_empty()
            && self.removed.is_empty()
            && self.replays.is_empty()
            && self.state.is_empty()
    }

    pub(in crate::journal) fn add_dead(&mut self, letter: DeadLetter) {
        self.dead_bytes += letter.record.event.weight();
        self.dead.push(letter);
    }

    pub(in crate::journal) fn set_state(&mut self, element: StateElement) {
        self.state.insert((element.channel.clone(), element.element.clone()), element);
    }

    /// Adds what came later.
    pub(in crate::journal) fn add(&mut self, newer: Self) {
        self.dead.extend(newer.dead);
        self.dead_bytes += newer.dead_bytes;
        self.rejected.extend(newer.rejected);
        self.removed.extend(newer.removed);
        self.replays.extend(newer.replays);
        self.state.extend(newer.state);
    }
}
