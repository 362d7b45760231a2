//! The whole way: from the simulated Astro through the relay into real brokers, byte for byte.

use std::{collections::HashMap, path::Path, time::Duration};

use astro_relay::{
    app::relay::Relay,
    config::Config,
    loading::{Sources, load},
};
use astro_sim::{Load, Options, Sim};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    mosquitto::{self, Mosquitto},
    nats_server::{self, NatsServer},
    receiver::Receiver,
    redis_server::{Durability, RedisServer},
    wait::until,
};

/// How long an event may take from end to end on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A secret for signatures.
const SECRET: &str = "whsec_dGhpcy1pcy1hLXNlY3JldC1mb3ItdGVzdHMtMTIz";

/// A relay that runs beside the test and ends with it.
pub struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    pub async fn start(config: Config) -> Self {
        let relay = Relay::new(config, None).await.unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            relay.run(token, || {}).await;
        });
        Self { stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// A configuration as a user would write it.
pub fn config(value: &Value) -> Config {
    let text = toml::to_string(value).unwrap();
    load(&Sources { text: Some(text), ..Sources::default() }).unwrap().config
}

/// Messages from the files of a folder, with the topics and rooms that they name.
fn messages(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

fn word<'a>(message: &'a Value, key: &str) -> &'a str {
    message[key].as_str().unwrap_or_default()
}

/// One channel for each room, with every topic that is spoken of in it.
fn channels(messages: &[String]) -> Value {
    let mut rooms: HashMap<String, Vec<String>> = HashMap::new();
    for message in messages {
        let message: Value = serde_json::from_str(message).unwrap();
        // The gateway's own notifications come unasked.
        if word(&message, "topic") == "astro" {
            continue;
        }
        let topics = rooms.entry(word(&message, "room").to_owned()).or_default();
        let topic = word(&message, "topic").to_owned();
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    let channels = rooms.into_iter().enumerate().map(|(number, (room, topics))| {
        let mut channel = json!({ "token": "t", "topics": topics });
        if !room.is_empty() {
            channel["room"] = room.into();
        }
        (format!("c{number}"), channel)
    });
    channels.collect::<serde_json::Map<_, _>>().into()
}

pub async fn subscribed(sim: &Sim, count: usize) {
    until("everything is subscribed", PATIENCE, async || {
        let standing: usize = sim
            .connections()
            .iter()
            .filter(|connection| connection.ended.is_none())
            .map(|connection| connection.subscriptions.len())
            .sum();
        (standing >= count).then_some(())
    })
    .await;
}

fn by_room<'a>(messages: &[&'a [u8]]) -> HashMap<String, Vec<&'a [u8]>> {
    let mut rooms: HashMap<String, Vec<&[u8]>> = HashMap::new();
    for message in messages {
        let value: Value = serde_json::from_slice(message).unwrap();
        rooms.entry(word(&value, "room").to_owned()).or_default().push(message);
    }
    rooms
}

#[expect(clippy::too_many_lines, reason = "seven sinks, one after another")]
/// Sends every message of a folder, and expects every sink to have each, unchanged and in order.
async fn passes_byte_for_byte(folder: &Path) {
    let sent = messages(folder);
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let (mosquitto, nats) =
        (Mosquitto::start(mosquitto::Options::default()).await, NatsServer::start("").await);
    let redis = RedisServer::start(Durability::Memory).await;
    let receiver = Receiver::start();
    nats.streams().await;
    let mqtt_heard = mosquitto::Listener::start(mosquitto.port, "astro/#").await;
    let nats_heard = nats_server::Listener::start(&nats, "astro.>").await;
    let redis_url = format!("redis://{}", redis.server.address);
    let redis_client = redis::Client::open(redis_url.as_str()).unwrap();
    let mut pubsub = redis_client.get_async_pubsub().await.unwrap();
    pubsub.psubscribe("astro:*").await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let all = |mut sink: Value| {
        sink["redact"] = json!([]);
        sink
    };
    let running = Running::start(config(&json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": dir.path() },
        "http": { "listen": "" },
        "channels": channels(&sent),
        "sinks": {
            "mqtt": all(json!({ "type": "mqtt", "url": mosquitto.url(), "availability_topic": "" })),
            "mqtt3": all(json!({ "type": "mqtt", "url": mosquitto.url(), "version": "3.1.1",
                "topic": "old/{{ topic }}", "availability_topic": "" })),
            "core": all(json!({ "type": "nats", "url": nats.url() })),
            "stream": all(json!({ "type": "nats", "url": nats.url(), "jetstream": true,
                "stream": "KEPT", "create_stream": true, "subject": "kept.{{ topic }}" })),
            "pubsub": all(json!({ "type": "redis", "url": redis_url })),
            "entries": all(json!({ "type": "redis", "url": redis_url, "mode": "stream" })),
            "hook": all(json!({ "type": "webhook", "url": receiver.url(), "secret": SECRET,
                "allow_addresses": ["127.0.0.1"], "concurrency": 1 })),
        },
    })))
    .await;
    let rooms: std::collections::BTreeSet<_> = sent
        .iter()
        .map(|message| {
            let message: Value = serde_json::from_str(message).unwrap();
            (word(&message, "topic").to_owned(), word(&message, "room").to_owned())
        })
        .filter(|(topic, _)| topic != "astro")
        .collect();
    subscribed(&sim, rooms.len()).await;
    for message in &sent {
        assert!(sim.publish_raw(message).unwrap() > 0, "somebody hears {message}");
    }

    let expected: Vec<&[u8]> = sent.iter().map(String::as_bytes).collect();
    let heard = mqtt_heard.wait_for(sent.len()).await;
    assert_eq!(heard.iter().map(|p| &*p.payload).collect::<Vec<_>>(), expected, "MQTT 5");
    until("NATS has all", PATIENCE, async || {
        (nats_heard.heard().len() >= sent.len()).then_some(())
    })
    .await;
    let heard = nats_heard.heard();
    assert_eq!(heard.iter().map(|m| &*m.payload).collect::<Vec<_>>(), expected, "NATS");
    until("the webhook has all", PATIENCE, async || {
        (receiver.received().len() >= sent.len()).then_some(())
    })
    .await;
    let received = receiver.received();
    let bodies: Vec<&[u8]> = received.iter().map(|request| &*request.body).collect();
    // A webhook keeps the order of each room, not the one between rooms.
    assert_eq!(by_room(&bodies), by_room(&expected), "webhook");
    assert!(received.iter().all(|request| request.verify(SECRET)), "every signature is good");

    let mut connection = redis_client.get_multiplexed_async_connection().await.unwrap();
    let entries = until("Redis has all", PATIENCE, async || {
        let entries: Vec<(String, HashMap<String, Vec<u8>>)> = redis::cmd("XRANGE")
            .arg("astro:events")
            .arg("-")
            .arg("+")
            .query_async(&mut connection)
            .await
            .ok()?;
        (entries.len() >= sent.len()).then_some(entries)
    })
    .await;
    let stored: Vec<&[u8]> = entries.iter().map(|(_, fields)| &*fields["payload"]).collect();
    assert_eq!(stored, expected, "Redis stream");
    let mut published = Vec::new();
    let mut stream = pubsub.on_message();
    while published.len() < sent.len() {
        let message = futures_util::StreamExt::next(&mut stream);
        let message = tokio::time::timeout(PATIENCE, message).await.unwrap().unwrap();
        published.push(message.get_payload_bytes().to_vec());
    }
    assert_eq!(published, expected, "Redis pub/sub");

    let context = nats.streams().await;
    until("JetStream has all", PATIENCE, async || {
        let info = context.get_stream("KEPT").await.ok()?;
        (info.cached_info().state.messages >= sent.len() as u64).then_some(())
    })
    .await;
    let kept = context.get_stream("KEPT").await.unwrap();
    assert_eq!(kept.cached_info().state.messages, sent.len() as u64, "JetStream: none twice");
    for (number, expected) in (1..).zip(&sent) {
        let message = kept.get_raw_message(number).await.unwrap();
        assert_eq!(message.payload, expected.as_bytes(), "JetStream");
    }
    drop(stream);
    running.stop().await;
    sim.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_fixtures_pass_to_every_sink_byte_for_byte() {
    passes_byte_for_byte(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/messages")).await;
}

/// The vendor's examples, which are reference data beside this repository. Several of them share an
/// id and are different messages all the same: none may be taken for a twin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "it says that the reference data is not there")]
async fn the_vendors_examples_pass_to_every_sink_byte_for_byte() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/messages");
    if folder.is_dir() {
        passes_byte_for_byte(&folder).await;
    } else {
        eprintln!("{} is not there; only our own fixtures are tried", folder.display());
    }
}

/// Numbered messages at full speed over several rooms: none lost, none twice, none out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_arrives_whole_and_in_order() {
    let messages = if crate::support::journal::long() { 100_000 } else { 10_000 };
    let rooms: Vec<String> = (0..4).map(|number| format!("{number:024x}")).collect();
    let options = Options { keep_sent: 0, ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let (mosquitto, nats) =
        (Mosquitto::start(mosquitto::Options::default()).await, NatsServer::start("").await);
    let redis = RedisServer::start(Durability::Memory).await;
    let mqtt_heard = mosquitto::Listener::start(mosquitto.port, "astro/#").await;
    let nats_heard = nats_server::Listener::start(&nats, "astro.>").await;
    let redis_url = format!("redis://{}", redis.server.address);
    let dir = tempfile::tempdir().unwrap();
    let channels: serde_json::Map<_, _> = rooms
        .iter()
        .enumerate()
        .map(|(number, room)| {
            let channel = json!({ "room": room, "token": "t", "topics": ["channel.activities"] });
            (format!("c{number}"), channel)
        })
        .collect();
    let running = Running::start(config(&json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": dir.path() },
        "http": { "listen": "" },
        "channels": channels,
        "sinks": {
            "mqtt": { "type": "mqtt", "url": mosquitto.url(), "availability_topic": "" },
            "core": { "type": "nats", "url": nats.url() },
            "entries": { "type": "redis", "url": redis_url, "mode": "stream", "max_len": 0 },
        },
    })))
    .await;
    subscribed(&sim, rooms.len()).await;
    let load = Load { messages, rooms: rooms.clone(), ..Load::default() };
    sim.load(&load).await;

    let count = usize::try_from(messages).unwrap();
    until("MQTT has all", PATIENCE, async || (mqtt_heard.heard().len() >= count).then_some(()))
        .await;
    until("NATS has all", PATIENCE, async || (nats_heard.heard().len() >= count).then_some(()))
        .await;
    let client = redis::Client::open(redis_url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let entries = until("Redis has all", PATIENCE, async || {
        let length: usize =
            redis::cmd("XLEN").arg("astro:events").query_async(&mut connection).await.ok()?;
        (length >= count).then_some(length)
    })
    .await;
    assert_eq!(entries, count, "Redis stream: none twice");
    let number = |payload: &[u8]| {
        let message: Value = serde_json::from_slice(payload).unwrap();
        (word(&message, "room").to_owned(), message["data"]["n"].as_u64().unwrap())
    };
    let heard = mqtt_heard.heard();
    whole_and_in_order("MQTT", messages, heard.iter().map(|message| number(&message.payload)));
    let heard = nats_heard.heard();
    whole_and_in_order("NATS", messages, heard.iter().map(|message| number(&message.payload)));
    running.stop().await;
    sim.stop().await;
}

fn whole_and_in_order(sink: &str, messages: u64, heard: impl Iterator<Item = (String, u64)>) {
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut count = 0;
    for (room, number) in heard {
        let before = last.insert(room.clone(), number);
        assert!(before.is_none_or(|before| before < number), "{sink}: {number} in {room} late");
        count += 1;
    }
    assert_eq!(count, messages, "{sink}: each once");
}
