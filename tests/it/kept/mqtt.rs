//! Retained topics of mosquitto.

use serde_json::{Value, json};

use super::{
    Kept, SOON, TOPICS, has_facts, is_whole, on_the_server, session, set, simulated, tell_facts,
};
use crate::support::{
    carry::within,
    daemon,
    mosquitto::{Listener, Mosquitto, Options},
    relay::{ROOM, Running, TOKEN, configure},
    wait::until,
};

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
async fn who_comes_late_reads_the_whole_state_and_what_vanished_is_cleared() {
    for version in ["5", "3.1.1"] {
        let broker = Mosquitto::start(Options::default()).await;
        let sim = simulated().await;
        let dir = tempfile::tempdir().unwrap();
        set(&sim, "odd-one", json!({"amount": 7}));
        let more = sink(&broker, &format!("version = {version:?}\ntopics = [\"channel.tips\"]"));
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
        assert_eq!(kept["relay/status"], json!({"status": "offline", "reason": "stopped"}));
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
async fn what_a_sink_is_not_to_know_is_not_kept_for_it() {
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
async fn a_relay_that_is_killed_is_offline_by_its_will_and_online_again_when_it_is_back() {
    let broker = Mosquitto::start(Options::default()).await;
    let sim = simulated().await;
    let mut relay = daemon::Relay::new(
        &sim.url(),
        &sim.api_url(),
        "channel.session.update",
        ROOM,
        &sink(&broker, ""),
    );
    let config = std::fs::read_to_string(relay.config()).unwrap();
    std::fs::write(relay.config(), config.replace("secret-canary", TOKEN)).unwrap();
    let listener = Listener::start(broker.port, "astro/#").await;
    relay.start();
    wait(&listener, "online", |kept| is_whole(kept, &sim)).await;
    relay.kill().await;
    let will = json!({"status": "offline", "reason": "connection lost"});
    let kept = wait(&listener, "offline", |kept| kept["relay/status"] == will).await;
    assert_eq!(session(&kept), on_the_server(&sim), "the session stays");
    set(&sim, "tip-goal", json!({"amount": 99}));
    relay.start();
    wait(&listener, "online again", |kept| is_whole(kept, &sim)).await;
    late(&broker, "online again", |kept| is_whole(kept, &sim)).await;
    within("stop", relay.stop()).await;
}
