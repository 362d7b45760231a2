//! What the disk has still to get beside events and cursors.

use std::sync::Arc;

use super::store::{Changes, DeadLetter};

/// Changes that wait for the writer, and those that it writes now.
#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    pub(super) new: Changes,
    writing: Arc<Changes>,
}

impl PendingChanges {
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
    use crate::journal::store::StateElement;

    fn element(value: &str) -> StateElement {
        let value = Some(value.into());
        StateElement { channel: "main".into(), element: "x".into(), value, at: 1 }
    }

    #[test]
    fn what_could_not_be_written_stands_before_what_is_newer() {
        let mut pending = PendingChanges::default();
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
