//! `JetStream`: a stream keeps the events and acknowledges each.
//!
//! Events go out one after another, and each says which is to be the last in the stream before it
//! (`Nats-Expected-Last-Msg-Id`). So when one is not stored, whatever the reason, none behind it is: no
//! event overtakes another. Where somebody else writes to the stream too, events are stored up to that
//! message, and go on from there; the more often that happens, the fewer are on their way at once.
//!
//! A replicated stream of a server before 2.11 remembers the id of a message that it did not store, and
//! would take its repeat for a duplicate. There events go out one by one.

use async_nats::{Message, ServerInfo, StatusCode, jetstream::ErrorCode};
use serde::Deserialize;

use super::{
    flight::{Fault, Outcome},
    message_id::MessageIds,
    stream::{self, KnownStream},
};

/// The first version whose replicated streams forget the id of a message that they did not store.
const FORGETS: (u32, u32) = (2, 11);

/// What is known of the stream, and what was stored on this connection.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) known: KnownStream,
    pub(super) chain: Chain,
    pub(super) ids: MessageIds,
    /// Whether it has stored an event on this connection.
    pub(super) has_stored: bool,
    pub(super) duplicates: u64,
}

impl Stream {
    /// Takes note of the stream's answer to an event.
    pub(super) fn answered(&mut self, message: &Message, subjects_vary: bool) -> Outcome {
        match PublishAnswer::read(message) {
            PublishAnswer::Stored { duplicate } => {
                self.duplicates += u64::from(duplicate);
                self.has_stored = true;
                self.chain.stored();
                Outcome::Accepted
            }
            // Where all go to one subject, the stream as a whole is full for us.
            PublishAnswer::SubjectFull(reason) if subjects_vary => {
                Outcome::Failed(Fault::Rejected(reason))
            }
            PublishAnswer::SubjectFull(reason) => Outcome::Failed(Fault::Busy(reason)),
            PublishAnswer::Other(outcome) => outcome,
        }
    }
}

/// How the order is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// Whether an event may go out before the one before it is stored.
    linked: bool,
    /// How many are on their way at once at most.
    limit: usize,
    /// So many were stored since the limit changed.
    run: usize,
}

impl Default for Chain {
    fn default() -> Self {
        Self { linked: true, limit: usize::MAX, run: 0 }
    }
}

impl Chain {
    /// How the order is kept by that server, for a stream of so many replicas, where it is known.
    pub(super) fn of(server: &ServerInfo, replicas: Option<usize>) -> Self {
        let single = replicas.map_or(server.cluster.is_none(), |replicas| replicas <= 1);
        let linked = stream::version(server) >= FORGETS || single;
        Self { linked, limit: if linked { usize::MAX } else { 1 }, run: 0 }
    }

    pub(super) fn fact(&self) -> Option<String> {
        let fact = "events are stored one by one, for the order's sake: a replicated stream of this \
                      server (before 2.11) does not forget a message that it did not store";
        (!self.linked).then(|| fact.into())
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn stored(&mut self) {
        self.run = self.run.saturating_add(1);
        if self.linked && self.run >= self.limit {
            self.limit = self.limit.saturating_mul(2);
            self.run = 0;
        }
    }

    /// Somebody else's message came between ours.
    pub(super) fn broke(&mut self) {
        if self.linked {
            self.limit = self.run.max(1);
        }
        self.run = 0;
    }
}

/// A stream's answer to a message.
#[derive(Debug, PartialEq, Eq)]
enum PublishAnswer {
    Stored {
        duplicate: bool,
    },
    /// It keeps no more of this subject.
    SubjectFull(String),
    Other(Outcome),
}

/// The answer's JSON.
#[derive(Deserialize)]
pub(crate) struct Ack {
    pub(crate) error: Option<async_nats::jetstream::Error>,
    pub(crate) seq: Option<u64>,
    #[serde(default)]
    pub(crate) duplicate: bool,
}

impl PublishAnswer {
    fn read(message: &Message) -> Self {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Self::Other(Outcome::NoStream);
        }
        Self::of(&message.payload)
    }

    fn of(payload: &[u8]) -> Self {
        let failed = |fault| Self::Other(Outcome::Failed(fault));
        match serde_json::from_slice(payload) {
            Ok(Ack { error: Some(error), .. }) => {
                let text = error.to_string();
                match error.error_code() {
                    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
                    | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => failed(Fault::Rejected(text)),
                    ErrorCode::STREAM_STORE_FAILED if text.contains("per subject") => {
                        Self::SubjectFull(text)
                    }
                    ErrorCode::STREAM_SEALED => failed(Fault::Denied(text)),
                    ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID => Self::Other(Outcome::Unlinked),
                    // Full, without a leader, short of memory: a human or time helps, and nothing is lost
                    // by waiting.
                    _ => failed(Fault::Busy(text)),
                }
            }
            // The first entry of a stream is its number 1. An older replicated stream says 0 of one that
            // it knows and has not stored yet.
            Ok(Ack { seq: Some(1..), duplicate, .. }) => Self::Stored { duplicate },
            Ok(Ack { seq: Some(0), .. }) => {
                failed(Fault::Busy("the stream has not stored an earlier copy of it yet".into()))
            }
            _ => failed(Fault::Busy("the stream's answer cannot be read".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server(version: &str) -> ServerInfo {
        let cluster = Some("c".into());
        ServerInfo { version: version.into(), cluster, ..ServerInfo::default() }
    }

    #[test]
    fn events_are_linked_unless_a_replicated_stream_is_too_old() {
        for (version, replicas, linked) in [
            ("2.9.10", Some(1), true),
            ("2.9.10", Some(3), false),
            ("2.9.10", None, false),
            ("2.10.29", Some(3), false),
            ("2.11.0", Some(3), true),
            ("2.12.1-RC.1", None, true),
            ("3.0.0", Some(5), true),
            ("", Some(3), false),
        ] {
            let chain = Chain::of(&server(version), replicas);
            assert_eq!(chain.linked, linked, "{version} {replicas:?}");
            assert_eq!(chain.fact().is_none(), linked);
        }
    }

    #[test]
    fn fewer_events_are_on_their_way_where_others_write() {
        let mut chain = Chain::default();
        let stored = |chain: &mut Chain, count| (0..count).for_each(|_| chain.stored());
        stored(&mut chain, 5);
        chain.broke();
        assert_eq!(chain.limit, 5);
        stored(&mut chain, 5);
        assert_eq!(chain.limit, 10);
        chain.broke();
        assert_eq!(chain.limit, 1);
        let mut single = Chain::of(&server("2.9.10"), Some(3));
        stored(&mut single, 5);
        assert_eq!(single.limit, 1);
        single.broke();
        assert_eq!(single.limit, 1);
    }

    #[test]
    fn answers_of_a_stream_are_classified() {
        let error = |code: u32, description: &str| {
            let error = json!({"code": 400, "err_code": code, "description": description});
            json!({"stream": "S", "error": error}).to_string()
        };
        for (payload, expected) in [
            (error(10054, "message size exceeds maximum allowed"), "rejected"),
            (error(10077, "maximum messages per subject exceeded"), "full"),
            (error(10077, "maximum bytes exceeded"), "busy"),
            (error(10109, "invalid operation on sealed stream"), "denied"),
            (error(10070, "wrong last msg ID: x"), "unlinked"),
            (error(10158, "duplicate message id is in process"), "busy"),
            (error(10023, "insufficient resources"), "busy"),
            (json!({"stream": "S", "seq": 0, "duplicate": true}).to_string(), "busy"),
            ("no JSON".into(), "busy"),
            (json!({"stream": "S", "seq": 7}).to_string(), "stored"),
        ] {
            let found = match PublishAnswer::of(payload.as_bytes()) {
                PublishAnswer::Stored { .. } => "stored",
                PublishAnswer::SubjectFull(_) => "full",
                PublishAnswer::Other(Outcome::Failed(Fault::Rejected(_))) => "rejected",
                PublishAnswer::Other(Outcome::Failed(Fault::Denied(_))) => "denied",
                PublishAnswer::Other(Outcome::Unlinked) => "unlinked",
                PublishAnswer::Other(_) => "busy",
            };
            assert_eq!(found, expected, "{payload}");
        }
    }
}
