//! Core NATS: nobody acknowledges an event, so the relay asks itself whether the server has processed it.
//!
//! A question is a message to ourselves: the server reads a connection in order, so when it comes back, all
//! that was sent before it has been processed. The next batch goes out meanwhile.
//!
//! The one thing to know: what stands behind an event that was refused has been heard already. It is
//! remembered and not published again.

use super::{Cause, Instant, Link, Nats, Note, Outgoing, Unsent, Verdict, timeout};

impl Nats {
    /// Publishes the flight from the place `from` on, and waits until the server has processed what was on
    /// its way before; with nothing new, until it has processed some of it.
    pub(super) async fn publish_core(
        &mut self,
        link: &mut Link,
        flight: &[Outgoing],
        from: usize,
    ) -> Result<(), Cause> {
        for (verdict, outgoing) in self.verdicts.iter_mut().zip(flight).skip(from) {
            if self.ahead.has(outgoing) {
                *verdict = Verdict::Accepted;
            }
        }
        let end = if from < flight.len() {
            self.publish_from(link, flight, from).await?
        } else {
            let open = self.questions.len().saturating_sub(1);
            self.hear(link, flight, open, None).await?;
            flight.len()
        };
        if end < flight.len() || self.head_failed() {
            // What becomes of all that went out is known before the failure is told.
            self.hear(link, flight.get(..end).unwrap_or_default(), 0, None).await?;
            let accepted = self.accepted();
            for (outgoing, verdict) in flight.iter().zip(&self.verdicts).skip(accepted) {
                if *verdict == Verdict::Accepted {
                    self.ahead.accepted(outgoing);
                }
            }
        }
        Ok(())
    }

    /// Whether it is known that the first that is not accepted never will be.
    fn head_failed(&self) -> bool {
        let head = self.verdicts.get(self.accepted());
        head.is_some_and(|verdict| *verdict != Verdict::Pending)
    }

    /// Answers how far it came: to the end, or to an event that cannot be sent or was refused.
    async fn publish_from(
        &mut self,
        link: &mut Link,
        flight: &[Outgoing],
        mut from: usize,
    ) -> Result<usize, Cause> {
        loop {
            let careful = self.careful > 0;
            let to = if careful { from + 1 } else { flight.len() };
            let end = self.hand(link, flight, from, to).await?;
            let sent = flight.get(from..end).unwrap_or_default();
            let all_sent = flight.get(..end).unwrap_or_default();
            let alone = careful.then_some(from);
            let stuck = self.verdicts.get(end).is_some_and(|next| *next != Verdict::Pending);
            // A refusal reaches us by another way than the answer behind it. It has certainly come when
            // a second question is answered; that is asked where a subject was not used before.
            let news = sent.iter().any(|outgoing| !self.permitted.contains(&outgoing.address));
            if careful || news {
                self.question(link, 0).await?;
                self.hear(link, all_sent, 0, None).await?;
            }
            if !sent.is_empty() {
                self.question(link, sent.len()).await?;
            }
            // One batch stays on its way while the next is prepared.
            let open = usize::from(end == flight.len() && !careful);
            self.hear(link, all_sent, open, alone).await?;
            for outgoing in sent {
                self.permit(&outgoing.address);
            }
            if careful {
                self.careful -= 1;
            }
            if stuck || end >= flight.len() {
                return Ok(end);
            }
            self.hear(link, all_sent, 0, alone).await?;
            if self.head_failed() {
                return Ok(end);
            }
            from = end;
        }
    }

    /// Asks whether the server has processed the last `events`.
    pub(super) async fn question(&mut self, link: &Link, events: usize) -> Result<(), Cause> {
        self.batch += 1;
        let asked = timeout(self.timeout, link.question((self.batch, 0))).await;
        match asked.map_err(|_| self.silence())? {
            Ok(()) => self.questions.push_back((self.batch, events)),
            Err(Unsent::Lost(reason) | Unsent::Refused(reason)) => {
                return Err(Cause::Down(reason.into()));
            }
        }
        Ok(())
    }

    /// Takes note of an answer. One to a question that was given up finds none here.
    pub(super) fn answered_by(&mut self, mark: Option<(u64, usize)>) {
        let answered = self
            .questions
            .pop_front_if(|(asked, _)| mark.is_some_and(|(number, _)| number == *asked));
        self.answered += answered.map_or(0, |(_, events)| events);
    }

    /// Waits until no more than `open` questions are without an answer. `sent` is what went out of the
    /// flight, from its beginning; `alone` is the event that went out by itself, if one did.
    async fn hear(
        &mut self,
        link: &mut Link,
        sent: &[Outgoing],
        open: usize,
        alone: Option<usize>,
    ) -> Result<(), Cause> {
        while self.questions.len() > open {
            match self.answer(link).await? {
                Ok((mark, _)) => self.answered_by(mark),
                Err(Note::Lost(reason)) => return Err(self.lost(link, reason, sent)),
                Err(Note::Refused(text)) => drop(self.on_server_error(link, &text, sent)),
            }
        }
        while let Some(note) = link.noted() {
            match note {
                Note::Lost(reason) => return Err(self.lost(link, reason, sent)),
                Note::Refused(text) => drop(self.on_server_error(link, &text, sent)),
            }
        }
        match (self.unplaced.take(), alone) {
            (None, _) => {}
            (Some(text), Some(place)) => {
                let verdict = self.of_subject(text);
                self.settle(place, verdict);
            }
            // One of those on their way was refused, and nobody knows which: they go out one by one.
            (Some(text), None) if self.careful == 0 => {
                self.careful = sent.len();
                let reason =
                    format!("the server refused something that cannot be made out: {text}");
                return Err(Cause::Down(reason.into()));
            }
            // The second answer tells.
            (Some(text), None) => self.unplaced = Some(text),
        }
        for verdict in self.verdicts.iter_mut().take(self.answered) {
            if *verdict == Verdict::Pending {
                *verdict = Verdict::Accepted;
            }
        }
        self.begun = Instant::now();
        Ok(())
    }
}
