//! Events that this sink's destination will never accept: they become dead letters, and the rest goes on.
//!
//! An event is set aside because the destination rejected it, because it cannot be rendered, or because the
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

use super::{Delivery, describe, requests::Begun};
use crate::{
    base::event::{Record, Seq},
    journal::SetAside,
    sink::Cause,
};

/// So many rejected in a row, and somebody is told.
const IN_A_ROW: u64 = 20;

/// What somebody has to do about a sink whose letters have no room.
const FULL: &str =
    "the dead letters of this sink take all of journal.max_dead_letters: retry or drop them";

/// An event that is to be set aside.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) record: Arc<Record>,
    pub(super) reason: String,
}

/// An event at which the connection has ended often enough.
#[derive(Debug)]
pub(super) struct Accused {
    seq: Seq,
    reason: String,
}

impl Delivery {
    /// The event is the first of the flight, and will not be accepted.
    pub(super) fn set_aside(&mut self, record: Arc<Record>, reason: String) {
        match &mut self.flight.errand {
            Some(Begun::Letter { number, refused }) => {
                // It stays the letter that it is, with the new reason.
                warn!(
                    sink = %self.name, number, reason,
                    "a dead letter was tried again and is refused again"
                );
                self.journal.rejected_again(*number, &reason);
                *refused = true;
            }
            Some(Begun::Replay { .. }) | None => {
                self.flight.asides.push_front(Aside { record, reason });
            }
        }
        self.set_asides();
    }

    /// Sets aside what is to be, as far as all before it is done and there is room.
    pub(super) fn set_asides(&mut self) {
        while let Some(Aside { record, reason }) = self.flight.asides.front() {
            let first = self.flight.events.first().map(|event| event.record.seq);
            if first.is_some_and(|first| first < record.seq) {
                return;
            }
            let event = &record.event;
            match self.journal.dead_letter(&self.name, record, reason) {
                SetAside::Stored => error!(
                    sink = %self.name, id = %event.id, topic = %event.place.topic, reason,
                    "an event was refused and set aside"
                ),
                SetAside::Lost => error!(
                    sink = %self.name, id = %event.id, topic = %event.place.topic, reason,
                    "an event was refused and is lost: without `journal.dir` there are no dead letters"
                ),
                // The disk has so much to do; there is a sign when it is done.
                SetAside::Wait => return,
                SetAside::Full => return self.letters_are_full(),
            }
            self.metrics.dead();
            self.status.sink(&self.name, |page| page.dead_letters += 1);
            let seq = record.seq;
            self.flight.asides.pop_front();
            self.suspicion.passed(seq);
            if self.flight.errand.is_none() {
                // In the window too: the letter is not yet on disk.
                self.moved(seq, 1);
            }
            if self.waiting.trouble.as_ref().is_some_and(|trouble| trouble.text == FULL) {
                self.worked();
            }
        }
    }

    fn letters_are_full(&mut self) {
        if self.waiting.trouble.as_ref().is_none_or(|trouble| trouble.text != FULL) {
            self.waiting.held(
                &self.name,
                "held",
                FULL.to_owned(),
                "the sink is held, nothing is lost",
            );
            self.show();
        }
    }

    /// A destination that rejects an event is there; one that rejects every event is not well.
    pub(super) fn refused(&mut self, reason: &str) {
        let mut row = 0;
        self.status.sink(&self.name, |page| {
            page.rejected_in_a_row += 1;
            row = page.rejected_in_a_row;
        });
        if self.waiting.trouble.as_ref().is_some_and(|trouble| trouble.text == FULL) {
            return;
        }
        if row < IN_A_ROW {
            return self.worked();
        }
        if self.waiting.trouble.as_ref().is_none_or(|trouble| trouble.state != "rejecting") {
            let text = format!("the last {IN_A_ROW} events were all rejected: {reason}");
            self.waiting.held(&self.name, "rejecting", text, "no event is accepted any more");
            self.show();
        }
    }

    /// The peer has ended the connection with this event at the head, `alone` on its way.
    pub(super) fn suspect(&mut self, seq: Seq, alone: bool, cause: &Cause) {
        let blame = self.suspicion.closed(seq, alone);
        if let Some(blame) = blame {
            let reason = format!(
                "the connection ended {} times within {} s while this event alone was on its way: {}",
                blame.times,
                blame.over.as_secs(),
                describe(cause)
            );
            self.accused = Some(Accused { seq, reason });
        } else if self.suspicion.isolates(seq) {
            let text = format!("the connection ends at event {seq}: {}", describe(cause));
            self.waiting.suspected(text);
        }
    }

    /// With a new connection and nothing on its way: if the destination is there for all else, the event is
    /// to blame.
    pub(super) async fn judge(&mut self) {
        let Some(Accused { seq, reason }) = self.accused.take() else { return };
        match timeout(self.deadline.saturating_add(Duration::from_secs(1)), self.sink.answers())
            .await
        {
            Ok(Ok(())) => {
                let first = self.flight.events.first().is_some_and(|first| first.record.seq == seq);
                if first {
                    let event = self.flight.events.remove(0);
                    self.suspicion.blamed();
                    self.set_aside(event.record, reason);
                    self.worked();
                }
            }
            Ok(Err(failure)) => {
                self.suspicion.excused();
                self.failed(&failure.cause, false);
            }
            Err(_) => {
                self.suspicion.excused();
                self.failed(&super::no_timeout().cause, false);
            }
        }
    }
}
