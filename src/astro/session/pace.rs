//! The pace of commands to the gateway.
//!
//! Published (newer documents, FAQ): one command per 100 ms, bursts of up to 100 in 10 s. So the relay sends
//! up to [`BURST`] at once, and never more in any ten seconds: whoever connects again misses what is published
//! until its subscriptions stand. A gateway that says "too fast" all the same gets ten a second from then on.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Commands in any one [`WINDOW`].
pub(super) const BURST: usize = 100;

/// Ten seconds and a little more, for the two clocks and the network in between.
pub(super) const WINDOW: Duration = Duration::from_millis(10_200);

/// Commands in any one [`SECOND`] to a gateway that takes no burst.
const IN_A_SECOND: usize = 10;

/// A second and a little more.
const SECOND: Duration = Duration::from_millis(1_020);

/// When commands were sent, and when the next may be.
#[derive(Debug, Default)]
pub(super) struct Pace {
    lately: VecDeque<Instant>,
    /// The gateway has said that commands came too fast, and wanted no more until then.
    paused_until: Option<Instant>,
}

impl Pace {
    /// When the next command may be sent: now, or later.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        let mut free = self.free_at(BURST, WINDOW).unwrap_or(now).max(now);
        if let Some(until) = self.paused_until {
            free = free.max(until).max(self.free_at(IN_A_SECOND, SECOND).unwrap_or(now));
        }
        free
    }

    /// When a window that holds so many has room for one more; `None`: it has.
    fn free_at(&self, most: usize, window: Duration) -> Option<Instant> {
        let oldest = self.lately.len().checked_sub(most)?;
        self.lately.get(oldest).map(|sent| *sent + window)
    }

    /// A command is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        self.lately.push_back(now);
        if self.lately.len() > BURST {
            self.lately.pop_front();
        }
    }

    /// The gateway wants no more until then, and no bursts after it.
    pub(super) fn too_fast(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When commands are sent from `now` on.
    fn sent(pace: &mut Pace, mut now: Instant, count: usize) -> Vec<Instant> {
        let send = |_| {
            now = pace.ready_at(now);
            pace.sent(now);
            now
        };
        (0..count).map(send).collect()
    }

    fn most_in(sent: &[Instant], window: Duration) -> usize {
        let from = |index: usize| {
            let inside = sent[index..].iter().take_while(|at| **at < sent[index] + window);
            inside.count()
        };
        (0..sent.len()).map(from).max().unwrap_or(0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_go_at_once_and_no_ten_seconds_hold_more() {
        let start = Instant::now();
        let sent = sent(&mut Pace::default(), start, 500);
        assert_eq!(sent[BURST - 1], start);
        assert_eq!(most_in(&sent, Duration::from_secs(10)), BURST);
        let last = *sent.last().unwrap() - start;
        assert!(last < Duration::from_secs(42), "500 commands take {last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_takes_no_burst_gets_ten_a_second() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let first = sent(&mut pace, now, 30);
        let later = now + Duration::from_secs(5);
        pace.too_fast(later);
        assert_eq!(pace.ready_at(now), later);
        let then = sent(&mut pace, now, 300);
        assert_eq!(then[0], later);
        assert_eq!(most_in(&then, Duration::from_secs(1)), IN_A_SECOND);
        let all: Vec<_> = first.into_iter().chain(then).collect();
        assert!(most_in(&all, Duration::from_secs(10)) <= BURST);
    }
}
