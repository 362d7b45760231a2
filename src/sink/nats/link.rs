//! One connection to one NATS server, from its beginning to its first failure.
//!
//! The client library would connect again by itself and then send what it still holds, behind what
//! the delivery sends a second time. So it is kept from that (see [`nowhere`]), and what it has to say
//! beside messages (the connection is gone, a publish was not permitted) is caught as a [`Note`].
//!
//! The one thing to know: whatever the server answers arrives in one inbox, in the order in which it
//! was said. A subject under that inbox says what the answer belongs to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message,
    ReconnectToServer, ServerAddr, ServerError, Subject, Subscriber,
    client::{PublishError, PublishErrorKind},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{sync::mpsc, time::timeout};

use super::{
    command::{self, Commands},
    refusal::{self, Refusal},
};
use crate::sink::{Cause, race};

/// What the server says beside answers that is kept until somebody looks. The client library keeps as
/// many and drops what is more without a word, so no more than half as many messages go out whose subjects
/// may be refused ([`MAX_UNPROVEN`]). More than fit all the same (rights were taken away meanwhile) end the
/// connection: then the next finds out subject by subject.
const MAX_NOTES: usize = 128;

/// Messages on their way to subjects to which the server has not yet let us publish.
pub(super) const MAX_UNPROVEN: usize = MAX_NOTES / 2;

/// The mark of the first question.
const GREETING: (u64, usize) = (0, 0);

/// What the server says: an answer with its mark, or something beside answers.
pub(super) type Said = Result<(Option<(u64, usize)>, Message), Note>;

/// What is said beside answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// The connection is gone, or the server asked us to go.
    Lost(&'static str),
    /// The server would not do something, in its words.
    Refused(String),
}

/// Why a message was not handed to the client.
#[derive(Debug)]
pub(super) enum Unsent {
    /// It can never be sent.
    Refused(String),
    /// The connection is gone.
    Lost(String),
}

/// What a request came to that was not answered.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The user may not ask.
    Denied(String),
    /// No answer in time.
    Silent,
    /// The connection is gone.
    Lost(String),
}

/// A connection.
pub(super) struct Link {
    client: Client,
    inbox: Subscriber,
    /// More was said beside answers than could be kept.
    too_much: Arc<AtomicBool>,
    /// Whether a message to ourselves comes back.
    asks: bool,
    requests: usize,
    /// The inbox's subject without its wildcard: `_INBOX.….`.
    prefix: String,
    notes: mpsc::Receiver<Note>,
    commands: Option<Commands>,
}

/// A server that cannot exist: nothing listens on port 0. The client must be given a server to
/// connect to after a loss, for it cannot be told to stay away; this one fails at once, and after
/// that the client gives up and drops all that it holds.
fn nowhere() -> Result<ServerAddr, std::io::Error> {
    "nats://127.0.0.1:0".parse()
}

impl Link {
    /// Connects to that server, and sees whether it answers us. `ping` is how often it is asked for a sign
    /// of life; the third question without an answer to the first ends the connection.
    pub(super) async fn connect(
        options: ConnectOptions,
        server: ServerAddr,
        tls_first: bool,
        ping: Duration,
        patience: Duration,
    ) -> Result<Self, Cause> {
        let (events, notes) = mpsc::channel(MAX_NOTES);
        let too_much = Arc::new(AtomicBool::new(false));
        let options = if tls_first { options.tls_first() } else { options };
        let speaks_late = !tls_first && server.tls_required();
        let connecting = Self::dial(options, server, ping, patience, events, Arc::clone(&too_much));
        let client = connecting.await.map_err(|error| match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                Cause::Denied { reason: format!("the server does not let us in: {error}") }
            }
            ConnectErrorKind::TimedOut if speaks_late => Cause::Down(
                "no answer in time; a server that waits for TLS (handshake_first) needs tls_first = true"
                    .into(),
            ),
            _ => down(error),
        })?;
        let prefix = format!("{}.", client.new_inbox());
        let inbox = client.subscribe(format!("{prefix}>")).await.map_err(down)?;
        let mut link = Self {
            client,
            inbox,
            too_much,
            asks: false,
            requests: 0,
            prefix,
            notes,
            commands: None,
        };
        timeout(patience, link.greet()).await.map_err(|_| {
            Cause::Down("the server accepts connections and does not answer".into())
        })??;
        Ok(link)
    }

    async fn dial(
        options: ConnectOptions,
        server: ServerAddr,
        ping: Duration,
        patience: Duration,
        events: mpsc::Sender<Note>,
        too_much: Arc<AtomicBool>,
    ) -> Result<Client, ConnectError> {
        let nowhere = nowhere()?;
        let pool = [server.clone(), nowhere.clone()];
        let used = AtomicBool::new(false);
        options
            .connection_timeout(race::dial_limit(patience))
            .ping_interval(ping)
            .ignore_discovered_servers()
            .max_reconnects(1)
            .reconnect_to_server_callback(move |_, _| {
                let again = used.swap(true, Ordering::Relaxed);
                let addr = if again { nowhere.clone() } else { server.clone() };
                let target = ReconnectToServer { addr, delay: Some(Duration::ZERO) };
                std::future::ready(Some(target))
            })
            .event_callback(move |event| {
                if let Some(note) = note(event)
                    && events.try_send(note).is_err()
                {
                    too_much.store(true, Ordering::Release);
                }
                std::future::ready(())
            })
            .connect(&pool[..])
            .await
    }

    /// Asks ourselves something: whether answers can reach us at all is known before anything else is sent.
    async fn greet(&mut self) -> Result<(), Cause> {
        let inbox = format!("{}>", self.prefix);
        let question = self.subject(GREETING);
        if let Err(Unsent::Refused(reason) | Unsent::Lost(reason)) = self.question(GREETING).await {
            return Err(Cause::Down(reason.into()));
        }
        loop {
            match self.answer().await {
                Ok((Some(GREETING), _)) => {
                    self.asks = true;
                    return Ok(());
                }
                Ok(_) => {}
                Err(Note::Lost(reason)) => return Err(Cause::Down(reason.into())),
                Err(Note::Refused(text)) => match refusal::read(&text) {
                    Refusal::Subscription(subject) if subject == inbox => {
                        return Err(Cause::Denied {
                            reason: format!(
                                "the user may not subscribe to {inbox}, where the server's answers \
                                 come: let it subscribe to {0}, or set inbox_prefix ({text})",
                                self.wanted()
                            ),
                        });
                    }
                    // It stands behind the subscription: that is permitted.
                    Refusal::Publish(subject) if subject == question => return Ok(()),
                    _ => tracing::debug!(text, "the server refused something"),
                },
            }
        }
    }

    /// The subjects of all our inboxes, as a pattern for a permission.
    pub(super) fn wanted(&self) -> String {
        let inbox = self.prefix.trim_end_matches('.');
        inbox.rsplit_once('.').map_or_else(|| inbox.into(), |(prefix, _)| format!("{prefix}.>"))
    }

    /// Whether a message to ourselves comes back.
    pub(super) fn asks(&self) -> bool {
        self.asks
    }

    /// The first words of all our inboxes.
    pub(super) fn inbox(&self) -> &str {
        &self.prefix
    }

    /// Whether an answer to a command went there lately.
    pub(super) fn has_answered(&self, subject: &str) -> bool {
        self.commands.as_ref().is_some_and(|commands| commands.has_answered(subject))
    }

    /// Sends a request and waits for the answer to it. Nothing else may be on its way.
    pub(super) async fn request(
        &mut self,
        subject: &str,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Message, Unanswered> {
        self.requests += 1;
        // No batch has this number.
        let mark = (u64::MAX, self.requests);
        let sent = self.publish(subject.into(), HeaderMap::new(), payload, Some(mark)).await;
        if let Err(Unsent::Refused(reason) | Unsent::Lost(reason)) = sent {
            return Err(Unanswered::Lost(reason));
        }
        let answered = async {
            loop {
                match self.answer().await {
                    Ok((found, message)) if found == Some(mark) => return Ok(message),
                    Ok(_) => {}
                    Err(Note::Lost(reason)) => return Err(Unanswered::Lost(reason.into())),
                    Err(Note::Refused(text)) => {
                        if refusal::read(&text) == Refusal::Publish(subject.to_owned()) {
                            return Err(Unanswered::Denied(text));
                        }
                        tracing::debug!(text, "the server refused something");
                    }
                }
            }
        };
        timeout(patience, answered).await.unwrap_or(Err(Unanswered::Silent))
    }

    /// Takes commands from here on; they are heard and answered whenever somebody waits for
    /// [`Link::answer`].
    pub(super) fn take_commands(&mut self, commands: Commands) {
        self.commands = Some(commands);
    }

    /// The client, for what needs no speed.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Hands a message to the client. The answer to it, if there is to be one, will bear `mark`.
    pub(super) async fn publish(
        &self,
        subject: Subject,
        headers: HeaderMap,
        payload: Bytes,
        mark: Option<(u64, usize)>,
    ) -> Result<(), Unsent> {
        let sent = match mark {
            None => self.client.publish_with_headers(subject, headers, payload).await,
            Some(mark) => {
                let reply = self.subject(mark);
                self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        sent.map_err(|error| unsent(&error))
    }

    /// Sends a message to ourselves. When it comes back, bearing `mark`, the server has processed all
    /// that was sent before: it reads a connection in order. (The client's own flush only says that
    /// the socket took it.)
    pub(super) async fn question(&self, mark: (u64, usize)) -> Result<(), Unsent> {
        self.client.publish(self.subject(mark), Bytes::new()).await.map_err(|error| unsent(&error))
    }

    /// The next answer with its mark, or what was said beside it. Answers come first, so that what
    /// the server did before it went away counts.
    pub(super) async fn answer(&mut self) -> Said {
        loop {
            if self.too_much.load(Ordering::Acquire) {
                return Err(Note::Lost("the server refused more than can be told apart"));
            }
            tokio::select! {
                biased;
                message = self.inbox.next() => {
                    let message = message.ok_or(Note::Lost("the connection has ended"))?;
                    return Ok((self.mark(&message), message));
                }
                Some(note) = self.notes.recv() => return Err(note),
                () = command::turn(&mut self.commands, &self.client) => {}
            }
        }
    }

    fn subject(&self, (batch, place): (u64, usize)) -> String {
        format!("{}{batch}.{place}", self.prefix)
    }

    fn mark(&self, message: &Message) -> Option<(u64, usize)> {
        let (batch, place) = message.subject.strip_prefix(&*self.prefix)?.split_once('.')?;
        Some((batch.parse().ok()?, place.parse().ok()?))
    }

    /// Gives the last answers to commands, and goes.
    pub(super) async fn close(mut self) -> Result<(), async_nats::Error> {
        if let Some(commands) = &mut self.commands {
            commands.finish(&self.client).await?;
        }
        Ok(())
    }

    /// What has been said beside answers and not looked at.
    pub(super) fn noted(&mut self) -> Option<Note> {
        if self.too_much.load(Ordering::Acquire) {
            return Some(Note::Lost("the server refused more than can be told apart"));
        }
        self.notes.try_recv().ok()
    }
}

fn down(error: impl Into<async_nats::Error>) -> Cause {
    Cause::Down(error.into())
}

fn unsent(error: &PublishError) -> Unsent {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
            Unsent::Refused(error.to_string())
        }
        PublishErrorKind::Send => Unsent::Lost(error.to_string()),
    }
}

fn note(event: Event) -> Option<Note> {
    match event {
        Event::Disconnected | Event::Closed => Some(Note::Lost("the connection is lost")),
        Event::LameDuckMode => Some(Note::Lost("the server is about to stop")),
        Event::ServerError(ServerError::Other(text)) => Some(Note::Refused(text)),
        Event::ServerError(ServerError::AuthorizationViolation) => {
            Some(Note::Refused("authorization violation".into()))
        }
        _ => None,
    }
}
