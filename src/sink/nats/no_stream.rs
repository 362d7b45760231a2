//! Nobody has answered for an event: no stream takes its subject, or the stream has no leader at the moment.
//!
//! The stream is looked at again, and that says which. Where the user may not look at it, the two differ
//! only in time: leaders are elected within seconds. So the event waits for longer than that, and what goes
//! to a subject for which the stream has stored events is never rejected.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Mode, Nats, flight::Fault, stream};
use crate::{
    base::event::Seq,
    sink::{Cause, Outgoing},
};

/// An election takes less, whatever happens in between.
const ELECTION: Duration = Duration::from_mins(1);

/// Subjects of each sort that are remembered. More come from a template over the data; they are forgotten,
/// and found out again.
const MAX_SUBJECTS: usize = 4096;

/// What has turned out on this connection about subjects, where the user may not look at the stream.
#[derive(Default)]
pub(super) struct StreamSubjects {
    /// Those of events that were stored.
    stored: HashSet<Arc<str>>,
    /// Those for which nobody has answered for so long that no stream takes them.
    untaken: HashSet<Arc<str>>,
    /// The event for which nobody answers, and since when.
    event: Option<((Seq, u8), Instant)>,
}

impl StreamSubjects {
    /// An event with this subject was stored.
    pub(super) fn stored(&mut self, subject: &Arc<str>) {
        self.event = None;
        if !self.stored.contains(subject) {
            self.untaken.remove(subject);
            insert(&mut self.stored, subject);
        }
    }

    /// Nobody has answered for this event. An answer: no stream takes its subject.
    fn is_untaken(&mut self, outgoing: &Outgoing) -> bool {
        let subject = &outgoing.address;
        if self.stored.contains(subject) {
            return false;
        }
        if self.untaken.contains(subject) {
            return true;
        }
        let number = outgoing.number();
        let same = self.event.filter(|(event, _)| *event == number);
        let (_, since) = *self.event.insert(same.unwrap_or((number, Instant::now())));
        let untaken = since.elapsed() >= ELECTION;
        if untaken {
            insert(&mut self.untaken, subject);
        }
        untaken
    }
}

fn insert(subjects: &mut HashSet<Arc<str>>, subject: &Arc<str>) {
    if subjects.len() >= MAX_SUBJECTS {
        subjects.clear();
    }
    subjects.insert(Arc::clone(subject));
}

impl Nats {
    /// Why nobody answered for the oldest event: the stream is looked at again. Where that is given up, it
    /// begins again, and nothing is sent meanwhile.
    pub(super) async fn why_no_stream(&mut self, outgoing: &Outgoing) -> Result<Fault, Cause> {
        let address = &*outgoing.address;
        let wanted = super::wanted(&self.connector, self.purpose, self.repeats_within);
        let (Some(link), Mode::Stream(stream)) = (&mut self.link, &mut self.mode) else {
            return Err(Cause::Down("not connected".into()));
        };
        stream.known = stream::ensure(link, &wanted).await?;
        // Answers to the others were lost meanwhile.
        self.flight.restart();
        let nobody = format!("no stream takes {address:?}");
        let busy = |why: &str| Fault::Busy(format!("{nobody}: {why}"));
        let fault = match stream.known.takes(address) {
            Some(true) => busy("the stream has no leader at the moment, or was made just now"),
            None if stream.known.missing => busy("the relay makes the stream when it starts"),
            None if !stream.has_stored => {
                busy("whether there is a stream at all, the user may not look")
            }
            None if !self.permissions.stream_subjects.is_untaken(outgoing) => {
                busy("whether the stream has no leader at the moment, the user may not look")
            }
            takes => {
                let list = stream.known.list();
                let only = takes.map(|_| format!(": {} takes only {list}", wanted.name));
                let fault = self.of_subject(format!("{nobody}{}", only.unwrap_or_default()));
                self.permissions.refuse(address, fault.clone());
                fault
            }
        };
        self.flight.skip(fault.clone());
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::base::event::{Record, own};

    fn outgoing(seq: Seq, address: &str) -> Outgoing {
        let event = own("relay.test", &"".into(), &"".into(), &json!({}), 1);
        let payload = event.message.clone();
        Outgoing {
            record: Arc::new(Record::new(seq, event)),
            part: 0,
            address: address.into(),
            payload,
            content_type: "application/json",
            expires_in: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_subject_is_untaken_when_nobody_has_answered_for_one_event_of_it_for_a_minute() {
        let mut subjects = StreamSubjects::default();
        let (first, second) = (outgoing(1, "astro.a"), outgoing(2, "astro.a"));
        assert!(!subjects.is_untaken(&first));
        sleep(ELECTION / 2).await;
        // Another one waits from its own beginning.
        assert!(!subjects.is_untaken(&second));
        sleep(ELECTION * 9 / 10).await;
        assert!(!subjects.is_untaken(&second));
        sleep(ELECTION / 10).await;
        assert!(subjects.is_untaken(&second));
        assert!(subjects.is_untaken(&first), "that is known of the subject now");
        assert!(!subjects.is_untaken(&outgoing(3, "astro.b")), "and of no other");
    }

    #[tokio::test(start_paused = true)]
    async fn a_subject_for_which_events_were_stored_is_never_untaken() {
        let mut subjects = StreamSubjects::default();
        let event = outgoing(1, "astro.a");
        subjects.is_untaken(&event);
        sleep(ELECTION).await;
        assert!(subjects.is_untaken(&event));
        // The stream was changed.
        subjects.stored(&event.address);
        for _ in 0..3 {
            sleep(ELECTION).await;
            assert!(!subjects.is_untaken(&event));
        }
        for number in 0..=MAX_SUBJECTS {
            subjects.stored(&format!("astro.{number}").into());
        }
        assert!(subjects.stored.len() <= MAX_SUBJECTS);
    }
}
