//! What every case is set in: the source, its rooms, and the relay's configuration.

use std::path::Path;

use astro_sim::{Options, Sim};
use serde_json::{Map, Value, json};

/// The room of the numbered messages.
pub const ROOM: &str = "5b2e2007760aeb7729487dab";
pub const TOPIC: &str = "channel.activities";

/// The source keeps no record of a million messages.
pub fn source() -> Options {
    Options { keep_sent: 0, ..Options::default() }
}

/// The room of the numbered messages, and further ones.
pub fn rooms(count: usize) -> Vec<String> {
    let further = (1..count).map(|number| format!("{number:024x}"));
    std::iter::once(ROOM.to_owned()).chain(further).collect()
}

/// A configuration with a channel for each room.
pub fn configuration(
    dir: &Path,
    sim: &Sim,
    rooms: &[String],
    sinks: &Map<String, Value>,
) -> std::path::PathBuf {
    let channel = |room| json!({ "room": room, "token": "t", "topics": [TOPIC] });
    let channels: Map<String, Value> =
        rooms.iter().enumerate().map(|(at, room)| (format!("c{at}"), channel(room))).collect();
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": dir.join("journal") },
        "http": { "listen": "" },
        "log": { "level": "warn" },
        "channels": channels,
        "sinks": sinks,
    });
    let file = dir.join("astro-relay.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    file
}

pub fn subscribed(sim: &Sim) -> usize {
    sim.connections().iter().filter(|c| c.ended.is_none()).map(|c| c.subscriptions.len()).sum()
}
