//! The live state at a destination: a late reader finds all of it.

mod mqtt;
mod nats;
mod redis;

use std::{collections::BTreeMap, time::Duration};

use astro_sim::{Options, Sim, Token};
use serde_json::{Map, Value, json};

use crate::support::relay::{ROOM, TOKEN};

/// What is subscribed: all that the state is made of.
const TOPICS: &[&str] = &[
    "channel.session.update", "channel.session.reset", "channel.stream.status",
    "channel.chatbot.status", "channel.chatbot.counters",
];

/// How long the destination may take to have what the relay knows, on a machine that is busy.
const SOON: Duration = Duration::from_mins(1);

/// What a destination holds, by the path within the state: `main/session/tip-latest`, `relay/status`.
type Kept = BTreeMap<String, Value>;

async fn simulated() -> Sim {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

fn set(sim: &Sim, element: &str, value: Value) {
    sim.update_session(ROOM, Map::from_iter([(element.to_owned(), value)]));
}

/// What should be kept of the session, as the server has it.
fn on_the_server(sim: &Sim) -> Kept {
    let elements: Kept = serde_json::from_value(sim.session(ROOM)["data"].clone()).unwrap();
    elements.into_iter().map(|(name, value)| (format!("main/session/{name}"), value)).collect()
}

/// The session's part of what is kept.
fn session(kept: &Kept) -> Kept {
    let of_session = kept.iter().filter(|(path, _)| path.starts_with("main/session/"));
    of_session.map(|(path, value)| (path.clone(), value.clone())).collect()
}

/// Whether the far side has the whole session, and the relay says of itself that it works.
fn is_whole(kept: &Kept, sim: &Sim) -> bool {
    session(kept) == on_the_server(sim)
        && kept.get("relay/status").is_some_and(|status| status["status"] == "online")
        && kept.get("main/status") == Some(&json!("online"))
}

/// What a relay that has gone says of itself, but for since when.
fn gone(reason: &str) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({"status": "offline", "health": "not working", "reason": reason, "version": version})
}

/// Whether that is the status of a relay that was stopped.
fn is_stopped(status: &Value) -> bool {
    let Value::Object(mut status) = status.clone() else { return false };
    status.remove("since").is_some_and(|since| since.is_string())
        && Value::Object(status) == gone("stopped")
}

/// Tells of the stream, the bot and a counter.
fn tell_facts(sim: &Sim) {
    sim.publish("channel.stream.status", ROOM, json!({"isLive": true}));
    sim.publish("channel.chatbot.status", ROOM, json!({"mod": true}));
    sim.publish("channel.chatbot.counters", ROOM, json!({"counter": "deaths", "value": 42}));
}

/// Whether the far side has those.
fn has_facts(kept: &Kept) -> bool {
    let field = |path: &str, name: &str| kept.get(path).map(|value| value[name].clone());
    field("main/stream", "status") == Some(json!("online"))
        && field("main/stream", "since").is_some_and(|since| since.is_string())
        && field("main/bot", "mod") == Some(json!(true))
        && kept.get("main/counters/deaths") == Some(&json!(42))
}
