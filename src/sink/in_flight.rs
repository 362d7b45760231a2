//! What is in flight, in order, where the destination answers each event by itself.
//!
//! Each event gets a number when it is sent, by which its answer is found. Answers may come in any order;
//! what can be reported is always a prefix.

use std::{collections::VecDeque, sync::Arc};

use super::{Cause, Failure, Outgoing, ahead::OutOfOrderAcks};
use crate::base::event::Seq;

/// The queue of what is in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    events: VecDeque<Entry>,
    /// The number of the oldest.
    first: u64,
    acks: OutOfOrderAcks,
    /// The most that were in flight at once.
    most: usize,
}

#[derive(Debug)]
struct Entry {
    event: (Seq, u8),
    address: Arc<str>,
    /// `None`: no answer yet.
    outcome: Option<Result<(), Cause>>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Adds an event that is sent now. The answer is its number; `None`: it was accepted earlier and must
    /// not be sent again.
    pub(super) fn push(&mut self, event: &Outgoing) -> Option<u64> {
        if self.events.is_empty() {
            self.acks.begin(event);
        }
        let known = self.acks.has(event);
        let number = self.first + u64::try_from(self.events.len()).unwrap_or(u64::MAX);
        let (address, event) = (Arc::clone(&event.address), event.number());
        self.events.push_back(Entry { event, address, outcome: known.then_some(Ok(())) });
        self.most = self.most.max(self.events.len());
        (!known).then_some(number)
    }

    /// The destination has answered the event of that number. One that is no longer in flight is ignored.
    pub(super) fn answered(&mut self, number: u64, outcome: Result<(), Cause>) {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.events.get_mut(index)) {
            entry.outcome = Some(outcome);
        }
    }

    /// What can be reported by now, as [`Sink::acknowledged`](super::Sink::acknowledged) does; `None`:
    /// nothing. An answer other than acceptance or a rejection ends all that is in flight.
    pub(super) fn report(&mut self) -> Option<Result<usize, Failure>> {
        let accepted = self.take_accepted();
        match self.events.front_mut().and_then(|oldest| oldest.outcome.take()) {
            Some(Err(cause)) => {
                if matches!(cause, Cause::Rejected { .. }) {
                    self.pop();
                } else {
                    self.clear();
                }
                Some(Err(Failure::after(accepted, cause)))
            }
            _ => (accepted > 0).then_some(Ok(accepted)),
        }
    }

    /// All that is in flight ends with `cause`.
    pub(super) fn fail(&mut self, cause: Cause) -> Failure {
        let accepted = self.take_accepted();
        self.clear();
        Failure::after(accepted, cause)
    }

    /// Nothing is in flight any more. What was accepted is remembered, so that it is not sent again.
    pub(super) fn clear(&mut self) {
        let limit = 2 * self.most;
        while let Some(entry) = self.pop() {
            if let Some(Ok(())) = entry.outcome {
                self.acks.insert(entry.event, limit);
            }
        }
    }

    /// Where the event of that number goes, while it is in flight.
    pub(super) fn address(&self, number: u64) -> Option<&str> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        Some(&*self.events.get(index)?.address)
    }

    /// The numbers of those without an answer, and which events they are; oldest first.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (u64, Seq)> {
        let unanswered = |(number, entry): (u64, &Entry)| {
            entry.outcome.is_none().then_some((number, entry.event.0))
        };
        (self.first..).zip(&self.events).filter_map(unanswered)
    }

    /// Those that are accepted and not yet reported: in flight, or before a failure that took them out of it.
    pub(super) fn accepted(&self) -> Vec<(Seq, u8)> {
        let in_flight = self.events.iter().filter(|entry| matches!(entry.outcome, Some(Ok(()))));
        in_flight.map(|entry| entry.event).chain(self.acks.iter()).collect()
    }

    fn take_accepted(&mut self) -> usize {
        let mut accepted = 0;
        while let Some(Entry { outcome: Some(Ok(())), .. }) = self.events.front() {
            if let Some(entry) = self.pop() {
                self.acks.remove(entry.event);
            }
            accepted += 1;
        }
        accepted
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.events.pop_front()?;
        self.first += 1;
        Some(entry)
    }
}
