//! `astro-relay send-test` as a process, with every kind of sink, beside a relay that runs.

use std::{
    collections::{BTreeSet, HashMap},
    process::{Output, Stdio},
};

use astro_relay::sink::KINDS;
use astro_sim::{Options, Sim};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    end_to_end::{Running, config, subscribed},
    support::{
        carry::{PATIENCE, within},
        mosquitto::{self, Mosquitto},
        nats_server::{self, NatsServer},
        receiver::Receiver,
        redis_server::{self, Durability, RedisServer},
        wait::until,
    },
};

const ROOM: &str = "0f0e0d0c0b0a090807060504";

/// Where each sink says that it was accepted.
const ACCEPTED: &[(&str, &str)] = &[
    ("core", "core (nats): accepted at astro.main.channel.tips"),
    ("entries", "entries (redis): accepted at astro:events"),
    ("hook", "hook (webhook): accepted"),
    ("mqtt", "mqtt (mqtt): accepted at astro/main/channel/tips"),
    ("mqtt3", "mqtt3 (mqtt): accepted at old/channel.tips"),
    ("pubsub", "pubsub (redis): accepted at astro:main:channel.tips"),
    ("stream", "stream (nats): accepted at kept.channel.tips"),
    ("terminal", "terminal (stdout): accepted"),
];

/// The destinations, all of them real.
struct Place {
    sim: Sim,
    mosquitto: Mosquitto,
    nats: NatsServer,
    redis: RedisServer,
    receiver: Receiver,
    dir: tempfile::TempDir,
}

impl Place {
    async fn new() -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let nats = NatsServer::start("").await;
        // A test event makes no stream.
        let kept = async_nats::jetstream::stream::Config {
            name: "KEPT".into(),
            subjects: vec!["kept.>".into()],
            ..Default::default()
        };
        nats.streams().await.create_stream(kept).await.unwrap();
        Self {
            sim,
            mosquitto: Mosquitto::start(mosquitto::Options::default()).await,
            nats,
            redis: RedisServer::start(Durability::Memory).await,
            receiver: Receiver::start(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self) -> Value {
        let (mosquitto, nats, redis) = (self.mosquitto.url(), self.nats.url(), self.redis.url());
        json!({
            "astro": { "url": self.sim.url(), "api_url": self.sim.api_url() },
            "journal": { "dir": self.dir.path() },
            "http": { "listen": "" },
            "channels": { "main": { "room": ROOM, "token": "t", "topics": ["channel.tips"] } },
            "sinks": {
                "mqtt": { "type": "mqtt", "url": mosquitto },
                "mqtt3": { "type": "mqtt", "url": mosquitto, "version": "3.1.1",
                    "topic": "old/{{ topic }}" },
                "core": { "type": "nats", "url": nats },
                "stream": { "type": "nats", "url": nats, "jetstream": true, "stream": "KEPT",
                    "subject": "kept.{{ topic }}" },
                "pubsub": { "type": "redis", "url": redis },
                "entries": { "type": "redis", "url": redis, "mode": "stream" },
                "hook": { "type": "webhook", "url": self.receiver.url(),
                    "allow_addresses": ["127.0.0.1"] },
            },
        })
    }

    /// Sends a test event, to standard output as well.
    async fn send_test(&self, args: &[&str]) -> Output {
        let mut config = self.config();
        config["sinks"]["terminal"] = json!({ "type": "stdout" });
        let file = self.dir.path().join("relay.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let command = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
            .arg("send-test")
            .args(args)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .output();
        within("the command", command).await.unwrap()
    }

    /// An event from Astro, with this number.
    fn publish(&self, number: u64) {
        self.sim.publish("channel.tips", ROOM, json!({ "n": number }).to_string());
    }
}

/// Whether the payload says of itself that nothing has happened.
fn is_marked(payload: &[u8]) -> bool {
    let message: Value = serde_json::from_slice(payload).unwrap();
    message["id"].as_str().unwrap().starts_with("test-") && message["data"]["test"] == true
}

/// What the broker has brought to these topics, without marks (false) and with (true).
fn at(listener: &mosquitto::Listener, topic: &str) -> Vec<bool> {
    let heard = listener.heard();
    heard.iter().filter(|p| p.topic == topic.as_bytes()).map(|p| is_marked(&p.payload)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_event_reaches_every_kind_of_sink_marked_and_disturbs_no_relay() {
    let place = Place::new().await;
    let events = mosquitto::Listener::start(place.mosquitto.port, "astro/main/#").await;
    let old = mosquitto::Listener::start(place.mosquitto.port, "old/#").await;
    let presence = mosquitto::Listener::start(place.mosquitto.port, "astro/relay/#").await;
    let subjects = nats_server::Listener::start(&place.nats, "astro.>").await;
    let channels = redis_server::Listener::start(&place.redis, "*").await;
    let running = Running::start(config(&place.config())).await;
    subscribed(&place.sim, 1).await;
    place.publish(1);
    until("the relay delivers", PATIENCE, async || {
        let (new, old) = (at(&events, "astro/main/channel/tips"), at(&old, "old/channel.tips"));
        (new == [false] && old == [false] && subjects.heard().len() == 1).then_some(())
    })
    .await;

    let output = place.send_test(&[]).await;
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let (payloads, words): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| line.starts_with('{'));
    assert_eq!(words, ACCEPTED.iter().map(|(_, words)| *words).collect::<Vec<_>>());
    let [written] = payloads[..] else { panic!("{said}") };
    assert!(is_marked(written.as_bytes()), "{said}");

    // Behind it, an event by way of the relay: all is still well there.
    place.publish(2);
    until("the relay still delivers", PATIENCE, async || {
        let (new, old) = (at(&events, "astro/main/channel/tips"), at(&old, "old/channel.tips"));
        (new.len() == 3 && old.len() == 3 && subjects.heard().len() == 3).then_some(())
    })
    .await;
    until("the others too", PATIENCE, async || {
        (channels.heard().len() == 3 && place.receiver.received().len() == 3).then_some(())
    })
    .await;
    arrived(&place, &events, &old, &subjects, &channels).await;
    let said: Vec<_> = presence.heard().iter().map(|publish| publish.payload.clone()).collect();
    assert_eq!(said, ["online", "online"], "nobody was thrown off the broker");
    running.stop().await;
    place.sim.stop().await;
}

/// The test event came second, everywhere, and with its mark.
async fn arrived(
    place: &Place,
    events: &mosquitto::Listener,
    old: &mosquitto::Listener,
    subjects: &nats_server::Listener,
    channels: &redis_server::Listener,
) {
    let second = [false, true, false];
    assert_eq!(at(events, "astro/main/channel/tips"), second);
    assert_eq!(at(old, "old/channel.tips"), second);
    let properties = events.heard()[1].properties.clone().unwrap().user_properties;
    assert!(properties.contains(&("origin".into(), "test".into())), "{properties:?}");

    let heard = subjects.heard();
    assert_eq!(heard.iter().map(|m| is_marked(&m.payload)).collect::<Vec<_>>(), second);
    assert_eq!(heard[1].subject.as_str(), "astro.main.channel.tips");
    assert_eq!(heard[1].headers.as_ref().unwrap().get("Astro-Origin").unwrap().as_str(), "test");

    let kept = place.nats.streams().await.get_stream("KEPT").await.unwrap();
    let message = kept.get_raw_message(2).await.unwrap();
    assert_eq!(message.subject.as_str(), "kept.channel.tips");
    assert!(is_marked(&message.payload));
    assert_eq!(message.headers.get("Astro-Origin").unwrap().as_str(), "test");

    let heard = channels.heard();
    assert_eq!(heard.iter().map(|(_, payload)| is_marked(payload)).collect::<Vec<_>>(), second);
    assert_eq!(heard[1].0, "astro:main:channel.tips");

    let mut connection = place.redis.connection().await;
    let range = redis::cmd("XRANGE").arg(&["astro:events", "-", "+"]).to_owned();
    let entries = until("the stream has all", PATIENCE, async || {
        let entries: Vec<(String, HashMap<String, Vec<u8>>)> =
            range.query_async(&mut connection).await.unwrap();
        (entries.len() == 3).then_some(entries)
    })
    .await;
    assert!(is_marked(&entries[1].1["payload"]));
    assert_eq!(entries[1].1["origin"], b"test");

    let request = &place.receiver.received()[1];
    assert!(is_marked(&request.body));
    assert_eq!(request.header("astro-origin"), "test");
    assert!(request.header("webhook-id").starts_with("test-"));
}

#[test]
fn every_kind_is_tried() {
    let tried: BTreeSet<&str> =
        ACCEPTED.iter().map(|(_, said)| said.split(['(', ')']).nth(1).unwrap()).collect();
    assert_eq!(tried, KINDS.iter().map(|kind| kind.name).collect());
}

#[tokio::test]
async fn what_fails_is_told_by_name_and_the_others_are_sent() {
    let mut place = Place::new().await;
    place.receiver.kill();
    place.redis.server.kill().await;
    let output = place.send_test(&["--data", r#"{"n":7,"test":false}"#]).await;
    assert_eq!(output.status.code(), Some(70), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for (name, accepted) in ACCEPTED {
        let line = said.lines().find(|line| line.starts_with(&format!("{name} ("))).unwrap();
        if ["hook", "pubsub", "entries"].contains(name) {
            assert!(line.contains("): failed: ") && !line.contains("down:"), "{line}");
        } else {
            assert_eq!(line, *accepted);
        }
    }
    let payload = said.lines().find(|line| line.starts_with('{')).unwrap();
    assert!(is_marked(payload.as_bytes()), "whatever the data says: {payload}");
    let output = place.send_test(&["--data", "7"]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let output = place.send_test(&["--sink", "nowhere"]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let output = place.send_test(&["--sink", "mqtt"]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), ACCEPTED[3].1);
}

/// Home Assistant's entities fire for what `send-test` sends, whatever the channel subscribes to.
#[tokio::test]
async fn each_kind_takes_the_path_of_a_real_one() {
    let place = Place::new().await;
    let entities = mosquitto::Listener::start(place.mosquitto.port, "astro/main/event/#").await;
    let mut config = place.config();
    config["channels"]["main"]["topics"] = json!(["channel.activities", "channel.tips"]);
    config["sinks"] = json!({
        "home": { "type": "mqtt", "url": place.mosquitto.url(), "homeassistant": true },
        "big": { "type": "mqtt", "url": place.mosquitto.url(), "topic": "big",
            "topics": ["channel.activities"], "when": "data.data.amount > 50" },
    });
    let file = place.dir.path().join("kinds.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let send = async |args: &[&str]| {
        let command = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
            .arg("send-test")
            .args(args)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .output();
        let output = within("the command", command).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kinds = ["tip", "follow", "subscription", "raid", "cheer"];
    let mut expected: Vec<String> = Vec::new();
    for kind in kinds {
        let said = send(&[kind]).await;
        let first = expected.len();
        expected.push(format!("astro/main/event/{kind}"));
        // What is paid comes once more among all that is.
        expected.extend(["tip", "cheer"].contains(&kind).then(|| "astro/main/event/paid".into()));
        let entity = format!("astro/main/channel/activities, astro/main/event/{kind}");
        assert!(said.contains(&format!("home (mqtt): accepted at {entity}")), "{said}");
        // A tip fires once, though it comes on two topics.
        let heard = entities.wait_for(expected.len()).await;
        let topics: Vec<_> = heard.iter().map(|one| String::from_utf8_lossy(&one.topic)).collect();
        assert_eq!(topics, expected);
        let event: Value = serde_json::from_slice(&heard[first].payload).unwrap();
        assert_eq!(event["test"], true, "{event}");
        let big = if kind == "cheer" { "accepted at big" } else { "skipped: the condition" };
        assert!(said.contains(&format!("big (mqtt): {big}")), "{kind}: {said}");
    }
    assert!(send(&["tip", "--amount", "99"]).await.contains("big (mqtt): accepted"));
    // A condition cannot be tried with what the channel would never bring.
    config["channels"]["main"]["topics"] = json!(["channel.tips"]);
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let said = send(&["raid"]).await;
    assert!(said.contains("does not subscribe to channel.activities"), "{said}");
}
