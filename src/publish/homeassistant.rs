//! Home Assistant's MQTT discovery: which entities there are, as retained configurations.
//!
//! Each configuration stands under the discovery prefix and points at the topics where the state is
//! published anyway, or where [`ha_event`](crate::delivery::ha_event) publishes events. Nothing here does
//! I/O; [`super::mqtt`] publishes it.
//!
//! Single-component discovery is used (one topic an entity), which every Home Assistant since 2023
//! understands; the device-based form came with 2024.12 and says nothing more.
//!
//! An entity's `unique_id` is what the user's dashboards and automations hang on. It is made of the
//! channel's id (the room), its label and the name of what is shown; so two relays whose channels have one
//! label stay apart, and neither the sink's name nor its `client_id` is part of it.

mod element;
mod entities;
mod identity;

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

pub use self::identity::Whose;
use self::identity::id;
use crate::{
    channel::state::SESSION_TOPICS,
    config::{Channel, Commands, Described, SinkConfig},
    delivery::ha_event::{bases, is_wanted},
    sink::mqtt::settings::client_id,
};

/// The name of the relay's own device, and what the ids of all entities begin with.
const RELAY: &str = "astro-relay";

const DEFAULT_PREFIX: &str = "homeassistant";

/// What one sink announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaDiscovery {
    /// Whether there are entities; where there are none, those of earlier days are stale.
    pub on: bool,
    /// The discovery prefix.
    pub prefix: String,
    /// Our part of the discovery topics: who we are to the broker.
    pub node: String,
    /// The same of other sinks that announce these channels.
    pub others: Vec<String>,
    /// What the topics of the relay's own state begin with.
    pub relay: String,
    /// The channels that the sink selects, by label.
    pub channels: BTreeMap<String, ChannelTopics>,
    /// Commands that are taken.
    pub commands: Commands,
    /// Where the relay's page is, for a link on each device.
    pub configuration_url: Option<String>,
}

/// What there is of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelTopics {
    /// What the topics of its state and its events begin with.
    pub base: String,
    /// Its id, where one is configured.
    pub room: Option<String>,
    /// The topics that it subscribes to.
    pub topics: Vec<String>,
}

impl ChannelTopics {
    /// Whether it subscribes to a topic.
    fn subscribes(&self, topic: &str) -> bool {
        self.topics.iter().any(|subscribed| subscribed == topic)
    }

    /// Whether the elements of its session are received.
    fn has_session(&self) -> bool {
        SESSION_TOPICS.iter().any(|topic| self.subscribes(topic))
    }
}

/// A retained configuration of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The discovery topic.
    pub topic: String,
    /// The configuration, as JSON.
    pub payload: String,
}

/// Expands the key `homeassistant` of all sinks: it brings `state` with it, and a sink that has it knows
/// its channels, and the client ids of the others, so that it takes none of their entities for its own.
pub fn expand(sinks: &mut BTreeMap<String, SinkConfig>, channels: &BTreeMap<String, Channel>) {
    let all: Vec<(String, String)> = sinks
        .iter()
        .filter(|(_, sink)| is_wanted(sink) == Some(true))
        .map(|(name, sink)| (name.clone(), client_id(name, &sink.settings)))
        .collect();
    for (name, sink) in sinks.iter_mut() {
        // With `false` what was announced before is cleared: it is known by the channels.
        let Some(on) = is_wanted(sink) else { continue };
        sink.state |= on;
        let others = all.iter().filter(|(other, _)| other != name);
        let elsewhere: Vec<String> = others.map(|(_, client_id)| client_id.clone()).collect();
        let selected = sink.channels.as_ref();
        let selects = |label: &String| selected.is_none_or(|selected| selected.contains(label));
        let described = channels.iter().filter(|(label, _)| selects(label));
        let described = described.map(|(label, Channel { room, topics, .. })| {
            let (room, topics, elsewhere) = (room.clone(), topics.clone(), elsewhere.clone());
            (label.clone(), Described { room, topics, elsewhere })
        });
        sink.feeds = described.collect();
    }
}

impl HaDiscovery {
    /// As a sink is configured: `node` is its `client_id`. Where it says `homeassistant = false`, or
    /// nothing, there are no entities at all.
    pub fn of(
        config: &SinkConfig,
        node: &str,
        escape: fn(&str) -> Cow<'_, str>,
        commands: &Commands,
    ) -> Result<Self, String> {
        let (relay, mut bases) = bases(config, escape)?;
        let channels = config.feeds.iter().map(|(label, Described { room, topics, .. })| {
            let base = bases.remove(label).unwrap_or_default();
            (label.clone(), ChannelTopics { base, room: room.clone(), topics: topics.clone() })
        });
        let described = config.feeds.values().next();
        let others = described.map(|described| &*described.elsewhere).unwrap_or_default();
        let text =
            |key: &str| config.settings.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
        Ok(Self {
            on: is_wanted(config) == Some(true),
            prefix: text("discovery_prefix").unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            node: node.to_owned(),
            others: others.iter().map(|other| id(&[other])).collect(),
            relay,
            channels: channels.collect(),
            commands: commands.clone(),
            configuration_url: text("configuration_url"),
        })
    }
}

#[cfg(test)]
mod tests;
