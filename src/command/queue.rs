//! The way of a command to the executor, and of the answer back: bounded channels, and who may use them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::warn;

use super::{Answer, Command, ErrorKind, Failure, parse, report};
use crate::{base::sync::lock, config::Commands};

/// Commands that may wait for the executor: more than anybody gives by hand, and less than a megabyte.
const QUEUE: usize = 64;

/// Answers that may wait for one submitter: what the queue holds, so that each of them finds room.
pub(super) const REPLIES: usize = QUEUE;

/// Refusals of one submitter that are logged within [`COMPLAIN`]; the metric counts them all. Whoever may
/// publish must not be able to fill a disk by it.
const COMPLAINTS: u32 = 20;

/// See [`COMPLAINTS`].
const COMPLAIN: Duration = Duration::from_mins(1);

/// Where an answer goes: an MQTT topic, a NATS subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplyTo {
    /// Empty: whoever waits needs none.
    pub address: String,
    /// What MQTT 5 wants to have repeated.
    pub correlation: Option<Bytes>,
}

/// An answer, for whoever sends it.
#[derive(Debug)]
pub struct Reply {
    pub to: ReplyTo,
    pub answer: Arc<Answer>,
}

/// The answers to what one submitter has submitted.
pub type Replies = mpsc::Receiver<Reply>;

/// The way back of one command.
#[derive(Debug)]
pub(super) struct PendingReply {
    pub(super) reply_to: Option<ReplyTo>,
    pub(super) replies: mpsc::Sender<Reply>,
    pub(super) received: Instant,
}

impl PendingReply {
    pub(super) fn send(self, origin: &str, answer: &Arc<Answer>) {
        let Some(to) = self.reply_to else { return };
        let reply = Reply { to, answer: Arc::clone(answer) };
        if self.replies.try_send(reply).is_err() {
            // Whoever asks again with the same transaction gets it.
            warn!(origin, "the answer to a command cannot be sent: its way back is closed or full");
        }
    }
}

/// A command on its way to the executor.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) origin: Arc<str>,
    /// The transport says that it may have been sent before.
    pub(super) redelivered: bool,
    pub(super) reply: PendingReply,
}

/// The way to the executor. One for the relay; a submitter is made of it for each origin.
#[derive(Debug, Clone)]
pub struct CommandQueue {
    requests: mpsc::Sender<Request>,
    /// The configured channels, now.
    channels: watch::Receiver<BTreeSet<String>>,
}

/// The other end of it, for the executor.
#[derive(Debug)]
pub struct QueuedCommands(pub(super) mpsc::Receiver<Request>);

/// The way to the executor, and its end. `channels` are the labels of the configured channels.
pub fn command_queue(
    channels: watch::Receiver<BTreeSet<String>>,
) -> (CommandQueue, QueuedCommands) {
    let (requests, queued) = mpsc::channel(QUEUE);
    (CommandQueue { requests, channels }, QueuedCommands(queued))
}

impl CommandQueue {
    /// For an origin (a sink of that name, or `http`) that may give the `allowed` commands, with `only` for
    /// these channels; and the answers to what it submits.
    pub fn submitter(
        &self,
        origin: &str,
        only: Option<&[String]>,
        allowed: &Commands,
    ) -> (CommandSubmitter, Replies) {
        let (replies, answered) = mpsc::channel(REPLIES);
        let wanted = |label: &&String| only.is_none_or(|only| only.contains(*label));
        let submitter = CommandSubmitter {
            requests: self.requests.clone(),
            origin: origin.into(),
            channels: self.channels.borrow().iter().filter(wanted).cloned().collect(),
            allowed: allowed.clone(),
            replies,
            complaints: Arc::new(Mutex::new((Instant::now(), 0))),
        };
        (submitter, answered)
    }
}

/// Submits the commands of one origin.
#[derive(Debug, Clone)]
pub struct CommandSubmitter {
    requests: mpsc::Sender<Request>,
    origin: Arc<str>,
    channels: Arc<[String]>,
    allowed: Commands,
    replies: mpsc::Sender<Reply>,
    /// Since when refusals are counted, and how many there were.
    complaints: Arc<Mutex<(Instant, u32)>>,
}

/// A command as it was received.
#[derive(Debug)]
pub struct IncomingCommand<'a> {
    /// The channel's label, from the address.
    pub channel: &'a str,
    /// What stands behind `command` in the address, in parts.
    pub path: &'a [&'a str],
    pub payload: &'a [u8],
    /// The broker had kept it, or it may be one that clears what the broker had kept.
    pub retained: bool,
    /// The transport says that it may have been sent before.
    pub redelivered: bool,
    /// It may have been waiting to be read for long: whoever gave it has given up on it by now, and perhaps
    /// given another.
    pub late: bool,
    /// Where the answer goes; nowhere, if nobody asked for one.
    pub reply_to: Option<ReplyTo>,
}

impl CommandSubmitter {
    /// The channels whose commands are taken.
    pub fn channels(&self) -> &[String] {
        &self.channels
    }

    /// Takes a command, or answers why not. Never waits.
    pub fn submit(&self, incoming: IncomingCommand<'_>) {
        let IncomingCommand { channel, path, payload, retained, redelivered, late, reply_to } =
            incoming;
        let reply = self.reply(reply_to);
        let command = match parse::command(channel, path, payload) {
            Ok(command) => command,
            Err(answer) => return self.refuse(reply, *answer),
        };
        if late {
            let error = "the relay could not read it in time; it was not executed: send it again";
            let failure = Failure::new(ErrorKind::Late, 503, error);
            return self.refuse(reply, command.answer(Err(failure)));
        }
        if let Err(failure) = self.check_allowed(&command, retained) {
            return self.refuse(reply, command.answer(Err(failure)));
        }
        let request = Request { command, origin: Arc::clone(&self.origin), redelivered, reply };
        let (request, failure) = match self.requests.try_send(request) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(request)) => {
                (request, Failure::new(ErrorKind::Limited, 429, "too many commands wait"))
            }
            Err(mpsc::error::TrySendError::Closed(request)) => {
                (request, Failure::new(ErrorKind::Failed, 503, "the relay is stopping"))
            }
        };
        self.refuse(request.reply, request.command.answer(Err(failure)));
    }

    fn reply(&self, reply_to: Option<ReplyTo>) -> PendingReply {
        PendingReply { reply_to, replies: self.replies.clone(), received: Instant::now() }
    }

    fn check_allowed(&self, command: &Command, retained: bool) -> Result<(), Failure> {
        let action = command.order.action();
        if !self.channels.contains(&command.channel) {
            return Err(Failure::bad(404, "there is no such channel here"));
        }
        if !self.allowed.allow(action) {
            let error = format!("{} is not allowed here", action.as_str());
            return Err(Failure::new(ErrorKind::Forbidden, 403, error));
        }
        if retained {
            let error = "what is retained, or clears it, is not executed: send it without retain";
            return Err(Failure::new(ErrorKind::Retained, 400, error));
        }
        Ok(())
    }

    /// Whether a refusal may still be logged as a warning.
    fn may_complain(&self) -> bool {
        let now = Instant::now();
        let mut complaints = lock(&self.complaints);
        if complaints.0 + COMPLAIN <= now {
            *complaints = (now, 0);
        }
        complaints.1 = complaints.1.saturating_add(1);
        complaints.1 <= COMPLAINTS
    }

    fn refuse(&self, reply: PendingReply, answer: Answer) {
        report(&self.origin, &answer, self.may_complain());
        reply.send(&self.origin, &Arc::new(answer));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Action;

    fn incoming<'a>(
        channel: &'a str,
        path: &'a [&'a str],
        payload: &'a [u8],
    ) -> IncomingCommand<'a> {
        let reply_to = Some(ReplyTo { address: "back".into(), correlation: None });
        IncomingCommand {
            channel,
            path,
            payload,
            retained: false,
            redelivered: false,
            late: false,
            reply_to,
        }
    }

    fn answer(replies: &mut Replies) -> Value {
        let reply = replies.try_recv().unwrap();
        assert_eq!(reply.to.address, "back");
        serde_json::from_slice(&reply.answer.json()).unwrap()
    }

    fn channels(labels: &[&str]) -> watch::Receiver<BTreeSet<String>> {
        watch::channel(labels.iter().map(|&label| label.to_owned()).collect()).1
    }

    #[tokio::test]
    async fn a_command_that_is_not_allowed_is_answered_and_not_queued() {
        let (queue, mut queued) = command_queue(channels(&["main", "other"]));
        let (only, allowed) = (["main".to_owned()], Commands::Only(vec![Action::Set]));
        let (submitter, mut answers) = queue.submitter("home", Some(&only), &allowed);
        assert_eq!(submitter.channels(), ["main"]);
        let set = br#"{"element":"tip-goal","value":1,"transaction":"t"}"#;
        let retained =
            IncomingCommand { retained: true, ..incoming("main", &["session", "set"], set) };
        for (incoming, status) in [
            (incoming("main", &["session", "reset"], br#"{"transaction":"t"}"#), 403),
            (incoming("other", &["session", "set"], set), 404),
            (incoming("nobody", &["session", "set"], set), 404),
            (incoming("main", &["session", "drop"], br#"{"transaction":"t"}"#), 404),
            (retained, 400),
        ] {
            let what = format!("{incoming:?}");
            submitter.submit(incoming);
            let answer = answer(&mut answers);
            assert_eq!(
                (&answer["ok"], &answer["status"]),
                (&json!(false), &json!(status)),
                "{what}"
            );
            assert!(queued.0.try_recv().is_err(), "{what}");
        }
        submitter.submit(incoming("main", &["session", "set"], set));
        let request = queued.0.try_recv().unwrap();
        assert_eq!((&*request.origin, &request.command.transaction), ("home", &Some(json!("t"))));
        assert!(answers.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_full_queue_refuses() {
        let (queue, mut queued) = command_queue(channels(&["main"]));
        let (submitter, mut answers) = queue.submitter("home", None, &Commands::All(true));
        for _ in 0..=QUEUE {
            submitter.submit(incoming("main", &["session", "reload"], b""));
        }
        assert_eq!(answer(&mut answers)["status"], 429);
        assert!(answers.try_recv().is_err());
        queued.0.close();
        submitter.submit(incoming("main", &["session", "reload"], b""));
        assert_eq!(answer(&mut answers)["status"], 503);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_do_not_fill_the_log() {
        let (queue, _inbox) = command_queue(channels(&["main"]));
        let (submitter, _answers) = queue.submitter("home", None, &Commands::All(true));
        let loud = || (0..100).filter(|_| submitter.may_complain()).count();
        assert_eq!(loud(), 20);
        assert_eq!(loud(), 0);
        tokio::time::advance(COMPLAIN).await;
        assert_eq!(loud(), 20);
    }
}
