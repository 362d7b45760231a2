//! Commands over NATS: a micro service that answers requests, and can be found.
//!
//! Requests come on `astro.<channel>.command.…`, each channel an endpoint, in the queue group of micro
//! services, so that of two relays with the same channel one answers. Whoever looks for services asks
//! `$SRV.PING`, `$SRV.INFO` or `$SRV.STATS` (ADR-32 of NATS). The client library has a service of its
//! own; it runs in a task that outlives the connection, and leaves the body of an error empty.
//!
//! The one thing to know: [`Commands::turn`] does one thing, and can be dropped at any await without
//! losing an answer: what is to be sent stands in `sending` until the client has it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use async_nats::{Client, HeaderMap, HeaderValue, Message, Subscriber};
use bytes::Bytes;
use futures_util::{StreamExt, stream::SelectAll};
use serde_json::{Value, json};

use super::{headers::presentable, subject};
use crate::{
    base::clock,
    command::{Answers, Back, Desk, Ear, Heard, Outbound, parse},
    config,
};

/// The service's name, by which several relays are one.
const NAME: &str = "astro-relay";

/// The queue group of micro services (ADR-32).
const QUEUE: &str = "q";

/// What begins the subjects of discovery (ADR-32).
const DISCOVERY: &str = "$SRV";

/// The headers of a failure (ADR-32).
const ERROR: &str = "Nats-Service-Error";
const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// Answers go to the inboxes of those who ask; none is ours.
const NO_INBOX: &str = "_INBOX";

/// Addresses of answers that are remembered, so that a refusal of one is not taken for one of an event.
const MAX_ANSWERED: usize = 64;

/// Commands and answers of one connection.
pub(super) struct Commands {
    ear: Ear,
    answers: Answers,
    heard: SelectAll<Subscriber>,
    id: String,
    started: String,
    endpoints: BTreeMap<String, Endpoint>,
    sending: Option<Sending>,
    answered: VecDeque<String>,
}

/// What a channel has answered on this connection.
#[derive(Default)]
struct Endpoint {
    requests: u64,
    errors: u64,
    last_error: String,
    took: Duration,
}

#[derive(Clone)]
struct Sending {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Commands {
    /// Subscribes to the commands of all channels of the desk, and to discovery.
    pub(super) async fn subscribe(
        client: &Client,
        desk: &Desk,
        allowed: &config::Commands,
    ) -> Result<Self, async_nats::Error> {
        let (ear, answers) = desk.ear(allowed);
        let id = ulid::Ulid::new().to_string();
        let mut heard = SelectAll::new();
        for channel in ear.channels() {
            heard.push(client.queue_subscribe(commands(channel), QUEUE.to_owned()).await?);
        }
        for of in [
            format!("{DISCOVERY}.*"),
            format!("{DISCOVERY}.*.{NAME}"),
            format!("{DISCOVERY}.*.{NAME}.{id}"),
        ] {
            heard.push(client.subscribe(of).await?);
        }
        let endpoint = |channel: &String| (channel.clone(), Endpoint::default());
        let endpoints = ear.channels().iter().map(endpoint).collect();
        let started = clock::rfc3339(clock::now());
        Ok(Self {
            ear,
            answers,
            heard,
            id,
            started,
            endpoints,
            sending: None,
            answered: VecDeque::new(),
        })
    }

    /// Takes one message, or hands one answer to the client.
    pub(super) async fn turn(&mut self, client: &Client) {
        if self.sending.is_none() {
            tokio::select! {
                Some(message) = self.heard.next() => self.take(&message),
                Some(outbound) = self.answers.recv() => self.note(&outbound),
                // The connection is gone: whoever looks at it will notice.
                else => std::future::pending().await,
            }
        }
        self.send(client).await;
    }

    /// Hands the client what is to be sent.
    async fn send(&mut self, client: &Client) {
        let Some(sending) = self.sending.clone() else { return };
        let Sending { subject, headers, payload } = sending;
        // Whoever asks says where the answer goes, and it goes there with our rights.
        if subject::reserved(&subject, NO_INBOX).is_some() && !subject.starts_with("_INBOX.") {
            tracing::warn!(subject, "an answer that is wanted at a reserved subject is not sent");
            self.sending = None;
            return;
        }
        if self.answered.len() == MAX_ANSWERED {
            self.answered.pop_front();
        }
        self.answered.push_back(subject.clone());
        let sent = client.publish_with_headers(subject, headers, payload).await;
        self.sending = None;
        if let Err(error) = sent {
            tracing::warn!(%error, "the answer to a command cannot be sent");
        }
    }

    /// Whether an answer went there lately.
    pub(super) fn has_answered(&self, subject: &str) -> bool {
        self.answered.iter().any(|answered| answered == subject)
    }

    /// Sends the answers that there are, and waits until they have left.
    pub(super) async fn finish(&mut self, client: &Client) -> Result<(), async_nats::Error> {
        self.send(client).await;
        while let Ok(outbound) = self.answers.try_recv() {
            self.note(&outbound);
            self.send(client).await;
        }
        client.flush().await?;
        Ok(())
    }

    fn take(&mut self, message: &Message) {
        let reply = message.reply.as_ref().map(ToString::to_string);
        let mut words = message.subject.split('.');
        if words.next() == Some(DISCOVERY) {
            let found = words.next().and_then(|verb| self.discovered(verb));
            if let (Some(subject), Some(found)) = (reply, found) {
                let payload = found.to_string().into();
                self.sending = Some(Sending { subject, headers: HeaderMap::new(), payload });
            }
            return;
        }
        let Some((channel, path)) = parse::address(message.subject.as_bytes(), '.') else {
            tracing::debug!("a message came that is no command");
            return;
        };
        self.ear.hear(Heard {
            channel,
            path: &path,
            payload: &message.payload,
            retained: false,
            again: false,
            back: reply.map(|address| Back { address, correlation: None }),
        });
    }

    fn note(&mut self, outbound: &Outbound) {
        let answer = &outbound.answer;
        let mut headers = HeaderMap::new();
        let endpoint = self.endpoints.entry(answer.channel.clone()).or_default();
        endpoint.requests += 1;
        endpoint.took += outbound.took;
        if let Err(failure) = &answer.outcome {
            let error = presentable(&failure.error);
            endpoint.errors += 1;
            endpoint.last_error = format!("{}:{error}", failure.status);
            headers.insert(ERROR, HeaderValue::from(&*error));
            headers.insert(ERROR_CODE, HeaderValue::from(failure.status));
        }
        let subject = outbound.back.address.clone();
        self.sending = Some(Sending { subject, headers, payload: answer.json() });
    }

    /// The answer to a question of discovery.
    fn discovered(&self, verb: &str) -> Option<Value> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let told = self.endpoints.iter();
        let own = match verb {
            "PING" => json!({}),
            "INFO" => json!({
                "description": "commands to the sessions of StreamElements",
                "endpoints": told.map(|(channel, _)| json!({
                    "name": channel, "subject": commands(channel), "queue_group": QUEUE,
                    "metadata": {},
                })).collect::<Value>(),
            }),
            "STATS" => json!({
                "started": self.started,
                "endpoints": told.map(|(channel, endpoint)| json!({
                    "name": channel, "subject": commands(channel), "queue_group": QUEUE,
                    "num_requests": endpoint.requests, "num_errors": endpoint.errors,
                    "last_error": endpoint.last_error,
                    "processing_time": nanos(endpoint.took),
                    "average_processing_time":
                        nanos(endpoint.took).checked_div(endpoint.requests).unwrap_or(0),
                })).collect::<Value>(),
            }),
            _ => return None,
        };
        let mut found = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_ascii_lowercase()),
            "name": NAME, "id": self.id, "version": env!("CARGO_PKG_VERSION"), "metadata": {},
        });
        if let (Some(found), Value::Object(own)) = (found.as_object_mut(), own) {
            found.extend(own);
        }
        Some(found)
    }
}

/// Does one thing; for ever nothing where no commands are taken.
pub(super) async fn turn(commands: &mut Option<Commands>, client: &Client) {
    match commands {
        Some(commands) => commands.turn(client).await,
        None => std::future::pending().await,
    }
}

fn commands(channel: &str) -> String {
    format!("{}.{channel}.{}.>", parse::ROOT, parse::COMMAND)
}

/// Whether a stream of these subjects would take commands, and answer them in the relay's place.
pub(super) fn is_taken_by(pattern: &str) -> bool {
    let command = [parse::ROOT, "*", parse::COMMAND];
    let mut wanted = command.iter();
    for word in pattern.split('.') {
        match (word, wanted.next()) {
            (">", _) | (_, None) => return true,
            (word, Some(known)) => {
                if word != *known && word != "*" && *known != "*" {
                    return false;
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_would_take_commands_is_known() {
        for (pattern, taken) in [
            ("astro.>", true),
            (">", true),
            ("*.>", true),
            ("astro.main.>", true),
            ("astro.*.command.>", true),
            ("astro.main.command.x", true),
            ("astro.*.channel.>", false),
            ("astro.main.relay.>", false),
            ("events.>", false),
            ("astro", false),
            ("astro.main", false),
        ] {
            assert_eq!(is_taken_by(pattern), taken, "{pattern}");
        }
    }
}
