//! Keeps two clients with one client id from taking turns for ever.
//!
//! A broker has one connection to a client id: a second ends the first. When both connect again at once,
//! they do so several times a second. MQTT 5 has a reason code for it (0x8E); brokers of 3.1.1, and some of
//! 5, only end the connection, so that there it is a guess, made when several in a row end soon.
//!
//! That a connection was made proves nothing, for the other one's was made too. What proves that we are
//! alone is that it lasts for [`PROVEN`].

use std::time::Duration;

use super::lost::{Why, taken_over};
use crate::{
    base::{clock::Moment, event::Seq},
    sink::{Cause, Failure},
};

/// A connection that lasts so long has no rival.
const PROVEN: Duration = Duration::from_mins(5);

/// A connection that the broker ends sooner may have a rival.
const SHORT: Duration = Duration::from_secs(90);

/// So many short ones in a row make the guess.
const GUESS_AFTER: u32 = 3;

/// The first wait before the next connection.
const FIRST: Duration = Duration::from_secs(5);

/// The longest where the broker names the rival, and where it is a guess.
const LONGEST: (Duration, Duration) = (Duration::from_mins(1), Duration::from_secs(30));

/// What is known of a rival.
#[derive(Debug, Default)]
pub(crate) struct TakeoverGuard {
    /// When the present connection was made, or the last one that ended.
    since: Option<Moment>,
    /// Ends in a row that a rival may have caused.
    ends: u32,
    /// The broker has reported one.
    named: bool,
    /// The next connection waits until so long after this moment.
    wait: Option<(Moment, Duration)>,
    /// The oldest event in flight when a connection last ended.
    ended_at: Option<Seq>,
}

impl TakeoverGuard {
    pub(crate) fn connected(&mut self, now: Moment) {
        self.since = Some(now);
        self.wait = None;
    }

    /// The connection was lost, with this as the oldest event in flight.
    pub(crate) fn ended(&mut self, why: Why, oldest: Option<Seq>, now: Moment) {
        let Some(since) = self.since.take() else { return };
        let lived = now.since(since);
        if lived >= PROVEN {
            (self.ends, self.named) = (0, false);
        }
        // An event at which it ended before is reason enough; a rival would not wait for it.
        let same_event = oldest.is_some() && oldest == self.ended_at;
        self.ended_at = oldest;
        match why {
            Why::TakenOver => self.named = true,
            Why::Closed if lived < SHORT && !same_event => {}
            _ => return,
        }
        self.ends = self.ends.saturating_add(1);
        if !self.is_suspected() {
            return;
        }
        let before = if self.named { 1 } else { GUESS_AFTER };
        let longest = if self.named { LONGEST.0 } else { LONGEST.1 };
        let doubled = FIRST.saturating_mul(2_u32.saturating_pow(self.ends.saturating_sub(before)));
        // Not as long as the other one, if that is a relay too.
        let wait = doubled.min(longest).mul_f64(0.75 + fastrand::f64() / 4.0);
        self.wait = Some((now, wait));
    }

    fn is_suspected(&self) -> bool {
        (self.named && self.ends > 0) || self.ends >= GUESS_AFTER
    }

    /// Whether the next connection may be made now.
    pub(crate) fn check(&self, client_id: &str, now: Moment) -> Result<(), Failure> {
        match (self.remaining(now), self.fact(client_id, now)) {
            (Some(wait), Some(reason)) => Err(Cause::Busy { wait: Some(wait), reason }.into()),
            _ => Ok(()),
        }
    }

    fn remaining(&self, now: Moment) -> Option<Duration> {
        let (from, wait) = self.wait?;
        wait.checked_sub(now.since(from)).filter(|left| !left.is_zero())
    }

    /// What an operator should know, while there seems to be a rival; no longer when a connection has
    /// lasted.
    pub(crate) fn fact(&self, client_id: &str, now: Moment) -> Option<String> {
        let lasts = self.since.is_some_and(|since| now.since(since) >= PROVEN);
        (self.is_suspected() && !lasts).then(|| {
            let rival = taken_over(client_id);
            if self.named {
                rival
            } else {
                format!(
                    "the broker ended the last {} connections soon after they were made, without a \
                     reason: perhaps {rival}",
                    self.ends
                )
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Connections in an hour of which each lives for `lives`.
    async fn connections_in_an_hour(why: Why, lives: Duration) -> u32 {
        let (mut guard, begun, mut connections) = (TakeoverGuard::default(), Moment::now(), 0);
        while begun.elapsed() < Duration::from_hours(1) {
            connections += 1;
            guard.connected(Moment::now());
            advance(lives).await;
            guard.ended(why, None, Moment::now());
            advance(guard.remaining(Moment::now()).unwrap_or(Duration::from_millis(200))).await;
        }
        connections
    }

    #[tokio::test(start_paused = true)]
    async fn two_clients_with_one_id_take_turns_rarely() {
        assert!(connections_in_an_hour(Why::TakenOver, Duration::from_millis(10)).await <= 90);
        assert!(connections_in_an_hour(Why::Closed, Duration::from_millis(10)).await <= 180);
        // No rival ends it like this.
        let lives = Duration::from_secs(1);
        assert!(connections_in_an_hour(Why::Down, lives).await > 2900);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rival_is_reported_until_a_connection_lasts() {
        let mut guard = TakeoverGuard::default();
        for (round, guessed) in [(1, false), (2, false), (3, true)] {
            guard.connected(Moment::now());
            guard.ended(Why::Closed, None, Moment::now());
            let fact = guard.fact("me", Moment::now());
            assert_eq!(fact.is_some(), guessed, "{round}");
            assert_eq!(guard.check("me", Moment::now()).is_err(), guessed, "{round}");
            assert!(fact.is_none_or(|fact| fact.contains("perhaps another client uses")));
        }
        guard.connected(Moment::now());
        guard.ended(Why::TakenOver, None, Moment::now());
        let fact = guard.fact("me", Moment::now()).unwrap();
        assert!(fact.starts_with("another client uses the client id me"), "{fact}");
        guard.connected(Moment::now());
        assert!(guard.fact("me", Moment::now()).is_some());
        advance(PROVEN).await;
        assert_eq!(guard.fact("me", Moment::now()), None);
        guard.ended(Why::Closed, None, Moment::now());
        assert_eq!((guard.ends, guard.remaining(Moment::now())), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_at_which_every_connection_ends_is_no_rival() {
        let mut guard = TakeoverGuard::default();
        for _ in 0..10 {
            guard.connected(Moment::now());
            guard.ended(Why::Closed, Some(7), Moment::now());
            assert!(guard.check("me", Moment::now()).is_ok());
        }
    }
}
