//! Frames that are not what they should be: skipped where the protocol allows it.

use astro_sim::{End, Ended, Malformed, Options};
use serde_json::json;

use super::{
    OTHER, ROOM, SOON,
    bench::{Bench, Want, targets},
};
use crate::support::wait::until;

const WANTS: [Want<'_>; 1] = [("a", "channel.tips", Some(ROOM))];

#[tokio::test]
async fn nonsense_is_skipped_and_the_link_is_kept() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    let nonsense = [
        Malformed::InvalidJson,
        Malformed::Binary,
        Malformed::UnknownType,
        Malformed::NoObject,
        Malformed::NoTopic,
    ];
    for (n, malformed) in (0..).zip(nonsense) {
        for _ in 0..500 {
            bench.sim.send_malformed(None, malformed);
        }
        bench.carries("channel.tips", ROOM, n).await;
    }
    assert_eq!(bench.received(nonsense.len()).await.len(), nonsense.len());
    assert_eq!(bench.sim.stats().opened, 1);
}

#[tokio::test]
async fn a_payload_is_not_looked_into_however_deep_it_is() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    bench.sim.send_malformed(None, Malformed::Deep(100_000));
    bench.carries("channel.tips", ROOM, 1).await;
    let events = bench.received(2).await;
    assert_eq!(events[0].data().len(), 200_000);
    assert_eq!(
        (&*events[0].place.topic, &*events[0].place.channel),
        ("channel.deep", ""),
        "nobody's"
    );
    assert_eq!(bench.sim.stats().opened, 1);
}

#[tokio::test]
async fn a_message_in_pieces_is_one_message() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    let message =
        format!(r#"{{"type":"message","topic":"channel.tips","room":"{ROOM}","data":1}}"#);
    bench.sim.send_fragmented(None, &message, 5);
    assert_eq!(bench.received(1).await[0].message, message.as_bytes());
}

#[tokio::test]
async fn odd_envelopes_are_relayed_where_the_topic_can_be_made_out() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    let odd = [
        r#"{"type":"message","topic":"channel.tips","room":ROOM,"id":7,"ts":1708008762500,"data":1}"#,
        r#"{"type":"message","topic":"channel.tips","room":ROOM,"room":ROOM,"data":0,"data":1}"#,
        r#"{"type":"message","topic":"channel.tips","room":ROOM,"error":false,"nonce":0,"data":1}"#,
        r#"{"type":"MESSAGE","Topic":"channel.tips","room":ROOM,"id":[],"ts":{},"data":1}"#,
        r#"{"topic":"channel.tips","room":ROOM,"data":1}"#,
        r#"{"type":null,"topic":"channel.tips","data":1}"#,
        r#"{"type":"message","topic":"channel.tips","room":false,"data":1}"#,
        "\u{feff}{\"type\":\"message\",\"topic\":\"channel.tips\",\"room\":ROOM,\"data\":1}",
        r#"[{"type":"message","topic":"channel.tips","room":ROOM,"data":1}]"#,
        "{\"type\":\"message\",\"topic\":\"channel.tips\",\"room\":ROOM,\"data\":1}\r\n",
    ];
    for (turn, message) in (0..).zip(odd) {
        // Each has something of its own: the same twice would be a duplicate.
        let message = message.replace("ROOM", &format!("{ROOM:?}"));
        let message = message.replace("\"data\":1", &format!("\"data\":[{turn}]"));
        bench.sim.send_fragmented(None, &message, 1);
        let events = bench.received(turn + 1).await;
        let event = events.last().unwrap();
        assert_eq!(event.data(), format!("[{turn}]").as_bytes(), "{message}");
        assert_eq!(
            (&*event.place.topic, &*event.place.channel),
            ("channel.tips", "a"),
            "{message}"
        );
        let _: serde_json::Value = serde_json::from_slice(&event.message).unwrap();
    }
    let list: Vec<_> = (100..103)
        .map(|n| {
            format!(r#"{{"type":"message","topic":"channel.tips","room":{ROOM:?},"data":{n}}}"#)
        })
        .collect();
    bench.sim.send_fragmented(None, &format!("[{}]", list.join(",")), 1);
    bench.sim.send_fragmented(None, &list.join("\n").replace(":10", ":20"), 1);
    let events = bench.received(odd.len() + 6).await;
    let data: Vec<_> =
        events[odd.len()..].iter().map(astro_relay::base::event::Event::data).collect();
    assert_eq!(data, [b"100", b"101", b"102", b"200", b"201", b"202"]);
    assert_eq!(bench.sim.stats().opened, 1);
    assert_eq!(bench.reasons(), [""; 0]);
}

/// What a strict reader of JSON refuses somewhere in a payload is none of the relay's business.
#[tokio::test]
async fn odd_payloads_are_relayed_byte_for_byte() {
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    let nested = format!("{}1{}", r#"{"a":["#.repeat(200), "]}".repeat(200));
    let payloads = [
        r#"{"donation":{"user":{"username":"great \ud83d"},"amount":5}}"#,
        r#"{"donation":{"amount":1e400}}"#,
        r#"{"donation":{"amount":123456789012345678901234567890.10}}"#,
        r#"{"donation":{"amount":1,"amount":2},"donation":null}"#,
        &nested,
        r#" { "donation" : { "amount" : 5.0 , "message" : "\u0000 \/ \ud83d\ude00" } } "#,
    ];
    for (turn, data) in (0..).zip(payloads) {
        let message = format!(
            r#"{{"id":"01J{turn}","type":"message","topic":"channel.tips","room":{ROOM:?},"data":{data}}}"#
        );
        bench.sim.send_fragmented(None, &message, 1);
        let events = bench.received(turn + 1).await;
        let event = events.last().unwrap();
        assert_eq!(event.message, message.as_bytes(), "{message}");
        assert_eq!(event.data(), data.trim().as_bytes());
        assert_eq!((&*event.place.topic, &*event.place.channel), ("channel.tips", "a"));
        assert!(!event.key().is_empty());
    }
    assert_eq!(bench.sim.stats().opened, 1);
    assert_eq!(bench.reasons(), [""; 0]);
    assert!(bench.gaps().await.is_empty());
}

#[tokio::test]
async fn messages_that_reach_no_channel_are_a_matter_of_health_on_the_next_connection_too() {
    let wants = [ROOM, OTHER].map(|room| (room, "channel.tips", Some(room)));
    let options = Options { message_room: false, ..Options::default() };
    let bench = Bench::start(options, &wants).await;
    bench.confirmed(2).await;
    bench.sim.publish("channel.tips", ROOM, json!({ "n": 1 }));
    let is_said = || bench.reasons().iter().any(|reason| reason.contains("they reach none"));
    until("the health says so", SOON, async || is_said().then_some(())).await;
    bench.sim.end(None, End::Reset);
    until("the next one is open", SOON, async || (bench.sim.stats().opened == 2).then_some(()))
        .await;
    bench.confirmed(2).await;
    assert!(is_said(), "{:?}", bench.reasons());
}

#[tokio::test]
async fn repeated_unreadable_messages_are_a_matter_of_health() {
    let limit = 64 * 1024;
    for (malformed, words) in [
        (Malformed::NoTopic, "a message without a topic"),
        (Malformed::InvalidJson, "not an object of JSON"),
        (Malformed::Oversized(limit + 100), "max_message_size"),
    ] {
        let bench = Bench::with(Options::default(), targets(&WANTS), |astro| {
            astro.max_message_size = astro_relay::config::Size(limit as u64);
        })
        .await;
        bench.confirmed(1).await;
        bench.sim.send_malformed(None, malformed);
        bench.carries("channel.tips", ROOM, 1).await;
        assert_eq!(bench.reasons(), [""; 0], "once is no matter");
        for _ in 0..5 {
            bench.sim.send_malformed(None, malformed);
        }
        until("the health says so", SOON, async || {
            let reasons = bench.reasons();
            reasons.first().is_some_and(|reason| reason.contains(words)).then_some(())
        })
        .await;
        bench.carries("channel.tips", ROOM, 2).await;
        assert_eq!(bench.sim.stats().opened, 1, "{malformed:?}: the link is kept");
    }
}

#[tokio::test]
async fn one_oversized_message_does_not_cost_the_link() {
    let limit = 64 * 1024;
    let bench = Bench::with(Options::default(), targets(&WANTS), |astro| {
        astro.max_message_size = astro_relay::config::Size(limit as u64);
    })
    .await;
    bench.confirmed(1).await;
    for (n, size) in (0..).zip([limit - 100, limit + 100, 8 << 20]) {
        bench.sim.send_malformed(None, Malformed::Oversized(size));
        bench.carries("channel.tips", ROOM, n).await;
    }
    assert_eq!(bench.sim.stats().opened, 1);
    assert!(bench.gaps().await.is_empty());
}

#[tokio::test]
async fn a_protocol_violation_ends_the_connection() {
    let broken = [
        (Malformed::InvalidUtf8, "not UTF-8"),
        (Malformed::Oversized(65 << 20), "max_message_size"),
        (Malformed::ReservedOpcode, "opcode"),
    ];
    let bench = Bench::start(Options::default(), &WANTS).await;
    bench.confirmed(1).await;
    for (turn, (malformed, words)) in (2..).zip(broken) {
        bench.sim.send_malformed(None, malformed);
        until(&format!("{malformed:?}: another connection"), SOON, async || {
            bench.connection(turn).filter(|record| record.subscriptions.len() == 1)
        })
        .await;
        let error = bench.state().connections[&1].last_error.clone().unwrap();
        assert!(error.contains(words), "{malformed:?}: {error}");
        // What the server had still to write of so much may have come in the way.
        let ended = bench.connection(turn - 1).unwrap().ended;
        assert!(matches!(ended, Some(Ended::ByClient | Ended::Gone)), "{malformed:?}: {ended:?}");
        bench.carries("channel.tips", ROOM, turn).await;
    }
    let gaps = bench.gaps().await;
    assert_eq!(gaps.len(), broken.len(), "each is a gap: {gaps:?}");
}
