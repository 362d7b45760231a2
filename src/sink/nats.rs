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
//! The one thing to know: on any failure the client is dropped with all that it holds. It sends
//! nothing of it later, see [`link`].

mod bucket;
mod command;
mod link;
mod stream;

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_nats::{
    ConnectOptions, HeaderMap, HeaderName, Message, ServerAddr, StatusCode, Subject,
    jetstream::{self, ErrorCode},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use tokio::{task::unconstrained, time::timeout};

use self::{
    command::Commands,
    link::{Link, Note, Said, Unsent},
    stream::{Create, Wanted},
};
use super::{
    Address, Cause, Failure, Kind, Opening, Outgoing, Part, Permission, Purpose, Sink, address,
    pulse::Pulse, settings,
};
use crate::{
    board::{Path, Section},
    command::Desk,
    config::{self, ConfigError, Period, SecretRef},
    event::Origin,
    tls::client_config,
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "nats",
    summary: "NATS: published, or kept by JetStream",
    address: Some(Address { key: |_| "subject", default: |_| DEFAULT_SUBJECT, escape }),
    secrets: &["password", "token", "nkey_seed", "credentials"],
    schema: || schema_for!(Settings),
    keeps: true,
    open,
};

const DEFAULT_SUBJECT: &str = "astro.{{ channel }}.{{ topic }}";

/// Subjects that are remembered as permitted. Events have some thirty topics for each channel; more
/// than this come from a template over the data, and are forgotten and asked about again.
const MAX_SUBJECTS: usize = 4096;

/// A stream that there is not: a message that expects it is kept by none.
const NO_STREAM: &str = "astro-relay-check";

/// Settings of a `nats` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The server: `nats://host:4222`, `tls://host:4222`.
    #[serde(default)]
    url: Option<String>,
    /// Several servers of one cluster: the first that answers is taken.
    #[serde(default)]
    urls: Vec<String>,
    /// Where events go, a template. Default: `astro.<channel>.<topic>`.
    #[serde(default)]
    subject: Option<String>,
    /// Which headers an event has.
    #[serde(default)]
    headers: Headers,
    /// Whether a stream keeps the events and acknowledges each.
    #[serde(default)]
    jetstream: bool,
    /// The stream's name.
    #[serde(default = "default_stream")]
    stream: String,
    /// Whether a missing stream is made: true, or a table with its limits.
    #[serde(default)]
    create_stream: Create,
    /// The user.
    #[serde(default)]
    user: Option<String>,
    /// The user's password; also `password_file`, `password_env`, `password_credential`.
    #[serde(default)]
    password: Option<SecretRef>,
    /// A token; also `token_file`, …
    #[serde(default)]
    token: Option<SecretRef>,
    /// The seed of an nkey; also `nkey_seed_file`, …
    #[serde(default)]
    nkey_seed: Option<SecretRef>,
    /// The text of a `.creds` file; mostly as `credentials_file`.
    #[serde(default)]
    credentials: Option<SecretRef>,
    /// Whether TLS is required even where the URL does not say so.
    #[serde(default)]
    tls: bool,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default)]
    ca_file: Option<PathBuf>,
    /// A PEM file with our certificate.
    #[serde(default)]
    client_cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    #[serde(default)]
    client_key_file: Option<PathBuf>,
    /// Commands that may come over `astro.<channel>.command.…`: true for all, false for none, or a list
    /// of `session/set`, `session/reset`, `session/reload`, `relay/refresh`.
    #[serde(default)]
    commands: config::Commands,
    /// The key-value bucket of the state; made where it is missing.
    #[serde(default = "default_state_bucket")]
    state_bucket: String,
}

fn default_state_bucket() -> String {
    "astro_state".into()
}

/// Which headers an event has. They cost much: the library keeps them in a map of its own, and eight of
/// them were measured at half of the relay's time for an event; a single one at as much again in the
/// server and in whoever listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Headers {
    /// What neither the subject nor the payload says, and for a stream the message id.
    #[default]
    Needed,
    /// All that is known of it.
    All,
}

fn default_stream() -> String {
    "ASTRO".into()
}

impl Settings {
    fn servers(&self) -> Result<Vec<ServerAddr>, (&'static str, String)> {
        let (key, urls) = match (&self.url, &*self.urls) {
            (Some(url), []) => ("url", std::slice::from_ref(url)),
            (None, urls @ [_, ..]) => ("urls", urls),
            _ => return Err(("url", "url or urls was expected, one of the two".into())),
        };
        urls.iter().map(|url| server(url).map_err(|error| (key, error))).collect()
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let subject = self.subject.as_deref().unwrap_or(DEFAULT_SUBJECT);
        let literals = address::literals(subject);
        if literals.contains(|c: char| matches!(c, '*' | '>') || c.is_whitespace()) {
            return Err((
                "subject",
                "* and > are wildcards and a space ends a subject: an event \
                goes to one"
                    .into(),
            ));
        }
        let ways = [
            self.user.is_some(),
            self.token.is_some(),
            self.nkey_seed.is_some(),
            self.credentials.is_some(),
        ];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            return Err((
                "user",
                "one of user, token, nkey_seed and credentials was expected".into(),
            ));
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(("password", "user and password belong together".into()));
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return Err((
                "client_cert_file",
                "client_cert_file and client_key_file belong \
                together"
                    .into(),
            ));
        }
        if !self.jetstream && !matches!(self.create_stream, Create::Plain(false)) {
            return Err(("create_stream", "a stream needs jetstream = true".into()));
        }
        if self.jetstream && !self.commands.are_off() && command::is_taken_by(&self.pattern()) {
            return Err((
                "commands",
                "the stream would take the commands too, and answer them in the relay's place: give \
                 `subject` another first word than astro, or take commands at a sink without jetstream"
                    .into(),
            ));
        }
        if !bucket::is_name(&self.state_bucket) {
            return Err(("state_bucket", "a name of a-z A-Z 0-9 _ - was expected".into()));
        }
        if self.stream.is_empty() || self.stream.contains(['.', '*', '>', ' ', '\t']) {
            return Err(("stream", "a name without . * > and spaces was expected".into()));
        }
        Ok(())
    }

    /// Where events go, as a pattern: the template up to its first bracket.
    fn pattern(&self) -> String {
        let subject = self.subject.as_deref().unwrap_or(DEFAULT_SUBJECT);
        match subject.find(['{']) {
            None => escape(subject).into_owned(),
            Some(bracket) => {
                let fixed = subject.get(..bracket).and_then(|text| text.rsplit_once('.'));
                fixed.map_or_else(|| ">".into(), |(words, _)| format!("{}.>", escape(words)))
            }
        }
    }
}

/// Reads a URL. The text is not repeated in errors: it may hold a password.
fn server(url: &str) -> Result<ServerAddr, String> {
    const EXPECTED: &str = "a URL such as nats://host:4222 or tls://host:4222 was expected";
    let server: ServerAddr = url.parse().map_err(|_| EXPECTED.to_owned())?;
    if !matches!(server.scheme(), "nats" | "tls") || server.host().is_empty() {
        return Err(EXPECTED.into());
    }
    if server.has_user_pass() || server.password().is_some() {
        return Err("credentials belong into user and password, not into the URL".into());
    }
    Ok(server)
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Verdict {
    #[default]
    Pending,
    Accepted,
    Busy(String),
    Refused(String),
}

struct Nats {
    name: String,
    /// Whether the state is kept.
    keeps: bool,
    pulse: Pulse,
    settings: Settings,
    servers: Vec<ServerAddr>,
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
    /// Those to which it has not, with its words.
    forbidden: Vec<(Arc<str>, String)>,
    /// Nobody answered for a subject: the stream has to be looked at again.
    stream_in_doubt: bool,
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
    Ok(Box::new(Nats {
        beside,
        keeps: opening.config.state && opening.purpose == Purpose::Relay,
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
        forbidden: Vec::new(),
        stream_in_doubt: false,
        duplicates: 0,
        remarks: Vec::new(),
        desk: None,
    }))
}

/// Makes a rendered subject legal: no wildcard, no white space, no empty word.
fn escape(subject: &str) -> Cow<'_, str> {
    address::escape(subject, '.', |c| matches!(c, '*' | '>') || c.is_whitespace() || c.is_control())
}

#[async_trait]
impl Sink for Nats {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.link = None;
        self.permitted.clear();
        self.forbidden.clear();
        self.stream_in_doubt = false;
        self.pulse.clear();
        let mut link = self.dial().await.map_err(Failure::down)?;
        if self.keeps {
            let bucket = &self.settings.state_bucket;
            bucket::settle(link.client().clone(), bucket).await.map_err(Failure::down)?;
        }
        self.remarks = if self.settings.jetstream {
            self.settle_stream(&link).await.map_err(Failure::down)?
        } else {
            vec!["core NATS: who does not listen at that moment never hears an event".into()]
        };
        if let Some(desk) = &self.desk {
            let commands = Commands::subscribe(link.client(), desk, &self.settings.commands).await;
            link.take_commands(commands.map_err(Failure::down)?);
        }
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
        }
        self.verdicts.resize(flight.len(), Verdict::Pending);
        self.answered = 0;
        let carried = match (self.settings.jetstream, fresh) {
            (true, _) => self.store(&mut link, flight).await,
            (false, 0) => {
                self.hear(&mut link, flight, self.questions.len().saturating_sub(1)).await
            }
            (false, _) => self.publish(&mut link, flight, before).await,
        };
        let accepted = self.accepted();
        if let Err(lost) = carried {
            return Err(Failure::after(accepted, Cause::Down(lost)));
        }
        self.link = Some(link);
        if accepted < self.answered || accepted < flight.len() && self.questions.is_empty() {
            return Err(self.hindrance(accepted));
        }
        self.verdicts.drain(..accepted);
        Ok(accepted)
    }

    async fn keep(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        let said = self.pulse.beat(parts);
        self.batch += 1;
        self.verdicts.clear();
        self.verdicts.resize(said.len(), Verdict::Pending);
        let put = self.put(&mut link, &said).await;
        let accepted = self.accepted();
        if let Err(lost) = put {
            return Err(Failure::after(accepted.min(parts.len()), Cause::Down(lost)));
        }
        self.link = Some(link);
        // What was only said again is said once more before long.
        if accepted >= parts.len() { Ok(()) } else { Err(self.hindrance(accepted)) }
    }

    async fn idle(&mut self) -> Failure {
        let Some(link) = &mut self.link else { return Failure::down("not connected") };
        loop {
            // An answer that comes now is one to a batch that is settled.
            match link.answer().await {
                Ok(_) => {}
                Err(Note::Refused(reason)) => {
                    tracing::error!(sink = self.name, reason, "the server refused something");
                }
                Err(Note::Lost(reason)) => {
                    self.link = None;
                    return Failure::down(reason);
                }
            }
        }
    }

    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        let mut link = self.link.take().ok_or_else(|| Failure::down("not connected"))?;
        let canary = format!("{address}.{}", address::CANARY);
        let permission = self.ask(&mut link, &canary).await.map_err(Failure::down)?;
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

/// Why a connection is of no use any more.
type Lost = async_nats::Error;

impl Nats {
    async fn dial(&self) -> Result<Link, Lost> {
        let mut last: Lost = "no server is configured".into();
        for server in &self.servers {
            match Link::connect(self.options().await?, server.clone(), self.ping).await {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn options(&self) -> Result<ConnectOptions, Lost> {
        let settings = &self.settings;
        let tls = client_config(
            settings.ca_file.as_deref(),
            settings.client_cert_file.as_deref(),
            settings.client_key_file.as_deref(),
        )?;
        let required =
            settings.tls || settings.ca_file.is_some() || settings.client_cert_file.is_some();
        let mut options = ConnectOptions::new()
            .name(format!("astro-relay {}", self.name))
            .tls_client_config(tls)
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

    async fn settle_stream(&self, link: &Link) -> Result<Vec<String>, Lost> {
        let wanted = Wanted {
            name: &self.settings.stream,
            subjects: &self.settings.pattern(),
            create: &self.settings.create_stream,
            window: self.window,
        };
        stream::settle(link.client().clone(), &wanted).await
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

    /// Hands the flight to the client, from the place `from` up to the first event that cannot be sent;
    /// answers how far that is.
    async fn hand(&mut self, link: &Link, flight: &[Outgoing], from: usize) -> Result<usize, Lost> {
        for (place, outgoing) in flight.iter().enumerate().skip(from) {
            let forbidden = self.forbidden.iter().find(|(subject, _)| *subject == outgoing.address);
            let unsent = if let Some((_, reason)) = forbidden {
                Unsent::Refused(reason.clone())
            } else {
                let mark = self.settings.jetstream.then_some((self.batch, place));
                let payload = outgoing.payload.clone();
                let subject = self.subject(&outgoing.address);
                let publish = link.publish(subject, self.beside.headers(outgoing), payload, mark);
                // The client takes more as soon as the server reads; mostly at once. Tokio would have this
                // task give way behind every 128th, with a look at all sockets: the client's own bound
                // and that of a batch are enough.
                let mut publish = std::pin::pin!(unconstrained(publish));
                let handed = match publish.as_mut().now_or_never() {
                    Some(handed) => handed,
                    None => timeout(self.timeout, publish).await.map_err(|_| self.silence())?,
                };
                match handed {
                    Ok(()) => continue,
                    Err(unsent) => unsent,
                }
            };
            match unsent {
                Unsent::Refused(reason) => self.settle(place, Verdict::Refused(reason)),
                Unsent::Lost(reason) => return Err(reason.into()),
            }
            return Ok(place);
        }
        Ok(flight.len())
    }

    /// Publishes the flight from the place `from`, and waits until the server has processed what was on
    /// its way before.
    async fn publish(
        &mut self,
        link: &mut Link,
        flight: &[Outgoing],
        from: usize,
    ) -> Result<(), Lost> {
        let end = self.hand(link, flight, from).await?;
        let sent = flight.get(from..end).unwrap_or_default();
        // What cannot be sent is told when all before it is settled.
        let mut open = usize::from(end == flight.len());
        // A refusal reaches us by another way than the answer behind it. It has certainly come when
        // a second question is answered; that is asked where a subject was not used before.
        if sent.iter().any(|outgoing| !self.permitted.contains(&outgoing.address)) {
            self.question(link, 0).await?;
            self.hear(link, flight, 0).await?;
            open = 0;
            if self.permitted.len() > MAX_SUBJECTS {
                self.permitted.clear();
            }
            for outgoing in sent {
                if !self.permitted.contains(&outgoing.address) {
                    self.permitted.insert(Arc::clone(&outgoing.address));
                }
            }
        }
        self.question(link, sent.len()).await?;
        self.hear(link, flight, open).await
    }

    /// Asks whether the server has processed the last `events`.
    async fn question(&mut self, link: &Link, events: usize) -> Result<(), Lost> {
        self.batch += 1;
        let asked = timeout(self.timeout, link.question((self.batch, 0))).await;
        match asked.map_err(|_| self.silence())? {
            Ok(()) => self.questions.push_back((self.batch, events)),
            Err(Unsent::Lost(reason) | Unsent::Refused(reason)) => return Err(reason.into()),
        }
        Ok(())
    }

    /// Takes note of an answer. One to a question that was given up finds none here.
    fn answered_by(&mut self, mark: Option<(u64, usize)>) {
        let answered = self
            .questions
            .pop_front_if(|(asked, _)| mark.is_some_and(|(number, _)| number == *asked));
        self.answered += answered.map_or(0, |(_, events)| events);
    }

    /// Waits until no more than `open` questions are without an answer.
    async fn hear(
        &mut self,
        link: &mut Link,
        flight: &[Outgoing],
        open: usize,
    ) -> Result<(), Lost> {
        while self.questions.len() > open {
            match self.answer(link).await? {
                Ok((mark, _)) => self.answered_by(mark),
                Err(note) => drop(self.heed(note, flight)?),
            }
        }
        while let Some(note) = link.noted() {
            self.heed(note, flight)?;
        }
        for verdict in self.verdicts.iter_mut().take(self.answered) {
            if *verdict == Verdict::Pending {
                *verdict = Verdict::Accepted;
            }
        }
        Ok(())
    }

    /// Publishes nothing at `subject`, which no stream keeps, and waits until the server has said all
    /// that it has to say to it.
    async fn ask(&mut self, link: &mut Link, subject: &str) -> Result<Permission, Lost> {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, NO_STREAM);
        self.questions.clear();
        let published =
            timeout(self.timeout, link.publish(subject.into(), headers, Bytes::new(), None));
        match published.await.map_err(|_| self.silence())? {
            Ok(()) => {}
            Err(Unsent::Refused(reason)) => return Ok(Permission::Denied(reason)),
            Err(Unsent::Lost(reason)) => return Err(reason.into()),
        }
        let mut denied = None;
        let mut heed = |note| match note {
            Note::Lost(reason) => Err(Lost::from(reason)),
            Note::Refused(reason) => {
                if reason.contains(subject) {
                    denied = Some(reason);
                }
                Ok(())
            }
        };
        // Two, for the reason that is told in `publish`.
        for _ in 0..2 {
            self.question(link, 0).await?;
            while !self.questions.is_empty() {
                match self.answer(link).await? {
                    Ok((mark, _)) => self.answered_by(mark),
                    Err(note) => heed(note)?,
                }
            }
        }
        while let Some(note) = link.noted() {
            heed(note)?;
        }
        Ok(denied.map_or(Permission::Granted, |reason| address::denied(&reason, subject)))
    }

    /// Publishes the flight and waits until the stream has answered for every event of it.
    async fn store(&mut self, link: &mut Link, flight: &[Outgoing]) -> Result<(), Lost> {
        if self.stream_in_doubt {
            self.remarks = self.settle_stream(link).await?;
            self.stream_in_doubt = false;
        }
        self.batch += 1;
        let end = self.hand(link, flight, 0).await?;
        let sent = flight.get(..end).unwrap_or_default();
        let mut left = sent.len();
        while left > 0 {
            match self.answer(link).await? {
                Ok((Some((number, place)), message)) if number == self.batch => {
                    let verdict = self.read(&message);
                    self.settle(place, verdict);
                    left -= 1;
                }
                Ok(_) => {}
                // An event that is not permitted gets no answer.
                Err(note) => left = left.saturating_sub(self.heed(note, sent)?),
            }
        }
        Ok(())
    }

    /// Puts parts of the state into the bucket, and waits until it has answered for all of them.
    async fn put(&mut self, link: &mut Link, parts: &[Part]) -> Result<(), Lost> {
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
                Err(Unsent::Refused(reason)) => self.settle(place, Verdict::Refused(reason)),
                Err(Unsent::Lost(reason)) => return Err(reason.into()),
            }
        }
        while left > 0 {
            let (place, verdict) = match self.answer(link).await? {
                Ok((Some((number, place)), message)) if number == self.batch => {
                    if message.status == Some(StatusCode::NO_RESPONDERS) {
                        // The next connection makes another.
                        return Err("the key-value bucket is gone".into());
                    }
                    (place, self.read(&message))
                }
                Ok(_) => continue,
                Err(Note::Lost(reason)) => return Err(reason.into()),
                Err(Note::Refused(reason)) => {
                    let forbidden = quoted(&reason);
                    let Some(place) = subjects.iter().position(|subject| subject == forbidden)
                    else {
                        tracing::error!(sink = self.name, reason, "the server refused something");
                        continue;
                    };
                    (place, Verdict::Refused(reason))
                }
            };
            self.settle(place, verdict);
            left -= 1;
        }
        Ok(())
    }

    /// The next thing that the server says.
    async fn answer(&self, link: &mut Link) -> Result<Said, Lost> {
        timeout(self.timeout, link.answer()).await.map_err(|_| self.silence())
    }

    fn silence(&self) -> Lost {
        format!("the server has not answered within {}", Period(self.timeout)).into()
    }

    /// What a stream's answer means.
    fn read(&mut self, message: &Message) -> Verdict {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.stream_in_doubt = true;
            return Verdict::Busy("no stream takes this subject".into());
        }
        match serde_json::from_slice(&message.payload) {
            Ok(Answer { error: Some(error), .. }) => match error.error_code() {
                ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
                | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => Verdict::Refused(error.to_string()),
                // Full, without a leader, sealed: a human or time helps, and nothing is lost by
                // waiting.
                _ => Verdict::Busy(error.to_string()),
            },
            Ok(Answer { seq: Some(_), duplicate, .. }) => {
                self.duplicates += u64::from(duplicate);
                Verdict::Accepted
            }
            _ => Verdict::Busy("the stream's answer cannot be read".into()),
        }
    }

    /// Takes note of what was said beside answers while `sent` was under way; says how many events
    /// it settled.
    fn heed(&mut self, note: Note, sent: &[Outgoing]) -> Result<usize, Lost> {
        let reason = match note {
            Note::Lost(reason) => return Err(reason.into()),
            Note::Refused(reason) => reason,
        };
        let subject = quoted(&reason);
        let Some(first) = sent.iter().find(|outgoing| *outgoing.address == *subject) else {
            tracing::error!(sink = self.name, reason, "the server refused something");
            return Ok(0);
        };
        if self.forbidden.len() < MAX_SUBJECTS
            && !self.forbidden.iter().any(|(known, _)| *known == first.address)
        {
            self.forbidden.push((Arc::clone(&first.address), reason.clone()));
        }
        let mut settled = 0;
        for (verdict, outgoing) in self.verdicts.iter_mut().zip(sent) {
            if outgoing.address == first.address && *verdict == Verdict::Pending {
                *verdict = Verdict::Refused(reason.clone());
                settled += 1;
            }
        }
        Ok(settled)
    }

    fn settle(&mut self, place: usize, verdict: Verdict) {
        if let Some(slot) = self.verdicts.get_mut(place) {
            *slot = verdict;
        }
    }

    fn accepted(&self) -> usize {
        self.verdicts.iter().take_while(|verdict| **verdict == Verdict::Accepted).count()
    }

    /// What hindered the event at the place `accepted`.
    fn hindrance(&mut self, accepted: usize) -> Failure {
        let cause = match self.verdicts.get_mut(accepted).map(std::mem::take) {
            Some(Verdict::Refused(reason)) => Cause::Rejected { reason },
            Some(Verdict::Busy(reason)) => Cause::Busy { wait: None, reason },
            None | Some(Verdict::Pending | Verdict::Accepted) => {
                Cause::Down("an answer is missing".into())
            }
        };
        Failure::after(accepted, cause)
    }
}

/// The subject that a refusal speaks of: `Permissions Violation for Publish to "astro.main.x"`.
fn quoted(reason: &str) -> &str {
    reason.split('"').nth(1).unwrap_or_default()
}

/// A stream's answer to an event.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: Option<jetstream::Error>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
}

/// What the headers have to say.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each stands for a header or a group of them")]
struct Beside {
    /// The message id, where a stream looks for it or the payload does not hold it.
    id: bool,
    /// Astro's envelope, where the payload is not the whole message.
    envelope: bool,
    /// The channel, where the subject does not name it.
    channel: bool,
    /// Even what everybody assumes: that it came live.
    all: bool,
}

impl Beside {
    fn of(settings: &Settings, payload: &str) -> Self {
        let subject = settings.subject.as_deref().unwrap_or(DEFAULT_SUBJECT);
        let all = settings.headers == Headers::All;
        let envelope = all || payload != "message";
        Self {
            id: settings.jetstream || envelope,
            envelope,
            channel: all || !subject.contains("channel }}"),
            all,
        }
    }

    fn headers(self, outgoing: &Outgoing) -> HeaderMap {
        const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
        const ID: HeaderName = HeaderName::from_static("Astro-Id");
        const TOPIC: HeaderName = HeaderName::from_static("Astro-Topic");
        const ROOM: HeaderName = HeaderName::from_static("Astro-Room");
        const CHANNEL: HeaderName = HeaderName::from_static("Astro-Channel");
        const TS: HeaderName = HeaderName::from_static("Astro-Ts");
        const ORIGIN: HeaderName = HeaderName::from_static("Astro-Origin");
        const CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
        let event = &outgoing.record.event;
        let mut headers = HeaderMap::new();
        let mut say = |name: HeaderName, value: &str| {
            if !value.is_empty() {
                headers.insert(name, &*presentable(value));
            }
        };
        // A namesake's key stands nowhere else.
        if self.id || event.distinct_key.is_some() {
            say(MESSAGE_ID, event.key());
        }
        if self.envelope {
            say(ID, &event.id);
            say(TOPIC, &event.place.topic);
            say(ROOM, &event.place.room);
            say(TS, &event.ts);
            say(CONTENT_TYPE, outgoing.content_type);
        }
        if self.channel {
            say(CHANNEL, &event.place.channel);
        }
        if self.all || event.origin != Origin::Live {
            say(ORIGIN, event.origin.as_str());
        }
        headers
    }
}

/// A text as a header may hold it: a line end would begin the next header.
fn presentable(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte < b' ') {
        Cow::Owned(text.replace(|c: char| c < ' ', "\u{FFFD}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(settings: serde_json::Value) -> Result<(), &'static str> {
        let settings: Settings = serde_json::from_value(settings).unwrap();
        settings.check().and_then(|()| settings.servers().map(drop)).map_err(|(key, _)| key)
    }

    #[test]
    fn a_contradiction_is_told_with_its_key() {
        assert_eq!(check(json!({"url": "nats://host"})), Ok(()));
        assert_eq!(check(json!({"urls": ["nats://a", "tls://b:4333"]})), Ok(()));
        for (settings, key) in [
            (json!({}), "url"),
            (json!({"url": "nats://a", "urls": ["nats://b"]}), "url"),
            (json!({"url": "http://host"}), "url"),
            (json!({"urls": ["nats://a", "nats://me:hunter2@b"]}), "urls"),
            (json!({"url": "nats://host", "subject": "astro.>"}), "subject"),
            (json!({"url": "nats://host", "subject": "astro {{ topic }}"}), "subject"),
            (json!({"url": "nats://host", "user": "me"}), "password"),
            (json!({"url": "nats://host", "create_stream": true}), "create_stream"),
            (json!({"url": "nats://host", "stream": "a.b"}), "stream"),
            (
                json!({"url": "nats://host", "token": {"value": "x"}, "nkey_seed": {"value": "x"}}),
                "user",
            ),
        ] {
            assert_eq!(check(settings.clone()), Err(key), "{settings}");
        }
    }

    #[test]
    fn the_pattern_is_what_all_subjects_have_in_common() {
        for (subject, pattern) in [
            (None, "astro.>"),
            (Some("events"), "events"),
            (Some("a.b.{{ topic }}"), "a.b.>"),
            (Some("a.x-{{ topic }}"), "a.>"),
            (Some("{{ topic }}"), ">"),
        ] {
            let settings = json!({"url": "nats://host", "subject": subject});
            let settings: Settings = serde_json::from_value(settings).unwrap();
            assert_eq!(settings.pattern(), pattern, "{subject:?}");
        }
    }

    #[test]
    fn subjects_are_made_legal() {
        for (subject, expected) in [
            ("astro.main.channel.tips", "astro.main.channel.tips"),
            ("astro..tips.", "astro._.tips._"),
            ("a b.*.>", "a%20b.%2A.%3E"),
            ("100%", "100%25"),
            ("", "_"),
        ] {
            assert_eq!(escape(subject), expected, "{subject}");
        }
    }

    #[test]
    fn a_namesake_is_told_apart_where_the_payload_does_not() {
        let said = |settings: serde_json::Value, distinct_key: Option<&str>| {
            let mut event = crate::event::own("relay.test", &"".into(), &"".into(), &json!({}), 1);
            event.distinct_key = distinct_key.map(Into::into);
            let message = event.message.clone();
            let outgoing = Outgoing {
                record: Arc::new(crate::event::Record::new(1, event)),
                address: "astro.tips".into(),
                payload: message,
                content_type: "application/json",
                expires_in: None,
                beside: None,
            };
            let settings: Settings = serde_json::from_value(settings).unwrap();
            let headers = Beside::of(&settings, "message").headers(&outgoing);
            headers.get("Nats-Msg-Id").map(ToString::to_string)
        };
        let core = json!({"url": "nats://host"});
        assert_eq!(said(core.clone(), None), None, "the payload says it");
        assert_eq!(said(core, Some("01J-f")).as_deref(), Some("01J-f"));
        let stream = json!({"url": "nats://host", "jetstream": true});
        assert!(said(stream.clone(), None).is_some());
        assert_eq!(said(stream, Some("01J-f")).as_deref(), Some("01J-f"));
    }

    #[test]
    fn a_line_end_begins_no_header() {
        assert_eq!(presentable("a\r\nX-Evil: 1"), "a\u{FFFD}\u{FFFD}X-Evil: 1");
        assert!(matches!(presentable("Zoë"), Cow::Borrowed("Zoë")));
    }

    proptest! {
        #[test]
        fn every_subject_becomes_a_subject(text in any::<String>()) {
            let subject = escape(&text);
            prop_assert!(Subject::from(subject.clone().into_owned()).is_valid());
            let legal = !subject.contains(|c: char| matches!(c, '*' | '>') || c.is_whitespace());
            prop_assert!(legal);
        }
    }
}
