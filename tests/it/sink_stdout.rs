//! Standard output whose reader stalls: in the sink, and in the whole program.

use std::process::Stdio;

use astro_relay::{base::event::Seq, sink::Cause};
use astro_sim::{Load, Options, Sim};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, process::Command};

use crate::{
    end_to_end::subscribed,
    support::{
        carry::{PATIENCE, deliver, within},
        process::free_port,
        sinks::{install_tls, outgoing_with},
        stdout_child,
        wait::until,
    },
};

const ROOM: &str = "0f0e0d0c0b0a090807060504";

/// More than a pipe holds.
const MANY: u64 = 200;

/// A write cannot be taken back, so the delivery after it waits for it: nothing is written twice.
#[tokio::test]
async fn events_a_stalled_reader_left_unread_come_once() {
    let (mut sink, pipe) = stdout_child::start();
    let padding = "x".repeat(1024);
    let payload = |n| format!(r#"{{"n":{n},"padding":"{padding}"}}"#);
    let events: Vec<_> = (1..=MANY).map(|n| outgoing_with(n, "", "room", &payload(n))).collect();
    pipe.stop_reading();
    for _ in 0..2 {
        let failure = deliver(&mut sink, &events).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Busy { wait: None, .. }), "{failure:?}");
        assert_eq!(failure.accepted, 0);
    }
    pipe.read_on();
    deliver(&mut sink, &events).await.unwrap();
    // What was written once is written again when it is handed over again, as by a replay.
    deliver(&mut sink, &events[..3]).await.unwrap();
    let expected: Vec<Seq> = (1..=MANY).chain(1..=3).collect();
    until("all is read", PATIENCE, async || (pipe.numbers().len() >= expected.len()).then_some(()))
        .await;
    assert_eq!(pipe.numbers(), expected);
}

/// `astro-relay run | less`, and then an end from outside.
#[tokio::test]
async fn a_stalled_reader_does_not_delay_the_stop() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": dir.path().join("journal") },
        "http": { "listen": listen },
        "channels": { "main": { "room": ROOM, "token": "t", "topics": ["channel.activities"] } },
        "sinks": { "terminal": { "type": "stdout", "timeout": "1s" } },
    });
    let file = dir.path().join("relay.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let mut relay = Command::new(env!("CARGO_BIN_EXE_astro-relay"))
        .arg("run")
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    subscribed(&sim, 1).await;
    let load = Load { messages: MANY, rooms: vec![ROOM.into()], size: 1024, ..Load::default() };
    sim.load(&load).await;
    install_tls();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    until("the reader is known to have stalled", PATIENCE, async || {
        let request = client.get(format!("http://{listen}/status"));
        let page: Value = request.send().await.unwrap().json().await.unwrap();
        (page["pages"]["sinks"]["terminal"]["state"] == "busy").then_some(())
    })
    .await;

    let pid = relay.id().unwrap().to_string();
    let told = Command::new("kill").args(["-s", "TERM", &pid]).status().await.unwrap();
    assert!(told.success());
    let mut stdout = relay.stdout.take().unwrap();
    let status = within("the program's end", relay.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    let number = |line: &str| serde_json::from_str::<Value>(line).ok()?["data"]["n"].as_u64();
    let numbers: Vec<u64> = text.lines().filter_map(number).collect();
    assert!(numbers.len() > 10 && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    sim.stop().await;
}
