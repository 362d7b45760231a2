//! What a far side has accepted of a batch beyond the prefix that could be reported.
//!
//! A batch is answered with a prefix, yet some far sides take events singly: the third of five may
//! fail while the fourth and fifth arrived. They stand here until the prefix has passed them, so that
//! the next delivery of the same events does not send them twice.
//!
//! The one thing to know: it is a memory, not a record. It has a limit and ends with the process; what
//! is forgotten is sent again, which every sink may do.

use std::collections::BTreeSet;

use super::Outgoing;
use crate::event::Seq;

/// Numbers that are kept at most: sixteen times the default batch. A batch that begins at the first
/// event not yet accepted can hardly leave more behind it.
const LIMIT: usize = 4096;

/// Numbers of accepted events that the prefix has not reached yet.
#[derive(Debug, Default)]
pub(super) struct Ahead(BTreeSet<Seq>);

impl Ahead {
    /// Forgets what lies before `batch`: the prefix has passed it.
    pub(super) fn begin(&mut self, batch: &[Outgoing]) {
        match batch.first() {
            Some(first) if !self.0.is_empty() => self.0 = self.0.split_off(&first.record.seq),
            _ => {}
        }
    }

    /// Remembers that the far side has accepted `outgoing`.
    pub(super) fn accepted(&mut self, outgoing: &Outgoing) {
        self.0.insert(outgoing.record.seq);
        if self.0.len() > LIMIT {
            // The oldest are asked for first.
            self.0.pop_last();
        }
    }

    /// Whether the far side has accepted it already.
    pub(super) fn has(&self, outgoing: &Outgoing) -> bool {
        !self.0.is_empty() && self.0.contains(&outgoing.record.seq)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
