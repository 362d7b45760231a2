//! Reports events that a sink will never get: once each, when the journal has dropped them and not only when
//! the sink would have come to them. The event `relay.gap` follows then, one for all of them. One that was
//! rejected where there are no dead letters is counted at once, and the event follows at most once a minute.

use std::time::Duration;

use tokio::time::Instant;
use tracing::error;

use super::{Delivery, StatusRow, source::LOST, status::Status};
use crate::{
    base::{
        event::{self, Event, Seq},
        metrics,
    },
    journal::{Journal, OUTBOX},
};

/// Why an event is lost that was rejected where nothing is written to disk.
const REJECTED: &str = "rejected, and not kept without journal.dir";

/// How often those are reported by a `relay.gap`.
const REPORTED: Duration = Duration::from_mins(1);

/// Events that were rejected, are kept nowhere, and are still to be reported by a `relay.gap`.
#[derive(Debug, Default)]
pub(super) struct RejectedForGood {
    count: u64,
    /// No report before.
    next: Option<Instant>,
}

impl RejectedForGood {
    /// One more.
    pub(super) fn add(&mut self, row: &StatusRow, event: &Event) {
        // Of a report that is rejected, too, there is no other: that would go on for ever.
        if &*event.place.topic == event::GAP {
            return;
        }
        metrics::add_for(metrics::LOST, "sink", &row.name, 1);
        row.status.lost(&row.name, 1, REJECTED);
        self.count += 1;
    }

    /// When they are to be reported.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.count > 0).then(|| self.next.unwrap_or_else(Instant::now))
    }
}

/// Reports what the journal has dropped before configured sinks had it.
pub(crate) fn report_all(journal: &Journal, status: &Status) {
    for (sink, count) in journal.take_losses() {
        if &*sink == OUTBOX {
            report_unpublished(status, count);
        } else {
            report(status, &sink, count, LOST);
        }
    }
}

/// Reports what the journal of a member has dropped before it came into the log of its cluster.
pub(crate) fn report_unpublished(status: &Status, count: u64) {
    error!(count, "events were lost before they came into the log");
    count_unpublished(status, count, LOST);
}

/// Counts events that never come into the log of the cluster: no sink gets them.
pub(crate) fn count_unpublished(status: &Status, count: u64, cause: &'static str) {
    metrics::add_for(metrics::LOST, "sink", OUTBOX, count);
    status.lost_to_all(count, cause);
}

fn report(status: &Status, sink: &str, count: u64, cause: &'static str) {
    error!(%sink, count, "events were lost before the sink could get them");
    metrics::add_for(metrics::LOST, "sink", sink, count);
    status.lost(sink, count, cause);
}

impl Delivery {
    /// Events that this sink will never get.
    pub(super) fn lost(&mut self, count: u64) {
        self.report_lost(count, self.reader.source.unreported(count));
    }

    /// The same of what it had still to get of files that could be opened only late: events before `before`.
    pub(super) fn lost_of_backlog(&self, number: i64, before: Seq, count: u64) {
        let source = &self.reader.source;
        self.report_lost(count, source.unreported_of_backlog(number, before, count));
        // Reported once, whatever fails then.
        source.replay_progress(number, Some(before));
    }

    fn report_lost(&self, count: u64, unreported: u64) {
        let cause = self.reader.source.lost_cause();
        if unreported > 0 {
            report(&self.row.status, &self.row.name, unreported, cause);
        }
        let gap = event::lost(cause, &self.row.name, count);
        self.reader.source.append(gap);
    }

    /// Reports what was rejected and is kept nowhere, if it is time to, or `at_once`.
    pub(super) fn report_rejected(&mut self, at_once: bool) {
        let now = Instant::now();
        if self.rejected.due().is_none_or(|due| due > now && !at_once) {
            return;
        }
        let count = std::mem::take(&mut self.rejected.count);
        self.rejected.next = Some(now + REPORTED);
        self.reader.source.append(event::lost(REJECTED, &self.row.name, count));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{base::clock, config::Start};

    #[test]
    fn a_loss_is_reported_when_it_happens_and_once() {
        let journal = Journal::in_memory(20_000);
        journal.register("home", Start::End).unwrap();
        journal.register("gone", Start::End).unwrap();
        journal.sinks(["home"]);
        let status = Status::default();
        status.sink("home", |row| row.state = "down");
        let nobody: Arc<str> = "".into();
        let event = || event::own("t", &nobody, &nobody, &json!({}), clock::now());
        let lost = |status: &Status| status.read(|now| now.sinks["home"].lost);
        for round in 1..3 {
            journal.append(&mut (0..500).map(|_| event()).collect());
            report_all(&journal, &status);
            let gone = journal.figures().oldest - 1;
            assert!(gone > 0, "round {round}");
            assert_eq!(lost(&status), gone, "round {round}");
            report_all(&journal, &status);
            assert_eq!(lost(&status), gone, "round {round}");
        }
        assert!(!status.read(|now| now.sinks.contains_key("gone")));
    }

    #[tokio::test]
    async fn what_a_member_can_no_longer_publish_is_lost_to_all_sinks_and_waits_no_more() {
        let journal = Journal::in_memory(20_000);
        for cursor in ["home", OUTBOX] {
            journal.register(cursor, Start::End).unwrap();
        }
        journal.sinks([OUTBOX]);
        let status = Status::default();
        for sink in ["home", "shop"] {
            status.sink(sink, |row| row.state = "standby");
        }
        let nobody: Arc<str> = "".into();
        let event = || event::own("t", &nobody, &nobody, &json!({}), clock::now());
        journal.append(&mut (0..500).map(|_| event()).collect());
        let gone = journal.figures().oldest - 1;
        assert!(gone > 0);
        for _ in 0..2 {
            report_all(&journal, &status);
            let lost = status.read(|now| [now.sinks["home"].lost, now.sinks["shop"].lost]);
            assert_eq!(lost, [gone, gone]);
        }
        assert_eq!(journal.lag(OUTBOX).0, 500 - gone);
        let batch = journal.next(0, 500, 1 << 20).await.unwrap();
        assert_eq!((batch.lost, journal.was_read(OUTBOX, &batch)), (gone, 0), "it is known");
    }
}
