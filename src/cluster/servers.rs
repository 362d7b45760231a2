//! Which NATS server a member uses, and when it leaves one.
//!
//! A server that is cut off from the others keeps its clients and answers their pings, while nothing of what the
//! cluster keeps can be read or written through it.

use std::time::Duration;

use async_nats::{Server, ServerAddr};
use tokio::time::Instant;

/// How long a server may do nothing of what it is asked. Servers that choose a leader take less.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest time between two changes, where no other server does it either.
const LONGEST: Duration = Duration::from_mins(2);

/// The server that is connected to, or tried.
#[derive(Debug, Default)]
pub(super) struct Choice {
    last: Option<ServerAddr>,
    is_left: bool,
}

impl Choice {
    /// The last one is to be left for another.
    pub(super) fn leave(&mut self) {
        self.is_left = true;
    }

    /// The next one to try: one of those that failed least, and another than the last one if that is to be left.
    pub(super) fn next(&mut self, mut servers: Vec<Server>) -> Option<ServerAddr> {
        fastrand::shuffle(&mut servers);
        let left = if std::mem::take(&mut self.is_left) { self.last.take() } else { None };
        let order = |server: &Server| (Some(&server.addr) == left.as_ref(), server.failed_attempts);
        self.last = servers.into_iter().min_by_key(order).map(|server| server.addr);
        self.last.clone()
    }
}

/// Since when requests fail at servers that are reached.
#[derive(Debug, Default)]
pub(super) struct Failing {
    since: Option<Instant>,
    changes: u32,
}

impl Failing {
    /// A request failed; whether another server is to be tried now.
    pub(super) fn failed(&mut self, is_reached: bool) -> bool {
        if !is_reached {
            // The client library tries all of them.
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let patience = PATIENCE.saturating_mul(2_u32.saturating_pow(self.changes)).min(LONGEST);
        if since.elapsed() < patience {
            return false;
        }
        self.since = None;
        self.changes = self.changes.saturating_add(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn server(port: u16, failed_attempts: usize) -> Server {
        Server {
            addr: format!("nats://host:{port}").parse().unwrap(),
            failed_attempts,
            did_connect: true,
            is_discovered: false,
            last_error: None,
        }
    }

    #[test]
    fn a_server_that_is_left_is_tried_last() {
        let mut choice = Choice::default();
        for _ in 0..20 {
            let first = choice.next(vec![server(1, 0), server(2, 1)]);
            assert_eq!(first.map(|addr| addr.port()), Some(1), "it failed less often");
            choice.leave();
            let next = choice.next(vec![server(1, 0), server(2, 1)]);
            assert_eq!(next.map(|addr| addr.port()), Some(2));
        }
        choice.leave();
        let only = choice.next(vec![server(2, 0)]);
        assert_eq!(only.map(|addr| addr.port()), Some(2), "there is no other");
        assert_eq!(choice.next(Vec::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_left_when_it_has_failed_for_long_and_later_ones_are_given_more_time() {
        let mut failing = Failing::default();
        for patience in [10, 20, 40, 80, 120, 120] {
            assert!(!failing.failed(true));
            advance(Duration::from_secs(patience - 1)).await;
            assert!(!failing.failed(true), "{patience}");
            advance(Duration::from_secs(1)).await;
            assert!(failing.failed(true), "{patience}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_no_server_is_reached_none_is_left() {
        let mut failing = Failing::default();
        assert!(!failing.failed(true));
        advance(PATIENCE).await;
        assert!(!failing.failed(false));
        assert!(!failing.failed(true), "this one has only begun to fail");
    }
}
