//! Which publication an acknowledgement is about.
//!
//! The client library numbers its packets itself, in the order in which it was given them. So a packet id
//! belongs to the oldest publication that was handed over and has none yet, and an acknowledgement finds
//! its publication by that id. The library's own tracking of a publication would end its read after every
//! acknowledgement.

use std::collections::VecDeque;

use super::terms::{Event, Signal, Tag};

/// A publication that is neither answered nor, in QoS 0, written.
#[derive(Debug, Clone, Copy)]
struct Packet {
    tag: Tag,
    bytes: usize,
}

/// The publications of one connection.
#[derive(Debug, Default)]
pub(super) struct InFlightPackets {
    /// Handed to the client, not yet written. The client may write one of QoS 0 before one that is older
    /// and waits for a packet id.
    unwritten: VecDeque<Packet>,
    unwritten_qos0: VecDeque<Packet>,
    by_id: Vec<Option<Packet>>,
    count: usize,
    bytes: usize,
}

impl InFlightPackets {
    /// A publication was handed to the client.
    pub(super) fn add(&mut self, tag: Tag, bytes: usize, qos: u8) {
        self.count += 1;
        self.bytes += bytes;
        let queue = if qos == 0 { &mut self.unwritten_qos0 } else { &mut self.unwritten };
        queue.push_back(Packet { tag, bytes });
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a signal means, by tag.
    pub(super) fn event(&mut self, signal: Signal) -> Event {
        match signal {
            Signal::Sent(0) => match self.unwritten_qos0.pop_front() {
                Some(publication) => Event::Written(self.done(publication)),
                None => Event::Other,
            },
            Signal::Sent(id) => {
                let id = usize::from(id);
                if self.by_id.len() <= id {
                    self.by_id.resize(id + 1, None);
                }
                if let Some(slot) = self.by_id.get_mut(id) {
                    *slot = self.unwritten.pop_front();
                }
                Event::Other
            }
            Signal::Answered(id, verdict) => {
                // An id that nobody waits for changes nothing.
                match self.by_id.get_mut(usize::from(id)).and_then(Option::take) {
                    Some(publication) => Event::Answered(self.done(publication), verdict),
                    None => Event::Other,
                }
            }
            Signal::Event(event) => event,
        }
    }

    fn done(&mut self, publication: Packet) -> Tag {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(publication.bytes);
        publication.tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::mqtt::lost::Verdict;

    #[test]
    fn an_answer_finds_its_publication_by_the_packet_id() {
        let mut numbers = InFlightPackets::default();
        for tag in 0..3 {
            numbers.add(tag, 10, 1);
        }
        for id in [7, 8, 1] {
            numbers.event(Signal::Sent(id));
        }
        let mut answered = |id| numbers.event(Signal::Answered(id, Verdict::Accepted));
        assert_eq!(answered(8), Event::Answered(1, Verdict::Accepted));
        assert_eq!(answered(7), Event::Answered(0, Verdict::Accepted));
        assert_eq!(answered(7), Event::Other);
        assert_eq!(answered(900), Event::Other);
        assert_eq!((numbers.count(), numbers.bytes()), (1, 10));
        let refused = Verdict::Refused("no".into());
        let event = numbers.event(Signal::Answered(1, refused.clone()));
        assert_eq!((event, numbers.count()), (Event::Answered(2, refused), 0));
    }

    #[test]
    fn qos_0_takes_no_packet_id_from_another_publication() {
        let mut numbers = InFlightPackets::default();
        numbers.add(0, 1, 1);
        numbers.add(1, 1, 0);
        assert_eq!(numbers.event(Signal::Sent(0)), Event::Written(1));
        numbers.event(Signal::Sent(5));
        let answered = numbers.event(Signal::Answered(5, Verdict::Accepted));
        assert_eq!(answered, Event::Answered(0, Verdict::Accepted));
        assert_eq!(numbers.count(), 0);
    }
}
