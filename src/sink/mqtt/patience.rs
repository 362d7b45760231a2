//! Keeps two clients with one client id from taking turns for ever.
//!
//! A broker has one connection to a client id: a second ends the first. When both connect again at once,
//! they do so several times a second. MQTT 5 has a reason code for it (0x8E); brokers of 3.1.1, and some of
//! 5, only end the connection, so that there it is a guess, made when several in a row end soon.
//!
//! The one thing to know: that a connection comes to stand proves nothing, for the other one's stood too.
//! What proves that we are alone is that it stays for [`PROVEN`].

use std::time::Duration;

use super::lost::{Why, taken_over};
use crate::base::clock::Moment;

/// A connection that lives so long has no rival.
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
pub(super) struct Patience {
    /// When the connection was made that stands, or ended last.
    since: Option<Moment>,
    /// Ends in a row that a rival may have caused.
    ends: u32,
    /// The broker has said that there is one.
    named: bool,
    /// Nothing is connected to until so long after this moment.
    rest: Option<(Moment, Duration)>,
}

impl Patience {
    /// There is a connection.
    pub(super) fn connected(&mut self, now: Moment) {
        self.since = Some(now);
        self.rest = None;
    }

    /// The connection was lost.
    pub(super) fn ended(&mut self, why: Why, now: Moment) {
        let Some(since) = self.since.take() else { return };
        let lived = now.since(since);
        if lived >= PROVEN {
            (self.ends, self.named) = (0, false);
        }
        match why {
            Why::TakenOver => self.named = true,
            Why::Closed if lived < SHORT => {}
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
        self.rest = Some((now, wait));
    }

    fn is_suspected(&self) -> bool {
        (self.named && self.ends > 0) || self.ends >= GUESS_AFTER
    }

    /// How long to wait before the next connection.
    pub(super) fn wait(&self, now: Moment) -> Option<Duration> {
        let (from, wait) = self.rest?;
        wait.checked_sub(now.since(from)).filter(|left| !left.is_zero())
    }

    /// What an operator should know, while there seems to be a rival. A connection that has lasted lets it
    /// be forgotten.
    pub(super) fn remark(&self, client_id: &str, now: Moment) -> Option<String> {
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
    async fn an_hour(why: Why, lives: Duration) -> u32 {
        let (mut patience, begun, mut connections) = (Patience::default(), Moment::now(), 0);
        while begun.elapsed() < Duration::from_hours(1) {
            connections += 1;
            patience.connected(Moment::now());
            advance(lives).await;
            patience.ended(why, Moment::now());
            advance(patience.wait(Moment::now()).unwrap_or(Duration::from_millis(200))).await;
        }
        connections
    }

    #[tokio::test(start_paused = true)]
    async fn two_with_one_name_take_turns_rarely() {
        assert!(an_hour(Why::TakenOver, Duration::from_millis(10)).await <= 90);
        assert!(an_hour(Why::Closed, Duration::from_millis(10)).await <= 180);
        // No rival ends it like this.
        let lives = Duration::from_secs(1);
        assert!(an_hour(Why::Down, lives).await > 2900);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rival_is_named_until_a_connection_lasts() {
        let mut patience = Patience::default();
        for (round, guessed) in [(1, false), (2, false), (3, true)] {
            patience.connected(Moment::now());
            patience.ended(Why::Closed, Moment::now());
            let remark = patience.remark("me", Moment::now());
            assert_eq!(remark.is_some(), guessed, "{round}");
            assert_eq!(patience.wait(Moment::now()).is_some(), guessed, "{round}");
            assert!(remark.is_none_or(|remark| remark.contains("perhaps another client uses")));
        }
        patience.connected(Moment::now());
        patience.ended(Why::TakenOver, Moment::now());
        let remark = patience.remark("me", Moment::now()).unwrap();
        assert!(remark.starts_with("another client uses the client id me"), "{remark}");
        patience.connected(Moment::now());
        assert!(patience.remark("me", Moment::now()).is_some());
        advance(PROVEN).await;
        assert_eq!(patience.remark("me", Moment::now()), None);
        patience.ended(Why::Closed, Moment::now());
        assert_eq!((patience.ends, patience.wait(Moment::now())), (0, None));
    }
}
