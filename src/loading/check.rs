//! Contradictions: settings of the right shape that cannot work, alone or together.
//!
//! An error is what could never do what it says; a warning is what works, but hardly as meant.
//! Nothing is connected to; the only files that are looked at are those that hold a secret, and only
//! if that is asked for.
//!
//! The one thing to know: each sink is opened here by its own kind, and its route compiled, so that
//! what these check themselves counts as a problem of the configuration. It is the one file of
//! `config` that looks at them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use crate::{
    astro::topics,
    base::{
        clock, files,
        nearest::nearest,
        template::{Condition, Template},
        tls,
    },
    channel::board::RELAY,
    config::{
        Channel, Config, ConfigError, SecretRef, SinkConfig, TokenType, jwt, pasted,
        problem::Problem,
        secret::{SecretError, Text},
        units::{Period, Size},
    },
    delivery::{
        ha_event::is_wanted,
        route::{Pattern, PatternError, Route},
    },
    loading::{
        Sources,
        places::{Layer, Places},
        shape::Shape,
    },
    publish::homeassistant,
    sink::{self, Opening},
};

/// The gateway itself closes a link that has been silent for this long (protocol: heartbeat).
const GATEWAY_GIVES_UP: Duration = Duration::from_secs(70);

/// How long before its end a token is warned of: a week leaves a weekend for getting another.
const EXPIRY_NOTICE_SECS: u64 = 7 * 24 * 3600;

/// Payloads that are words; anything else is a template.
const PAYLOAD_WORDS: [&str; 3] = ["message", "data", "cloudevent"];

/// What is found.
#[derive(Default)]
pub(crate) struct Findings {
    /// What cannot work.
    pub(crate) errors: Vec<Problem>,
    /// What is hardly meant.
    pub(crate) warnings: Vec<Problem>,
    /// How many of these say that a secret's file does not answer.
    pub(crate) silent: usize,
}

/// Looks for contradictions in what is well shaped.
pub(crate) fn check(
    config: &Config,
    shape: &Shape,
    places: &Places<'_>,
    sources: &Sources,
) -> Findings {
    let mut found = Findings::default();
    found.astro(config);
    found.journal(config);
    // A fetch costs the vendor's server something.
    found.not_zero("session", &[("refresh", config.session.refresh)]);
    found.http(config);
    found.log(config);
    for (label, channel) in &config.channels {
        found.channel(label, channel);
    }
    found.repeated(config);
    if shape.problems.is_empty() {
        found.empty(config);
        found.unsubscribed(config);
        found.commanded_twice(config);
    }
    let known: BTreeSet<&str> = named(&shape.value, "channels").collect();
    for (name, sink) in &config.sinks {
        found.sink(name, sink, &known);
        if shape.whole(&["sinks", name]) {
            found.kind(name, sink);
        }
    }
    found.homes(config);
    found.client_ids(config);
    found.same_state(config);
    if sources.resolve_secrets {
        found.certificates(config);
    }
    found.secrets(config, places, sources);
    found
}

/// The names in a table of the file, whether or not what stands under them is well shaped.
fn named<'v>(value: &'v Value, table: &str) -> impl Iterator<Item = &'v str> {
    value.get(table).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key.as_str())
}

/// A broker's URL as host and port, in one spelling.
fn broker(url: &str) -> String {
    let Ok(url) = Url::parse(url) else { return url.to_owned() };
    let port = url.port().unwrap_or(match url.scheme() {
        "mqtts" | "ssl" | "tls" => 8883,
        "ws" => 80,
        "wss" => 443,
        _ => 1883,
    });
    format!("{}:{port}", url.host_str().unwrap_or_default().trim_end_matches('.').to_lowercase())
}

impl Findings {
    fn error(&mut self, key: &[&str], message: impl Into<String>) {
        self.errors.push(Problem::new(key.iter().copied(), message));
    }

    fn warn(&mut self, key: &[&str], message: impl Into<String>) {
        self.warnings.push(Problem::new(key.iter().copied(), message));
    }

    fn not_zero(&mut self, section: &str, periods: &[(&str, Period)]) {
        for (key, period) in periods {
            if period.0.is_zero() {
                self.error(&[section, key], "must be longer than 0s");
            }
        }
    }

    fn astro(&mut self, config: &Config) {
        let astro = &config.astro;
        self.url(&["astro", "url"], &astro.url, ["wss", "ws"]);
        self.url(&["astro", "api_url"], &astro.api_url, ["https", "http"]);
        self.not_zero(
            "astro",
            &[
                ("connect_timeout", astro.connect_timeout),
                ("response_timeout", astro.response_timeout),
                ("ping_after", astro.ping_after),
                ("ping_timeout", astro.ping_timeout),
                ("backoff_max", astro.backoff_max),
                ("retry_refused", astro.retry_refused),
            ],
        );
        for (key, count) in [
            ("max_connections", astro.max_connections),
            ("max_subscriptions_per_connection", astro.max_subscriptions_per_connection),
        ] {
            if count == 0 {
                self.error(&["astro", key], "must be at least 1");
            }
        }
        if astro.max_message_size == Size(0) {
            self.error(&["astro", "max_message_size"], "must be larger than 0");
        }
        let wanted: usize = config.channels.values().map(|channel| channel.topics.len()).sum();
        let room = astro.max_connections.saturating_mul(astro.max_subscriptions_per_connection);
        if room > 0 && wanted > room {
            let message = format!(
                "{wanted} subscriptions are configured, and only {room} fit into max_connections \
                 of max_subscriptions_per_connection each"
            );
            self.error(&["astro", "max_connections"], message);
        }
        if astro.ping_after.0.saturating_add(astro.ping_timeout.0) > GATEWAY_GIVES_UP {
            let message = "with ping_timeout, a dead link is noticed only after the 70s at which the \
                           gateway itself gives up";
            self.warn(&["astro", "ping_after"], message);
        }
    }

    /// An address with one of two schemes, the first of which is encrypted.
    fn url(&mut self, key: &[&str], text: &str, [secure, plain]: [&str; 2]) {
        let expected = format!("an address {secure}://… or {plain}://… was expected");
        let Ok(url) = Url::parse(text) else { return self.error(key, expected) };
        if url.scheme() != secure && url.scheme() != plain || url.host().is_none() {
            return self.error(key, expected);
        }
        if !url.username().is_empty() || url.password().is_some() {
            let message = "a user and a password have no meaning in this address: the token is what \
                           counts";
            return self.error(key, message);
        }
        if url.scheme() == plain && !url.host().is_some_and(|host| local(&host)) {
            self.warn(key, format!("tokens travel unencrypted: use {secure}://"));
        }
    }

    fn journal(&mut self, config: &Config) {
        let journal = &config.journal;
        self.not_zero("journal", &[("max_age", journal.max_age)]);
        for (key, size) in [
            ("max_size", journal.max_size),
            ("max_dead_letters", journal.max_dead_letters),
            ("memory", journal.memory),
        ] {
            if size == Size(0) {
                self.error(&["journal", key], "must be larger than 0");
            }
        }
    }

    fn http(&mut self, config: &Config) {
        let http = &config.http;
        if !http.commands.are_off() && (http.listen.is_empty() || http.admin_token.is_none()) {
            let message = "nobody can give any: http.listen and http.admin_token are needed";
            self.warn(&["http", "commands"], message);
        }
        if http.listen.is_empty() {
            return;
        }
        let key = ["http", "listen"];
        let loopback = match http.listen.parse::<SocketAddr>() {
            Ok(address) => address.ip().is_loopback(),
            Err(_) => match http.listen.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    host == "localhost"
                }
                _ => {
                    let expected = "an address such as \"127.0.0.1:9464\" was expected, or \"\"";
                    return self.error(&key, expected);
                }
            },
        };
        if !loopback && http.admin_token.is_none() && !http.insecure {
            let message = "can be reached from other machines: http.admin_token is needed, or \
                           http.insecure = true";
            self.error(&key, message);
        }
    }

    fn log(&mut self, config: &Config) {
        /// A level alone; in a filter, any other word is the name of a module.
        const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
        let level = config.log.level.as_str();
        let filter = level.contains(['=', ',', '[']) && EnvFilter::try_new(level).is_ok();
        if !filter && !LEVELS.contains(&level) {
            let expected = "one of error, warn, info, debug, trace, off was expected, or a filter such \
                            as \"info,astro_relay::astro=debug\"";
            let problem = Problem::new(["log", "level"], expected);
            self.errors.push(problem.suggest(nearest(level, LEVELS)));
        }
    }

    fn channel(&mut self, label: &str, channel: &Channel) {
        if let Some(room) = &channel.room {
            let key = ["channels", label, "room"];
            if room.is_empty() {
                self.error(&key, "is empty: leave it out for the channel of the token");
            } else if room.len() != 24 || !room.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                self.warn(&key, "is not a channel's id, which has 24 hexadecimal digits");
            }
        }
        let key = ["channels", label, "topics"];
        if channel.topics.is_empty() {
            self.error(&key, "is empty: nothing would be subscribed");
        }
        for (index, topic) in channel.topics.iter().enumerate() {
            let element = format!("[{index}]");
            let key = ["channels", label, "topics", &element];
            if topic.is_empty() || topic.chars().any(char::is_whitespace) {
                self.error(&key, "a topic such as \"channel.tips\" was expected");
            } else if topic.contains(['*', '#', '>', '+']) {
                self.error(&key, "a subscription has no wildcards: list the topics");
            } else if topic.starts_with("relay.") {
                self.error(
                    &key,
                    "the relay's own events come by themselves, without a subscription",
                );
            } else if channel.topics.iter().take(index).any(|earlier| earlier == topic) {
                self.error(&key, "stands twice in this list");
            } else if topics::is_unpublished(topic) {
                let text = "can be subscribed, but Astro publishes nothing on it yet";
                self.warnings.push(Problem::new(key, text));
            } else if let Some(meant) = topics::meant_by(topic) {
                let problem = Problem::new(key, "is not in the catalogue of topics");
                self.warnings.push(problem.suggest(Some(meant)));
            }
        }
    }

    /// The same subscription under two labels: each message would belong to one of the two only, with
    /// whatever token it was asked for.
    fn repeated(&mut self, config: &Config) {
        let mut seen: BTreeMap<(&str, Option<&str>, String), &str> = BTreeMap::new();
        for (label, channel) in &config.channels {
            for (index, topic) in channel.topics.iter().enumerate() {
                // Without a room it is the token's. Never the secret itself: it only serves to be
                // compared.
                let token = match &channel.room {
                    Some(_) => String::new(),
                    None => serde_json::to_string(&channel.token).unwrap_or_default(),
                };
                let subscription = (topic.as_str(), channel.room.as_deref(), token);
                match seen.get(&subscription) {
                    Some(first) if first == label => {}
                    Some(first) => {
                        let element = format!("[{index}]");
                        let message = format!(
                            "the same subscription (topic and room) stands in channels.{first}: a \
                             message belongs to one channel"
                        );
                        self.error(&["channels", label, "topics", &element], message);
                    }
                    None => drop(seen.insert(subscription, label)),
                }
            }
        }
    }

    fn empty(&mut self, config: &Config) {
        if config.channels.is_empty() {
            self.warn(&["channels"], "there is none: nothing will be subscribed");
        }
        if config.sinks.is_empty() {
            self.warn(&["sinks"], "there is none: events will go nowhere");
        }
    }

    /// A topic that a sink waits for in vain. Patterns are left alone: a wildcard is often meant for
    /// what will be subscribed one day.
    fn unsubscribed(&mut self, config: &Config) {
        let subscribed = || config.channels.values().flat_map(|channel| &channel.topics);
        for (name, sink) in &config.sinks {
            for (index, topic) in sink.topics.iter().flatten().enumerate() {
                // What the gateway and the relay send of themselves needs no subscription.
                let unasked = topic == "astro" || topic.starts_with("relay.");
                if !unasked && !topic.contains('*') && !subscribed().any(|other| other == topic) {
                    let key = ["sinks", name, "topics", &format!("[{index}]")];
                    let problem = Problem::new(key, "no channel subscribes to this topic");
                    let meant = nearest(topic, subscribed().map(String::as_str));
                    self.warnings.push(problem.suggest(meant));
                }
            }
        }
    }

    /// Two sinks that take commands from one broker: both would hear each of them. NATS gives a request
    /// to one of them only.
    fn commanded_twice(&mut self, config: &Config) {
        let listening: Vec<_> = config
            .sinks
            .iter()
            .filter(|(_, sink)| sink.kind == "mqtt" && sink.takes_commands())
            .collect();
        for (index, (name, sink)) in listening.iter().enumerate() {
            let shares = |other: &SinkConfig| {
                let shared = match (&sink.channels, &other.channels) {
                    (Some(ours), Some(theirs)) => ours.iter().any(|one| theirs.contains(one)),
                    _ => true,
                };
                shared && sink.settings.get("url") == other.settings.get("url")
            };
            let mut before = listening.iter().take(index);
            if let Some((first, _)) = before.find(|(_, other)| shares(other)) {
                let message = format!(
                    "sinks.{first} takes commands from the same broker: each would be executed twice"
                );
                self.warn(&["sinks", name, "commands"], message);
            }
        }
    }

    fn sink(&mut self, name: &str, sink: &SinkConfig, known: &BTreeSet<&str>) {
        let at = |key| ["sinks", name, key];
        if sink.window == 0 {
            self.error(&at("window"), "must be at least 1");
        }
        for (key, period) in [
            ("timeout", Some(sink.timeout)),
            ("backoff_max", Some(sink.backoff_max)),
            ("max_age", sink.max_age),
        ] {
            if period.is_some_and(|period| period.0.is_zero()) {
                self.error(&at(key), "must be longer than 0s");
            }
        }
        for (index, channel) in sink.channels.iter().flatten().enumerate() {
            if !known.contains(channel.as_str()) {
                let element = format!("[{index}]");
                let message = "there is no such channel";
                let problem = Problem::new(["sinks", name, "channels", &element], message);
                self.errors.push(problem.suggest(nearest(channel, known.iter().copied())));
            }
        }
        for (key, list) in [("topics", &sink.topics), ("channels", &sink.channels)] {
            if list.as_ref().is_some_and(Vec::is_empty) {
                self.error(&at(key), "is empty: this sink would get nothing; leave it out for all");
            }
        }
        for (index, text) in sink.topics.iter().flatten().enumerate() {
            if let Err(message) = pattern(text) {
                self.error(&["sinks", name, "topics", &format!("[{index}]")], message);
            }
        }
        for (index, path) in sink.redact.iter().flatten().enumerate() {
            if path.split('.').any(str::is_empty) {
                let element = format!("[{index}]");
                let message = "a path such as \"data.donation.user.email\" was expected";
                self.error(&["sinks", name, "redact", &element], message);
            }
        }
        if let Some(Err(message)) = sink.when.as_deref().map(Condition::compile) {
            self.error(&at("when"), format!("is no condition: {message}"));
        }
        self.payload(name, &sink.payload);
        self.address(name, sink);
        if sink.state && sink::kind(&sink.kind).is_some_and(|kind| !kind.keeps) {
            let able: Vec<_> = sink::KINDS.iter().filter(|kind| kind.keeps).collect();
            let able: Vec<_> = able.into_iter().map(|kind| kind.name).collect();
            let message = format!(
                "{} has nothing that keeps a state for those who come later; these have: {}",
                sink.kind,
                able.join(", ")
            );
            self.error(&at("state"), message);
        }
        if sink.state && known.contains(RELAY) {
            let message = "a sink with state = true keeps the relay's own state where a channel of \
                           this name would have its: give the channel another label";
            self.error(&["channels", RELAY], message);
        }
    }

    /// Two sinks that keep the state in the same place: what one takes back at its end, the other
    /// still means.
    fn same_state(&mut self, config: &Config) {
        const PLACES: [&str; 5] = ["url", "urls", "state_topic", "state_key", "state_bucket"];
        let place = |sink: &SinkConfig| {
            let settings = PLACES.map(|key| sink.settings.get(key).cloned());
            (sink.kind.clone(), settings)
        };
        let kept: Vec<_> = config.sinks.iter().filter(|(_, sink)| sink.state).collect();
        for (index, (name, sink)) in kept.iter().enumerate() {
            let mut earlier = kept.iter().take(index);
            if let Some((first, _)) = earlier.find(|(_, other)| place(other) == place(sink)) {
                let message = format!(
                    "sinks.{first} keeps the state in the same place: the end of one would say \
                     offline for both"
                );
                self.warn(&["sinks", name, "state"], message);
            }
        }
    }

    /// Certificates and keys that cannot be used as they are now. A sink waits for its own; the gateway
    /// is what everything is for.
    fn certificates(&mut self, config: &Config) {
        let path = |sink: &SinkConfig, key: &str| {
            sink.settings.get(key).and_then(Value::as_str).map(PathBuf::from)
        };
        let mut wanted: Vec<(Option<&str>, [Option<PathBuf>; 3])> = Vec::new();
        wanted.push((None, [config.astro.ca_file.clone(), None, None]));
        for (name, sink) in &config.sinks {
            let keys = ["ca_file", "client_cert_file", "client_key_file"];
            wanted.push((Some(name), keys.map(|key| path(sink, key))));
        }
        wanted.retain(|(_, files)| files.iter().any(Option::is_some));
        if wanted.is_empty() {
            return;
        }
        let reads = wanted.iter().map(|(_, [ca, cert, key])| {
            tls::client_config(ca.as_deref(), cert.as_deref(), key.as_deref())
        });
        // Without a thread to read with, connecting tells.
        let Ok(outcomes) = files::blocking(join_all(reads)) else { return };
        for ((sink, files), outcome) in wanted.iter().zip(outcomes) {
            let Err(error) = outcome else { continue };
            let [ca, ..] = files;
            let key = if ca.is_some() { "ca_file" } else { "client_cert_file" };
            match sink {
                None if !error.is_silent() => self.error(&["astro", key], error.to_string()),
                None => self.warn(&["astro", key], error.to_string()),
                Some(name) => self.warn(&["sinks", name, key], error.to_string()),
            }
        }
    }

    fn payload(&mut self, name: &str, payload: &str) {
        let key = ["sinks", name, "payload"];
        if PAYLOAD_WORDS.contains(&payload) {
            return;
        }
        if !payload.contains("{{") && !payload.contains("{%") {
            // A constant payload can be meant ("ON"), a word that is nearly one of ours hardly.
            if let Some(word) = nearest(payload, PAYLOAD_WORDS) {
                let message = "message, data, cloudevent or a Jinja template was expected";
                self.errors.push(Problem::new(key, message).suggest(Some(word)));
            }
        }
        match Template::compile(payload).map(|template| template.makes_no_json()) {
            Err(message) => self.error(&key, format!("is no template: {message}")),
            Ok(Some(why)) => {
                let message = format!(
                    "begins like JSON, and makes none of an event without the fields it uses, so \
                     probably of no event: {why}"
                );
                self.warn(&key, message);
            }
            Ok(None) => {}
        }
    }

    /// What anybody may type in an address is told: it is escaped, and hardly ever meant.
    fn address(&mut self, name: &str, sink: &SinkConfig) {
        let Some(address) = sink::kind(&sink.kind).and_then(|kind| kind.address) else { return };
        let key = (address.key)(&sink.settings);
        let text = sink.settings.get(key).and_then(Value::as_str).unwrap_or_default();
        // One that cannot be compiled is told where the sink is made.
        if Template::compile(text).is_ok_and(|template| template.uses_data()) {
            let message = "data in an address: what viewers type decides where an event goes. Each \
                           value is escaped as one word; use the filter levels where it is to be \
                           several";
            self.warn(&["sinks", name, key], message.to_owned());
        }
    }

    /// Two sinks with one client id at one broker: each connection would end the other.
    fn client_ids(&mut self, config: &Config) {
        let mut seen: BTreeMap<(String, String), &str> = BTreeMap::new();
        for (name, sink) in config.sinks.iter().filter(|(_, sink)| sink.kind == "mqtt") {
            let text = |key: &str| sink.settings.get(key).and_then(Value::as_str);
            let id = homeassistant::client_id(name, &sink.settings);
            let broker = broker(text("url").unwrap_or_default());
            if let Some(first) = seen.insert((broker, id.clone()), name) {
                let message = format!(
                    "sinks.{first} has the same client_id at the same broker, {id}: each would end the \
                     other's connection, over and over"
                );
                self.error(&["sinks", name, "client_id"], message);
            }
        }
    }

    /// Two sinks that announce the same entities to one broker.
    fn homes(&mut self, config: &Config) {
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for (name, sink) in &config.sinks {
            if is_wanted(sink) != Some(true) {
                continue;
            }
            let text = |key: &str| sink.settings.get(key).map(Value::to_string).unwrap_or_default();
            // Wherever the state is kept: the ids of the entities are the same.
            let home = ["url", "discovery_prefix"].map(text).join(" ");
            if let Some(first) = seen.insert(home, name) {
                let message =
                    format!("sinks.{first} announces the same entities to the same broker");
                self.error(&["sinks", name, "homeassistant"], message);
            }
        }
    }

    /// What the sink's own kind says of its settings, and whether its address can be one.
    fn kind(&mut self, name: &str, sink: &SinkConfig) {
        let Some(kind) = sink::kind(&sink.kind) else { return };
        let purpose = sink::Purpose::Relay;
        let opening = Opening { name, settings: sink.settings.clone(), config: sink, purpose };
        if let Err(ConfigError { problems }) = (kind.open)(opening) {
            let told = problems.into_iter().map(|told| without_values(told, &sink.settings));
            self.errors.extend(told);
            return;
        }
        // What the checks above have told already, the route would only tell again.
        let silent =
            !self.errors.iter().any(|told| told.key.starts_with(&["sinks".into(), name.into()]));
        if let Some(Err(ConfigError { problems })) = silent.then(|| Route::new(name, sink, kind)) {
            self.errors.extend(problems);
            return;
        }
        let Some(address) = &kind.address else { return };
        let key = (address.key)(&sink.settings);
        let Some(Value::String(template)) = sink.settings.get(key) else { return };
        let fixed = fixed(template);
        if (address.escape)(&fixed) != fixed {
            let message =
                format!("{} has no such address: a wildcard, or an empty part", kind.name);
            self.error(&["sinks", name, key], message);
        }
    }

    fn secrets(&mut self, config: &Config, places: &Places<'_>, sources: &Sources) {
        let mut secrets: Vec<(Kept<'_>, SecretRef)> = Vec::new();
        for (label, channel) in &config.channels {
            let key = vec!["channels", label, "token"];
            let kept = Kept { key, token: Some(channel.token_type), exact: false };
            secrets.push((kept, channel.token.clone()));
        }
        if let Some(proxy) = &config.astro.proxy {
            let kept = Kept { key: vec!["astro", "proxy"], token: None, exact: false };
            secrets.push((kept, proxy.clone()));
        }
        if let Some(token) = &config.http.admin_token {
            let kept = Kept { key: vec!["http", "admin_token"], token: None, exact: false };
            secrets.push((kept, token.clone()));
        }
        for (name, sink) in &config.sinks {
            for key in sink::kind(&sink.kind).map(|kind| kind.secrets).unwrap_or_default() {
                let found = sink.settings.get(key).cloned();
                if let Some(Ok(secret)) = found.map(serde_json::from_value) {
                    let exact = key.ends_with("password");
                    let kept = Kept { key: vec!["sinks", name, key], token: None, exact };
                    secrets.push((kept, secret));
                }
            }
        }
        let texts = if sources.resolve_secrets { read(&secrets, sources) } else { Vec::new() };
        for (of, secret) in &secrets {
            self.exposed(&of.key, secret, places);
        }
        for ((of, _), text) in secrets.iter().zip(texts) {
            match text {
                Ok(text) => self.readable(of, &text),
                // It may be there soon, and nothing else is to wait for it.
                Err(error) if error.is_silent() => {
                    self.silent += 1;
                    self.warn(&of.key, error.to_string());
                }
                Err(error) => self.error(&of.key, error.to_string()),
            }
        }
    }

    /// A secret that others on this machine can read.
    fn exposed(&mut self, key: &[&str], secret: &SecretRef, places: &Places<'_>) {
        if !matches!(secret, SecretRef::Value(_)) {
            return;
        }
        let path: Vec<String> = key.iter().map(|&part| part.to_owned()).collect();
        match places.layer(&path) {
            Layer::File if places.file.as_ref().is_some_and(|file| open_to_others(file.path)) => {
                // An address can be a secret, and mostly is none.
                let harmless = match key.last() {
                    Some(&"url") => true,
                    Some(&"proxy") => {
                        matches!(secret, SecretRef::Value(text) if !text.contains('@'))
                    }
                    _ => false,
                };
                if let Some(last) = key.last().filter(|_| !harmless) {
                    let message =
                        format!("a secret in a file that every user can read: use {last}_file");
                    self.warn(key, message);
                }
            }
            Layer::CommandLine => {
                self.warn(key, "a secret on the command line can be seen by every user");
            }
            Layer::File | Layer::Environment => {}
        }
    }

    /// A secret that was read: whether it can be one, and will last.
    fn readable(&mut self, of: &Kept<'_>, text: &Text) {
        if text.open_to_others {
            self.warn(&of.key, "the secret's file can be read by every user: chmod 600");
        }
        let Some(kind) = of.token else {
            if of.exact && pasted::has_blank_edge(text.secret.expose()) {
                self.warn(&of.key, "begins or ends with a blank, which is sent as a part of it");
            }
            return;
        };
        let token = pasted::token(text.secret.expose());
        if token.is_empty() {
            return self.error(&of.key, "the secret is empty");
        }
        if let Some(doubt) = pasted::doubt(&token, kind) {
            return self.warn(&of.key, format!("this token {doubt}"));
        }
        let expiry = if kind == TokenType::Jwt { jwt::expiry(&token) } else { None };
        let Some(expiry) = expiry else { return };
        let now = clock::now() / 1000;
        if expiry < now.saturating_add(EXPIRY_NOTICE_SECS) {
            let when = clock::rfc3339(expiry.saturating_mul(1000));
            let word = if expiry < now { "expired" } else { "expires" };
            self.warn(&of.key, format!("by its own account this token {word} at {when}"));
        }
    }
}

/// A secret of the configuration.
struct Kept<'c> {
    key: Vec<&'c str>,
    /// Of which kind it is, where it is the token of a channel.
    token: Option<TokenType>,
    /// Sent as it stands, with blanks around it.
    exact: bool,
}

/// Reads all secrets at once: those that do not answer are waited for together.
fn read(secrets: &[(Kept<'_>, SecretRef)], sources: &Sources) -> Vec<Result<Text, SecretError>> {
    let env = |name: &str| sources.env.get(name).cloned();
    let texts = secrets.iter().map(|(_, secret)| secret.text(env, files::PATIENCE));
    files::blocking(join_all(texts)).unwrap_or_else(|error| {
        let why = || SecretError::File { place: "files".into(), why: error.kind().into() };
        secrets.iter().map(|_| Err(why())).collect()
    })
}

/// What is wrong with a pattern of topics.
fn pattern(text: &str) -> Result<(), &'static str> {
    match Pattern::parse(text) {
        Ok(_) if text.chars().any(char::is_whitespace) => Err("a topic has no spaces"),
        Ok(_) => Ok(()),
        Err(PatternError::Empty(_)) => Err("a topic such as \"channel.tips\" was expected"),
        Err(PatternError::Inside(_)) => Err("** stands for the rest, so nothing can follow it"),
        Err(PatternError::Part(_)) => Err("* stands for a whole word, and ** for the rest"),
    }
}

/// An address template with a plain word in the place of each expression: what is fixed in it.
fn fixed(template: &str) -> String {
    let mut fixed = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let (before, tag) = rest.split_at(start);
        let end = if tag.starts_with("{{") { "}}" } else { "%}" };
        fixed.push_str(before);
        fixed.push('x');
        rest = tag.find(end).and_then(|at| tag.get(at + end.len()..)).unwrap_or_default();
    }
    fixed.push_str(rest);
    fixed
}

/// A kind's problem without the text of its settings: an address may hold a password.
fn without_values(mut problem: Problem, settings: &Value) -> Problem {
    /// Shorter texts are words of the language as often as not.
    const SHORTEST: usize = 4;
    let mut texts = Vec::new();
    collect_texts(settings, &mut texts);
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    for text in texts.into_iter().filter(|text| text.len() >= SHORTEST) {
        problem.message = problem.message.replace(text, "…");
    }
    problem
}

fn collect_texts<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(list) => list.iter().for_each(|value| collect_texts(value, texts)),
        Value::Object(table) => table.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

fn local(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
        Host::Domain(name) => *name == "localhost",
    }
}

/// Whether users other than the owner and the group may read a file.
fn open_to_others(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        /// The bit of a file's mode that lets everybody read it.
        const OTHERS_READ: u32 = 0o004;
        std::fs::metadata(path).is_ok_and(|file| file.mode() & OTHERS_READ != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}
