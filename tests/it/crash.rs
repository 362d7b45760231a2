//! `kill -9` of the relay and of the brokers, and everything else that goes wrong, while events flow.
//!
//! What the journal held is compared with what the far sides have, by number. Everything that was
//! ever written to the journal must be there, in order; nothing twice where the far side can tell.

mod asked;
mod neighbours;
mod soak;

use std::{collections::HashSet, path::Path, time::Duration};

use astro_relay::{
    base::event::{Event, Record},
    journal::store::Store,
};
use astro_sim::{Load, Options, Sim};
use fastrand::Rng;
use tokio::time::Instant;

use crate::support::{
    carry::first_arrivals,
    daemon::Relay,
    journal::{append, close, event_of, long, say, settled},
    mosquitto::{self, Mosquitto},
    nats_server::{self, NatsServer},
    process::Server,
    receiver::{Answer, Receiver},
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

/// A simulated Astro, far sides of every kind, and a relay between them. The brokers keep what they
/// accept; core NATS keeps nothing, and a receiver of webhooks cannot tell a repeat.
struct Bench {
    sim: Sim,
    mqtt: Mosquitto,
    listener: mosquitto::Listener,
    nats: NatsServer,
    core: nats_server::Listener,
    redis: RedisServer,
    receiver: Receiver,
    relay: Relay,
}

impl Bench {
    /// `more` is configuration beside one channel and the sinks.
    async fn start(more: &str) -> Self {
        Self::with(more, Durability::AofAlways).await
    }

    /// The same with brokers that are quick instead: they keep what they accept in memory.
    async fn quick() -> Self {
        Self::with("", Durability::Memory).await
    }

    async fn with(more: &str, durability: Durability) -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let durable = durability == Durability::AofAlways;
        let mqtt =
            Mosquitto::start(mosquitto::Options { durable, ..mosquitto::Options::default() }).await;
        let listener = mosquitto::Listener::start(mqtt.port, "astro/#").await;
        let nats = NatsServer::start("").await;
        nats.streams().await;
        let core = nats_server::Listener::start(&nats, "core.>").await;
        let redis = RedisServer::start(durability).await;
        let receiver = Receiver::start();
        let common = format!("window = {WINDOW}\npayload = \"data\"\nbackoff_max = \"500ms\"");
        let sinks = format!(
            "[sinks.mqtt]\ntype = \"mqtt\"\nurl = {:?}\n{common}\n\
             [sinks.nats]\ntype = \"nats\"\nurl = {:?}\njetstream = true\ncreate_stream = true\n{common}\n\
             [sinks.core]\ntype = \"nats\"\nurl = {:?}\nsubject = \"core.{{{{ topic }}}}\"\n{common}\n\
             [sinks.redis]\ntype = \"redis\"\nurl = {:?}\nmode = \"stream\"\nmax_len = 0\n{common}\n\
             [sinks.webhook]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.1\"]\n\
             timeout = \"2s\"\n{common}\n{more}\n",
            mqtt.url(),
            nats.url(),
            nats.url(),
            redis.url(),
            receiver.url(),
        );
        let relay = Relay::new(&sim.url(), &sim.api_url(), TOPIC, ROOM, &sinks);
        Self { sim, mqtt, listener, nats, core, redis, receiver, relay }
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

    /// Waits until `last` has arrived wherever it is kept; answers what arrived at each.
    async fn arrived(&self, last: u64) -> Vec<(&'static str, Vec<u64>)> {
        let began = Instant::now();
        // This broker writes down all it has with every change, and a busy disk makes it slow: as long
        // as more arrives, it is waited for.
        let mut heard = 0;
        while !self.listener.newest().contains(&last) {
            heard = until("more arrives by MQTT", PATIENCE, async || {
                Some(self.listener.count()).filter(|count| *count > heard)
            })
            .await;
        }
        let by_mqtt = began.elapsed();
        until("the last event arrives in Redis", PATIENCE, async || {
            self.in_redis().await.contains(&last).then_some(())
        })
        .await;
        let nats = until("the last event arrives in JetStream", PATIENCE, async || {
            let stored = self.nats.stored_after("ASTRO", 0).await;
            stored.contains(&last).then_some(stored)
        })
        .await;
        until("the last event arrives by webhook", PATIENCE, async || {
            self.receiver.newest().contains(&last).then_some(())
        })
        .await;
        say(&format!("all was there {:?} after the last, by MQTT {by_mqtt:?}", began.elapsed()));
        vec![
            ("mqtt", self.listener.numbers()),
            ("nats", nats),
            ("redis", self.in_redis().await),
            ("webhook", self.receiver.accepted()),
        ]
    }

    /// The same for the one that keeps nothing: it was there all the time, or this waits in vain.
    async fn heard(&self, last: u64) -> (&'static str, Vec<u64>) {
        until("the last event arrives by core NATS", PATIENCE, async || {
            self.core.newest().contains(&last).then_some(())
        })
        .await;
        ("core", self.core.numbers())
    }
}

/// How many repeats `kills` may cause at a far side.
fn repeats(name: &str, kills: usize) -> usize {
    // What JetStream and a Redis stream know already, they do not take again.
    if matches!(name, "nats" | "redis") { 0 } else { WINDOW * kills }
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

/// How many events a broker may have lost that it had acknowledged, if it was killed so often.
///
/// With the most durable settings that it has, mosquitto writes at the end of a turn of its loop what it
/// has acknowledged within it: that is its own loss, and no more than a window each time.
fn acknowledged_early(name: &str, kills: usize) -> usize {
    if name == "mqtt" { WINDOW * kills } else { 0 }
}

/// Compares what a far side has with what the journal held: all of it but `early`, in the journal's
/// order. Answers how many came more than once.
///
fn compare(name: &str, held: &[u64], arrived: &[u64], early: usize) -> usize {
    let there: HashSet<_> = arrived.iter().collect();
    let lost: Vec<_> = held.iter().filter(|n| !there.contains(n)).collect();
    assert!(
        lost.len() <= early,
        "{name}: {} events of the journal are missing: {lost:?}",
        lost.len()
    );
    if !lost.is_empty() {
        say(&format!("{name}: acknowledged and not kept when it was killed: {lost:?}"));
    }
    let first = first_arrivals(arrived);
    let known: HashSet<_> = held.iter().collect();
    let order = first.iter().filter(|n| known.contains(n));
    let expected = held.iter().filter(|n| there.contains(n));
    let wrong = order.zip(expected).find(|(arrived, held)| arrived != held);
    assert_eq!(wrong, None, "{name}: the order of first arrivals");
    arrived.len() - first.len()
}

/// Messages at a pace at which something can be killed between them.
fn evenly(messages: u64) -> Load {
    Load {
        messages,
        rate: Some(500),
        topic: TOPIC.into(),
        rooms: vec![ROOM.into()],
        ..Load::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_relay_loses_nothing_that_its_journal_held() {
    let (kills, messages) = if long() { (200, 100_000) } else { (4, 4_000) };
    let mut bench = Bench::start("").await;
    bench.relay.start();
    bench.relay.ready().await;
    let load = evenly(messages);
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
    let mut arrived = bench.arrived(messages).await;
    arrived.push(bench.heard(messages).await);
    bench.relay.stop().await;
    let held = in_journal(&bench.relay.journal());
    assert!(!held.is_empty());
    for (name, arrived) in &arrived {
        let repeated = compare(name, &held, arrived, 0);
        // A sink reads only what is written: none has an event that another can never get.
        let more: Vec<_> = arrived.iter().filter(|n| held.binary_search(n).is_err()).collect();
        assert!(more.is_empty(), "{name}: not in the journal: {more:?}");
        say(&format!(
            "{name}: {} published, {} in the journal, {} arrived, {repeated} of them again, {kills} kills",
            loaded.messages,
            held.len(),
            arrived.len()
        ));
        assert!(repeated <= repeats(name, kills), "{name}: {repeated} came again");
    }
    say(&format!("back on the gateway within {slowest:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing_and_keeps_the_order() {
    let (kills, messages) = if long() { (30, 30_000) } else { (3, 3_000) };
    let mut bench = Bench::start("").await;
    bench.relay.start();
    bench.relay.ready().await;
    let load = evenly(messages);
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
        // Nobody has killed the receiver of webhooks.
        let kills = if *name == "webhook" { 0 } else { usize::try_from(kills).unwrap() };
        let repeated = compare(name, &held, arrived, acknowledged_early(name, kills));
        say(&format!("{name}: {} arrived, {repeated} of them again, {kills} kills", arrived.len()));
        assert!(repeated <= repeats(name, kills), "{name}: {repeated} came again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_does_not_delay_the_start() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let receiver = Receiver::start();
    // Takes one event, and its time: the backlog stays one.
    receiver.room("room", Some(Answer::Late(PATIENCE)));
    let sinks = format!(
        "[sinks.slow]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.1\"]\n\
         start = \"earliest\"\ntimeout = \"100s\"\n",
        receiver.url()
    );
    let mut relay = Relay::new(&sim.url(), &sim.api_url(), TOPIC, ROOM, &sinks);
    let bytes: u64 = if long() { 1 << 30 } else { 16 << 20 };
    let config = astro_relay::config::Journal {
        max_size: astro_relay::config::Size(4 << 30),
        memory: astro_relay::config::Size(8 << 20),
        ..crate::support::journal::config(&relay.journal())
    };
    let (journal, _) = crate::support::journal::open(&config);
    // What no compression makes smaller.
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(1 << 20).collect();
    let event = |n: u64| {
        let from = fastrand::usize(..noise.len() - 1900);
        let message = format!(r#"{{"n":{n},"pad":{:?}}}"#, &noise[from..from + 1900]);
        Event { data: 0..message.len(), message: message.into(), ..event_of(n, 0) }
    };
    let mut n = 0;
    while journal.figures().size < bytes {
        append(&journal, (n..n + 500).map(event).collect()).await;
        n += 500;
    }
    settled(&journal, &[]).await;
    close(journal).await;
    let size = std::fs::metadata(relay.journal().join("journal.db")).unwrap().len();
    assert!(size >= bytes, "{size} bytes");
    // Once as it was closed, and as a kill leaves it.
    for round in 0..3 {
        let start = Instant::now();
        relay.start();
        relay.ready().await;
        let took = start.elapsed();
        until("the backlog is begun", PATIENCE, async || {
            (receiver.received().len() > round).then_some(())
        })
        .await;
        say(&format!("ready after {took:?} with {size} bytes"));
        // The aim is two seconds, on a machine that is not busy with other tests.
        let most = Duration::from_secs(if long() { 2 } else { 10 });
        assert!(took < most, "ready after {took:?}");
        relay.kill().await;
    }
    assert!(receiver.numbers().iter().all(|n| *n == 0), "nothing was left out");
}
