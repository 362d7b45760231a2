//! Home Assistant's side of an MQTT sink, against mosquitto: what is announced, when it is announced
//! again, what is cleared, and what happens as events. The real Home Assistant is asked by
//! `tests/home_assistant.py`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use astro_sim::{Options, Sim, Token};
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
    "channel.activities", "channel.tips", "channel.session.update", "channel.session.reset",
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
async fn every_entity_points_at_topics_of_the_state() {
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
async fn everything_is_announced_again_at_the_birth_message() {
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
async fn entities_that_are_no_longer_configured_are_cleared() {
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
    // An element that a reset takes away has no value any more, and keeps its entity.
    let followers = Listener::start(broker.port, "astro/main/session/follower-session").await;
    followers.wait_for(1).await;
    sim.publish("channel.session.reset", ROOM, json!({"tip-goal": {"amount": 1}}));
    let heard = followers.wait_for(2).await;
    assert!(heard.last().unwrap().payload.is_empty(), "its value is cleared");
    first.stop().await;
    let second = relay(&sim, dir.path(), &broker, "homeassistant = true").await;
    let known = standing(&broker, "what can no longer be ordered is cleared", |known| {
        !has(known, number) && has(known, "sensor/astro-relay-home/main__tip-goal")
    })
    .await;
    assert!(has(&known, FOLLOWERS), "{:?}", known.keys());
    second.stop().await;
    let third = relay(&sim, dir.path(), &broker, "homeassistant = false").await;
    let left = standing(&broker, "all of it is taken back", |known| known.len() <= 1).await;
    assert_eq!(left.keys().collect::<Vec<_>>(), [theirs]);
    third.stop().await;
}

#[tokio::test]
async fn an_event_is_published_once_and_not_retained() {
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
    let heard = listener.wait_for(3).await;
    let told: Vec<(String, Value)> = heard
        .iter()
        .map(|heard| {
            let topic = String::from_utf8(heard.topic.to_vec()).unwrap();
            (topic, serde_json::from_slice(&heard.payload).unwrap())
        })
        .collect();
    let topics: Vec<&str> = told.iter().map(|(topic, _)| topic.as_str()).collect();
    let expected = ["astro/main/event/tip", "astro/main/event/paid", "astro/main/event/follow"];
    assert_eq!(topics, expected, "the tip is told on two topics, and happened once");
    let (tip, paid, follow) = (&told[0].1, &told[1].1, &told[2].1);
    assert_eq!((&paid["activity"], &paid["amount"]), (&json!("tip"), &json!(5)));
    assert_eq!((&paid["name"], &paid["id"]), (&tip["name"], &tip["id"]));
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

fn by_id(known: &BTreeMap<String, Value>) -> BTreeMap<String, Vec<String>> {
    let mut ids: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (topic, config) in known {
        ids.entry(config["unique_id"].as_str().unwrap().to_owned())
            .or_default()
            .push(topic.clone());
    }
    ids
}

async fn named(sim: &Sim, dir: &Path, broker: &Mosquitto, name: &str, more: &str) -> Running {
    let sink = format!("[sinks.{name}]\ntype = \"mqtt\"\nurl = {:?}\n{more}\n", broker.url());
    Running::start(configure(sim, dir, TOPICS, &sink)).await
}

#[tokio::test]
async fn a_renamed_sink_takes_its_entities_with_it() {
    for version in ["5", "3.1.1"] {
        let (broker, sim) =
            (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
        let dir = tempfile::tempdir().unwrap();
        let more = format!("homeassistant = true\nversion = {version:?}");
        let first = named(&sim, dir.path(), &broker, "mqtt", &more).await;
        let before = standing(&broker, "it is announced", |known| {
            has(known, "sensor/astro-relay-mqtt/main__follower-session")
        })
        .await;
        first.stop().await;
        let second = named(&sim, dir.path(), &broker, "home", &more).await;
        let old = |known: &BTreeMap<String, Value>| {
            known.keys().filter(|topic| topic.contains("/astro-relay-mqtt/")).count()
        };
        // More may have been announced since `before` was looked at, but nothing less.
        let before = by_id(&before);
        let after = standing(&broker, "it has moved", |known| {
            let ids = by_id(known);
            old(known) == 0 && before.keys().all(|id| ids.contains_key(id))
        })
        .await;
        let after = by_id(&after);
        assert!(after.values().all(|topics| topics.len() == 1), "{after:?}");
        second.stop().await;
        // Under another name again, and with a new journal: it takes all of it back.
        let dir = tempfile::tempdir().unwrap();
        let more = format!("homeassistant = false\nversion = {version:?}");
        let third = named(&sim, dir.path(), &broker, "loft", &more).await;
        standing(&broker, "all of it is taken back", BTreeMap::is_empty).await;
        third.stop().await;
    }
}

#[tokio::test]
async fn entities_of_an_earlier_version_are_cleared_before_those_of_today_are_announced() {
    let (broker, sim) = (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::start(broker.port, "homeassistant/#").await;
    let config = |object: &str, topic: &str| {
        json!({"unique_id": format!("astro-relay__{object}"), "state_topic": topic,
               "origin": {"name": "astro-relay"}})
    };
    // Under the name of today, and under an earlier one.
    let topics = ["home", "mqtt"].map(|name| {
        format!("homeassistant/sensor/astro-relay-{name}/main__follower-session/config")
    });
    for topic in &topics {
        let config = config("main__follower-session", "astro/main/session/follower-session");
        say(&listener, topic, config.to_string().as_bytes(), true).await;
    }
    let theirs = "homeassistant/sensor/astro-relay-mqtt-of-others/main__x/config";
    let config = config("main__x", "theirs/main/session/x");
    say(&listener, theirs, config.to_string().as_bytes(), true).await;
    let relay = relay(&sim, dir.path(), &broker, "homeassistant = true").await;
    let id = format!("astro-relay-{ROOM}__main__follower-session");
    let known = standing(&broker, "those of today", |known| {
        known.get(&topics[0]).is_some_and(|config| config["unique_id"] == *id)
            && !known.contains_key(&topics[1])
    })
    .await;
    assert!(known.contains_key(theirs), "somebody else's stay");
    let came: Vec<bool> = until("all of it was heard", SOON, async || {
        let heard = listener.heard();
        let of_topic = heard.iter().filter(|heard| heard.topic == topics[0]);
        let came: Vec<bool> = of_topic.map(|heard| heard.payload.is_empty()).collect();
        (came.len() >= 3).then_some(came)
    })
    .await;
    assert_eq!(came[..3], [false, true, false], "the old one, cleared, the new one");
    relay.stop().await;
}

/// Two streamers whose channels have the label of every first configuration.
#[tokio::test]
async fn two_relays_with_one_label_have_entities_of_their_own() {
    const OTHER: &str = "0f0e0d0c0b0a090807060999";
    let broker = Mosquitto::start(mosquitto::Options::default()).await;
    let mut relays = Vec::new();
    let mut dirs = Vec::new();
    for (name, room) in [("ann", ROOM), ("bob", OTHER)] {
        let options = Options { tokens: vec![Token::owner(TOKEN, room)], ..Options::default() };
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sink = format!(
            "[sinks.{name}]\ntype = \"mqtt\"\nurl = {:?}\nhomeassistant = true\n\
             state_topic = \"{name}/{{{{ channel }}}}\"\n",
            broker.url()
        );
        let mut config = configure(&sim, dir.path(), TOPICS, &sink);
        config.channels.get_mut("main").unwrap().room = Some(room.to_owned());
        let sink = config.sinks.get_mut(name).unwrap();
        sink.feeds.get_mut("main").unwrap().room = Some(room.to_owned());
        relays.push((Running::start(config).await, sim));
        dirs.push(dir);
    }
    let has_both = |known: &BTreeMap<String, Value>| {
        ["ann", "bob"]
            .iter()
            .all(|name| has(known, &format!("sensor/astro-relay-{name}/main__follower-session")))
    };
    let known = standing(&broker, "both announce", has_both).await;
    let ids = by_id(&known);
    assert!(ids.values().all(|topics| topics.len() == 1), "{ids:?}");
    let devices: BTreeSet<String> =
        known.values().map(|config| config["device"]["identifiers"][0].to_string()).collect();
    assert_eq!(devices.len(), 4, "{devices:?}");
    for (relay, _) in relays {
        relay.stop().await;
    }
}

#[tokio::test]
async fn an_overwritten_or_cleared_configuration_is_announced_again() {
    for version in ["5", "3.1.1"] {
        let (broker, sim) =
            (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
        let dir = tempfile::tempdir().unwrap();
        let more = format!("homeassistant = true\nversion = {version:?}");
        let relay = relay(&sim, dir.path(), &broker, &more).await;
        let known = standing(&broker, "it is announced", |known| has(known, FOLLOWERS)).await;
        let topic = format!("homeassistant/{FOLLOWERS}/config");
        let listener = Listener::start(broker.port, &topic).await;
        listener.wait_for(1).await;
        for (round, payload) in [(1, ""), (2, "{\"name\":\"mine\"}")] {
            say(&listener, &topic, payload.as_bytes(), true).await;
            let heard = listener.wait_for(1 + 2 * round).await;
            let last: Value = serde_json::from_slice(&heard.last().unwrap().payload).unwrap();
            assert_eq!(last, known[&topic], "version {version}");
        }
        relay.stop().await;
    }
}

/// A broker without persistence forgets what it keeps when it is restarted.
#[tokio::test]
async fn a_broker_that_lost_everything_gets_all_entities_again() {
    let (mut broker, sim) =
        (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    let more = "homeassistant = true\nbackoff_max = \"200ms\"";
    let relay = relay(&sim, dir.path(), &broker, more).await;
    let known = standing(&broker, "it is announced", |known| has(known, FOLLOWERS)).await;
    broker.server.restart().await;
    // More may have been announced after the look at what was known.
    let all = |again: &BTreeMap<String, Value>| {
        known.iter().all(|(topic, config)| again.get(topic) == Some(config))
    };
    standing(&broker, "all of it again", all).await;
    relay.stop().await;
}

/// A kind of payment that nobody knows yet has its state, its entities and its events under its own word.
#[tokio::test]
async fn a_payment_of_a_new_kind_is_shown_under_its_own_name() {
    let (broker, sim) = (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    let events = Listener::start(broker.port, "astro/main/event/#").await;
    let state = Listener::start(broker.port, "astro/main/paid/#").await;
    let relay = relay(&sim, dir.path(), &broker, "homeassistant = true").await;
    relay.wait_subscribed().await;
    let data = json!({"username": "ann", "displayName": "Ann", "amount": 20, "message": "hi"});
    sim.activity(ROOM, json!({"type": "megaKicks", "provider": "kick", "data": data}));
    let told: Vec<(String, Value)> = events
        .wait_for(2)
        .await
        .iter()
        .map(|heard| {
            let topic = String::from_utf8(heard.topic.to_vec()).unwrap();
            (topic, serde_json::from_slice(&heard.payload).unwrap())
        })
        .collect();
    for ((topic, event), (expected, event_type)) in told
        .iter()
        .zip([("astro/main/event/megaKicks", "megaKicks"), ("astro/main/event/paid", "other")])
    {
        assert_eq!((&**topic, &event["event_type"]), (expected, &json!(event_type)));
        assert_eq!((&event["name"], &event["amount"]), (&json!("Ann"), &json!(20)));
    }
    assert_eq!(
        (&told[1].1["activity"], &told[1].1["unit"]),
        (&json!("megaKicks"), &json!("mega kicks"))
    );
    let entities = [
        "event/astro-relay-home/main__event_2fmega_4bicks",
        "sensor/astro-relay-home/main__paid_2fmega_4bicks",
    ];
    let known =
        standing(&broker, "its entities", |known| entities.iter().all(|entity| has(known, entity)))
            .await;
    let entity = known.iter().find(|(topic, _)| topic.contains(entities[0])).unwrap().1;
    assert_eq!(entity["state_topic"], "astro/main/event/megaKicks");
    assert_eq!(entity["event_types"], json!(["megaKicks"]));
    let kept = state.wait_for(1).await;
    assert_eq!(&*kept[0].topic, b"astro/main/paid/megaKicks");
    let kept: Value = serde_json::from_slice(&kept[0].payload).unwrap();
    assert_eq!((&kept["name"], &kept["amount"]), (&json!("Ann"), &json!(20)));
    relay.stop().await;
}

#[tokio::test]
async fn a_mock_is_a_test_for_home_assistant() {
    let (broker, sim) = (Mosquitto::start(mosquitto::Options::default()).await, simulated().await);
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::start(broker.port, "astro/main/event/#").await;
    let relay = relay(&sim, dir.path(), &broker, "homeassistant = true").await;
    relay.wait_subscribed().await;
    let tip = json!({"username": "ann", "amount": "500.00", "currency": "EUR"});
    for more in [json!({}), json!({"isMock": true, "activityGroup": "g", "flagged": true})] {
        let mut activity = json!({"type": "tip", "provider": "twitch", "data": tip});
        activity.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        sim.activity(ROOM, activity);
    }
    let heard = listener.wait_for(4).await;
    let told: Vec<Value> =
        heard.iter().map(|heard| serde_json::from_slice(&heard.payload).unwrap()).collect();
    assert_eq!((&told[0]["amount"], told[0].get("test")), (&json!(500.0), None));
    assert_eq!((&told[1]["activity"], told[1].get("test")), (&json!("tip"), None));
    for mock in &told[2..] {
        assert_eq!((&mock["test"], &mock["flagged"]), (&json!(true), &json!(true)));
        assert_eq!(mock["group"], "g");
    }
    relay.stop().await;
}
