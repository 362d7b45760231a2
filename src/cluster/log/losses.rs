//! Events that the log has lost before a sink could get them: each is reported once it is found missing, not only
//! when the sink would have come to it.

use std::time::Duration;

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, warn};

use super::{CHECK, LOST, LogSource};
use crate::{
    base::{
        event::{self, Seq},
        metrics,
        sync::lock,
    },
    cluster::lease,
};

/// A log that is full deletes events all the time: of those that are missing its driver logs the first at once, and
/// then the number of the others so often.
const LOGGED: Duration = Duration::from_mins(1);

impl LogSource {
    /// The log has lost events, or was made again: of those that the sink had still to get it has none behind `kept`.
    pub(super) fn report_loss(&self, kept: Seq) {
        let (last, reported) = {
            let queue = lock(&self.queue);
            (queue.last, queue.reported)
        };
        let count = lock(&self.position).unaccepted(kept, last);
        let sink = &self.sink;
        if count == 0 {
            warn!(%sink, "the log has lost events: the sink begins again with those that come");
            return;
        }
        error!(%sink, count, "the log has lost events that the sink had still to get");
        self.count_lost(count.saturating_sub(reported));
        self.journal.append(&mut vec![event::lost(LOST, sink, count)]);
    }

    /// While the sink takes nothing, nothing more is read: what the log gets and deletes meanwhile is found here. The
    /// event `relay.gap` follows with the next event that the sink takes, one for all of them.
    pub(super) async fn watch_log(&self) {
        let patience = lease::patience(self.cluster.settings().lease.0);
        let mut losses = Losses::default();
        loop {
            sleep(CHECK).await;
            let Ok(Ok(info)) = timeout(patience, self.storage.log.get_info()).await else {
                continue;
            };
            let (first, last) = (info.state.first_sequence, info.state.last_sequence);
            let count = lock(&self.queue).check(first, last);
            if count > 0 {
                self.count_lost(count);
                // The cursor says what is counted.
                self.signals.moved.notify_one();
            }
            if let Some(count) = losses.due(count) {
                error!(sink = %self.sink, count, "the log has deleted events that the sink had still to get");
            }
        }
    }

    /// Whether the log has nothing from `first` through `last`, and ends there: each of these was deleted by itself.
    pub(super) async fn is_deleted(
        &self,
        first: Seq,
        last: Seq,
    ) -> Result<bool, async_nats::Error> {
        let log = &self.storage.log;
        match log.get_first_raw_message_by_subject(">", first).await {
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(error.into()),
        }
        // What came meanwhile, or a new leader does not have yet, is still to be read.
        Ok(log.get_info().await?.state.last_sequence == last)
    }

    fn count_lost(&self, count: u64) {
        if count > 0 {
            metrics::add_for(metrics::LOST, "sink", &self.sink, count);
            self.status.lost(&self.sink, count, LOST);
        }
    }
}

/// What is found missing, for the log.
#[derive(Debug, Default)]
struct Losses {
    unlogged: u64,
    logged: Option<Instant>,
}

impl Losses {
    /// So many more are missing; answers how many are to be logged now.
    fn due(&mut self, count: u64) -> Option<u64> {
        self.unlogged += count;
        let is_due = self.logged.is_none_or(|at| at.elapsed() >= LOGGED);
        (self.unlogged > 0 && is_due).then(|| {
            self.logged = Some(Instant::now());
            std::mem::take(&mut self.unlogged)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_log_that_deletes_all_the_time_is_logged_once_a_minute() {
        let mut losses = Losses::default();
        assert_eq!(losses.due(0), None);
        assert_eq!(losses.due(3), Some(3));
        assert_eq!((losses.due(4), losses.due(5)), (None, None));
        advance(LOGGED).await;
        assert_eq!(losses.due(0), Some(9));
        advance(LOGGED).await;
        assert_eq!((losses.due(0), losses.due(2)), (None, Some(2)));
    }
}
