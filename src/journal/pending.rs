//! What the disk has still to get beside events and cursors.

use std::{collections::HashMap, sync::Arc};

use super::store::{DeadLetter, RejectedAgain, StateElement};
use crate::base::event::Seq;

/// Changes in the order in which they were made; of each replay and each element of state the last.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub(super) dead: Vec<DeadLetter>,
    /// Bytes of the events in `dead`.
    pub(super) dead_bytes: usize,
    pub(super) rejected: Vec<RejectedAgain>,
    /// Dead letters that are done with.
    pub(super) removed: Vec<i64>,
    /// Replays and how far they are; `None`: done.
    pub(super) replays: HashMap<i64, Option<Seq>>,
    /// By channel and element.
    pub(super) state: HashMap<(Box<str>, Box<str>), StateElement>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.dead.is_empty()
            && self.rejected.is_empty()
            && self.removed.is_empty()
            && self.replays.is_empty()
            && self.state.is_empty()
    }

    pub(super) fn add_dead(&mut self, letter: DeadLetter) {
        self.dead_bytes += letter.record.event.weight();
        self.dead.push(letter);
    }

    pub(super) fn set_state(&mut self, element: StateElement) {
        self.state.insert((element.channel.clone(), element.element.clone()), element);
    }

    fn add(&mut self, newer: Self) {
        self.dead.extend(newer.dead);
        self.dead_bytes += newer.dead_bytes;
        self.rejected.extend(newer.rejected);
        self.removed.extend(newer.removed);
        self.replays.extend(newer.replays);
        self.state.extend(newer.state);
    }
}

/// Changes that wait for the writer, and those that it writes now.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) new: Changes,
    writing: Arc<Changes>,
}

impl Pending {
    /// What is to be written now.
    pub(super) fn begin(&mut self) -> Arc<Changes> {
        self.writing = Arc::new(std::mem::take(&mut self.new));
        Arc::clone(&self.writing)
    }

    pub(super) fn written(&mut self) {
        self.writing = Arc::default();
    }

    /// What was to be written is still to be written.
    pub(super) fn failed(&mut self) {
        let mut all = (*std::mem::take(&mut self.writing)).clone();
        all.add(std::mem::take(&mut self.new));
        self.new = all;
    }

    /// All that is not on disk for certain, the older first.
    pub(super) fn unwritten(&self) -> [&Changes; 2] {
        [&self.writing, &self.new]
    }

    pub(super) fn dead_letters(&self) -> impl Iterator<Item = &DeadLetter> {
        self.unwritten().into_iter().flat_map(|changes| &changes.dead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(value: &str) -> StateElement {
        let value = Some(value.into());
        StateElement { channel: "main".into(), element: "x".into(), value, at: 1 }
    }

    #[test]
    fn what_could_not_be_written_stands_before_what_is_newer() {
        let mut pending = Pending::default();
        pending.new.removed.push(1);
        pending.new.replays.insert(7, Some(10));
        pending.new.set_state(element("old"));
        assert_eq!(pending.begin().removed, [1]);
        pending.new.removed.push(2);
        pending.new.replays.insert(7, None);
        pending.new.set_state(element("new"));
        pending.failed();
        assert_eq!(pending.new.removed, [1, 2]);
        assert_eq!(pending.new.replays[&7], None);
        assert!(pending.new.state.values().eq([&element("new")]));
        assert!(!pending.begin().is_empty());
        pending.written();
        assert!(pending.unwritten().iter().all(|changes| changes.is_empty()));
    }
}
