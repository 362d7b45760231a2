//! The REST API: sessions read and changed, and the histories of activities, tips and redemptions
//! ([`history`]).
//!
//! It knows where each request goes and what an answer must look like, and no more: what a session
//! means is for [`crate::channel::state`]. How a request is made and repeated is in [`call`]. It follows no
//! redirect, for that would carry the token elsewhere.

mod call;
mod history;
pub mod oauth;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Client, Method, header::AUTHORIZATION, redirect};
use rustls::ClientConfig;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value, value::RawValue};
use url::Url;

pub use self::history::{History, HistoryItem, HistoryReader, Listed, PAGE, Page, Span};
use self::{
    call::{Call, LARGEST, authorization},
    history::WorkingForm,
};
use super::proxied::Proxied;
use crate::{
    base::{
        clock::{self, UnixMillis},
        fault, json,
        sync::lock,
        text, tls,
    },
    config::{Astro, Secret, SecretRef, TokenType, jwt, secret::SecretError},
};

/// How long one request may take, answer included: `reload` adds up a channel's history.
const REQUEST: Duration = Duration::from_secs(30);

/// Why a call has failed. No message shows a token or an address.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The client cannot be made.
    #[error("the REST client cannot be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The base address or the channel makes no address.
    #[error("{0:?} is no channel id: 24 hexadecimal digits were expected")]
    Channel(String),
    /// There is no credential to ask with.
    #[error("{0}")]
    Credential(String),
    /// The token has characters that no header can carry.
    #[error("the token cannot be sent in a header")]
    Token,
    /// The server answered, and said no.
    #[error("HTTP {status}: {text}")]
    Refused {
        /// The status.
        status: u16,
        /// The server's words, as far as they could be made out.
        text: String,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// There was no answer. Nothing has been changed.
    #[error("no answer")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A change was sent, and what became of it is not known.
    #[error("unknown outcome: the change was sent and may have been made")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server said yes, and what it sent is not what was asked for.
    #[error("the answer cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RestError {
    /// Whether the credential is at fault: then only another one helps.
    pub fn is_unauthorised(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 403, .. } | Self::Token | Self::Credential(_))
    }

    /// Names the scope that was needed where permission was refused.
    fn needs(self, scope: &str) -> Self {
        match self {
            Self::Refused { status: 403, text, retry_after } if !text.contains(scope) => {
                let text = format!("{text} (the token needs the scope {scope})");
                Self::Refused { status: 403, text, retry_after }
            }
            other => other,
        }
    }

    /// How long the server asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// With what lies behind it, in one line.
    pub fn describe(&self) -> String {
        fault::explain(self)
    }
}

/// A session as the server has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SessionSnapshot {
    /// Its id: a reset makes a new one.
    #[serde(rename = "_id", default)]
    pub id: Option<String>,
    /// Its elements by name.
    pub data: Map<String, Value>,
    #[serde(flatten)]
    pub about: SessionAbout,
}

/// The elements of a session by name, as the server wrote them.
pub type Elements = BTreeMap<Box<str>, Box<RawValue>>;

/// A session with its elements as the server wrote them.
#[derive(Debug, Clone)]
pub struct SessionDocument {
    pub elements: Elements,
    pub about: SessionAbout,
}

/// What a session says of itself. What is not as documented is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct SessionAbout {
    /// The platform: `twitch`, `youtube`, …
    #[serde(default, deserialize_with = "word")]
    pub provider: Option<String>,
    #[serde(rename = "lastReset", default, deserialize_with = "time")]
    pub last_reset: Option<UnixMillis>,
    #[serde(rename = "createdAt", default, deserialize_with = "time")]
    pub created: Option<UnixMillis>,
}

/// A text, if it is one.
fn word<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Value::deserialize(from)?.as_str().map(|text| text::excerpt(text, text::EXCERPT)))
}

/// A time, if it is one.
fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<UnixMillis>, D::Error> {
    Ok(Value::deserialize(from)?.as_str().and_then(clock::parse_rfc3339))
}

/// Reads a session; `None`: it is something else.
fn document(body: &[u8]) -> Option<SessionDocument> {
    #[derive(Deserialize)]
    struct Known {
        data: Elements,
    }
    // The elements are kept as they were written, which no flattened struct can.
    let known: Known = json::read(body).ok()?;
    let about = json::read(body).unwrap_or_default();
    Some(SessionDocument { elements: known.data, about })
}

/// Which list of givers.
#[derive(Debug, Clone, Default)]
pub struct Top {
    /// `tip`, `cheer`, …
    pub kind: Option<String>,
    /// `alltime`, `monthly`, `weekly`, `session`.
    pub interval: Option<String>,
    /// How many.
    pub limit: Option<usize>,
    /// How many to leave out.
    pub offset: Option<usize>,
}

/// The REST API.
#[derive(Clone)]
pub struct Rest {
    /// The client of the last call.
    client: Arc<Mutex<Option<Made>>>,
    astro: Astro,
    proxied: Proxied,
    base: String,
    deadline: Duration,
    /// How activities are asked for.
    form: Arc<WorkingForm>,
}

/// Without its address, which may hold a secret.
impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rest")
    }
}

/// A client, and what it was made of: while that is the same, so is the client, with its connections.
struct Made {
    tls: Arc<ClientConfig>,
    proxy: Option<Url>,
    client: Client,
}

/// What a call is made with: a channel's id, and its token as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub channel: String,
    pub token: Secret,
    /// Each kind has its scheme.
    pub token_type: TokenType,
}

impl Rest {
    /// A client of the configured API.
    pub fn new(config: &Astro) -> Self {
        Self {
            client: Arc::default(),
            astro: config.clone(),
            proxied: Proxied::new(config),
            base: config.api_url.trim_end_matches('/').to_owned(),
            deadline: REQUEST,
            form: Arc::default(),
        }
    }

    /// A client with the certificates and the proxy as they are now.
    async fn client(&self) -> Result<Client, RestError> {
        let base = Url::parse(&self.base).map_err(|error| RestError::Client(error.into()))?;
        let ca_file = self.astro.ca_file.as_deref();
        if base.scheme() == "https" {
            tls::prepare(ca_file).await;
        }
        let tls = tls::client_config(ca_file, None, None).await;
        let tls = tls.map_err(|error| RestError::Client(error.into()))?;
        let proxy =
            self.proxied.proxy(&base).await.map_err(|text| RestError::Client(text.into()))?;
        let proxy = proxy.map(|proxy| proxy.url().clone());
        let mut made = lock(&self.client);
        let known =
            made.as_ref().filter(|made| Arc::ptr_eq(&made.tls, &tls) && made.proxy == proxy);
        if let Some(known) = known {
            return Ok(known.client.clone());
        }
        let client = make_client(&self.astro, &tls, proxy.as_ref())?;
        *made = Some(Made { tls, proxy, client: client.clone() });
        Ok(client)
    }

    /// With another deadline for each request.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The same as [`credentials`]. Of a token of `OAuth2` the server is asked whose it is, where nothing else
    /// says it.
    pub async fn credentials<'a>(
        &self,
        rooms: impl IntoIterator<Item = &'a str> + Send,
        token: &SecretRef,
        token_type: TokenType,
    ) -> Result<Credentials, CredentialsError> {
        let found = credentials(rooms, token, token_type).await;
        let may_ask = matches!(token_type, TokenType::Oauth2 | TokenType::Oauth);
        if !may_ask || !matches!(found, Err(CredentialsError::NoId)) {
            return found;
        }
        let unread = |error: SecretError| CredentialsError::Token(error.to_string());
        let token = token.read_token().await.map_err(unread)?;
        let said = self.validate(&token).await;
        let said = said.map_err(|error| CredentialsError::Unvalidated(error.into()))?;
        let channel = said.channel.ok_or(CredentialsError::NoId)?;
        Ok(Credentials { channel, token, token_type })
    }

    /// The active session.
    pub async fn session(&self, credentials: &Credentials) -> Result<SessionSnapshot, RestError> {
        self.get(credentials, "sessions", "", &[]).await
    }

    /// The active session with its elements as the server wrote them.
    pub async fn document(&self, credentials: &Credentials) -> Result<SessionDocument, RestError> {
        let body: Box<RawValue> = self.get(credentials, "sessions", "", &[]).await?;
        let read = document(body.get().as_bytes());
        read.ok_or_else(|| RestError::Unreadable("it is no session".into()))
    }

    /// Sets elements of the session; answers the session, where the server does.
    pub async fn update(
        &self,
        credentials: &Credentials,
        elements: &Map<String, Value>,
    ) -> Result<Option<SessionDocument>, RestError> {
        self.put(credentials, "", Some(elements)).await
    }

    /// Begins a new session: goals, totals and latest stay. Answers it, where the server does.
    pub async fn reset(
        &self,
        credentials: &Credentials,
    ) -> Result<Option<SessionDocument>, RestError> {
        self.put(credentials, "/reset", None).await
    }

    /// Has the server compute the totals of the session again. Only the first documents have this call.
    pub async fn reload(
        &self,
        credentials: &Credentials,
    ) -> Result<Option<SessionDocument>, RestError> {
        self.put(credentials, "/reload", None).await.map_err(|error| match error {
            RestError::Refused { status: 404, text, retry_after } => {
                let text =
                    format!("{text} (newer documents have no reload: the server may not know it)");
                RestError::Refused { status: 404, text, retry_after }
            }
            error => error,
        })
    }

    /// The session's settings.
    pub async fn settings(
        &self,
        credentials: &Credentials,
    ) -> Result<Map<String, Value>, RestError> {
        self.get(credentials, "sessions", "/settings", &[]).await
    }

    /// Changes settings of the session.
    pub async fn set_settings(
        &self,
        credentials: &Credentials,
        settings: &Map<String, Value>,
    ) -> Result<(), RestError> {
        self.put(credentials, "/settings", Some(settings)).await.map(drop)
    }

    /// Who gave most. No document shows the answer, so it is handed on as it is.
    pub async fn top(&self, credentials: &Credentials, top: &Top) -> Result<Value, RestError> {
        let mut query = Vec::new();
        let numbers = [("limit", top.limit), ("offset", top.offset)];
        for (name, value) in numbers {
            query.extend(value.map(|value| (name, value.to_string())));
        }
        query.extend(top.kind.clone().map(|kind| ("type", kind)));
        query.extend(top.interval.clone().map(|interval| ("interval", interval)));
        self.get(credentials, "sessions", "/top", &query).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        credentials: &Credentials,
        area: &str,
        tail: &str,
        query: &[(&str, String)],
    ) -> Result<T, RestError> {
        let address = self.address(&credentials.channel, area, tail)?;
        let mut address = Url::parse(&address).map_err(|error| RestError::Client(error.into()))?;
        if !query.is_empty() {
            address.query_pairs_mut().extend_pairs(query);
        }
        let client = self.client().await?;
        let authorization = authorization(&credentials.token, credentials.token_type)?;
        let request = || {
            client
                .request(Method::GET, address.clone())
                .header(AUTHORIZATION, authorization.clone())
        };
        let secrets = [&credentials.token];
        let call = self.call(&secrets, false);
        let body = call.make(request).await.map_err(|error| {
            if credentials.token_type == TokenType::Jwt {
                error
            } else {
                error.needs(scope(area, tail))
            }
        })?;
        json::read(&body).map_err(|error| RestError::Unreadable(error.into()))
    }

    /// Makes a change. Where the answer is a session, that is what it is now; it may be anything else.
    async fn put(
        &self,
        credentials: &Credentials,
        tail: &str,
        body: Option<&Map<String, Value>>,
    ) -> Result<Option<SessionDocument>, RestError> {
        let address = self.address(&credentials.channel, "sessions", tail)?;
        let client = self.client().await?;
        let authorization = authorization(&credentials.token, credentials.token_type)?;
        let request = || {
            let request = client.request(Method::PUT, &address);
            let request = request.header(AUTHORIZATION, authorization.clone());
            match body {
                Some(body) => request.json(body),
                None => request.header("content-length", "0"),
            }
        };
        self.call(&[&credentials.token], true).make(request).await.map(|body| document(&body))
    }

    fn call<'a>(&self, secrets: &'a [&'a Secret], change: bool) -> Call<'a> {
        Call { secrets, change, deadline: self.deadline, largest: LARGEST }
    }

    fn address(&self, channel: &str, area: &str, tail: &str) -> Result<String, RestError> {
        if !is_channel_id(channel) {
            return Err(RestError::Channel(channel.to_owned()));
        }
        Ok(format!("{}/{area}/{channel}{tail}", self.base))
    }
}

/// The library would look at the environment by itself, by other rules than the gateway's connections
/// are made by.
fn make_client(
    config: &Astro,
    tls: &ClientConfig,
    proxy: Option<&Url>,
) -> Result<Client, RestError> {
    let failed = |error: reqwest::Error| RestError::Client(error.without_url().into());
    let mut builder = Client::builder().no_proxy();
    if let Some(proxy) = proxy {
        builder = builder.proxy(reqwest::Proxy::https(proxy.clone()).map_err(failed)?);
    }
    builder
        .tls_backend_preconfigured(tls.clone())
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("astro-relay/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.connect_timeout.0)
        .build()
        .map_err(failed)
}

/// Why a channel cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The token cannot be read now.
    #[error("{0}")]
    Token(String),
    /// Only the server can say whose the token is, and it has not.
    #[error("whose the token is is not known: {}", .0.describe())]
    Unvalidated(Box<RestError>),
    #[error("the channel's id is not known: set its room, 24 hexadecimal digits")]
    NoId,
}

/// Under which id and with which token a channel is asked for: the first of `rooms` that can be an id,
/// or else the one in the token. The token is read now.
pub async fn credentials<'a>(
    rooms: impl IntoIterator<Item = &'a str> + Send,
    token: &SecretRef,
    token_type: TokenType,
) -> Result<Credentials, CredentialsError> {
    let token = token.read_token().await;
    let token = token.map_err(|error| CredentialsError::Token(error.to_string()))?;
    let room = rooms.into_iter().find(|room| is_channel_id(room)).map(str::to_owned);
    let own = || jwt::channel(token.expose()).filter(|channel| is_channel_id(channel));
    let id = room.or_else(own);
    let channel = id.ok_or(CredentialsError::NoId)?;
    Ok(Credentials { channel, token, token_type })
}

/// The scope that a token needs to read there (vendor's `OpenAPI`). For changes none is documented: there
/// the server's own words stand alone.
fn scope(area: &str, tail: &str) -> &'static str {
    match (area, tail) {
        ("activities", _) => "activities:read",
        ("tips", "/moderation") => "tips:moderation",
        ("tips", _) => "tips:read",
        ("store", _) => "store:read",
        _ => "session:read",
    }
}

/// Whether a text is a channel's id as the REST API knows it: 24 hexadecimal digits.
pub fn is_channel_id(text: &str) -> bool {
    text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_id_cannot_lead_elsewhere() {
        assert!(is_channel_id("5b2e2007760aeb7729487dab"));
        for text in ["", "main", "../../users/5b2e2007760ae", "5b2e2007760aeb7729487da?"] {
            assert!(!is_channel_id(text), "{text}");
        }
    }

    #[test]
    fn the_documented_examples_are_read() {
        let session = include_str!("../../tests/fixtures/rest/session.json");
        let session: SessionSnapshot = serde_json::from_str(session).unwrap();
        assert_eq!(session.data.len(), 62);
        assert_eq!(session.about.provider.as_deref(), Some("twitch"));
        assert!(session.about.last_reset.is_some() && session.about.created.is_some());
        let whole = document(include_bytes!("../../tests/fixtures/rest/session.json")).unwrap();
        assert_eq!((whole.elements.len(), whole.about), (62, session.about));
        for other in ["ok", "", "[]", "{}", r#"{"data":[]}"#] {
            assert!(document(other.as_bytes()).is_none(), "{other}");
        }
        let odd = document(br#"{"data":{"a": 1.0},"lastReset":5,"createdAt":null,"provider":{}}"#);
        let odd = odd.unwrap();
        assert_eq!((odd.elements["a"].get(), odd.about), ("1.0", SessionAbout::default()));
    }
}
