//! Events to Redis: published to a channel, or appended to a stream.
//!
//! Publishing is at most once by its nature: whoever does not listen at that moment never hears it,
//! and the server's answer only says how many did. A stream keeps events until it is trimmed, and a
//! repeat is recognised by its entry id (see [`stream`]). Reconnecting, retrying and waiting are the
//! delivery loop's; the connection here is made once and dropped when it fails.
//!
//! The one thing to know: an acknowledged entry survives a crash of the server only if the server
//! writes an append-only file; [`Sink::remarks`] tells when it does not.

mod answer;
mod kept;
mod link;
mod stream;

use std::{borrow::Cow, path::PathBuf, time::Duration};

use async_trait::async_trait;
use redis::{Cmd, Pipeline, Value};
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

use self::{answer::About, link::Link, stream::Run};
use super::{
    Address, Cause, Failure, Kind, Opening, Outgoing, Part, Permission, Purpose, Sink, address,
    ahead::OutOfOrderAcks,
    batched::{BatchSink, Batched},
    prefix::Prefix,
    pulse::Pulse,
    settings,
};
use crate::{
    channel::board::{Path, Section},
    config::{ConfigError, SecretRef},
};

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "redis",
    summary: "Redis: published to a channel, or appended to a stream",
    address: Some(Address {
        key: |settings| if is_stream(settings) { "key" } else { "channel" },
        separator: ':',
        default: |settings| {
            if is_stream(settings) { "astro:events" } else { "astro:{{ channel }}:{{ topic }}" }
        },
        // Redis takes any bytes.
        escape: |address| Cow::Borrowed(address),
    }),
    usual_url: Some("redis://127.0.0.1:6379"),
    demo: Some(super::Demo { settings: "{}", watch: "redis-cli psubscribe 'astro:*'" }),
    session: true,
    secrets: &["password", "sentinel_password"],
    schema: || schema_for!(Settings),
    keeps: true,
    open,
    validate: Some(|sinks| super::together::same_state(sinks, &["url", "urls", "state_key"])),
    probe: None,
};

/// How often an idle connection is asked for a sign of life: more often than firewalls forget a
/// connection (a minute, at the strictest) and servers close one (`timeout`, seldom under a minute).
const PING_EVERY: Duration = Duration::from_secs(20);

/// Settings of a `redis` sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The server: `redis://host:6379/0`, `rediss://…` with TLS, `redis+unix:///path`; several with
    /// commas between, as in `urls`.
    #[serde(default)]
    url: Option<String>,
    /// Several: the sentinels, or some servers of a cluster.
    #[serde(default)]
    urls: Vec<String>,
    /// The name under which the sentinels at `urls` know the master.
    #[serde(default)]
    sentinel_master: Option<String>,
    /// Whether the servers are a cluster.
    #[serde(default)]
    cluster: bool,
    /// Publish to a channel, or append to a stream.
    #[serde(default)]
    mode: Mode,
    /// The channel to publish to: a template. Default: `astro:{{ channel }}:{{ topic }}`.
    #[serde(default)]
    channel: Option<String>,
    /// The key of the stream: a template. Default: `astro:events`.
    #[serde(default)]
    key: Option<String>,
    /// About how many entries a stream keeps; 0 keeps all.
    #[serde(default = "default_max_len")]
    max_len: u64,
    /// The user, where the server has users.
    #[serde(default)]
    user: Option<String>,
    /// The password.
    #[serde(default)]
    password: Option<SecretRef>,
    /// The user at the sentinels.
    #[serde(default)]
    sentinel_user: Option<String>,
    /// The password at the sentinels.
    #[serde(default)]
    sentinel_password: Option<SecretRef>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default)]
    ca_file: Option<PathBuf>,
    /// A PEM file with the client's certificate.
    #[serde(default)]
    client_cert_file: Option<PathBuf>,
    /// A PEM file with the client's key.
    #[serde(default)]
    client_key_file: Option<PathBuf>,
    /// What the keys of the state begin with, a template over `channel`, which is `relay` for the
    /// relay's own. Default: `astro:{{ channel }}`.
    #[serde(default)]
    state_key: Option<String>,
}

/// What is done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// `PUBLISH`: heard by those who listen.
    #[default]
    Pubsub,
    /// `XADD`: kept in a stream.
    Stream,
}

/// About a month of a busy channel, and some 100 MB.
fn default_max_len() -> u64 {
    100_000
}

/// The longest string that Redis takes anywhere, unless it is configured to take more.
const MAX_STRING: usize = 512 * 1024 * 1024;

fn is_stream(settings: &serde_json::Value) -> bool {
    settings.get("mode").and_then(serde_json::Value::as_str) == Some("stream")
}

impl Settings {
    /// All servers that are configured.
    fn nodes(&self) -> impl Iterator<Item = &str> {
        self.url.iter().chain(&self.urls).flat_map(|url| address::each_url(url))
    }

    fn prefix(&self) -> Result<Prefix, String> {
        Prefix::new(self.state_key.as_deref().unwrap_or("astro:{{ channel }}"), &[])
    }

    /// What an answer to an event is about.
    fn about(&self) -> impl for<'o> Fn(Option<&'o Outgoing>) -> About<'o> + use<> {
        let address = match self.mode {
            Mode::Pubsub => self.channel.as_deref(),
            Mode::Stream => self.key.as_deref(),
        };
        let varies = match address {
            Some(template) => template.contains("{{") || template.contains("{%"),
            None => self.mode == Mode::Pubsub,
        };
        move |outgoing| match outgoing {
            None => About::Server,
            Some(outgoing) if varies => About::OneAddress(&outgoing.address),
            Some(outgoing) => About::OnlyAddress(&outgoing.address),
        }
    }

    /// The first thing that is wrong: the key, and what.
    fn wrong(&self) -> Option<(&'static str, String)> {
        let several = self.cluster || self.sentinel_master.is_some();
        for url in self.nodes() {
            if let Err(what) = check_url(url) {
                return Some(("url", what));
            }
        }
        if let Err(what) = self.prefix() {
            return Some(("state_key", what));
        }
        let (key, what) = match self {
            _ if self.nodes().next().is_none() => ("url", "the server's address is missing"),
            _ if !several && self.nodes().count() > 1 => {
                ("urls", "several servers need `cluster = true` or `sentinel_master`")
            }
            _ if self.cluster && self.sentinel_master.is_some() => {
                ("sentinel_master", "a cluster has no sentinels: choose one of the two")
            }
            _ if self.mode == Mode::Stream && self.channel.is_some() => {
                ("channel", "a stream has a `key`; `channel` belongs to mode = \"pubsub\"")
            }
            _ if self.mode == Mode::Pubsub && self.key.is_some() => {
                ("key", "`key` belongs to mode = \"stream\"; publishing has a `channel`")
            }
            _ if self.user.is_some() && self.password.is_none() => {
                ("user", "a user needs a `password` (or `password_file`, …)")
            }
            _ if self.client_cert_file.is_some() != self.client_key_file.is_some() => {
                ("client_cert_file", "`client_cert_file` and `client_key_file` belong together")
            }
            _ => return None,
        };
        Some((key, what.to_owned()))
    }
}

/// Whether the library will understand it. It must not carry a password: a URL is printed in logs.
fn check_url(text: &str) -> Result<(), String> {
    let url = redis::parse_redis_url(text)
        .ok_or("an address such as \"redis://127.0.0.1:6379/0\" was expected")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("put user and password under `user` and `password_file`, not in the URL".into());
    }
    if url.fragment().is_some() {
        return Err("certificates are always checked: use `ca_file` for one of your own".into());
    }
    redis::IntoConnectionInfo::into_connection_info(text)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of the row")]
fn open(opening: Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings: Settings = settings(&opening)?;
    if let Some((key, what)) = settings.wrong() {
        return Err(ConfigError::at(&["sinks", opening.name, key], what));
    }
    let at = |what| ConfigError::at(&["sinks", opening.name, "state_key"], what);
    if settings.state_key.is_some() && !opening.config.state {
        return Err(at("is of use only with state = true".into()));
    }
    let kept = opening.config.state && opening.purpose == Purpose::Relay;
    let prefix = kept.then(|| settings.prefix().map_err(at)).transpose()?;
    Ok(Batched::boxed(Redis {
        prefix,
        pulse: Pulse::new(kept::expires),
        settings,
        timeout: opening.config.timeout.0,
        window: opening.config.window,
        link: None,
        server: 0,
        run: Run::default(),
        lives: false,
        ahead: OutOfOrderAcks::default(),
        perhaps_repeats: 0,
        receivers: 0,
        unheard: 0,
        duplicates: 0,
        remarks: Vec::new(),
    }))
}

struct Redis {
    /// Where the state goes; `None`: it goes nowhere.
    prefix: Option<Prefix>,
    pulse: Pulse,
    settings: Settings,
    timeout: Duration,
    window: usize,
    link: Option<Link>,
    /// The server that answered last, of those that are configured.
    server: usize,
    /// What one script may append.
    run: Run,
    /// Whether the relay's own status was written on this connection: it is there until it expires.
    lives: bool,
    /// Published, but behind an event that was refused.
    ahead: OutOfOrderAcks,
    /// So many events from here on may stand in the stream already: what was in flight when the last
    /// connection, or the last process, ended.
    perhaps_repeats: usize,
    receivers: u64,
    unheard: u64,
    duplicates: u64,
    remarks: Vec<String>,
}

#[async_trait]
impl BatchSink for Redis {
    async fn connect(&mut self) -> Result<(), Failure> {
        self.link = None;
        self.pulse.clear();
        let opened = Link::open(&self.settings, self.timeout, self.server).await;
        let (server, mut link) = match opened {
            Ok(opened) => opened,
            Err(cause) => {
                self.server += 1;
                return Err(Failure::after(0, cause));
            }
        };
        self.server = server;
        self.remarks = match self.settings.mode {
            Mode::Stream => durability(&mut link).await,
            Mode::Pubsub => {
                vec!["published: who does not listen at that moment never hears an event".into()]
            }
        };
        self.perhaps_repeats = self.window;
        self.run = if self.settings.cluster { Run::OneStream } else { Run::default() };
        self.lives = false;
        self.link = Some(link);
        Ok(())
    }

    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        match self.settings.mode {
            Mode::Pubsub => self.publish(batch).await,
            Mode::Stream => self.append(batch).await,
        }
    }

    async fn keep(&mut self, parts: &[Part]) -> Result<(), Failure> {
        let Some(link) = &mut self.link else { return Err(not_connected()) };
        let prefix = self.prefix.as_ref().ok_or_else(|| Failure::down("no state is kept here"))?;
        let mut commands = Vec::new();
        let said = self.pulse.beat(parts);
        for (place, part) in said.iter().enumerate() {
            let of_part = kept::commands(prefix, part).map_err(Failure::down)?;
            commands.extend(of_part.into_iter().map(|command| (place, command)));
        }
        let answers = link.ask_all(commands.iter().map(|(_, command)| command)).await;
        let answers = answers.map_err(|cause| Failure::after(0, cause))?;
        let status = said.iter().position(|part| part.path == Path::relay(Section::Status));
        let mut last = None;
        for ((place, _), answer) in commands.iter().zip(answers) {
            let is_write = last.replace(*place) != Some(*place);
            let failed = |cause| Failure::after((*place).min(parts.len()), cause);
            match answer {
                // A field that is new although it was written is one of a server that has lost its data.
                Ok(Value::Int(1)) if is_write && self.lives && status == Some(*place) => {
                    return Err(Failure::down("the server has lost the state: it is written anew"));
                }
                Ok(_) => self.lives |= status == Some(*place),
                // State that may not be written is no reason to hold back events.
                Err(Cause::Denied { reason }) => return Err(failed(Cause::Rejected { reason })),
                Err(cause) => return Err(failed(cause)),
            }
        }
        Ok(())
    }

    async fn idle(&mut self) -> Failure {
        let Some(link) = &mut self.link else { return not_connected() };
        loop {
            tokio::time::sleep(PING_EVERY).await;
            match link.ping().await {
                // Busy, it lives.
                Ok(()) | Err(Cause::Busy { .. }) => {}
                Err(cause) => return Failure::after(0, cause),
            }
        }
    }

    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        let Some(link) = &mut self.link else { return Err(not_connected()) };
        let commands = match self.settings.mode {
            Mode::Pubsub => vec![words(&["PUBLISH", address, ""])],
            Mode::Stream => vec![
                words(&["EVAL", "return 0", "1", address]),
                words(&["XADD", address, "*", "id", ""]),
                words(&["XRANGE", address, "-", "-"]),
            ],
        };
        rehearse(link, &commands).await.map_err(|cause| Failure::after(0, cause))
    }

    async fn close(&mut self) {
        self.link = None;
        self.ahead.clear();
    }

    fn tally(&mut self) -> Vec<(&'static str, u64)> {
        [
            ("receivers", &mut self.receivers),
            ("unheard", &mut self.unheard),
            ("duplicates", &mut self.duplicates),
        ]
        .into_iter()
        .map(|(name, count)| (name, std::mem::take(count)))
        .filter(|(_, count)| *count > 0)
        .collect()
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }
}

impl Redis {
    /// Publishes all at once. An event that fails does not stop those behind it: they have been heard
    /// and cannot be taken back, so they are remembered and not published again.
    async fn publish(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let Some(link) = &mut self.link else { return Err(not_connected()) };
        let about = self.settings.about();
        self.ahead.begin(batch);
        // What is too long is never sent: the server would end the connection.
        let end = batch.iter().position(|outgoing| too_long(outgoing).is_some());
        let (whole, batch) = (batch, batch.get(..end.unwrap_or(batch.len())).unwrap_or_default());
        let pending: Vec<(usize, &Outgoing)> =
            batch.iter().enumerate().filter(|(_, outgoing)| !self.ahead.has(outgoing)).collect();
        let oversized = || match whole.get(batch.len()).and_then(too_long) {
            Some(reason) => Err(Failure::after(batch.len(), Cause::Rejected { reason })),
            None => Ok(()),
        };
        if pending.is_empty() {
            self.ahead.reported(batch);
            return oversized();
        }
        let mut pipeline = Pipeline::with_capacity(pending.len());
        for (_, outgoing) in &pending {
            let address = &*outgoing.address;
            let bytes = "PUBLISH".len() + address.len() + outgoing.payload.len();
            let mut command = Cmd::with_capacity(3, bytes);
            command.arg("PUBLISH").arg(address).arg(&*outgoing.payload);
            pipeline.add_command(command);
        }
        let answers =
            link.connection().req_packed_commands(&pipeline, 0, pipeline.len()).await.map_err(
                |error| {
                    let first = pending.first().map(|(_, outgoing)| *outgoing);
                    Failure::after(0, answer::cause(&error, about(first)))
                },
            )?;
        let mut failure = None;
        for ((index, outgoing), answer) in pending.into_iter().zip(answers) {
            match answer.extract_error() {
                Ok(Value::Int(receivers @ 1..)) => self.receivers += receivers.unsigned_abs(),
                Ok(_) => self.unheard += 1,
                Err(error) => {
                    failure.get_or_insert_with(|| {
                        Failure::after(index, answer::cause(&error, about(Some(outgoing))))
                    });
                    continue;
                }
            }
            if failure.is_some() {
                self.ahead.accepted(outgoing);
            }
        }
        let accepted = failure.as_ref().map_or(batch.len(), |failure| failure.accepted);
        self.ahead.reported(batch.get(..accepted).unwrap_or_default());
        failure.map_or_else(oversized, Err)
    }

    /// Appends run after run; the first failure ends it, so that nothing later is stored before.
    async fn append(&mut self, batch: &[Outgoing]) -> Result<(), Failure> {
        let Some(link) = &mut self.link else { return Err(not_connected()) };
        let about = self.settings.about();
        let mut done = 0;
        while let Some(rest) = batch.get(done..).filter(|rest| !rest.is_empty()) {
            if let Some(reason) = rest.first().and_then(too_long) {
                return Err(Failure::after(done, Cause::Rejected { reason }));
            }
            let end = rest.iter().position(|outgoing| too_long(outgoing).is_some());
            let rest = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            let run = stream::run(rest, self.run);
            let search = if self.perhaps_repeats > 0 { stream::search(self.window) } else { 0 };
            let appended = stream::append(link, run, self.settings.max_len, search, &about).await;
            done += appended.accepted;
            self.duplicates += appended.duplicates;
            self.perhaps_repeats = self.perhaps_repeats.saturating_sub(appended.accepted);
            match appended.cause {
                // The script as a whole was refused: which event it is about, smaller ones tell.
                Some(Cause::Rejected { reason }) if appended.accepted == 0 && run.len() > 1 => {
                    let smaller = match self.run {
                        Run::Any if !answer::is_size(&reason) => Run::OneStream,
                        _ => Run::OneEvent,
                    };
                    self.run = smaller;
                }
                Some(cause) => return Err(Failure::after(done, cause)),
                None if appended.accepted < run.len() => {
                    let cause = Cause::Down("the script ended early".into());
                    return Err(Failure::after(done, cause));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Why the server would never take an event of this size.
fn too_long(outgoing: &Outgoing) -> Option<String> {
    let longest = outgoing.payload.len().max(outgoing.address.len());
    (longest > MAX_STRING).then(|| format!("a text of {longest} bytes is longer than Redis takes"))
}

fn not_connected() -> Failure {
    Failure::down("there is no connection")
}

fn words(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

/// Asks whether the user may run these commands, and runs none: in a transaction the server checks the
/// user's rights when a command is queued, and what is queued is then discarded. Unlike `ACL DRYRUN`
/// that needs no administrator's rights.
async fn rehearse(link: &mut Link, commands: &[Cmd]) -> Result<Permission, Cause> {
    if !matches!(link, Link::One(_)) {
        return Ok(Permission::Unknown("a cluster has no transaction across its servers"));
    }
    // Outside of one, the commands would run.
    match said(link, &redis::cmd("MULTI")).await? {
        Ok(_) => {}
        Err(_) => return Ok(Permission::Unknown("the user may not begin a transaction (MULTI)")),
    }
    let mut denied = None;
    for command in commands {
        if let Err(reason) = said(link, command).await? {
            denied.get_or_insert(reason);
        }
    }
    said(link, &redis::cmd("DISCARD")).await?.map_err(|reason| Cause::Down(reason.into()))?;
    Ok(denied.map_or(Permission::Granted, Permission::Denied))
}

/// A command and what the server says to it: an answer, or a refusal in its words.
async fn said(link: &mut Link, command: &Cmd) -> Result<Result<Value, String>, Cause> {
    let answer = link.connection().req_packed_command(command).await;
    match answer.and_then(Value::extract_error) {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.code() {
            Some(code) => Ok(Err(format!("{code} {}", error.detail().unwrap_or_default()))),
            None => Err(answer::cause(&error, About::Server)),
        },
    }
}

/// What the server says of itself that an operator should know. Says nothing where the user may not
/// ask.
async fn durability(link: &mut Link) -> Vec<String> {
    let Ok(answer) = link.ask(&redis::cmd("INFO")).await else { return Vec::new() };
    let Ok(info) = redis::from_redis_value::<String>(answer) else { return Vec::new() };
    let value = |key: &str| {
        info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default()
    };
    let mut remarks = Vec::new();
    if value("aof_enabled") == "0" {
        remarks.push(
            "an acknowledged entry does not survive a crash of this server: appendonly is off"
                .to_owned(),
        );
    }
    if value("aof_enabled") == "1" {
        remarks.extend(synced(link).await);
    }
    if value("maxmemory_policy").starts_with("allkeys") && value("maxmemory") != "0" {
        remarks.push(format!(
            "this server drops streams when its memory is full: maxmemory-policy is {}",
            value("maxmemory_policy")
        ));
    }
    if value("role") == "slave" {
        remarks.push("this server is a replica: it will not take entries".to_owned());
    }
    remarks
}

/// How far behind the append-only file on disk may be, where the user may ask for it.
async fn synced(link: &mut Link) -> Option<String> {
    let question = words(&["CONFIG", "GET", "appendfsync"]);
    // Most users may not ask; then nothing is known, and nothing said.
    let answer = link.ask(&question).await.ok()?;
    let pairs: Vec<(String, String)> = redis::from_redis_value(answer).ok()?;
    match pairs.first()?.1.as_str() {
        "everysec" => Some(
            "an acknowledged entry is on disk within a second: appendfsync is everysec".to_owned(),
        ),
        "no" => Some(
            "an acknowledged entry is on disk when the system writes it: appendfsync is no"
                .to_owned(),
        ),
        _ => None,
    }
}
