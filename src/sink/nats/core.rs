//! Core NATS: nobody acknowledges an event, so the relay asks itself whether the server has processed it.
//!
//! A ping is a message to ourselves: the server reads a connection in order, so when it comes back, all
//! that was sent before it has been processed. The next events go out meanwhile.
//!
//! A refusal reaches us by another way than the ping behind it. It has certainly come when a second ping is
//! back that was sent after the first had come; so the first events to a subject wait for that one.

use std::collections::VecDeque;

/// Pings on their way at once: while one batch is processed, the next is already there.
const MAX_PINGS: usize = 2;

/// How far the server has come.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    pings: VecDeque<Ping>,
    number: u64,
    /// It has processed the events before this number,
    pub(super) processed: u64,
    /// and what it has refused of those before this one is known.
    pub(super) confirmed: u64,
}

#[derive(Debug)]
struct Ping {
    number: u64,
    /// The events before this number were sent before it.
    through: u64,
    confirms: u64,
}

impl Barrier {
    /// The number of the ping that is to be sent now, when events of these numbers are out.
    pub(super) fn due(&self, out: &std::ops::Range<u64>) -> Option<u64> {
        let is_due = match self.pings.back() {
            None => !out.is_empty(),
            Some(last) => self.pings.len() < MAX_PINGS && last.through < out.end,
        };
        is_due.then_some(self.number + 1)
    }

    /// It is sent, behind the events before `through`.
    pub(super) fn sent(&mut self, through: u64) {
        self.number += 1;
        self.pings.push_back(Ping { number: self.number, through, confirms: self.processed });
    }

    /// It is back. One that was given up is not known here.
    pub(super) fn returned(&mut self, number: u64) {
        if let Some(ping) = self.pings.pop_front_if(|ping| ping.number == number) {
            self.processed = ping.through;
            self.confirmed = self.confirmed.max(ping.confirms);
        }
    }

    /// The events that are out are given up.
    pub(super) fn clear(&mut self) {
        self.pings.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_confirmed_by_a_ping_that_was_sent_after_they_were_processed() {
        let mut barrier = Barrier::default();
        assert_eq!(barrier.due(&(0..0)), None);
        assert_eq!(barrier.due(&(0..10)), Some(1));
        barrier.sent(10);
        assert_eq!(barrier.due(&(0..10)), None);
        assert_eq!(barrier.due(&(0..20)), Some(2));
        barrier.sent(20);
        assert_eq!(barrier.due(&(0..30)), None, "two are out");
        barrier.returned(1);
        assert_eq!((barrier.processed, barrier.confirmed), (10, 0));
        barrier.sent(30);
        barrier.returned(2);
        assert_eq!((barrier.processed, barrier.confirmed), (20, 0));
        barrier.returned(3);
        assert_eq!((barrier.processed, barrier.confirmed), (30, 10));
        assert_eq!(barrier.due(&(10..30)), Some(4), "the rest is not confirmed");
    }

    #[test]
    fn a_ping_that_was_given_up_says_nothing() {
        let mut barrier = Barrier::default();
        barrier.sent(10);
        barrier.clear();
        barrier.sent(20);
        barrier.returned(1);
        assert_eq!(barrier.processed, 0);
        barrier.returned(2);
        assert_eq!(barrier.processed, 20);
    }
}
