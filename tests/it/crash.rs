//! `kill -9` of the relay and of the brokers, while events flow.
//!
//! What the journal held is compared with what the far sides have, by number. Everything that was
//! ever written to the journal must be there, in order; nothing twice where the far side can tell.

use std::{collections::HashSet, path::Path, time::Duration};

use astro_relay::{
    event::Record,
    journal::store::Store,
    sim::{Load, Options, Sim},
};
use fastrand::Rng;
use tokio::time::Instant;

use crate::support::{
    carry::first_arrivals,
    daemon::Relay,
    journal::{append, close, event_of, long, say, settled},
    mosquitto::{self, Mosquitto},
    nats_server::NatsServer,
    process::Server,
    redis_server::{Durability, RedisServer},
    wait::until,
};

const ROOM: &str = "5b2e2007760aeb7729487dab";
const TOPIC: &str = "channel.activities";

/// An entry of a stream: its id and its fields.
type Entry = (String, Vec<(String, Vec<u8>)>);

/// How long all of it may take to arrive at the end.
const PATIENCE: Duration = Duration::from_mins(2);

/// The window of each sink: what one kill may repeat.
const WINDOW: usize = 64;

/// A simulated Astro, three brokers that keep what they accept, and a relay between them.
struct Bench {
    sim: Sim,
    mqtt: Mosquitto,
    listener: mosquitto::Listener,
    nats: NatsServer,
    redis: RedisServer,
    relay: Relay,
}

impl Bench {
    async fn start() -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let durable = mosquitto::Options { durable: true, ..mosquitto::Options::default() };
        let mqtt = Mosquitto::start(durable).await;
        let listener = mosquitto::Listener::start(mqtt.port, "astro/main/#").await;
        let nats = NatsServer::start("").await;
        nats.streams().await;
        let redis = RedisServer::start(Durability::AofAlways).await;
        let common = format!("window = {WINDOW}\npayload = \"data\"\nbackoff_max = \"500ms\"");
        let sinks = format!(
            "[sinks.mqtt]\ntype = \"mqtt\"\nurl = {:?}\n{common}\n\
             [sinks.nats]\ntype = \"nats\"\nurl = {:?}\njetstream = true\ncreate_stream = true\n{common}\n\
             [sinks.redis]\ntype = \"redis\"\nurl = {:?}\nmode = \"stream\"\nmax_len = 0\n{common}\n",
            mqtt.url(),
            nats.url(),
            redis.url(),
        );
        let relay = Relay::new(&sim.url(), &sim.api_url(), TOPIC, ROOM, &sinks);
        Self { sim, mqtt, listener, nats, redis, relay }
    }

    async fn in_redis(&self) -> Vec<u64> {
        let mut connection = self.redis.connection().await;
        let entries: Vec<Entry> = redis::cmd("XRANGE")
            .arg(&["astro:events", "-", "+"])
            .query_async(&mut connection)
            .await
            .unwrap();
        let fields = entries.into_iter().flat_map(|(_, fields)| fields);
        fields.filter_map(|(_, value)| crate::support::carry::number(&value)).collect()
    }

    /// Waits until `last` has arrived everywhere; answers what arrived at each.
    async fn arrived(&self, last: u64) -> [(&'static str, Vec<u64>); 3] {
        let by_mqtt = until("the last event arrives by MQTT", PATIENCE, async || {
            // A look at the newest only: to read all of them each time would take all the time.
            self.listener.newest().contains(&last).then_some(())
        });
        if tokio::time::timeout(PATIENCE * 9 / 10, by_mqtt).await.is_err() {
            let (heard, log) = (self.listener.numbers(), self.relay.log());
            let log: Vec<_> = log.lines().rev().take(20).collect();
            panic!("{} heard, the last {:?}: {log:#?}", heard.len(), heard.last());
        }
        until("the last event arrives in Redis", PATIENCE, async || {
            self.in_redis().await.contains(&last).then_some(())
        })
        .await;
        let nats = until("the last event arrives in JetStream", PATIENCE, async || {
            let stored = self.nats.stored_after("ASTRO", 0).await;
            stored.contains(&last).then_some(stored)
        })
        .await;
        [("mqtt", self.listener.numbers()), ("nats", nats), ("redis", self.in_redis().await)]
    }
}

/// The numbers of all events of the load that the journal holds.
fn in_journal(dir: &Path) -> Vec<u64> {
    let store = Store::open_reader(dir).unwrap();
    let (mut after, mut numbers) = (0, Vec::new());
    loop {
        let read = store.read(after, 1000, 1 << 20).unwrap();
        assert_eq!(read.damaged, 0);
        let Some(through) = read.through else { return numbers };
        let n = |record: &Record| crate::support::carry::number(record.event.data());
        numbers.extend(read.records.iter().filter_map(|record| n(record)));
        after = through;
    }
}

/// Compares what a far side has with what the journal held; answers how many came more than once.
fn compare(name: &str, held: &[u64], arrived: &[u64]) -> usize {
    let there: HashSet<_> = arrived.iter().collect();
    let lost: Vec<_> = held.iter().filter(|n| !there.contains(n)).collect();
    assert!(lost.is_empty(), "{name}: {} events of the journal are missing: {lost:?}", lost.len());
    let first = first_arrivals(arrived);
    let inversions = first.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert_eq!(inversions, 0, "{name}: the order of first arrivals");
    arrived.len() - first.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_relay_loses_nothing_that_its_journal_held() {
    let (kills, messages) = if long() { (200, 100_000) } else { (4, 4_000) };
    let mut bench = Bench::start().await;
    bench.relay.start();
    bench.relay.ready().await;
    let load = Load {
        messages,
        rate: Some(500),
        topic: TOPIC.into(),
        rooms: vec![ROOM.into()],
        ..Load::default()
    };
    let Bench { sim, relay, .. } = &mut bench;
    let mut random = Rng::new();
    let killing = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..kills {
            // Somewhere in the next messages that it hears.
            let target = sim.stats().sent + random.u64(1..300);
            until("messages flow", PATIENCE, async || (sim.stats().sent >= target).then_some(()))
                .await;
            relay.kill().await;
            let start = Instant::now();
            relay.start();
            let open = sim.stats().opened;
            until("it is back", PATIENCE, async || (sim.stats().opened > open).then_some(())).await;
            slowest = slowest.max(start.elapsed());
        }
        relay.ready().await;
        slowest
    };
    let (loaded, slowest) = tokio::join!(sim.load(&load), killing);
    // One more for a relay that surely listens.
    sim.load(&Load { messages: 1, first: messages, ..load }).await;
    let arrived = bench.arrived(messages).await;
    bench.relay.stop().await;
    let held = in_journal(&bench.relay.journal());
    assert!(!held.is_empty());
    for (name, arrived) in &arrived {
        let repeated = compare(name, &held, arrived);
        say(&format!(
            "{name}: {} published, {} in the journal, {} arrived, {repeated} of them again, {kills} kills",
            loaded.messages,
            held.len(),
            arrived.len()
        ));
        let most = if *name == "mqtt" { WINDOW * kills } else { 0 };
        assert!(repeated <= most, "{name}: {repeated} came again");
    }
    say(&format!("back on the gateway within {slowest:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing_and_keeps_the_order() {
    let (kills, messages) = if long() { (30, 30_000) } else { (3, 3_000) };
    let mut bench = Bench::start().await;
    bench.relay.start();
    bench.relay.ready().await;
    let load = Load {
        messages,
        rate: Some(500),
        topic: TOPIC.into(),
        rooms: vec![ROOM.into()],
        ..Load::default()
    };
    let Bench { sim, mqtt, nats, redis, .. } = &mut bench;
    let killing = async {
        for kill in 1..=kills {
            // Every two seconds, by the clock of the messages.
            let due = kill * 1000;
            until("messages flow", PATIENCE, async || (sim.stats().published >= due).then_some(()))
                .await;
            let restart = async |server: &mut Server| server.restart().await;
            tokio::join!(
                restart(&mut mqtt.server),
                restart(&mut nats.server),
                restart(&mut redis.server)
            );
        }
    };
    tokio::join!(sim.load(&load), killing);
    let arrived = bench.arrived(messages - 1).await;
    bench.relay.stop().await;
    let held = in_journal(&bench.relay.journal());
    assert!(held.iter().copied().eq(0..messages), "the relay heard all of it");
    for (name, arrived) in &arrived {
        let repeated = compare(name, &held, arrived);
        say(&format!("{name}: {} arrived, {repeated} of them again, {kills} kills", arrived.len()));
        let most = if *name == "mqtt" { WINDOW * usize::try_from(kills).unwrap() } else { 0 };
        assert!(repeated <= most, "{name}: {repeated} came again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_does_not_delay_the_start() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let mut relay = Relay::new(&sim.url(), &sim.api_url(), TOPIC, ROOM, "");
    let bytes: u64 = if long() { 1 << 30 } else { 16 << 20 };
    let config = astro_relay::config::Journal {
        max_size: astro_relay::config::Size(4 << 30),
        memory: astro_relay::config::Size(8 << 20),
        ..crate::support::journal::config(&relay.journal())
    };
    let (journal, _) = crate::support::journal::open(&config);
    let mut n = 0;
    while journal.figures().last < bytes / 2200 {
        append(&journal, (n..n + 500).map(|n| event_of(n, 1900)).collect()).await;
        n += 500;
    }
    settled(&journal, &[]).await;
    close(journal).await;
    let size = std::fs::metadata(relay.journal().join("journal.db")).unwrap().len();
    // Once as it was closed, and once as a kill leaves it.
    for _ in 0..2 {
        let start = Instant::now();
        relay.start();
        relay.ready().await;
        let took = start.elapsed();
        say(&format!("ready after {took:?} with {size} bytes"));
        assert!(took < Duration::from_secs(10), "two seconds is the aim, on a machine of its own");
        relay.kill().await;
    }
}
