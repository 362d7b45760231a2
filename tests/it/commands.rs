//! Commands from outside: over MQTT, NATS and HTTP, against real servers and the simulated API.

mod http;
mod mqtt;
mod nats;

use astro_relay::sim::Sim;
use serde_json::{Value, json};

use crate::operator::{ROOM, Running, channel};

/// What a channel subscribes to so that the relay keeps its session.
fn session_channel() -> String {
    channel(&["channel.session.update", "channel.session.reset"])
}

/// What that element is on the server.
fn element(sim: &Sim, name: &str) -> Value {
    sim.session(ROOM)["data"][name].clone()
}

/// The session's id on the server: a reset makes a new one.
fn id(sim: &Sim) -> Value {
    sim.session(ROOM)["_id"].clone()
}

/// When the relay last fetched the session.
async fn fetched_at(relay: &Running) -> u64 {
    relay.status().await["pages"]["sessions"]["main"]["fetched_at"].as_u64().unwrap_or(0)
}

/// A relay with its session fetched.
async fn start(more: &str) -> Running {
    let relay = Running::start(&format!("{}{more}", session_channel())).await;
    relay.subscribed(2).await;
    relay
        .until("the session is fetched", |status| {
            status["pages"]["sessions"]["main"]["fetched_at"].is_u64()
        })
        .await;
    relay
}

/// The answer to a command that was done.
fn done(command: &str, transaction: &str) -> Value {
    json!({ "ok": true, "channel": "main", "command": command, "transaction": transaction })
}
