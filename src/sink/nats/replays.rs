//! By which id a stream recognises an event that is handed over once more.

use std::borrow::Cow;

use crate::{
    base::event::{Origin, Seq},
    sink::Outgoing,
};

/// Events that are handed over once more because somebody asked for it. A stream would take them for
/// repeats, so each replay has ids of its own; one that is sent again keeps its id.
#[derive(Default)]
pub(super) struct Replays {
    /// What tells the ids of this replay from those of others.
    name: String,
    /// The number of the last of it that is accepted.
    through: Seq,
}

impl Replays {
    /// `outgoing` is handed over. A replay goes through the journal in order: what comes again is of another.
    pub(super) fn begin(&mut self, outgoing: &Outgoing) {
        let is_new = self.name.is_empty() || outgoing.record.seq <= self.through;
        if is_new && is_replayed(outgoing) {
            self.name = ulid::Ulid::new().to_string();
            self.through = 0;
        }
    }

    pub(super) fn accepted(&mut self, outgoing: &Outgoing) {
        if is_replayed(outgoing) {
            self.through = outgoing.record.seq;
        }
    }

    /// By what a stream recognises an event that comes again.
    pub(super) fn id<'o>(&self, outgoing: &'o Outgoing) -> Cow<'o, str> {
        let key = outgoing.record.event.key();
        if is_replayed(outgoing) {
            Cow::Owned(format!("{key}.{}", self.name))
        } else {
            Cow::Borrowed(key)
        }
    }
}

fn is_replayed(outgoing: &Outgoing) -> bool {
    outgoing.record.event.origin == Origin::Replayed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_replay_keeps_its_ids_until_another_begins() {
        let event = |seq| {
            let mut event =
                crate::base::event::own("relay.test", &"".into(), &"".into(), &json!({}), 1);
            event.origin = Origin::Replayed;
            let message = event.message.clone();
            Outgoing {
                record: Arc::new(crate::base::event::Record::new(seq, event)),
                address: "astro.tips".into(),
                payload: message,
                content_type: "application/json",
                expires_in: None,
                part: 0,
            }
        };
        let flight: Vec<Outgoing> = (1..=4).map(event).collect();
        let mut replays = Replays::default();
        let mut ids = |flight: &[Outgoing], accepted: usize| {
            for outgoing in flight {
                replays.begin(outgoing);
            }
            let ids: Vec<_> =
                flight.iter().map(|outgoing| replays.id(outgoing).into_owned()).collect();
            for outgoing in &flight[..accepted] {
                replays.accepted(outgoing);
            }
            ids
        };
        let first = ids(&flight[..2], 0);
        // Given up, and sent again; then the next of the same replay.
        assert_eq!(ids(&flight[..2], 2), first);
        let second = ids(&flight[2..], 1);
        assert_eq!(ids(&flight[3..], 1), second[1..]);
        assert_ne!(ids(&flight[..2], 0), first, "somebody asks once more");
    }
}
