//! What becomes of events: accepted, rejected, failed; and where that is shown.

use std::time::Duration;

use tracing::info;

use super::{
    Cause, Delivery, Failure, Instant, clock, describe,
    route::Skip,
    status,
    waiting::{self, Met},
};
use crate::base::clock::Moment;

/// When nothing was acknowledged for so long, with events in flight, that is shown. A connection ends only
/// later: when its sink's timeout is over.
const UNANSWERED: Duration = Duration::from_secs(10);

impl Delivery {
    /// What the sink reports of what is in flight.
    pub(super) fn outcome(&mut self, outcome: Result<usize, Failure>) {
        match outcome {
            Ok(0) if self.flight.full => self.flight.full = false,
            Ok(0) => self.failure(&Failure::down("the sink reported nothing")),
            Ok(count) => {
                self.accepted(count);
                self.worked();
            }
            Err(failure) => self.failure(&failure),
        }
    }

    pub(super) fn failure(&mut self, failure: &Failure) {
        let idle = self.flight.handed == 0;
        let alone = self.flight.handed == 1 && failure.accepted == 0;
        self.accepted(failure.accepted);
        if failure.accepted > 0 {
            self.worked();
        }
        let head = self.flight.head();
        match (&failure.cause, head) {
            (Cause::Rejected { reason }, Some(_)) if self.flight.handed > 0 => {
                self.flight.handed -= 1;
                self.flight.full = false;
                // A destination that rejects is there, and has answered.
                self.answered();
                let event = self.flight.pop();
                if event.is_some_and(|event| self.reject(event.record, reason.clone())) {
                    self.rejected(reason);
                }
            }
            // It has taken all there was: there is nothing to reject or to wait for.
            (Cause::Rejected { .. } | Cause::Busy { .. }, None) => self.worked(),
            (cause, head) => {
                let closed = cause.is_closed_by_peer() && !idle;
                if idle {
                    self.suspicion.excused();
                }
                self.flight.recall();
                // An event at which the connection ends may be to blame: it is sent until that is decided.
                if !(closed && self.suspicion.may_blame()) && self.give_back(cause) {
                    return self.request_failed(cause);
                }
                self.failed_with(cause, if idle { Met::Idle } else { Met::Events });
                if let (true, Some(head)) = (closed, head) {
                    self.connection_ended_at(head, alone, cause);
                }
            }
        }
    }

    /// What was asked for has failed. Of the sink itself that says something only where a session is lost.
    fn request_failed(&mut self, cause: &Cause) {
        if matches!(cause, Cause::Down(_)) && self.waiting.session {
            return self.failed(cause, false);
        }
        self.row.metrics.retry(waiting::word(cause));
        self.answered();
        let (_, connected) = waiting::state(cause, false);
        if !connected {
            self.disconnect();
        }
    }

    /// The destination has accepted `count` more of the oldest in flight: they are done.
    pub(super) fn accepted(&mut self, count: usize) {
        let count = count.min(self.flight.events.len());
        if count == 0 {
            return;
        }
        self.flight.handed = self.flight.handed.saturating_sub(count);
        self.flight.full = false;
        self.answered();
        let mut amount = 0;
        let mut last = None;
        // Events of one reading were received in the same millisecond: one sample for all of them.
        let (mut since, mut same) = (None, 0);
        let (mut sum, mut slowest) = (0, 0);
        for _ in 0..count {
            let Some(event) = self.flight.pop() else { break };
            let seq = event.record.seq;
            last = Some(seq);
            if self.flight.request.is_none()
                && !self.flight.undeliverable.is_empty()
                && !self.flight.is_rejected(seq)
            {
                self.flight.behind.push_back(seq);
            }
            if event.part > 0 {
                continue;
            }
            amount += 1;
            let age = event.record.age().as_millis();
            (sum, slowest) = (sum + age, slowest.max(age));
            match since.replace(age) {
                Some(before) if before != age => {
                    self.row.metrics.delivered(same, millis(before));
                    same = 1;
                }
                _ => same += 1,
            }
        }
        self.row.metrics.delivered(same, millis(since.unwrap_or(0)));
        self.report();
        self.row.show(|row| {
            row.delivered += amount;
            row.last_delivered = Some(clock::now());
            row.delivery_ms += u64::try_from(sum).unwrap_or(0);
            row.slowest_ms = row.slowest_ms.max(u64::try_from(slowest).unwrap_or(0));
            row.rejected_in_a_row = 0;
        });
        if let Some(last) = last {
            self.suspicion.accepted(last);
            if self.flight.request.is_none() && self.flight.undeliverable.is_empty() {
                // Another message of the same event may still be in flight.
                let through = if self.flight.head() == Some(last) { last - 1 } else { last };
                self.reader.advance(through, amount);
                self.flight.behind.retain(|seq| *seq > through);
            }
        }
        if self.flight.is_empty() {
            self.flight_is_done();
        }
    }

    /// What has waited for its turn until it was too old does not go out.
    pub(super) fn drop_expired(&mut self) {
        let before = self.flight.events.len();
        self.row.metrics.filtered(Skip::Age.as_str(), self.flight.drop_expired());
        if self.flight.events.len() < before && self.flight.is_empty() {
            self.flight_is_done();
        }
    }

    /// The destination has answered.
    fn answered(&mut self) {
        self.link.silent_since = Instant::now();
        if std::mem::take(&mut self.link.unanswered) {
            self.row.show(|row| row.unanswered_since = None);
        }
    }

    /// When that is to be shown, if nothing is acknowledged until then. Where each event has its own
    /// exchange it never is: one may take so long.
    pub(super) fn unanswered_at(&self) -> Option<Instant> {
        let waits = self.flight.handed > 0 && self.waiting.session && !self.link.unanswered;
        waits.then(|| self.link.silent_since + UNANSWERED)
    }

    /// It has not for a while, with events in flight.
    pub(super) fn unanswered(&mut self) {
        self.link.unanswered = true;
        let since = clock::ago(self.link.silent_since.elapsed());
        self.row.show(|row| row.unanswered_since = Some(since));
    }

    /// Passes on what the sink has learned; the log shows only what is new.
    pub(super) fn report(&mut self) {
        let report = self.link.sink.report();
        let count = |wanted: &str| {
            let counts = report.counts.iter().filter(|(name, _)| *name == wanted);
            counts.map(|(_, amount)| *amount).sum::<u64>()
        };
        let (receivers, unheard) = (count("receivers"), count("unheard"));
        for (name, amount) in report.counts {
            self.row.metrics.note(name, amount);
        }
        if receivers > 0 || unheard > 0 {
            self.row.show(|row| {
                row.unheard_in_a_row =
                    if receivers > 0 { 0 } else { row.unheard_in_a_row + unheard };
            });
        }
        let Some(facts) = report.facts else { return };
        self.row.show(|row| {
            for fact in facts.iter().filter(|fact| !row.remarks.contains(fact)) {
                info!(sink = %self.row.name, fact, "note from sink");
            }
            row.remarks = facts;
        });
    }

    /// Events are accepted.
    pub(super) fn worked(&mut self) {
        if self.waiting.worked() {
            self.show();
        }
    }

    /// Shows what is wrong, or that nothing is.
    pub(super) fn show(&self) {
        let (state, text) = match &self.waiting.fault {
            Some(fault) => (fault.state, Some(fault.text.clone())),
            None => ("up", None),
        };
        self.show_state(state, |row| {
            row.last_error = text.or_else(|| row.last_error.take());
        });
    }

    fn show_state(&self, state: &'static str, show_error: impl FnOnce(&mut status::Sink)) {
        let next = self.waiting.next_attempt();
        let mut delivers = false;
        self.row.show(|row| {
            if row.state != state {
                if row.state == "up" {
                    row.left_up = Some(Moment::now());
                }
                row.state = state;
                row.since = clock::now();
            }
            row.next_attempt = next;
            show_error(row);
            delivers = row.delivers();
        });
        self.row.metrics.up(delivers);
    }

    /// Something failed while nothing was in flight: logs it, and notes how long to wait.
    pub(super) fn failed(&mut self, cause: &Cause, connecting: bool) {
        self.failed_with(cause, if connecting { Met::Connecting } else { Met::Idle });
    }

    /// The same, for whatever it met.
    fn failed_with(&mut self, cause: &Cause, met: Met) {
        self.row.metrics.retry(waiting::word(cause));
        let text = describe(cause);
        self.waiting.failed(&self.row.name, cause, met, &text);
        let (state, connected) = waiting::state(cause, met == Met::Connecting);
        if !connected {
            self.disconnect();
        }
        self.flight.stale = true;
        self.link.unanswered = false;
        self.show_state(state, |row| {
            row.unanswered_since = None;
            row.last_error = Some(text);
            row.last_error_at = Some(clock::now());
        });
    }
}

fn millis(count: u128) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
pub(super) mod tests;
