//! The protocol: welcome, commands, errors, rooms, heartbeat, moving to another connection.

use std::{collections::HashMap, time::Duration};

use astro_sim::{Canonical, Ended, Options, Reception, Refusal, Success, Token};
use serde_json::json;
use tokio::io::AsyncReadExt;
use ulid::Ulid;

use crate::{
    OTHER, ROOM,
    client::{Client, SOON},
    is_rfc3339, start,
    wait::until,
};

#[tokio::test]
async fn the_later_revision_welcomes_and_names_rooms() {
    let sim = start(Options::default()).await;
    let mut client = Client::connect(&sim, "").await.unwrap();
    let welcome = client.json().await;
    assert_eq!(welcome["type"], "welcome");
    assert!(Ulid::from_string(welcome["data"]["client_id"].as_str().unwrap()).is_ok());
    assert!(welcome["data"]["message"].is_string());

    let response = client.subscribe("channel.tips", ROOM).await;
    assert_eq!(response["type"], "response");
    assert_eq!(response["data"]["topic"], "channel.tips");
    assert_eq!(response["data"]["room"], ROOM);

    let id = sim.publish("channel.tips", ROOM, r#"{ "as": "written" }"#);
    let message = client.text().await;
    assert!(message.ends_with(r#""data":{ "as": "written" }}"#), "{message}");
    let message: serde_json::Value = serde_json::from_str(&message).unwrap();
    assert_eq!((&message["id"], &message["room"]), (&json!(id), &json!(ROOM)));
    assert!(Ulid::from_string(&id).is_ok());
    assert!(is_rfc3339(&message["ts"]));
}

#[tokio::test]
async fn the_first_revision_does_not() {
    let sim = start(Options::first_revision()).await;
    let mut client = Client::connect(&sim, "").await.unwrap();
    let response = client.subscribe("channel.tips", ROOM).await;
    assert_eq!(response["type"], "RESPONSE");
    assert_eq!(response["data"].get("room"), None);
    sim.publish("channel.tips", ROOM, "{}");
    assert_eq!(client.json().await.get("room"), None);
}

#[tokio::test]
async fn a_success_can_be_a_bare_string() {
    let sim = start(Options { success: Success::Text, ..Options::default() }).await;
    let mut client = Client::welcomed(&sim).await;
    assert!(client.subscribe("channel.tips", ROOM).await["data"].is_string());
}

#[tokio::test]
async fn messages_go_to_their_topic_and_room_and_notifications_to_everybody() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    let mut idle = Client::welcomed(&sim).await;
    client.subscribe("channel.tips", ROOM).await;
    sim.publish("channel.tips", OTHER, "1");
    sim.publish("channel.follow", ROOM, "2");
    sim.publish("channel.tips", ROOM, "3");
    sim.publish("channel.tips", "", "4");
    sim.publish("astro", "", r#"{"message":"Hello world!"}"#);
    assert_eq!(client.json().await["data"], 3);
    assert_eq!(client.json().await["data"], 4, "a message without a room goes to every room");
    assert_eq!(client.json().await["topic"], "astro");
    assert_eq!(idle.json().await["topic"], "astro");
}

#[tokio::test]
async fn without_a_room_it_is_the_channel_of_the_token_or_every_room() {
    let options = Options {
        tokens: vec![
            Token::owner("own", ROOM),
            Token { rooms: Vec::new(), ..Token::owner("all", "") },
        ],
        ..Options::default()
    };
    let sim = start(options).await;
    let mut client = Client::welcomed(&sim).await;
    let own = json!({ "topic": "channel.tips", "token": "own" });
    assert_eq!(client.command("subscribe", own).await["data"]["room"], ROOM);
    let all = json!({ "topic": "channel.tips", "token": "all" });
    assert_eq!(client.command("subscribe", all).await["data"]["room"], "");
    sim.publish("channel.tips", ROOM, "1");
    sim.publish("channel.tips", OTHER, "2");
    assert_eq!(client.json().await["data"], 1);
    assert_eq!(client.json().await["data"], 2, "the first one came once, not twice");
}

#[tokio::test]
async fn the_canonical_room_may_be_another() {
    for canonical in [
        Canonical::Table(HashMap::from([("harbour".to_owned(), ROOM.to_owned())])),
        Canonical::Rule(|_| ROOM.to_owned()),
    ] {
        let sim = start(Options { canonical, ..Options::default() }).await;
        let mut client = Client::welcomed(&sim).await;
        assert_eq!(client.subscribe("channel.tips", "harbour").await["data"]["room"], ROOM);
        sim.publish("channel.tips", ROOM, "1");
        assert_eq!(client.json().await["room"], ROOM);
        let asked = json!({ "topic": "channel.tips", "room": "harbour" });
        assert!(client.command("unsubscribe", asked).await.get("error").is_none());
        assert!(sim.connections()[0].subscriptions.is_empty());
    }
}

#[tokio::test]
async fn unsubscribing_without_a_room_leaves_all_rooms_of_the_topic() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    for (topic, room) in [("channel.tips", ROOM), ("channel.tips", OTHER), ("channel.follow", ROOM)]
    {
        client.subscribe(topic, room).await;
    }
    client.command("unsubscribe", json!({ "topic": "channel.tips" })).await;
    let left = &sim.connections()[0].subscriptions;
    assert_eq!(left.iter().collect::<Vec<_>>(), [&("channel.follow".to_owned(), ROOM.to_owned())]);
    sim.publish("channel.tips", ROOM, "1");
    sim.publish("channel.follow", ROOM, "2");
    assert_eq!(client.json().await["data"], 2);
}

#[tokio::test]
async fn commands_that_make_no_sense_are_refused_by_name() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.send("{ not json").await;
    let response = client.json().await;
    assert_eq!(response["error"], "invalid_message");
    assert!(response.get("nonce").is_none());
    let response = client.command("greet", json!({ "topic": "channel.tips" })).await;
    assert_eq!(response["error"], "invalid_message_type");
    let response = client.command("subscribe", json!({ "token": "t" })).await;
    assert_eq!(response["error"], "err_bad_request");
    assert!(response["data"]["message"].is_string());
    let response = client.command("subscribe", json!({ "topic": "channel.tips" })).await;
    assert_eq!(response["error"], "err_unauthorized");
    let record = &sim.connections()[0];
    let errors: Vec<_> = record.commands.iter().map(|c| c.error.as_deref().unwrap()).collect();
    assert_eq!(
        errors,
        ["invalid_message", "invalid_message_type", "err_bad_request", "err_unauthorized"]
    );
}

#[tokio::test]
async fn a_token_must_be_known_of_its_kind_and_allowed_to() {
    let reader = Token {
        token_type: Some("jwt".into()),
        scopes: vec!["tips:read".into()],
        ..Token::owner("reader", ROOM)
    };
    let sim = start(Options { tokens: vec![reader.clone()], ..Options::default() }).await;
    let mut client = Client::welcomed(&sim).await;
    let mut error = async |topic: &str, room: &str, token: &str, kind: &str| {
        let data = json!({ "topic": topic, "room": room, "token": token, "token_type": kind });
        client.command("subscribe", data).await.get("error").cloned()
    };
    let unauthorised = Some(json!("err_unauthorized"));
    assert_eq!(error("channel.tips", ROOM, "reader", "jwt").await, None);
    assert_eq!(error("channel.tips", ROOM, "reader", "apikey").await, unauthorised);
    assert_eq!(error("channel.tips", ROOM, "stranger", "jwt").await, unauthorised);
    assert_eq!(error("channel.tips", OTHER, "reader", "jwt").await, unauthorised);
    assert_eq!(error("channel.activities", ROOM, "reader", "jwt").await, unauthorised);
    sim.set_tokens(vec![Token { scopes: vec!["*".into()], ..reader }]);
    assert_eq!(error("channel.activities", ROOM, "reader", "jwt").await, None);
    assert!(!format!("{:?}", sim.connections()).contains("stranger"));
}

#[tokio::test]
async fn errors_can_be_scripted() {
    let sim = start(Options::default()).await;
    sim.faults(|faults| {
        faults.refusals = vec![
            Refusal::of("err_internal_error").topic("channel.tips").times(2),
            Refusal::of("err_deadline_exceeded").room(OTHER),
        ];
    });
    let mut client = Client::welcomed(&sim).await;
    let mut error = async |topic: &str, room: &str| {
        client.subscribe(topic, room).await["error"].as_str().map(str::to_owned)
    };
    assert_eq!(error("channel.tips", ROOM).await.as_deref(), Some("err_internal_error"));
    assert_eq!(error("channel.tips", ROOM).await.as_deref(), Some("err_internal_error"));
    assert_eq!(error("channel.tips", ROOM).await, None);
    assert_eq!(error("channel.tips", OTHER).await.as_deref(), Some("err_deadline_exceeded"));
    assert_eq!(error("channel.follow", ROOM).await, None);
}

#[tokio::test]
async fn a_connection_holds_only_so_many_subscriptions() {
    let options = Options { subscriptions_per_connection: Some(1), ..Options::default() };
    let sim = start(options).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.tips", ROOM).await;
    assert!(client.subscribe("channel.tips", ROOM).await.get("error").is_none(), "no new one");
    let response = client.subscribe("channel.tips", OTHER).await;
    assert_eq!(response["error"], "err_bad_request");
    assert!(response["data"]["message"].as_str().unwrap().contains("limit of 1"));
}

#[tokio::test]
async fn too_many_commands_are_refused_without_a_nonce() {
    let sim = start(Options { commands_per_window: 3, ..Options::default() }).await;
    let mut client = Client::welcomed(&sim).await;
    for _ in 0..3 {
        client.subscribe("channel.tips", ROOM).await;
    }
    assert_eq!(sim.stats().rate_limited, 0);
    let data = json!({ "topic": "channel.tips", "token": "t" });
    client.send(json!({ "type": "subscribe", "nonce": "x", "data": data })).await;
    let response = client.json().await;
    assert_eq!(response["error"], "rate_limit_exceeded");
    assert!(response.get("nonce").is_none());
    assert_eq!((sim.stats().rate_limited, sim.stats().commands), (1, 4));
}

#[tokio::test]
async fn a_client_is_pinged_and_closed_when_it_does_not_answer() {
    let options = Options {
        ping_every: Duration::from_millis(50),
        pong_within: Duration::from_secs(1),
        ..Options::default()
    };
    let sim = start(options).await;
    let deaf = Client::welcomed(&sim).await;
    // From here on only its socket reads, and nobody answers.
    let mut socket = deaf.ws.into_inner();
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(sim.connections()[0].ended, Some(Ended::NoPong));

    let mut client = Client::welcomed(&sim).await;
    let answered = sim.stats().pongs;
    until("the client has outlived the deadline", SOON, async || {
        // Reading is what answers pings.
        client.frame().await.unwrap().unwrap();
        (sim.stats().pongs > answered + 25).then_some(())
    })
    .await;
    assert_eq!(sim.connections()[1].ended, None);
}

#[tokio::test]
async fn a_reconnect_token_restores_the_subscriptions_once() {
    let sim = start(Options::default()).await;
    let mut old = Client::welcomed(&sim).await;
    old.subscribe("channel.tips", ROOM).await;
    assert_eq!(sim.drain(None), 1);
    let moved = old.json().await;
    assert_eq!(moved["type"], "reconnect");
    let token = moved["data"]["reconnect_token"].as_str().unwrap();
    assert!(!format!("{sim:?}").contains(token));

    let query = format!("?reconnect_token={token}");
    let mut new = Client::connect(&sim, &query).await.unwrap();
    assert_eq!(new.json().await["type"], "welcome");
    let id = sim.publish("channel.tips", ROOM, "{}");
    assert_eq!(old.json().await["id"], id, "the old connection goes on getting messages");
    assert_eq!(new.json().await["id"], id);
    assert!(sim.connections()[1].restored);

    let mut again = Client::connect(&sim, &query).await.unwrap();
    assert_eq!(again.end().await.unwrap(), Some(1008));
    let stats = sim.stats();
    assert_eq!((stats.tokens_issued, stats.tokens_used, stats.tokens_refused), (1, 1, 1));
    assert!(sim.attempts()[2].with_token);
}

#[tokio::test]
async fn a_reconnect_token_can_be_refused_or_expire() {
    let options = Options { reconnect_token_life: Duration::ZERO, ..Options::default() };
    for (options, refuse) in [(options, false), (Options::default(), true)] {
        let sim = start(options).await;
        sim.faults(|faults| faults.refuse_reconnect = refuse);
        let mut client = Client::welcomed(&sim).await;
        sim.drain(None);
        let moved = client.json().await;
        let token = moved["data"]["reconnect_token"].as_str().unwrap();
        let mut new = Client::connect(&sim, &format!("?reconnect_token={token}")).await.unwrap();
        assert_eq!(new.end().await.unwrap(), Some(1008));
    }
}

#[tokio::test]
async fn a_drained_connection_is_closed_after_the_grace() {
    let grace = Some(Duration::from_millis(50));
    let sim = start(Options { drain_grace: grace, ..Options::default() }).await;
    let mut client = Client::welcomed(&sim).await;
    sim.drain(Some(1));
    assert_eq!(client.end().await.unwrap(), Some(1001));
    // New connections may be refused meanwhile.
    let refuse = Reception::Refuse { status: 502, retry_after: None };
    sim.faults(|faults| faults.next.push_back(refuse));
    assert!(Client::connect(&sim, "").await.is_err());
    Client::welcomed(&sim).await;
}
