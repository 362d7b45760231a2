//! Commands from outside: over MQTT, NATS and HTTP, against real servers and the simulated API.

mod http;
mod mqtt;
mod nats;

use std::time::Duration;

use astro_sim::{Options, RestFault, Sim};
use async_nats::ConnectOptions;
use futures_util::StreamExt;
use rumqttc_v5::{PublishOptions, QoS};
use serde_json::{Value, json};

use crate::{
    operator::{PATIENCE, ROOM, Running, channel},
    support::{
        mosquitto::{self, Mosquitto},
        nats_server::NatsServer,
        relay::{self, configure},
        wait::until,
    },
};

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

/// A relay with its session fetched, with these lines of its configuration at the head and at the foot.
async fn start(head: &str, foot: &str) -> Running {
    let relay = Running::start(&format!("{head}{}{foot}", session_channel())).await;
    relay.subscribed(2).await;
    // Not only the fetch for which it does not wait for the subscriptions: no other is to come.
    relay
        .until("the session is fetched after it was subscribed to", |status| {
            let connections = status["pages"]["connections"].as_object().unwrap().values();
            let all = connections.flat_map(|page| page["subscriptions"].as_array().unwrap());
            let confirmed = all.filter_map(|one| one["confirmed_at"].as_u64()).max();
            status["pages"]["sessions"]["main"]["fetched_at"].as_u64() >= confirmed
        })
        .await;
    relay
}

/// The answer to a command that was done.
fn done(command: &str, transaction: &str) -> Value {
    json!({ "ok": true, "channel": "main", "command": command, "transaction": transaction })
}

#[tokio::test]
async fn a_command_under_way_at_a_stop_is_answered() {
    let (broker, server) =
        tokio::join!(Mosquitto::start(mosquitto::Options::default()), NatsServer::start(""));
    let sinks = format!(
        "[sinks.home]\ntype = \"mqtt\"\nurl = {:?}\ncommands = true\n\
         [sinks.bus]\ntype = \"nats\"\nurl = {:?}\ncommands = true\n",
        broker.url(),
        server.url()
    );
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let listener = mosquitto::Listener::start(broker.port, "astro/main/response").await;
    let client = server.client(ConnectOptions::new()).await;
    for (n, by_nats) in [false, true].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let config = configure(&sim, dir.path(), &["channel.tips"], &sinks);
        let relay = relay::Running::start(config).await;
        // Commands have connections of their own: a task that does not listen yet is named.
        until("the sinks are up and listen for commands", PATIENCE, async || {
            let up = |page: &astro_relay::delivery::status::StatusSnapshot| {
                page.sinks.len() == 2
                    && page.sinks.values().all(|sink| sink.state == "up")
                    && page.tasks.is_empty()
            };
            relay.status.sinks.read(up).then_some(())
        })
        .await;
        // Long enough that the relay is told to stop before the answer is there.
        sim.fail_rest([RestFault::Delay(Duration::from_secs(1))]);
        let asked = sim.stats().rest_requests;
        let reply = format!("answers.{n}");
        let mut inbox = client.subscribe(reply.clone()).await.unwrap();
        let payload = json!({"transaction": n}).to_string();
        if by_nats {
            let subject = "astro.main.command.session.reload";
            client.publish_with_reply(subject, reply, payload.into()).await.unwrap();
        } else {
            let topic = "astro/main/command/session/reload";
            listener
                .publish(topic, payload.as_bytes(), PublishOptions::new(QoS::AtLeastOnce))
                .await;
        }
        until("it is being executed", PATIENCE, async || {
            (sim.stats().rest_requests > asked).then_some(())
        })
        .await;
        relay.stop().await;
        let answer = if by_nats {
            tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap().payload
        } else {
            listener.wait_for(1).await[0].payload.clone()
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((&answer["ok"], &answer["transaction"]), (&json!(true), &json!(n)));
    }
}
