//! The pace of commands to the gateway.
//!
//! Published (newer documents, FAQ): one command per 100 ms, bursts of up to 100 in 10 s. The relay
//! sends at most [`IN_A_SECOND`] in any second, so that a few subscriptions are asked for at once and
//! no ten seconds ever hold more than a hundred.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Commands in any one [`SECOND`].
pub(super) const IN_A_SECOND: usize = 10;

/// A second and a little more, for the two clocks and the network in between.
pub(super) const SECOND: Duration = Duration::from_millis(1_020);

/// When commands were sent, and when the next may be.
#[derive(Debug, Default)]
pub(super) struct Pace {
    lately: VecDeque<Instant>,
    paused_until: Option<Instant>,
}

impl Pace {
    /// When the next command may be sent: now, or later.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        let free = match self.lately.front() {
            Some(first) if self.lately.len() >= IN_A_SECOND => *first + SECOND,
            Some(_) | None => now,
        };
        free.max(self.paused_until.unwrap_or(now)).max(now)
    }

    /// A command is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        self.lately.push_back(now);
        if self.lately.len() > IN_A_SECOND {
            self.lately.pop_front();
        }
    }

    /// Nothing more until then.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_window_holds_more_than_it_may() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let mut now = start;
        let mut sent = Vec::new();
        for _ in 0..500 {
            now = pace.ready_at(now);
            pace.sent(now);
            sent.push(now);
        }
        for (window, most) in [(Duration::from_secs(1), 10), (Duration::from_secs(10), 100)] {
            for (index, first) in sent.iter().enumerate() {
                let inside = sent[index..].iter().take_while(|at| **at < *first + window).count();
                assert!(inside <= most, "{inside} in {window:?}");
            }
        }
        let last = *sent.last().unwrap() - start;
        assert!(last < Duration::from_secs(52), "500 commands take {last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_kept() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        pace.pause(later);
        assert_eq!(pace.ready_at(now), later);
        assert_eq!(pace.ready_at(later), later);
    }
}
