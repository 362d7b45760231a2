//! When the next connection may be tried. Decides, and waits for nothing.
//!
//! Three rules, the longest wait wins: exponential backoff with full jitter, which starts afresh only
//! after a connection has proved itself; a budget of attempts in the long run, whatever the server
//! does; and what the server asks for in `Retry-After`, plus the jitter, so that clients that were
//! disconnected together do not come back together.
//!
//! Every attempt takes from the budget, also one that succeeds, and one that the server asks for with
//! `reconnect`. A connection that lived long gives its attempt back.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::backoff::Backoff;

/// The ceiling of the first wait: a link that was lost is back within two seconds.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Attempts in quick succession before the hourly budget counts: enough for a bad evening, few
/// enough to do no harm.
const WARM_UP: u32 = 30;

/// One attempt in this time, in the long run: less than sixty an hour, whatever the server does.
const BUDGET: Duration = Duration::from_secs(61);

/// A connection that lived this long gives its attempt back.
const MIN_LIFETIME: Duration = Duration::from_mins(1);

/// A server may ask for a long wait, but not for ever.
const LONGEST: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub(super) struct ReconnectPolicy {
    backoff: Backoff,
    /// When the budget would be full again.
    budget_refilled_at: Option<Instant>,
    /// The server asked for no attempt before.
    not_before: Option<Instant>,
}

impl ReconnectPolicy {
    /// With `longest` as the ceiling of the backoff.
    pub(super) fn new(longest: Duration) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, longest);
        Self { backoff, budget_refilled_at: None, not_before: None }
    }

    /// A connection is attempted now, or as soon as its wait is over: one that is given up before counts all
    /// the same, and not as one of later.
    pub(super) fn attempted(&mut self, now: Instant) {
        self.budget_refilled_at =
            Some(self.budget_refilled_at.map_or(now, |at| at.max(now)) + BUDGET);
    }

    /// A connection has ended that had proved itself, or not, and lived for so long.
    pub(super) fn ended(&mut self, proven: bool, lived: Duration) {
        if proven {
            self.backoff.reset();
        }
        self.lived(lived);
    }

    /// A handover is complete, from a connection that lived for so long.
    pub(super) fn handed_over(&mut self, lived: Duration) {
        self.backoff.reset();
        self.lived(lived);
    }

    fn lived(&mut self, lived: Duration) {
        if lived >= MIN_LIFETIME {
            self.budget_refilled_at = self.budget_refilled_at.and_then(|at| at.checked_sub(BUDGET));
        }
    }

    /// The server asks for so much time, from whichever attempt it refused.
    pub(super) fn asked(&mut self, now: Instant, asked: Option<Duration>) {
        let until = asked.map(|asked| now + asked.min(LONGEST));
        self.not_before = self.not_before.max(until);
    }

    /// How long to wait before the next attempt.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let backoff = self.backoff.wait();
        let asked = self.not_before.filter(|at| *at > now).map(|at| at - now + backoff);
        backoff.max(asked.unwrap_or_default()).max(self.over_budget(now))
    }

    /// How long the budget alone demands to wait.
    pub(super) fn over_budget(&self, now: Instant) -> Duration {
        let until_refilled =
            self.budget_refilled_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        until_refilled.saturating_sub(BUDGET * (WARM_UP - 1))
    }

    /// Waits since a connection last worked.
    pub(super) fn attempts(&self) -> u32 {
        self.backoff.attempts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const HOUR: Duration = Duration::from_hours(1);

    /// Lets connections live for `lived` and then be lost, for a day; counts the attempts of each hour.
    fn attempts(proven: bool, lived: Duration, asked: Option<Duration>) -> [u32; 24] {
        let start = Instant::now();
        let mut policy = ReconnectPolicy::new(MINUTE);
        let mut now = start;
        let mut hours = [0; 24];
        loop {
            let hour = (now - start).as_secs() / HOUR.as_secs();
            let Some(count) = hours.get_mut(usize::try_from(hour).unwrap()) else { return hours };
            *count += 1;
            policy.attempted(now);
            now += lived;
            policy.ended(proven, lived);
            policy.asked(now, asked);
            let wait = policy.wait(now);
            assert!(wait <= 2 * MINUTE, "it never gives up");
            now += wait;
        }
    }

    #[test]
    fn no_server_sees_more_than_sixty_connections_an_hour() {
        let second = Duration::from_secs(1);
        for proven in [true, false] {
            for lived in [Duration::ZERO, second, 10 * second, 50 * second] {
                let hours = attempts(proven, lived, None);
                let after_warm_up = hours.iter().sum::<u32>().saturating_sub(WARM_UP);
                assert!(after_warm_up <= 24 * 60, "{hours:?}: {proven} {lived:?}");
                assert!(hours[23] <= 60, "{hours:?}: {proven} {lived:?}");
                assert!(hours[23] >= 25, "{hours:?}: it goes on trying");
            }
        }
    }

    #[test]
    fn a_connection_that_lived_does_not_count() {
        let hours = attempts(true, MIN_LIFETIME, None);
        assert!(hours.iter().all(|count| *count >= 58), "back within a second: {hours:?}");
    }

    #[test]
    fn a_lost_link_is_back_at_once_and_one_that_never_worked_is_not() {
        let now = Instant::now();
        let mut policy = ReconnectPolicy::new(MINUTE);
        let mut longest = Duration::ZERO;
        for _ in 0..WARM_UP {
            policy.attempted(now);
            policy.ended(true, Duration::from_secs(5));
            assert!(policy.backoff.attempts() == 0);
            let over = policy.over_budget(now);
            let wait = policy.wait(now);
            assert!(wait <= FIRST_WAIT.max(over));
            longest = longest.max(over);
        }
        assert!(
            longest > Duration::ZERO && longest <= BUDGET,
            "the budget is used up: {longest:?}"
        );
        policy.ended(false, Duration::ZERO);
        assert_eq!(policy.attempts(), 1);
    }

    #[test]
    fn a_server_is_given_the_time_that_it_asks_for() {
        let asked = Duration::from_secs(2);
        let now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..200 {
            let mut policy = ReconnectPolicy::new(MINUTE);
            policy.attempted(now);
            policy.asked(now, Some(asked));
            waits.push(policy.wait(now));
        }
        assert!(waits.iter().all(|wait| *wait >= asked && *wait <= asked + FIRST_WAIT));
        let early = waits.iter().filter(|wait| **wait < asked + FIRST_WAIT / 2).count();
        assert!((50..150).contains(&early), "they are spread: {early}");
        let mut policy = ReconnectPolicy::new(MINUTE);
        policy.asked(now, Some(Duration::MAX));
        assert!(policy.wait(now) <= LONGEST + FIRST_WAIT);
    }

    #[test]
    fn what_a_server_asked_for_is_not_forgotten_with_the_attempt_that_it_refused() {
        let (now, asked) = (Instant::now(), Duration::from_secs(20));
        let mut policy = ReconnectPolicy::new(MINUTE);
        policy.asked(now, Some(asked));
        policy.ended(true, Duration::from_secs(5));
        policy.asked(now, None);
        assert!(policy.wait(now + asked / 2) >= asked / 2);
        policy.ended(true, Duration::from_secs(5));
        assert!(policy.wait(now + 2 * asked) <= FIRST_WAIT, "it is over");
    }

    #[test]
    fn a_server_that_sends_us_round_is_followed_as_often_as_the_budget_allows() {
        let mut policy = ReconnectPolicy::new(MINUTE);
        let (start, lived) = (Instant::now(), Duration::from_millis(300));
        let (mut now, mut moves) = (start, 0);
        while now < start + HOUR {
            now += policy.over_budget(now);
            policy.attempted(now);
            now += lived;
            policy.handed_over(lived);
            moves += 1;
        }
        assert!(moves <= WARM_UP + 60, "{moves}");
        policy.handed_over(MIN_LIFETIME);
        assert!(policy.over_budget(now) < BUDGET, "one that lived gives its attempt back");
    }
}
