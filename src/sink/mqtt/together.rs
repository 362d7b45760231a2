//! Rules for several MQTT sinks, each of which is valid alone.

use serde_json::Value;
use url::Url;

use super::settings::{client_id, command_client_id, state_client_id};
use crate::{
    config::{SinkConfig, problem::Findings},
    sink::together::{repeated, same_state},
};

pub(super) fn validate(sinks: &[(&str, &SinkConfig)]) -> Findings {
    let mut found = same_state(sinks, &["url", "state_topic"]);
    commands(sinks, &mut found);
    client_ids(sinks, &mut found);
    entities(sinks, &mut found);
    found
}

/// Two sinks that take commands from one broker: both would receive each of them.
fn commands(sinks: &[(&str, &SinkConfig)], found: &mut Findings) {
    let listening: Vec<_> = sinks.iter().filter(|(_, sink)| sink.takes_commands()).collect();
    for (index, (name, sink)) in listening.iter().enumerate() {
        let shares = |other: &SinkConfig| {
            let channels = match (&sink.channels, &other.channels) {
                (Some(ours), Some(theirs)) => ours.iter().any(|one| theirs.contains(one)),
                _ => true,
            };
            channels && sink.settings.get("url") == other.settings.get("url")
        };
        let mut before = listening.iter().take(index);
        if let Some((first, _)) = before.find(|(_, other)| shares(other)) {
            let message = format!(
                "sinks.{first} takes commands from the same broker: each would be executed twice"
            );
            found.warn(&["sinks", name, "commands"], message);
        }
    }
}

/// Two sinks with one client id at one broker: each connection would end the other.
fn client_ids(sinks: &[(&str, &SinkConfig)], found: &mut Findings) {
    let ids = |name: &str, sink: &SinkConfig| {
        let url = sink.settings.get("url").and_then(Value::as_str).unwrap_or_default();
        connection_ids(name, sink).map(|id| id.map(|id| (broker(url), id))).into_iter().flatten()
    };
    repeated(sinks, ids, |name, first, (_, id)| {
        let message = format!(
            "sinks.{first} has the same client_id at the same broker, {id}: each would end the \
             other's connection, over and over"
        );
        found.error(&["sinks", name, "client_id"], message);
    });
}

/// The client ids of all connections of a sink: for events, and where it has them for state and commands.
fn connection_ids(name: &str, sink: &SinkConfig) -> [Option<String>; 3] {
    let id = client_id(name, &sink.settings);
    // `homeassistant = false` takes back what was announced.
    let publishes = sink.state || sink.settings.get("homeassistant").is_some_and(Value::is_boolean);
    let state = publishes.then(|| state_client_id(&id));
    let commands = sink.takes_commands().then(|| command_client_id(&id));
    [Some(id), state, commands]
}

/// Two sinks that announce the same entities to one broker, wherever their state is: the entities' ids are
/// the same.
fn entities(sinks: &[(&str, &SinkConfig)], found: &mut Findings) {
    let place = |_: &str, sink: &SinkConfig| {
        let announces = sink.settings.get("homeassistant") == Some(&Value::Bool(true));
        announces.then(|| ["url", "discovery_prefix"].map(|key| sink.settings.get(key).cloned()))
    };
    repeated(sinks, place, |name, first, _| {
        let message = format!("sinks.{first} announces the same entities to the same broker");
        found.error(&["sinks", name, "homeassistant"], message);
    });
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
