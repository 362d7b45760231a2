//! The NATS sink against nats-server.

use astro_relay::sink::Cause;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use serde_json::json;

use crate::support::{
    carry::{PATIENCE, connect, deliver, first_arrivals, within},
    nats_server::{Listener, NatsServer},
    sinks::{batch, certificate, id, open, open_with, outgoing_with},
    wait::until,
};

const SUBJECT: &str = "astro.main.channel.tips";

#[tokio::test]
async fn metadata_travels_in_headers() {
    let server = NatsServer::start("").await;
    let listener = Listener::start(&server, "astro.>").await;
    let mut sink = open("nats", json!({"url": server.url(), "headers": "all"})).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=300, SUBJECT)).await.unwrap();
    let heard = listener.wait_for(300).await;
    assert_eq!(listener.numbers(), (1..=300).collect::<Vec<_>>());
    let headers = heard[6].headers.as_ref().unwrap();
    for (name, value) in [
        ("Nats-Msg-Id", &*id(7)),
        ("Astro-Id", &id(7)),
        ("Astro-Topic", "channel.tips"),
        ("Astro-Room", "room"),
        ("Astro-Channel", "main"),
        ("Astro-Ts", "2024-02-15T14:52:42Z"),
        ("Astro-Origin", "live"),
        ("Content-Type", "application/json"),
    ] {
        assert_eq!(headers.get(name).map(async_nats::HeaderValue::as_str), Some(value), "{name}");
    }
    assert_eq!(&*heard[6].subject, SUBJECT);
    sink.close().await;
}

#[tokio::test]
async fn headers_say_what_nothing_else_does() {
    let server = NatsServer::start("").await;
    let listener = Listener::start(&server, "astro.>").await;
    for (heard, settings, expected) in [
        (1, json!({}), &[][..]),
        (2, json!({"subject": "events"}), &["Astro-Channel"]),
        (3, json!({"subject": "events.{{ channel }}"}), &[]),
        (4, json!({"jetstream": true, "create_stream": true}), &["Nats-Msg-Id"]),
    ] {
        let mut settings = settings;
        settings["url"] = server.url().into();
        let mut sink = open("nats", settings).unwrap();
        connect(&mut sink).await.unwrap();
        deliver(&mut sink, &batch(1..=1, SUBJECT)).await.unwrap();
        let message = listener.wait_for(heard).await.pop().unwrap();
        let headers = message.headers.unwrap_or_default();
        let mut names: Vec<_> = headers.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        assert_eq!(names, expected);
        sink.close().await;
    }
}

#[tokio::test]
async fn a_stream_recognises_a_repeat() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "create_stream": {"duplicate_window": "5m"}});
    let mut sink = open("nats", settings).unwrap();
    connect(&mut sink).await.unwrap();
    assert!(sink.remarks().iter().any(|remark| remark.contains("5m")), "{:?}", sink.remarks());
    deliver(&mut sink, &batch(1..=20, SUBJECT)).await.unwrap();
    assert_eq!(sink.tally(), [("duplicates", 0)]);
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(11..=30, SUBJECT)).await.unwrap();
    assert_eq!(sink.tally(), [("duplicates", 10)]);
    assert_eq!(server.stored("ASTRO").await, (1..=30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_is_missing_or_takes_other_subjects_is_told_by_name() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "stream": "EVENTS"});
    let mut sink = open("nats", settings).unwrap();
    let told = async |sink: &mut Box<dyn astro_relay::sink::Sink>| {
        let failure = connect(sink).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Down(_)));
        failure.cause.to_string()
    };
    let text = told(&mut sink).await;
    assert!(text.contains("EVENTS") && text.contains("create_stream"), "{text}");

    let config = |subject: &str| Config {
        name: "EVENTS".into(),
        subjects: vec![subject.into()],
        storage: StorageType::Memory,
        ..Config::default()
    };
    context.create_stream(config("orders.>")).await.unwrap();
    let text = told(&mut sink).await;
    assert!(text.contains("orders.>") && text.contains("astro.>"), "{text}");

    context.update_stream(config("astro.main.>")).await.unwrap();
    connect(&mut sink).await.unwrap();
    let remarks = sink.remarks();
    assert!(remarks.iter().any(|remark| remark.contains("only astro.main.>")), "{remarks:?}");
    assert!(remarks.iter().any(|remark| remark.contains("memory")), "{remarks:?}");
}

#[tokio::test]
async fn a_server_with_too_little_space_is_told_with_the_key_to_change() {
    let server = NatsServer::with_storage("100MB", "").await;
    let _ = server.streams().await;
    let with = |create: serde_json::Value| {
        open("nats", json!({"url": server.url(), "jetstream": true, "create_stream": create}))
            .unwrap()
    };
    let failure = connect(&mut with(json!(true))).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
    let text = failure.cause.to_string();
    assert!(["ASTRO", "1GiB", "max_bytes"].iter().all(|word| text.contains(word)), "{text}");
    connect(&mut with(json!({"max_bytes": "50MiB"}))).await.unwrap();
}

#[tokio::test]
async fn a_subject_that_no_stream_takes_is_waited_for_and_holds_its_place() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "create_stream": true});
    let mut sink = open("nats", settings).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
    context.delete_stream("ASTRO").await.unwrap();
    let failure = deliver(&mut sink, &batch(4..=6, SUBJECT)).await.unwrap_err();
    assert_eq!(failure.accepted, 0);
    let Cause::Busy { reason, .. } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains("no stream"), "{reason}");
    // The stream is looked at again, and made again, on the same connection.
    deliver(&mut sink, &batch(4..=6, SUBJECT)).await.unwrap();
    assert_eq!(server.stored("ASTRO").await, [4, 5, 6]);
}

#[tokio::test]
async fn a_full_stream_makes_wait() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let config = Config {
        name: "ASTRO".into(),
        subjects: vec!["astro.>".into()],
        max_messages: 5,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    context.create_stream(config).await.unwrap();
    let mut sink = open("nats", json!({"url": server.url(), "jetstream": true})).unwrap();
    connect(&mut sink).await.unwrap();
    let failure = deliver(&mut sink, &batch(1..=8, SUBJECT)).await.unwrap_err();
    assert_eq!(failure.accepted, 5);
    assert!(matches!(failure.cause, Cause::Busy { .. }), "{failure:?}");
    context.get_stream("ASTRO").await.unwrap().purge().await.unwrap();
    deliver(&mut sink, &batch(6..=8, SUBJECT)).await.unwrap();
    assert_eq!(server.stored("ASTRO").await, [6, 7, 8]);
}

#[tokio::test]
async fn an_event_larger_than_the_server_takes_is_refused_alone() {
    let server = NatsServer::start("max_payload: 2048").await;
    server.streams().await;
    for settings in [
        json!({"url": server.url()}),
        json!({"url": server.url(), "jetstream": true, "create_stream": true}),
    ] {
        let mut sink = open("nats", settings).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=5, SUBJECT);
        events[2] = outgoing_with(3, SUBJECT, "room", &"x".repeat(4096));
        let failure = deliver(&mut sink, &events).await.unwrap_err();
        assert_eq!(failure.accepted, 2);
        assert!(matches!(failure.cause, Cause::Rejected { .. }), "{failure:?}");
        deliver(&mut sink, &events[3..]).await.unwrap();
    }
    assert_eq!(server.stored("ASTRO").await, [1, 2, 4, 5]);
}

#[tokio::test]
async fn a_subject_that_is_not_permitted_is_refused_and_the_others_go_on() {
    let users = r#"authorization { users = [
        { user: relay, password: hunter2, permissions: { publish: { deny: "astro.*.secret" } } }
        { user: listener, password: x } ] }
        no_auth_user: listener"#;
    let server = NatsServer::start(users).await;
    server.streams().await;
    let listener = Listener::start(&server, "astro.>").await;
    for jetstream in [false, true] {
        let settings = json!({
            "url": server.url(), "user": "relay", "password": {"value": "hunter2"},
            "jetstream": jetstream, "create_stream": jetstream,
        });
        let mut sink = open("nats", settings).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=3, "astro.main.tips");
        events[1] = batch(2..=2, "astro.main.secret").remove(0);
        for _ in 0..2 {
            let failure = deliver(&mut sink, &events).await.unwrap_err();
            assert_eq!(failure.accepted, 1, "jetstream {jetstream}");
            let Cause::Rejected { reason } = failure.cause else { panic!("{failure:?}") };
            assert!(reason.contains("astro.main.secret"), "{reason}");
        }
        deliver(&mut sink, &events[2..]).await.unwrap();
    }
    assert_eq!(server.stored("ASTRO").await, [1, 3]);
    assert_eq!(first_arrivals(&listener.numbers()), [1, 3]);
}

#[tokio::test]
async fn wrong_credentials_are_down_and_the_password_stays_unsaid() {
    let server = NatsServer::start("authorization { user: relay, password: right }").await;
    let settings = json!({"url": server.url(), "user": "relay", "password": {"value": "hunter2"}});
    let mut sink = open("nats", settings).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)));
    assert!(!format!("{failure:?} {}", failure.cause).contains("hunter2"));
    assert!(failure.cause.to_string().contains("authorization"), "{}", failure.cause);
}

#[tokio::test]
async fn the_first_server_that_answers_is_taken() {
    let server = NatsServer::start("").await;
    let urls = json!({"urls": ["nats://127.0.0.1:1", server.url()]});
    let mut sink = open("nats", urls).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
}

/// What a dropped client still holds must never arrive: it would stand behind what was sent again.
#[tokio::test]
async fn nothing_old_arrives_after_a_server_was_asleep() {
    let server = NatsServer::start("").await;
    let listener = Listener::start(&server, "astro.>").await;
    let timeout = std::time::Duration::from_secs(4);
    let mut sink = open_with("nats", json!({"url": server.url()}), timeout).unwrap();
    connect(&mut sink).await.unwrap();
    // More than the sockets of both sides hold: most of it stays in the client.
    let padding = "x".repeat(400_000);
    let events: Vec<_> = (1..=60)
        .map(|n| outgoing_with(n, SUBJECT, "room", &format!(r#"{{"n":{n},"x":"{padding}"}}"#)))
        .collect();
    server.server.signal("STOP").await;
    // The client finds out by itself, before the delivery's patience ends.
    let failure = deliver(&mut sink, &events).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
    assert_eq!(failure.accepted, 0);
    server.server.signal("CONT").await;
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &events).await.unwrap();
    until("all has arrived", PATIENCE, async || {
        (listener.numbers().last() == Some(&60)).then_some(())
    })
    .await;
    let numbers = listener.numbers();
    assert_eq!(first_arrivals(&numbers), (1..=60).collect::<Vec<_>>());
    assert_eq!(numbers.iter().filter(|number| **number == 60).count(), 1, "{numbers:?}");
}

#[tokio::test]
async fn a_lost_link_is_noticed_while_idle() {
    let mut server = NatsServer::start("").await;
    let mut sink = open("nats", json!({"url": server.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    let (failure, ()) =
        within("notice", async { tokio::join!(sink.idle(), server.server.kill()) }).await;
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
}

#[tokio::test]
async fn a_server_is_reached_through_tls_with_every_kind_of_credential() {
    let tls = format!(
        "tls {{ ca_file: {:?}, cert_file: {:?}, key_file: {:?}, verify: true }}\n",
        certificate("ca.pem"),
        certificate("server.pem"),
        certificate("server.key")
    );
    // A seed of this test's own; it opens nothing else.
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let nkey = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    for (rules, way) in [
        (String::new(), json!({})),
        ("authorization { token: hunter2 }".into(), json!({"token": {"value": "hunter2"}})),
        (
            "authorization { user: me, password: hunter2 }".into(),
            json!({"user": "me", "password": {"value": "hunter2"}}),
        ),
        (
            format!("authorization {{ users = [ {{ nkey: {nkey} }} ] }}"),
            json!({"nkey_seed": {"value": seed}}),
        ),
    ] {
        let server = NatsServer::start(&format!("{tls}{rules}")).await;
        let mut settings = way;
        settings["url"] = json!(format!("tls://localhost:{}", server.port));
        settings["ca_file"] = json!(certificate("ca.pem"));
        settings["client_cert_file"] = json!(certificate("client.pem"));
        settings["client_key_file"] = json!(certificate("client.key"));
        let mut sink = open("nats", settings.clone()).unwrap();
        connect(&mut sink).await.unwrap_or_else(|failure| panic!("{rules}: {failure:?}"));
        deliver(&mut sink, &batch(1..=300, SUBJECT)).await.unwrap();
        settings["ca_file"] = json!(certificate("client.pem"));
        let failure = connect(&mut open("nats", settings).unwrap()).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
}
