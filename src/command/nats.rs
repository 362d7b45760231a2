//! Commands over NATS: a micro service (ADR-32 of NATS) that answers requests, and can be found.
//!
//! Requests come on `astro.<channel>.command.…`, each channel an endpoint, in the queue group of micro
//! services, so that of two relays with the same channel one answers. The service, its discovery and the
//! connection are the client library's. It gives up a connection after some attempts to restore it; then
//! another begins, with the secrets as they are then.
//!
//! What was read after the process or the machine stood still may have come long ago: it is answered, and
//! not executed.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    Client, ClientError, Event, HeaderMap, HeaderValue, ServerError,
    service::{
        NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, Service, ServiceExt,
        endpoint::Endpoint,
    },
};
use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, stream::SelectAll};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    CommandSubmitter, IncomingCommand, Replies, Reply, ReplyTo,
    attention::{Attention, TICK},
    listener::{CommandListener, Kind},
};
use crate::{
    base::backoff::Backoff,
    config::ConfigError,
    delivery::health::TaskHealth,
    sink::{
        Opening, command_address,
        nats::{connector::Connector, headers::presentable, refusal, subject},
    },
};

pub(super) const KIND: Kind = Kind { name: "nats", open };

/// The service's name, by which several relays are one.
const NAME: &str = "astro-relay";

/// Replies go to the inboxes of those who ask; none is ours.
const NO_INBOX: &str = "_INBOX";

/// How often the client library tries to restore a connection before another begins.
const MAX_RECONNECTS: usize = 10;

/// The ceilings of the waits before another connection.
const WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Requests that wait for their answers: more than the queue of commands and that of answers hold.
const MAX_PENDING: usize = 256;

/// At a stop, what is under way has so long to be answered.
const FINISH: Duration = Duration::from_secs(5);

fn open(opening: &Opening<'_>) -> Result<Box<dyn CommandListener>, ConfigError> {
    let connector = Connector::new(opening, "-commands")?;
    Ok(Box::new(MicroService {
        name: opening.name.to_owned(),
        connector,
        pending: Pending::default(),
    }))
}

struct MicroService {
    name: String,
    connector: Connector,
    pending: Pending,
}

/// Requests without an answer yet, by number.
#[derive(Default)]
struct Pending {
    requests: BTreeMap<u64, Request>,
    number: u64,
}

impl Pending {
    /// Where the answer to a request goes.
    fn add(&mut self, request: Request) -> ReplyTo {
        if self.requests.len() >= MAX_PENDING {
            self.requests.pop_first();
        }
        self.number += 1;
        self.requests.insert(self.number, request);
        ReplyTo { address: self.number.to_string(), correlation: None }
    }

    fn take(&mut self, to: &ReplyTo) -> Option<Request> {
        self.requests.remove(&to.address.parse().ok()?)
    }
}

/// A service on a connection. The library's task would go on without it.
struct Running {
    client: Client,
    service: Option<Service>,
    requests: SelectAll<Endpoint>,
    /// Why it does not work, if it does not.
    trouble: watch::Receiver<Option<String>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(service) = self.service.take() {
            // It waits for nothing.
            drop(service.stop().now_or_never());
        }
    }
}

#[async_trait]
impl CommandListener for MicroService {
    async fn run(
        &mut self,
        submitter: CommandSubmitter,
        mut replies: Replies,
        health: &TaskHealth,
        stop: &CancellationToken,
    ) {
        let mut backoff = Backoff::new(WAIT.0, WAIT.1);
        loop {
            let started = stop.run_until_cancelled(self.start(&submitter)).await;
            let Some(started) = started else { return };
            match started {
                Ok(mut running) => {
                    backoff.reset();
                    health.report(None);
                    tokio::select! {
                        () = stop.cancelled() => {
                            // Nothing more is received; what was is answered.
                            running.requests.clear();
                            drop(submitter);
                            return self.finish(&running.client, &mut replies).await;
                        }
                        () = self.serve(&mut running, &submitter, &mut replies, health) => {}
                    }
                    tracing::warn!(
                        sink = self.name,
                        "the connection for commands could not be restored; another one is made"
                    );
                    health.report(Some("the connection is lost"));
                }
                Err(error) => {
                    let error = error.to_string();
                    tracing::warn!(
                        sink = self.name,
                        error,
                        "nobody listens for commands; it is tried again"
                    );
                    health.report(Some(&error));
                }
            }
            if stop.run_until_cancelled(sleep(backoff.wait())).await.is_none() {
                return;
            }
        }
    }
}

impl MicroService {
    async fn start(&self, submitter: &CommandSubmitter) -> Result<Running, async_nats::Error> {
        let (report, trouble) = watch::channel(None);
        let name = self.name.clone();
        let client = self
            .connector
            .options()
            .await?
            .ping_interval(self.connector.ping_interval())
            .ignore_discovered_servers()
            .max_reconnects(MAX_RECONNECTS)
            .event_callback(move |event| {
                let is_attempt = matches!(event, Event::ClientError(_));
                if let Some(trouble) = trouble_of(&name, event) {
                    let trouble = trouble.err();
                    let known = report.send_replace(trouble.clone());
                    if is_attempt && known != trouble {
                        tracing::warn!(
                            sink = name,
                            why = trouble,
                            "nobody listens for commands now"
                        );
                    }
                }
                std::future::ready(())
            })
            .connect(self.connector.servers())
            .await?;
        let service = client
            .service_builder()
            .description("commands to the sessions of StreamElements")
            .start(NAME, env!("CARGO_PKG_VERSION"))
            .await?;
        let mut running =
            Running { client, service: Some(service), requests: SelectAll::new(), trouble };
        for channel in submitter.channels() {
            let subject =
                format!("{}.{channel}.{}.>", command_address::ROOT, command_address::COMMAND);
            if let Some(service) = &running.service {
                running.requests.push(service.endpoint_builder().name(channel).add(subject).await?);
            }
        }
        Ok(running)
    }

    /// Submits requests and sends answers until the connection is given up.
    async fn serve(
        &mut self,
        running: &mut Running,
        submitter: &CommandSubmitter,
        replies: &mut Replies,
        health: &TaskHealth,
    ) {
        let has_channels = !running.requests.is_empty();
        let mut reader = Attention::new();
        loop {
            tokio::select! {
                request = running.requests.next(), if has_channels => {
                    reader.attend();
                    let Some(request) = request else { return };
                    self.submit(request, submitter, reader.is_late());
                }
                Some(reply) = replies.recv() => {
                    reader.attend();
                    self.respond(&reply).await;
                }
                Ok(()) = running.trouble.changed() => {
                    let trouble = running.trouble.borrow_and_update().clone();
                    health.report(trouble.as_deref());
                }
                () = sleep(TICK) => reader.attend(),
            }
        }
    }

    fn submit(&mut self, request: Request, submitter: &CommandSubmitter, late: bool) {
        let message = request.message.clone();
        let Some((channel, path)) = command_address::parse(message.subject.as_bytes(), '.') else {
            tracing::debug!("a message came that is no command");
            return;
        };
        // Whoever asks says where the answer goes, and it goes there with our rights.
        let is_reserved = |reply: &str| {
            subject::reserved(reply, NO_INBOX).is_some() && !reply.starts_with("_INBOX.")
        };
        let reply_to = match &message.reply {
            Some(reply) if is_reserved(reply) => {
                let subject = reply.as_str();
                tracing::warn!(
                    sink = self.name,
                    subject,
                    "an answer that is wanted at a reserved subject is not sent"
                );
                None
            }
            Some(_) => Some(self.pending.add(request)),
            None => None,
        };
        let payload = &message.payload;
        submitter.submit(IncomingCommand {
            channel,
            path: &path,
            payload,
            retained: false,
            redelivered: false,
            late,
            reply_to,
        });
    }

    /// Sends an answer. The library's own way to answer with an error leaves the body empty.
    async fn respond(&mut self, reply: &Reply) {
        let Some(request) = self.pending.take(&reply.to) else { return };
        let mut headers = HeaderMap::new();
        if let Err(failure) = &reply.answer.outcome {
            headers.insert(NATS_SERVICE_ERROR, HeaderValue::from(&*presentable(&failure.error)));
            headers.insert(NATS_SERVICE_ERROR_CODE, HeaderValue::from(failure.status));
        }
        if let Err(error) = request.respond_with_headers(Ok(reply.answer.json()), headers).await {
            tracing::warn!(sink = self.name, %error, "the answer to a command cannot be sent");
        }
    }

    /// Sends the answers to what is under way.
    async fn finish(&mut self, client: &Client, replies: &mut Replies) {
        let end = Instant::now() + FINISH;
        while let Ok(Some(reply)) = timeout_at(end, replies.recv()).await {
            self.respond(&reply).await;
        }
        if !matches!(timeout_at(end, client.flush()).await, Ok(Ok(()))) {
            tracing::debug!(sink = self.name, "the server was gone before the last answer");
        }
    }
}

/// What an event of the client says of the service: that it works, why it does not, or nothing.
fn trouble_of(sink: &str, event: Event) -> Option<Result<(), String>> {
    match event {
        Event::Connected => Some(Ok(())),
        Event::Disconnected | Event::Closed => Some(Err("the connection is lost".into())),
        // An attempt to restore it.
        Event::ClientError(ClientError::Other(why)) => {
            Some(Err(format!("the connection is lost: {why}")))
        }
        Event::ServerError(ServerError::Other(text)) => {
            if let refusal::Refusal::Subscription(_) = refusal::read(&text) {
                tracing::error!(sink, text, "the server does not let the sink listen for commands");
                return Some(Err(text));
            }
            tracing::warn!(sink, text, "the server refused something of the commands");
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_is_refused_is_the_reason_until_the_connection_is_restored() {
        let refused = ClientError::Other("authorization violation".into());
        let why = "the connection is lost: authorization violation";
        assert_eq!(trouble_of("bus", Event::ClientError(refused)), Some(Err(why.to_owned())));
        assert_eq!(trouble_of("bus", Event::Connected), Some(Ok(())));
    }
}
