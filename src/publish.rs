//! State at a destination: what holds now, published where it is looked up (a retained message, a key).
//!
//! Each sink with something of the kind has one task of its own ([`Publishing`]) on a connection of its
//! own, beside that of its events. State is a level: the newest value counts, so nothing goes through the
//! journal, and a destination that refuses events still gets its state, and the other way round.
//!
//! A kind of sink whose destination can hold state is one file here and one row in [`KINDS`].

mod heartbeat;
pub mod homeassistant;
mod mqtt;
pub(crate) mod nats;
mod published_state;
mod redis;
pub mod scope;
mod task;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;

/// Completes the settings of sinks: `homeassistant = true` brings `state`, and what it describes.
pub use self::homeassistant::expand;
pub use self::task::Publishing;
use crate::{
    config::{Channel, ConfigError, SinkConfig},
    sink::{self, Failure, Opening, Part},
};

/// The longest time between two calls of [`StatePublisher::publish`], even if nothing has changed.
pub const REFRESH: Duration = Duration::from_secs(20);

/// Publishes state at one destination. Its methods are called from one task, never at once.
#[async_trait]
pub trait StatePublisher: Send {
    /// Connects, or connects again: whatever stood before is dropped first. Afterwards all of the state is
    /// published again.
    async fn connect(&mut self) -> Result<(), Failure>;

    /// Publishes `parts`, each under an address of its own, in place of the old value. A path stands in `parts`
    /// once at most. `Ok`: the destination has all of them. [`Failure::accepted`] of them are done before
    /// the one that met [`Failure::cause`]; one that is `Rejected` is left out, and the rest comes again.
    ///
    /// It is called at least every [`REFRESH`], with nothing if nothing has changed: a
    /// destination that does not notice the end of a connection by itself learns that the relay is there.
    async fn publish(&mut self, parts: &[Part]) -> Result<(), Failure>;

    /// Keeps the link while there is nothing to publish; returns only when the link is lost. What another
    /// client has written over, it puts right itself where it can see that. Must be safe to drop at any
    /// await. A client that looks after itself keeps the default.
    async fn idle(&mut self) -> Failure {
        std::future::pending().await
    }

    /// Whether it sees at the moment when another client overwrites something. Where it does not, all of
    /// the state is published again every now and then.
    fn sees_overwrites(&self) -> bool {
        false
    }

    /// Ends the connection. Called once, after the last `publish` (which said that the relay goes); has a
    /// deadline of its caller.
    async fn close(&mut self);

    /// What an operator should know of the destination, as it is now.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the destination refuses beside the parts, and why: it lacks something that is configured.
    fn refused(&self) -> Option<String> {
        None
    }
}

/// A kind of sink whose destination can hold state: one row.
#[derive(Debug)]
pub struct Kind {
    /// The kind's name, as in `type = "…"`.
    pub name: &'static str,
    /// Whether a sink that is configured like this publishes anything.
    pub publishes: fn(&SinkConfig) -> bool,
    /// Makes the publisher from the settings, which the sink has checked; connects to nothing.
    pub open: fn(&Opening<'_>) -> Result<Box<dyn StatePublisher>, ConfigError>,
    /// What an operator should know of the destination before the relay starts, for `check --connect`. It
    /// makes nothing there.
    pub probe: Option<Probe>,
    /// How `check --connect` asks for the right to publish; `None`: it does not.
    pub rights: Option<Rights>,
}

/// See [`Kind::probe`].
pub type Probe = fn(&Opening<'_>) -> BoxFuture<'static, Result<Vec<String>, Failure>>;

/// See [`Kind::rights`].
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    pub questions: Questions,
    /// Asks at these very addresses.
    pub probe: sink::Probe,
}

/// The addresses at which it is asked, by what the channels subscribe to. Nothing of ours is published there.
pub type Questions =
    fn(&Opening<'_>, &BTreeMap<String, Channel>) -> Result<Vec<Arc<str>>, ConfigError>;

/// All of them.
pub const KINDS: &[Kind] = &[mqtt::KIND, nats::KIND, redis::KIND];

/// The row of a kind of sink.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}
