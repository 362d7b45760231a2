//! The NATS sink against nats-server.

use astro_relay::{
    channel::store::{Section, StateKey},
    sink::{Cause, Part, Permission},
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use futures_util::FutureExt;
use serde_json::json;

use crate::support::{
    carry::{PATIENCE, carry_all, connect, deliver, first_arrivals, within},
    nats_server::{Listener, NatsServer},
    process::free_port,
    scripted_nats::{Play, ScriptedNats},
    sinks::{
        batch, certificate, id, install_tls, open, open_probe, open_publisher, open_with, outgoing,
        outgoing_with, probe, probe_state, replayed,
    },
    unreachable::{Hanging, Mute, refused},
    wait::until,
};
use crate::way::{Front, acceptor};

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
async fn default_headers_hold_what_subject_and_payload_do_not() {
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
async fn a_missing_or_unfit_stream_is_named_in_the_error() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "stream": "EVENTS"});
    let mut sink = open("nats", settings).unwrap();
    let told = async |sink: &mut crate::support::driven::Driven| {
        let failure = connect(sink).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Denied { .. }));
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
async fn too_little_space_for_a_stream_names_the_key_to_change() {
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
async fn a_deleted_stream_is_made_again_and_order_is_kept() {
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
async fn a_full_stream_is_busy() {
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
async fn an_oversized_event_is_rejected_alone() {
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
async fn a_forbidden_subject_is_rejected_and_the_others_go_on() {
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
            deliver(&mut sink, &events[2..]).await.unwrap();
        }
    }
    assert_eq!(server.stored("ASTRO").await, [1, 3]);
    assert_eq!(first_arrivals(&listener.numbers()), [1, 3]);
}

#[tokio::test]
async fn wrong_credentials_are_denied_without_showing_the_password() {
    let server = NatsServer::start("authorization { user: relay, password: right }").await;
    let settings = json!({"url": server.url(), "user": "relay", "password": {"value": "hunter2"}});
    let mut sink = open("nats", settings).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Denied { .. }), "{failure:?}");
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
async fn events_of_a_dropped_connection_never_arrive_later() {
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
async fn a_lost_connection_is_noticed_while_idle() {
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

/// In a URL the address stands in brackets, in a certificate it does not. Several servers stand in one
/// text, as other clients take them.
#[tokio::test]
async fn a_server_with_an_address_of_ipv6_is_reached_through_tls() {
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\n",
        certificate("server-ipv6.pem"),
        certificate("server-ipv6.key")
    );
    let server = NatsServer::everywhere(&tls).await;
    let port = server.port;
    for url in [
        format!("tls://[::1]:{port}"),
        format!("nats://[0:0::1]:{port}"),
        format!("tls://[::1]:{}, tls://[::1]:{port}", free_port()),
    ] {
        let settings = json!({"url": url, "ca_file": certificate("ca-ipv6.pem")});
        let mut sink = open("nats", settings).unwrap();
        connect(&mut sink).await.unwrap_or_else(|failure| panic!("{url}: {failure:?}"));
        deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
        within("close", sink.close()).await;
    }
}

/// It says nothing before the handshake; and one that does not do so is not understood.
#[tokio::test]
async fn tls_first_reaches_a_server_with_handshake_first() {
    install_tls();
    let server = NatsServer::start("").await;
    let (cert, key) = (certificate("server-ipv6.pem"), certificate("server-ipv6.key"));
    let tls = acceptor(cert.as_ref(), key.as_ref(), rustls::ALL_VERSIONS);
    let front = Front::new("::1", server.port, tls).await;
    let settings = |port: u16, first: bool| {
        let ca = certificate("ca-ipv6.pem");
        json!({"url": format!("tls://[::1]:{port}"), "ca_file": ca, "tls_first": first})
    };
    let mut sink = open("nats", settings(front.port, true)).unwrap();
    connect(&mut sink).await.unwrap();
    let listener = Listener::start(&server, "astro.>").await;
    deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
    listener.wait_for(3).await;
    within("close", sink.close()).await;

    let mut sink =
        open_with("nats", settings(front.port, false), std::time::Duration::from_secs(1)).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(failure.cause.to_string().contains("tls_first"), "{failure:?}");
}

/// Users that may do less than everything, and what they lack; `listener` may do everything.
fn permissions(relay: &str) -> String {
    format!(
        "authorization {{ users = [ {{ user: relay, password: x, permissions: {{ {relay} }} }}, \
         {{ user: listener, password: x }} ] }}\nno_auth_user: listener"
    )
}

fn as_relay(server: &NatsServer, more: &serde_json::Value) -> serde_json::Value {
    let mut settings = json!({"url": server.url(), "user": "relay", "password": {"value": "x"}});
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    settings
}

fn stream_config(subjects: &[&str]) -> Config {
    Config {
        name: "ASTRO".into(),
        subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        ..Config::default()
    }
}

#[tokio::test]
async fn a_user_without_an_inbox_is_denied_before_anything_is_published() {
    for (rights, settings, missing) in [
        (r#"publish: "astro.>", subscribe: { deny: ">" }"#, json!({}), "subscribe to _INBOX.>"),
        (r#"publish: "astro.>", subscribe: "_INBOX.>""#, json!({}), "publish to _INBOX.>"),
        (
            r#"publish: ["astro.>", "$JS.API.>"], subscribe: { deny: ">" }"#,
            json!({"jetstream": true, "create_stream": true}),
            "subscribe to _INBOX.>",
        ),
        (
            r#"publish: "astro.>", subscribe: "_INBOX.>""#,
            json!({"inbox_prefix": "relay.inbox"}),
            "subscribe to relay.inbox.>",
        ),
    ] {
        let server = NatsServer::start(&permissions(rights)).await;
        server.streams().await;
        let listener = Listener::start(&server, "astro.>").await;
        let mut sink = open("nats", as_relay(&server, &settings)).unwrap();
        let failure = connect(&mut sink).await.unwrap_err();
        let Cause::Denied { reason } = failure.cause else { panic!("{rights}: {failure:?}") };
        assert!(reason.contains(missing) && reason.contains("inbox_prefix"), "{rights}: {reason}");
        assert!(listener.heard().is_empty());
    }
}

/// Rights are changed while connections stand: no answer comes any more, of events or of state.
#[tokio::test]
async fn a_connection_ends_when_its_inbox_is_taken_away() {
    let server = NatsServer::start(&permissions(r#"publish: ">", subscribe: ">""#)).await;
    server.streams().await;
    let settings = as_relay(&server, &json!({}));
    let mut sink = open("nats", settings.clone()).unwrap();
    connect(&mut sink).await.unwrap();
    let mut publisher = open_publisher("nats", settings).unwrap();
    publisher.connect().await.unwrap();
    server.reconfigure(&permissions(r#"publish: ">", subscribe: { deny: "_INBOX.>" }"#)).await;
    let both = async { tokio::join!(sink.idle(), publisher.idle()) };
    let (of_events, of_state) = within("both end", both).await;
    for failure in [of_events, of_state] {
        assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
        assert!(failure.cause.to_string().contains("right to receive"), "{failure:?}");
    }
    let failure = connect(&mut sink).await.unwrap_err();
    let Cause::Denied { reason } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains("subscribe to _INBOX.>"), "{reason}");
}

#[tokio::test]
async fn the_least_rights_are_enough() {
    let stream = r#""_INBOX.>""#;
    for (rights, settings) in [
        (r#"publish: ["astro.>", "_INBOX.>"], subscribe: "_INBOX.>""#.to_owned(), json!({})),
        (
            r#"publish: ["astro.>", "relay.inbox.>"], subscribe: "relay.inbox.>""#.into(),
            json!({"inbox_prefix": "relay.inbox"}),
        ),
        (format!(r#"publish: "astro.>", subscribe: {stream}"#), json!({"jetstream": true})),
        (
            format!(
                r#"publish: ["astro.>", "$JS.API.STREAM.INFO.ASTRO", "$JS.API.STREAM.CREATE.ASTRO"],
                   subscribe: {stream}"#
            ),
            json!({"jetstream": true, "create_stream": true}),
        ),
    ] {
        let server = NatsServer::start(&permissions(&rights)).await;
        let context = server.streams().await;
        let listener = Listener::start(&server, "astro.>").await;
        if settings["create_stream"].is_null() {
            context.create_stream(stream_config(&["astro.>"])).await.unwrap();
        }
        let mut sink = open("nats", as_relay(&server, &settings)).unwrap();
        connect(&mut sink).await.unwrap_or_else(|failure| panic!("{rights}: {failure:?}"));
        deliver(&mut sink, &batch(1..=200, SUBJECT)).await.unwrap();
        listener.wait_for(200).await;
        assert_eq!(listener.numbers(), (1..=200).collect::<Vec<_>>(), "{rights}");
    }
}

#[tokio::test]
async fn a_stream_that_may_not_be_made_names_the_missing_right() {
    let rights = r#"publish: ["astro.>", "$JS.API.STREAM.INFO.>"], subscribe: "_INBOX.>""#;
    let server = NatsServer::start(&permissions(rights)).await;
    server.streams().await;
    let settings = json!({"jetstream": true, "create_stream": true});
    let mut sink = open("nats", as_relay(&server, &settings)).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    let Cause::Denied { reason } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains("$JS.API.STREAM.CREATE.ASTRO"), "{reason}");
}

/// The server quotes a subject as Go does; it is the subject of one event all the same.
#[tokio::test]
async fn forbidden_subjects_that_the_server_quotes_are_rejected_alone() {
    let rights = r#"publish: { deny: "astro.main.secret.*" }"#;
    for jetstream in [false, true] {
        let server = NatsServer::start(&permissions(rights)).await;
        server.streams().await;
        let listener = Listener::start(&server, "astro.>").await;
        let settings = json!({"jetstream": jetstream, "create_stream": jetstream});
        let mut sink = open("nats", as_relay(&server, &settings)).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=40, SUBJECT);
        let odd = ["say-\"hi\"", "a\\b", "👨\u{200d}👩", "Zoë", "\u{7f}", "\u{feff}x", "plain"];
        for (place, name) in odd.iter().enumerate() {
            let seq = 3 + 4 * place as u64;
            let address = format!("astro.main.secret.{name}");
            events[3 + 4 * place - 1] = outgoing(seq, &address, "room");
        }
        let (refused, failures) = carry_all(&mut sink, &events).await;
        assert_eq!(failures, [""; 0], "jetstream {jetstream}");
        let expected: Vec<u64> = (0..odd.len() as u64).map(|place| 3 + 4 * place).collect();
        assert_eq!(refused, expected, "jetstream {jetstream}");
        let others: Vec<u64> = (1..=40).filter(|n| !expected.contains(n)).collect();
        assert_others_came(&server, &listener, jetstream, &others).await;
    }
}

/// These events have come, to the stream or to the listener, and no others.
async fn assert_others_came(
    server: &NatsServer,
    listener: &Listener,
    jetstream: bool,
    others: &[u64],
) {
    if jetstream {
        assert_eq!(server.stored("ASTRO").await, others);
    } else {
        listener.wait_for(others.len()).await;
        assert_eq!(listener.numbers(), others);
    }
}

/// The client library keeps 128 of what a server says, and drops the rest without a word.
#[tokio::test]
async fn more_refusals_than_the_client_keeps_are_all_found() {
    let rights = r#"publish: { deny: ["astro.a.>", "astro.b.>"] }"#;
    for jetstream in [false, true] {
        let server = NatsServer::start(&permissions(rights)).await;
        server.streams().await;
        let listener = Listener::start(&server, "astro.>").await;
        let settings = json!({"jetstream": jetstream, "create_stream": jetstream});
        let mut sink = open("nats", as_relay(&server, &settings)).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=300, "astro.a.x");
        events.extend(batch(301..=400, "astro.b.x"));
        events.extend((401..=600).map(|n| outgoing(n, &format!("astro.b.x{n}"), "room")));
        events.extend(batch(601..=640, SUBJECT));
        let (refused, failures) = carry_all(&mut sink, &events).await;
        assert_eq!(failures, [""; 0], "jetstream {jetstream}");
        assert_eq!(refused, (1..=600).collect::<Vec<_>>(), "jetstream {jetstream}");
        let others: Vec<u64> = (601..=640).collect();
        assert_others_came(&server, &listener, jetstream, &others).await;
    }
}

/// Whatever the server's words are: an event that it refuses is found, and the others get through.
#[tokio::test]
async fn a_refusal_in_unknown_words_rejects_the_right_event() {
    for jetstream in [false, true] {
        let server = ScriptedNats::start(|subject: &str| {
            if subject.contains("bad") {
                Play::Refuse("Permissions Violation for Publish to <something>".into())
            } else {
                Play::Well
            }
        })
        .await;
        let settings = json!({"url": server.url(), "jetstream": jetstream});
        let timeout = std::time::Duration::from_secs(2);
        let mut sink = open_with("nats", settings, timeout).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=8, SUBJECT);
        events[3] = outgoing(4, "astro.main.bad", "room");
        let (refused, _) = carry_all(&mut sink, &events).await;
        assert_eq!(refused, [4], "jetstream {jetstream}");
        assert!(server.came().len() >= 7);
    }
}

#[tokio::test]
async fn a_closed_connection_differs_from_a_silent_server() {
    for (play, closed) in [(Play::HangUp, true), (Play::Ignore, false)] {
        let server = ScriptedNats::start(move |_: &str| play.clone()).await;
        let settings = json!({"url": server.url(), "jetstream": true});
        let timeout = std::time::Duration::from_secs(1);
        let mut sink = open_with("nats", settings, timeout).unwrap();
        connect(&mut sink).await.unwrap();
        let failure = deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Down(_)) && failure.accepted == 0, "{failure:?}");
        assert_eq!(failure.cause.is_closed_by_peer(), closed, "{failure:?}");
    }
}

#[tokio::test]
async fn a_forbidden_constant_subject_denies_the_sink() {
    let server = NatsServer::start(&permissions(r#"publish: { deny: "events" }"#)).await;
    server.streams().await;
    for jetstream in [false, true] {
        let settings =
            json!({"subject": "events", "jetstream": jetstream, "create_stream": jetstream});
        let mut sink = open("nats", as_relay(&server, &settings)).unwrap();
        connect(&mut sink).await.unwrap();
        let failure = deliver(&mut sink, &batch(1..=3, "events")).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Denied { .. }), "{failure:?}");
    }
}

/// A large event does not fit any more, and the small ones behind it would.
#[tokio::test]
async fn nothing_is_stored_behind_an_event_that_is_not_stored() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let config = |max_bytes| Config {
        max_bytes,
        discard: DiscardPolicy::New,
        ..stream_config(&["astro.>"])
    };
    context.create_stream(config(20_000)).await.unwrap();
    let mut sink = open("nats", json!({"url": server.url(), "jetstream": true})).unwrap();
    connect(&mut sink).await.unwrap();
    let mut events = batch(1..=9, SUBJECT);
    let large = format!(r#"{{"n":4,"x":"{}"}}"#, "x".repeat(30_000));
    events[3] = outgoing_with(4, SUBJECT, "room", &large);
    for _ in 0..2 {
        let failure = deliver(&mut sink, &events).await.unwrap_err();
        assert_eq!(failure.accepted, 3);
        let Cause::Busy { reason, .. } = failure.cause else { panic!("{failure:?}") };
        assert!(reason.contains("maximum bytes"), "{reason}");
        assert_eq!(server.stored("ASTRO").await, [1, 2, 3]);
    }
    context.update_stream(config(1_000_000)).await.unwrap();
    deliver(&mut sink, &events[3..]).await.unwrap();
    assert_eq!(server.stored("ASTRO").await, (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn another_writer_to_the_stream_breaks_neither_order_nor_progress() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "create_stream": true});
    let mut sink = open("nats", settings).unwrap();
    connect(&mut sink).await.unwrap();
    let events = batch(1..=600, SUBJECT);
    let other = async {
        for _ in 0..300 {
            context.publish("astro.else", "else".into()).await.unwrap().await.unwrap();
        }
    };
    let ours = async {
        for events in events.chunks(50) {
            deliver(&mut sink, events).await.unwrap();
        }
    };
    tokio::join!(other, ours);
    assert_eq!(server.stored("ASTRO").await, (1..=600).collect::<Vec<_>>());
    assert_eq!(sink.tally(), [("duplicates", 0)]);
}

#[tokio::test]
async fn a_subject_outside_the_stream_is_rejected_alone_and_found_by_the_probe() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    context.create_stream(stream_config(&["astro.*.channel.tips"])).await.unwrap();
    let mut sink = open("nats", json!({"url": server.url(), "jetstream": true})).unwrap();
    connect(&mut sink).await.unwrap();
    let remarks = sink.remarks();
    assert!(remarks.iter().any(|remark| remark.contains("astro.*.channel.tips")), "{remarks:?}");
    let gap = "astro.main.relay.gap";
    let settings = json!({"url": server.url(), "jetstream": true});
    let probed = probe("nats", settings, &[gap, SUBJECT]).await.unwrap();
    let [Permission::Denied(reason), Permission::Granted] = &probed[..] else {
        panic!("{probed:?}")
    };
    assert!(reason.contains("astro.*.channel.tips"), "{reason}");
    let mut events = batch(1..=30, SUBJECT);
    for place in [0, 6, 7] {
        events[place] = outgoing(events[place].record.seq, gap, "room");
    }
    let failure = deliver(&mut sink, &events).await.unwrap_err();
    let Cause::Rejected { reason } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains(gap) && reason.contains("astro.*.channel.tips"), "{reason}");
    assert_eq!(carry_all(&mut sink, &events[1..]).await, (vec![7, 8], vec![]));
    let expected: Vec<u64> = (1..=30).filter(|n| ![1, 7, 8].contains(n)).collect();
    assert_eq!(server.stored("ASTRO").await, expected);
}

/// A stream that is gone for a while answers as one without a leader does: nobody answers.
#[tokio::test]
async fn events_wait_for_a_stream_without_a_leader_that_the_user_may_not_look_at() {
    let rights = r#"publish: "astro.>", subscribe: "_INBOX.>""#;
    let server = NatsServer::start(&permissions(rights)).await;
    let context = server.streams().await;
    context.create_stream(stream_config(&["astro.>"])).await.unwrap();
    let mut sink = open("nats", as_relay(&server, &json!({"jetstream": true}))).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
    context.delete_stream("ASTRO").await.unwrap();
    let mut events = batch(4..=6, SUBJECT);
    events.extend(batch(7..=9, "astro.main.new"));
    for rest in [&events[..], &events[3..]] {
        let failure = deliver(&mut sink, rest).await.unwrap_err();
        let Cause::Busy { reason, .. } = failure.cause else { panic!("{failure:?}") };
        assert!(reason.contains("no leader"), "{reason}");
    }
    context.create_stream(stream_config(&["astro.>"])).await.unwrap();
    deliver(&mut sink, &events).await.unwrap();
    assert_eq!(server.stored("ASTRO").await, (4..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_subject_is_rejected_alone() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let config = Config {
        max_messages_per_subject: 2,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        ..stream_config(&["astro.>"])
    };
    context.create_stream(config).await.unwrap();
    let mut sink = open("nats", json!({"url": server.url(), "jetstream": true})).unwrap();
    connect(&mut sink).await.unwrap();
    let events: Vec<_> = (1..=6)
        .map(|seq| outgoing(seq, if seq % 2 == 0 { "astro.even" } else { "astro.odd" }, "room"))
        .chain(batch(7..=8, SUBJECT))
        .collect();
    assert_eq!(carry_all(&mut sink, &events).await, (vec![5, 6], vec![]));
    assert_eq!(server.stored("ASTRO").await, [1, 2, 3, 4, 7, 8]);
}

#[tokio::test]
async fn a_stream_that_can_take_nothing_denies_the_sink() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true});
    let denied = async |cause: Cause, words: &str| {
        let Cause::Denied { reason } = cause else { panic!("{words}: {cause:?}") };
        assert!(reason.contains(words), "{words}: {reason}");
    };

    let origin = Config { name: "ORIGIN".into(), ..stream_config(&["origin.>"]) };
    context.create_stream(origin).await.unwrap();
    let mirror =
        async_nats::jetstream::stream::Source { name: "ORIGIN".into(), ..Default::default() };
    context.create_stream(Config { mirror: Some(mirror), ..stream_config(&[]) }).await.unwrap();
    let mut sink = open("nats", settings.clone()).unwrap();
    denied(connect(&mut sink).await.unwrap_err().cause, "mirror").await;

    context.delete_stream("ASTRO").await.unwrap();
    context.create_stream(Config { no_ack: true, ..stream_config(&["astro.>"]) }).await.unwrap();
    denied(connect(&mut sink).await.unwrap_err().cause, "no_ack").await;

    // Replaced while the connection stands, by one that takes something else.
    context.delete_stream("ASTRO").await.unwrap();
    context.create_stream(stream_config(&["astro.>"])).await.unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
    context.delete_stream("ASTRO").await.unwrap();
    context.create_stream(stream_config(&["orders.>"])).await.unwrap();
    denied(deliver(&mut sink, &batch(4..=6, SUBJECT)).await.unwrap_err().cause, "orders.>").await;

    // Deleted, and nobody makes it.
    context.delete_stream("ASTRO").await.unwrap();
    context.create_stream(stream_config(&["astro.>"])).await.unwrap();
    connect(&mut sink).await.unwrap();
    context.delete_stream("ASTRO").await.unwrap();
    denied(deliver(&mut sink, &batch(4..=6, SUBJECT)).await.unwrap_err().cause, "no stream").await;

    // Sealed.
    context.create_stream(stream_config(&["astro.>"])).await.unwrap();
    connect(&mut sink).await.unwrap();
    context.update_stream(Config { sealed: true, ..stream_config(&["astro.>"]) }).await.unwrap();
    denied(deliver(&mut sink, &batch(4..=6, SUBJECT)).await.unwrap_err().cause, "sealed").await;
}

/// The server would end the connection at it, again and again.
#[tokio::test]
async fn an_overlong_subject_is_rejected_alone() {
    for (limit, lengths) in [("", [4100, 5000]), ("max_control_line: 512", [600, 900])] {
        for jetstream in [false, true] {
            let server = NatsServer::start(limit).await;
            server.streams().await;
            let listener = Listener::start(&server, "astro.>").await;
            let settings =
                json!({"url": server.url(), "jetstream": jetstream, "create_stream": jetstream});
            let mut sink = open("nats", settings).unwrap();
            connect(&mut sink).await.unwrap();
            let mut events = batch(1..=12, SUBJECT);
            for (place, length) in [3, 8].into_iter().zip(lengths) {
                let address = format!("astro.{}", "x".repeat(length));
                events[place] = outgoing(events[place].record.seq, &address, "room");
            }
            let (refused, failures) = carry_all(&mut sink, &events).await;
            assert_eq!(refused, [4, 9], "{limit} jetstream {jetstream}: {failures:?}");
            // Once for each, where the limit is not the usual one.
            assert!(failures.len() <= if limit.is_empty() { 0 } else { 2 }, "{failures:?}");
            let expected: Vec<u64> = (1..=12).filter(|n| ![4, 9].contains(n)).collect();
            until("the others arrive", PATIENCE, async || {
                (first_arrivals(&listener.numbers()) == expected).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn nothing_is_published_to_reserved_subjects() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    context
        .create_stream(Config { name: "KEEP".into(), ..stream_config(&["keep"]) })
        .await
        .unwrap();
    context.publish("keep", "x".into()).await.unwrap().await.unwrap();
    let listener = Listener::start(&server, ">").await;
    let mut sink = open("nats", json!({"url": server.url(), "subject": "{{ data.x }}"})).unwrap();
    connect(&mut sink).await.unwrap();
    let mut events = batch(1..=4, SUBJECT);
    events[0].address = "$JS.API.STREAM.PURGE.KEEP".into();
    events[1].address = "astro.main.command.session.reset".into();
    events[2].address = "_INBOX.somebody".into();
    assert_eq!(carry_all(&mut sink, &events).await, (vec![1, 2, 3], vec![]));
    until("the sound one arrives", PATIENCE, async || (listener.numbers() == [4]).then_some(()))
        .await;
    assert_eq!(context.get_stream("KEEP").await.unwrap().cached_info().state.messages, 1);
}

#[tokio::test]
async fn unreachable_servers_delay_the_connect_by_moments() {
    let server = NatsServer::start("").await;
    let (hanging, mute) = (Hanging::new().await, Mute::new().await);
    let dead = [hanging.address, mute.address, refused()].map(|dead| format!("nats://{dead}"));
    let urls: Vec<_> = dead.into_iter().chain([server.url()]).collect();
    for timeout in [4, 10, 60].map(std::time::Duration::from_secs) {
        let mut sink = open_with("nats", json!({"urls": urls}), timeout).unwrap();
        for _ in 0..2 {
            let limit = timeout.min(std::time::Duration::from_secs(8));
            let connecting = tokio::time::timeout(limit, sink.connect());
            connecting.await.expect("within seconds, whatever the timeout").unwrap();
            deliver(&mut sink, &batch(1..=3, SUBJECT)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_probe_makes_neither_stream_nor_bucket() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "create_stream": true});
    let mut sink = open_probe("nats", settings.clone()).unwrap();
    connect(&mut sink).await.unwrap();
    let facts = sink.remarks();
    assert!(facts.iter().any(|fact| fact.contains("does not exist yet")), "{facts:?}");
    let facts = probe_state("nats", settings.clone()).await.unwrap();
    assert!(facts.iter().any(|fact| fact.contains("does not exist yet")), "{facts:?}");
    assert_eq!(probe("nats", settings, &[SUBJECT]).await.unwrap(), [Permission::Granted]);
    let failure = deliver(&mut sink, &batch(1..=1, SUBJECT)).await.unwrap_err();
    assert!(failure.cause.to_string().contains("makes the stream when it starts"), "{failure:?}");
    for name in ["ASTRO", "KV_astro_state"] {
        assert!(context.get_stream(name).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_replay_is_stored_once_more_and_only_once() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "create_stream": true});
    let mut sink = open("nats", settings.clone()).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=4, SUBJECT)).await.unwrap();
    // Given up when it is on its way, and sent again: it is the same replay.
    let first = replayed(batch(2..=3, SUBJECT), "7-1");
    drop(sink.deliver(&first).now_or_never());
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &first).await.unwrap();
    // Cut off behind that, and resumed by another process.
    let mut sink = open("nats", settings).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &first).await.unwrap();
    assert_eq!(server.stored("ASTRO").await, [1, 2, 3, 4, 2, 3]);
    // Somebody asks once more.
    deliver(&mut sink, &replayed(batch(2..=3, SUBJECT), "8-2")).await.unwrap();
    assert_eq!(server.stored("ASTRO").await, [1, 2, 3, 4, 2, 3, 2, 3]);
}

#[tokio::test]
async fn two_sinks_on_one_stream_both_store_what_they_make_of_an_event() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let settings = json!({"url": server.url(), "jetstream": true, "create_stream": true});
    let mut first = open("nats", settings.clone()).unwrap();
    connect(&mut first).await.unwrap();
    deliver(&mut first, &batch(1..=3, SUBJECT)).await.unwrap();
    let mut other = settings;
    other["subject"] = "astro.second.{{ topic }}".into();
    // The second of them, perhaps of another relay, makes the same of an event.
    for _ in 0..2 {
        let mut second = open("nats", other.clone()).unwrap();
        connect(&mut second).await.unwrap();
        deliver(&mut second, &batch(1..=3, "astro.second.channel.tips")).await.unwrap();
        assert_eq!(server.stored("ASTRO").await, [1, 2, 3, 1, 2, 3]);
    }
}

#[tokio::test]
async fn a_bucket_that_was_made_anew_is_noticed() {
    let server = NatsServer::start("").await;
    let context = server.streams().await;
    let mut publisher = open_publisher("nats", json!({"url": server.url()})).unwrap();
    publisher.connect().await.unwrap();
    let status = Part { path: StateKey::relay(Section::Status), payload: Some("{}".into()) };
    let status = std::slice::from_ref(&status);
    for _ in 0..3 {
        publisher.publish(status).await.unwrap();
    }
    context.delete_stream("KV_astro_state").await.unwrap();
    let failure = publisher.publish(status).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
    publisher.connect().await.unwrap();
    publisher.publish(status).await.unwrap();
    publisher.publish(status).await.unwrap();
    let mut config =
        context.get_stream("KV_astro_state").await.unwrap().cached_info().config.clone();
    context.delete_stream("KV_astro_state").await.unwrap();
    config.max_messages_per_subject = 1;
    context.create_stream(config).await.unwrap();
    let failure = publisher.publish(status).await.unwrap_err();
    assert!(failure.cause.to_string().contains("created again"), "{failure:?}");
}

#[tokio::test]
async fn credentials_are_read_anew_for_each_connection() {
    let server = NatsServer::start("authorization { user: relay, password: right }").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, "wrong").unwrap();
    let settings = json!({"url": server.url(), "user": "relay", "password": {"file": path}});
    let mut sink = open("nats", settings).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Denied { .. }), "{failure:?}");
    std::fs::write(&path, "right").unwrap();
    connect(&mut sink).await.unwrap();
}
