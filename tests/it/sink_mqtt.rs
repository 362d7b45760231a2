//! The MQTT sink against mosquitto, and against a broker that plays by a script.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use astro_relay::{
    config::Start,
    delivery::{Delivery, route::Route, status::Status},
    journal::Journal,
    sink::{self, Cause, Opening, Purpose, TimeLeft},
};
use rumqttc_v5::{ConnAckProperties, ConnectReturnCode, DisconnectReasonCode, PubAckReason};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    carry::{PATIENCE, carry_over, connect, deliver, first_arrivals, pass, within},
    journal,
    mosquitto::{Listener, Mosquitto, Options},
    process::free_port,
    scripted_broker::{Gate, Greeting, Play, ScriptedBroker, silent, well},
    sinks::{self, batch, certificate, id, open, open_with, outgoing_with},
    wait::until,
    websocket_bridge,
};

#[tokio::test]
async fn metadata_is_sent_as_user_properties() {
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, "astro/main/#").await;
    let mut sink =
        open("mqtt", json!({"url": broker.url(), "retain": format!("id == {:?}", id(2))})).unwrap();
    connect(&mut sink).await.unwrap();
    let mut events = batch(1..=2, "astro/main/channel/tips");
    events[1].expires_in = Some(TimeLeft::from_now(Duration::from_secs(30)));
    deliver(&mut sink, &events).await.unwrap();

    let heard = listener.wait_for(2).await;
    assert_eq!(heard[0].payload, events[0].payload);
    let properties = heard[1].properties.clone().unwrap();
    let pairs: Vec<(&str, &str)> =
        properties.user_properties.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(
        pairs,
        [
            ("id", &*id(2)),
            ("topic", "channel.tips"),
            ("room", "room"),
            ("channel", "main"),
            ("ts", "2024-02-15T14:52:42Z"),
            ("origin", "live"),
        ]
    );
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert!(properties.message_expiry_interval.is_some_and(|left| (29..=30).contains(&left)));

    // Only the second is kept by the broker: who comes late hears that one.
    let late = Listener::start(broker.port, "astro/main/channel/tips").await;
    assert_eq!(late.wait_for(1).await[0].payload, events[1].payload);
    sink.close().await;
}

#[tokio::test]
async fn every_version_and_qos_accepts_in_order() {
    let broker = Mosquitto::start(Options::default()).await;
    for version in ["5", "3.1.1"] {
        for qos in 0..=2 {
            let listener = Listener::start(broker.port, "order/#").await;
            let settings = json!({"url": broker.url(), "version": version, "qos": qos});
            let mut sink = open("mqtt", settings).unwrap();
            connect(&mut sink).await.unwrap();
            deliver(&mut sink, &batch(1..=300, "order/x")).await.unwrap();
            deliver(&mut sink, &batch(301..=500, "order/x")).await.unwrap();
            listener.wait_for(500).await;
            assert_eq!(
                listener.numbers(),
                (1..=500).collect::<Vec<_>>(),
                "version {version}, QoS {qos}"
            );
            sink.close().await;
        }
    }
}

#[tokio::test]
async fn the_availability_topic_follows_the_connection() {
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, "astro/relay/#").await;
    let words = async |count: usize| {
        let heard = listener.wait_for(count).await;
        heard
            .iter()
            .map(|said| String::from_utf8_lossy(&said.payload).into_owned())
            .collect::<Vec<_>>()
    };
    let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    assert_eq!(words(1).await, ["online"]);
    // A farewell says it, a connection that breaks off has it said by the broker.
    within("close", sink.close()).await;
    assert_eq!(words(2).await, ["online", "offline"]);
    connect(&mut sink).await.unwrap();
    drop(sink);
    assert_eq!(words(4).await, ["online", "offline", "online", "offline"]);
    let late = Listener::start(broker.port, "astro/relay/test/availability").await;
    assert_eq!(late.wait_for(1).await[0].payload, "offline");
}

#[tokio::test]
async fn a_refused_event_is_rejected_alone_and_no_event_is_sent_twice() {
    let script = |number, _| {
        let refused = number == 3 || number == 7;
        Play::Answer(if refused { PubAckReason::NotAuthorized } else { PubAckReason::Success })
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    for qos in [1, 2] {
        let mut sink = open("mqtt", json!({"url": broker.url(), "qos": qos})).unwrap();
        connect(&mut sink).await.unwrap();
        let events = batch(1..=10, "astro/x");
        for (place, accepted) in [(0, 2), (3, 3)] {
            let failure = deliver(&mut sink, &events[place..]).await.unwrap_err();
            assert_eq!(failure.accepted, accepted, "{failure:?}");
            let Cause::Rejected { reason } = failure.cause else { panic!("{failure:?}") };
            assert!(reason.contains("0x87") && reason.contains("topic astro/x"), "{reason}");
        }
        deliver(&mut sink, &events[7..]).await.unwrap();
        assert_eq!(broker.came(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        broker.forget();
    }
}

/// A delivery of the events 1 to 10 to a sink with these settings, until each is dealt with. The clock
/// jumps over its waits. Answers how many were rejected for good: without a directory there are no dead
/// letters.
#[expect(clippy::disallowed_methods, reason = "the test is the supervisor")]
async fn deliver_ten(settings: Value) -> u64 {
    let mut config = sinks::config("mqtt", Duration::from_mins(5));
    config.settings = settings;
    config.start = Start::Earliest;
    // Not the reports of what it rejects.
    config.topics = Some(vec!["channel.*".into()]);
    let kind = sink::kind("mqtt").unwrap();
    let purpose = Purpose::Relay;
    let opened = (kind.open)(&Opening { name: "far", config: &config, purpose }).unwrap();
    let route = Route::new("far", &config, kind).unwrap();
    let journal = Journal::in_memory(1 << 20);
    journal::append(&journal, journal::events(1..=10)).await;
    let status = Arc::new(Status::default());
    let of_task = Arc::clone(&status);
    let delivery = Delivery::new("far", &config, opened, route, journal.clone(), of_task).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(delivery.run(stop.clone()));
    let begun = tokio::time::Instant::now();
    while journal.lag("far").0 > 0 {
        assert!(begun.elapsed() < Duration::from_hours(1), "not all is dealt with");
        // Time for what the network brings, and then a part of a wait is over.
        tokio::time::sleep(Duration::from_millis(5)).await;
        pass(Duration::from_millis(500)).await;
    }
    stop.cancel();
    task.await.unwrap();
    status.read(|now| now.sinks["far"].lost)
}

/// mosquitto 2.0.11 now and then ends the connection at an event that its access list denies, and what it
/// had answered before is lost with it.
#[tokio::test]
async fn an_event_that_an_access_list_denies_becomes_a_dead_letter() {
    let acl = "topic readwrite open/#\ntopic read #\ntopic write astro/relay/#\n";
    for version in ["5", "3.1.1"] {
        let broker = Mosquitto::start(Options { acl, ..Options::default() }).await;
        let listener = Listener::start(broker.port, "open/#").await;
        // Those of 3, 6 and 9.
        let topic = "{{ 'closed' if topic == 'channel.0' else 'open' }}/x";
        let settings = json!({"url": broker.url(), "version": version, "topic": topic});
        let rejected = deliver_ten(settings).await;
        if version == "5" {
            assert_eq!(rejected, 3);
        }
        until("the last arrives", PATIENCE, async || {
            listener.numbers().contains(&10).then_some(())
        })
        .await;
        assert_eq!(first_arrivals(&listener.numbers()), [1, 2, 4, 5, 7, 8, 10]);
    }
}

#[tokio::test]
async fn an_event_that_ends_the_connection_for_a_minute_becomes_a_dead_letter() {
    for qos in [0, 1] {
        let script = |number, before| if number == 4 { Play::HangUp } else { well(number, before) };
        let broker = ScriptedBroker::start(silent(), script).await;
        let begun = tokio::time::Instant::now();
        assert_eq!(deliver_ten(json!({"url": broker.url(), "qos": qos})).await, 1, "QoS {qos}");
        assert!(begun.elapsed() >= Duration::from_mins(1), "{:?}", begun.elapsed());
        let attempts = broker.came().iter().filter(|number| **number == 4).count();
        assert!((7..=40).contains(&attempts), "{attempts}");
        assert_eq!(first_arrivals(&broker.came()), (1..=10).collect::<Vec<_>>());
    }
}

/// A broker that is being restarted, that answers nothing, that answers half or what is no answer: however
/// often it comes, no event is to blame for it.
#[tokio::test]
async fn no_event_is_rejected_when_the_broker_is_in_trouble() {
    for (play, wait, words) in [
        // Twenty times within forty seconds.
        (Play::HangUp, Duration::from_secs(2), "the broker ended the connection"),
        (Play::Ignore, Duration::from_secs(20), "has not answered within 300ms"),
        (Play::Half, Duration::from_secs(20), "has not answered within 300ms"),
        (Play::Garbage, Duration::from_secs(20), "cannot be understood"),
        (
            Play::Disconnect(DisconnectReasonCode::ServerShuttingDown),
            Duration::from_secs(20),
            "shutting down (0x8B)",
        ),
        (
            Play::Disconnect(DisconnectReasonCode::QuotaExceeded),
            Duration::from_secs(20),
            "quota exceeded (0x97)",
        ),
        (
            Play::Disconnect(DisconnectReasonCode::MessageRateTooHigh),
            Duration::from_secs(20),
            "message rate too high (0x96)",
        ),
    ] {
        let broker = ScriptedBroker::start(silent(), move |_, before| {
            if before < 20 { play } else { Play::Answer(PubAckReason::Success) }
        })
        .await;
        let settings = json!({"url": broker.url()});
        let mut sink = open_with("mqtt", settings, Duration::from_millis(300)).unwrap();
        connect(&mut sink).await.unwrap();
        let events = batch(1..=1, "astro/x");
        let (refused, failures) = carry_over(&mut sink, &events, wait).await;
        assert!(refused.is_empty(), "{play:?}: {failures:?}");
        assert_eq!(failures.len(), 20, "{play:?}: {failures:?}");
        assert!(failures[3].contains(words), "{failures:?}");
    }
}

#[tokio::test]
async fn a_disconnect_reason_about_an_event_rejects_that_event_alone() {
    for (code, words) in [
        (DisconnectReasonCode::PacketTooLarge, "packet too large (0x95)"),
        (DisconnectReasonCode::TopicNameInvalid, "topic name invalid (0x90)"),
        (DisconnectReasonCode::PayloadFormatInvalid, "payload format invalid (0x99)"),
    ] {
        let script = move |number, before| {
            if number == 4 { Play::Disconnect(code) } else { well(number, before) }
        };
        let broker = ScriptedBroker::start(silent(), script).await;
        let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
        connect(&mut sink).await.unwrap();
        let mut done = 0;
        let events = batch(1..=6, "astro/x");
        let mut reasons = Vec::new();
        while done < events.len() {
            let Err(failure) = deliver(&mut sink, &events[done..]).await else { break };
            done += failure.accepted;
            match failure.cause {
                Cause::Rejected { reason } => {
                    done += 1;
                    reasons.push((done, reason));
                }
                _ => connect(&mut sink).await.unwrap(),
            }
        }
        let [(4, reason)] = &reasons[..] else { panic!("{reasons:?}") };
        assert!(reason.contains(words) && reason.contains("topic astro/x"), "{reason}");
        assert_eq!(first_arrivals(&broker.came()), [1, 2, 3, 4, 5, 6]);
    }
}

#[tokio::test]
async fn ambiguous_reason_codes_are_busy_and_never_rejected() {
    let script = |number, before| {
        Play::Answer(match (number, before) {
            (3, 0..=30) => PubAckReason::QuotaExceeded,
            (5, 0..=30) => PubAckReason::ImplementationSpecificError,
            (6, 0..=30) => PubAckReason::UnspecifiedError,
            _ => PubAckReason::Success,
        })
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    let mut sink = open("mqtt", json!({"url": broker.url(), "inflight": 1})).unwrap();
    connect(&mut sink).await.unwrap();
    let (refused, failures) =
        carry_over(&mut sink, &batch(1..=7, "astro/x"), Duration::from_mins(1)).await;
    assert!(refused.is_empty(), "{refused:?}");
    let of = |words: &str| failures.iter().filter(|failure| failure.contains(words)).count();
    for words in ["3: busy: quota exceeded (0x97)", "(0x83)", "6: busy: unspecified error (0x80)"] {
        assert_eq!(of(words), 31, "{words}: {failures:?}");
    }
    assert_eq!(first_arrivals(&broker.came()), [1, 2, 3, 4, 5, 6, 7]);
}

/// Whom the broker asks for patience while it accepts what is behind: that overtakes, as far as it was on
/// its way. Nothing more does with the next attempt.
#[tokio::test]
async fn what_comes_behind_an_event_that_is_busy_again_waits_for_it() {
    let script = |number, before| {
        let busy = number == 3 && before < 3;
        Play::Answer(if busy { PubAckReason::QuotaExceeded } else { PubAckReason::Success })
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    let mut sink = open("mqtt", json!({"url": broker.url(), "inflight": 4})).unwrap();
    connect(&mut sink).await.unwrap();
    let (refused, failures) =
        carry_over(&mut sink, &batch(1..=20, "astro/x"), Duration::ZERO).await;
    assert!(refused.is_empty() && failures.len() == 3, "{refused:?} {failures:?}");
    let came = broker.came();
    let second = came.iter().enumerate().filter(|(_, number)| **number == 3).nth(1).unwrap().0;
    assert_eq!(came[second..second + 3], [3, 3, 3], "{came:?}");
    assert_eq!(first_arrivals(&came), (1..=20).collect::<Vec<_>>());
    assert_eq!(came.len(), 23, "what was accepted is not sent again: {came:?}");
}

/// The client library drops the acknowledgements that it reads together with a DISCONNECT.
#[tokio::test]
async fn acknowledgements_that_come_with_a_disconnect_do_not_stop_the_queue() {
    let came = AtomicUsize::new(0);
    let script = move |_, _| {
        // Each connection has a quota of three.
        if came.fetch_add(1, Ordering::Relaxed) % 4 == 3 {
            Play::Disconnect(DisconnectReasonCode::QuotaExceeded)
        } else {
            Play::Gather
        }
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    let settings = json!({"url": broker.url(), "availability_topic": ""});
    let mut sink = open("mqtt", settings).unwrap();
    connect(&mut sink).await.unwrap();
    let (refused, failures) =
        carry_over(&mut sink, &batch(1..=10, "astro/x"), Duration::ZERO).await;
    assert!(refused.is_empty(), "{refused:?} {failures:?}");
    // The first may have been in vain.
    assert!(broker.connections() <= 5, "{failures:?}");
    assert_eq!(first_arrivals(&broker.came()), (1..=10).collect::<Vec<_>>());
}

/// With one topic for all events a missing right meets them all: none of them becomes a dead letter.
#[tokio::test]
async fn a_denial_of_the_only_topic_holds_the_sink() {
    for (reason, words) in [
        (PubAckReason::NotAuthorized, "not authorized (0x87); topic events"),
        (PubAckReason::TopicNameInvalid, "topic name invalid (0x90); topic events"),
    ] {
        let script =
            move |_, before| Play::Answer(if before == 0 { reason } else { PubAckReason::Success });
        let broker = ScriptedBroker::start(silent(), script).await;
        let mut sink = open("mqtt", json!({"url": broker.url(), "topic": "events"})).unwrap();
        connect(&mut sink).await.unwrap();
        let events = batch(1..=5, "events");
        let failure = deliver(&mut sink, &events).await.unwrap_err();
        assert_eq!(failure.accepted, 0, "{failure:?}");
        let Cause::Denied { reason } = failure.cause else { panic!("{failure:?}") };
        assert_eq!(reason, words);
        // The right is given.
        deliver(&mut sink, &events).await.unwrap();
        assert_eq!(broker.came(), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
        // Home Assistant's events have topics of their own.
        let failure = deliver(&mut sink, &batch(6..=6, "astro/main/event/tip")).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Rejected { .. }), "{failure:?}");
    }
}

#[tokio::test]
async fn availability_that_the_broker_does_not_take_is_published_again() {
    let topic = "astro/relay/test/availability";
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, topic).await;
    let gate = Gate::start(broker.port, topic, PubAckReason::QuotaExceeded).await;
    let mut sink = open("mqtt", json!({"url": gate.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    let online = async {
        until("it is refused again", PATIENCE, async || (gate.refused() > 1).then_some(())).await;
        gate.open();
        listener.wait_for(1).await
    };
    let heard = tokio::select! {
        failure = sink.idle() => panic!("{failure:?}"),
        heard = online => heard,
    };
    assert_eq!(heard[0].payload, "online");
}

#[tokio::test]
async fn connack_codes_are_denied_busy_or_down() {
    use ConnectReturnCode as Code;
    for (code, kind, words) in [
        (Code::NotAuthorized, "denied", "0x87"),
        (Code::BadUserNamePassword, "denied", "password"),
        (Code::Banned, "denied", "0x8A"),
        (Code::ClientIdentifierNotValid, "denied", "astro-relay-test"),
        (Code::UnsupportedProtocolVersion, "denied", "version = \"3.1.1\""),
        (Code::ServerBusy, "busy", "0x89"),
        (Code::ServerUnavailable, "busy", "0x88"),
        (Code::QuotaExceeded, "busy", "0x97"),
        (Code::ConnectionRateExceeded, "busy", "0x9F"),
        (Code::UnspecifiedError, "down", "0x80"),
        (Code::UseAnotherServer, "down", "0x9C"),
    ] {
        let broker = ScriptedBroker::greeting(Greeting::Refuse(code), well).await;
        let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
        let text = connect(&mut sink).await.unwrap_err().cause.to_string();
        assert!(text.starts_with(kind) && text.contains(words), "{text}");
    }
}

/// Brokers of 3.1.1 answer a CONNECT of version 5 in three ways.
#[tokio::test]
async fn a_broker_that_speaks_3_1_1_only_is_recognised() {
    for greeting in [
        Greeting::Say(vec![0x20, 2, 0, 1]),
        Greeting::Refuse(ConnectReturnCode::UnsupportedProtocolVersion),
        Greeting::Say(Vec::new()),
    ] {
        let broker = ScriptedBroker::greeting(greeting.clone(), well).await;
        let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
        let text = connect(&mut sink).await.unwrap_err().cause.to_string();
        let times = |words: &str| text.matches(words).count();
        assert_eq!(times("set version = \"3.1.1\""), 1, "{greeting:?}: {text}");
        assert_eq!(times("the broker"), 1, "{greeting:?}: {text}");
    }
    // And the other way round.
    let broker = ScriptedBroker::start(silent(), well).await;
    let mut sink = open("mqtt", json!({"url": broker.url(), "version": "3.1.1"})).unwrap();
    let text = connect(&mut sink).await.unwrap_err().cause.to_string();
    assert!(text.contains("set version = \"5\""), "{text}");
}

/// Two clients with one id: each connection ends the other.
#[tokio::test]
async fn two_sinks_with_one_client_id_reconnect_rarely_and_report_it() {
    let broker = Mosquitto::start(Options::default()).await;
    for version in ["5", "3.1.1"] {
        let settings = json!({"url": broker.url(), "version": version, "client_id": "twin"});
        let mut twins = [settings.clone(), settings].map(|one| open("mqtt", one).unwrap());
        let (mut connections, mut waited, mut named) = (0, Duration::ZERO, String::new());
        connect(&mut twins[0]).await.unwrap();
        // Ten minutes of it.
        'all: loop {
            for (this, other) in [(1, 0), (0, 1)] {
                while let Err(failure) = connect(&mut twins[this]).await {
                    let Cause::Busy { wait: Some(wait), reason } = failure.cause else {
                        panic!("{failure:?}")
                    };
                    (named, waited) = (reason, waited + wait);
                    pass(wait).await;
                }
                connections += 1;
                let ended = within("the other ends", twins[other].idle()).await;
                assert!(matches!(ended.cause, Cause::Down(_)), "{ended:?}");
                if waited > Duration::from_mins(10) {
                    break 'all;
                }
            }
        }
        assert!(connections < 80, "version {version}: {connections}");
        assert!(named.contains("another client uses the client id twin"), "{named}");
        let remarks = twins[0].remarks().join("\n");
        assert!(remarks.contains("another client uses the client id twin"), "{remarks}");
    }
}

#[tokio::test]
async fn session_taken_over_is_reported_at_once() {
    let script = |_, _| Play::Disconnect(DisconnectReasonCode::SessionTakenOver);
    let broker = ScriptedBroker::start(silent(), script).await;
    let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    let text = deliver(&mut sink, &batch(1..=1, "astro/x")).await.unwrap_err().cause.to_string();
    assert!(text.contains("0x8E"), "{text}");
    let id = "another client uses the client id astro-relay-test";
    assert_eq!(text.matches(id).count(), 1, "{text}");
    let failure = connect(&mut sink).await.unwrap_err();
    let Cause::Busy { wait: Some(wait), reason } = failure.cause else { panic!("{failure:?}") };
    assert!(wait > Duration::from_secs(3) && reason.contains(id), "{wait:?} {reason}");
    assert_eq!(broker.connections(), 1);
}

/// What a viewer types may stand in a topic.
#[tokio::test]
async fn command_topics_and_illegal_topics_are_rejected() {
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, "#").await;
    for version in ["5", "3.1.1"] {
        let settings = json!({"url": broker.url(), "version": version, "commands": true});
        let mut sink = open("mqtt", settings).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=9, "fine/x");
        let long = "x".repeat(65_536);
        let bad = [
            "astro/main/command/session/reset",
            "astro/main/command",
            "$SYS/broker/x",
            "a//b",
            "a/+",
            "a\0b",
            &long,
        ];
        for (place, topic) in bad.into_iter().enumerate() {
            events[place + 1].address = topic.into();
        }
        let (refused, failures) = carry_over(&mut sink, &events, Duration::ZERO).await;
        assert_eq!((refused, failures), ((2..=8).collect(), vec![]), "version {version}");
        deliver(&mut sink, &batch(10..=10, "fine/x")).await.unwrap();
    }
    until("the last arrives", PATIENCE, async || {
        (listener.numbers().iter().filter(|number| **number == 10).count() == 2).then_some(())
    })
    .await;
    assert_eq!(first_arrivals(&listener.numbers()), [1, 9, 10]);
}

/// Silent loss on a session that the broker forgot is this client's worst trap.
#[tokio::test]
async fn the_client_does_not_resend_what_was_in_flight_when_the_connection_ended() {
    let script = |number, before| {
        if number == 4 && before == 0 { Play::HangUp } else { well(number, before) }
    };
    let broker = ScriptedBroker::start(silent(), script).await;
    let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    let failure = deliver(&mut sink, &batch(1..=10, "astro/x")).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
    // Answers that were under way may be lost with the connection.
    assert!(failure.accepted <= 3, "{failure:?}");
    let next = u64::try_from(failure.accepted).unwrap() + 1;
    let again = deliver(&mut sink, &batch(4..=4, "astro/x")).await.unwrap_err();
    assert!(matches!(again.cause, Cause::Down(_)), "{again:?}");
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(next..=10, "astro/x")).await.unwrap();
    assert_eq!(broker.came(), (1..=4).chain(next..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_larger_than_the_broker_takes_is_rejected_and_the_connection_stays() {
    let terms = ConnAckProperties { max_packet_size: Some(400), ..silent() };
    let broker = ScriptedBroker::start(terms, well).await;
    let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    let mut events = batch(1..=3, "astro/x");
    events[1].payload = format!(r#"{{"n":2,"x":"{}"}}"#, "x".repeat(400)).into();
    let failure = deliver(&mut sink, &events).await.unwrap_err();
    assert_eq!(failure.accepted, 1);
    let Cause::Rejected { reason } = failure.cause else { panic!("{failure:?}") };
    assert!(reason.contains("larger than the broker takes (400)"), "{reason}");
    deliver(&mut sink, &events[2..]).await.unwrap();
    assert_eq!(broker.came(), [1, 3]);
    // The longest packet that is allowed is allowed.
    let mut fits = batch(4..=4, "astro/x");
    let mut low = 1;
    while low < 400 {
        fits[0].payload = format!(r#"{{"n":4,"x":"{}"}}"#, "x".repeat(low)).into();
        if deliver(&mut sink, &fits).await.is_err() {
            break;
        }
        low += 1;
    }
    assert!((100..400).contains(&low), "{low}");
}

#[tokio::test]
async fn a_topic_that_is_too_long_is_rejected() {
    let broker = ScriptedBroker::start(silent(), well).await;
    for version in ["5", "3.1.1"] {
        let url = Mosquitto::start(Options::default()).await;
        let at = if version == "5" { broker.url() } else { url.url() };
        let mut sink = open("mqtt", json!({"url": at, "version": version})).unwrap();
        connect(&mut sink).await.unwrap();
        let mut events = batch(1..=3, "astro/x");
        events[1].address = "x".repeat(65_536).into();
        let failure = deliver(&mut sink, &events).await.unwrap_err();
        assert_eq!(failure.accepted, 1);
        assert!(matches!(failure.cause, Cause::Rejected { .. }), "{failure:?}");
        deliver(&mut sink, &events[2..]).await.unwrap();
    }
}

#[tokio::test]
async fn limits_of_the_broker_are_respected_and_reported() {
    // No QoS above 0: less than was asked for.
    let terms = ConnAckProperties { max_qos: Some(0), ..silent() };
    let broker = ScriptedBroker::start(terms, well).await;
    let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(failure.cause.to_string().contains("set qos = 0"), "{}", failure.cause);

    // QoS 1 for 2: at least once all the same.
    let terms = ConnAckProperties { max_qos: Some(1), receive_max: Some(3), ..silent() };
    let broker = ScriptedBroker::start(terms, well).await;
    let mut sink = open("mqtt", json!({"url": broker.url(), "qos": 2})).unwrap();
    connect(&mut sink).await.unwrap();
    deliver(&mut sink, &batch(1..=20, "astro/x")).await.unwrap();
    let remarks = sink.remarks().join("\n");
    assert!(remarks.contains("QoS 1 at most") && remarks.contains("3 events"), "{remarks}");

    // No retained messages: those that ask for it are refused, or the connection where all do.
    let terms = ConnAckProperties { retain_available: Some(0), ..silent() };
    let broker = ScriptedBroker::start(terms, well).await;
    let mut sink = open("mqtt", json!({"url": broker.url(), "retain": true})).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(failure.cause.to_string().contains("retain = false"), "{}", failure.cause);
    let some = format!("id == {:?}", id(2));
    let mut sink = open("mqtt", json!({"url": broker.url(), "retain": some})).unwrap();
    connect(&mut sink).await.unwrap();
    let failure = deliver(&mut sink, &batch(1..=3, "astro/x")).await.unwrap_err();
    assert_eq!(failure.accepted, 1);
    assert!(matches!(failure.cause, Cause::Rejected { .. }), "{failure:?}");
}

#[tokio::test]
async fn texts_that_are_illegal_in_mqtt_are_made_legal() {
    let broker = Mosquitto::start(Options::default()).await;
    let mut sink = open("mqtt", json!({"url": broker.url()})).unwrap();
    connect(&mut sink).await.unwrap();
    let mut event = outgoing_with(1, "astro/x", "a\0b\u{1}\u{FFFF}", r#"{"n":1}"#);
    event.payload = vec![0xFF, 0, 1].into();
    deliver(&mut sink, &[event]).await.unwrap();
    deliver(&mut sink, &batch(2..=3, "astro/x")).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_kept_alive_and_its_loss_is_noticed() {
    let mut broker = Mosquitto::start(Options::default()).await;
    let mut sink = open("mqtt", json!({"url": broker.url(), "keep_alive": "1s"})).unwrap();
    connect(&mut sink).await.unwrap();
    // Longer than one and a half keep-alives, after which a broker ends a silent connection; given
    // up every now and then, as the delivery does whenever there is something to carry.
    let end = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < end {
        let idle = tokio::time::timeout(Duration::from_millis(70), sink.idle()).await;
        assert!(idle.is_err(), "{idle:?}");
    }
    deliver(&mut sink, &batch(1..=3, "astro/x")).await.unwrap();
    let (failure, ()) =
        within("notice", async { tokio::join!(sink.idle(), broker.server.kill()) }).await;
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
}

#[tokio::test]
async fn a_second_client_with_the_same_id_takes_over() {
    let broker = Mosquitto::start(Options::default()).await;
    let mut first = open("mqtt", json!({"url": broker.url()})).unwrap();
    let mut second = open("mqtt", json!({"url": broker.url()})).unwrap();
    connect(&mut first).await.unwrap();
    connect(&mut second).await.unwrap();
    let failure = within("notice", first.idle()).await;
    // This mosquitto does not say why.
    assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
}

#[tokio::test]
async fn a_password_is_never_shown() {
    let broker = Mosquitto::start(Options {
        // No anonymous user, and no other either.
        acl: "",
        extra: "password_file /dev/null",
        durable: false,
    })
    .await;
    let settings = json!({"url": broker.url(), "user": "me", "password": {"value": "hunter2"}});
    let mut sink = open("mqtt", settings).unwrap();
    let failure = connect(&mut sink).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Denied { .. }), "{failure:?}");
    let said = format!("{failure:?} {}", failure.cause);
    assert!(!said.contains("hunter2") && said.contains("refused the connection"), "{said}");
    // Every event would meet it: nothing is to be tried again and again.
}

#[tokio::test]
async fn a_broker_is_reached_through_tls() {
    let extra = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        certificate("ca.pem"),
        certificate("server.pem"),
        certificate("server.key")
    );
    let broker = Mosquitto::start(Options { extra: &extra, ..Options::default() }).await;
    for version in ["5", "3.1.1"] {
        let mut settings = json!({
            "url": format!("mqtts://localhost:{}", broker.port),
            "version": version,
            "ca_file": certificate("ca.pem"),
            "client_cert_file": certificate("client.pem"),
            "client_key_file": certificate("client.key"),
        });
        let mut sink = open("mqtt", settings.clone()).unwrap();
        connect(&mut sink).await.unwrap();
        deliver(&mut sink, &batch(1..=300, "astro/x")).await.unwrap();
        within("close", sink.close()).await;
        // Who is not who we trust is not connected to.
        settings["ca_file"] = json!(certificate("client.pem"));
        let mut sink = open("mqtt", settings).unwrap();
        let failure = connect(&mut sink).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Down(_)), "{failure:?}");
    }
}

#[tokio::test]
async fn a_broker_is_reached_through_websockets() {
    let broker = Mosquitto::start(Options::default()).await;
    let listener = Listener::start(broker.port, "astro/x").await;
    let port = websocket_bridge::start(broker.port).await;
    for (round, version) in [(1, "5"), (2, "3.1.1")] {
        let url = format!("ws://127.0.0.1:{port}/mqtt");
        let mut sink = open("mqtt", json!({"url": url, "version": version})).unwrap();
        connect(&mut sink).await.unwrap();
        deliver(&mut sink, &batch(1..=300, "astro/x")).await.unwrap();
        listener.wait_for(300 * round).await;
        within("close", sink.close()).await;
    }
}

/// In a URL the address stands in brackets, in a certificate it does not.
#[tokio::test]
async fn a_broker_with_an_address_of_ipv6_is_reached_in_every_way() {
    let (tls, plain) = (free_port(), free_port());
    let extra = format!(
        "listener {plain} ::1\nlistener {tls} ::1\ncertfile {}\nkeyfile {}\n",
        certificate("server-ipv6.pem"),
        certificate("server-ipv6.key")
    );
    let broker = Mosquitto::start(Options { extra: &extra, ..Options::default() }).await;
    for version in ["5", "3.1.1"] {
        for (url, secure) in [
            (format!("mqtt://[::1]:{plain}"), false),
            (format!("mqtts://[::1]:{tls}"), true),
            (format!("mqtts://[0:0::1]:{tls}/"), true),
        ] {
            let mut settings = json!({"url": url, "version": version});
            if secure {
                settings["ca_file"] = json!(certificate("ca-ipv6.pem"));
            }
            let mut sink = open("mqtt", settings).unwrap();
            connect(&mut sink).await.unwrap_or_else(|failure| panic!("{url}: {}", failure.cause));
            deliver(&mut sink, &batch(1..=3, "astro/x")).await.unwrap();
            within("close", sink.close()).await;
        }
        // TLS to a port without, and the other way round: both say what to look at.
        for url in [format!("mqtts://[::1]:{plain}"), format!("mqtt://[::1]:{tls}")] {
            let mut sink = open("mqtt", json!({"url": url, "version": version})).unwrap();
            let text = connect(&mut sink).await.unwrap_err().cause.to_string();
            assert!(text.contains("look at url"), "{text}");
        }
    }
    drop(broker);
}
