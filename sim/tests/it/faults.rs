//! Every fault once, as a client sees it.

use std::time::Duration;

use astro_sim::{End, Ended, Malformed, Options, Reception, Sim};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

use crate::wait::until;
use crate::{
    ROOM,
    client::{Client, SOON},
    start,
};

/// Long enough for an answer on this machine, were there one.
const SILENCE: Duration = Duration::from_millis(200);

async fn ended(sim: &Sim, index: usize) -> Ended {
    until("the server has noticed", SOON, async || sim.connections()[index].ended).await
}

#[tokio::test]
async fn connections_end_in_every_way() {
    let sim = start(Options::default()).await;
    for (end, seen) in [
        (End::Fin, Err("without closing")),
        (End::Reset, Err("reset")),
        (End::Close(1000), Ok(Some(1000))),
        (End::Close(1011), Ok(Some(1011))),
        (End::Close(4321), Ok(Some(4321))),
    ] {
        let mut client = Client::welcomed(&sim).await;
        client.subscribe("channel.tips", ROOM).await;
        sim.publish("channel.tips", ROOM, "1");
        if end == End::Reset {
            // A reset may lose what waits.
            assert_eq!(client.json().await["data"], 1);
            sim.end(None, end);
        } else {
            sim.end(None, end);
            assert_eq!(client.json().await["data"], 1);
        }
        match (client.end().await, seen) {
            (Ok(code), Ok(expected)) => assert_eq!(code, expected),
            (Err(error), Err(expected)) => {
                assert!(error.to_string().to_lowercase().contains(expected), "{error}");
            }
            (other, _) => panic!("{end:?}: {other:?}"),
        }
        until("the server has forgotten it", SOON, async || (sim.stats().open == 0).then_some(()))
            .await;
    }
    let ends: Vec<_> = sim.connections().into_iter().map(|record| record.ended.unwrap()).collect();
    assert_eq!(ends[..3], [Ended::Closed(None), Ended::Reset, Ended::Closed(Some(1000))]);
}

#[tokio::test]
async fn the_end_of_a_client_is_noticed() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.ws.close(None).await.unwrap();
    assert_eq!(client.end().await.unwrap(), Some(1000), "the close frame is answered");
    assert_eq!(ended(&sim, 0).await, Ended::ByClient);
    drop(Client::welcomed(&sim).await);
    assert_eq!(ended(&sim, 1).await, Ended::Gone);
}

#[tokio::test]
async fn a_silent_connection_stays_open_and_sends_nothing() {
    let options = Options {
        ping_every: Duration::from_millis(10),
        pong_within: Duration::from_millis(500),
        ..Options::default()
    };
    let sim = start(options).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.tips", ROOM).await;
    assert!(client.answers_ping(SOON).await);
    sim.silence(None, true);
    sim.publish("channel.tips", ROOM, "1");
    let past_the_deadline = Duration::from_millis(800);
    assert!(!client.answers_ping(past_the_deadline).await);
    let record = &sim.connections()[0];
    assert_eq!((record.ended, record.withheld, record.sent.len()), (None, 1, 0));
    sim.silence(None, false);
    let id = sim.publish("channel.tips", ROOM, "2");
    assert_eq!(sim.connections()[0].sent, [id]);
}

#[tokio::test]
async fn an_upgrade_can_be_refused() {
    let sim = start(Options::default()).await;
    let refuse = |status, retry_after: Option<&str>| Reception::Refuse {
        status,
        retry_after: retry_after.map(str::to_owned),
    };
    sim.faults(|faults| faults.next.extend([refuse(502, None), refuse(429, Some("2"))]));
    for (status, retry_after) in [(502, None), (429, Some("2"))] {
        let Err(Error::Http(answer)) = Client::connect(&sim, "").await else { panic!() };
        assert_eq!(answer.status(), status);
        let header = answer.headers().get("retry-after").map(|value| value.to_str().unwrap());
        assert_eq!(header, retry_after);
    }
    Client::welcomed(&sim).await;
    let attempts: Vec<_> = sim.attempts().into_iter().map(|attempt| attempt.refused).collect();
    assert_eq!(attempts, [Some(502), Some(429), None]);
    assert_eq!((sim.stats().refused, sim.stats().opened), (2, 1));
}

#[tokio::test]
async fn a_connection_can_be_closed_as_soon_as_it_is_open() {
    let sim = start(Options::default()).await;
    let close = |after, end| Reception::Close { after, end };
    sim.faults(|faults| {
        faults.next.push_back(close(Duration::ZERO, End::Close(1011)));
        faults.next.push_back(close(Duration::from_millis(30), End::Fin));
    });
    let mut client = Client::connect(&sim, "").await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = client.frame().await else { panic!() };
    assert_eq!(u16::from(close.code), 1011);
    let mut client = Client::welcomed(&sim).await;
    assert!(matches!(client.frame().await, Some(Err(Error::Protocol(_)))));
}

#[tokio::test]
async fn a_server_can_be_silent_from_the_start() {
    let sim = start(Options::default()).await;
    sim.faults(|faults| faults.next.extend([Reception::NeverUpgrades, Reception::Silent]));
    let mut stream = TcpStream::connect(sim.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
    assert!(timeout(SILENCE, stream.read_u8()).await.is_err(), "the upgrade is not answered");
    let mut client = Client::connect(&sim, "").await.unwrap();
    assert!(!client.answers_ping(SILENCE).await);
}

#[tokio::test]
async fn upgrade_welcome_and_responses_can_be_late() {
    let sim = start(Options::default()).await;
    let late = Duration::from_millis(50);
    sim.faults(|faults| {
        faults.upgrade_delay = late;
        faults.welcome_delay = late;
        faults.response_delay = late;
    });
    let start = Instant::now();
    let mut client = Client::connect(&sim, "").await.unwrap();
    assert!(start.elapsed() >= late);
    let start = Instant::now();
    assert_eq!(client.json().await["type"], "welcome");
    assert!(start.elapsed() >= late / 2, "it runs from the server's side of the upgrade");
    let start = Instant::now();
    for _ in 0..2 {
        client.send(r#"{"type":"subscribe","data":{"topic":"channel.tips","token":"t"}}"#).await;
    }
    sim.publish("channel.tips", ROOM, "1");
    for _ in 0..2 {
        assert_eq!(client.json().await["type"], "response", "the effect is as late");
    }
    assert!(start.elapsed() >= late);
}

#[tokio::test]
async fn an_answer_can_be_later_than_the_effect_of_its_command() {
    let sim = start(Options::default()).await;
    // Until then both are to be subscribed and the message sent, on a busy machine too.
    let late = Duration::from_secs(3);
    sim.faults(|faults| faults.answer_delay = late);
    let mut client = Client::welcomed(&sim).await;
    let start = Instant::now();
    for topic in ["channel.tips", "channel.follow"] {
        let command = format!(
            r#"{{"type":"subscribe","nonce":"{topic}","data":{{"topic":"{topic}","token":"t"}}}}"#
        );
        client.send(&command).await;
    }
    until("both are subscribed", SOON, async || {
        (sim.connections()[0].subscriptions.len() == 2).then_some(())
    })
    .await;
    sim.publish("channel.tips", ROOM, "1");
    let seen = [client.json().await, client.json().await, client.json().await];
    assert!(start.elapsed() >= late);
    let kinds = seen.each_ref().map(|frame| frame["type"].as_str().unwrap());
    assert_eq!(kinds, ["message", "response", "response"]);
    assert_eq!(
        (&seen[1]["nonce"], &seen[2]["nonce"]),
        (&"channel.tips".into(), &"channel.follow".into())
    );
}

#[tokio::test]
async fn malformed_frames_are_as_malformed_as_asked_for() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    for malformed in [
        Malformed::InvalidJson,
        Malformed::Binary,
        Malformed::Oversized(100_000),
        Malformed::Deep(10_000),
        Malformed::UnknownType,
        Malformed::NoObject,
        Malformed::NoTopic,
    ] {
        sim.send_malformed(None, malformed);
        let frame = client.frame().await.unwrap().unwrap();
        let parsed = serde_json::from_slice::<serde_json::Value>(&frame.clone().into_data());
        match malformed {
            Malformed::InvalidJson | Malformed::Deep(_) => assert!(parsed.is_err()),
            Malformed::Binary => assert!(frame.is_binary()),
            Malformed::Oversized(bytes) => assert_eq!(frame.len(), bytes),
            Malformed::UnknownType => assert_eq!(parsed.unwrap()["type"], "greeting"),
            Malformed::NoObject => assert!(parsed.unwrap().is_array()),
            _ => assert!(parsed.unwrap().get("topic").is_none()),
        }
    }
    sim.send_malformed(None, Malformed::InvalidUtf8);
    assert!(matches!(client.frame().await, Some(Err(Error::Utf8(_)))));
    let mut client = Client::welcomed(&sim).await;
    sim.send_malformed(Some(2), Malformed::ReservedOpcode);
    let Some(Err(Error::Protocol(error))) = client.frame().await else { panic!() };
    assert_eq!(error, ProtocolError::InvalidOpcode(3));
}

#[tokio::test]
async fn messages_can_come_twice_in_pieces_and_slowly() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    client.subscribe("channel.tips", ROOM).await;
    sim.faults(|faults| faults.duplicate = true);
    let id = sim.publish("channel.tips", ROOM, "1");
    assert_eq!(client.json().await["id"], id);
    assert_eq!(client.json().await["id"], id);
    assert_eq!(sim.connections()[0].sent, [id], "it counts as one message");

    let message = r#"{"type":"message","topic":"channel.tips","data":"in pieces"}"#;
    sim.send_fragmented(None, message, 4);
    assert_eq!(client.text().await, message);

    sim.faults(|faults| {
        faults.duplicate = false;
        faults.trickle = Some(Duration::from_micros(1));
    });
    sim.publish("channel.tips", ROOM, "2");
    assert_eq!(client.json().await["data"], 2);
}

#[tokio::test]
async fn the_port_can_be_shut_and_opened() {
    let sim = start(Options::default()).await;
    let mut client = Client::welcomed(&sim).await;
    sim.listen(false);
    until("connections are refused", SOON, async || {
        TcpStream::connect(sim.address()).await.is_err().then_some(())
    })
    .await;
    assert!(client.answers_ping(SOON).await, "what stands is left alone");
    sim.listen(true);
    until("connections are accepted", SOON, async || Client::connect(&sim, "").await.ok()).await;
}

#[tokio::test]
async fn stopping_ends_everything_and_frees_the_port() {
    let sim = start(Options::default()).await;
    let address = sim.address();
    let mut client = Client::welcomed(&sim).await;
    sim.stop().await;
    assert!(client.end().await.is_err(), "without a close frame");
    let again = Sim::start(address, Options::default()).await.unwrap();
    drop(Client::welcomed(&again).await);
    let mut client = Client::welcomed(&again).await;
    drop(again);
    assert!(client.end().await.is_err());
}
