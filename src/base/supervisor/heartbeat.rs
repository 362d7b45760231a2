//! The heartbeat of a task: that it is polled.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use super::Work;

/// Turns without a heartbeat after which a task does not respond. They are counted, not measured: a
/// process that was stopped and goes on has not turned meanwhile.
pub(super) const HUNG: u32 = 30;

#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    polls: Polls,
    seen: u64,
    /// For so many turns it has been what it was.
    still: u32,
}

/// Grows when a poll begins and when it ends: it is odd in a poll, and while the task is made.
#[derive(Debug, Clone, Default)]
pub(super) struct Polls(Arc<AtomicU64>);

impl Polls {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Heartbeat {
    /// Of a task that is being made: as in a poll.
    pub(super) fn while_made() -> (Self, Polls) {
        let polls = Polls(Arc::new(AtomicU64::new(1)));
        (Self { polls: polls.clone(), seen: 1, still: 0 }, polls)
    }

    #[cfg(test)]
    pub(super) fn polls(&self) -> u64 {
        self.polls.0.load(Ordering::Relaxed)
    }

    pub(super) fn in_poll(&self) -> bool {
        !self.seen.is_multiple_of(2)
    }

    /// Called once in a turn. `true`: from this turn on the task does not respond, in a poll or in none.
    pub(super) fn stopped(&mut self, may_rest: bool) -> bool {
        let now = self.polls.0.load(Ordering::Relaxed);
        if now != self.seen || (may_rest && now.is_multiple_of(2)) {
            self.seen = now;
            self.still = 0;
            return false;
        }
        self.still = self.still.saturating_add(1);
        self.still == HUNG
    }

    pub(super) fn beats(&self) -> bool {
        self.still < HUNG
    }
}

/// A task whose polls are counted.
pub(super) struct Polled {
    pub(super) work: Work,
    pub(super) polls: Polls,
}

impl Future for Polled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.polls.count();
        let outcome = self.work.as_mut().poll(context);
        self.polls.count();
        outcome
    }
}
