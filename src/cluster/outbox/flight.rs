//! Events that are published with nothing to wait for, side by side, and the log's answers to them.
//!
//! All answers come to one inbox, whose last word is the number of the attempt. An attempt that is made again has
//! another number, so that a late answer to the first is not taken for one to the second.

use std::{collections::VecDeque, sync::Arc};

use async_nats::{Client, HeaderMap, Message, StatusCode, SubscribeError, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::{
    IN_FLIGHT,
    attempt::{Outcome, PATIENCE},
};
use crate::{base::event::Seq, sink::nats::jetstream::Ack};

/// An event that was published.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) lane: Arc<str>,
    pub(super) seq: Seq,
    at: Instant,
}

pub(super) struct Flight {
    client: Client,
    /// The inbox's subject without its last word.
    inbox: String,
    answers: Subscriber,
    /// The attempts from number `first` on; `None`: answered.
    sent: VecDeque<Option<Sent>>,
    first: u64,
}

impl Flight {
    pub(super) async fn begin(client: &Client) -> Result<Self, SubscribeError> {
        let inbox = format!("{}.", client.new_inbox());
        let answers = client.subscribe(format!("{inbox}*")).await?;
        Ok(Self { client: client.clone(), inbox, answers, sent: VecDeque::new(), first: 0 })
    }

    /// Whether the event could be published at once.
    pub(super) fn publish(
        &mut self,
        (lane, seq): (&Arc<str>, Seq),
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> bool {
        if self.sent.len() >= IN_FLIGHT {
            return false;
        }
        let number = self.first + u64::try_from(self.sent.len()).unwrap_or(u64::MAX);
        let reply = format!("{}{number}", self.inbox);
        let client = &self.client;
        let published = client.publish_with_reply_and_headers(subject, reply, headers, payload);
        let is_sent = published.now_or_never().is_some_and(|published| published.is_ok());
        if is_sent {
            self.sent.push_back(Some(Sent { lane: Arc::clone(lane), seq, at: Instant::now() }));
        }
        is_sent
    }

    /// Waits for an answer; of none that is no longer waited for. `None`: the client is closed.
    pub(super) async fn answered(&mut self) -> Option<(Sent, Outcome)> {
        loop {
            let message = self.answers.next().await?;
            if let Some(sent) = self.take(&message) {
                return Some((sent, outcome(message.status, &message.payload)));
            }
        }
    }

    /// An answer that has come already.
    pub(super) fn answered_already(&mut self) -> Option<(Sent, Outcome)> {
        self.answered().now_or_never().flatten()
    }

    /// An event whose answer has not come in time.
    pub(super) fn overdue(&mut self) -> Option<(Sent, Outcome)> {
        self.forget_answered();
        let oldest = self.sent.front()?.as_ref()?;
        if oldest.at.elapsed() < PATIENCE {
            return None;
        }
        self.first += 1;
        Some((self.sent.pop_front()??, Outcome::Failed("NATS does not answer".into())))
    }

    /// No answer is waited for any more.
    pub(super) fn forget_all(&mut self) {
        self.first += u64::try_from(self.sent.len()).unwrap_or(u64::MAX);
        self.sent.clear();
    }

    fn take(&mut self, message: &Message) -> Option<Sent> {
        let number: u64 = message.subject.strip_prefix(&*self.inbox)?.parse().ok()?;
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let sent = self.sent.get_mut(index)?.take();
        self.forget_answered();
        sent
    }

    fn forget_answered(&mut self) {
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first += 1;
        }
    }
}

/// What a stream's answer means; a server answers itself where there is no stream.
fn outcome(status: Option<StatusCode>, payload: &[u8]) -> Outcome {
    if status == Some(StatusCode::NO_RESPONDERS) {
        return Outcome::NoLog;
    }
    match serde_json::from_slice(payload) {
        Ok(Ack { error: Some(error), .. }) => {
            Outcome::Failed(format!("the log takes no event: {error}"))
        }
        Ok(Ack { seq: Some(0), .. }) => Outcome::Unstored,
        Ok(Ack { seq: Some(_), duplicate: true, .. }) => Outcome::Duplicate,
        Ok(Ack { seq: Some(_), .. }) => Outcome::Stored,
        _ => Outcome::Failed("the log's answer cannot be read".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_log_says_what_became_of_the_event() {
        for (payload, expected) in [
            (r#"{"stream": "S", "seq": 7}"#, "stored"),
            (r#"{"stream": "S", "seq": 7, "duplicate": true}"#, "duplicate"),
            // Known, and not stored yet.
            (r#"{"stream": "S", "seq": 0, "duplicate": true}"#, "unstored"),
            (
                r#"{"stream": "S", "seq": 0, "error": {"code": 503, "err_code": 10077, "description": "full"}}"#,
                "failed",
            ),
            (r#"{"stream": "S"}"#, "failed"),
            ("", "failed"),
        ] {
            let found = match outcome(None, payload.as_bytes()) {
                Outcome::Stored => "stored",
                Outcome::Duplicate => "duplicate",
                Outcome::Unstored => "unstored",
                Outcome::Failed(_) => "failed",
                _ => "other",
            };
            assert_eq!(found, expected, "{payload}");
        }
        assert!(matches!(outcome(Some(StatusCode::NO_RESPONDERS), b""), Outcome::NoLog));
    }
}
