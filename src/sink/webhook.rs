//! Events to an HTTP endpoint, one request each, signed by the Standard Webhooks specification.
//!
//! Events of one room go one after another; several rooms go at once, up to `concurrency`. Each answer
//! counts when it comes: the delivery may stop, or ask for something else, between any two events. After a
//! failure that would meet every event (no connection, 5xx, 429, 404) nothing new is begun; what is on its
//! way is waited for. A rejected event holds back its own room only, until it is the oldest and goes to the
//! dead letters. What was accepted beyond the prefix is remembered and not sent again.
//!
//! The one thing to know: `webhook-id` is the event's key and stays the same in every attempt; it is
//! what the receiver recognises a repeat by.

mod answer;
mod client;
mod guard;
mod sign;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    error::Error,
    fmt::Write,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hyper::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use url::Url;

use self::{
    client::{Client, ClientError, Whole},
    guard::Guard,
    sign::Signer,
};
use super::{Cause, Failure, Kind, Opening, Outgoing, Permission, Sink, ahead::Ahead, settings};
use crate::{
    base::{
        clock,
        event::Seq,
        fault,
        files::SHORT_PATIENCE,
        tls::{client_config, prepare},
    },
    config::{ConfigError, Secret, SecretRef},
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "webhook",
    summary: "an HTTP endpoint, one signed request for each event",
    address: None,
    secrets: &["url", "secret", "previous_secret", "bearer_token"],
    schema: || schema_for!(Settings),
    keeps: false,
    open,
};

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const ASTRO_TOPIC: HeaderName = HeaderName::from_static("astro-topic");
const ASTRO_ROOM: HeaderName = HeaderName::from_static("astro-room");
const ASTRO_CHANNEL: HeaderName = HeaderName::from_static("astro-channel");
const ASTRO_TS: HeaderName = HeaderName::from_static("astro-ts");
const ASTRO_ORIGIN: HeaderName = HeaderName::from_static("astro-origin");

/// Headers that are made here or by the connection, and cannot be configured.
const RESERVED: &[&str] =
    &["host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "trailer"];

/// The most requests at once that can be configured: each is a connection to somebody else's server.
const MOST_AT_ONCE: usize = 256;

/// Events in the sink's hands, for each request that may be on its way: the next of a room is there when the
/// one before is answered, and no more than that waits where nobody can stop it.
const HANDED: usize = 4;

/// How old the secrets may be before they are read again: a receiver that changes its secret has two
/// for much longer, and reading a file is nothing beside that.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Settings of a `webhook` sink.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Where events go. Some addresses are secrets: also `url_file`, `url_env`, `url_credential`.
    url: SecretRef,
    /// `POST`, `PUT` or `PATCH`.
    #[serde(default)]
    method: Verb,
    /// Further headers of each request.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Signs each request: `whsec_` and base64, by the Standard Webhooks specification.
    #[serde(default)]
    secret: Option<SecretRef>,
    /// Signs each request as well, while the receiver goes over from this secret to the new one.
    #[serde(default)]
    previous_secret: Option<SecretRef>,
    /// Sent as `Authorization: Bearer …`.
    #[serde(default)]
    bearer_token: Option<SecretRef>,
    /// Requests at once, at most; events of one room go one after another all the same.
    #[serde(default = "default_concurrency")]
    concurrency: usize,
    /// Addresses and networks that may be reached although they are link-local, a cloud's metadata
    /// service, or otherwise no host to send events to.
    #[serde(default)]
    allow_addresses: Vec<String>,
    /// A PEM file of certificate authorities to trust beside the system's.
    #[serde(default)]
    ca_file: Option<PathBuf>,
}

/// How a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "UPPERCASE")]
enum Verb {
    /// What the specification says.
    #[default]
    Post,
    /// For endpoints that want it.
    Put,
    /// For endpoints that want it.
    Patch,
}

/// A small receiver has as many workers; a large one is not impressed.
fn default_concurrency() -> usize {
    8
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of the row")]
fn open(opening: Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings: Settings = settings(&opening)?;
    let at = |key: &str, what: String| ConfigError::at(&["sinks", opening.name, key], what);
    let guard =
        Guard::new(&settings.allow_addresses).map_err(|what| at("allow_addresses", what))?;
    // What is kept elsewhere may not be readable yet: it is looked at when connecting.
    if let SecretRef::Value(url) = &settings.url {
        check_url(url, &guard).map_err(|what| at("url", what))?;
    }
    for (key, secret) in
        [("secret", &settings.secret), ("previous_secret", &settings.previous_secret)]
    {
        if let Some(SecretRef::Value(value)) = secret {
            Signer::new(&[Secret::new(value)]).map_err(|error| at(key, error.to_string()))?;
        }
    }
    if !(1..=MOST_AT_ONCE).contains(&settings.concurrency) {
        return Err(at("concurrency", format!("a number from 1 to {MOST_AT_ONCE} was expected")));
    }
    let headers = fixed_headers(&settings.headers).map_err(|what| at("headers", what))?;
    Ok(Box::new(Webhook {
        settings,
        timeout: opening.config.timeout.0,
        guard: Arc::new(guard),
        headers,
        endpoint: None,
        reading: None,
        ahead: Ahead::default(),
        requests: FuturesUnordered::new(),
        begun: BTreeSet::new(),
        rejected: BTreeMap::new(),
        hindrance: None,
        ending: false,
    }))
}

/// Whether requests can go there; what is wrong does not repeat the URL, which may be a secret.
fn check_url(text: &str, guard: &Guard) -> Result<Url, String> {
    let url = Url::parse(text.trim())
        .map_err(|error| format!("an address such as \"https://…\" was expected: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("an address such as \"https://…\" was expected".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "user and password in the URL are not sent: use `headers` or `bearer_token`".to_owned()
        );
    }
    let host = url.host().ok_or("the host is missing")?;
    if matches!(host, url::Host::Domain(name) if name.contains(',')) {
        return Err("a sink has one receiver: give the second one a sink of its own".to_owned());
    }
    guard.check_host(&host).map_err(|forbidden| forbidden.to_string())?;
    Ok(url)
}

/// The headers that are the same in each request, without the secret ones.
fn fixed_headers(configured: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let agent = concat!("astro-relay/", env!("CARGO_PKG_VERSION"));
    let mut headers = HeaderMap::from_iter([
        (USER_AGENT, HeaderValue::from_static(agent)),
        (ACCEPT, HeaderValue::from_static("*/*")),
    ]);
    for (name, value) in configured {
        let lower = name.to_ascii_lowercase();
        if RESERVED.contains(&lower.as_str())
            || lower.starts_with("webhook-")
            || lower.starts_with("astro-")
        {
            return Err(format!("{name:?} is set by the relay itself"));
        }
        let header = HeaderName::from_bytes(lower.as_bytes())
            .map_err(|_| format!("{name:?} is not the name of a header"))?;
        let mut text = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of {name:?} is not legal in a header"))?;
        text.set_sensitive(true);
        headers.insert(header, text);
    }
    Ok(headers)
}

struct Webhook {
    settings: Settings,
    timeout: Duration,
    guard: Arc<Guard>,
    headers: HeaderMap,
    endpoint: Option<Arc<Endpoint>>,
    /// The secrets, while they are being read again.
    reading: Option<Reading>,
    ahead: Ahead,
    /// Requests on their way.
    requests: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// The events that they carry.
    begun: BTreeSet<Seq>,
    /// Events that were rejected and are not the oldest yet.
    rejected: BTreeMap<Seq, String>,
    /// What would meet every event: nothing new is begun.
    hindrance: Option<Cause>,
    /// The end is near: nothing new is begun.
    ending: bool,
}

/// The destination, with all that is the same in each request.
struct Endpoint {
    client: Arc<Client>,
    method: Method,
    headers: HeaderMap,
    signer: Signer,
    /// When the secrets were read.
    read: Instant,
}

/// An event, and what came of its request.
type Answered = (Outgoing, Result<(), Cause>);

#[async_trait]
impl Sink for Webhook {
    /// Makes a new client with no connection in it; the first request will dial.
    async fn connect(&mut self) -> Result<(), Failure> {
        self.endpoint = None;
        self.requests.clear();
        self.begun.clear();
        self.rejected.clear();
        self.hindrance = None;
        let url = self.settings.url.read_token().await.map_err(Failure::down)?;
        let url = check_url(url.expose(), &self.guard).map_err(Failure::down)?;
        if url.scheme() == "https" {
            prepare(self.settings.ca_file.as_deref()).await;
        }
        let tls = client_config(self.settings.ca_file.as_deref(), None, None).await;
        let tls = (*tls.map_err(Failure::down)?).clone();
        let guard = Arc::clone(&self.guard);
        let client = Client::new(&url, tls, guard, self.timeout).map_err(Failure::down)?;
        let secrets = Secrets::read(self.settings.clone(), self.headers.clone()).await;
        let Secrets { headers, signer } = secrets.map_err(Failure::down)?;
        let method = match self.settings.method {
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
        };
        let (client, read) = (Arc::new(client), Instant::now());
        self.reading = None;
        self.endpoint = Some(Arc::new(Endpoint { client, method, headers, signer, read }));
        Ok(())
    }

    /// Nothing is connected before there is something to send, so this is what finds out whether the
    /// destination is there at all. Whatever it answers, it is there; but what it redirects now, it would
    /// redirect then.
    async fn may_publish(&mut self, _address: &str) -> Result<Permission, Failure> {
        let status = self.question().await?;
        if status.is_redirection() {
            return Ok(Permission::Denied(format!(
                "HTTP {status}: redirects are not followed; `url` must be the final address"
            )));
        }
        Ok(Permission::Untold("a webhook says nothing before it gets one"))
    }

    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let (mut done, mut fresh) = (0, batch.len());
        while let Some(rest) = batch.get(done..).filter(|rest| !rest.is_empty()) {
            match self.deliver_ahead(rest, fresh).await {
                Ok(accepted) => done += accepted,
                Err(failure) => return Err(Failure::after(done + failure.accepted, failure.cause)),
            }
            fresh = 0;
        }
        Ok(())
    }

    /// What is on its way is known by its number, so a call may be given up at any time, and what is
    /// fresh need not be told apart.
    async fn deliver_ahead(&mut self, flight: &[Outgoing], fresh: usize) -> Result<usize, Failure> {
        self.read_secrets_again().await;
        self.begin_flight(flight);
        loop {
            self.begin_requests(flight)?;
            // What is answered by now makes room for more.
            let mut answered = false;
            while let Some(Some(answer)) = self.requests.next().now_or_never() {
                self.answered(answer);
                answered = true;
            }
            let accepted = flight.iter().take_while(|event| self.ahead.has(event)).count();
            if accepted > 0 {
                self.ahead.reported(flight.get(..accepted).unwrap_or_default());
                return Ok(accepted);
            }
            if answered {
                continue;
            }
            if fresh > 0 && !self.is_hindered(flight) {
                return Ok(0);
            }
            match self.requests.next().await {
                Some(answer) => self.answered(answer),
                None => return Err(self.failure(flight)),
            }
        }
    }

    fn room(&self, flight: &[Outgoing]) -> Option<usize> {
        let open = flight.iter().filter(|event| !self.ahead.has(event)).count();
        Some((HANDED * self.settings.concurrency).saturating_sub(open))
    }

    fn begin_nothing_more(&mut self) {
        self.ending = true;
    }

    fn acknowledged(&self, flight: &[Outgoing]) -> Vec<bool> {
        flight.iter().map(|event| self.ahead.has(event)).collect()
    }

    async fn answers(&mut self) -> Result<(), Failure> {
        self.question().await.map(drop)
    }

    fn has_session(&self) -> bool {
        false
    }

    async fn idle(&mut self) -> Failure {
        if let Some(endpoint) = &self.endpoint {
            endpoint.client.close_idle().await;
        }
        std::future::pending().await
    }

    async fn close(&mut self) {
        self.endpoint = None;
        self.requests.clear();
        self.ahead.clear();
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.settings.secret.is_none() {
            remarks.push("requests are not signed: no `secret` is configured".to_owned());
        }
        remarks
    }
}

/// What is wrong with a secret.
type Wrong = Box<dyn Error + Send + Sync>;

type Reading = Pin<Box<dyn Future<Output = Result<Secrets, Wrong>> + Send>>;

/// What follows from the secrets.
struct Secrets {
    headers: HeaderMap,
    signer: Signer,
}

impl Secrets {
    async fn read(settings: Settings, mut headers: HeaderMap) -> Result<Self, Wrong> {
        if let Some(token) = &settings.bearer_token {
            let token = token.read_token().await?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                .map_err(|_| "the bearer token is not legal in a header")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut secrets = Vec::new();
        for secret in [&settings.secret, &settings.previous_secret].into_iter().flatten() {
            secrets.push(secret.read_token().await?);
        }
        Ok(Self { headers, signer: Signer::new(&secrets)? })
    }
}

impl Webhook {
    /// Forgets what is no longer in flight.
    fn begin_flight(&mut self, flight: &[Outgoing]) {
        self.ahead.begin(flight);
        if let Some(first) = flight.first().map(|first| first.record.seq) {
            self.rejected.retain(|seq, _| *seq >= first);
        }
    }

    /// Begins what may be begun: the oldest event of each room that has none on its way.
    fn begin_requests(&mut self, flight: &[Outgoing]) -> Result<(), Failure> {
        let Some(endpoint) = &self.endpoint else {
            return Err(Failure::down("there is no connection"));
        };
        if self.is_hindered(flight) {
            return Ok(());
        }
        let mut rooms: HashSet<&str, foldhash::fast::RandomState> = HashSet::default();
        for outgoing in flight.iter().filter(|event| !self.ahead.has(event)) {
            if self.requests.len() >= self.settings.concurrency {
                break;
            }
            let (seq, room) = (outgoing.record.seq, &*outgoing.record.event.place.room);
            let first = rooms.insert(room);
            if first && !self.rejected.contains_key(&seq) && self.begun.insert(seq) {
                let (endpoint, outgoing) = (Arc::clone(endpoint), outgoing.clone());
                let request = async move {
                    let answer = endpoint.send(&outgoing).await;
                    (outgoing, answer)
                };
                self.requests.push(request.boxed());
            }
        }
        Ok(())
    }

    /// Whether nothing new is to be begun.
    fn is_hindered(&self, flight: &[Outgoing]) -> bool {
        let first = flight.first().map(|first| first.record.seq);
        let rejected = first.is_some_and(|seq| self.rejected.contains_key(&seq));
        self.ending || rejected || self.hindrance.is_some()
    }

    fn answered(&mut self, (outgoing, answer): Answered) {
        self.begun.remove(&outgoing.record.seq);
        match answer {
            Ok(()) => self.ahead.accepted(&outgoing),
            Err(Cause::Rejected { reason }) => {
                self.rejected.insert(outgoing.record.seq, reason);
            }
            Err(cause) => drop(self.hindrance.get_or_insert(cause)),
        }
    }

    /// Nothing is on its way, and nothing more is accepted: why.
    fn failure(&mut self, flight: &[Outgoing]) -> Failure {
        let first = flight.first().map(|first| first.record.seq).unwrap_or_default();
        let rejected = self.rejected.remove(&first).map(|reason| Cause::Rejected { reason });
        let cause = rejected.or_else(|| self.hindrance.take());
        Failure::after(0, cause.unwrap_or_else(|| Cause::Down("the event was not sent".into())))
    }

    /// Asks the destination something that changes nothing there (OPTIONS, RFC 9110, section 9.2.1), with
    /// none of our secrets.
    async fn question(&mut self) -> Result<StatusCode, Failure> {
        let Some(endpoint) = &self.endpoint else {
            return Err(Failure::down("there is no connection"));
        };
        let mut question = Request::new(Whole::default());
        *question.method_mut() = Method::OPTIONS;
        let answer = endpoint.client.ask(question).await;
        answer.map(|head| head.status).map_err(|error| Failure::down(words(&error)))
    }

    /// A webhook has no connection whose making would be the moment to read them. A file that does not
    /// answer is waited for shortly, and once: requests go on with what was read before.
    async fn read_secrets_again(&mut self) {
        let Some(endpoint) = &mut self.endpoint else { return };
        let read = match &mut self.reading {
            Some(reading) => reading.now_or_never(),
            None if endpoint.read.elapsed() < READ_AGAIN => return,
            None => {
                let reading = Secrets::read(self.settings.clone(), self.headers.clone());
                let reading = self.reading.insert(Box::pin(reading));
                timeout(SHORT_PATIENCE, reading).await.ok()
            }
        };
        let Some(read) = read else { return };
        self.reading = None;
        let (client, method) = (Arc::clone(&endpoint.client), endpoint.method.clone());
        let Secrets { headers, signer } = read.unwrap_or_else(|error| {
            // Somebody is just replacing the file.
            tracing::warn!(%error, "secrets stay as they were");
            Secrets { headers: endpoint.headers.clone(), signer: endpoint.signer.clone() }
        });
        let read = Instant::now();
        *endpoint = Arc::new(Endpoint { client, method, headers, signer, read });
    }
}

impl Endpoint {
    /// One request and its answer.
    async fn send(&self, outgoing: &Outgoing) -> Result<(), Cause> {
        let now = clock::now();
        match self.client.ask(self.request(outgoing, now / 1000)).await {
            Ok(head) => answer::judge(head.status, &head.headers, now),
            Err(error) if error.is_close() => Err(Cause::closed(words(&error))),
            Err(error) => Err(Cause::Down(words(&error).into())),
        }
    }

    fn request(&self, outgoing: &Outgoing, seconds: u64) -> Request<Whole> {
        let event = &outgoing.record.event;
        let mut request = Request::new(Whole::from(outgoing.payload.clone()));
        request.method_mut().clone_from(&self.method);
        let id = header_text(event.key());
        let timestamp = seconds.to_string();
        let signature = self.signer.sign(&id, &timestamp, &outgoing.payload);
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(outgoing.content_type));
        for (name, value) in [
            (WEBHOOK_ID, &*id),
            (WEBHOOK_TIMESTAMP, &*timestamp),
            (WEBHOOK_SIGNATURE, signature.as_deref().unwrap_or_default()),
            (ASTRO_TOPIC, &*header_text(&event.place.topic)),
            (ASTRO_ROOM, &*header_text(&event.place.room)),
            (ASTRO_CHANNEL, &*header_text(&event.place.channel)),
            (ASTRO_TS, &*header_text(&event.ts)),
            (ASTRO_ORIGIN, event.origin.as_str()),
        ] {
            if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        request
    }
}

/// What does not belong in a header's text is written `%C3%A9`, and so is the percent sign.
fn header_text(text: &str) -> std::borrow::Cow<'_, str> {
    let legal = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    if text.bytes().all(legal) {
        return text.into();
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if legal(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            write!(encoded, "%{byte:02X}").unwrap_or_default();
        }
    }
    encoded.into()
}

/// An error with all that lies beneath it. None of them names the URL.
fn words(error: &ClientError) -> String {
    fault::explain(error)
}
