//! What a destination has accepted behind the cursor, remembered over an end of the task.
//!
//! A cursor says how far all is done. A destination that takes several events at once (a webhook with
//! several rooms) may have accepted some behind one that it has not. While the task runs the sink knows
//! them; at its end they are saved here, so that the next task does not send them again.
//!
//! A crash saves nothing: then they are sent again, within the sink's window.

use std::collections::BTreeSet;

use tracing::warn;

use crate::{
    base::{clock, event::Seq},
    journal::{Journal, StateElement},
};

const ELEMENT: &str = "events";

/// Numbers of events behind the cursor that the destination has accepted.
#[derive(Debug)]
pub(super) struct AcceptedBehind {
    /// Under which name they are saved.
    key: Box<str>,
    journal: Journal,
    seqs: BTreeSet<Seq>,
    /// Whether some are saved.
    saved: bool,
}

impl AcceptedBehind {
    /// Those of the sink `name`; nothing is read yet.
    pub(super) fn new(name: &str, journal: Journal) -> Self {
        // No channel can have this name: their labels have no dot.
        let key = format!("relay.answered.{name}").into();
        Self { key, journal, seqs: BTreeSet::new(), saved: false }
    }

    /// Reads what the task before has saved.
    pub(super) async fn load(&mut self) {
        let journal = self.journal.clone();
        let kept = match tokio::task::spawn_blocking(move || journal.stored_state()).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                warn!(%error, "what was accepted before the last end cannot be read: it may be repeated");
                return;
            }
            // The runtime ends.
            Err(_) => return,
        };
        let mine = kept.into_iter().find(|kept| kept.channel == self.key);
        let text = mine.and_then(|kept| kept.value).unwrap_or_default();
        self.seqs =
            serde_json::from_str::<Vec<Seq>>(&text).unwrap_or_default().into_iter().collect();
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
            self.write(None);
        }
    }

    /// The task ends, and the destination has accepted these behind the cursor.
    pub(super) fn remember(&mut self, seqs: impl IntoIterator<Item = Seq>) {
        self.seqs.extend(seqs);
        if !self.seqs.is_empty() {
            let seqs: Vec<Seq> = self.seqs.iter().copied().collect();
            self.write(serde_json::to_string(&seqs).ok());
        }
    }

    fn write(&self, value: Option<String>) {
        self.journal.store_state([StateElement {
            channel: self.key.clone(),
            element: ELEMENT.into(),
            value: value.map(Into::into),
            at: clock::now(),
        }]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn saved_events_are_forgotten_when_the_cursor_has_passed_them() {
        let mut accepted = AcceptedBehind::new("far", Journal::in_memory(1 << 20));
        accepted.load().await;
        accepted.remember([5, 9, 7]);
        assert!(accepted.has(7) && !accepted.has(6));
        accepted.passed(7);
        assert!(!accepted.has(7) && accepted.has(9));
        accepted.passed(9);
        assert!(!accepted.has(9));
    }
}
