//! Commands over NATS, with nats-server: requests, answers, and a service that can be found.

use std::time::Duration;

use astro_sim::{Options, Sim, Token};
use async_nats::{Client, ConnectOptions, HeaderValue, Message, client::RequestErrorKind};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::{done, element, id, start};
use crate::{
    operator::{PATIENCE, ROOM, Running},
    support::{
        carry::within,
        daemon,
        nats_server::{Listener, NatsServer},
        relay::TOKEN,
        wait::until,
    },
};

struct Place {
    relay: Running,
    client: Client,
    server: NatsServer,
}

impl Place {
    async fn new(more: &str) -> Self {
        let server = NatsServer::start("").await;
        let url = server.url();
        let relay =
            start("", &format!("[sinks.bus]\ntype = \"nats\"\nurl = {url:?}\n{more}\n")).await;
        relay.takes_commands("bus").await;
        let client = server.client(ConnectOptions::new()).await;
        Self { relay, client, server }
    }

    async fn ask(&self, command: &str, payload: &str) -> (Message, Value) {
        let subject = format!("astro.main.command.{command}");
        let answer = self.client.request(subject, payload.to_owned().into());
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        let json = serde_json::from_slice(&answer.payload).unwrap();
        (answer, json)
    }
}

fn header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    message.headers.as_ref()?.get(name).map(HeaderValue::as_str)
}

#[tokio::test]
async fn each_command_is_executed_and_answered() {
    let place = Place::new("commands = true").await;
    let sim = &place.relay.sim;
    let set = r#"{"element":"tip-goal","value":41,"transaction":"s"}"#;
    let (message, answer) = place.ask("session.set", set).await;
    assert_eq!((&answer["ok"], &answer["transaction"]), (&json!(true), &json!("s")), "{answer}");
    assert_eq!(header(&message, "Nats-Service-Error"), None);
    assert_eq!(element(sim, "tip-goal"), json!({"amount": 41}));
    place.ask("session.set.tip-goal", "12.5").await;
    assert_eq!(element(sim, "tip-goal"), json!({"amount": 12.5}));
    let before = id(sim);
    let reset = r#"{"transaction":"r"}"#;
    assert_eq!(place.ask("session.reset", reset).await.1, done("session/reset", "r"));
    let made = id(sim);
    assert_ne!(made, before);
    assert_eq!(place.ask("session.reset", reset).await.1, done("session/reset", "r"));
    assert_eq!(id(sim), made, "a repeat is not executed");
    assert_eq!(place.ask("session.reload", "").await.1["ok"], true);
    assert_eq!(place.ask("relay.refresh", "").await.1["ok"], true);
    // Nobody waits for an answer: it is done all the same.
    place.client.publish("astro.main.command.session.reset", "".into()).await.unwrap();
    until("it is done", PATIENCE, async || (id(sim) != made).then_some(())).await;
}

#[tokio::test]
async fn a_failure_is_reported_in_headers_and_body() {
    let place = Place::new("commands = [\"session/set\"]").await;
    for (command, payload, status) in [
        ("session.reset", "", "403"),
        ("session.drop", "", "404"),
        ("session.set", "{", "400"),
        ("session.set.tip-gaol", "1", "404"),
    ] {
        let (message, answer) = place.ask(command, payload).await;
        assert_eq!(header(&message, "Nats-Service-Error-Code"), Some(status), "{command}");
        assert_eq!(header(&message, "Nats-Service-Error"), answer["error"].as_str());
        assert_eq!(answer["status"].to_string(), status);
    }
    // Another channel has nobody, and whoever asks hears so at once.
    let nobody = place.client.request("astro.other.command.session.set", "".into()).await;
    assert_eq!(nobody.unwrap_err().kind(), RequestErrorKind::NoResponders);
}

/// Whoever asks says where the answer goes; it is published with the relay's rights.
#[tokio::test]
async fn no_answer_goes_to_a_reserved_subject() {
    let place = Place::new("commands = true").await;
    let context = place.server.streams().await;
    let keep = async_nats::jetstream::stream::Config {
        name: "KEEP".into(),
        subjects: vec!["keep".into()],
        ..Default::default()
    };
    context.create_stream(keep).await.unwrap();
    context.publish("keep", "x".into()).await.unwrap().await.unwrap();
    let listener = Listener::start(&place.server, ">").await;
    let before = id(&place.relay.sim);
    for reply in ["$JS.API.STREAM.PURGE.KEEP", "astro.main.command.session.reset"] {
        let set = "astro.main.command.session.set.tip-goal";
        place.client.publish_with_reply(set, reply, "7".into()).await.unwrap();
    }
    // Commands are done one after another, and so are their answers.
    let (_, answer) = place.ask("relay.refresh", "").await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(element(&place.relay.sim, "tip-goal"), json!({"amount": 7}));
    assert_eq!(id(&place.relay.sim), before, "the answer was no command");
    assert_eq!(context.get_stream("KEEP").await.unwrap().cached_info().state.messages, 1);
    let heard = listener.heard();
    let reset = heard.iter().find(|message| message.subject.ends_with("session.reset"));
    assert!(reset.is_none(), "{reset:?}");
}

#[tokio::test]
async fn without_commands_nobody_answers() {
    let place = Place::new("").await;
    for subject in ["astro.main.command.session.reload", "$SRV.PING"] {
        let nobody = place.client.request(subject, "".into()).await;
        assert_eq!(nobody.unwrap_err().kind(), RequestErrorKind::NoResponders, "{subject}");
    }
}

#[tokio::test]
async fn the_service_can_be_discovered() {
    let place = Place::new("commands = true").await;
    let ask = async |subject: String| -> Value {
        let answer = place.client.request(subject, "".into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    };
    let ping = ask("$SRV.PING".into()).await;
    assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
    assert_eq!(ping["name"], "astro-relay");
    let id = ping["id"].as_str().unwrap();
    assert_eq!(ask("$SRV.PING.astro-relay".into()).await, ping);
    assert_eq!(ask(format!("$SRV.PING.astro-relay.{id}")).await, ping);
    // In the words of the library that others look with.
    let info = ask("$SRV.INFO".into()).await;
    let info: async_nats::service::Info = serde_json::from_value(info).unwrap();
    assert_eq!((info.id.as_str(), info.endpoints.len()), (id, 1));
    assert_eq!(info.endpoints[0].subject, "astro.main.command.>");
    place.ask("session.reload", "").await;
    place.ask("session.drop", "").await;
    let stats = ask(format!("$SRV.STATS.astro-relay.{id}")).await;
    let read: async_nats::service::Stats = serde_json::from_value(stats.clone()).unwrap();
    // The library counts no error that has a body: that one is told in its headers.
    assert_eq!(read.endpoints[0].requests, 2);
    let endpoint = &stats["endpoints"][0];
    assert!(endpoint["average_processing_time"].as_u64().unwrap() > 0);
    let unknown = place.client.request("$SRV.SCHEMA", "".into());
    let unknown = tokio::time::timeout(Duration::from_millis(300), unknown).await;
    assert!(!matches!(unknown, Ok(Ok(_))), "a verb that nobody knows is not answered");
}

/// Whoever gave it has given up on it, and perhaps given another.
#[tokio::test]
async fn a_command_that_comes_while_the_relay_stands_still_is_not_executed_afterwards() {
    let server = NatsServer::start("").await;
    let options = Options { tokens: vec![Token::owner(TOKEN, ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let sink = format!("[sinks.bus]\ntype = \"nats\"\nurl = {:?}\ncommands = true", server.url());
    let mut relay =
        daemon::Relay::new(&sim.url(), &sim.api_url(), "channel.session.update", ROOM, &sink);
    relay.set_token(TOKEN);
    relay.start();
    relay.ready().await;
    let subject = "astro.main.command.session.reset";
    let client = server.client(ConnectOptions::new()).await;
    let executed = async |transaction: &str| {
        let payload = json!({ "transaction": transaction }).to_string();
        until("it takes commands", PATIENCE, async || {
            let answer = client.request(subject, payload.clone().into()).await.ok()?;
            let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
            (answer["ok"] == true).then_some(answer)
        })
        .await
    };
    assert_eq!(executed("before").await, done("session/reset", "before"));
    let before = id(&sim);
    let mut inbox = client.subscribe("answers").await.unwrap();
    relay.signal("STOP").await;
    let payload = r#"{"transaction":"late"}"#;
    client.publish_with_reply(subject, "answers", payload.into()).await.unwrap();
    client.flush().await.unwrap();
    // It is this standing still that is tried.
    tokio::time::sleep(Duration::from_secs(5)).await;
    relay.signal("CONT").await;
    let late = tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!(header(&late, "Nats-Service-Error-Code"), Some("503"));
    let late: Value = serde_json::from_slice(&late.payload).unwrap();
    assert_eq!((&late["ok"], &late["transaction"]), (&json!(false), &json!("late")), "{late}");
    assert_eq!(id(&sim), before, "it was not executed");
    assert_eq!(executed("again").await, done("session/reset", "again"));
    assert_ne!(id(&sim), before);
    within("stop", relay.stop()).await;
}

#[tokio::test]
async fn commands_and_events_do_not_disturb_each_other() {
    /// Events of one round: several batches.
    const EVENTS: usize = 3000;
    for more in ["", "jetstream = true\ncreate_stream = true\nsubject = \"events.{{ topic }}\"\n"] {
        let place = Place::new(&format!("commands = true\n{more}")).await;
        let subject = if more.is_empty() { "astro.main.channel.>" } else { "events.channel.>" };
        let events = Listener::start(&place.server, subject).await;
        let flood = async {
            for n in 0..EVENTS {
                let data = json!({"key": "x", "data": n});
                place.relay.sim.publish("channel.session.update", ROOM, data);
                if n % 100 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let asked = futures_util::stream::iter(0..8).map(|n| {
            let payload = json!({"transaction": n}).to_string();
            let place = &place;
            async move { place.ask("session.reload", &payload).await.1 }
        });
        let (answers, ()) = tokio::join!(asked.buffered(3).collect::<Vec<_>>(), flood);
        assert!(answers.iter().all(|answer| answer["ok"] == true), "{answers:?}");
        events.wait_for(EVENTS).await;
        let page = place.relay.status().await["pages"]["sinks"]["bus"].clone();
        assert_eq!((&page["state"], &page["last_error"]), (&json!("up"), &Value::Null));
    }
}
