//! Commands: what somebody outside may have done to a channel's session, and how it is asked for.
//!
//! Where commands are allowed, a sink (or the HTTP endpoint) has an [`Ear`]. It hands in what it heard;
//! what can be read and is allowed goes through one bounded queue to the one [`executor`], and the
//! answer comes back through [`Answers`], which whoever heard the command reads and sends. This file is
//! what both ends share: it knows no transport and no REST.
//!
//! What is not executed is answered all the same, as far as there is anybody to answer.
//!
//! The one thing to know: a command is executed at most once. What cannot be queued, waits too long or
//! repeats another is refused or gets the first answer again; nothing here tries anything twice.

pub mod executor;
pub mod listener;
mod memory;
mod mqtt;
mod nats;
pub mod parse;

pub use self::listener::LISTENERS;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{debug, info, warn};

use crate::{
    base::{metrics, text},
    config::{Action, Commands},
};

/// Commands that may wait for the executor: more than anybody gives by hand, and less than a megabyte.
const QUEUE: usize = 64;

/// Bytes of an error in an answer: a server may say one of any length.
const ERROR: usize = 1000;

/// Answers that may wait for one ear: what the queue holds, so that each of them finds room.
const ANSWERS: usize = QUEUE;

/// Refusals that an ear tells the log within [`COMPLAIN`]; the metric counts them all. Whoever may publish
/// must not be able to fill a disk by it.
const COMPLAINTS: u32 = 20;

/// See [`COMPLAINTS`].
const COMPLAIN: Duration = Duration::from_mins(1);

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The channel's label.
    pub channel: String,
    /// What is to be done.
    pub order: Order,
    /// By what the one who ordered it knows it again: a text or a number.
    pub transaction: Option<Value>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// An element gets another value.
    Set {
        /// Its name, in either spelling.
        element: String,
        /// The value.
        value: Value,
    },
    /// A new session begins.
    Reset,
    /// The server works the sums out anew.
    Reload,
    /// The relay fetches the session anew.
    Refresh,
}

impl Order {
    /// Which of the actions it is.
    pub fn action(&self) -> Action {
        match self {
            Self::Set { .. } => Action::Set,
            Self::Reset => Action::Reset,
            Self::Reload => Action::Reload,
            Self::Refresh => Action::Refresh,
        }
    }
}

impl Command {
    /// The answer to it.
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
    /// Of which sort it is.
    pub sort: Sort,
    /// A status in the words of HTTP; where the REST API refused, its own.
    pub status: u16,
    /// The reason. It shows no secret and no place on this machine.
    pub error: String,
}

/// Sorts of failure, as a metric counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
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

impl Sort {
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
    fn new(sort: Sort, status: u16, error: impl Into<String>) -> Self {
        Self { sort, status, error: error.into() }
    }

    fn bad(status: u16, error: impl Into<String>) -> Self {
        Self::new(Sort::Bad, status, error)
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

/// Where an answer goes: an MQTT topic, a NATS subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Back {
    /// The address. Empty: whoever waits needs none.
    pub address: String,
    /// What MQTT 5 wants to have repeated.
    pub correlation: Option<Bytes>,
}

/// An answer on its way to whoever sends it.
#[derive(Debug)]
pub struct Outbound {
    /// Where it goes.
    pub back: Back,
    /// The answer.
    pub answer: Arc<Answer>,
    /// How long it took.
    pub took: Duration,
}

/// Answers to what one ear heard.
pub type Answers = mpsc::Receiver<Outbound>;

/// The way back of one command.
#[derive(Debug)]
struct Reply {
    back: Option<Back>,
    to: mpsc::Sender<Outbound>,
    heard: Instant,
}

impl Reply {
    fn give(self, origin: &str, answer: &Arc<Answer>) {
        let Some(back) = self.back else { return };
        let outbound = Outbound { back, answer: Arc::clone(answer), took: self.heard.elapsed() };
        if self.to.try_send(outbound).is_err() {
            // Whoever asks again with the same transaction gets it.
            warn!(
                origin,
                "the answer to a command cannot be given: its way back is closed or full"
            );
        }
    }
}

/// A command on its way to the executor.
#[derive(Debug)]
struct Request {
    command: Command,
    origin: Arc<str>,
    /// The transport says that it may have been sent before.
    again: bool,
    reply: Reply,
}

/// The way to the executor. One for the relay; a [`Desk`] is made of it for each origin.
#[derive(Debug, Clone)]
pub struct Intake {
    requests: mpsc::Sender<Request>,
    /// The configured channels, now.
    channels: watch::Receiver<BTreeSet<String>>,
}

/// The other end of it, for the executor.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<Request>);

/// The way to the executor, and its end. `channels` are the labels of the configured channels.
pub fn intake(channels: watch::Receiver<BTreeSet<String>>) -> (Intake, Inbox) {
    let (requests, inbox) = mpsc::channel(QUEUE);
    (Intake { requests, channels }, Inbox(inbox))
}

impl Intake {
    /// What an origin takes commands with: a sink of that name, or `http`. With `only`, for these
    /// channels.
    pub fn desk(&self, origin: &str, only: Option<&[String]>) -> Desk {
        let only = only.map(|only| only.iter().cloned().collect());
        Desk { intake: self.clone(), origin: origin.into(), only }
    }
}

/// What one origin takes commands with.
#[derive(Debug, Clone)]
pub struct Desk {
    intake: Intake,
    origin: Arc<str>,
    only: Option<BTreeSet<String>>,
}

impl Desk {
    /// An ear for what is `allowed`, and the answers to what it hears: one for each connection, so that
    /// nobody gets an answer to what was asked over another.
    pub fn ear(&self, allowed: &Commands) -> (Ear, Answers) {
        let (answers, answered) = mpsc::channel(ANSWERS);
        let wanted = |label: &&String| self.only.as_ref().is_none_or(|only| only.contains(*label));
        let channels = self.intake.channels.borrow().iter().filter(wanted).cloned().collect();
        let (requests, origin) = (self.intake.requests.clone(), Arc::clone(&self.origin));
        let complaints = Arc::new(Mutex::new((Instant::now(), 0)));
        let allowed = allowed.clone();
        (Ear { requests, origin, channels, allowed, answers, complaints }, answered)
    }
}

/// Hears commands.
#[derive(Debug, Clone)]
pub struct Ear {
    requests: mpsc::Sender<Request>,
    origin: Arc<str>,
    channels: Arc<[String]>,
    allowed: Commands,
    answers: mpsc::Sender<Outbound>,
    /// Since when refusals are counted, and how many there were.
    complaints: Arc<Mutex<(Instant, u32)>>,
}

/// What was heard.
#[derive(Debug)]
pub struct Heard<'a> {
    /// The channel's label, from the address.
    pub channel: &'a str,
    /// What stands behind `command` in the address, in parts.
    pub path: &'a [&'a str],
    /// The payload.
    pub payload: &'a [u8],
    /// The broker had kept it, or it may be one that clears what the broker had kept.
    pub retained: bool,
    /// The transport says that it may have been sent before.
    pub again: bool,
    /// Where the answer goes; nowhere, if nobody asked for one.
    pub back: Option<Back>,
}

impl Ear {
    /// The channels whose commands are taken.
    pub fn channels(&self) -> &[String] {
        &self.channels
    }

    /// Takes a command, or answers why not. Never waits.
    pub fn hear(&self, heard: Heard<'_>) {
        let Heard { channel, path, payload, retained, again, back } = heard;
        let reply = Reply { back, to: self.answers.clone(), heard: Instant::now() };
        let command = match parse::command(channel, path, payload) {
            Ok(command) => command,
            Err(answer) => return self.refuse(reply, *answer),
        };
        if let Err(failure) = self.judge(&command, retained) {
            return self.refuse(reply, command.answer(Err(failure)));
        }
        let request = Request { command, origin: Arc::clone(&self.origin), again, reply };
        let (request, failure) = match self.requests.try_send(request) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(request)) => {
                (request, Failure::new(Sort::Limited, 429, "too many commands wait"))
            }
            Err(mpsc::error::TrySendError::Closed(request)) => {
                (request, Failure::new(Sort::Failed, 503, "the relay is stopping"))
            }
        };
        self.refuse(request.reply, request.command.answer(Err(failure)));
    }

    /// Refuses a command that may have been waiting to be read for long: whoever gave it has given up on it
    /// by now, and perhaps given another.
    pub fn too_late(&self, heard: Heard<'_>) {
        let Heard { channel, path, payload, back, .. } = heard;
        let reply = Reply { back, to: self.answers.clone(), heard: Instant::now() };
        let answer = match parse::command(channel, path, payload) {
            Ok(command) => {
                let error =
                    "the relay could not read it in time; it was not executed: send it again";
                command.answer(Err(Failure::new(Sort::Late, 503, error)))
            }
            Err(answer) => *answer,
        };
        self.refuse(reply, answer);
    }

    fn judge(&self, command: &Command, retained: bool) -> Result<(), Failure> {
        let action = command.order.action();
        if !self.channels.contains(&command.channel) {
            return Err(Failure::bad(404, "there is no such channel here"));
        }
        if !self.allowed.allow(action) {
            let error = format!("{} is not allowed here", action.as_str());
            return Err(Failure::new(Sort::Forbidden, 403, error));
        }
        if retained {
            let error = "what is retained, or clears it, is not executed: send it without retain";
            return Err(Failure::new(Sort::Retained, 400, error));
        }
        Ok(())
    }

    /// Whether a refusal may still be told at the level of a warning.
    fn may_complain(&self) -> bool {
        let now = Instant::now();
        // Two numbers are whole at any moment.
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.0 + COMPLAIN <= now {
            *complaints = (now, 0);
        }
        complaints.1 = complaints.1.saturating_add(1);
        complaints.1 <= COMPLAINTS
    }

    fn refuse(&self, reply: Reply, answer: Answer) {
        tell(&self.origin, &answer, self.may_complain());
        reply.give(&self.origin, &Arc::new(answer));
    }
}

/// Logs and counts what became of a command; a refusal only quietly, unless it is to be `loud`.
fn tell(origin: &str, answer: &Answer, loud: bool) {
    let Answer { channel, action, element, transaction, outcome } = answer;
    let command = action.map_or("none", Action::as_str);
    let word = outcome.as_ref().map_or_else(|failure| failure.sort.as_str(), |()| "ok");
    metrics::command(origin, command, word);
    let (element, transaction) = (element.as_deref(), transaction.as_ref().map(Value::to_string));
    match outcome {
        Ok(()) => info!(origin, channel, command, element, transaction, "a command was executed"),
        Err(Failure { sort, error, status }) if loud && *sort != Sort::Limited => warn!(
            origin,
            channel,
            command,
            element,
            transaction,
            error,
            status,
            outcome = sort.as_str(),
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

    fn heard<'a>(channel: &'a str, path: &'a [&'a str], payload: &'a [u8]) -> Heard<'a> {
        let back = Some(Back { address: "back".into(), correlation: None });
        Heard { channel, path, payload, retained: false, again: false, back }
    }

    fn said(answers: &mut Answers) -> Value {
        let outbound = answers.try_recv().unwrap();
        assert_eq!(outbound.back.address, "back");
        serde_json::from_slice(&outbound.answer.json()).unwrap()
    }

    fn channels(labels: &[&str]) -> watch::Receiver<BTreeSet<String>> {
        watch::channel(labels.iter().map(|&label| label.to_owned()).collect()).1
    }

    #[tokio::test]
    async fn what_is_not_allowed_reaches_nobody_and_is_answered() {
        let (intake, mut inbox) = intake(channels(&["main", "other"]));
        let desk = intake.desk("home", Some(&["main".to_owned()]));
        let (ear, mut answers) = desk.ear(&Commands::Only(vec![Action::Set]));
        assert_eq!(ear.channels(), ["main"]);
        let set = br#"{"element":"tip-goal","value":1,"transaction":"t"}"#;
        let kept = Heard { retained: true, ..heard("main", &["session", "set"], set) };
        for (heard, status) in [
            (heard("main", &["session", "reset"], br#"{"transaction":"t"}"#), 403),
            (heard("other", &["session", "set"], set), 404),
            (heard("nobody", &["session", "set"], set), 404),
            (heard("main", &["session", "drop"], br#"{"transaction":"t"}"#), 404),
            (kept, 400),
        ] {
            let what = format!("{heard:?}");
            ear.hear(heard);
            let answer = said(&mut answers);
            assert_eq!(
                (&answer["ok"], &answer["status"]),
                (&json!(false), &json!(status)),
                "{what}"
            );
            assert!(inbox.0.try_recv().is_err(), "{what}");
        }
        ear.hear(heard("main", &["session", "set"], set));
        let request = inbox.0.try_recv().unwrap();
        assert_eq!((&*request.origin, &request.command.transaction), ("home", &Some(json!("t"))));
        assert!(answers.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_queue_that_is_full_is_told() {
        let (intake, mut inbox) = intake(channels(&["main"]));
        let (ear, mut answers) = intake.desk("home", None).ear(&Commands::All(true));
        for _ in 0..=QUEUE {
            ear.hear(heard("main", &["session", "reload"], b""));
        }
        assert_eq!(said(&mut answers)["status"], 429);
        assert!(answers.try_recv().is_err());
        inbox.0.close();
        ear.hear(heard("main", &["session", "reload"], b""));
        assert_eq!(said(&mut answers)["status"], 503);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_do_not_fill_the_log() {
        let (intake, _inbox) = intake(channels(&["main"]));
        let (ear, _answers) = intake.desk("home", None).ear(&Commands::All(true));
        let loud = || (0..100).filter(|_| ear.may_complain()).count();
        assert_eq!(loud(), 20);
        assert_eq!(loud(), 0);
        tokio::time::advance(COMPLAIN).await;
        assert_eq!(loud(), 20);
    }

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
