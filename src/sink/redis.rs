//! Events to Redis: published to a channel, or appended to a stream.
//!
//! Publishing is at most once by its nature: whoever does not listen at that moment never hears it,
//! and the server's answer only says how many did (see [`pubsub`]). A stream keeps events until it is
//! trimmed, and a repeat is recognised by its entry id (see [`stream`]). Reconnecting, retrying and
//! waiting are the delivery's; the connection here is made once and dropped when it fails.

pub(crate) mod answer;
mod facts;
pub(crate) mod link;
mod probe;
mod pubsub;
mod script;
pub(crate) mod settings;
mod stream;

use std::{borrow::Cow, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use redis::RedisResult;
use schemars::schema_for;

use self::{
    link::{KeepAlive, Link},
    pubsub::Pubsub,
    settings::{Mode, Settings},
    stream::Stream,
};
use super::{Address, Cause, Failure, Kind, Opening, Outgoing, Sink};
use crate::config::ConfigError;

/// The row of this kind.
pub(super) const KIND: Kind = Kind {
    name: "redis",
    summary: "Redis: published to a channel, or appended to a stream",
    address: Some(Address {
        key: |settings| if settings::is_stream(settings) { "key" } else { "channel" },
        separator: ':',
        default: |settings| {
            if settings::is_stream(settings) {
                "astro:events"
            } else {
                "astro:{{ channel }}:{{ topic }}"
            }
        },
        // Redis takes any bytes.
        escape: |address| Cow::Borrowed(address),
    }),
    usual_url: Some("redis://127.0.0.1:6379"),
    demo: Some(super::Demo {
        settings: "{}",
        watch: "redis-cli psubscribe 'astro:*'",
        stream: Some((r#"{"mode": "stream"}"#, "redis-cli xread block 0 streams astro:events '$'")),
    }),
    session: true,
    secrets: &["password", "sentinel_password"],
    schema: || schema_for!(Settings),
    open,
    validate: Some(|sinks| super::together::same_state(sinks, &["url", "urls", "state_key"])),
    probe: Some(probe::probe),
};

/// The longest string that Redis takes anywhere, unless it is configured to take more.
const MAX_STRING: usize = 512 * 1024 * 1024;

fn open(opening: &Opening<'_>) -> Result<Box<dyn Sink>, ConfigError> {
    let settings = Settings::read(opening)?;
    let mode = settings.mode;
    let connection = Connection::new(settings, opening.config.timeout.0);
    Ok(match mode {
        Mode::Pubsub => Box::new(Pubsub::new(connection)),
        Mode::Stream => Box::new(Stream::new(connection, opening.config.window)),
    })
}

/// The connection of a sink, or of its state.
pub(crate) struct Connection {
    settings: Settings,
    timeout: Duration,
    link: Option<(Link, KeepAlive)>,
    /// The server that answered last, of those that are configured.
    server: usize,
}

impl Connection {
    pub(crate) fn new(settings: Settings, timeout: Duration) -> Self {
        Self { settings, timeout, link: None, server: 0 }
    }

    pub(crate) async fn open(&mut self) -> Result<&mut Link, Failure> {
        self.link = None;
        let link = Link::open(&self.settings, self.timeout, &mut self.server).await?;
        let alive = KeepAlive::new(&link);
        let (link, _) = self.link.insert((link, alive));
        Ok(link)
    }

    pub(crate) fn link(&self) -> Result<Link, Failure> {
        self.link.as_ref().map(|(link, _)| link.clone()).ok_or_else(not_connected)
    }

    /// Keeps an idle connection; returns when it is lost. Safe to drop.
    pub(crate) async fn idle(&mut self) -> Failure {
        match &mut self.link {
            Some((_, alive)) => alive.lost().await.into(),
            None => not_connected(),
        }
    }

    pub(crate) fn close(&mut self) {
        self.link = None;
    }
}

fn not_connected() -> Failure {
    Failure::down("not connected")
}

/// An answer that is waited for.
type PendingAnswer<T> = BoxFuture<'static, RedisResult<T>>;

/// Sends a request now, and has its answer waited for later.
fn begin<T: Send + 'static>(
    request: impl Future<Output = T> + Send + 'static,
) -> BoxFuture<'static, T> {
    let mut request = request.boxed();
    // The library sends it when it is polled first.
    match (&mut request).now_or_never() {
        Some(answer) => std::future::ready(answer).boxed(),
        None => request,
    }
}

/// Why the server would never take an event of this size: it would end the connection.
fn too_long(outgoing: &Outgoing) -> Option<Cause> {
    let longest = outgoing.payload.len().max(outgoing.address.len());
    let reason = || format!("a text of {longest} bytes is longer than Redis takes");
    (longest > MAX_STRING).then(|| Cause::Rejected { reason: reason() })
}
