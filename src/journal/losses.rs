//! What sinks can no longer get, and what waits for sinks that are gone.
//!
//! A loss is reported when it happens, whatever the sink does at the moment; a sink that reads on later finds
//! the same events missing. Which of them are reported is remembered for each sink while the process runs.

use std::sync::Arc;

use super::{Batch, Journal, LeftBehind};

impl Journal {
    /// What is gone of the events that configured sinks have still to get, as far as that was not reported
    /// before: how many of each sink. From now on it counts as reported.
    pub fn take_losses(&self) -> Vec<(Arc<str>, u64)> {
        self.0.lock().take_losses()
    }

    /// The delivery of `sink` has this in memory from now on: nothing of it is lost where retention removes it.
    /// Answers how many of the events that are missing before it were not reported before; they count as
    /// reported.
    pub(crate) fn was_read(&self, sink: &str, batch: &Batch) -> u64 {
        let mut memory = self.0.lock();
        let before = batch.records.first().map_or(batch.through, |first| first.seq - 1);
        let unreported =
            if batch.lost > 0 { memory.take_lost(sink, before, batch.lost) } else { 0 };
        if let Some(cursor) = memory.cursors.by_sink.get_mut(sink) {
            cursor.read = batch.through;
        }
        unreported
    }

    /// What waits for sinks that are no longer configured.
    pub fn left_behind(&self) -> Vec<LeftBehind> {
        self.0.lock().left_behind()
    }
}
