//! Events to NATS: published to whoever listens, or kept by `JetStream`.
//!
//! With `jetstream` an event counts as accepted when the stream has acknowledged it; its message id
//! lets the stream recognise a repeat. Without, a batch counts as accepted when the server has
//! processed all of it, which a message to ourselves behind it tells (a question): who does not listen
//! at that moment never hears it. The next batch goes out meanwhile, or the server would have nothing
//! to do while its answer is on its way. Reconnecting is the delivery's; the client is kept from it.
//! Commands, where they are configured, come and are answered over the same connection, see
//! [`command`].
//!
//! With `state`, the live state is kept in a key-value bucket, see [`bucket`].
//!
//! A subject to which the server does not let us publish, or which no stream takes, concerns its own
//! events alone: they are rejected, with the subject in the reason. Where all events have one subject, or
//! the user lacks a right without which nothing works, the sink is denied before anything is published.
//!
//! The one thing to know: on any failure the client is dropped with all that it holds. It sends
//! nothing of it later, see [`link`].

mod bucket;
mod command;
mod core;
mod headers;
mod jetstream;
mod link;
mod refusal;
mod replays;
mod settings;
mod stream;
mod subject;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::{ConnectOptions, HeaderMap, ServerAddr, StatusCode, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use schemars::schema_for;
use tokio::{
    task::unconstrained,
    time::{Instant, timeout},
};

use self::{
    command::Commands,
    headers::Beside,
    jetstream::{Answer, Chain},
    link::{Link, MAX_UNPROVEN, Note, Said, Unsent},
    refusal::Refusal,
    replays::Replays,
    settings::{DEFAULT_SUBJECT, Settings},
    stream::{Known, Wanted},
    subject::escape,
};
use super::{
    Address, Cause, Failure, Kind, Opening, Outgoing, Part, Permission, Purpose, Sink, address,
    ahead::OutOfOrderAcks,
    batched::{BatchSink, Batched},
    pulse::Pulse,
    race, settings,
};
use crate::{
    base::tls::client_config,
    channel::board::{Path, Section},
    command::Desk,
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
        escape,
    }),
    usual_url: Some("nats://127.0.0.1:4222"),
    demo: Some(super::Demo { settings: "{}", watch: "nats sub 'astro.>'" }),
    session: true,
    secrets: &["password", "token", "nkey_seed", "credentials"],
    schema: || schema_for!(Settings),
    keeps: true,
    open,
    validate: Some(|sinks| super::together::same_state(sinks, &["url", "urls", "state_bucket"])),
    probe: None,
};

/// Subjects that are remembered as permitted. Events have some thirty topics for each channel; more
/// than this come from a template over the data, and are forgotten and asked about again.
const MAX_SUBJECTS: usize = 4096;

/// Subjects that are remembered as refused; more come from a template over the data.
const MAX_REFUSED: usize = 1024;

/// How long a subject that was refused is not tried again: rights and streams are changed while a
/// connection stands.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// A stream that there is not: a message that expects it is kept by none.
const NO_STREAM: &str = "astro-relay-check";

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Verdict {
    #[default]
    Pending,
    Accepted,
    Busy(String),
    Rejected(String),
    Denied(String),
    /// The stream keeps no more of its subject.
    Full(String),
    /// No stream took it.
    Untaken,
    /// The stream did not store it, because the event before it is not its last.
    Unlinked,
}

struct Nats {
    name: String,
    /// Whether the state is kept.
    keeps: bool,
    /// The newest place of the relay's own status in its bucket, on this connection.
    newest_status: u64,
    pulse: Pulse,
    settings: Settings,
    /// A visit makes nothing at the server.
    visit: bool,
    servers: Vec<ServerAddr>,
    /// The server that answered last.
    server: usize,
    timeout: Duration,
    /// How often the server is asked for a sign of life.
    ping: Duration,
    /// How long the stream must recognise a repeat at the least.
    window: Duration,
    /// Nothing while there is no connection, and while a batch is under way: a delivery that is
    /// given up takes the connection with it.
    link: Option<Link>,
    /// Numbers batches and questions, so that an answer to an earlier one is not taken for one to this.
    batch: u64,
    /// What became of the events in flight, in order.
    verdicts: Vec<Verdict>,
    /// Questions without an answer yet: the number of each, and how many events went out before it and
    /// behind the one before.
    questions: VecDeque<(u64, usize)>,
    /// So many events at the head of the flight went out before a question that is answered.
    answered: usize,
    beside: Beside,
    /// The address of the last event, as the client wants it.
    last_subject: Option<(Arc<str>, Subject)>,
    /// Subjects to which the server has let us publish, on this connection.
    permitted: HashSet<Arc<str>, foldhash::fast::RandomState>,
    /// Those to which it has not or which no stream takes, why, and until when that is believed.
    refused: HashMap<Arc<str>, (Verdict, Instant), foldhash::fast::RandomState>,
    /// A message was refused, and what the server said of it fits none that was on its way.
    unplaced: Option<String>,
    /// So many events go out one by one, so that a refusal can only be of the one.
    careful: usize,
    /// The longest first line of a message that the server takes.
    max_line: usize,
    /// The last that the server said which was no refusal: why it ends the connection, mostly.
    last_words: Option<String>,
    /// When the events were handed over that are waited for.
    begun: Instant,
    /// Accepted, but behind an event that was refused.
    ahead: OutOfOrderAcks,
    stream: Known,
    /// Whether a stream has stored an event on this connection.
    stores: bool,
    chain: Chain,
    replays: Replays,
    duplicates: u64,
    remarks: Vec<String>,
    /// Nothing where no commands are taken.
    desk: Option<Desk>,
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of the row")]
fn open(opening: Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings: Settings = settings(&opening)?;
    let at = |(key, message)| ConfigError::at(&["sinks", opening.name, key], message);
    settings.check().map_err(at)?;
    let servers = settings.servers().map_err(at)?;
    let timeout = opening.config.timeout.0;
    let beside = Beside::of(&settings, &opening.config.payload);
    Ok(Batched::boxed(Nats {
        beside,
        keeps: opening.config.state,
        newest_status: 0,
        visit: opening.purpose == Purpose::Probe,
        server: 0,
        pulse: Pulse::new(|path| *path == Path::relay(Section::Status)),
        name: opening.name.to_owned(),
        settings,
        servers,
        timeout,
        // The third question without an answer ends the connection: before our own patience does,
        // so that a server that was only asleep finds nothing of us when it wakes up.
        ping: (timeout / 4).max(Duration::from_secs(1)),
        // The longest that passes before a batch of unknown outcome is sent again to a server that
        // is well.
        window: timeout + opening.config.backoff_max.0,
        link: None,
        batch: 0,
        verdicts: Vec::new(),
        questions: VecDeque::new(),
        answered: 0,
        last_subject: None,
        permitted: HashSet::default(),
        refused: HashMap::default(),
        unplaced: None,
        careful: 0,
        max_line: subject::MAX_LINE,
        last_words: None,
        begun: Instant::now(),
        ahead: OutOfOrderAcks::default(),
        stream: Known::default(),
        stores: false,
        chain: Chain::default(),
        replays: Replays::default(),
        duplicates: 0,
        remarks: Vec::new(),
        desk: None,
    }))
}

#[async_trait]
impl BatchSink for Nats {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.link = None;
        self.permitted.clear();
        self.refused.clear();
        self.unplaced = None;
        self.last_words = None;
        self.newest_status = 0;
        self.stores = false;
        self.questions.clear();
        self.pulse.clear();
        let link = self.connected().await.map_err(|cause| Failure::after(0, cause))?;
        self.link = Some(link);
        Ok(())
    }

    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let mut flight = batch;
        let mut fresh = batch.len();
        while !flight.is_empty() {
            let done = batch.len() - flight.len();
            let accepted = self.deliver_ahead(flight, fresh).await;
            let accepted = accepted
                .map_err(|failure| Failure::after(done + failure.accepted, failure.cause))?;
            flight = flight.get(accepted..).unwrap_or_default();
            fresh = 0;
        }
        Ok(())
    }

    async fn deliver_ahead(&mut self, flight: &[Outgoing], fresh: usize) -> Result<usize, Failure> {
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        let before = flight.len().saturating_sub(fresh);
        if before == 0 {
            self.questions.clear();
            self.verdicts.clear();
            self.ahead.begin(flight);
            self.replays.begin(flight);
        }
        self.verdicts.resize(flight.len(), Verdict::Pending);
        self.answered = 0;
        let carried = if self.settings.jetstream {
            self.store(&mut link, flight).await
        } else {
            self.publish_core(&mut link, flight, before).await
        };
        let accepted = self.accepted();
        self.ahead.reported(flight.get(..accepted).unwrap_or_default());
        self.replays.reported(flight.get(..accepted).unwrap_or_default());
        let head = self.verdicts.get(accepted).cloned().unwrap_or_default();
        match (carried, head) {
            (Ok(()), Verdict::Pending | Verdict::Accepted) => {
                self.link = Some(link);
                self.verdicts.drain(..accepted);
                Ok(accepted)
            }
            // What is known of the event at the head is told, whatever has happened to the connection.
            (Ok(()), head) => {
                self.link = Some(link);
                Err(Failure::after(accepted, hindrance(head)))
            }
            (Err(_), head @ (Verdict::Rejected(_) | Verdict::Denied(_))) => {
                Err(Failure::after(accepted, hindrance(head)))
            }
            (Err(cause), _) => Err(Failure::after(accepted, cause)),
        }
    }

    async fn keep(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        let said = self.pulse.beat(parts);
        self.batch += 1;
        self.verdicts.clear();
        self.verdicts.resize(said.len(), Verdict::Pending);
        let put = self.put(&mut link, &said).await;
        let accepted = self.accepted();
        if let Err(cause) = put {
            return Err(Failure::after(accepted.min(parts.len()), cause));
        }
        self.link = Some(link);
        // What was only said again is said once more before long.
        if accepted >= parts.len() {
            return Ok(());
        }
        let head = self.verdicts.get_mut(accepted).map(std::mem::take).unwrap_or_default();
        Err(Failure::after(accepted, hindrance(head)))
    }

    async fn idle(&mut self) -> Failure {
        let Some(link) = &mut self.link else { return Failure::down("not connected") };
        loop {
            // An answer that comes now is one to a batch that is settled.
            match link.answer().await {
                Ok(_) => {}
                Err(Note::Refused(reason)) => {
                    // An event's refusals come twice or more, one for each.
                    tracing::debug!(sink = self.name, reason, "the server refused something");
                    self.last_words = Some(reason);
                }
                Err(Note::Lost(reason)) => {
                    self.link = None;
                    return Failure::down(with_words(reason, self.last_words.take()));
                }
            }
        }
    }

    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        if let Some(why) = subject::reserved(address, self.settings.inbox()) {
            return Ok(Permission::Denied(why.into()));
        }
        if self.stream.takes(address) == Some(false) {
            return Ok(Permission::Denied(format!(
                "the stream {} takes only {}: such events are set aside as dead letters",
                self.settings.stream,
                self.stream.list()
            )));
        }
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        let canary = format!("{address}.{}", address::CANARY);
        let permission =
            self.ask(&mut link, &canary).await.map_err(|cause| Failure::after(0, cause))?;
        self.link = Some(link);
        Ok(permission)
    }

    fn take_commands(&mut self, desk: &Desk) {
        self.desk = (!self.settings.commands.are_off()).then(|| desk.clone());
    }

    async fn close(&mut self) {
        // Nothing is under way: every batch has been answered for. Commands may not have been.
        if let Some(link) = self.link.take()
            && let Err(error) = link.close().await
        {
            tracing::debug!(%error, "the server was gone before the last answer");
        }
    }

    fn tally(&mut self) -> Vec<(&'static str, u64)> {
        vec![("duplicates", std::mem::take(&mut self.duplicates))]
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }
}

/// Why a connection is lost, with the last that the server said.
fn with_words(reason: &str, words: Option<String>) -> String {
    match words {
        Some(words) => format!("{reason}; the server said: {words}"),
        None => reason.to_owned(),
    }
}

/// What a verdict means for the event and those behind it.
fn hindrance(verdict: Verdict) -> Cause {
    match verdict {
        Verdict::Rejected(reason) => Cause::Rejected { reason },
        Verdict::Denied(reason) => Cause::Denied { reason },
        Verdict::Busy(reason) | Verdict::Full(reason) => Cause::Busy { wait: None, reason },
        Verdict::Pending | Verdict::Accepted | Verdict::Untaken | Verdict::Unlinked => {
            Cause::Down("an answer is missing".into())
        }
    }
}

impl Nats {
    async fn connected(&mut self) -> Result<Link, Cause> {
        let mut link = self.dial().await?;
        if !self.settings.jetstream && !link.asks() {
            return Err(Cause::Denied {
                reason: format!(
                    "the user may not publish to {}: core NATS acknowledges nothing, so the relay asks \
                     itself there whether the server has processed a batch; let it, or set inbox_prefix",
                    link.wanted()
                ),
            });
        }
        self.remarks = if self.settings.jetstream {
            self.look_at_stream(&mut link).await?;
            std::mem::take(&mut self.stream.remarks)
        } else {
            vec!["core NATS: who does not listen at that moment never hears an event".into()]
        };
        if self.settings.jetstream {
            self.chain = Chain::of(&link.client().server_info(), self.stream.replicas);
            self.remarks.extend(self.chain.remark());
        }
        if self.keeps {
            let bucket = &self.settings.state_bucket;
            let remark = bucket::ensure(&mut link, bucket, self.visit, self.timeout).await?;
            self.remarks.extend(remark);
        }
        if let Some(desk) = &self.desk {
            let commands = Commands::subscribe(link.client(), desk, &self.settings.commands).await;
            link.take_commands(commands.map_err(Cause::Down)?);
        }
        Ok(link)
    }

    /// Connects to the first server that answers, beginning with the one that did last.
    async fn dial(&mut self) -> Result<Link, Cause> {
        let options = self.options().await.map_err(Cause::Down)?;
        let (first, ping, patience) = (self.settings.tls_first, self.ping, self.timeout);
        let dial = async |server: usize| {
            let server = self.servers.get(server).cloned();
            let server = server.ok_or_else(|| Cause::Down("no server is configured".into()))?;
            Link::connect(options.clone(), server, first, ping, patience).await
        };
        match race::first(self.servers.len(), self.server, self.timeout, dial).await {
            Ok((server, link)) => {
                self.server = server;
                Ok(link)
            }
            Err(cause) => {
                self.server += 1;
                Err(cause)
            }
        }
    }

    async fn options(&self) -> Result<ConnectOptions, async_nats::Error> {
        let settings = &self.settings;
        let tls = client_config(
            settings.ca_file.as_deref(),
            settings.client_cert_file.as_deref(),
            settings.client_key_file.as_deref(),
        )
        .await?;
        let required =
            settings.tls || settings.ca_file.is_some() || settings.client_cert_file.is_some();
        let mut options = ConnectOptions::new()
            .name(format!("astro-relay {}", self.name))
            .custom_inbox_prefix(settings.inbox())
            .tls_client_config((*tls).clone())
            .require_tls(required);
        if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
            options =
                options.user_and_password(user.clone(), password.read().await?.expose().to_owned());
        }
        if let Some(token) = &settings.token {
            options = options.token(token.read_token().await?.expose().to_owned());
        }
        if let Some(seed) = &settings.nkey_seed {
            options = options.nkey(seed.read_token().await?.expose().to_owned());
        }
        if let Some(credentials) = &settings.credentials {
            // What is wrong with them may quote them.
            options = options
                .credentials(credentials.read().await?.expose())
                .map_err(|_| format!("no credentials can be read from {}", credentials.place()))?;
        }
        Ok(options)
    }

    /// Looks at the stream; makes it, where that is wanted and this is no visit.
    async fn look_at_stream(&mut self, link: &mut Link) -> Result<(), Cause> {
        let wanted = Wanted {
            name: &self.settings.stream,
            subjects: &self.settings.pattern(),
            create: &self.settings.create_stream,
            only_look: self.visit,
            window: self.window,
            patience: self.timeout,
        };
        self.stream = stream::ensure(link, &wanted).await?;
        Ok(())
    }

    /// The subject as the client wants it. Neighbours mostly have the same.
    fn subject(&mut self, address: &Arc<str>) -> Subject {
        match &self.last_subject {
            Some((last, subject)) if Arc::ptr_eq(last, address) => subject.clone(),
            _ => {
                let subject = Subject::from(&**address);
                self.last_subject = Some((Arc::clone(address), subject.clone()));
                subject
            }
        }
    }

    /// Hands the events at the places `from..to` to the client, up to the first that cannot be sent, and no
    /// more than [`MAX_UNPROVEN`] to subjects that may be refused; answers how far that is.
    async fn hand(
        &mut self,
        link: &Link,
        flight: &[Outgoing],
        from: usize,
        to: usize,
    ) -> Result<usize, Cause> {
        self.begun = Instant::now();
        let (mut unproven, mut last) = (0, None);
        for (place, outgoing) in flight.iter().enumerate().take(to).skip(from) {
            if self.verdicts.get(place) == Some(&Verdict::Accepted) {
                continue;
            }
            if let Some(verdict) = self.unsendable(link, outgoing) {
                self.settle(place, verdict);
                return Ok(place);
            }
            if !self.permitted.contains(&outgoing.address) {
                if unproven == MAX_UNPROVEN {
                    return Ok(place);
                }
                unproven += 1;
            }
            let mark = self.settings.jetstream.then_some((self.batch, place));
            let payload = outgoing.payload.clone();
            let subject = self.subject(&outgoing.address);
            let id = self.replays.id(outgoing);
            let mut headers = self.beside.headers(outgoing, &id);
            if self.settings.jetstream {
                jetstream::link(&mut headers, last.replace(id).as_deref());
            }
            let publish = link.publish(subject, headers, payload, mark);
            // The client takes more as soon as the server reads; mostly at once. Tokio would have this
            // task give way behind every 128th, with a look at all sockets: the client's own bound
            // and that of a batch are enough.
            let mut publish = std::pin::pin!(unconstrained(publish));
            let handed = match publish.as_mut().now_or_never() {
                Some(handed) => handed,
                None => timeout(self.timeout, publish).await.map_err(|_| self.silence())?,
            };
            match handed {
                Ok(()) => {}
                Err(Unsent::Refused(reason)) => {
                    self.settle(place, Verdict::Rejected(reason));
                    return Ok(place);
                }
                Err(Unsent::Lost(reason)) => return Err(Cause::Down(reason.into())),
            }
        }
        Ok(to.min(flight.len()))
    }

    /// Why an event is not sent at all.
    fn unsendable(&mut self, link: &Link, outgoing: &Outgoing) -> Option<Verdict> {
        let address = &*outgoing.address;
        match self.refused.get(address) {
            Some((verdict, until)) if Instant::now() < *until => return Some(verdict.clone()),
            Some(_) => drop(self.refused.remove(address)),
            None => {}
        }
        if let Some(why) = subject::reserved(address, self.settings.inbox()) {
            let reason = format!("nothing is published to {address:?}: {why}");
            return Some(Verdict::Rejected(reason));
        }
        let line = subject::line(address, link.inbox().len());
        (line > self.max_line).then(|| {
            Verdict::Rejected(format!(
                "a subject of {} bytes is too long for the server (max_control_line)",
                address.len()
            ))
        })
    }

    /// The next thing that the server says.
    async fn answer(&self, link: &mut Link) -> Result<Said, Cause> {
        timeout(self.timeout, link.answer()).await.map_err(|_| self.silence())
    }

    fn silence(&self) -> Cause {
        Cause::Down(format!("the server has not answered within {}", Period(self.timeout)).into())
    }

    /// Why the connection is lost. A peer that closes it does so while it is well; one that has fallen
    /// silent is given up by the client, which takes some questions without an answer.
    fn lost(&mut self, link: &mut Link, reason: &'static str, sent: &[Outgoing]) -> Cause {
        while let Some(note) = link.noted() {
            match note {
                Note::Refused(text) => drop(self.on_server_error(link, &text, sent)),
                Note::Lost(_) => break,
            }
        }
        let reason = with_words(reason, self.last_words.take());
        if !sent.is_empty() && self.begun.elapsed() < self.ping {
            Cause::closed(reason)
        } else {
            Cause::Down(reason.into())
        }
    }

    /// Takes note of what was said beside answers while `sent` was under way; says how many events
    /// it settled.
    fn on_server_error(&mut self, link: &Link, text: &str, sent: &[Outgoing]) -> usize {
        match refusal::read(text) {
            Refusal::Publish(subject) => {
                if self.refused.contains_key(&*subject) {
                    // One more of the same.
                    return 0;
                }
                let first = sent.iter().find(|outgoing| *outgoing.address == *subject);
                if let Some(first) = first {
                    let verdict = self.of_subject(text.to_owned());
                    return self.refuse(&Arc::clone(&first.address), verdict, sent);
                }
                if !subject.starts_with('$') && !link.has_answered(&subject) {
                    self.unplaced = Some(text.to_owned());
                }
            }
            Refusal::Other if refusal::is_publish(text) => self.unplaced = Some(text.to_owned()),
            Refusal::Other => {
                if text.to_ascii_lowercase().contains("control line") {
                    let reply = link.inbox().len();
                    let lines = sent.iter().map(|one| subject::line(&one.address, reply));
                    self.max_line = lines.max().unwrap_or(self.max_line).saturating_sub(1);
                }
                self.last_words = Some(text.to_owned());
            }
            Refusal::Subscription(_) => {
                tracing::error!(
                    sink = self.name,
                    text,
                    "the server does not let the sink subscribe"
                );
            }
        }
        0
    }

    /// What is wrong with a subject is one event's trouble where others have another.
    fn of_subject(&self, reason: String) -> Verdict {
        if self.settings.varies() { Verdict::Rejected(reason) } else { Verdict::Denied(reason) }
    }

    /// Settles all events of a subject that is refused, and remembers it; answers how many they are.
    fn refuse(&mut self, subject: &Arc<str>, verdict: Verdict, sent: &[Outgoing]) -> usize {
        let mut settled = 0;
        for (slot, outgoing) in self.verdicts.iter_mut().zip(sent) {
            if outgoing.address == *subject && *slot == Verdict::Pending {
                *slot = verdict.clone();
                settled += 1;
            }
        }
        self.permitted.remove(subject);
        if self.refused.len() >= MAX_REFUSED {
            let now = Instant::now();
            self.refused.retain(|_, (_, until)| now < *until);
        }
        if self.refused.len() < MAX_REFUSED {
            let until = Instant::now() + REFUSED_FOR;
            self.refused.insert(Arc::clone(subject), (verdict, until));
        }
        settled
    }

    /// The server has let us publish there.
    fn permit(&mut self, subject: &Arc<str>) {
        if self.permitted.contains(subject) || self.refused.contains_key(subject) {
            return;
        }
        if self.permitted.len() >= MAX_SUBJECTS {
            self.permitted.clear();
        }
        self.permitted.insert(Arc::clone(subject));
    }

    /// Publishes nothing at `subject`, which no stream keeps, and waits until the server has said all
    /// that it has to say to it.
    async fn ask(&mut self, link: &mut Link, subject: &str) -> Result<Permission, Cause> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, NO_STREAM);
        self.questions.clear();
        self.batch += 1;
        let mark = (self.batch, 0);
        let asked = self.settings.jetstream.then_some(mark);
        let published =
            timeout(self.timeout, link.publish(subject.into(), headers, Bytes::new(), asked));
        match published.await.map_err(|_| self.silence())? {
            Ok(()) => {}
            Err(Unsent::Refused(reason)) => return Ok(Permission::Denied(reason)),
            Err(Unsent::Lost(reason)) => return Err(Cause::Down(reason.into())),
        }
        let mut denied = None;
        // Two questions, for the reason that is told at `publish_core`. A stream answers, or nobody does
        // and the server says so.
        for _ in 0..2 {
            if link.asks() {
                self.question(link, 0).await?;
            }
            let mut open = true;
            while open {
                match self.answer(link).await? {
                    Ok((found, _)) => {
                        self.answered_by(found);
                        open = if link.asks() {
                            !self.questions.is_empty()
                        } else {
                            found != Some(mark)
                        };
                    }
                    Err(Note::Lost(reason)) => return Err(Cause::Down(reason.into())),
                    Err(Note::Refused(text)) => {
                        if refusal::read(&text) == Refusal::Publish(subject.to_owned()) {
                            open &= link.asks();
                            denied = Some(text);
                        }
                    }
                }
            }
            if !link.asks() {
                break;
            }
        }
        while let Some(note) = link.noted() {
            match note {
                Note::Lost(reason) => return Err(Cause::Down(reason.into())),
                Note::Refused(text) => {
                    if refusal::read(&text) == Refusal::Publish(subject.to_owned()) {
                        denied = Some(text);
                    }
                }
            }
        }
        Ok(denied.map_or(Permission::Granted, |reason| address::denied(&reason, subject)))
    }

    /// Puts parts of the state into the bucket, and waits until it has answered for all of them.
    async fn put(&mut self, link: &mut Link, parts: &[Part]) -> Result<(), Cause> {
        let subject = |part: &Part| bucket::subject(&self.settings.state_bucket, &part.path);
        let subjects: Vec<String> = parts.iter().map(subject).collect();
        let mut left = 0;
        for (place, (part, subject)) in parts.iter().zip(&subjects).enumerate() {
            let headers = bucket::headers(part.payload.is_none());
            let payload = part.payload.clone().unwrap_or_default();
            let publish = link.publish(
                Subject::from(&**subject),
                headers,
                payload,
                Some((self.batch, place)),
            );
            match timeout(self.timeout, publish).await.map_err(|_| self.silence())? {
                Ok(()) => left += 1,
                Err(Unsent::Refused(reason)) => self.settle(place, Verdict::Rejected(reason)),
                Err(Unsent::Lost(reason)) => return Err(Cause::Down(reason.into())),
            }
        }
        let status = parts.iter().position(|part| part.path == Path::relay(Section::Status));
        while left > 0 {
            let (place, verdict) = match self.answer(link).await? {
                Ok((Some((number, place)), message)) if number == self.batch => {
                    if message.status == Some(StatusCode::NO_RESPONDERS) {
                        // The next connection makes another.
                        return Err(Cause::Down("the key-value bucket is gone".into()));
                    }
                    match Answer::read(&message) {
                        Answer::Stored { sequence, .. } => {
                            if status == Some(place) {
                                self.is_same_bucket(sequence)?;
                            }
                            (place, Verdict::Accepted)
                        }
                        Answer::Failed(verdict) => (place, verdict),
                    }
                }
                Ok(_) => continue,
                Err(Note::Lost(reason)) => return Err(self.lost(link, reason, &[])),
                Err(Note::Refused(text)) => {
                    let place = match refusal::read(&text) {
                        Refusal::Publish(refused) => {
                            subjects.iter().position(|subject| *subject == refused)
                        }
                        _ => None,
                    };
                    let Some(place) = place else {
                        tracing::debug!(sink = self.name, text, "the server refused something");
                        continue;
                    };
                    (place, Verdict::Rejected(text))
                }
            };
            // State that the bucket does not take is no reason to hold back events.
            let verdict = match verdict {
                Verdict::Denied(reason) => Verdict::Rejected(reason),
                verdict => verdict,
            };
            self.settle(place, verdict);
            left -= 1;
        }
        Ok(())
    }

    /// A bucket in which the newest entry has no greater number than the one before is another, made anew
    /// under the same name.
    fn is_same_bucket(&mut self, sequence: u64) -> Result<(), Cause> {
        if sequence <= self.newest_status {
            return Err(Cause::Down("the bucket was made anew: the state is written again".into()));
        }
        self.newest_status = sequence;
        Ok(())
    }

    fn settle(&mut self, place: usize, verdict: Verdict) {
        if let Some(slot) = self.verdicts.get_mut(place) {
            *slot = verdict;
        }
    }

    fn accepted(&self) -> usize {
        self.verdicts.iter().take_while(|verdict| **verdict == Verdict::Accepted).count()
    }
}
