//! Events to NATS: published to whoever listens, or kept by `JetStream`.
//!
//! With `jetstream` an event is accepted when the stream has acknowledged it; its message id lets the
//! stream recognise a repeat (see [`jetstream`]). Without, it is accepted when the server has processed it
//! (see [`core`]): who does not listen at that moment never hears it. Both are pipelined: events go out
//! while others are on their way. Reconnecting is the delivery's; the client is kept from it (see [`link`]).
//!
//! A subject to which the server does not let us publish, or which no stream takes, concerns its own
//! events alone: they are rejected, with the subject in the reason. Where all events have one subject, or
//! the user lacks a right without which nothing works, the sink is denied.

pub(crate) mod connector;
mod core;
mod flight;
pub(crate) mod headers;
pub(crate) mod jetstream;
pub(crate) mod link;
mod message_id;
mod no_stream;
mod permissions;
mod probe;
pub(crate) mod refusal;
pub(crate) mod settings;
pub(crate) mod stream;
pub(crate) mod subject;
mod together;

use std::time::Duration;

use async_nats::Message;
use async_trait::async_trait;
use futures_util::FutureExt;
use schemars::schema_for;
use tokio::{
    task::unconstrained,
    time::{Instant, timeout_at},
};

use self::{
    connector::Connector,
    core::Barrier,
    flight::{Fault, Flight, Outcome},
    headers::HeaderPolicy,
    jetstream::{Chain, Stream},
    link::{Link, MAX_UNPROVEN, Mark, ServerNotice, Unsent},
    message_id::MessageIds,
    permissions::Permissions,
    refusal::Refusal,
    settings::{DEFAULT_SUBJECT, Settings},
    stream::Wanted,
};
use super::{Address, Cause, Failure, Kind, Opening, Outgoing, Purpose, Report, Sink};
use crate::{
    base::event::Seq,
    config::{ConfigError, Period},
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "nats",
    summary: "NATS: published, or kept by JetStream",
    address: Some(Address {
        key: |_| "subject",
        separator: '.',
        default: |_| DEFAULT_SUBJECT,
        escape: subject::escape,
    }),
    usual_url: Some("nats://127.0.0.1:4222"),
    demo: Some(super::Demo {
        settings: "{}",
        watch: "nats sub 'astro.>'",
        stream: Some((
            r#"{"jetstream": true, "stream": "ASTRO", "create_stream": true}"#,
            "nats stream view ASTRO",
        )),
    }),
    session: true,
    secrets: &["password", "token", "nkey_seed", "credentials"],
    schema: || schema_for!(Settings),
    open,
    validate: Some(together::validate),
    probe: Some(probe::probe),
};

/// A stream answers each event by itself. So many answers are reported together, so that as many events go
/// out together behind them, where they come within a [`GROUP_WAIT`].
const GROUP: usize = 64;

/// See [`GROUP`].
const GROUP_WAIT: Duration = Duration::from_millis(1);

struct Nats {
    name: String,
    connector: Connector,
    /// A probe makes nothing at the server.
    purpose: Purpose,
    /// How long a stream must recognise a repeat at the least.
    repeats_within: Duration,
    headers: HeaderPolicy,
    link: Option<Link>,
    flight: Flight,
    mode: Mode,
    permissions: Permissions,
    progress: Progress,
    facts: Option<Vec<String>>,
}

/// By what an event is accepted.
enum Mode {
    Core(Barrier),
    Stream(Box<Stream>),
}

/// How the connection is doing.
struct Progress {
    /// When something was received last, or handed over with nothing on its way.
    since: Instant,
    /// Why the connection is gone: reported behind what is known of the events.
    lost: Option<Cause>,
    /// The last error of the server that was no refusal: why it ends the connection, mostly.
    last_error: Option<String>,
    /// So many events go out one by one, because the server refused something that nobody can make out:
    /// then it can only be the one.
    one_by_one: usize,
}

fn open(opening: &Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    Ok(Box::new(Nats::new(opening)?))
}

/// What is wanted of the stream. A probe makes none.
fn wanted(connector: &Connector, purpose: Purpose, repeats_within: Duration) -> Wanted<'_> {
    let settings = &connector.settings;
    Wanted {
        name: &settings.stream,
        subjects: settings.pattern(),
        create: &settings.create_stream,
        only_look: purpose == Purpose::Probe,
        repeats_within,
        patience: connector.timeout,
    }
}

#[async_trait]
impl Sink for Nats {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.disconnect();
        self.permissions.clear();
        self.link = Some(self.new_link().await?);
        Ok(())
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        if let Some((_, Outcome::NoStream)) = self.flight.head() {
            // Why is found out first. More would have to be sent again, and interrupt that.
            return Ok(0);
        }
        if self.link.is_none() {
            return Err(Failure::down("not connected"));
        }
        if self.progress.lost.is_some() && !self.flight.is_empty() {
            // What is known of those before is reported first.
            return Ok(0);
        }
        if let Some(cause) = self.progress.lost.take() {
            self.disconnect();
            return Err(cause.into());
        }
        if self.flight.is_empty() {
            self.progress.since = Instant::now();
        }
        for outgoing in events {
            self.flight.push(outgoing.clone());
        }
        self.publish();
        // Where the client has no room for it now, it is sent later.
        if let Some(Err(cause)) = self.ping().now_or_never() {
            self.progress.lost = Some(cause);
        }
        Ok(events.len())
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        loop {
            let accepted = self.take_accepted();
            if accepted > 0 {
                return Ok(accepted);
            }
            match self.head_fault().await {
                Ok(None) => {}
                Ok(Some(fault)) => return Err(self.report_fault(fault)),
                Err(cause) => drop(self.progress.lost.get_or_insert(cause)),
            }
            if let Some(cause) = self.progress.lost.take() {
                self.disconnect();
                return Err(cause.into());
            }
            if self.link.is_none() {
                return Err(Failure::down("not connected"));
            }
            self.publish();
            self.receive().await;
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        let settled = async {
            while self.flight.waiting() > 0 && self.progress.lost.is_none() && self.link.is_some() {
                self.receive().await;
            }
        };
        // What has not come until then is of unknown outcome.
        drop(timeout_at(until, settled).await);
        let accepted = self.flight.accepted();
        self.disconnect();
        accepted
    }

    fn report(&mut self) -> Report {
        let counts = match &mut self.mode {
            Mode::Core(_) => Vec::new(),
            Mode::Stream(stream) => {
                vec![("duplicates", std::mem::take(&mut stream.duplicates))]
            }
        };
        Report { counts, facts: self.facts.take() }
    }
}

impl Nats {
    fn new(opening: &Opening<'_>) -> Result<Self, ConfigError> {
        let connector = Connector::new(opening, "")?;
        let config = opening.config;
        Ok(Self {
            name: opening.name.to_owned(),
            headers: HeaderPolicy::of(&connector.settings, &config.payload),
            mode: if connector.settings.jetstream {
                let ids = MessageIds::of(&connector.settings, config);
                Mode::Stream(Box::new(Stream { ids, ..Stream::default() }))
            } else {
                Mode::Core(Barrier::default())
            },
            connector,
            purpose: opening.purpose,
            // The longest that passes before events of unknown outcome are sent again to a server that is
            // well.
            repeats_within: config.timeout.0 + config.backoff_max.0,
            link: None,
            flight: Flight::default(),
            permissions: Permissions::default(),
            progress: Progress {
                since: Instant::now(),
                lost: None,
                last_error: None,
                one_by_one: 0,
            },
            facts: None,
        })
    }

    async fn new_link(&mut self) -> Result<Link, Cause> {
        let mut link = self.connector.connect().await?;
        if let Mode::Stream(_) = self.mode {
            let known = stream::ensure(
                &mut link,
                &wanted(&self.connector, self.purpose, self.repeats_within),
            )
            .await?;
            let chain = Chain::of(&link.client().server_info(), known.replicas);
            let facts = known.facts.iter().cloned().chain(chain.fact());
            self.facts = Some(facts.collect());
            if let Mode::Stream(stream) = &mut self.mode {
                (stream.known, stream.chain) = (known, chain);
            }
        } else if !link.has_loopback() {
            return Err(Cause::Denied {
                reason: format!(
                    "the user may not publish to {}: core NATS acknowledges nothing, so the relay asks \
                     itself there whether the server has processed an event; let it, or set inbox_prefix",
                    link.inboxes()
                ),
            });
        }
        Ok(link)
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.progress.lost = None;
        self.progress.last_error = None;
        if let Mode::Stream(stream) = &mut self.mode {
            stream.has_stored = false;
        }
        self.give_up_flight();
    }

    fn give_up_flight(&mut self) {
        self.flight.clear();
        if let Mode::Core(barrier) = &mut self.mode {
            barrier.clear();
        }
    }

    /// Hands the client what is not out yet, as far as there is room.
    fn publish(&mut self) {
        let Some(link) = &self.link else { return };
        let settings = &self.connector.settings;
        loop {
            self.flight.skip_failed();
            let Some((number, outgoing)) = self.flight.next() else { return };
            let one_by_one = self.progress.one_by_one > 0;
            let limit = match &self.mode {
                _ if one_by_one => 1,
                Mode::Core(_) => usize::MAX,
                Mode::Stream(stream) => stream.chain.limit(),
            };
            if self.flight.waiting() >= limit {
                return;
            }
            let reply = link.inbox().len();
            if let Some(fault) = self.permissions.fault(&outgoing.address, settings.inbox(), reply)
            {
                self.flight.skip(fault);
                continue;
            }
            let is_unproven = one_by_one || !self.permissions.is_permitted(&outgoing.address);
            if is_unproven && self.flight.unproven() >= MAX_UNPROVEN {
                return;
            }
            let (mark, headers) = match &self.mode {
                Mode::Core(_) => {
                    let id = outgoing.record.event.key();
                    (None, self.headers.headers(outgoing, id, None))
                }
                Mode::Stream(stream) => {
                    let id = |outgoing| stream.ids.of_event(outgoing);
                    let behind = self.flight.last_published().map(id);
                    let (id, behind) = (id(outgoing), behind.as_deref());
                    (Some(Mark::Event(number)), self.headers.headers(outgoing, &id, behind))
                }
            };
            let subject = (&*outgoing.address).into();
            let publish = link.publish(subject, headers, outgoing.payload.clone(), mark);
            // Mostly the client takes it at once. Tokio would have this task give way behind every 128th.
            match unconstrained(publish).now_or_never() {
                None => return,
                Some(Ok(())) => self.flight.published(is_unproven),
                Some(Err(Unsent::Invalid(reason))) => self.flight.skip(Fault::Rejected(reason)),
                Some(Err(Unsent::Lost(reason))) => {
                    self.progress.lost = Some(Cause::Down(reason.into()));
                    return;
                }
            }
        }
    }

    /// Core NATS: sends a ping behind what is out, if one is due.
    async fn ping(&mut self) -> Result<(), Cause> {
        let (Mode::Core(barrier), Some(link)) = (&mut self.mode, &self.link) else { return Ok(()) };
        let out = self.flight.handled();
        let Some(number) = barrier.due(&out) else { return Ok(()) };
        match link.ping(Mark::Ping(number)).await {
            Ok(()) => barrier.sent(out.end),
            Err(Unsent::Lost(reason) | Unsent::Invalid(reason)) => {
                return Err(Cause::Down(reason.into()));
            }
        }
        Ok(())
    }

    /// Waits for what the server says next, and takes all of it that has come.
    async fn receive(&mut self) {
        let deadline = self.progress.since + self.connector.timeout;
        let idle = self.flight.is_empty();
        let received = async {
            self.ping().await?;
            let Some(link) = &mut self.link else { return std::future::pending().await };
            Ok(link.next().await)
        };
        let received = if idle {
            received.await
        } else {
            let received = timeout_at(deadline, received).await;
            received.unwrap_or_else(|_| Err(self.silence()))
        };
        let mut received = match received {
            Ok(received) => Some(received),
            Err(cause) => return self.progress.lost = Some(cause),
        };
        let (until, mut count) = (Instant::now() + GROUP_WAIT, 0);
        while let Some(message) = received {
            match message {
                Ok((mark, message)) => self.on_reply(mark, &message),
                Err(ServerNotice::Refused(text)) => self.on_refusal(&text),
                Err(ServerNotice::Lost(reason)) => {
                    self.on_loss(reason);
                    break;
                }
            }
            count += 1;
            let gathers = matches!(self.mode, Mode::Stream(_)) && count < GROUP;
            let more = gathers && self.flight.waiting() > 0;
            let Some(link) = &mut self.link else { break };
            received = match link.next().now_or_never() {
                None if more => timeout_at(until, link.next()).await.ok(),
                received => received,
            };
        }
        if let (Mode::Core(barrier), permissions) = (&self.mode, &mut self.permissions) {
            let proven = |outgoing: &Outgoing| permissions.permit(&outgoing.address);
            self.flight.accept(barrier.confirmed, barrier.processed, proven);
        }
    }

    fn silence(&self) -> Cause {
        let timeout = Period(self.connector.timeout);
        Cause::Down(format!("the server has not answered within {timeout}").into())
    }

    fn on_reply(&mut self, mark: Mark, message: &Message) {
        self.progress.since = Instant::now();
        match (mark, &mut self.mode) {
            (Mark::Ping(number), Mode::Core(barrier)) => barrier.returned(number),
            (Mark::Event(number), Mode::Stream(stream)) => {
                let Some(outgoing) = self.flight.get(number) else { return };
                // Whatever the answer: it got through.
                self.permissions.permit(&outgoing.address);
                let outcome = stream.answered(message, self.connector.settings.varies());
                let may_look = stream.known.replicas.is_some();
                if outcome == Outcome::Accepted && !may_look {
                    self.permissions.stream_subjects.stored(&outgoing.address);
                }
                self.flight.resolve(number, outcome);
            }
            _ => {}
        }
    }

    /// The server would not do something. It does not say which message that was.
    fn on_refusal(&mut self, text: &str) {
        match refusal::read(text) {
            Refusal::Publish(subject) => {
                let fault = self.of_subject(text.to_owned());
                if self.flight.refuse(&subject, &fault) {
                    self.permissions.refuse(&subject, fault);
                } else if !self.permissions.is_refused(&subject) && !subject.starts_with('$') {
                    self.on_unknown_refusal(text, true);
                }
            }
            Refusal::Other if refusal::is_publish(text) => self.on_unknown_refusal(text, false),
            Refusal::Other => {
                if text.to_ascii_lowercase().contains("control line") {
                    let reply = self.link.as_ref().map_or(0, |link| link.inbox().len());
                    if let Some(longest) = self.flight.longest_address() {
                        self.permissions.line_too_long(subject::line(longest, reply));
                    }
                }
                self.progress.last_error = Some(text.to_owned());
            }
            // That of the inbox ends the connection by itself.
            Refusal::Subscription(_) => {}
        }
    }

    /// A message was refused, and nobody can make out which, unless it can only be one. `named`: with a
    /// subject to which none goes that is here. That may be a message that was here before; but where they
    /// go out one by one, the server has another name for the one (it maps subjects).
    fn on_unknown_refusal(&mut self, text: &str, named: bool) {
        match self.flight.waiting() {
            0 => tracing::debug!(sink = self.name, text, "the server refused something"),
            1 if !named || self.progress.one_by_one > 0 => {
                let fault = self.of_subject(text.to_owned());
                self.flight.resolve_only(fault);
            }
            _ => {
                self.progress.one_by_one = self.flight.len();
                let reason =
                    format!("the server refused something that cannot be made out: {text}");
                self.progress.lost = Some(Cause::Down(reason.into()));
            }
        }
    }

    /// The connection is gone. A peer that closes it does so while it is well; one that has fallen silent
    /// is given up by the client, which takes some pings without an answer.
    fn on_loss(&mut self, reason: &str) {
        while let Some(notice) = self.link.as_mut().and_then(Link::take_notice) {
            match notice {
                ServerNotice::Refused(text) => self.on_refusal(&text),
                ServerNotice::Lost(_) => break,
            }
        }
        let reason = match self.progress.last_error.take() {
            Some(error) => format!("{reason}; the server said: {error}"),
            None => reason.to_owned(),
        };
        let well = self.progress.since.elapsed() < self.connector.ping_interval();
        let lost = if !self.flight.is_empty() && well {
            Cause::closed(reason)
        } else {
            Cause::Down(reason.into())
        };
        self.progress.lost.get_or_insert(lost);
    }

    /// What is wrong with a subject is one event's trouble where others have another.
    fn of_subject(&self, reason: String) -> Fault {
        if self.connector.settings.varies() {
            Fault::Rejected(reason)
        } else {
            Fault::Denied(reason)
        }
    }

    fn take_accepted(&mut self) -> usize {
        let accepted = self.flight.take_accepted();
        self.progress.one_by_one = self.progress.one_by_one.saturating_sub(accepted);
        accepted
    }

    /// What the oldest event has failed with. Where the stream has merely not stored it, it is sent again.
    async fn head_fault(&mut self) -> Result<Option<Fault>, Cause> {
        let Some((outgoing, outcome)) = self.flight.head() else { return Ok(None) };
        match outcome {
            Outcome::Failed(fault) => Ok(Some(fault.clone())),
            Outcome::Unlinked => {
                if let Mode::Stream(stream) = &mut self.mode {
                    stream.chain.broke();
                }
                self.flight.restart();
                Ok(None)
            }
            Outcome::NoStream => {
                let outgoing = outgoing.clone();
                self.why_no_stream(&outgoing).await.map(Some)
            }
            Outcome::Pending | Outcome::Accepted => Ok(None),
        }
    }

    /// The oldest event is reported as failed. Behind one that is rejected the others stay; what a stream
    /// was to store only behind it is sent again.
    fn report_fault(&mut self, fault: Fault) -> Failure {
        if let Fault::Rejected(_) = fault {
            let published = self.flight.take_head();
            self.progress.one_by_one = self.progress.one_by_one.saturating_sub(1);
            if published && matches!(self.mode, Mode::Stream(_)) {
                self.flight.restart();
                self.publish();
            }
        } else {
            self.give_up_flight();
        }
        Failure::after(0, fault.into())
    }
}

#[cfg(test)]
mod tests;
