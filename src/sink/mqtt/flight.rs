//! One batch in flight: which events have been handed out, and what became of each.
//!
//! It does no I/O and knows no version of MQTT.
//!
//! The one thing to know: the client numbers its packets itself, in the order in which it was given
//! them. So `Sent(packet id)` belongs to the oldest event that was handed out and has no packet id
//! yet, and an acknowledgement finds its event by that id. That costs an array; the client's own
//! tracking of a publish ends its read after every acknowledgement.

use std::collections::VecDeque;

pub(super) use super::connection::Verdict;

/// What the link saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signal {
    /// The oldest event that had none got this packet id; 0 for QoS 0.
    Sent(u16),
    /// The broker has answered the event with this packet id.
    Answered(u16, Verdict),
    /// The broker has read everything that was sent before the barrier.
    Barrier,
    /// The broker has answered our subscription; so many of its parts it refused.
    Subscribed(usize),
    /// We have taken our leave.
    Disconnected,
    /// Nothing that matters here.
    Other,
}

/// A batch in flight. Kept from batch to batch for its memory.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// By place in the batch.
    verdicts: Vec<Verdict>,
    /// Packets without an answer, by place: an event may travel as two.
    owed: Vec<u8>,
    /// Places that have been handed to the client and have no packet id yet; `None` is an answer to a
    /// command, which stands in no batch.
    handed: VecDeque<Option<usize>>,
    /// Places by packet id.
    by_id: Vec<usize>,
    /// Events handed out and not answered.
    outstanding: usize,
    /// Whether one of them was not accepted.
    hindered: bool,
    /// What belongs to no batch, has left, and is not answered for.
    others: usize,
    /// Whether the broker has refused a subscription.
    deaf: bool,
}

/// In [`Flight::by_id`]: what belongs to no batch.
const OTHER: usize = usize::MAX - 1;

impl Flight {
    /// Begins with a batch of that length.
    pub(super) fn begin(&mut self, len: usize) {
        self.verdicts.clear();
        self.verdicts.resize(len, Verdict::Pending);
        self.owed.clear();
        self.owed.resize(len, 0);
        // What is left of the batch before has its answer; an answer to a command may not have left yet.
        self.handed.retain(Option::is_none);
        self.outstanding = 0;
        self.hindered = false;
    }

    /// Events handed out and not answered.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether nothing but events of the batch is on its way.
    pub(super) fn is_alone(&self) -> bool {
        self.others == 0 && self.answers() == 0
    }

    /// Whether the broker has refused a subscription.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Whether an event was not accepted: what has not been handed out yet should wait, or it
    /// overtakes that one.
    pub(super) fn hindered(&self) -> bool {
        self.hindered
    }

    /// A packet of the event at `place` was handed to the client. The event is accepted when all of its
    /// packets are.
    pub(super) fn hand(&mut self, place: usize) {
        if let Some(owed) = self.owed.get_mut(place) {
            *owed += 1;
        }
        self.handed.push_back(Some(place));
        self.outstanding += 1;
    }

    /// An answer to a command was handed to the client.
    pub(super) fn hand_answer(&mut self) {
        self.handed.push_back(None);
    }

    /// Answers to commands that the client has not yet sent.
    pub(super) fn answers(&self) -> usize {
        self.handed.iter().filter(|place| place.is_none()).count()
    }

    /// The event at `place` needs no answer of the broker.
    pub(super) fn settle(&mut self, place: usize, verdict: Verdict) {
        self.hindered |= verdict != Verdict::Accepted;
        if let Some(slot) = self.verdicts.get_mut(place) {
            *slot = verdict;
        }
    }

    /// Takes note of what the link saw.
    pub(super) fn note(&mut self, signal: Signal) {
        match signal {
            Signal::Sent(0) => {
                // QoS 0 is never answered; the barrier behind the batch confirms it.
                if let Some(Some(place)) = self.handed.pop_front() {
                    self.answer(place, Verdict::Accepted);
                }
            }
            Signal::Sent(id) => {
                let id = usize::from(id);
                if self.by_id.len() <= id {
                    self.by_id.resize(id + 1, usize::MAX);
                }
                if let (Some(slot), Some(handed)) =
                    (self.by_id.get_mut(id), self.handed.pop_front())
                {
                    // Nobody waits for what becomes of an answer.
                    self.others += usize::from(handed.is_none());
                    *slot = handed.unwrap_or(OTHER);
                }
            }
            Signal::Answered(id, verdict) => {
                let Some(slot) = self.by_id.get_mut(usize::from(id)) else { return };
                let place = std::mem::replace(slot, usize::MAX);
                match place {
                    usize::MAX => {}
                    OTHER => self.others = self.others.saturating_sub(1),
                    place => self.answer(place, verdict),
                }
            }
            Signal::Subscribed(refused) => self.deaf |= refused > 0,
            Signal::Barrier | Signal::Disconnected | Signal::Other => {}
        }
    }

    /// One packet of the event at `place` is answered; what is worse than acceptance holds for all.
    fn answer(&mut self, place: usize, verdict: Verdict) {
        self.outstanding = self.outstanding.saturating_sub(1);
        let Some(owed) = self.owed.get_mut(place) else { return };
        *owed = owed.saturating_sub(1);
        let last = *owed == 0;
        let open = self.verdicts.get(place) == Some(&Verdict::Pending);
        if open && (last || verdict != Verdict::Accepted) {
            self.settle(place, verdict);
        }
    }

    /// How many events from the first on are accepted.
    pub(super) fn accepted(&self) -> usize {
        self.verdicts.iter().take_while(|verdict| **verdict == Verdict::Accepted).count()
    }

    /// Whether the event at `place` is accepted.
    pub(super) fn has_accepted(&self, place: usize) -> bool {
        self.verdicts.get(place) == Some(&Verdict::Accepted)
    }

    /// What the event at `place` met.
    pub(super) fn verdict(&mut self, place: usize) -> Verdict {
        self.verdicts.get_mut(place).map(std::mem::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_finds_its_event_by_the_packet_id() {
        let mut flight = Flight::default();
        flight.begin(3);
        for place in 0..3 {
            flight.hand(place);
        }
        for id in [7, 8, 1] {
            flight.note(Signal::Sent(id));
        }
        flight.note(Signal::Answered(8, Verdict::Accepted));
        assert_eq!((flight.accepted(), flight.outstanding()), (0, 2));
        flight.note(Signal::Answered(7, Verdict::Accepted));
        assert_eq!((flight.accepted(), flight.outstanding()), (2, 1));
        // An id that nobody waits for changes nothing.
        flight.note(Signal::Answered(7, Verdict::Accepted));
        flight.note(Signal::Answered(900, Verdict::Accepted));
        assert_eq!((flight.accepted(), flight.outstanding()), (2, 1));
        flight.note(Signal::Answered(1, Verdict::Refused("no".into())));
        assert_eq!((flight.accepted(), flight.outstanding()), (2, 0));
        assert_eq!(flight.verdict(2), Verdict::Refused("no".into()));
    }

    #[test]
    fn an_event_of_two_packets_is_accepted_when_both_are() {
        let refused = || Verdict::Refused("no".into());
        for (first, second, expected) in [
            (Verdict::Accepted, Verdict::Accepted, Verdict::Accepted),
            (Verdict::Accepted, refused(), refused()),
            (refused(), Verdict::Accepted, refused()),
        ] {
            let mut flight = Flight::default();
            flight.begin(1);
            flight.hand(0);
            flight.hand(0);
            flight.note(Signal::Sent(1));
            flight.note(Signal::Sent(2));
            flight.note(Signal::Answered(1, first.clone()));
            assert_eq!((flight.accepted(), flight.outstanding()), (0, 1));
            assert_eq!(flight.hindered(), first != Verdict::Accepted);
            flight.note(Signal::Answered(2, second));
            assert_eq!(flight.outstanding(), 0);
            assert_eq!(flight.verdict(0), expected);
        }
        // One of them could not even be sent.
        let mut flight = Flight::default();
        flight.begin(1);
        flight.hand(0);
        flight.settle(0, refused());
        flight.note(Signal::Sent(0));
        assert_eq!((flight.outstanding(), flight.verdict(0)), (0, refused()));
    }

    #[test]
    fn an_answer_to_a_command_takes_nobodys_packet_id() {
        let mut flight = Flight::default();
        flight.hand_answer();
        flight.begin(1);
        flight.hand(0);
        flight.note(Signal::Sent(1));
        assert_eq!(flight.answers(), 0);
        flight.note(Signal::Answered(1, Verdict::Accepted));
        assert_eq!((flight.accepted(), flight.outstanding()), (0, 1));
        flight.note(Signal::Sent(2));
        flight.note(Signal::Answered(2, Verdict::Accepted));
        assert_eq!((flight.accepted(), flight.outstanding()), (1, 0));
        // In QoS 0 there is no id at all.
        flight.hand_answer();
        flight.begin(1);
        flight.hand(0);
        flight.note(Signal::Sent(0));
        assert_eq!(flight.accepted(), 0);
        flight.note(Signal::Sent(0));
        assert_eq!(flight.accepted(), 1);
    }

    proptest! {
        /// Whatever the order of the answers, the accepted prefix never passes one that is open.
        #[test]
        fn the_prefix_ends_at_the_first_open_event(order in Just((1..=20_u16).collect::<Vec<_>>()).prop_shuffle(), answered in 0..=20_usize) {
            let mut flight = Flight::default();
            flight.begin(20);
            for place in 0..20 {
                flight.hand(place);
                flight.note(Signal::Sent(u16::try_from(place).unwrap() + 1));
            }
            for id in &order[..answered] {
                flight.note(Signal::Answered(*id, Verdict::Accepted));
            }
            let open = order[answered..].iter().min().map_or(20, |id| usize::from(*id) - 1);
            prop_assert_eq!(flight.accepted(), open);
            prop_assert_eq!(flight.outstanding(), 20 - answered);
        }
    }
}
