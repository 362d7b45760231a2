//! One connection to one NATS server, from its beginning to its first failure.
//!
//! The client library would connect again by itself and then send what it still holds, behind what
//! the delivery sends a second time. So it is kept from that (see [`nowhere`]), and what it has to say
//! beside messages (the connection is gone, a publish was not permitted) is caught as a [`Note`].
//!
//! The one thing to know: whatever the server answers arrives in one inbox, in the order in which it
//! was said. A subject under that inbox says what the answer belongs to.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, HeaderMap, Message, ReconnectToServer, ServerAddr, ServerError,
    Subject, Subscriber,
    client::{PublishError, PublishErrorKind},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::command::{self, Commands};

/// Name, TCP, TLS and the server's INFO together. A server that takes longer is not well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server says beside answers that is kept until somebody looks. More than that at once is
/// the same thing again, for other events of one batch.
const MAX_NOTES: usize = 64;

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

/// A connection.
pub(super) struct Link {
    client: Client,
    inbox: Subscriber,
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
    /// Connects to that server. `ping` is how often it is asked for a sign of life; the third
    /// question without an answer to the first ends the connection.
    pub(super) async fn connect(
        options: ConnectOptions,
        server: ServerAddr,
        ping: Duration,
    ) -> Result<Self, async_nats::Error> {
        let (events, notes) = mpsc::channel(MAX_NOTES);
        let nowhere = nowhere()?;
        let pool = [server.clone(), nowhere.clone()];
        let used = AtomicBool::new(false);
        let client = options
            .connection_timeout(CONNECT_TIMEOUT)
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
                if let Some(note) = note(event) {
                    // No room: what is there already says enough, and a lost connection ends the
                    // inbox too.
                    drop(events.try_send(note));
                }
                std::future::ready(())
            })
            .connect(&pool[..])
            .await?;
        let prefix = format!("{}.", client.new_inbox());
        let inbox = client.subscribe(format!("{prefix}>")).await?;
        Ok(Self { client, inbox, prefix, notes, commands: None })
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
            Some((batch, place)) => {
                let reply = format!("{}{batch}.{place}", self.prefix);
                self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        sent.map_err(|error| unsent(&error))
    }

    /// Sends a message to ourselves. When it comes back, bearing `mark`, the server has processed all
    /// that was sent before: it reads a connection in order. (The client's own flush only says that
    /// the socket took it.)
    pub(super) async fn question(&self, (batch, place): (u64, usize)) -> Result<(), Unsent> {
        let subject = format!("{}{batch}.{place}", self.prefix);
        self.client.publish(subject, Bytes::new()).await.map_err(|error| unsent(&error))
    }

    /// The next answer with its mark, or what was said beside it. Answers come first, so that what
    /// the server did before it went away counts.
    pub(super) async fn answer(&mut self) -> Said {
        loop {
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
        self.notes.try_recv().ok()
    }
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
