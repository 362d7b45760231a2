//! One connection to one NATS server, from its beginning to its first failure.
//!
//! The client library would connect again by itself and then send what it still holds, behind what is
//! sent a second time. So it is kept from that (see [`nowhere`]), and what the server says beside messages
//! (the connection is gone, a publish was not permitted) is caught as a [`ServerNotice`].
//!
//! Replies arrive in one inbox, in the order in which the server sent them. The last word of a reply's
//! subject, its [`Mark`], says what it belongs to.

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

use super::refusal::{self, Refusal};
use crate::sink::Cause;

/// Notices that are kept until somebody looks. The client library keeps as many and drops the rest without
/// a word, so no more than half as many messages go out whose subjects may be refused ([`MAX_UNPROVEN`]).
/// More than fit all the same (rights were taken away meanwhile) end the connection: then the next finds
/// out subject by subject.
const MAX_NOTICES: usize = 128;

/// Messages on their way to subjects to which the server has not yet let us publish.
pub(crate) const MAX_UNPROVEN: usize = MAX_NOTICES / 2;

/// What a reply belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Event(u64),
    /// A message to ourselves.
    Ping(u64),
    Request(u64),
}

impl Mark {
    fn subject(self, inbox: &str) -> String {
        match self {
            Self::Event(number) => format!("{inbox}e{number}"),
            Self::Ping(number) => format!("{inbox}p{number}"),
            Self::Request(number) => format!("{inbox}r{number}"),
        }
    }

    fn read(word: &str) -> Option<Self> {
        let (kind, number) = (word.get(..1)?, word.get(1..)?.parse().ok()?);
        match kind {
            "e" => Some(Self::Event(number)),
            "p" => Some(Self::Ping(number)),
            "r" => Some(Self::Request(number)),
            _ => None,
        }
    }
}

/// The mark of the first message to ourselves.
const GREETING: Mark = Mark::Ping(0);

/// What the server says beside messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerNotice {
    /// The connection is gone, or the server asked us to go.
    Lost(&'static str),
    /// The server would not do something, in its words.
    Refused(String),
}

/// Why a message was not handed to the client.
#[derive(Debug)]
pub(super) enum Unsent {
    /// It can never be sent.
    Invalid(String),
    /// The connection is gone.
    Lost(String),
}

/// What a request came to that was not answered.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The user may not send it.
    Denied(String),
    /// No answer in time.
    Silent,
    /// The connection is gone.
    Lost(String),
}

/// A connection.
pub(crate) struct Link {
    client: Client,
    inbox: Subscriber,
    notices: mpsc::Receiver<ServerNotice>,
    /// There were more notices than could be kept.
    overflow: Arc<AtomicBool>,
    /// Whether a message to ourselves comes back.
    loopback: bool,
    requests: u64,
    /// The inbox's subject without its wildcard: `_INBOX.….`.
    prefix: String,
}

/// A server that cannot exist: nothing listens on port 0. The client must be given a server to
/// connect to after a loss, for it cannot be told to stay away; this one fails at once, and after
/// that the client gives up and drops all that it holds.
fn nowhere() -> Result<ServerAddr, std::io::Error> {
    "nats://127.0.0.1:0".parse()
}

impl Link {
    /// Connects to that server, and sees whether it answers us.
    pub(super) async fn connect(
        options: ConnectOptions,
        server: ServerAddr,
        tls_first: bool,
        patience: Duration,
    ) -> Result<Self, Cause> {
        let (events, notices) = mpsc::channel(MAX_NOTICES);
        let overflow = Arc::new(AtomicBool::new(false));
        let speaks_late = !tls_first && server.tls_required();
        let connecting = Self::dial(options, server, events, Arc::clone(&overflow));
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
        let mut link =
            Self { client, inbox, notices, overflow, loopback: false, requests: 0, prefix };
        timeout(patience, link.greet()).await.map_err(|_| {
            Cause::Down("the server accepts connections and does not answer".into())
        })??;
        Ok(link)
    }

    async fn dial(
        options: ConnectOptions,
        server: ServerAddr,
        events: mpsc::Sender<ServerNotice>,
        overflow: Arc<AtomicBool>,
    ) -> Result<Client, ConnectError> {
        let nowhere = nowhere()?;
        let pool = [server.clone(), nowhere.clone()];
        let used = AtomicBool::new(false);
        options
            .ignore_discovered_servers()
            .max_reconnects(1)
            .reconnect_to_server_callback(move |_, _| {
                let again = used.swap(true, Ordering::Relaxed);
                let addr = if again { nowhere.clone() } else { server.clone() };
                let target = ReconnectToServer { addr, delay: Some(Duration::ZERO) };
                std::future::ready(Some(target))
            })
            .event_callback(move |event| {
                if let Some(notice) = notice(event)
                    && events.try_send(notice).is_err()
                {
                    overflow.store(true, Ordering::Release);
                }
                std::future::ready(())
            })
            .connect(&pool[..])
            .await
    }

    /// Sends ourselves a message: whether replies can reach us at all is known before anything else is sent.
    async fn greet(&mut self) -> Result<(), Cause> {
        let inbox = format!("{}>", self.prefix);
        let greeting = GREETING.subject(&self.prefix);
        if let Err(Unsent::Invalid(reason) | Unsent::Lost(reason)) = self.ping(GREETING).await {
            return Err(Cause::Down(reason.into()));
        }
        loop {
            match self.receive().await {
                Ok((GREETING, _)) => {
                    self.loopback = true;
                    return Ok(());
                }
                Ok(_) => {}
                Err(ServerNotice::Lost(reason)) => return Err(Cause::Down(reason.into())),
                Err(ServerNotice::Refused(text)) => match refusal::read(&text) {
                    Refusal::Subscription(subject) if subject == inbox => {
                        return Err(Cause::Denied {
                            reason: format!(
                                "the user may not subscribe to {inbox}, where the server's answers \
                                 come: let it subscribe to {0}, or set inbox_prefix ({text})",
                                self.inboxes()
                            ),
                        });
                    }
                    // It stands behind the subscription: that is permitted.
                    Refusal::Publish(subject) if subject == greeting => return Ok(()),
                    _ => tracing::debug!(text, "the server refused something"),
                },
            }
        }
    }

    /// The subjects of all our inboxes, as a pattern for a permission.
    pub(super) fn inboxes(&self) -> String {
        let inbox = self.prefix.trim_end_matches('.');
        inbox.rsplit_once('.').map_or_else(|| inbox.into(), |(prefix, _)| format!("{prefix}.>"))
    }

    /// Whether a message to ourselves comes back.
    pub(super) fn has_loopback(&self) -> bool {
        self.loopback
    }

    /// What our inbox's subjects begin with.
    pub(super) fn inbox(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request and waits for the answer to it. Replies to anything else are dropped meanwhile.
    pub(super) async fn request(
        &mut self,
        subject: &str,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Message, Unanswered> {
        self.requests += 1;
        let mark = Mark::Request(self.requests);
        let sent = self.publish(subject.into(), HeaderMap::new(), payload, Some(mark)).await;
        if let Err(Unsent::Invalid(reason) | Unsent::Lost(reason)) = sent {
            return Err(Unanswered::Lost(reason));
        }
        let answered = async {
            loop {
                match self.next().await {
                    Ok((found, message)) if found == mark => return Ok(message),
                    Ok(_) => {}
                    Err(ServerNotice::Lost(reason)) => return Err(Unanswered::Lost(reason.into())),
                    Err(ServerNotice::Refused(text)) => {
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

    /// Hands a message to the client. The reply to it, if there is to be one, will bear `mark`.
    pub(super) async fn publish(
        &self,
        subject: Subject,
        headers: HeaderMap,
        payload: Bytes,
        mark: Option<Mark>,
    ) -> Result<(), Unsent> {
        let sent = match mark {
            None => self.client.publish_with_headers(subject, headers, payload).await,
            Some(mark) => {
                let reply = mark.subject(&self.prefix);
                self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            }
        };
        sent.map_err(|error| unsent(&error))
    }

    /// Sends a message to ourselves. When it comes back, bearing `mark`, the server has processed all
    /// that was sent before: it reads a connection in order. (The client's own flush only says that
    /// the socket took it.)
    pub(super) async fn ping(&self, mark: Mark) -> Result<(), Unsent> {
        let subject = mark.subject(&self.prefix);
        self.client.publish(subject, Bytes::new()).await.map_err(|error| unsent(&error))
    }

    /// The next reply, or a notice. Safe to drop.
    pub(super) async fn next(&mut self) -> Result<(Mark, Message), ServerNotice> {
        self.receive().await.map_err(without_inbox)
    }

    /// The same, before it is known whether there is an inbox. Replies come first, so that what the server
    /// did before it went away counts.
    async fn receive(&mut self) -> Result<(Mark, Message), ServerNotice> {
        loop {
            if self.overflow.load(Ordering::Acquire) {
                return Err(ServerNotice::Lost("the server refused more than can be told apart"));
            }
            tokio::select! {
                biased;
                message = self.inbox.next() => {
                    let message = message.ok_or(ServerNotice::Lost("the connection has ended"))?;
                    let word = message.subject.strip_prefix(&*self.prefix);
                    if let Some(mark) = word.and_then(Mark::read) {
                        return Ok((mark, message));
                    }
                }
                Some(notice) = self.notices.recv() => return Err(notice),
            }
        }
    }

    /// The next notice; replies are dropped.
    pub(crate) async fn next_notice(&mut self) -> ServerNotice {
        loop {
            if let Err(notice) = self.next().await {
                return notice;
            }
        }
    }

    /// A notice that has come already.
    pub(super) fn take_notice(&mut self) -> Option<ServerNotice> {
        if self.overflow.load(Ordering::Acquire) {
            return Some(ServerNotice::Lost("the server refused more than can be told apart"));
        }
        self.notices.try_recv().ok()
    }
}

/// A subscription that is refused while the connection stands was permitted before, and is gone now. Nothing
/// is answered any more; the next connection finds out what the user lacks.
fn without_inbox(notice: ServerNotice) -> ServerNotice {
    if let ServerNotice::Refused(text) = &notice
        && let Refusal::Subscription(_) = refusal::read(text)
    {
        tracing::debug!(text, "the server refused something");
        return ServerNotice::Lost("the server has taken back the right to receive its answers");
    }
    notice
}

fn down(error: impl Into<async_nats::Error>) -> Cause {
    Cause::Down(error.into())
}

fn unsent(error: &PublishError) -> Unsent {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::InvalidSubject => {
            Unsent::Invalid(error.to_string())
        }
        PublishErrorKind::Send => Unsent::Lost(error.to_string()),
    }
}

fn notice(event: Event) -> Option<ServerNotice> {
    match event {
        Event::Disconnected | Event::Closed => Some(ServerNotice::Lost("the connection is lost")),
        Event::LameDuckMode => Some(ServerNotice::Lost("the server is about to stop")),
        Event::ServerError(ServerError::Other(text)) => Some(ServerNotice::Refused(text)),
        Event::ServerError(ServerError::AuthorizationViolation) => {
            Some(ServerNotice::Refused("authorization violation".into()))
        }
        _ => None,
    }
}
