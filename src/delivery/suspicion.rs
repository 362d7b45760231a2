//! Whether one event is to blame when the connection ends again and again.
//!
//! Some destinations answer an event that they cannot take by closing the connection, without a word
//! (NATS at a control line that is too long, MQTT 3.1.1 at a topic it may not have, a receiver that dies
//! of it). Sent again and again such an event would hold up all behind it for ever. But a connection also
//! ends for many other reasons, and then nothing is wrong with the event. So only ends by the peer count,
//! and only those at an event that was on its way alone, on a connection that stood by itself for a
//! while; they must repeat over a long time, and there is a limit to how many events may be blamed before
//! one is accepted.
//!
//! Pure: times go in, verdicts come out.

use std::time::Duration;

use crate::base::{clock::Moment, event::Seq};

/// So many ends in a row with the same event at the head, and it is sent alone.
const ISOLATE_AFTER: u32 = 2;

/// So many ends with the event alone on its way, at least, before it is to blame.
const CLOSES: u32 = 5;

/// Over at least so long: whatever else may end connections is over by then, or ends them without an
/// event, too.
const OVER: Duration = Duration::from_mins(1);

/// So many events may be blamed in a row. If the connection ends at the next as well, it is not the event.
const IN_A_ROW: u32 = 3;

/// How long a connection must have stood by itself before the event is sent on it.
pub(super) const QUIET: Duration = Duration::from_secs(3);

/// The event at which the connection has ended.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    at: Option<Suspect>,
    /// How many became dead letters since one was accepted.
    blamed: u32,
    /// An event that is to blame, and why, if the destination is there for all else.
    pub(super) accused: Option<(Seq, String)>,
}

#[derive(Debug, Clone, Copy)]
struct Suspect {
    seq: Seq,
    /// Ends with it at the head.
    closes: u32,
    /// Of these, with it alone on its way.
    alone: u32,
    /// When the first of those was.
    since: Moment,
}

/// How often the connection has ended at one event, and over how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blame {
    pub(super) times: u32,
    pub(super) over: Duration,
}

impl Suspicion {
    /// The peer has ended the connection with this event at the head, `alone` on its way. An answer: it
    /// is to blame.
    pub(super) fn closed(&mut self, seq: Seq, alone: bool) -> Option<Blame> {
        let fresh = Suspect { seq, closes: 0, alone: 0, since: Moment::now() };
        let suspect = self.at.insert(self.at.filter(|at| at.seq == seq).unwrap_or(fresh));
        suspect.closes = suspect.closes.saturating_add(1);
        if !alone || suspect.closes <= ISOLATE_AFTER {
            return None;
        }
        if suspect.alone == 0 {
            suspect.since = Moment::now();
        }
        suspect.alone = suspect.alone.saturating_add(1);
        let blame = Blame { times: suspect.alone, over: suspect.since.elapsed() };
        let enough = blame.times >= CLOSES && blame.over >= OVER;
        (enough && self.may_blame()).then_some(blame)
    }

    /// Whether an event may be to blame: not when as many were before it.
    pub(super) fn may_blame(&self) -> bool {
        self.blamed < IN_A_ROW
    }

    /// Whether this event is to be sent alone.
    pub(super) fn isolates(&self, seq: Seq) -> bool {
        self.at.is_some_and(|at| at.seq == seq && at.closes >= ISOLATE_AFTER)
    }

    /// The event is a dead letter.
    pub(super) fn blamed(&mut self) {
        self.at = None;
        self.blamed = self.blamed.saturating_add(1);
    }

    /// A connection has ended with nothing on its way, or the destination is not there when it is asked
    /// without an event: it is not the event. A connect that fails says nothing: a receiver that dies of an
    /// event takes a while to come back.
    pub(super) fn excused(&mut self) {
        self.accused = None;
        if let Some(at) = &mut self.at {
            at.alone = 0;
        }
    }

    /// Events through this one were accepted.
    pub(super) fn accepted(&mut self, through: Seq) {
        self.blamed = 0;
        self.passed(through);
    }

    /// Events through this one are done.
    pub(super) fn passed(&mut self, through: Seq) {
        if self.at.is_some_and(|at| at.seq <= through) {
            self.at = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_is_blamed_after_five_closes_over_a_minute() {
        let mut suspicion = Suspicion::default();
        assert_eq!(suspicion.closed(7, false), None);
        assert!(!suspicion.isolates(7));
        assert_eq!(suspicion.closed(7, false), None);
        assert!(suspicion.isolates(7) && !suspicion.isolates(8));
        // Many ends within a short time are not enough.
        for _ in 0..20 {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(suspicion.closed(7, true), None);
        }
        sleep(Duration::from_mins(1)).await;
        assert!(suspicion.closed(7, true).is_some_and(|blame| blame.times == 21));
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_is_measured_from_the_first_close_with_the_event_alone() {
        let mut suspicion = Suspicion::default();
        for _ in 0..ISOLATE_AFTER {
            suspicion.closed(7, false);
        }
        sleep(Duration::from_hours(1)).await;
        for _ in 1..CLOSES {
            assert_eq!(suspicion.closed(7, true), None);
        }
        sleep(Duration::from_secs(59)).await;
        assert_eq!(suspicion.closed(7, true), None);
        sleep(Duration::from_secs(1)).await;
        let blame = Blame { times: CLOSES + 1, over: OVER };
        assert_eq!(suspicion.closed(7, true), Some(blame));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_was_accepted_is_not_suspected_and_one_behind_it_still_is() {
        let mut suspicion = Suspicion::default();
        for through in [6, 7] {
            for _ in 0..ISOLATE_AFTER {
                suspicion.closed(7, true);
            }
            suspicion.passed(through);
            assert_eq!(suspicion.isolates(7), through < 7, "{through}");
        }
        suspicion.closed(8, true);
        suspicion.closed(8, true);
        suspicion.accepted(8);
        assert!(!suspicion.isolates(8));
        suspicion.closed(9, true);
        suspicion.closed(9, true);
        suspicion.blamed();
        assert!(!suspicion.isolates(9));
    }

    #[tokio::test(start_paused = true)]
    async fn few_closes_over_a_long_time_are_not_enough() {
        let mut suspicion = Suspicion::default();
        for times in 0..ISOLATE_AFTER + CLOSES - 1 {
            assert_eq!(suspicion.closed(7, true), None, "{times}");
            sleep(Duration::from_mins(10)).await;
        }
        assert!(suspicion.closed(7, true).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_without_an_event_resets_the_count() {
        let mut suspicion = Suspicion::default();
        let ends = async |suspicion: &mut Suspicion, seq, count| {
            let mut last = None;
            for _ in 0..count {
                sleep(Duration::from_secs(20)).await;
                last = suspicion.closed(seq, true);
            }
            last
        };
        assert_eq!(ends(&mut suspicion, 7, 6).await, None);
        suspicion.excused();
        assert_eq!(ends(&mut suspicion, 7, 4).await, None);
        assert_eq!(ends(&mut suspicion, 8, 6).await, None);
        assert!(ends(&mut suspicion, 8, 1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_three_events_in_a_row_can_be_blamed() {
        let mut suspicion = Suspicion::default();
        for seq in 1..=10 {
            let mut found = None;
            for _ in 0..20 {
                sleep(Duration::from_secs(20)).await;
                found = found.or(suspicion.closed(seq, true));
            }
            assert_eq!(found.is_some(), seq <= u64::from(IN_A_ROW), "{seq}");
            if found.is_some() {
                suspicion.blamed();
            }
        }
        suspicion.accepted(100);
        let mut found = None;
        for _ in 0..20 {
            sleep(Duration::from_secs(20)).await;
            found = found.or(suspicion.closed(101, true));
        }
        assert!(found.is_some());
    }
}
