//! What a client asks for, and how Astro answers: subscribe, unsubscribe, and the errors.
//!
//! The order in which errors are found is ours, the documentation gives none: the rate, the form, a
//! scripted refusal, the limit, the credentials.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{clock, secret::Secret};
use crate::{
    connection::{CommandRecord, ServerConnection},
    frame,
    options::Success,
    text::{put_display, put_string},
    world::{NOTIFICATIONS, World},
};

/// The code that is sent without a nonce.
const RATE_LIMITED: &str = "rate_limit_exceeded";

/// The window of the command limit: "burst 100 per 10 s" (revision 2026).
const WINDOW: Duration = Duration::from_secs(10);

/// The commands of one connection in the last ten seconds.
#[derive(Debug)]
pub(crate) struct Rate {
    limit: usize,
    recent: VecDeque<Instant>,
}

impl Rate {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, recent: VecDeque::new() }
    }

    /// Whether a command may come now. One that may not does not count.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        while self.recent.front().is_some_and(|&first| now.duration_since(first) >= WINDOW) {
            self.recent.pop_front();
        }
        let allowed = self.recent.len() < self.limit;
        if allowed {
            self.recent.push_back(now);
        }
        allowed
    }
}

#[derive(Deserialize)]
struct Command {
    #[serde(rename = "type", default)]
    kind: String,
    nonce: Option<String>,
    #[serde(default)]
    data: Request,
}

#[derive(Deserialize, Default)]
struct Request {
    #[serde(default)]
    topic: String,
    room: Option<String>,
    token: Option<String>,
    token_type: Option<String>,
}

/// An error code, and its text for people.
type Refused = (String, String);

/// What is to be answered to a command.
#[derive(Debug)]
pub(crate) struct Answer {
    nonce: Option<String>,
    /// The data of the response.
    outcome: Result<Value, Refused>,
}

impl Answer {
    /// Sends the response.
    pub(crate) fn send(&self, world: &World, connection: &ServerConnection) {
        respond(world, connection, self.nonce.as_deref(), |text| match &self.outcome {
            Ok(data) => {
                text.extend_from_slice(br#","data":"#);
                put_display(text, data);
            }
            Err((code, message)) => {
                text.extend_from_slice(br#","error":"#);
                put_string(text, code);
                text.extend_from_slice(br#","data":{"message":"#);
                put_string(text, message);
                text.push(b'}');
            }
        });
    }
}

/// Takes a command and acts on it.
pub(crate) fn act(
    world: &World,
    connection: &Arc<ServerConnection>,
    text: &str,
    in_time: bool,
) -> Answer {
    world.count(|stats| stats.commands += 1);
    let Ok(command) = serde_json::from_str::<Command>(text) else {
        let refused = refusal("invalid_message", "the message could not be processed");
        let command = Command { kind: String::new(), nonce: None, data: Request::default() };
        record(connection, command, Some(refused.0.clone()));
        return Answer { nonce: None, outcome: Err(refused) };
    };
    let outcome = if in_time {
        execute(world, connection, &command)
    } else {
        world.count(|stats| stats.rate_limited += 1);
        Err(refusal(RATE_LIMITED, "rate limit exceeded"))
    };
    let error = outcome.as_ref().err().map(|(code, _)| code.clone());
    let has_nonce = error.as_deref() != Some(RATE_LIMITED);
    let nonce = command.nonce.clone().filter(|_| has_nonce);
    record(connection, command, error);
    Answer { nonce, outcome }
}

/// Does what the command says; returns the data of the response.
fn execute(
    world: &World,
    connection: &Arc<ServerConnection>,
    command: &Command,
) -> Result<Value, Refused> {
    let Command { kind, data, .. } = command;
    let (topic, asked) = (data.topic.as_str(), data.room.as_deref());
    if !matches!(kind.as_str(), "subscribe" | "unsubscribe") {
        return Err(refusal("invalid_message_type", "type must be subscribe or unsubscribe"));
    }
    if topic.is_empty() {
        return Err(refusal("err_bad_request", "topic is missing"));
    }
    if let Some(refused) = world.faults(|faults| faults.refusal(topic, asked.unwrap_or_default())) {
        return Err(refused);
    }
    if kind == "unsubscribe" {
        let room = asked.filter(|room| !room.is_empty()).map(|r| world.options.canonical.of(r));
        world.unsubscribe(connection, topic, room.as_deref());
        let text = "successfully unsubscribed from topic";
        return Ok(success(world, text, topic, room.as_deref().unwrap_or_default()));
    }
    let room = authorise(world, data)?;
    let full = connection.subscriptions(|all| {
        let more = !all.contains(&(topic.to_owned(), room.clone()));
        world.options.subscriptions_per_connection.filter(|&limit| more && all.len() >= limit)
    });
    if let Some(limit) = full {
        let text = format!("subscription limit of {limit} per connection exceeded");
        return Err(refusal("err_bad_request", &text));
    }
    if topic != NOTIFICATIONS {
        world.subscribe(connection, topic, &room);
    }
    Ok(success(world, "successfully subscribed to topic", topic, &room))
}

/// Checks the credentials, and finds the canonical room.
fn authorise(world: &World, data: &Request) -> Result<String, Refused> {
    let unauthorised = |text: &str| refusal("err_unauthorized", text);
    let given = data.token.as_deref().unwrap_or_default();
    let token = world.token(given).map_err(|()| unauthorised("invalid token"))?;
    // Without a room: the channel of the token (first revision); every room where it has none.
    let own = token.as_ref().and_then(|token| token.rooms.first().cloned()).unwrap_or_default();
    let asked = data.room.clone().filter(|room| !room.is_empty());
    let room = asked.map_or(own, |room| world.options.canonical.of(&room));
    if let Some(token) = token {
        let kind_fits = match (&token.token_type, &data.token_type) {
            (Some(needed), Some(given)) => needed == given,
            (Some(_), None) => false,
            (None, _) => true,
        };
        if !kind_fits {
            return Err(unauthorised("invalid token type"));
        }
        if !token.may_access(&room) || !token.may_subscribe(&data.topic) {
            return Err(unauthorised("the token has no permission for this topic and room"));
        }
    }
    Ok(room)
}

fn success(world: &World, message: &str, topic: &str, room: &str) -> Value {
    match world.options.success {
        Success::WithRoom => json!({ "message": message, "topic": topic, "room": room }),
        Success::WithoutRoom => json!({ "message": message, "topic": topic }),
        Success::Text => Value::from(message),
    }
}

fn refusal(code: &str, text: &str) -> Refused {
    (code.to_owned(), text.to_owned())
}

fn respond(
    world: &World,
    connection: &ServerConnection,
    nonce: Option<&str>,
    put: impl FnOnce(&mut Vec<u8>),
) {
    let text = world.envelope(world.options.response_type.as_str(), |text| {
        if let Some(nonce) = nonce {
            text.extend_from_slice(br#","nonce":"#);
            put_string(text, nonce);
        }
        put(text);
    });
    connection.send(|buffer| frame::put(buffer, frame::TEXT, &text));
}

fn record(connection: &ServerConnection, command: Command, error: Option<String>) {
    let Command { kind, nonce, data } = command;
    connection.record_command(CommandRecord {
        at: clock::now(),
        kind,
        nonce,
        topic: data.topic,
        room: data.room,
        token: data.token.map(Secret::new),
        token_type: data.token_type,
        error,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_limit_in_any_ten_seconds() {
        let mut rate = Rate::new(3);
        let start = Instant::now();
        let mut at = |millis| rate.allows(start + Duration::from_millis(millis));
        assert!(at(0) && at(1) && at(5_000));
        assert!(!at(9_999));
        assert!(at(10_000), "the first is ten seconds old");
        assert!(at(10_001) && !at(14_999) && at(15_000));
    }
}
