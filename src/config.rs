//! The configuration: its typed model, values, secrets, and the difference between two of them.
//!
//! It is pure: files and checks are [`crate::loading`]'s. Names here are the public interface, see
//! `config/astro-relay.toml`; the comments on the fields are what the JSON Schema shows in an editor.
//!
//! A sink's table is split in two. What all sinks share is [`SinkConfig`]; the rest stays JSON in
//! [`SinkConfig::settings`] until the sink's own kind reads it.

pub mod cluster;
pub mod commands;
pub mod difference;
pub mod jwt;
pub mod pasted;
pub mod problem;
pub mod secret;
pub mod units;

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    cluster::Cluster,
    commands::{Action, Commands},
    problem::{ConfigError, Findings, Place, Problem},
    secret::{Secret, SecretRef},
    units::{Period, Size},
};
pub use crate::base::log::LogFormat;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The gateway and the REST API.
    pub astro: Astro,
    /// What is subscribed, by a label of the user's own (`[a-z0-9_-]`).
    pub channels: BTreeMap<String, Channel>,
    /// Where events are kept until every sink has them.
    pub journal: Journal,
    /// The live session of each channel.
    pub session: Session,
    /// What was missed is fetched from the history.
    pub backfill: Backfill,
    /// Several relays as one, on NATS JetStream. Without this section a relay is alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// The local HTTP endpoint.
    pub http: Http,
    /// What is logged, and how.
    pub log: Log,
    /// When the configuration is reloaded.
    pub reload: Reload,
    /// Where events go, by a name of the user's own (`[a-z0-9_-]`).
    pub sinks: BTreeMap<String, SinkConfig>,
    /// The channels that JWTs belonged to when they were read, by label, where no room is configured.
    #[serde(skip)]
    pub token_rooms: BTreeMap<String, String>,
}

impl Config {
    /// The room of a channel, as far as it is known without the gateway: the configured one, or the token's own.
    pub fn room_of(&self, label: &str) -> Option<&str> {
        let configured = self.channels.get(label)?.room.as_deref();
        configured.or_else(|| self.token_rooms.get(label).map(String::as_str))
    }
}

/// The gateway and the REST API, with every limit of the connection.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Astro {
    /// The gateway: `wss://…`, or `ws://…` for tests and the simulator.
    pub url: String,
    /// The base of the REST API.
    pub api_url: String,
    /// A PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// An HTTP proxy through which the gateway and the REST API are reached, by `CONNECT`:
    /// `http://user:password@host:3128`; `none` to take none from the environment (`HTTPS_PROXY`,
    /// `ALL_PROXY`, `NO_PROXY`) either. Also `proxy_file`, `proxy_env`, `proxy_credential`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<SecretRef>,
    /// The largest message that is relayed; a larger one is left out, counted and logged.
    pub max_message_size: Size,
    /// Subscriptions on one connection before another is opened. The gateway takes a hundred commands of a
    /// connection in ten seconds: 100 subscriptions are established at once, 450 within 45 s.
    pub max_subscriptions_per_connection: usize,
    /// Connections at once, at most.
    pub max_connections: usize,
    /// Deadline of each stage of connecting: name, TCP, TLS, upgrade.
    pub connect_timeout: Period,
    /// How long to wait for `welcome` before subscribing without one.
    pub welcome_grace: Period,
    /// How long the gateway may take to answer a `subscribe`.
    pub response_timeout: Period,
    /// Silence after which the relay sends a ping of its own.
    pub ping_after: Period,
    /// How long after that ping a silent connection counts as dead.
    pub ping_timeout: Period,
    /// The longest wait between two attempts to connect.
    pub backoff_max: Period,
    /// How often a subscription that was refused for its credentials, or with an unknown code, is tried again.
    pub retry_refused: Period,
}

/// Shows the addresses without what may be secret in them, and none of the limits.
impl fmt::Debug for Astro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Astro")
            .field("url", &pasted::shown_address(&self.url))
            .field("api_url", &pasted::shown_address(&self.api_url))
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

impl Default for Astro {
    fn default() -> Self {
        Self {
            url: "wss://astro.streamelements.com".into(),
            api_url: "https://api.streamelements.com/kappa/v2".into(),
            ca_file: None,
            proxy: None,
            max_message_size: Size(8 * 1024 * 1024),
            max_subscriptions_per_connection: 450,
            max_connections: 64,
            connect_timeout: Period(Duration::from_secs(10)),
            welcome_grace: Period(Duration::from_secs(5)),
            response_timeout: Period(Duration::from_secs(15)),
            ping_after: Period(Duration::from_secs(15)),
            ping_timeout: Period(Duration::from_secs(10)),
            backoff_max: Period(Duration::from_mins(1)),
            retry_refused: Period(Duration::from_mins(5)),
        }
    }
}

/// One channel: whose events, with which token, and which of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// The channel's id (24 hexadecimal digits). Without it the gateway takes the token's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// The credential; also `token_file`, `token_env`, `token_credential`.
    pub token: SecretRef,
    /// What kind of token it is; sent as it stands here.
    #[serde(default)]
    pub token_type: TokenType,
    /// The OAuth2 client that the token was given to. With `client_secret` and `refresh_token` the relay
    /// refreshes the token ahead of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The secret of that client; also `client_secret_file`, `client_secret_env`,
    /// `client_secret_credential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<SecretRef>,
    /// What the token is refreshed with: `refresh_token_file`, for each refresh replaces it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<SecretRef>,
    /// The topics to subscribe.
    pub topics: Vec<String>,
}

impl Channel {
    /// Whether its token is refreshed.
    pub fn is_refreshed(&self) -> bool {
        self.client_id.is_some() && self.client_secret.is_some() && self.refresh_token.is_some()
    }
}

/// Kinds of token. Astro's documents say `oauth` in one revision and `oauth2` in another: the word
/// that is configured is the word that is sent.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    Default,
)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// A JSON web token, from the channel's settings page.
    #[default]
    Jwt,
    /// An API key.
    Apikey,
    /// An OAuth 2 access token, in the words of the newer documents.
    Oauth2,
    /// An OAuth 2 access token, in the words of the older documents.
    Oauth,
}

impl TokenType {
    /// Whether it is an access token of OAuth2, under whichever word.
    pub fn is_oauth(self) -> bool {
        matches!(self, Self::Oauth2 | Self::Oauth)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Apikey => "apikey",
            Self::Oauth2 => "oauth2",
            Self::Oauth => "oauth",
        }
    }
}

/// The durable log of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// Its directory. Empty: nothing is written to disk, events live in memory only.
    pub dir: PathBuf,
    /// The most disk space that its events may take. What is on its way into the file takes a quarter
    /// more, and 64 MiB at most.
    pub max_size: Size,
    /// The most disk space that the dead letters of one sink may take. When it is used up the sink is
    /// held, and no event is set aside or deleted, until somebody drops or retries letters.
    pub max_dead_letters: Size,
    /// The longest time that an event is kept for a sink.
    pub max_age: Period,
    /// How long an event that every sink has is kept as history.
    pub keep_delivered: Period,
    /// When it is forced to disk: `"always"`, `"never"`, or at an interval.
    pub sync: Sync,
    /// Free disk space that is left alone.
    pub min_free: Size,
    /// The most memory for the newest events.
    pub memory: Size,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            dir: "/var/lib/astro-relay".into(),
            max_size: Size(256 * 1024 * 1024),
            max_dead_letters: Size(16 * 1024 * 1024),
            max_age: Period(Duration::from_hours(7 * 24)),
            keep_delivered: Period(Duration::from_hours(24)),
            sync: Sync::default(),
            min_free: Size(32 * 1024 * 1024),
            memory: Size(4 * 1024 * 1024),
        }
    }
}

/// The live session of each channel that subscribes to `channel.session.update` or
/// `channel.session.reset`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Session {
    /// How often it is fetched, beside after every connect.
    pub refresh: Period,
}

impl Default for Session {
    fn default() -> Self {
        Self { refresh: Period(Duration::from_mins(15)) }
    }
}

/// After a gap, channels that subscribe to `channel.activities` get what they missed of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backfill {
    /// Whether the history is fetched at all.
    pub enabled: bool,
}

impl Default for Backfill {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// When the journal is forced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Before an event is delivered.
    Always,
    /// Left to the operating system.
    Never,
    /// At an interval.
    Every(Duration),
}

impl Default for Sync {
    fn default() -> Self {
        Self::Every(Duration::from_millis(100))
    }
}

/// The local HTTP endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Where it listens; `""` turns it off.
    pub listen: String,
    /// What a client must present to change something; also `_file`, `_env`, `_credential`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<SecretRef>,
    /// Allows a `listen` that is not loopback without an `admin_token`.
    pub insecure: bool,
    /// Host names under which it answers, beside addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Addresses of reverse proxies that ask themselves who comes. Whatever they send counts as if it
    /// showed the `admin_token`, under any host name: Home Assistant's Ingress is `172.30.32.2`. For a
    /// proxy on this machine (`127.0.0.1`) the host name must be one of `allowed_hosts` all the same.
    pub trusted_proxies: Vec<String>,
    /// Commands that may be given here with the `admin_token`: true for all, false for none, or a list
    /// of `session/set`, `session/reset`, `session/reload`, `relay/refresh`, `relay/test`.
    pub commands: Commands,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9464".into(),
            admin_token: None,
            insecure: false,
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            commands: Commands::default(),
        }
    }
}

impl Http {
    /// Whether an address is that of a trusted proxy.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|proxy| proxy.parse() == Ok(peer))
    }
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,astro_relay::astro=debug`.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Auto }
    }
}

/// When the configuration is reloaded, beside on request (SIGHUP, POST /reload).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Whether the file is watched, and reloaded when it has changed.
    pub watch: bool,
}

/// What all sinks share.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SinkConfig {
    /// The kind of sink.
    #[serde(rename = "type")]
    pub kind: String,
    /// Topics that it wants: `*` is one word, `**` the rest. Default: all of Astro's and `relay.gap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
    /// Channels that it wants, by label. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// A Jinja expression over `channel`, `topic`, `room`, `id`, `ts`, `data`: only events for which
    /// it is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// `message` (Astro's bytes), `data`, `cloudevent`, or a Jinja template.
    #[serde(default = "message_word")]
    pub payload: String,
    /// Older events are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Period>,
    /// Paths that are taken out of what leaves. Default: the donor's personal fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redact: Option<Vec<String>>,
    /// Where a sink that is new begins: `end`, `earliest`, or an age such as `2h`.
    #[serde(default)]
    pub start: Start,
    /// Events that are sent and not yet known (and saved) to be accepted, at most: what a crash may
    /// repeat.
    #[serde(default = "default_window")]
    pub window: usize,
    /// How long the destination may take for an answer, or for reading on, before it counts as a failure.
    #[serde(default = "default_timeout")]
    pub timeout: Period,
    /// The longest wait between two attempts.
    #[serde(default = "default_backoff_max")]
    pub backoff_max: Period,
    /// Whether the current state is published there beside the events: what the session, the stream, the
    /// bot and the relay are now.
    #[serde(default)]
    pub state: bool,
    /// The kind's own keys. Filled by the loader; not a key of the file.
    #[serde(default, skip)]
    #[schemars(skip)]
    pub settings: serde_json::Value,
    /// The channels that it selects, by label, with the topics that they subscribe to: for a sink that
    /// describes them to its destination, and empty for all others. Filled by the loader, so that a sink
    /// has changed when what it describes has.
    #[serde(default, skip)]
    #[schemars(skip)]
    pub feeds: BTreeMap<String, Described>,
}

/// What a sink describes of a channel to its destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// The channel's id, where one is configured.
    pub room: Option<String>,
    /// The topics that it subscribes to.
    pub topics: Vec<String>,
    /// The client ids of other sinks that describe it to their destinations.
    pub elsewhere: Vec<String>,
}

impl SinkConfig {
    /// The commands that its destination may give; none where its kind has no such key.
    pub fn commands(&self) -> Commands {
        let commands = self.settings.get("commands").cloned();
        commands.and_then(|commands| serde_json::from_value(commands).ok()).unwrap_or_default()
    }

    /// Whether its destination may give any.
    pub fn takes_commands(&self) -> bool {
        !self.commands().are_off()
    }
}

/// Shows the keys of `settings` without their values: secrets are among them, and addresses with a
/// password inside.
impl fmt::Debug for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<&str> = self
            .settings
            .as_object()
            .map(|settings| settings.keys().map(String::as_str).collect())
            .unwrap_or_default();
        f.debug_struct("SinkConfig")
            .field("kind", &self.kind)
            .field("settings", &settings)
            .finish_non_exhaustive()
    }
}

fn message_word() -> String {
    "message".into()
}

/// 2048 events of Astro's size are about 1.5 MiB: half of them is on its way while the other half is being
/// answered for, and few enough to repeat.
fn default_window() -> usize {
    2048
}

fn default_timeout() -> Period {
    Period(Duration::from_secs(30))
}

fn default_backoff_max() -> Period {
    Period(Duration::from_mins(1))
}

/// Where a sink without a cursor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With what comes from now on.
    #[default]
    End,
    /// With the oldest event that the journal holds.
    Earliest,
    /// With events of this age.
    Age(Duration),
}

/// Fields that Astro's tips carry about the donor: taken out unless `redact` says otherwise.
pub const PERSONAL_FIELDS: &[&str] = &[
    "data.donation.user.email", "data.donation.user.geo", "data.donation.paymentMethod",
    "data.transactionId",
];
