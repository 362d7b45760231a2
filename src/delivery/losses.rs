//! Reports events that a sink will never get: once each, when the journal has dropped them and not only when
//! the sink would have come to them. The event `relay.gap` follows then, one for all of them.

use tracing::error;

use super::{Delivery, source::LOST, status::Status};
use crate::{
    base::{event, metrics},
    journal::Journal,
};

/// Reports what the journal has dropped before configured sinks had it.
pub(crate) fn report_all(journal: &Journal, status: &Status) {
    for (sink, count) in journal.take_losses() {
        report(status, &sink, count, LOST);
    }
}

fn report(status: &Status, sink: &str, count: u64, cause: &'static str) {
    error!(%sink, count, "events were lost before the sink could get them");
    metrics::add_for(metrics::LOST, "sink", sink, count);
    status.lost(sink, count, cause);
}

impl Delivery {
    /// Events that this sink will never get.
    pub(super) fn lost(&mut self, count: u64) {
        let cause = self.reader.source.lost_cause();
        let unreported = self.reader.source.unreported(count);
        if unreported > 0 {
            report(&self.row.status, &self.row.name, unreported, cause);
        }
        let gap = event::lost(cause, &self.row.name, count);
        self.reader.source.append(gap);
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
}
