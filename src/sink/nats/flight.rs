//! The events of one connection that were handed over and are not yet reported, oldest first.

use std::collections::VecDeque;

use crate::{
    base::event::Seq,
    sink::{Cause, Outgoing},
};

/// What hinders an event, in a form that can be given again for the next event of its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Busy(String),
    Rejected(String),
    Denied(String),
}

impl From<Fault> for Cause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Busy(reason) => Self::Busy { wait: None, reason },
            Fault::Rejected(reason) => Self::Rejected { reason },
            Fault::Denied(reason) => Self::Denied { reason },
        }
    }
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Outcome {
    #[default]
    Pending,
    Accepted,
    Failed(Fault),
    /// No stream took it; why not is still to be found out.
    NoStream,
    /// The stream did not store it, because the event before it is not its last.
    Unlinked,
}

#[derive(Debug)]
struct Entry {
    outgoing: Outgoing,
    outcome: Outcome,
    /// Whether it went out.
    published: bool,
    /// Whether the server has not yet let us publish to its subject.
    unproven: bool,
}

/// Each event has a number, one after another. One that is published again has another number than before,
/// so that an answer to the first attempt is not taken for one to the second.
#[derive(Debug, Default)]
pub(super) struct Flight {
    entries: VecDeque<Entry>,
    /// The number of the oldest.
    first: u64,
    /// So many, from the oldest on, are published, or never will be.
    handled: usize,
    /// Of those, so many are published and pending,
    waiting: usize,
    /// and so many of these go to subjects that may be refused.
    unproven: usize,
}

impl Flight {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many are published and pending.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many of these may be refused for their subject.
    pub(super) fn unproven(&self) -> usize {
        self.unproven
    }

    /// The numbers of those that are handled.
    pub(super) fn handled(&self) -> std::ops::Range<u64> {
        self.first..self.first + number(self.handled)
    }

    pub(super) fn push(&mut self, outgoing: Outgoing) {
        let entry =
            Entry { outgoing, outcome: Outcome::Pending, published: false, unproven: false };
        self.entries.push_back(entry);
    }

    /// Passes over those that have failed already.
    pub(super) fn skip_failed(&mut self) {
        while let Some(entry) = self.entries.get(self.handled)
            && entry.outcome != Outcome::Pending
        {
            self.handled += 1;
        }
    }

    /// The next event to be published, with its number.
    pub(super) fn next(&self) -> Option<(u64, &Outgoing)> {
        let entry = self.entries.get(self.handled)?;
        Some((self.first + number(self.handled), &entry.outgoing))
    }

    /// The last event that was published and is still here.
    pub(super) fn last_published(&self) -> Option<&Outgoing> {
        let handled = self.entries.iter().take(self.handled);
        handled.rev().find(|entry| entry.published).map(|entry| &entry.outgoing)
    }

    /// The next event is published.
    pub(super) fn published(&mut self, unproven: bool) {
        if let Some(entry) = self.entries.get_mut(self.handled) {
            entry.published = true;
            entry.unproven = unproven;
            self.handled += 1;
            self.waiting += 1;
            self.unproven += usize::from(unproven);
        }
    }

    /// The next event is never published.
    pub(super) fn skip(&mut self, fault: Fault) {
        if let Some(entry) = self.entries.get_mut(self.handled) {
            entry.outcome = Outcome::Failed(fault);
            self.handled += 1;
        }
    }

    /// The event of this number, if it is here and was published.
    pub(super) fn get(&self, number: u64) -> Option<&Outgoing> {
        let entry = self.entries.get(self.index(number)?)?;
        entry.published.then_some(&entry.outgoing)
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }

    /// The outcome of a published event, if none is known yet.
    pub(super) fn resolve(&mut self, number: u64, outcome: Outcome) {
        if let Some(index) = self.index(number) {
            self.resolve_at(index, outcome);
        }
    }

    fn resolve_at(&mut self, index: usize, outcome: Outcome) {
        if let Some(entry) = self.entries.get_mut(index)
            && entry.published
            && entry.outcome == Outcome::Pending
        {
            entry.outcome = outcome;
            self.waiting -= 1;
            self.unproven -= usize::from(std::mem::take(&mut entry.unproven));
        }
    }

    /// What the one published event that is pending failed with, where there is one only.
    pub(super) fn resolve_only(&mut self, fault: Fault) {
        let is_it = |entry: &Entry| entry.published && entry.outcome == Outcome::Pending;
        if let Some(index) = self.entries.iter().position(is_it) {
            self.resolve_at(index, Outcome::Failed(fault));
        }
    }

    /// The server refuses this subject: what is published there has failed. An answer: an event that is here
    /// goes there, though it may be one that is to be published again.
    pub(super) fn refuse(&mut self, subject: &str, fault: &Fault) -> bool {
        let mut found = false;
        for index in 0..self.entries.len() {
            if self.entries.get(index).is_some_and(|entry| &*entry.outgoing.address == subject) {
                found = true;
                self.resolve_at(index, Outcome::Failed(fault.clone()));
            }
        }
        found
    }

    /// Accepts published events from the oldest on: those before `confirmed`, and those before `processed`
    /// whose subjects the server is known to take. `proven` gets those whose subject was not known for that.
    pub(super) fn accept(
        &mut self,
        confirmed: u64,
        processed: u64,
        mut proven: impl FnMut(&Outgoing),
    ) {
        for index in 0..self.handled {
            let Some(entry) = self.entries.get(index) else { return };
            let at = self.first + number(index);
            if entry.outcome == Outcome::Pending {
                if at >= confirmed && (at >= processed || entry.unproven) {
                    return;
                }
                if entry.unproven {
                    proven(&entry.outgoing);
                }
                self.resolve_at(index, Outcome::Accepted);
            }
        }
    }

    /// Takes out the accepted ones at the head.
    pub(super) fn take_accepted(&mut self) -> usize {
        let mut count = 0;
        while self.entries.pop_front_if(|entry| entry.outcome == Outcome::Accepted).is_some() {
            count += 1;
        }
        self.popped(count);
        count
    }

    /// The outcome of the oldest.
    pub(super) fn head(&self) -> Option<(&Outgoing, &Outcome)> {
        self.entries.front().map(|entry| (&entry.outgoing, &entry.outcome))
    }

    /// Takes out the oldest, whose outcome is known; whether it was published.
    pub(super) fn take_head(&mut self) -> bool {
        let entry = self.entries.pop_front();
        self.popped(usize::from(entry.is_some()));
        entry.is_some_and(|entry| entry.published)
    }

    fn popped(&mut self, count: usize) {
        self.first += number(count);
        self.handled = self.handled.saturating_sub(count);
    }

    /// All are to be published again, but those that have failed.
    pub(super) fn restart(&mut self) {
        for entry in &mut self.entries {
            entry.published = false;
            entry.unproven = false;
            if !matches!(entry.outcome, Outcome::Failed(_)) {
                entry.outcome = Outcome::Pending;
            }
        }
        self.first += number(self.entries.len());
        (self.handled, self.waiting, self.unproven) = (0, 0, 0);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.restart();
        self.entries.clear();
    }

    /// The longest address of those that are published and pending.
    pub(super) fn longest_address(&self) -> Option<&str> {
        let waiting = |entry: &&Entry| entry.published && entry.outcome == Outcome::Pending;
        let addresses = self.entries.iter().filter(waiting).map(|entry| &*entry.outgoing.address);
        addresses.max_by_key(|address| address.len())
    }

    /// Those that are accepted, from the oldest on.
    pub(super) fn accepted(&self) -> Vec<(Seq, u8)> {
        let accepted = self.entries.iter().filter(|entry| entry.outcome == Outcome::Accepted);
        accepted.map(|entry| entry.outgoing.number()).collect()
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::base::event::{Record, own};

    fn flight(addresses: &[&str]) -> Flight {
        let mut flight = Flight::default();
        for (seq, address) in (1..).zip(addresses) {
            let event = own("relay.test", &"".into(), &"".into(), &json!({}), 1);
            let payload = event.message.clone();
            flight.push(Outgoing {
                record: Arc::new(Record::new(seq, event)),
                part: 0,
                address: (*address).into(),
                payload,
                content_type: "application/json",
                expires_in: None,
            });
            flight.published(*address != "proven");
        }
        flight
    }

    #[test]
    fn unproven_events_hold_back_those_behind_them() {
        let mut flight = flight(&["proven", "new", "proven"]);
        assert_eq!((flight.waiting(), flight.unproven()), (3, 1));
        flight.accept(0, 3, |_| panic!("nothing is confirmed"));
        assert_eq!(flight.accepted(), [(1, 0)]);
        let mut proven = Vec::new();
        flight.accept(3, 3, |outgoing| proven.push(outgoing.address.to_string()));
        assert_eq!((flight.take_accepted(), &proven[..]), (3, &["new".to_owned()][..]));
        assert!(flight.is_empty() && flight.waiting() == 0 && flight.unproven() == 0);
    }

    #[test]
    fn answers_to_a_first_attempt_do_not_count_for_a_second() {
        let mut flight = flight(&["proven", "forbidden", "proven"]);
        let fault = Fault::Rejected("no".into());
        assert!(flight.refuse("forbidden", &fault) && !flight.refuse("another", &fault));
        flight.resolve(0, Outcome::Accepted);
        assert_eq!(flight.take_accepted(), 1);
        assert!(flight.take_head(), "the refused one was published");
        flight.restart();
        flight.resolve(2, Outcome::Accepted);
        assert_eq!(flight.accepted(), []);
        let (number, _) = flight.next().unwrap();
        flight.published(false);
        flight.resolve(number, Outcome::Accepted);
        assert_eq!(flight.accepted(), [(3, 0)]);
    }
}
