//! Home Assistant's side of an MQTT sink, against mosquitto: what is announced, when it is announced
//! again, what is cleared, and what happens as events. The real Home Assistant is asked by
//! `tests/home_assistant.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use astro_relay::sim::{Options, Sim, Token};
use rumqttc_v5::{PublishOptions, QoS};
use serde_json::{Value, json};

use crate::support::{
    carry::within,
    mosquitto::{self, Listener, Mosquitto},
    relay::{ROOM, Running, TOKEN, configure},
    wait::until,
};

const SOON: Duration = Duration::from_mins(1);

const TOPICS: &[&str] = &[
    "channel.activities",
    "channel.tips",
    "channel.session.update",
    "channel.session.reset",
    "channel.stream.status",
];

/// Entities by discovery topic, as somebody knows them who listened since `listener` was there.
fn entities(listener: &Listener) -> BTreeMap<String, Value> {
    let mut known = BTreeMap::new();
    for publish in listener.heard() {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        if !topic.ends_with("/config") {
            continue;
        }
        if publish.payload.is_empty() {
            known.remove(&topic);
        } else {
            known.insert(topic, serde_json::from_slice(&publish.payload).unwrap());
        }
    }
    known
}

/// Everything that stands on the broker now: who comes late knows it.
async fn standing(
    broker: &Mosquitto,
    what: &str,
    is: impl Fn(&BTreeMap<String, Value>) -> bool,
) -> BTreeMap<String, Value> {
    until(what, SOON, async || {
        let listener = Listener::start(broker.port, "homeassistant/#").await;
        // What is retained comes behind the confirmation, and before an echo of our own.
        let probe = format!("homeassistant/probe/{}", fastrand::u64(..));
        say(&listener, &probe, b"x", false).await;
        until("the echo comes back", SOON, async || {
            listener.heard().iter().any(|heard| heard.topic == probe).then_some(())
        })
        .await;
        Some(entities(&listener)).filter(|known| is(known))
    })
    .await
}

async fn say(client: &Listener, topic: &str, payload: &[u8], retain: bool) {
    let options = PublishOptions::new(QoS::AtLeastOnce).retain(retain);
    client.publish(topic, payload, options).await;
}

async fn simulated() -> Sim {
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap()
}

async fn relay(sim: &Sim, dir: &Path, broker: &Mosquitto, more: &str) -> Running {
    let sink = format!("[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\n{more}\n", broker.url());
    Running::start(configure(sim, dir, TOPICS, &sink)).await
}

fn has(known: &BTreeMap<String, Value>, entity: &str) -> bool {
    known.contains_key(&format!("homeassistant/{entity}/config"))
}

const FOLLOWERS: &str = "sensor/astro-relay-home/main__follower-session";

#[tokio::test]
async fn every_figure_is_announced_and_its_topics_are_those_of_the_state() {
    for version in ["5", "3.1.1"] {
        let (broker, sim) =
            (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
        let dir = tempfile::tempdir().unwrap();
        let state = Listener::start(broker.port, "astro/#").await;
        let more = format!("homeassistant = true\ncommands = true\nversion = {version:?}");
        let relay = relay(&sim, dir.path(), &broker, &more).await;
        let elements = sim.session(ROOM)["data"].as_object().unwrap().len();
        let known = standing(&broker, "all is announced", |known| {
            has(known, FOLLOWERS) && known.len() > elements
        })
        .await;
        let mut ids = BTreeSet::new();
        for (topic, config) in &known {
            let id = config["unique_id"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{topic}: {id}");
        }
        for entity in [
            "sensor/astro-relay-home/status",
            "binary_sensor/astro-relay-home/main__live",
            "event/astro-relay-home/main__event_2ftip",
            "button/astro-relay-home/main__reset",
            "number/astro-relay-home/main__tip-goal_2fset",
        ] {
            assert!(has(&known, entity), "{entity}: {:?}", known.keys());
        }
        // Where an entity looks, there something stands.
        within("the state", state.wait_for(elements)).await;
        until("everything to look at is there", SOON, async || {
            let there: BTreeSet<_> =
                state.heard().iter().map(|heard| heard.topic.to_vec()).collect();
            let looks = |config: &Value| -> Vec<String> {
                let availability = config["availability"].as_array().cloned().unwrap_or_default();
                let mut topics: Vec<_> =
                    availability.iter().map(|one| one["topic"].clone()).collect();
                topics.push(config["state_topic"].clone());
                topics.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let missing: BTreeSet<String> = known
                .values()
                .flat_map(looks)
                .filter(|topic| !there.contains(topic.as_bytes()))
                // Nothing happened yet, and nobody has said whether the stream is live.
                .filter(|topic| !topic.contains("/event/") && !topic.ends_with("/stream"))
                .collect();
            missing.is_empty().then_some(())
        })
        .await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn all_is_announced_again_when_home_assistant_has_started() {
    let (broker, sim) = (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    let relay = relay(&sim, dir.path(), &broker, "homeassistant = true").await;
    let known = standing(&broker, "it is announced", |known| has(known, FOLLOWERS)).await;
    let listener = Listener::start(broker.port, "homeassistant/+/astro-relay-home/+/config").await;
    listener.wait_for(known.len()).await;
    let fresh = |listener: &Listener| listener.heard().iter().filter(|heard| !heard.retain).count();
    assert_eq!(fresh(&listener), 0, "what stands is retained");
    say(&listener, "homeassistant/status", b"online", true).await;
    until("all of it comes again", SOON, async || (fresh(&listener) >= known.len()).then_some(()))
        .await;
    assert_eq!(entities(&listener), standing(&broker, "it stands", |_| true).await);
    relay.stop().await;
}

#[tokio::test]
async fn what_is_no_longer_configured_is_cleared() {
    let (broker, sim) = (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    // Of an earlier day, of an earlier version, and of somebody else.
    let listener = Listener::start(broker.port, "homeassistant/#").await;
    let (ours, theirs) = (
        "homeassistant/sensor/astro-relay-home/gone__tip-latest/config",
        "homeassistant/sensor/astro-relay-den/gone__tip-latest/config",
    );
    for topic in [ours, theirs] {
        say(&listener, topic, b"{\"name\":\"x\"}", true).await;
    }
    let number = "number/astro-relay-home/main__tip-goal_2fset";
    let first = relay(&sim, dir.path(), &broker, "homeassistant = true\ncommands = true").await;
    standing(&broker, "what was there before is cleared", |known| {
        !known.contains_key(ours) && has(known, number) && has(known, FOLLOWERS)
    })
    .await;
    // An element that vanishes takes its entity with it.
    sim.publish("channel.session.reset", ROOM, json!({"tip-goal": {"amount": 1}}));
    standing(&broker, "an element that is gone is cleared", |known| {
        !has(known, FOLLOWERS) && has(known, number)
    })
    .await;
    first.stop().await;
    let second = relay(&sim, dir.path(), &broker, "homeassistant = true").await;
    standing(&broker, "what can no longer be ordered is cleared", |known| !has(known, number))
        .await;
    second.stop().await;
    let third = relay(&sim, dir.path(), &broker, "homeassistant = false").await;
    let left = standing(&broker, "all of it is taken back", |known| known.len() <= 1).await;
    assert_eq!(left.keys().collect::<Vec<_>>(), [theirs]);
    third.stop().await;
}

#[tokio::test]
async fn what_happens_is_an_event_once_and_is_not_kept() {
    let (broker, sim) = (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::start(broker.port, "astro/main/event/#").await;
    // The sink keeps its events, and what happened is none of them.
    let relay = relay(&sim, dir.path(), &broker, "homeassistant = true\nretain = true").await;
    relay.wait_subscribed().await;
    let donation = json!({"user": {"username": "ann", "email": "a@b.c"}, "amount": 5});
    sim.publish("channel.tips", ROOM, json!({"donation": donation, "approved": "allowed"}));
    let tip = json!({"username": "ann", "displayName": "Ann", "amount": 5, "currency": "EUR",
                     "message": "hi", "email": "a@b.c"});
    sim.activity(ROOM, json!({"type": "tip", "provider": "twitch", "data": tip}));
    let follow = json!({"username": "bob"});
    sim.activity(ROOM, json!({"type": "follow", "provider": "twitch", "data": follow}));
    let heard = listener.wait_for(2).await;
    let told: Vec<(String, Value)> = heard
        .iter()
        .map(|heard| {
            let topic = String::from_utf8(heard.topic.to_vec()).unwrap();
            (topic, serde_json::from_slice(&heard.payload).unwrap())
        })
        .collect();
    assert_eq!(told.len(), 2, "the tip is told on two topics, and happened once: {told:?}");
    assert_eq!((&*told[0].0, &*told[1].0), ("astro/main/event/tip", "astro/main/event/follow"));
    let (tip, follow) = (&told[0].1, &told[1].1);
    for (key, expected) in [
        ("event_type", json!("tip")),
        ("name", json!("Ann")),
        ("amount", json!(5)),
        ("currency", json!("EUR")),
        ("message", json!("hi")),
        ("backfilled", json!(false)),
    ] {
        assert_eq!(tip[key], expected, "{key}");
    }
    assert_eq!(tip.get("email"), None);
    assert!(tip["age"].as_f64().unwrap() < 30.0, "{tip}");
    assert_eq!((&follow["event_type"], &follow["name"]), (&json!("follow"), &json!("bob")));
    // Who comes late gets what is retained of the same sink, and nothing of this.
    let late = Listener::start(broker.port, "astro/main/#").await;
    until("what is kept comes", SOON, async || {
        late.heard().iter().any(|heard| heard.topic.ends_with(b"channel/activities")).then_some(())
    })
    .await;
    assert!(late.heard().iter().all(|heard| !heard.topic.starts_with(b"astro/main/event")));
    relay.stop().await;
}
