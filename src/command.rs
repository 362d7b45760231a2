//! Commands: what somebody outside may have done to a channel's session, and how it is requested.
//!
//! Where commands are allowed, a listener at the destination of a sink ([`mod@listener`]) or the HTTP endpoint
//! submits what it receives through a [`CommandSubmitter`]. What can be read and is allowed goes through one
//! bounded [`queue`] to the one [`executor`], and the answer comes back as a [`Reply`], which whoever
//! submitted the command sends. What is not executed is answered all the same.
//!
//! A command is executed at most once. What cannot be queued, waits too long or repeats another is refused
//! or gets the first answer again; nothing here tries anything twice.

mod attention;
pub mod executor;
pub mod listener;
mod memory;
mod mqtt;
mod nats;
pub mod parse;
mod queue;
mod test_event;

use self::queue::{PendingReply, Request};
use bytes::Bytes;
use serde_json::{Map, Value};
use tracing::{debug, info, warn};

pub use self::queue::{
    CommandQueue, CommandSubmitter, IncomingCommand, QueuedCommands, Replies, Reply, ReplyTo,
    command_queue,
};
use crate::{
    base::{metrics, text},
    config::Action,
    delivery::test_event::TestKind,
};

/// The kinds of sink whose destination can give commands.
pub const LISTENERS: &[listener::Kind] = &[mqtt::KIND, nats::KIND];

/// The row of a kind of sink.
pub fn listener(kind: &str) -> Option<&'static listener::Kind> {
    LISTENERS.iter().find(|row| row.name == kind)
}

/// Bytes of an error in an answer: a server may say one of any length.
const ERROR: usize = 1000;

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The channel's label.
    pub channel: String,
    pub order: Order,
    /// By what the requester knows it again: a text or a number.
    pub transaction: Option<Value>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// An element gets another value.
    Set {
        /// In either spelling.
        element: String,
        value: Value,
    },
    /// A new session begins.
    Reset,
    /// The server works the sums out again.
    Reload,
    /// The relay fetches the session again.
    Refresh,
    /// A test event goes through the sinks.
    Test(TestKind),
}

impl Order {
    /// Which of the actions it is.
    pub fn action(&self) -> Action {
        match self {
            Self::Set { .. } => Action::Set,
            Self::Reset => Action::Reset,
            Self::Reload => Action::Reload,
            Self::Refresh => Action::Refresh,
            Self::Test(_) => Action::Test,
        }
    }
}

impl Command {
    pub fn answer(&self, outcome: Result<(), Failure>) -> Answer {
        let element = match &self.order {
            Order::Set { element, .. } => Some(element.clone()),
            _ => None,
        };
        Answer {
            channel: self.channel.clone(),
            action: Some(self.order.action()),
            element,
            transaction: self.transaction.clone(),
            outcome,
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The channel's label, as it stood in the address.
    pub channel: String,
    /// What was to be done, as far as it could be read.
    pub action: Option<Action>,
    /// Whose value was to be set.
    pub element: Option<String>,
    /// The transaction of the command.
    pub transaction: Option<Value>,
    /// Whether it was done.
    pub outcome: Result<(), Failure>,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: ErrorKind,
    /// A status in the words of HTTP; where the REST API refused, its own.
    pub status: u16,
    /// The reason. It shows no secret and no place on this machine.
    pub error: String,
}

/// Kinds of failure, as a metric counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It makes no sense.
    Bad,
    /// It is not allowed.
    Forbidden,
    /// The broker had kept it: nobody knows of what day it is.
    Retained,
    /// There were too many.
    Limited,
    /// It was read too late.
    Late,
    /// It was tried, and not done.
    Failed,
    /// It was tried, and may have been done.
    Unknown,
}

impl ErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Forbidden => "forbidden",
            Self::Retained => "retained",
            Self::Limited => "limited",
            Self::Late => "late",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl Failure {
    fn new(kind: ErrorKind, status: u16, error: impl Into<String>) -> Self {
        Self { kind, status, error: error.into() }
    }

    fn bad(status: u16, error: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bad, status, error)
    }
}

impl Answer {
    /// As it is sent: `{"ok":true,…}`, or `{"ok":false,"error":…,"status":…,…}`.
    pub fn json(&self) -> Bytes {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
        put("ok", self.outcome.is_ok().into());
        if let Err(failure) = &self.outcome {
            put("error", text::excerpt(&failure.error, ERROR).into());
            put("status", failure.status.into());
        }
        put("channel", self.channel.as_str().into());
        if let Some(action) = self.action {
            put("command", action.as_str().into());
        }
        if let Some(element) = &self.element {
            put("element", element.as_str().into());
        }
        if let Some(transaction) = &self.transaction {
            put("transaction", transaction.clone());
        }
        Value::Object(object).to_string().into()
    }
}

/// Logs and counts what became of a command; a refusal only quietly, unless it is to be `loud`.
fn report(origin: &str, answer: &Answer, loud: bool) {
    let Answer { channel, action, element, transaction, outcome } = answer;
    let command = action.map_or("none", Action::as_str);
    let word = outcome.as_ref().map_or_else(|failure| failure.kind.as_str(), |()| "ok");
    metrics::command(origin, command, word);
    let (element, transaction) = (element.as_deref(), transaction.as_ref().map(Value::to_string));
    match outcome {
        Ok(()) => info!(origin, channel, command, element, transaction, "a command was executed"),
        Err(Failure { kind, error, status }) if loud && *kind != ErrorKind::Limited => warn!(
            origin,
            channel,
            command,
            element,
            transaction,
            error,
            status,
            outcome = kind.as_str(),
            "a command was not executed"
        ),
        Err(Failure { error, status, .. }) => debug!(
            origin,
            channel, command, element, transaction, error, status, "a command was not executed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_one_flat_object() {
        let order = Order::Set { element: "tip-goal".into(), value: json!(1) };
        let command = Command { channel: "main".into(), order, transaction: Some(json!(7)) };
        let json =
            |outcome| -> Value { serde_json::from_slice(&command.answer(outcome).json()).unwrap() };
        let mut expected = json!({"ok": true, "channel": "main", "command": "session/set",
            "element": "tip-goal", "transaction": 7});
        assert_eq!(json(Ok(())), expected);
        expected["ok"] = false.into();
        expected["error"] = "no".into();
        expected["status"] = 404.into();
        assert_eq!(json(Err(Failure::bad(404, "no"))), expected);
    }
}
