//! Commands over MQTT, with mosquitto.

use std::time::Duration;

use astro_sim::{RestFault, Sim, Token};
use rumqttc_v5::{PubAckReason, PublishOptions, PublishProperties, QoS};
use serde_json::{Value, json};

use super::{done, element, fetched_at, id, session_channel, start};
use crate::{
    operator::{PATIENCE, ROOM, Running, channel},
    support::{
        carry::within,
        daemon,
        mosquitto::{Listener, Mosquitto, Options},
        relay::TOKEN,
        scripted_broker::Gate,
        wait::until,
    },
};

const VERSIONS: [&str; 2] = ["5", "3.1.1"];

fn sink(broker: &Mosquitto, more: &str) -> String {
    format!("[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\n{more}\n", broker.url())
}

/// Somebody who gives commands and hears the answers.
struct Commander(Listener);

impl Commander {
    async fn new(broker: &Mosquitto) -> Self {
        Self(Listener::start(broker.port, "astro/+/response").await)
    }

    async fn send(&self, command: &str, payload: &str) {
        self.send_with(command, payload, PublishOptions::new(QoS::AtLeastOnce)).await;
    }

    async fn send_with(&self, command: &str, payload: &str, options: PublishOptions) {
        let topic = format!("astro/main/command/{command}");
        self.0.publish(&topic, payload.as_bytes(), options).await;
    }

    fn answers(&self) -> Vec<Value> {
        self.0
            .heard()
            .iter()
            .map(|answer| serde_json::from_slice(&answer.payload).unwrap())
            .collect()
    }

    /// Gives a command, and waits for the next answer.
    async fn ask(&self, command: &str, payload: &str) -> Value {
        let before = self.answers().len();
        self.send(command, payload).await;
        self.answer(before).await
    }

    async fn answer(&self, place: usize) -> Value {
        until("the answer comes", PATIENCE, async || self.answers().get(place).cloned()).await
    }
}

async fn up(broker: &Mosquitto, more: &str) -> Running {
    let relay = start("", &sink(broker, more)).await;
    relay.takes_commands("home").await;
    relay
}

#[tokio::test]
async fn each_command_is_executed_and_answered() {
    let broker = Mosquitto::start(Options::default()).await;
    for version in VERSIONS {
        let relay = up(&broker, &format!("version = {version:?}\ncommands = true")).await;
        let commander = Commander::new(&broker).await;
        let set = r#"{"element":"tip-goal","value":{"amount":41},"transaction":"s"}"#;
        let mut expected = done("session/set", "s");
        expected["element"] = "tip-goal".into();
        assert_eq!(commander.ask("session/set", set).await, expected);
        assert_eq!(element(&relay.sim, "tip-goal"), json!({"amount": 41}));
        let before = id(&relay.sim);
        let reset = r#"{"transaction":"r"}"#;
        let first = commander.ask("session/reset", reset).await;
        assert_eq!(first, done("session/reset", "r"));
        let made = id(&relay.sim);
        assert_ne!(made, before);
        // A repeat gets the first answer, and is not executed.
        assert_eq!(commander.ask("session/reset", reset).await, first);
        assert_eq!(id(&relay.sim), made);
        let (fetched, asked) = (fetched_at(&relay).await, relay.sim.stats().rest_requests);
        let reload = commander.ask("session/reload", "PRESS").await;
        assert_eq!(reload["ok"], true, "{reload}");
        assert_eq!(relay.sim.stats().rest_requests, asked + 1);
        let refresh = commander.ask("relay/refresh", r#"{"transaction":7}"#).await;
        assert_eq!((&refresh["ok"], &refresh["transaction"]), (&json!(true), &json!(7)));
        assert!(fetched_at(&relay).await > fetched);
    }
}

/// What the button in Home Assistant does: a true event of that kind, at its entity, marked as a test.
#[tokio::test]
async fn a_test_event_reaches_the_entities() {
    let broker = Mosquitto::start(Options::default()).await;
    let relay = up(&broker, "homeassistant = true\ncommands = [\"relay/test\"]").await;
    let commander = Commander::new(&broker).await;
    let entities = Listener::start(broker.port, "astro/main/event/#").await;
    // A tip comes once more, among what was paid.
    for (place, command, kind) in [(0, "relay/test", "tip"), (2, "relay/test/raid", "raid")] {
        let answer = commander.ask(command, "PRESS").await;
        assert_eq!((&answer["ok"], &answer["command"]), (&json!(true), &json!("relay/test")));
        let heard = entities.wait_for(place + 1).await;
        assert_eq!(heard[place].topic, format!("astro/main/event/{kind}"));
        let event: Value = serde_json::from_slice(&heard[place].payload).unwrap();
        assert_eq!((&event["event_type"], &event["test"]), (&json!(kind), &json!(true)));
    }
    assert_eq!(commander.ask("relay/test/party", "PRESS").await["status"], 404);
    assert_eq!(commander.ask("session/reload", "PRESS").await["status"], 403);
    let announced = Listener::start(broker.port, "homeassistant/button/#").await;
    let buttons = announced.wait_for(5).await;
    assert!(buttons.iter().any(|one| {
        let config: Value = serde_json::from_slice(&one.payload).unwrap();
        config["command_topic"] == "astro/main/command/relay/test/tip"
            && config.get("enabled_by_default").is_none()
    }));
    drop(relay);
}

#[tokio::test]
async fn a_number_is_set_as_home_assistant_writes_it() {
    let broker = Mosquitto::start(Options::default()).await;
    let relay = up(&broker, "commands = [\"session/set\"]").await;
    let commander = Commander::new(&broker).await;
    for (payload, expected) in [
        ("12", r#"{"amount":12}"#),
        ("13.0", r#"{"amount":13}"#),
        ("12.5", r#"{"amount":12.5}"#),
        ("0", r#"{"amount":0}"#),
    ] {
        let answer = commander.ask("session/set/tip-goal", payload).await;
        assert_eq!(answer["ok"], true, "{payload}: {answer}");
        assert_eq!(element(&relay.sim, "tip-goal").to_string(), expected, "{payload}");
    }
    let answer = commander.ask("session/set/follower-total", "15.0").await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(element(&relay.sim, "follower-total").to_string(), r#"{"count":15}"#);
    for payload in ["unknown", "12,5", "", "None"] {
        let answer = commander.ask("session/set/tip-goal", payload).await;
        assert_eq!((&answer["ok"], &answer["status"]), (&json!(false), &json!(400)), "{answer}");
    }
    assert_eq!(element(&relay.sim, "tip-goal").to_string(), r#"{"amount":0}"#);
}

#[tokio::test]
async fn the_answer_goes_to_the_response_topic() {
    let broker = Mosquitto::start(Options::default()).await;
    let _relay = up(&broker, "commands = true").await;
    let commander = Commander::new(&broker).await;
    let own = Listener::start(broker.port, "my/answers").await;
    let to = |topic: &str| {
        let properties = PublishProperties {
            response_topic: Some(topic.into()),
            correlation_data: Some(vec![1, 0, 255].into()),
            ..PublishProperties::default()
        };
        PublishOptions::new(QoS::AtLeastOnce).properties(properties)
    };
    commander.send_with("session/reload", r#"{"transaction":"a"}"#, to("my/answers")).await;
    let heard = own.wait_for(1).await;
    let answer: Value = serde_json::from_slice(&heard[0].payload).unwrap();
    assert_eq!(answer, done("session/reload", "a"));
    let properties = heard[0].properties.clone().unwrap();
    assert_eq!(properties.correlation_data.as_deref(), Some(&[1, 0, 255][..]));
    assert!(!heard[0].retain);
    // Nobody lets the relay give orders in its own name.
    let orders = Listener::start(broker.port, "astro/other/command/#").await;
    let elsewhere = to("astro/other/command/session/reset");
    commander.send_with("session/reload", r#"{"transaction":"b"}"#, elsewhere).await;
    assert_eq!(commander.answer(0).await, done("session/reload", "b"));
    assert_eq!((orders.heard(), own.heard().len()), (vec![], 1));
}

#[tokio::test]
async fn a_retained_command_is_not_executed() {
    let retained = || PublishOptions::new(QoS::AtLeastOnce).retained();
    for version in VERSIONS {
        let broker = Mosquitto::start(Options::default()).await;
        let commander = Commander::new(&broker).await;
        let reset = r#"{"transaction":"old"}"#;
        commander.send_with("session/reset", reset, retained()).await;
        let relay = up(&broker, &format!("version = {version:?}\ncommands = true")).await;
        let refused = commander.answer(0).await;
        assert_eq!((&refused["ok"], &refused["status"]), (&json!(false), &json!(400)));
        let before = id(&relay.sim);
        // Whoever clears it publishes nothing to the same topic: that is no command either.
        commander.send_with("session/reset", "", retained()).await;
        assert_eq!(commander.answer(1).await["status"], 400);
        assert_eq!(id(&relay.sim), before);
        assert_eq!(relay.sim.stats().rest_requests, 1, "the session was fetched, and no more");
        // The broker has shown the flag to those who are there, in version 5 only.
        if version == "5" {
            commander.send_with("session/reset", reset, retained()).await;
            assert_eq!(commander.answer(2).await["status"], 400);
            assert_eq!(id(&relay.sim), before);
        }
        assert_eq!(commander.ask("session/reset", "PRESS").await["ok"], true);
        assert_ne!(id(&relay.sim), before);
    }
}

#[tokio::test]
async fn a_forbidden_or_malformed_command_is_refused() {
    let broker = Mosquitto::start(Options::default()).await;
    for version in VERSIONS {
        let more =
            format!("version = {version:?}\ncommands = [\"session/set\", \"session/reload\"]");
        let relay = up(&broker, &more).await;
        let commander = Commander::new(&broker).await;
        let asked = relay.sim.stats().rest_requests;
        for (command, payload, status) in [
            ("session/reset", "PRESS", 403),
            ("relay/refresh", "PRESS", 403),
            ("session/drop", "PRESS", 404),
            ("session/set", "{\"element\":", 400),
            ("session/set/tip-goal/x", "1", 404),
            ("session/reload", &"x".repeat(20_000), 413),
        ] {
            let answer = commander.ask(command, payload).await;
            assert_eq!(answer["status"], status, "{command}: {answer}");
        }
        assert_eq!(relay.sim.stats().rest_requests, asked);
        // In version 5 the broker keeps this one to itself; in the other it ends no connection.
        commander.send("session/reload", &"x".repeat(200_000)).await;
        let refused = commander.ask("session/reload", r#"{"transaction":"after"}"#).await;
        let last = if version == "5" { refused } else { commander.answer(7).await };
        assert_eq!(last, done("session/reload", "after"));
        relay.sim.fail_rest([RestFault::status(401)]);
        let answer = commander.ask("session/reload", "PRESS").await;
        // The token of these tests is a letter of this word.
        assert_eq!((&answer["status"], &answer["error"]), (&json!(401), &json!("simula…ed")));
        assert_eq!(relay.status().await["pages"]["sinks"]["home"]["last_error"], Value::Null);
    }
}

#[tokio::test]
async fn only_configured_channels_are_subscribed() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let extra = format!("log_dest file {}\nlog_type subscribe", log.display());
    let broker = Mosquitto::start(Options { extra: &extra, ..Options::default() }).await;
    let subscribed = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let off = up(&broker, "").await;
    let listener = Listener::start(broker.port, "astro/#").await;
    // What this one sees in the log stands behind what the sink would have asked for.
    let all = until("the listener is in the log", PATIENCE, async || {
        let all = subscribed();
        all.contains(&"astro/#".to_owned()).then_some(all)
    })
    .await;
    assert!(!all.iter().any(|filter| filter.contains("command")), "{all:?}");
    drop((off, listener));
    let other = channel(&["channel.tips"]).replace("channels.main", "channels.other");
    let more = format!("commands = [\"session/set\"]\nchannels = [\"main\"]\n{other}");
    let rest = format!("{}{}", session_channel(), sink(&broker, &more));
    let relay = Running::start(&rest).await;
    relay.takes_commands("home").await;
    let expected = ["astro/main/command/#"];
    let ours =
        || subscribed().into_iter().filter(|all| all.contains("command")).collect::<Vec<_>>();
    until("the sink is in the log", PATIENCE, async || (ours() == expected).then_some(())).await;
    // A channel that comes is listened for from then on, where the sink is for all.
    relay.rewrite(&rest.replace("channels = [\"main\"]\n", ""));
    assert_eq!(relay.reload().await.0, 200);
    until("the other channel is in the log", PATIENCE, async || {
        ours().contains(&"astro/other/command/#".to_owned()).then_some(())
    })
    .await;
    let third = channel(&["channel.follow"]).replace("channels.main", "channels.third");
    relay.rewrite(&format!("{}{third}", rest.replace("channels = [\"main\"]\n", "")));
    assert_eq!(relay.reload().await.0, 200);
    until("the third channel is in the log", PATIENCE, async || {
        ours().contains(&"astro/third/command/#".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_channels_a_sink_with_commands_works() {
    let broker = Mosquitto::start(Options::default()).await;
    for version in VERSIONS {
        let more = format!("version = {version:?}\ncommands = true");
        let relay = Running::start(&sink(&broker, &more)).await;
        relay.takes_commands("home").await;
    }
}

#[tokio::test]
async fn a_broker_that_forbids_commands_still_gets_the_events() {
    let acl = "topic readwrite astro/main/channel/#\ntopic write astro/relay/#\n";
    let broker = Mosquitto::start(Options { acl, ..Options::default() }).await;
    let listener = Listener::start(broker.port, "astro/main/channel/#").await;
    let relay = up(&broker, "commands = true").await;
    relay.sim.publish("channel.session.update", ROOM, json!({"key": "x", "data": 1}));
    listener.wait_for(1).await;
}

#[tokio::test]
async fn commands_and_events_do_not_disturb_each_other() {
    /// Events of one round: several batches.
    const EVENTS: usize = 1500;
    let broker = Mosquitto::start(Options::default()).await;
    for (version, qos) in [("5", 0), ("5", 1), ("5", 2), ("3.1.1", 1), ("3.1.1", 2)] {
        let more = format!(
            "version = {version:?}\nqos = {qos}\ncommands = true\ntopics = [\"channel.session.update\"]"
        );
        let relay = up(&broker, &more).await;
        let commander = Commander::new(&broker).await;
        let events = Listener::start(broker.port, "astro/main/channel/#").await;
        for n in 0..EVENTS {
            relay.sim.publish("channel.session.update", ROOM, json!({"key": "x", "data": n}));
            if n % (EVENTS / 8) == 0 {
                commander.send("session/reload", &json!({"transaction": n}).to_string()).await;
            }
        }
        let heard = events.wait_for(EVENTS).await;
        let numbers: Vec<u64> = heard
            .iter()
            .map(|event| {
                let event: Value = serde_json::from_slice(&event.payload).unwrap();
                event["data"]["data"].as_u64().unwrap()
            })
            .collect();
        let all: Vec<u64> = (0..EVENTS as u64).collect();
        assert_eq!(numbers, all, "version {version}, QoS {qos}");
        commander.answer(8).await;
        let answers = commander.answers();
        assert!(answers.iter().all(|answer| answer["ok"] == true), "{answers:?}");
        let page = relay.status().await["pages"]["sinks"]["home"].clone();
        assert_eq!((&page["state"], &page["last_error"]), (&json!("up"), &Value::Null));
    }
}

/// Whoever gave it has given up on it, and perhaps given another.
#[tokio::test]
async fn a_command_that_comes_while_the_relay_stands_still_is_not_executed_afterwards() {
    let broker = Mosquitto::start(Options::default()).await;
    let options =
        astro_sim::Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Default::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let mut relay = daemon::Relay::new(
        &sim.url(),
        &sim.api_url(),
        "channel.session.update",
        ROOM,
        &sink(&broker, "commands = true"),
    );
    relay.set_token(TOKEN);
    relay.start();
    relay.ready().await;
    let commander = Commander::new(&broker).await;
    let first = commander.ask("session/reset", r#"{"transaction":"before"}"#).await;
    assert_eq!(first, done("session/reset", "before"));
    let before = id(&sim);
    relay.signal("STOP").await;
    commander.send("session/reset", r#"{"transaction":"late"}"#).await;
    // It is this standing still that is tried.
    tokio::time::sleep(Duration::from_secs(5)).await;
    relay.signal("CONT").await;
    let late = commander.answer(1).await;
    assert_eq!((&late["ok"], &late["status"]), (&json!(false), &json!(503)), "{late}");
    assert_eq!(late["transaction"], "late");
    assert_eq!(id(&sim), before, "it was not executed");
    let again = until("it takes commands again", PATIENCE, async || {
        let answer = commander.ask("session/reset", r#"{"transaction":"again"}"#).await;
        (answer["ok"] == true).then_some(answer)
    })
    .await;
    assert_eq!(again, done("session/reset", "again"));
    assert_ne!(id(&sim), before);
    within("stop", relay.stop()).await;
}

/// The broker takes no events: commands are answered in time all the same.
#[tokio::test]
async fn while_events_are_refused_commands_are_answered() {
    let broker = Mosquitto::start(Options::default()).await;
    let gate = Gate::start(broker.port, "astro/main/channel/", PubAckReason::QuotaExceeded).await;
    let more = format!(
        "[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\ncommands = true\nkeep_alive = \"3s\"\n\
         backoff_max = \"30s\"\n",
        gate.url()
    );
    let relay = start("", &more).await;
    let commander = Commander::new(&broker).await;
    relay.sim.publish("channel.session.update", ROOM, json!({"key": "x", "data": 1}));
    relay.sink_is("home", "busy").await;
    let wills = Listener::start(broker.port, "astro/relay/home/availability").await;
    for n in 0..6 {
        let refused = gate.refused();
        let begun = tokio::time::Instant::now();
        let answer = commander.ask("session/reload", &json!({"transaction": n}).to_string()).await;
        assert_eq!(answer["ok"], true, "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        until("another attempt", PATIENCE, async || {
            (gate.refused() > refused || n > 2).then_some(())
        })
        .await;
    }
    let said = wills.heard();
    assert!(said.iter().all(|said| said.payload == "online"), "the connection was kept: {said:?}");
}

/// Whoever gave the command hears nothing.
#[tokio::test]
async fn answers_that_the_broker_refuses_are_named_until_one_is_taken() {
    let broker = Mosquitto::start(Options::default()).await;
    let gate = Gate::start(broker.port, "astro/main/response", PubAckReason::NotAuthorized).await;
    let more = format!("[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\ncommands = true\n", gate.url());
    let relay = start("", &more).await;
    relay.takes_commands("home").await;
    let commander = Commander::new(&broker).await;
    commander.send("session/reload", "PRESS").await;
    relay
        .until("the refusal is named", |status| {
            let reason = status["pages"]["tasks"]["commands of sink home"].as_str();
            reason.is_some_and(|reason| {
                reason.contains("the answers to commands") && reason.contains("0x87")
            })
        })
        .await;
    gate.open();
    assert_eq!(commander.ask("session/reload", "PRESS").await["ok"], true);
    relay.takes_commands("home").await;
}
