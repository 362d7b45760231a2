//! Events that this sink's destination will never accept: they become dead letters, and the rest goes on.
//!
//! An event becomes one because the destination rejected it, because it cannot be rendered, or because the
//! connection ends at it again and again ([`super::suspicion`]). Nothing is deleted for a dead letter: when
//! a sink's letters take all of their budget, the event stays where it is, and the sink is held until
//! somebody has looked at the letters.
//!
//! A run of rejections is no reason to hold a sink: what a destination rejects by topic or by address comes
//! in long runs, and a hold would stop the events that it takes. It is a reason to say so: an ERROR, and
//! the state `rejecting` until an event is accepted.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{error, warn};

use super::{Delivery, describe, flight::Undeliverable, requests::Begun};
use crate::{
    base::event::{Record, Seq},
    journal::SetAside,
    sink::{self, Cause, Opening, Purpose},
};

/// So many rejected in a row, and an ERROR is logged.
const IN_A_ROW: u64 = 20;

/// What somebody has to do about a sink whose letters have no room.
const FULL: &str =
    "the dead letters of this sink take all of journal.max_dead_letters: retry or drop them";

impl Delivery {
    /// The event, or a message of it, was the first of the flight, and will not be accepted. An answer: no
    /// other message of it was rejected before.
    ///
    /// An event becomes one letter, however many messages it goes out as. A letter that is tried again goes
    /// out as all of them, those that were accepted included.
    pub(super) fn reject(&mut self, record: Arc<Record>, reason: String) -> bool {
        if !self.flight.reject(record.seq) {
            return false;
        }
        match &mut self.flight.request {
            Some(Begun::Letter { number, rejected }) => {
                // It stays the letter that it is, with the new reason.
                warn!(
                    sink = %self.row.name, number, reason,
                    "a dead letter was tried again and rejected again"
                );
                self.reader.source.rejected_again(*number, &reason);
                *rejected = true;
            }
            Some(Begun::Replay { .. }) | None => {
                // It stood before what is undeliverable between the others in flight, and behind those that
                // were rejected before it and still wait for room.
                let waiting = &mut self.flight.undeliverable;
                let place = waiting.partition_point(|before| before.record.seq <= record.seq);
                waiting.insert(place, Undeliverable { record, reason });
            }
        }
        self.write_dead_letters();
        true
    }

    /// Makes dead letters of what is undeliverable, as far as all before it is done and there is room.
    pub(super) fn write_dead_letters(&mut self) {
        while let Some(Undeliverable { record, reason }) = self.flight.undeliverable.front() {
            if self.flight.head().is_some_and(|head| head < record.seq) {
                return;
            }
            let event = &record.event;
            match self.reader.source.dead_letter(record, reason) {
                SetAside::Stored => {
                    error!(
                        sink = %self.row.name, id = %event.id, topic = %event.place.topic, reason,
                        "an event was rejected and is now a dead letter"
                    );
                    self.row.metrics.dead();
                    let reason = reason.clone();
                    self.row.show(|row| {
                        row.dead_letters += 1;
                        row.last_dead_letter = Some(reason);
                    });
                }
                SetAside::Lost => {
                    error!(
                        sink = %self.row.name, id = %event.id, topic = %event.place.topic, reason,
                        "an event was rejected and is lost: without `journal.dir` there are no dead letters"
                    );
                    self.rejected.add(&self.row, event);
                }
                // The disk has so much to do; there is a sign when it is done.
                SetAside::Wait => return,
                SetAside::Full => return self.letters_are_full(),
            }
            let seq = record.seq;
            self.flight.undeliverable.pop_front();
            self.suspicion.passed(seq);
            if self.flight.request.is_none() {
                // In the window too: the letter is not yet on disk.
                self.reader.advance(seq, 1);
                self.pass_accepted();
            }
            if self.waiting.fault.as_ref().is_some_and(|fault| fault.text == FULL) {
                self.worked();
            }
        }
    }

    /// The cursor moves over what was accepted behind an event that is a dead letter now.
    fn pass_accepted(&mut self) {
        let next = self.flight.undeliverable.front().map(|next| next.record.seq);
        while let Some(seq) = self.flight.behind.front().copied() {
            if next.is_some_and(|next| next < seq) || self.flight.head() == Some(seq) {
                return;
            }
            self.flight.behind.pop_front();
            self.reader.advance(seq, 1);
        }
    }

    /// Whether an event waits for room among the letters, with no request under way.
    pub(super) fn letters_have_no_room(&self) -> bool {
        self.flight.request.is_none()
            && !self.flight.undeliverable.is_empty()
            && self.waiting.fault.as_ref().is_some_and(|fault| fault.text == FULL)
    }

    /// Gives back what is in hand, with nothing in flight: it is read again, from the cursor on.
    pub(super) fn read_again(&mut self) {
        let head = self.flight.head();
        self.flight.take_events();
        self.flight.undeliverable.clear();
        self.flight.forget_rejected();
        let behind = std::mem::take(&mut self.flight.behind);
        // Of the head, another message may be open still.
        self.reader.accepted.remember(behind.into_iter().filter(|seq| Some(*seq) != head));
        self.reader.again();
    }

    fn letters_are_full(&mut self) {
        if self.waiting.fault.as_ref().is_none_or(|fault| fault.text != FULL) {
            self.waiting.held(
                &self.row.name,
                "held",
                FULL.to_owned(),
                "the sink is held, nothing is lost",
            );
            self.show();
        }
    }

    /// A destination that rejects an event is there; one that rejects every event is not well.
    pub(super) fn rejected(&mut self, reason: &str) {
        let mut in_a_row = 0;
        self.row.show(|row| {
            row.rejected_in_a_row += 1;
            in_a_row = row.rejected_in_a_row;
        });
        if self.waiting.fault.as_ref().is_some_and(|fault| fault.text == FULL) {
            return;
        }
        if in_a_row < IN_A_ROW {
            return self.worked();
        }
        if self.waiting.fault.as_ref().is_none_or(|fault| fault.state != "rejecting") {
            let text = format!("the last {IN_A_ROW} events were all rejected: {reason}");
            self.waiting.held(&self.row.name, "rejecting", text, "no event is accepted any more");
            self.show();
        }
    }

    /// The peer has ended the connection with this event at the head, `alone` on its way.
    pub(super) fn connection_ended_at(&mut self, seq: Seq, alone: bool, cause: &Cause) {
        let blame = self.suspicion.closed(seq, alone);
        if let Some(blame) = blame {
            let reason = format!(
                "the connection ended {} times within {} s while this event alone was on its way: {}",
                blame.times,
                blame.over.as_secs(),
                describe(cause)
            );
            self.suspicion.accused = Some((seq, reason));
        } else if self.suspicion.isolates(seq) {
            let text = format!("the connection ends at event {seq}: {}", describe(cause));
            self.waiting.suspected(text);
        }
    }

    /// With a new connection and nothing on its way: if the destination is there for all else, the event is
    /// to blame.
    pub(super) async fn try_accused(&mut self) {
        let Some((seq, reason)) = self.suspicion.accused.take() else { return };
        match self.is_there().await {
            Ok(()) => {
                if self.flight.head() == Some(seq)
                    && let Some(event) = self.flight.pop()
                {
                    self.suspicion.blamed();
                    self.reject(event.record, reason);
                    self.worked();
                }
            }
            Err(cause) => {
                self.suspicion.excused();
                self.failed(&cause, false);
            }
        }
    }

    /// Whether the destination is there, asked without an event. A connection that has lasted is the
    /// answer; where there is none, the probe of the kind.
    fn is_there(&self) -> impl Future<Output = Result<(), Cause>> + Send + 'static {
        let probe = sink::kind(&self.config.kind).and_then(|kind| kind.probe);
        let answer = probe.filter(|_| !self.waiting.session).map(|probe| {
            let (name, config) = (&*self.row.name, &self.config);
            probe(&Opening { name, config, purpose: Purpose::Probe }, vec!["".into()])
        });
        let limit = self.config.timeout.0.saturating_add(Duration::from_secs(1));
        async move {
            let Some(answer) = answer else { return Ok(()) };
            match timeout(limit, answer).await {
                Ok(answer) => answer.map(drop).map_err(|failure| failure.cause),
                Err(_) => Err(super::hung().cause),
            }
        }
    }
}
