//! The contract of a sink, and the registry of kinds.
//!
//! A sink carries rendered events to one destination and reports what has been accepted. It does not
//! retry, does not wait between attempts, keeps no journal and counts no metrics: [`crate::delivery`] does
//! that, the same way for all. A new kind is one file under `sink/` and one row in [`KINDS`]; start with
//! `stdout.rs`.
//!
//! Sending and acknowledging are separate, so that a sink can always have a window of events in flight.
//! What is in flight is a queue: [`Sink::send`] adds to its end, [`Sink::acknowledged`] takes from its
//! front. [`InFlight`](in_flight::InFlight) is that queue for kinds whose destination answers each event
//! by itself.

pub(crate) mod address;
mod ahead;
pub mod command_address;
mod in_flight;
pub(crate) mod mqtt;
pub(crate) mod nats;
pub(crate) mod prefix;
mod race;
pub(crate) mod redis;
mod stdout;
mod together;
mod webhook;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    base::{
        clock::Moment,
        event::{Record, Seq},
    },
    channel::store::StateKey,
    config::{ConfigError, SinkConfig, problem::Findings},
};

/// An event rendered for one sink.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The event and its number in the journal.
    pub record: Arc<Record>,
    /// Which message of the record this is: 0 is the event itself, 1 what Home Assistant gets of it. They
    /// stand behind one another in that order.
    pub part: u8,
    /// An MQTT topic, a NATS subject, a Redis channel or key. Legal for the transport.
    pub address: Arc<str>,
    pub payload: Bytes,
    /// The media type of `payload`.
    pub content_type: &'static str,
    /// How long the destination may keep it, from the sink's `max_age`.
    pub expires_in: Option<TimeLeft>,
}

impl Outgoing {
    /// The event's number, and which of its messages this is.
    pub fn number(&self) -> (Seq, u8) {
        (self.record.seq, self.part)
    }
}

/// A time that runs out, also while an event waits to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLeft {
    since: Moment,
    time: Duration,
}

impl TimeLeft {
    pub fn from_now(time: Duration) -> Self {
        Self { since: Moment::now(), time }
    }

    /// What is left of it; `None`: it is over.
    pub fn left(self) -> Option<Duration> {
        self.time.checked_sub(self.since.elapsed())
    }
}

/// A part of the live state, for the destination to keep until it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub path: StateKey,
    /// Its value, as JSON, or as a plain word; `None`: it is no more, and the destination forgets it.
    pub payload: Option<Bytes>,
}

/// Why not all that is in flight was accepted.
///
/// After [`Cause::Rejected`] the event that it concerns is taken out, and what is behind it stays in flight.
/// After any other cause nothing is in flight any more: the delivery sends again from the first event that
/// was not accepted. What the destination had accepted behind that one, it must not get twice: see
/// [`OutOfOrderAcks`](ahead::OutOfOrderAcks).
#[derive(Debug)]
pub struct Failure {
    /// So many more of the oldest in flight are accepted.
    pub accepted: usize,
    /// What hindered the one after them.
    pub cause: Cause,
}

/// What hindered an event. A sink says which, never how long to wait for it.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The destination cannot be reached, or the outcome is unknown: connect again, send again.
    #[error("down: {0}")]
    Down(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The destination asks for patience, for as long as `wait` if it said so. The connection stays.
    #[error("busy: {reason}")]
    Busy { wait: Option<Duration>, reason: String },
    /// This one event will never be accepted (malformed, too large, an address that is not allowed):
    /// it goes to the dead letters, the next goes on.
    #[error("rejected: {reason}")]
    Rejected { reason: String },
    /// A permission or configuration fault that would meet every event alike. The sink is held: it is
    /// tried again rarely, and nothing leaves the journal.
    #[error("denied: {reason}")]
    Denied { reason: String },
    /// The destination wants nothing more, ever (a webhook's 410): a human is needed.
    #[error("gone: {reason}")]
    Gone { reason: String },
}

/// The peer ended the connection while events were on their way: no timeout, no refused connection, no
/// session that another took over. What is wrong may be the event, so the delivery counts these.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ClosedByPeer(Box<dyn std::error::Error + Send + Sync>);

impl Cause {
    /// The peer ended the connection while events were on their way: [`ClosedByPeer`].
    pub fn closed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Down(Box::new(ClosedByPeer(error.into())))
    }

    /// Whether it is that.
    pub fn is_closed_by_peer(&self) -> bool {
        matches!(self, Self::Down(error) if error.is::<ClosedByPeer>())
    }
}

impl Failure {
    /// Nothing more was accepted, and the link is down.
    pub fn down(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Cause::Down(error.into()).into()
    }

    /// `accepted` more are done; the one after them met `cause`.
    pub fn after(accepted: usize, cause: Cause) -> Self {
        Self { accepted, cause }
    }
}

/// Nothing more was accepted.
impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::after(0, cause)
    }
}

/// Whether a destination lets us publish at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// It does.
    Granted,
    /// It does not, in its words.
    Denied(String),
    /// It does not below the address, where it was asked: the right may be given for the address alone.
    DeniedBelow {
        /// In its words.
        reason: String,
        /// Where it was asked.
        probed: String,
    },
    /// It does not say, for this reason: only an event shows it.
    Unknown(&'static str),
}

/// A connection to one destination. Its methods are called from one task, never at once.
///
/// Each wait inside (an answer, a round trip) has the configured `timeout` as its limit, which the sink
/// keeps itself. The caller's own limit is four times that, and meets only a sink that hangs.
#[async_trait]
pub trait Sink: Send {
    /// Connects, or connects again: whatever was in flight is dropped first, with all that was queued for
    /// it, so that nothing old overtakes what is sent next. Called before the first event, after every
    /// [`Cause::Down`] and [`Cause::Gone`], and when a call of [`send`](Self::send) was given up.
    async fn connect(&mut self) -> Result<(), Failure>;

    /// Hands the first n of `events` to the connection, in order, behind what is in flight, and answers n.
    /// From then on these are in flight. 0: there is no room before something is acknowledged; never with
    /// nothing in flight. Does not wait for acknowledgements.
    ///
    /// An event that cannot be sent because of what it is (too large) is in flight like the others, and
    /// `acknowledged` reports it as [`Cause::Rejected`] when it is the oldest. A failure of `send` itself is
    /// of another cause, or concerns the first of `events` with nothing in flight; in both cases nothing is
    /// in flight afterwards.
    async fn send(&mut self, events: &[Outgoing]) -> Result<usize, Failure>;

    /// Waits until something becomes of the oldest in flight. `Ok(n)`: n more of them are accepted, in the
    /// sense in which that transport can accept (an acknowledgement where there is one). `Ok(0)`: none is,
    /// but there is room again where `send` had none. For what a failure leaves in flight see [`Failure`].
    ///
    /// With nothing in flight it keeps the link alive and returns only when the link is lost. Safe to drop
    /// at any await without losing anything, and dropped often: the caller waits for other things besides.
    async fn acknowledged(&mut self) -> Result<usize, Failure>;

    /// The end, called once. Begins nothing more, waits until `until` for what has begun, and answers which
    /// messages ([`Outgoing::number`]) were accepted and not yet reported: also behind one that was not, and
    /// also those that a failure has taken out of flight, so that the next process does not repeat them. Then
    /// takes its leave.
    async fn close(&mut self, until: Instant) -> Vec<(Seq, u8)>;

    /// What was learned since the last call. Called after each connect and when events are accepted.
    fn report(&mut self) -> Report {
        Report::default()
    }
}

/// What a sink has learned.
#[derive(Debug, Default)]
pub struct Report {
    /// What is worth counting, by name (`receivers`, `duplicates`, …), since the last report.
    pub counts: Vec<(&'static str, u64)>,
    /// What an operator should know of this server, as it was found: "the duplicate window is 2m". All of
    /// it; `None`: nothing has changed.
    pub facts: Option<Vec<String>>,
}

/// What a sink is opened with.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The sink's name in the configuration.
    pub name: &'a str,
    /// Its configuration. The keys of its kind stand in `settings`, secrets among them as
    /// [`crate::config::SecretRef`] under their plain name.
    pub config: &'a SinkConfig,
    /// What it is opened for.
    pub purpose: Purpose,
}

/// What a sink is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To deliver, as long as the relay runs.
    #[default]
    Relay,
    /// To ask something, perhaps while a relay runs: it takes no name that the relay has at the
    /// destination, and announces nothing.
    Probe,
}

/// A kind of sink: one row.
#[derive(Debug)]
pub struct Kind {
    /// As in `type = "…"`.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// How events are addressed; `None`: there is one place for all.
    pub address: Option<Address>,
    /// Its `url` in a new configuration: where its server usually listens on the same machine. `None`: it
    /// has no `url`; empty: nobody can guess it.
    pub usual_url: Option<&'static str>,
    /// How `demo` uses it; `None`: not at all.
    pub demo: Option<Demo>,
    /// Whether there is a connection that proves itself by lasting. Where each event has its own exchange
    /// there is none, and only an accepted event proves anything.
    pub session: bool,
    /// Keys of `settings` that hold a secret; each also has a `_file`, `_env` and `_credential` form.
    pub secrets: &'static [&'static str],
    /// The JSON Schema of `settings`.
    pub schema: fn() -> schemars::Schema,
    /// Checks the settings and makes the sink; connects to nothing.
    pub open: fn(&Opening<'_>) -> Result<Box<dyn Sink>, ConfigError>,
    /// What is wrong with several sinks of this kind together, each of which would be valid alone (one
    /// client id twice at one broker). Keys are those of the whole configuration.
    pub validate: Option<Validate>,
    /// Asks for the right to publish, for `check --connect`.
    pub probe: Option<Probe>,
}

/// What is wrong with several sinks together, each with its name.
pub type Validate = fn(&[(&str, &SinkConfig)]) -> Findings;

/// Whether we may publish at each of these addresses, in their order; the answer may end early, after an
/// [`Permission::Unknown`]. It has a connection of its own, and sends nothing that a subscriber would take
/// for an event. Where a kind has no addresses the only one is empty. The delivery asks it too, where there
/// is no session, to know whether the destination is there at all.
pub type Probe =
    fn(&Opening<'_>, Vec<Arc<str>>) -> BoxFuture<'static, Result<Vec<Permission>, Failure>>;

/// What `demo` has to know of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Demo {
    /// Settings beside the `url`, as JSON.
    pub settings: &'static str,
    /// How to watch the events there.
    pub watch: &'static str,
    /// Both for a stream, where the kind has one.
    pub stream: Option<(&'static str, &'static str)>,
}

/// How a kind addresses events.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    /// The key of `settings` that holds its template. It may depend on the settings: Redis has one
    /// for channels and one for streams.
    pub key: fn(&serde_json::Value) -> &'static str,
    /// Between the words of an address.
    pub separator: char,
    /// The template where none is configured; it may depend on the settings too.
    pub default: fn(&serde_json::Value) -> &'static str,
    /// Makes a rendered address legal for the transport; `Cow::Borrowed` where it is already.
    pub escape: fn(&str) -> std::borrow::Cow<'_, str>,
}

/// All kinds of sink.
pub const KINDS: &[Kind] = &[mqtt::KIND, nats::KIND, redis::KIND, webhook::KIND, stdout::KIND];

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Reads a sink's own settings; an error names the sink and the key.
pub fn settings<T: serde::de::DeserializeOwned>(opening: &Opening<'_>) -> Result<T, ConfigError> {
    serde_json::from_value(opening.config.settings.clone())
        .map_err(|error| ConfigError::at(&["sinks", opening.name], error.to_string()))
}
