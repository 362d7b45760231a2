//! What is on its way to the destination, in order, and what waits to become a dead letter between.

use std::{collections::VecDeque, sync::Arc};

use super::requests::Begun;
use crate::{
    base::event::{Record, Seq},
    sink::Outgoing,
};

/// An event that the destination will not get.
#[derive(Debug)]
pub(super) struct Undeliverable {
    pub(super) record: Arc<Record>,
    pub(super) reason: String,
}

/// What goes out, in order.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// The first `handed` of them are in flight with the sink.
    pub(super) events: VecDeque<Outgoing>,
    /// Bytes that these hold in memory, roughly: what several share counts for each.
    pub(super) bytes: usize,
    pub(super) handed: usize,
    /// The sink has no room before something is acknowledged.
    pub(super) full: bool,
    /// What is to become a dead letter, in order, from before and between the events.
    pub(super) undeliverable: VecDeque<Undeliverable>,
    /// Accepted, but the cursor cannot pass an undeliverable event before them.
    pub(super) behind: VecDeque<Seq>,
    /// Time has passed since the events were rendered.
    pub(super) stale: bool,
    /// What was asked for, where these are no new events.
    pub(super) request: Option<Begun>,
    /// The event of which a message was rejected last.
    rejected: Option<Seq>,
}

impl Flight {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.undeliverable.is_empty()
    }

    /// Adds an event at the end, and what Home Assistant gets of it.
    pub(super) fn push(&mut self, event: Outgoing, ha_events: Vec<Outgoing>) {
        self.bytes += weight(&event) + ha_events.iter().map(weight).sum::<usize>();
        self.events.push_back(event);
        self.events.extend(ha_events);
    }

    /// Takes out the oldest.
    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        let event = self.events.pop_front()?;
        self.bytes = self.bytes.saturating_sub(weight(&event));
        Some(event)
    }

    /// Takes out all of them.
    pub(super) fn take_events(&mut self) -> VecDeque<Outgoing> {
        self.bytes = 0;
        std::mem::take(&mut self.events)
    }

    /// How many events count in the window.
    pub(super) fn len(&self) -> usize {
        self.events.len() + self.undeliverable.len() + self.behind.len()
    }

    /// That, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.len(), self.bytes)
    }

    /// The number of the oldest event.
    pub(super) fn head(&self) -> Option<Seq> {
        self.events.front().map(|event| event.record.seq)
    }

    /// The number of the oldest event that is not dealt with, whether it goes out or becomes a dead letter.
    pub(super) fn first_open(&self) -> Option<Seq> {
        let undeliverable = self.undeliverable.front().map(|event| event.record.seq);
        self.head().into_iter().chain(undeliverable).min()
    }

    /// How many more may go out: an undeliverable event must be a dead letter before those behind it go.
    pub(super) fn sendable(&self) -> usize {
        let rest = self.events.range(self.handed..);
        match self.undeliverable.front() {
            None => rest.len(),
            Some(first) => rest.take_while(|event| event.record.seq < first.record.seq).count(),
        }
    }

    /// A message of this event will not be accepted: of the others, those that are not in flight with the
    /// sink do not go out. An answer: it is the first of them that is rejected.
    pub(super) fn reject(&mut self, seq: Seq) -> bool {
        let first = self.rejected.replace(seq) != Some(seq);
        // Of an event that becomes a dead letter, the cursor is not to pass the messages before.
        self.behind.retain(|accepted| *accepted != seq);
        self.drop_rejected();
        first
    }

    /// Whether a message of this event was rejected.
    pub(super) fn is_rejected(&self, seq: Seq) -> bool {
        self.rejected == Some(seq)
    }

    /// All of it is dealt with, or given back: the same event may come once more.
    pub(super) fn forget_rejected(&mut self) {
        self.rejected = None;
    }

    /// Takes out what is left of a rejected event, but for what is in flight with the sink.
    fn drop_rejected(&mut self) {
        while let Some(next) = self.events.get(self.handed)
            && self.is_rejected(next.record.seq)
        {
            self.bytes = self.bytes.saturating_sub(weight(next));
            self.events.remove(self.handed);
        }
    }

    /// Takes out what would go out next and has become too old: how many events that were.
    pub(super) fn drop_expired(&mut self) -> u64 {
        let mut dropped = 0;
        while let Some(next) = self.events.get(self.handed)
            && next.expires_in.is_some_and(|time| time.left().is_none())
        {
            dropped += u64::from(next.part == 0);
            self.bytes = self.bytes.saturating_sub(weight(next));
            self.events.remove(self.handed);
        }
        dropped
    }

    /// Nothing is in flight with the sink any more.
    pub(super) fn recall(&mut self) {
        self.handed = 0;
        self.full = false;
        self.stale = true;
        self.drop_rejected();
    }
}

fn weight(event: &Outgoing) -> usize {
    event.record.event.weight() + event.payload.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::event::own;

    fn record(seq: Seq) -> Arc<Record> {
        Arc::new(Record::new(seq, own("relay.test", &"".into(), &"".into(), &json!({}), 1)))
    }

    fn outgoing(seq: Seq, part: u8) -> Outgoing {
        let record = record(seq);
        let payload = record.event.message.clone();
        let content_type = "application/json";
        Outgoing { record, part, address: "".into(), payload, content_type, expires_in: None }
    }

    #[test]
    fn events_behind_an_undeliverable_one_wait_for_it() {
        let mut flight = Flight::default();
        assert!(flight.is_empty() && flight.head().is_none());
        flight.push(outgoing(1, 0), vec![outgoing(1, 1)]);
        // Of the third, the second message is there still.
        for (seq, part) in [(2, 0), (3, 1), (4, 0), (5, 0)] {
            flight.push(outgoing(seq, part), Vec::new());
        }
        assert_eq!((flight.sendable(), flight.head()), (6, Some(1)));
        let undeliverable = Undeliverable { record: record(3), reason: "no address".to_owned() };
        flight.undeliverable.push_back(undeliverable);
        flight.behind.push_back(6);
        assert_eq!((flight.sendable(), flight.len()), (3, 8));
        flight.handed = 2;
        assert_eq!(flight.sendable(), 1);
        flight.handed = 3;
        assert_eq!(flight.sendable(), 0);
        flight.full = true;
        flight.recall();
        assert_eq!((flight.sendable(), flight.full, flight.stale), (3, false, true));
        assert_eq!(flight.pop().unwrap().part, 0);
        assert!(flight.bytes > 0);
        assert_eq!(flight.take_events().len(), 5);
        assert!(!flight.is_empty(), "one is to become a dead letter");
        assert_eq!(flight.bytes, 0);
        flight.undeliverable.clear();
        assert!(flight.is_empty());
    }

    #[test]
    fn what_is_left_of_a_rejected_event_does_not_go_out() {
        let mut flight = Flight::default();
        flight.push(outgoing(1, 0), vec![outgoing(1, 1), outgoing(1, 2)]);
        flight.push(outgoing(2, 0), Vec::new());
        // Two of the three are in flight with the sink, and the first of them is rejected.
        flight.pop();
        flight.handed = 1;
        flight.behind.push_back(1);
        assert!(flight.reject(1));
        let parts =
            |flight: &Flight| flight.events.iter().map(Outgoing::number).collect::<Vec<_>>();
        assert_eq!((parts(&flight), flight.sendable()), (vec![(1, 1), (2, 0)], 1));
        assert!(flight.behind.is_empty(), "the cursor waits for the dead letter");
        // The connection is lost before the other one is answered.
        flight.recall();
        assert_eq!((parts(&flight), flight.sendable()), (vec![(2, 0)], 1));
        assert_eq!(flight.bytes, flight.events.iter().map(weight).sum::<usize>());
        assert!(!flight.reject(1), "it is a dead letter already");
        flight.forget_rejected();
        assert!(flight.reject(1));
    }
}
