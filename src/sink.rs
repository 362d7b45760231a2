//! The contract of a sink, and the registry of kinds.
//!
//! A sink carries rendered events to one far side and says what became of them. It does not retry,
//! does not wait, keeps no journal and counts no metrics: [`crate::delivery`] does that, the same way
//! for all. A new kind is one file under `sink/` and one row in [`KINDS`].
//!
//! The one thing to know: a batch is in flight all at once and is answered as a whole or as a prefix.
//! `Ok` means that the far side has accepted every event of it, in the sense in which that transport
//! can accept (an acknowledgement where there is one). A sink that loses time while it waits for the
//! answer may take the next batch meanwhile: [`Sink::deliver_ahead`].

mod address;
mod ahead;
pub mod command_address;
pub(crate) mod mqtt;
mod nats;
mod prefix;
mod pulse;
mod race;
mod redis;
mod stdout;
mod webhook;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{base::event::Record, channel::board::Path, command::Desk, config::ConfigError};

/// An event rendered for one sink.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The event and its place in the journal.
    pub record: Arc<Record>,
    /// Where it goes: an MQTT topic, a NATS subject, a Redis channel or key. Legal for the transport.
    pub address: Arc<str>,
    /// What goes there.
    pub payload: Bytes,
    /// The media type of `payload`.
    pub content_type: &'static str,
    /// How long from now on the far side may keep it, from the sink's `max_age`.
    pub expires_in: Option<Duration>,
    /// What goes out with it, for those who want it in another form. The event is accepted when both
    /// are. Only a kind that was asked for it finds something here.
    pub beside: Option<Arc<Beside>>,
}

/// The same happening in another form, under an address of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// Where it goes.
    pub address: Arc<str>,
    /// What goes there, as JSON.
    pub payload: Bytes,
}

/// A part of the live state, for the far side to keep until it is told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub path: Path,
    /// Its value, as JSON, or as a plain word; `None`: it is no more, and the far side forgets it.
    pub payload: Option<Bytes>,
}

/// Why a batch was not accepted as a whole.
#[derive(Debug)]
pub struct Failure {
    /// The first `accepted` events of the batch are done, the others are not.
    pub accepted: usize,
    /// What hindered the event after them.
    pub cause: Cause,
}

/// What hindered an event. A sink says which, never how long to wait for it.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The far side cannot be reached, or the outcome is unknown: connect again, same batch.
    #[error("down: {0}")]
    Down(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The far side asks for patience; `wait` is what it said, if it said.
    #[error("busy: {reason}")]
    Busy {
        /// How long the far side asked us to wait.
        wait: Option<Duration>,
        /// Its words.
        reason: String,
    },
    /// This one event will never be accepted (malformed, too large, an address that is not allowed):
    /// it goes to the dead letters, the next goes on.
    #[error("rejected: {reason}")]
    Rejected {
        /// The destination's words.
        reason: String,
    },
    /// A permission or configuration fault that would meet every event alike. The sink is held: it is
    /// tried again rarely, and nothing leaves the journal.
    #[error("denied: {reason}")]
    Denied {
        /// The destination's words.
        reason: String,
    },
    /// The far side wants nothing more, ever (a webhook's 410): a human is needed.
    #[error("gone: {reason}")]
    Gone {
        /// The far side's words.
        reason: String,
    },
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
    /// Nothing of the batch was accepted and the link is down.
    pub fn down(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::after(0, Cause::Down(error.into()))
    }

    /// The first `accepted` events are done; the one after them met `cause`.
    pub fn after(accepted: usize, cause: Cause) -> Self {
        Self { accepted, cause }
    }
}

/// Whether a far side lets us publish at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// It does.
    Granted,
    /// It does not, in its words.
    Denied(String),
    /// It does not say, for this reason: only an event tells.
    Untold(&'static str),
}

/// One far side. Its methods are called from one task, never at once.
#[async_trait]
pub trait Sink: Send {
    /// Connects, or connects again: whatever stood before is dropped first, with all that it had
    /// queued, so that nothing old overtakes what is delivered next. Called before the first batch
    /// and after every [`Cause::Down`].
    async fn connect(&mut self) -> Result<(), Failure>;

    /// Hands over `batch` (never empty), in order. `Ok`: the far side has accepted all of it.
    ///
    /// A batch takes as long as its events do. What has a limit is each thing that the sink waits for
    /// (an answer, a round trip, a reader): it keeps the configured `timeout` itself for every one of
    /// them, and says what hindered the event when it passes. The caller's own limit is `timeout` for
    /// each event of the batch and once more; it meets only a sink that breaks this rule.
    ///
    /// Must be safe to drop at any await: what is on its way then has an unknown outcome.
    async fn deliver(&mut self, batch: &[Outgoing]) -> Result<(), Failure>;

    /// Hands over the last `fresh` events of `flight` (never empty). Those before them are on their way
    /// from earlier calls, in this order, and not yet accepted. `Ok(n)`: the far side has accepted the
    /// first `n` of `flight`; the others are on their way, and at the head of the next call's flight.
    ///
    /// With `fresh` at none, waits until one is accepted at least. After a failure and after `connect`
    /// nothing is on its way any more: what is to go out again comes as fresh. Between two calls with
    /// nothing on its way the others may be called. Limits, failures and being dropped are as for
    /// [`deliver`](Self::deliver), which this does where a sink does not have it: then nothing is ever
    /// left on its way.
    async fn deliver_ahead(
        &mut self,
        flight: &[Outgoing],
        _fresh: usize,
    ) -> Result<usize, Failure> {
        self.deliver(flight).await.map(|()| flight.len())
    }

    /// How many more events it takes now behind `flight`, where it has many on their way at once. For such
    /// a sink, a [`deliver_ahead`](Self::deliver_ahead) that only waits (nothing fresh) may be dropped and
    /// called again without losing anything: what is on its way stays there. `None`: it takes a batch, and
    /// a call that is dropped leaves the outcome unknown.
    fn room(&self, _flight: &[Outgoing]) -> Option<usize> {
        None
    }

    /// The delivery is about to end: nothing that has not begun is to begin. `deliver_ahead` then waits for
    /// what has begun only, and fails when there is no more of it.
    fn begin_nothing_more(&mut self) {}

    /// Which events of `flight` the destination has accepted, as far as it is known, whether or not they
    /// could be reported as a prefix. Asked at the end, so that the next process does not repeat them.
    fn acknowledged(&self, flight: &[Outgoing]) -> Vec<bool> {
        vec![false; flight.len()]
    }

    /// Whether the destination is there, asked without an event: the connection has ended at one event again
    /// and again. Where there is a connection, its standing is the answer.
    async fn answers(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Whether there is a connection that can prove itself by lasting. Where there is none (each event has
    /// its own exchange), an accepted event is proof enough.
    fn has_session(&self) -> bool {
        true
    }

    /// Has the far side keep these parts of the state, each under an address of its own, over what was
    /// there. A path stands in `parts` once at most. Called only with `state = true`, and between
    /// batches; `Ok` and [`Failure::accepted`] mean what they mean for a batch.
    ///
    /// It is called at least every [`KEEP_REFRESH`], with nothing if nothing has changed: a far side
    /// that does not notice the end of a connection by itself is told that the relay is still there.
    async fn keep(&mut self, _parts: &[Part]) -> Result<(), Failure> {
        Err(Failure::down("this kind of sink keeps no state"))
    }

    /// Whether the sink itself notices when somebody else writes over what the destination keeps, and puts it
    /// right. Where it does not, all of the state is said again every now and then.
    fn watches_state(&self) -> bool {
        false
    }

    /// Keeps the link while there is nothing to deliver; runs until it is dropped, and returns only
    /// when the link is lost. Must be safe to drop at any await. A sink whose client looks after
    /// itself keeps the default.
    async fn idle(&mut self) -> Failure {
        std::future::pending().await
    }

    /// Asks whether we may publish at `address`, without sending an event there. Called on a visit,
    /// after `connect`, and by nobody else. What a far side needs for that, its `address` does not
    /// show: where only a message can ask, it is empty and goes below `address`, see
    /// [`CANARY`](address::CANARY).
    async fn may_publish(&mut self, address: &str) -> Result<Permission, Failure> {
        let _ = address;
        Ok(Permission::Untold("this kind of far side does not tell"))
    }

    /// Gives the sink a way to hand in commands that come from its far side; called before the first
    /// connection, if at all. A sink that takes none, or is not configured to, keeps nothing of it.
    fn take_commands(&mut self, desk: &Desk) {
        let _ = desk;
    }

    /// Says goodbye. Called once, at the end; has a deadline of its caller.
    async fn close(&mut self);

    /// What is worth counting since the last call, by name (`receivers`, `duplicates`, …).
    fn tally(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Things that an operator should know of the far side, found while connecting: "an
    /// acknowledgement does not survive a crash of this server", "the duplicate window is 2m".
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a sink is opened with. Not printable: `settings` holds secrets.
#[expect(missing_debug_implementations, reason = "the settings hold secrets")]
pub struct Opening<'a> {
    /// The sink's name in the configuration.
    pub name: &'a str,
    /// The sink's own keys: what is left of its table without the keys that all sinks share.
    /// Secrets stand in it as [`crate::config::SecretRef`] under their plain name.
    pub settings: serde_json::Value,
    /// The whole configuration of this sink, for what is shared.
    pub config: &'a crate::config::SinkConfig,
    /// What it is opened for.
    pub purpose: Purpose,
}

/// What a sink is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To deliver, as long as the relay runs.
    #[default]
    Relay,
    /// A short visit, perhaps beside a relay that runs: it takes no name that the relay has at the far
    /// side, and announces nothing.
    Visit,
}

/// A kind of sink: one row.
#[derive(Debug)]
pub struct Kind {
    /// Its name, as in `type = "…"`.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    /// Whether what was accepted survives in the far side until somebody fetches it.
    pub address: Option<Address>,
    /// Keys of `settings` that hold a secret; each also has a `_file`, `_env` and `_credential` form.
    pub secrets: &'static [&'static str],
    /// The JSON Schema of `settings`.
    pub schema: fn() -> schemars::Schema,
    /// Whether its far side can keep the live state: [`Sink::keep`].
    pub keeps: bool,
    /// Checks the settings and makes the sink; connects to nothing.
    pub open: fn(Opening<'_>) -> Result<Box<dyn Sink>, ConfigError>,
}

/// How a kind addresses events.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    /// The key of `settings` that holds its template. It may depend on the settings: Redis has one
    /// for channels and one for streams.
    pub key: fn(&serde_json::Value) -> &'static str,
    /// What stands between the words of an address.
    pub separator: char,
    /// The template where none is configured; it may depend on the settings too.
    pub default: fn(&serde_json::Value) -> &'static str,
    /// Makes a rendered address legal for the transport; `Cow::Borrowed` where it is already.
    pub escape: fn(&str) -> std::borrow::Cow<'_, str>,
}

/// How often a sink that keeps state is told to say so, with nothing else to say.
pub const KEEP_REFRESH: Duration = Duration::from_secs(20);

/// All kinds of sink.
pub const KINDS: &[Kind] = &[mqtt::KIND, nats::KIND, redis::KIND, webhook::KIND, stdout::KIND];

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Reads a sink's own settings; an error names the sink and the key.
pub fn settings<T: serde::de::DeserializeOwned>(opening: &Opening<'_>) -> Result<T, ConfigError> {
    serde_json::from_value(opening.settings.clone())
        .map_err(|error| ConfigError::at(&["sinks", opening.name], error.to_string()))
}
