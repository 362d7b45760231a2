//! What a destination has accepted behind the cursor, remembered over an end of the task.
//!
//! A cursor says how far all is done. A destination that takes several events at once (a webhook with
//! several rooms) may have accepted some behind one that it has not. While the task runs the sink knows
//! them; at its end they are saved here, so that the next task does not send them again.
//!
//! A crash saves nothing: then they are sent again, within the sink's window.

use std::{collections::BTreeSet, sync::Arc};

use super::source::Source;
use crate::base::event::Seq;

/// Numbers of events behind the cursor that the destination has accepted.
pub(super) struct AcceptedBehind {
    source: Arc<dyn Source>,
    seqs: BTreeSet<Seq>,
    /// Whether some are saved.
    saved: bool,
}

impl AcceptedBehind {
    /// Those of the sink of this source; nothing is read yet.
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self { source, seqs: BTreeSet::new(), saved: false }
    }

    /// Reads what the task before has saved.
    pub(super) async fn load(&mut self) {
        self.seqs = self.source.accepted_behind().await.into_iter().collect();
        self.saved = !self.seqs.is_empty();
    }

    /// Whether the destination has this one already.
    pub(super) fn has(&self, seq: Seq) -> bool {
        self.seqs.contains(&seq)
    }

    /// The cursor has passed these: nothing of them is needed any more.
    pub(super) fn passed(&mut self, through: Seq) {
        if self.seqs.first().is_some_and(|first| *first <= through) {
            self.seqs = self.seqs.split_off(&(through + 1));
        }
        if self.seqs.is_empty() && std::mem::take(&mut self.saved) {
            self.source.keep_accepted_behind(&[]);
        }
    }

    /// The task ends, or reads from the cursor again, and the destination has accepted these behind it.
    pub(super) fn remember(&mut self, seqs: impl IntoIterator<Item = Seq>) {
        self.seqs.extend(seqs);
        if !self.seqs.is_empty() {
            self.saved = true;
            let seqs: Vec<Seq> = self.seqs.iter().copied().collect();
            self.source.keep_accepted_behind(&seqs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::source::JournalSource, *};
    use crate::{
        config::{self, Start},
        journal::Journal,
    };

    #[tokio::test]
    async fn saved_events_are_forgotten_when_the_cursor_has_passed_them() {
        let source = JournalSource::new(Journal::in_memory(1 << 20), "far", Start::End).unwrap();
        let mut accepted = AcceptedBehind::new(Arc::new(source));
        accepted.load().await;
        accepted.remember([5, 9, 7]);
        assert!(accepted.has(7) && !accepted.has(6));
        accepted.passed(7);
        assert!(!accepted.has(7) && accepted.has(9));
        accepted.passed(9);
        assert!(!accepted.has(9));
    }

    #[tokio::test]
    async fn what_is_saved_in_a_task_that_goes_on_is_removed_when_the_cursor_has_passed_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = config::Journal { dir: dir.path().to_owned(), ..config::Journal::default() };
        let (journal, _) = Journal::open(&config).unwrap();
        let source: Arc<dyn Source> =
            Arc::new(JournalSource::new(journal.clone(), "out", Start::End).unwrap());
        let mut accepted = AcceptedBehind::new(Arc::clone(&source));
        accepted.load().await;
        accepted.remember([5, 9]);
        assert_eq!(source.accepted_behind().await, [5, 9]);
        accepted.passed(9);
        assert!(source.accepted_behind().await.is_empty());
        drop((accepted, source));
        tokio::task::spawn_blocking(move || journal.close()).await.unwrap();
    }
}
