//! `JetStream`: a stream keeps the events and acknowledges each.
//!
//! A batch goes out at once, and each event says which is to be the last in the stream before it
//! (`Nats-Expected-Last-Msg-Id`). So when one is not stored, whatever the reason, none behind it is: no
//! event overtakes another. Where somebody else writes to the stream too, a batch is stored up to that
//! message, and goes on from there; the more often that happens, the shorter the batches.
//!
//! The one thing to know: a replicated stream of a server before 2.11 remembers the id of a message that it
//! did not store, and would take its repeat for a duplicate. There events go out one by one.

use async_nats::{HeaderMap, HeaderValue, Message, ServerInfo, StatusCode, jetstream::ErrorCode};
use serde::Deserialize;

use super::{Cause, Link, Nats, Note, Outgoing, Verdict};

/// The first version whose replicated streams forget the id of a message that they did not store.
const FORGETS: (u32, u32) = (2, 11);

/// How the order is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// Whether an event may go out before the one before it is stored.
    linked: bool,
    /// How many go out at once at most.
    length: usize,
}

impl Default for Chain {
    fn default() -> Self {
        Self { linked: true, length: usize::MAX }
    }
}

impl Chain {
    /// How the order is kept by that server, for a stream of so many replicas, where it is known.
    pub(super) fn of(server: &ServerInfo, replicas: Option<usize>) -> Self {
        let mut version = server.version.split('.').map_while(|part| part.parse().ok());
        let version = (version.next().unwrap_or(0), version.next().unwrap_or(0));
        let single = replicas.map_or(server.cluster.is_none(), |replicas| replicas <= 1);
        let linked = version >= FORGETS || single;
        Self { linked, length: if linked { usize::MAX } else { 1 } }
    }

    pub(super) fn remark(&self) -> Option<String> {
        let remark = "events are stored one by one, for the order's sake: a replicated stream of this \
                      server (before 2.11) does not forget a message that it did not store";
        (!self.linked).then(|| remark.into())
    }

    /// Somebody else's message came behind so many of ours.
    fn broke(&mut self, behind: usize) {
        self.length = behind.max(1);
    }

    /// A whole batch was stored.
    fn held(&mut self) {
        if self.linked {
            self.length = self.length.saturating_mul(2);
        }
    }
}

/// Has the stream store a message only behind the one with the id `last`.
pub(super) fn link(headers: &mut HeaderMap, last: Option<&str>) {
    if let Some(last) = last {
        let last = HeaderValue::from(&*super::headers::presentable(last));
        headers.insert(async_nats::header::NATS_EXPECTED_LAST_MESSAGE_ID, last);
    }
}

/// A stream's answer to a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Stored { sequence: u64, duplicate: bool },
    Failed(Verdict),
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    error: Option<async_nats::jetstream::Error>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
}

impl Answer {
    pub(super) fn read(message: &Message) -> Self {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Self::Failed(Verdict::Untaken);
        }
        Self::of(&message.payload)
    }

    fn of(payload: &[u8]) -> Self {
        Self::Failed(match serde_json::from_slice(payload) {
            Ok(Words { error: Some(error), .. }) => match error.error_code() {
                ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
                | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => Verdict::Rejected(error.to_string()),
                // One subject is full, and the others are not.
                ErrorCode::STREAM_STORE_FAILED if error.to_string().contains("per subject") => {
                    Verdict::Full(error.to_string())
                }
                ErrorCode::STREAM_SEALED => Verdict::Denied(error.to_string()),
                ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID => Verdict::Unlinked,
                // Full, without a leader, short of memory: a human or time helps, and nothing is lost by
                // waiting.
                _ => Verdict::Busy(error.to_string()),
            },
            // The first entry of a stream is its number 1. An older replicated stream says 0 of one that
            // it knows and has not stored yet.
            Ok(Words { seq: Some(sequence @ 1..), duplicate, .. }) => {
                return Self::Stored { sequence, duplicate };
            }
            Ok(Words { seq: Some(0), .. }) => {
                Verdict::Busy("the stream has not stored an earlier copy of it yet".into())
            }
            _ => Verdict::Busy("the stream's answer cannot be read".into()),
        })
    }
}

impl Nats {
    /// Has the stream store the flight, up to the first event that it does not store.
    pub(super) async fn store(
        &mut self,
        link: &mut Link,
        flight: &[Outgoing],
    ) -> Result<(), Cause> {
        let mut from = 0;
        while from < flight.len() {
            self.batch += 1;
            self.verdicts.iter_mut().skip(from).for_each(|verdict| *verdict = Verdict::Pending);
            let length = if self.careful > 0 { 1 } else { self.chain.length };
            let to = from.saturating_add(length).min(flight.len());
            let end = self.hand(link, flight, from, to).await?;
            self.acknowledgements(link, flight, from, end).await?;
            let accepted = self.accepted();
            self.careful = self.careful.saturating_sub((accepted - from).max(1));
            match self.verdicts.get(accepted) {
                None | Some(Verdict::Pending) => self.chain.held(),
                Some(Verdict::Unlinked) if accepted > from => self.chain.broke(accepted - from),
                Some(Verdict::Untaken) => {
                    if let Some(outgoing) = flight.get(accepted) {
                        let verdict = self.untaken(link, outgoing).await?;
                        self.settle(accepted, verdict);
                    }
                    return Ok(());
                }
                Some(Verdict::Full(reason)) => {
                    // Where all go to one subject, the stream as a whole is full for us.
                    let reason = reason.clone();
                    let verdict = if self.settings.varies() {
                        Verdict::Rejected(reason)
                    } else {
                        Verdict::Busy(reason)
                    };
                    self.settle(accepted, verdict);
                    return Ok(());
                }
                Some(_) => return Ok(()),
            }
            from = accepted;
        }
        Ok(())
    }

    /// Waits until it is known what became of the events at `from..end`.
    async fn acknowledgements(
        &mut self,
        link: &mut Link,
        flight: &[Outgoing],
        from: usize,
        end: usize,
    ) -> Result<(), Cause> {
        let sent = flight.get(..end).unwrap_or_default();
        let mut left = end - from;
        while left > 0 {
            match self.answer(link).await {
                Ok(Ok((Some((number, place)), message))) if number == self.batch => {
                    let verdict = match Answer::read(&message) {
                        Answer::Stored { duplicate, .. } => {
                            self.duplicates += u64::from(duplicate);
                            self.stores = true;
                            Verdict::Accepted
                        }
                        Answer::Failed(verdict) => verdict,
                    };
                    if let Some(outgoing) = sent.get(place) {
                        // Whatever the answer: it got through.
                        self.permit(&outgoing.address);
                    }
                    self.settle(place, verdict);
                    left -= 1;
                }
                Ok(Ok(_)) => {}
                // An event that is not permitted gets no answer.
                Ok(Err(Note::Refused(text))) => {
                    left = left.saturating_sub(self.on_server_error(link, &text, sent));
                }
                Ok(Err(Note::Lost(reason))) => return Err(self.lost(link, reason, sent)),
                Err(silence) => {
                    let Some(text) = self.unplaced.take() else { return Err(silence) };
                    if left > 1 {
                        // One by one, it can only be the one.
                        self.careful = flight.len();
                        return Err(silence);
                    }
                    let verdict = self.of_subject(text);
                    let mut verdicts = self.verdicts.iter_mut().take(end);
                    if let Some(pending) = verdicts.find(|found| **found == Verdict::Pending) {
                        *pending = verdict;
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What it means that nobody answered for an event: the stream is looked at again.
    async fn untaken(&mut self, link: &mut Link, outgoing: &Outgoing) -> Result<Verdict, Cause> {
        let address = &outgoing.address;
        let nobody = format!("no stream takes {address:?}");
        self.look_at_stream(link).await?;
        let busy = |why: &str| Ok(Verdict::Busy(format!("{nobody}: {why}")));
        match self.stream.takes(address) {
            Some(true) => busy("the stream has no leader at the moment, or was made just now"),
            None if self.stream.missing => busy("the relay makes the stream when it starts"),
            None if !self.stores => busy("whether there is a stream at all, the user may not look"),
            takes => {
                let only = match takes {
                    Some(_) => {
                        format!(": {} takes only {}", self.settings.stream, self.stream.list())
                    }
                    None => String::new(),
                };
                let verdict = self.of_subject(format!("{nobody}{only}"));
                self.refuse(address, verdict.clone(), &[]);
                Ok(verdict)
            }
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
    fn events_are_linked_where_the_stream_forgets_what_it_did_not_store() {
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
            assert_eq!(chain.remark().is_none(), linked);
        }
    }

    #[test]
    fn batches_get_shorter_where_others_write_and_longer_again() {
        let mut chain = Chain::default();
        chain.broke(5);
        assert_eq!(chain.length, 5);
        chain.held();
        assert_eq!(chain.length, 10);
        chain.broke(0);
        assert_eq!(chain.length, 1);
        let mut single = Chain::of(&server("2.9.10"), Some(3));
        single.held();
        assert_eq!(single.length, 1);
    }

    #[test]
    fn every_answer_has_its_meaning() {
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
            let found = match Answer::of(payload.as_bytes()) {
                Answer::Stored { .. } => "stored",
                Answer::Failed(Verdict::Rejected(_)) => "rejected",
                Answer::Failed(Verdict::Full(_)) => "full",
                Answer::Failed(Verdict::Denied(_)) => "denied",
                Answer::Failed(Verdict::Unlinked) => "unlinked",
                Answer::Failed(_) => "busy",
            };
            assert_eq!(found, expected, "{payload}");
        }
    }
}
