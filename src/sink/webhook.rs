//! Events to an HTTP endpoint, one request each, signed by the Standard Webhooks specification.
//!
//! Events of one room go one after another; several rooms go at once, up to `concurrency`. After a
//! failure that would meet every event (no connection, 5xx, 429, 404) nothing new is begun; requests that
//! are under way are waited for. A rejected event holds back its own room only, until it is the oldest and
//! becomes a dead letter.
//!
//! `webhook-id` is the event's key and stays the same in every attempt: by it the receiver recognises a
//! repeat.

mod answer;
mod client;
mod guard;
mod secrets;
mod sign;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fmt::Write,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hyper::{
    Method, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use self::{
    client::Client,
    guard::Guard,
    secrets::{Reading, Secrets},
    sign::Signer,
};
use super::{
    Cause, Failure, Kind, Opening, Outgoing, Permission, Report, Sink, in_flight::InFlight,
    settings,
};
use crate::{
    base::{
        clock,
        event::Seq,
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
    usual_url: Some(""),
    // The secret is none: everybody can read it here.
    demo: Some(super::Demo {
        settings: r#"{"secret": "whsec_YXN0cm8tcmVsYXktZGVtby1zZWNyZXQtMTIzNA==",
            "allow_addresses": ["127.0.0.0/8", "::1"]}"#,
        watch: "signed with whsec_YXN0cm8tcmVsYXktZGVtby1zZWNyZXQtMTIzNA==",
        stream: None,
    }),
    session: false,
    secrets: &["url", "secret", "previous_secret", "bearer_token"],
    schema: || schema_for!(Settings),
    open,
    validate: None,
    probe: Some(probe),
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

/// Events in flight, for each request that may be under way: the next of a room is there when the one
/// before is answered, and an event of another room behind some of this one.
const IN_FLIGHT: usize = 4;

/// How old the secrets may be before they are read again: a receiver that changes its secret has two
/// for much longer, and reading a file costs nothing compared with that.
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
    secret: Option<SecretRef>,
    /// Signs each request as well, while the receiver goes over from this secret to the new one.
    previous_secret: Option<SecretRef>,
    /// Sent as `Authorization: Bearer …`.
    bearer_token: Option<SecretRef>,
    /// Requests at once, at most; events of one room go one after another all the same.
    #[serde(default = "default_concurrency")]
    concurrency: usize,
    /// Addresses and networks that may be reached although they are link-local, a cloud's metadata
    /// service, or otherwise no host to send events to.
    #[serde(default)]
    allow_addresses: Vec<String>,
    /// A PEM file of certificate authorities to trust besides the system's.
    ca_file: Option<PathBuf>,
}

/// How a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "UPPERCASE")]
enum Verb {
    /// What the specification says.
    #[default]
    Post,
    Put,
    Patch,
}

/// A small receiver has about as many workers.
fn default_concurrency() -> usize {
    8
}

fn open(opening: &Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    webhook(opening).map(|webhook| Box::new(webhook) as Box<dyn Sink>)
}

/// Asks whether the destination is there at all: nothing is connected before there is something to send.
/// Whatever it answers, it is there; but what it redirects now, it would redirect then.
fn probe(
    opening: &Opening<'_>,
    _: Vec<Arc<str>>,
) -> BoxFuture<'static, Result<Vec<Permission>, Failure>> {
    let webhook = webhook(opening);
    async move {
        let mut webhook = webhook.map_err(Failure::down)?;
        webhook.connect().await?;
        let status = webhook.question().await?;
        Ok(vec![if status.is_redirection() {
            Permission::Denied(format!(
                "HTTP {status}: redirects are not followed; `url` must be the final address"
            ))
        } else {
            Permission::Unknown("a webhook says nothing before it gets one")
        }])
    }
    .boxed()
}

fn webhook(opening: &Opening<'_>) -> Result<Webhook, ConfigError> {
    let settings: Settings = settings(opening)?;
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
    let mut webhook = Webhook {
        settings,
        timeout: opening.config.timeout.0,
        guard: Arc::new(guard),
        headers,
        endpoint: None,
        reading: None,
        in_flight: InFlight::default(),
        pending: VecDeque::new(),
        full: false,
        requests: FuturesUnordered::new(),
        hindrance: None,
        facts: Vec::new(),
        report: Report::default(),
    };
    webhook.note(webhook.facts_of_settings());
    Ok(webhook)
}

/// Whether requests can go there; what is wrong does not repeat the URL, which may be a secret.
fn check_url(text: &str, guard: &Guard) -> Result<Url, String> {
    if text.contains("{{") || text.contains("{% ") {
        return Err("a webhook's address is no template: all events of a sink go to the same one"
            .to_owned());
    }
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
    reading: Option<BoxFuture<'static, Reading>>,
    in_flight: InFlight,
    /// What is in flight and not accepted, oldest first.
    pending: VecDeque<Pending>,
    /// `send` had no room for more.
    full: bool,
    requests: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// What would meet every event: nothing new is begun.
    hindrance: Option<Cause>,
    /// What an operator should know, as it was last reported.
    facts: Vec<String>,
    report: Report,
}

/// An event that is not accepted yet.
struct Pending {
    number: u64,
    event: Outgoing,
    /// It has a request, or was rejected.
    begun: bool,
}

/// The destination, with all that is the same in each request.
struct Endpoint {
    client: Arc<Client>,
    method: Method,
    headers: HeaderMap,
    signer: Signer,
    secrets: Secrets,
    /// When the secrets were read.
    read: Instant,
}

/// The number of an event in flight, and what came of its request.
type Answered = (u64, Result<(), Cause>);

#[async_trait]
impl Sink for Webhook {
    /// Makes a new client with no connection in it; the first request will dial.
    async fn connect(&mut self) -> Result<(), Failure> {
        self.endpoint = None;
        self.in_flight.clear();
        self.reset();
        let url = self.settings.url.read_token().await.map_err(Failure::down)?;
        let url = check_url(url.expose(), &self.guard).map_err(Failure::down)?;
        if url.scheme() == "https" {
            prepare(self.settings.ca_file.as_deref()).await;
        }
        let tls = client_config(self.settings.ca_file.as_deref(), None, None).await;
        let tls = (*tls.map_err(Failure::down)?).clone();
        let guard = Arc::clone(&self.guard);
        let client = Client::new(url, tls, guard, self.timeout)?;
        let secrets = Reading::new(self.settings.clone()).await.all().map_err(Failure::down)?;
        let method = match self.settings.method {
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
        };
        self.reading = None;
        let endpoint = Endpoint::new(Arc::new(client), method, self.headers.clone(), secrets);
        self.endpoint = Some(Arc::new(endpoint));
        self.note(self.facts_of_settings());
        Ok(())
    }

    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure> {
        self.read_secrets_again().await;
        let mut sent = 0;
        for event in events {
            self.full = !self.has_room();
            if self.full {
                break;
            }
            if let Some(number) = self.in_flight.push(event) {
                self.pending.push_back(Pending { number, event: event.clone(), begun: false });
            }
            sent += 1;
        }
        self.begin_requests();
        Ok(sent)
    }

    async fn acknowledged(&mut self) -> Result<usize, Failure> {
        loop {
            if let Some(report) = self.in_flight.report() {
                self.full = false;
                if report.is_err() {
                    // The rejected event was the oldest.
                    self.pending.pop_front();
                }
                return report;
            }
            if self.full && self.has_room() {
                self.full = false;
                return Ok(0);
            }
            self.begin_requests();
            if let Some((number, answer)) = self.requests.next().await {
                self.answered(number, answer);
                // What else has been answered by now.
                while let Some(Some((number, answer))) = self.requests.next().now_or_never() {
                    self.answered(number, answer);
                }
            } else if self.in_flight.is_empty() {
                return std::future::pending().await;
            } else {
                let cause = self.hindrance.take();
                self.reset();
                let cause = cause.unwrap_or_else(|| Cause::Down("there is no connection".into()));
                return Err(self.in_flight.fail(cause));
            }
        }
    }

    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)> {
        while let Ok(Some((number, answer))) = timeout_at(until, self.requests.next()).await {
            self.answered(number, answer);
        }
        self.endpoint = None;
        self.reset();
        self.in_flight.accepted()
    }

    fn report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }
}

impl Webhook {
    /// What an operator should know of the configuration.
    fn facts_of_settings(&self) -> Vec<String> {
        let unsigned = "requests are not signed: no `secret` is configured";
        self.settings.secret.is_none().then(|| unsigned.to_owned()).into_iter().collect()
    }

    /// Reports what an operator should know, where it is something else than before.
    fn note(&mut self, facts: Vec<String>) {
        if self.facts != facts {
            self.report.facts = Some(facts.clone());
            self.facts = facts;
        }
    }

    fn has_room(&self) -> bool {
        self.pending.len() < IN_FLIGHT * self.settings.concurrency
    }

    /// No request is under way any more.
    fn reset(&mut self) {
        self.requests.clear();
        self.pending.clear();
        self.hindrance = None;
        self.full = false;
    }

    /// Begins what may be begun: the oldest event of each room that has no request.
    fn begin_requests(&mut self) {
        let Some(endpoint) = &self.endpoint else { return };
        if self.hindrance.is_some() {
            return;
        }
        let mut rooms: HashSet<&str, foldhash::fast::RandomState> = HashSet::default();
        for Pending { number, event, begun } in &mut self.pending {
            if self.requests.len() >= self.settings.concurrency {
                break;
            }
            if rooms.insert(&event.record.event.place.room) && !std::mem::replace(begun, true) {
                let (endpoint, event, number) = (Arc::clone(endpoint), event.clone(), *number);
                let request = async move { (number, endpoint.send(&event).await) };
                self.requests.push(request.boxed());
            }
        }
    }

    fn answered(&mut self, number: u64, answer: Result<(), Cause>) {
        match answer {
            Ok(()) => self.pending.retain(|pending| pending.number != number),
            Err(Cause::Rejected { .. }) => {}
            Err(cause) => {
                self.hindrance.get_or_insert(cause);
                return;
            }
        }
        self.in_flight.answered(number, answer);
    }

    /// Asks the destination something that changes nothing there (OPTIONS, RFC 9110, section 9.2.1), with
    /// none of our secrets.
    async fn question(&mut self) -> Result<StatusCode, Failure> {
        let Some(endpoint) = &self.endpoint else {
            return Err(Failure::down("there is no connection"));
        };
        let answer = endpoint.client.send(Method::OPTIONS, HeaderMap::new(), Bytes::new()).await?;
        Ok(answer.status)
    }

    /// A webhook has no connection whose making would be the moment to read them. A file that does not
    /// answer is waited for shortly, and once: requests go on with what was read before.
    async fn read_secrets_again(&mut self) {
        let Some(endpoint) = &mut self.endpoint else { return };
        let read = match &mut self.reading {
            Some(reading) => reading.now_or_never(),
            None if endpoint.read.elapsed() < READ_AGAIN => return,
            None => {
                let reading = self.reading.insert(Reading::new(self.settings.clone()).boxed());
                timeout(SHORT_PATIENCE, reading).await.ok()
            }
        };
        let Some(read) = read else { return };
        self.reading = None;
        let (client, method) = (Arc::clone(&endpoint.client), endpoint.method.clone());
        // Somebody may just be replacing a file.
        let (mut secrets, mut troubles) = (endpoint.secrets.clone(), Vec::new());
        secrets.renew(read, &mut troubles);
        *endpoint = Arc::new(Endpoint::new(client, method, self.headers.clone(), secrets));
        self.note([self.facts_of_settings(), troubles].concat());
    }
}

impl Endpoint {
    /// With secrets that were read just now.
    fn new(client: Arc<Client>, method: Method, mut headers: HeaderMap, secrets: Secrets) -> Self {
        secrets.authorize(&mut headers);
        let signer = secrets.signer();
        Self { client, method, headers, signer, secrets, read: Instant::now() }
    }

    /// One request and its answer.
    async fn send(&self, event: &Outgoing) -> Result<(), Cause> {
        let now = clock::now();
        let headers = self.headers(event, now / 1000);
        let answer = self.client.send(self.method.clone(), headers, event.payload.clone()).await?;
        answer::judge(answer.status, &answer.headers, now)
    }

    fn headers(&self, outgoing: &Outgoing, seconds: u64) -> HeaderMap {
        let event = &outgoing.record.event;
        let id = header_text(event.key());
        let timestamp = seconds.to_string();
        let signature = self.signer.sign(&id, &timestamp, &outgoing.payload);
        let mut headers = self.headers.clone();
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
        headers
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
