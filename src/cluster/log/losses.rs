//! Events that the log has lost before a sink could get them: each is reported once it is found missing, not only
//! when the sink would have come to it.

use tokio::time::{sleep, timeout};
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
        loop {
            sleep(CHECK).await;
            let Ok(Ok(info)) = timeout(patience, self.storage.log.get_info()).await else {
                continue;
            };
            let (first, last) = (info.state.first_sequence, info.state.last_sequence);
            let count = lock(&self.queue).check(first, last);
            if count > 0 {
                error!(sink = %self.sink, count, "the log has deleted events that the sink had still to get");
                self.count_lost(count);
            }
        }
    }

    fn count_lost(&self, count: u64) {
        if count > 0 {
            metrics::add_for(metrics::LOST, "sink", &self.sink, count);
            self.status.lost(&self.sink, count, LOST);
        }
    }
}
