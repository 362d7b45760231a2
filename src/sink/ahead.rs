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
use crate::base::event::Seq;

/// Numbers that are kept at most, in batches: the one that is being delivered, and what an earlier one
/// left behind its end (a batch may be shorter when it comes again).
const BATCHES: usize = 2;

/// Numbers of accepted events that the prefix has not reached yet.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    seqs: BTreeSet<Seq>,
    limit: usize,
}

impl Ahead {
    /// Forgets what lies before `batch`: the prefix has passed it.
    pub(super) fn begin(&mut self, batch: &[Outgoing]) {
        self.limit = self.limit.max(BATCHES * batch.len());
        match batch.first() {
            Some(first) if !self.seqs.is_empty() => {
                self.seqs = self.seqs.split_off(&first.record.seq);
            }
            _ => {}
        }
    }

    /// Remembers that the far side has accepted `outgoing`.
    pub(super) fn accepted(&mut self, outgoing: &Outgoing) {
        self.seqs.insert(outgoing.record.seq);
        if self.seqs.len() > self.limit {
            // The oldest are asked for first.
            self.seqs.pop_last();
        }
    }

    /// The prefix that is being reported has passed these. Whoever hands over one of them again (a
    /// replay) wants it sent again.
    pub(super) fn reported(&mut self, prefix: &[Outgoing]) {
        if self.seqs.is_empty() {
            return;
        }
        for outgoing in prefix {
            self.seqs.remove(&outgoing.record.seq);
        }
    }

    /// Whether the far side has accepted it already.
    pub(super) fn has(&self, outgoing: &Outgoing) -> bool {
        !self.seqs.is_empty() && self.seqs.contains(&outgoing.record.seq)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.seqs.clear();
    }
}
