//! What a relay costs that has little to do: bytes on the disk, times that it woke, processor time.

use std::time::Duration;

use astro_sim::{Load, Sim};
use serde_json::Map;
use tokio::time::sleep;

use super::{
    child::Process,
    destination::{Destination, Kind},
    setting::{ROOM, TOPIC, configuration, rooms, source, subscribed},
    tally::Tally,
};

/// How long each row is watched.
const WATCHED: Duration = Duration::from_mins(1);

const DAY: f64 = 86_400.0;

/// One channel, one MQTT sink, and nothing, one event or a hundred a second.
pub async fn run() {
    for rate in [0, 1, 100] {
        let tally = Tally::of(1);
        let destination = Destination::start(Kind::MqttQos1, &tally).await;
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sinks = Map::from_iter([("out".to_owned(), Kind::MqttQos1.sink(destination.address))]);
        let process = Process::relay(&configuration(dir.path(), &sim, &rooms(1), &sinks));
        process.until(|| subscribed(&sim) == 1).await;
        // What the start itself writes.
        sleep(Duration::from_secs(3)).await;
        let messages = rate * WATCHED.as_secs();
        let load = Load {
            messages,
            rate: Some(rate),
            topic: TOPIC.into(),
            rooms: vec![ROOM.into()],
            ..Load::default()
        };
        let loading = async {
            if rate > 0 {
                sim.load(&load).await;
            }
        };
        let name = format!("wear at {rate}/s");
        let (written, ()) = tokio::join!(rest(&name, &process, WATCHED), loading);
        if messages > 0 {
            let floor = messages * load.size as u64;
            println!(
                "{:<22} {:.0} bytes an event; floor: the events themselves, {:.2} MB a day; {:.1} of the floor",
                "",
                written as f64 / messages as f64,
                floor as f64 / WATCHED.as_secs_f64() * DAY / 1e6,
                written as f64 / floor as f64,
            );
        }
        drop(process);
        destination.stop();
        sim.stop().await;
    }
}

/// Watches a process for a while, prints what it did, and answers the bytes that it wrote.
pub async fn rest(name: &str, process: &Process, watched: Duration) -> u64 {
    let (cpu, (written, woken)) = (process.cpu(), process.wear());
    sleep(watched).await;
    let (more, often) = process.wear();
    let (written, seconds) = (more - written, watched.as_secs_f64());
    println!(
        "{name:<22} {written} bytes on the disk in {seconds:.0} s, {:.2} MB a day; woken {:.1} times a second; cpu {:.2} ms a second",
        written as f64 / seconds * DAY / 1e6,
        (often - woken) as f64 / seconds,
        process.cpu().saturating_sub(cpu).as_secs_f64() * 1e3 / seconds,
    );
    written
}
