//! Which event ends the connection again and again.
//!
//! Some brokers end the connection at an event that they do not like, and say no more. Such an event would
//! hold up all others for ever, so it is refused at last; but a broker that is being restarted, or that
//! hangs, is no reason. So only an event that was alone in flight can be to blame, only for an end by the
//! broker, and only when that has gone on for [`SPAN`] at this very event.
//!
//! The one thing to know: a broker may end the connection at every event (a plugin of it fails, all of an
//! access list is gone). So without an accepted event in between, each event that is to be blamed needs
//! twice the time of the one before.

use std::time::Duration;

use super::lost::Why;
use crate::base::{clock::Moment, event::Seq};

/// Ends of the connection at one event before it is to blame.
const ENDS: u32 = 5;

/// The time between the first of them and the last.
const SPAN: Duration = Duration::from_mins(1);

/// The longest that this time becomes.
const LONGEST_SPAN: Duration = Duration::from_hours(1);

/// What is known against an event.
#[derive(Debug)]
struct Suspect {
    seq: Seq,
    ends: u32,
    first: Moment,
    last: Moment,
    /// The words of the last end.
    words: String,
    /// The broker has said that it will never take it.
    said: bool,
}

/// The event that may be to blame, if there is one.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    suspect: Option<Suspect>,
    /// Events blamed since one was accepted.
    blamed: u32,
}

impl Suspicion {
    /// The connection ended while `seq` was alone in flight.
    pub(super) fn ended(&mut self, seq: Seq, why: Why, words: &str, now: Moment) {
        match why {
            Why::Closed | Why::Event => {}
            // Says nothing, for or against it.
            Why::TakenOver | Why::Busy | Why::Denied => return,
            // No answer, no network: what was against it may have been that as well.
            Why::Down => {
                self.suspect = None;
                return;
            }
        }
        let suspect = match &mut self.suspect {
            Some(suspect) if suspect.seq == seq => suspect,
            other => other.insert(Suspect {
                seq,
                ends: 0,
                first: now,
                last: now,
                words: String::new(),
                said: false,
            }),
        };
        suspect.ends = suspect.ends.saturating_add(1);
        suspect.last = now;
        suspect.said |= why == Why::Event;
        words.clone_into(&mut suspect.words);
    }

    /// How often the connection ended at this event, alone in flight.
    pub(super) fn ends(&self, seq: Seq) -> u32 {
        self.suspect.as_ref().filter(|suspect| suspect.seq == seq).map_or(0, |suspect| suspect.ends)
    }

    /// Why an event is to be refused, if it is.
    pub(super) fn against(&self, seq: Seq) -> Option<String> {
        let suspect = self.suspect.as_ref().filter(|suspect| suspect.seq == seq)?;
        if suspect.said {
            return Some(suspect.words.clone());
        }
        let span = suspect.last.since(suspect.first);
        (suspect.ends >= ENDS && span >= self.needed()).then(|| {
            format!(
                "the broker ended the connection {} times within {} s, each time with this event alone \
                 in flight; the last time: {}",
                suspect.ends,
                span.as_secs(),
                suspect.words
            )
        })
    }

    /// The time that it takes to blame the next.
    fn needed(&self) -> Duration {
        SPAN.saturating_mul(2_u32.saturating_pow(self.blamed)).min(LONGEST_SPAN)
    }

    /// An event was refused for what [`Suspicion::against`] says.
    pub(super) fn blame(&mut self) {
        // What the broker has said itself is no guess.
        if self.suspect.take().is_some_and(|suspect| !suspect.said) {
            self.blamed = self.blamed.saturating_add(1);
        }
    }

    /// The broker has accepted an event.
    pub(super) fn accepted(&mut self) {
        self.blamed = 0;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    async fn ended(suspicion: &mut Suspicion, seq: Seq, why: Why, times: u32, apart: Duration) {
        for _ in 0..times {
            suspicion.ended(seq, why, "closed", Moment::now());
            advance(apart).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_ends_at_one_event_over_a_minute_are_to_its_blame() {
        let mut suspicion = Suspicion::default();
        // Often, and in a short time.
        ended(&mut suspicion, 1, Why::Closed, 50, Duration::from_millis(500)).await;
        assert_eq!(suspicion.against(1), None);
        // For long, and seldom.
        ended(&mut suspicion, 2, Why::Closed, 4, Duration::from_mins(5)).await;
        assert_eq!(suspicion.against(2), None);
        ended(&mut suspicion, 2, Why::Closed, 1, Duration::ZERO).await;
        let reason = suspicion.against(2).unwrap();
        assert!(reason.contains("5 times within 1200 s"), "{reason}");
        assert_eq!(suspicion.against(1), None, "another has come in between");
        // A hung broker in between begins it anew.
        ended(&mut suspicion, 2, Why::Down, 1, Duration::ZERO).await;
        assert_eq!(suspicion.against(2), None);
        for why in [Why::TakenOver, Why::Busy, Why::Denied, Why::Down] {
            ended(&mut suspicion, 3, why, 50, Duration::from_mins(5)).await;
            assert_eq!(suspicion.against(3), None, "{why:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_broker_says_of_the_event_itself_needs_no_repetition() {
        let mut suspicion = Suspicion::default();
        suspicion.ended(1, Why::Event, "packet too large", Moment::now());
        assert_eq!(suspicion.against(1).as_deref(), Some("packet too large"));
        suspicion.blame();
        assert_eq!((suspicion.against(1), suspicion.needed()), (None, SPAN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_ends_it_at_every_event_is_blamed_itself() {
        let mut suspicion = Suspicion::default();
        let mut refused = 0;
        let mut seq = 1;
        // Ten hours of it.
        for _ in 0..10 * 60 * 6 {
            ended(&mut suspicion, seq, Why::Closed, 1, Duration::from_secs(10)).await;
            if suspicion.against(seq).is_some() {
                suspicion.blame();
                (refused, seq) = (refused + 1, seq + 1);
            }
        }
        assert!(refused <= 16, "{refused}");
        suspicion.accepted();
        ended(&mut suspicion, seq + 1, Why::Closed, 8, Duration::from_secs(10)).await;
        assert!(suspicion.against(seq + 1).is_some());
    }
}
