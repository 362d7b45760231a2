//! Retained topics of mosquitto.

use std::collections::BTreeSet;

use astro_relay::{
    channel::store::{Section, StateKey},
    sink::Part,
};
use serde_json::{Value, json};

use super::{
    Kept, SOON, TOPICS, gone, has_facts, is_stopped, is_whole, on_the_server, session, set,
    simulated, tell_facts,
};
use crate::support::{
    carry::{PATIENCE, within},
    daemon,
    mosquitto::{Listener, Mosquitto, Options},
    relay::{ROOM, Running, TOKEN, configure},
    scripted_broker::{Gate, Play, ScriptedBroker, silent},
    sinks::open_publisher,
    wait::until,
};
use rumqttc_v5::{PubAckReason, PublishOptions, QoS};

/// What a client knows that came with `listener`.
fn known(listener: &Listener) -> Kept {
    let mut known = Kept::new();
    for publish in listener.heard() {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let path = topic.strip_prefix("astro/").unwrap().to_owned();
        if publish.payload.is_empty() {
            known.remove(&path);
        } else {
            known.insert(path, value(&publish.payload));
        }
    }
    known
}

/// A status is a plain word, all else is JSON.
fn value(payload: &[u8]) -> Value {
    serde_json::from_slice(payload)
        .unwrap_or_else(|_| String::from_utf8(payload.to_vec()).unwrap().into())
}

async fn wait(listener: &Listener, what: &str, is: impl Fn(&Kept) -> bool) -> Kept {
    until(what, SOON, async || Some(known(listener)).filter(|known| is(known))).await
}

/// What somebody knows who comes now and stays until he knows enough.
async fn late(broker: &Mosquitto, what: &str, is: impl Fn(&Kept) -> bool) -> Kept {
    let listener = Listener::start(broker.port, "astro/#").await;
    wait(&listener, what, is).await
}

fn sink(broker: &Mosquitto, more: &str) -> String {
    format!("[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\nstate = true\n{more}\n", broker.url())
}

#[tokio::test]
async fn a_late_subscriber_reads_the_whole_state_and_vanished_parts_are_cleared() {
    for (version, qos) in [("5", 1), ("3.1.1", 0)] {
        let broker = Mosquitto::start(Options::default()).await;
        let sim = simulated().await;
        let dir = tempfile::tempdir().unwrap();
        set(&sim, "odd-one", json!({"amount": 7}));
        let more = sink(
            &broker,
            &format!("version = {version:?}\nqos = {qos}\ntopics = [\"channel.tips\"]"),
        );
        let config = configure(&sim, dir.path(), TOPICS, &more);
        let relay = Running::start(config.clone()).await;
        relay.wait_subscribed().await;
        tell_facts(&sim);
        let kept = late(&broker, "all of it", |kept| is_whole(kept, &sim) && has_facts(kept)).await;
        assert_eq!(kept["relay/diagnostics"]["version"], env!("CARGO_PKG_VERSION"));
        assert!(kept.contains_key("main/session/odd-one"));

        // A reset has no odd one; who was there all the time hears that it is gone.
        let listener = Listener::start(broker.port, "astro/#").await;
        wait(&listener, "what is retained", |kept| is_whole(kept, &sim)).await;
        sim.reset_session(ROOM);
        wait(&listener, "the new session", |kept| is_whole(kept, &sim)).await;
        late(&broker, "the new session", |kept| is_whole(kept, &sim)).await;

        // At an orderly end it says goodbye, and what vanishes meanwhile is cleared afterwards.
        set(&sim, "odd-two", json!([1, 2]));
        wait(&listener, "one more", |kept| kept.contains_key("main/session/odd-two")).await;
        relay.stop().await;
        let kept = late(&broker, "the farewell", |kept| {
            kept.get("relay/status").is_some_and(|status| status["status"] == "offline")
                && kept.contains_key("main/status")
        })
        .await;
        assert!(is_stopped(&kept["relay/status"]), "{kept:?}");
        assert_eq!(kept["main/status"], "offline");
        sim.reset_session(ROOM);
        let relay = Running::start(config).await;
        let kept = late(&broker, "what is left", |kept| is_whole(kept, &sim)).await;
        assert!(has_facts(&kept), "only heard, and still known: {kept:?}");
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_channel_is_online_as_long_as_the_gateway_is_there() {
    let broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &sink(&broker, ""))).await;
    let listener = Listener::start(broker.port, "astro/#").await;
    wait(&listener, "online", |kept| is_whole(kept, &sim)).await;
    sim.stop().await;
    let kept = wait(&listener, "offline", |kept| {
        kept["main/status"] == "offline" && kept["relay/status"]["status"] == "offline"
    })
    .await;
    let reason = kept["relay/status"]["reason"].as_str().unwrap();
    assert!(reason.contains("to Astro"), "{reason}");
    // The same as events, in order.
    let told = relay.said("relay.status").await;
    let words: Vec<_> = told.iter().map(|told| told["status"].as_str().unwrap()).collect();
    assert_eq!(words, ["offline", "online", "offline"], "{told:?}");
    assert!(told[2]["reason"].as_str().unwrap().contains("to Astro"), "{told:?}");
    relay.stop().await;
}

#[tokio::test]
async fn a_broker_that_lost_everything_gets_the_whole_state_again() {
    let mut broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let more = sink(&broker, "backoff_max = \"200ms\"");
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
    late(&broker, "all of it", |kept| is_whole(kept, &sim)).await;
    broker.server.kill().await;
    set(&sim, "tip-goal", json!({"amount": 99}));
    broker.server.restart().await;
    late(&broker, "all of it again", |kept| is_whole(kept, &sim)).await;
    relay.stop().await;
}

#[tokio::test]
async fn state_outside_of_channels_and_redact_is_not_published() {
    let broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let tip = json!({"name": "Ann", "email": "ann@example.org", "message": "hi"});
    set(&sim, "tip-latest", tip);
    let more = "redact = [\"data.donation.user.email\", \"data.data.message\"]\n\
                state_topic = \"astro/here/{{ channel }}\"\nchannels = [\"main\"]";
    let other = "[channels.other]\nroom = \"0f0e0d0c0b0a090807060599\"\ntoken = \"tok-other\"\n\
                 topics = [\"channel.stream.status\"]\n";
    let more = format!("{other}{}", sink(&broker, more));
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
    let kept = late(&broker, "the tip, and the other one's absence", |kept| {
        kept.get("here/main/status") == Some(&json!("online"))
            && kept.contains_key("here/main/session/tip-latest")
    })
    .await;
    assert_eq!(kept["here/main/session/tip-latest"], json!({"name": "Ann"}));
    let others: Vec<_> = kept.keys().filter(|path| path.contains("other")).collect();
    assert!(others.is_empty(), "{others:?}");
    relay.stop().await;
}

#[tokio::test]
async fn a_killed_relay_is_offline_by_its_last_will_and_online_again_after_a_restart() {
    let broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let mut relay = daemon::Relay::new(
        &sim.url(),
        &sim.api_url(),
        "channel.session.update",
        ROOM,
        &sink(&broker, ""),
    );
    relay.set_token(TOKEN);
    let listener = Listener::start(broker.port, "astro/#").await;
    relay.start();
    wait(&listener, "online", |kept| is_whole(kept, &sim)).await;
    relay.kill().await;
    let will = gone("connection lost");
    let kept = wait(&listener, "offline", |kept| kept["relay/status"] == will).await;
    assert_eq!(session(&kept), on_the_server(&sim), "the session stays");
    set(&sim, "tip-goal", json!({"amount": 99}));
    relay.start();
    wait(&listener, "online again", |kept| is_whole(kept, &sim)).await;
    late(&broker, "online again", |kept| is_whole(kept, &sim)).await;
    within("stop", relay.stop()).await;
}

async fn write(client: &Listener, topic: &str, payload: &str) {
    let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
    client.publish(topic, payload.as_bytes(), options).await;
}

#[tokio::test]
async fn an_overwritten_or_cleared_topic_is_corrected() {
    for version in ["5", "3.1.1"] {
        let broker = Mosquitto::start(Options::default()).await;
        let sim = simulated().await;
        let dir = tempfile::tempdir().unwrap();
        let more = sink(&broker, &format!("version = {version:?}"));
        let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
        relay.wait_subscribed().await;
        tell_facts(&sim);
        let listener = Listener::start(broker.port, "astro/#").await;
        let kept = wait(&listener, "all", |kept| is_whole(kept, &sim) && has_facts(kept)).await;
        for path in
            ["main/session/tip-latest", "main/stream", "main/counters/deaths", "main/status"]
        {
            for wrong in ["\"mine\"", ""] {
                let count = |listener: &Listener| {
                    let topic = format!("astro/{path}");
                    listener.heard().iter().filter(|heard| heard.topic == topic).count()
                };
                let before = count(&listener);
                write(&listener, &format!("astro/{path}"), wrong).await;
                // Ours comes behind theirs.
                until("it is put right", SOON, async || {
                    let right = known(&listener).get(path) == kept.get(path);
                    (right && count(&listener) >= before + 2).then_some(())
                })
                .await;
            }
        }
        late(&broker, "who comes late", |late| is_whole(late, &sim) && has_facts(late)).await;
        // What changes afterwards changes there.
        set(&sim, "tip-goal", json!({"amount": 99}));
        wait(&listener, "the change", |kept| is_whole(kept, &sim)).await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn an_overwritten_availability_topic_is_corrected() {
    let broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let more = format!("[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\n", broker.url());
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
    let listener = Listener::start(broker.port, "astro/relay/home/availability").await;
    wait(&listener, "online", |kept| kept.get("relay/home/availability") == Some(&json!("online")))
        .await;
    let before = listener.count();
    write(&listener, "astro/relay/home/availability", "offline").await;
    until("online again", SOON, async || {
        let last = listener.heard().last().map(|heard| heard.payload.clone());
        (listener.count() >= before + 2 && last.as_deref() == Some(b"online")).then_some(())
    })
    .await;
    relay.stop().await;
}

/// It is written over when it is accepted, and what is published with it is not yet.
#[tokio::test]
async fn a_topic_that_is_overwritten_while_others_are_published_is_corrected() {
    // Another relay that is late writes what stood there before.
    for theirs in ["\"theirs\"", "{\"n\":1}"] {
        let script = move |number: u64, before: usize| match (number, before) {
            (3, 0) => Play::Overwritten(theirs),
            _ => Play::Answer(PubAckReason::Success),
        };
        let broker = ScriptedBroker::start(silent(), script).await;
        let mut publisher = open_publisher("mqtt", json!({ "url": broker.url() })).unwrap();
        publisher.connect().await.unwrap();
        let part = |name: &str, number: u64| {
            let path =
                StateKey { channel: "main".into(), section: Section::Session, name: name.into() };
            Part { path, payload: Some(json!({ "n": number }).to_string().into()) }
        };
        publisher.publish(&[part("a", 1), part("b", 2)]).await.unwrap();
        publisher.publish(&[part("a", 3), part("b", 4)]).await.unwrap();
        let corrected =
            until("it is corrected", SOON, async || (broker.came().len() > 4).then_some(()));
        tokio::select! {
            failure = publisher.idle() => panic!("{failure:?}"),
            () = corrected => {}
        }
        assert_eq!(broker.came(), [1, 2, 3, 4, 3], "{theirs}");
    }
}

#[tokio::test]
async fn a_correction_that_the_broker_does_not_take_is_made_again() {
    let script = |_, before: usize| match before {
        0 => Play::Overwritten("\"theirs\""),
        1 | 2 => Play::Answer(PubAckReason::QuotaExceeded),
        _ => Play::Answer(PubAckReason::Success),
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    let mut publisher = open_publisher("mqtt", json!({ "url": broker.url() })).unwrap();
    publisher.connect().await.unwrap();
    let path = StateKey { channel: "main".into(), section: Section::Session, name: "a".into() };
    let part = Part { path, payload: Some(json!({ "n": 1 }).to_string().into()) };
    publisher.publish(&[part]).await.unwrap();
    let taken = until("it is taken", PATIENCE, async || (broker.came().len() > 3).then_some(()));
    tokio::select! {
        failure = publisher.idle() => panic!("{failure:?}"),
        () = taken => {}
    }
}

#[tokio::test]
async fn discovery_that_the_broker_does_not_take_is_published_again() {
    // The entities of the relay itself.
    const ENTITIES: usize = 6;
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, "homeassistant/#").await;
    let reason = PubAckReason::ImplementationSpecificError;
    let gate = Gate::start(broker.port, "homeassistant/", reason).await;
    let settings = json!({"url": gate.url(), "homeassistant": true});
    let mut publisher = open_publisher("mqtt", settings).unwrap();
    publisher.connect().await.unwrap();
    let announced = async {
        let all = async || (gate.refused() >= ENTITIES).then_some(());
        until("each is refused", PATIENCE, all).await;
        gate.open();
        until("each is taken", PATIENCE, async || {
            let topics: BTreeSet<_> = listener.heard().into_iter().map(|one| one.topic).collect();
            (topics.len() == ENTITIES).then_some(())
        })
        .await;
    };
    tokio::select! {
        failure = publisher.idle() => panic!("{failure:?}"),
        () = announced => {}
    }
}

#[tokio::test]
async fn discovery_that_the_broker_refuses_degrades_the_relay() {
    let broker = Mosquitto::start(Options::default()).await;
    let gate = Gate::start(broker.port, "homeassistant/", PubAckReason::NotAuthorized).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let more =
        format!("[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\nhomeassistant = true\n", gate.url());
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
    let listener = Listener::start(broker.port, "astro/#").await;
    let kept = wait(&listener, "it is the reason", |kept| {
        let reason = kept.get("relay/status").and_then(|status| status["reason"].as_str());
        reason.is_some_and(|reason| {
            reason.contains("state of sink home: homeassistant/") && reason.contains("is refused: ")
        })
    })
    .await;
    assert_eq!(kept["relay/status"]["status"], "degraded");
    relay.stop().await;
}

/// Another relay that means the same topic corrects as we do.
#[tokio::test]
async fn corrections_of_a_contested_topic_become_rare_and_are_reported() {
    let broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &sink(&broker, ""))).await;
    let listener = Listener::start(broker.port, "astro/#").await;
    wait(&listener, "all", |kept| is_whole(kept, &sim)).await;
    let (path, topic) = ("main/session/tip-goal", "astro/main/session/tip-goal");
    let ours = known(&listener)[path].clone();
    let mut corrected = 0;
    let told = || {
        relay.status.sinks.read(|now| {
            let remarks = &now.sinks["home"].state_remarks;
            remarks.iter().any(|remark| remark.contains(topic))
        })
    };
    let count = || listener.heard().iter().filter(|heard| heard.topic == topic).count();
    // The other one writes whenever ours stands there.
    until("it is told", SOON, async || {
        if known(&listener).get(path) == Some(&ours) {
            corrected += 1;
            let before = count();
            write(&listener, topic, "\"mine\"").await;
            until("theirs is heard", SOON, async || (count() > before).then_some(())).await;
        }
        told().then_some(())
    })
    .await;
    assert!(corrected <= 7, "{corrected}");
    relay.stop().await;
}

/// The broker takes no events: what belongs to the state goes on, and the connection stays.
#[tokio::test]
async fn while_events_are_refused_the_state_goes_on() {
    let broker = Mosquitto::start(Options::default()).await;
    let gate = Gate::start(broker.port, "astro/main/channel/", PubAckReason::QuotaExceeded).await;
    let sim = simulated().await;
    let dir = tempfile::tempdir().unwrap();
    let more = format!(
        "[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\nstate = true\nkeep_alive = \"3s\"\n\
         backoff_max = \"30s\"\n",
        gate.url()
    );
    let relay = Running::start(configure(&sim, dir.path(), TOPICS, &more)).await;
    let listener = Listener::start(broker.port, "astro/#").await;
    wait(&listener, "all", |kept| session(kept) == on_the_server(&sim)).await;
    for n in 0..8 {
        // Each of them is an event too, which waits from now on.
        set(&sim, "tip-goal", json!({"amount": n}));
        wait(&listener, "the change", |kept| session(kept) == on_the_server(&sim)).await;
        let refused = gate.refused();
        // Soon the waits are longer than a broker waits for a sign of life.
        until("another attempt", SOON, async || (gate.refused() > refused).then_some(())).await;
    }
    let will = gone("connection lost");
    let wills = listener.heard().iter().filter(|heard| value(&heard.payload) == will).count();
    assert_eq!(wills, 0, "the connection was kept alive");
    gate.open();
    until("the events arrive", SOON, async || {
        let heard = listener.heard();
        let events = heard.iter().filter(|heard| heard.topic.starts_with(b"astro/main/channel/"));
        (events.count() >= 5).then_some(())
    })
    .await;
    relay.stop().await;
}
