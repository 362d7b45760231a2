//! The cases, and the table.

use std::{net::SocketAddr, slice::from_ref, time::Duration};

use astro_sim::{End, Load, Sim};
use serde_json::{Map, json};
use tokio::time::{Instant, sleep};

use super::{
    child::Process,
    cluster,
    destination::{self, Destination, Kind},
    row::{DEADLINE, RATE, RATED, Row, cpu_of, measure, print, rate_of},
    setting::{ROOM, TOPIC, configuration, rooms, source, subscribed},
    support::process::free_port,
    tally::Tally,
    wear,
};

/// What is to be measured.
pub struct Plan {
    pub messages: u64,
    /// How often a case and its floor run in turn.
    pub pairs: usize,
    /// Another program that does the same, as a command of the shell.
    pub peer: Option<String>,
    /// Names of cases; none: all.
    pub cases: Vec<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { messages: 200_000, pairs: 9, peer: None, cases: Vec::new() }
    }
}

/// Which program a row is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Program<'a> {
    Relay,
    Floor,
    Peer(&'a str),
}

impl Program<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Floor => "floor",
            Self::Peer(_) => "peer",
        }
    }
}

/// In how many pairs the cases at a fixed rate run.
const RATED_PAIRS: usize = 3;

pub async fn run(plan: &Plan) {
    let wanted = |name: &str| {
        plan.cases.is_empty() || plan.cases.iter().any(|case| name.starts_with(case.as_str()))
    };
    println!(
        "{:<22} {:<6} {:>9} {:>6} {:>6} {:>6} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>7}",
        "case",
        "",
        "delivered",
        "lost",
        "twice",
        "order",
        "msg/s",
        "cpu µs",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9",
        "MiB",
        "peak",
        "start",
    );
    for kind in Kind::ALL {
        if wanted(kind.name()) {
            compare(kind, plan, None).await;
        }
    }
    for kind in Kind::ALL {
        if kind != Kind::WebhookOneRoom && wanted(&format!("rate-{}", kind.name())) {
            compare(kind, plan, Some(RATE)).await;
        }
    }
    for (name, slow) in [("beside-down", false), ("beside-slow", true)] {
        if wanted(name) {
            beside(name, slow).await;
        }
    }
    if wanted("four") {
        four(plan.messages).await;
    }
    if wanted("subscriptions") {
        subscriptions().await;
    }
    if wanted("burst") {
        burst(1_000_000).await;
    }
    if wanted("wear") {
        wear::run().await;
    }
    if wanted("cluster") {
        cluster::run(plan.messages).await;
    }
}

fn has_floor(kind: Kind) -> bool {
    matches!(kind, Kind::Nats | Kind::MqttQos0 | Kind::MqttQos1 | Kind::RedisPubsub)
}

/// Runs a case in turn with its floor and the peer, and says how they compare: the middle of all rounds,
/// for on a machine that is shared one says little.
async fn compare(kind: Kind, plan: &Plan, rate: Option<u64>) {
    let (name, messages, rounds) = match rate {
        Some(_) => (format!("rate-{}", kind.name()), RATED, plan.pairs.min(RATED_PAIRS)),
        None => (kind.name().to_owned(), plan.messages, plan.pairs),
    };
    let peer = plan.peer.as_deref().map(Program::Peer);
    let others: Vec<_> =
        has_floor(kind).then_some(Program::Floor).into_iter().chain(peer).collect();
    let mut ratios = vec![Vec::new(); others.len()];
    for _ in 0..if others.is_empty() { 1 } else { rounds } {
        let mut against = Vec::new();
        for other in &others {
            against.push(one(kind, &name, messages, rate, *other).await);
        }
        let relay = one(kind, &name, messages, rate, Program::Relay).await;
        for (other, ratios) in against.iter().zip(&mut ratios) {
            let late = |row: &Row, at: usize| row.sum.latency[at].as_secs_f64();
            ratios.push([
                rate_of(&relay) / rate_of(other),
                cpu_of(&relay) / cpu_of(other),
                late(&relay, 0) / late(other, 0),
                late(&relay, 2) / late(other, 2),
            ]);
        }
    }
    for (other, ratios) in others.iter().zip(&ratios) {
        let of = |measure: usize| {
            let mut all: Vec<_> = ratios.iter().map(|round| round[measure]).collect();
            all.sort_by(f64::total_cmp);
            format!("{:.2} ({:.2} to {:.2})", all[all.len() / 2], all[0], all[all.len() - 1])
        };
        let [rate, cpu, p50, p99] = [of(0), of(1), of(2), of(3)];
        let other = other.name();
        println!("{:<22} of the {other}: rate {rate}, cpu {cpu}, p50 {p50}, p99 {p99}", "");
    }
}

async fn one(
    kind: Kind,
    name: &str,
    messages: u64,
    rate: Option<u64>,
    program: Program<'_>,
) -> Row {
    let tally = Tally::of(kind.rooms());
    let destination = Destination::start(kind, &tally).await;
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
    let rooms = rooms(kind.rooms());
    let dir = tempfile::tempdir().unwrap();
    let process = match program {
        Program::Floor => {
            let words = [kind.name(), &destination.address.to_string(), &sim.url(), TOPIC, ROOM];
            Process::floor(&words.map(ToOwned::to_owned), &dir.path().join("floor"))
        }
        Program::Relay => {
            let sinks = Map::from_iter([("out".to_owned(), kind.sink(destination.address))]);
            Process::relay(&configuration(dir.path(), &sim, &rooms, &sinks))
        }
        Program::Peer(command) => {
            let environment = [
                ("ASTRO_URL", sim.url()),
                ("ASTRO_API_URL", sim.api_url()),
                ("TOPIC", TOPIC.to_owned()),
                ("ROOMS", rooms.join(",")),
                ("KIND", kind.name().to_owned()),
                ("DESTINATION", destination.address.to_string()),
            ];
            Process::peer(command, &environment, &dir.path().join("peer"))
        }
    };
    let start = process.until(|| subscribed(&sim) == rooms.len()).await;
    let load = Load { messages, rate, topic: TOPIC.into(), rooms, ..Load::default() };
    let row = measure(name, program.name(), from_ref(&process), &sim, &tally, &load, start).await;
    print(&row);
    drop(process);
    destination.stop();
    sim.stop().await;
    row
}

/// How late events are at one sink while another is down, or answers each request after a fifth of a second.
async fn beside(name: &str, slow: bool) {
    for other in [false, true] {
        let tally = Tally::of(1);
        let destination = Destination::start(Kind::Nats, &tally).await;
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut sinks = Map::from_iter([("out".to_owned(), Kind::Nats.sink(destination.address))]);
        let mut receivers = tokio::task::JoinSet::new();
        if other && slow {
            let address = destination::slow_receiver(&mut receivers).await;
            sinks.insert("other".to_owned(), Kind::Webhook.sink(address));
        } else if other {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            sinks.insert("other".to_owned(), Kind::MqttQos1.sink(address));
        }
        let process = Process::relay(&configuration(dir.path(), &sim, &rooms(1), &sinks));
        let start = process.until(|| subscribed(&sim) == 1).await;
        let load = Load {
            messages: RATED,
            rate: Some(RATE),
            topic: TOPIC.into(),
            rooms: rooms(1),
            ..Load::default()
        };
        let name = if other { name } else { "beside-none" };
        print(&measure(name, "relay", from_ref(&process), &sim, &tally, &load, start).await);
        drop(process);
        destination.stop();
        sim.stop().await;
    }
}

/// Four sinks at once, each counted for itself; the processor time is that of the one relay, and is
/// compared with the dearest of them alone.
async fn four(messages: u64) {
    let kinds = [Kind::Nats, Kind::MqttQos1, Kind::RedisPubsub, Kind::WebhookOneRoom];
    let mut dearest = 0.0_f64;
    for kind in kinds {
        let alone = one(kind, kind.name(), messages, None, Program::Relay).await;
        dearest = dearest.max(cpu_of(&alone));
    }
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut destinations = Vec::new();
    let mut sinks = Map::new();
    for kind in kinds {
        let tally = Tally::of(1);
        let destination = Destination::start(kind, &tally).await;
        sinks.insert(kind.name().to_owned(), kind.sink(destination.address));
        destinations.push((destination, tally));
    }
    let process = Process::relay(&configuration(dir.path(), &sim, &rooms(1), &sinks));
    let start = process.until(|| subscribed(&sim) == 1).await;
    sleep(Duration::from_secs(1)).await;
    let before = process.cpu();
    let load = Load { messages, topic: TOPIC.into(), rooms: vec![ROOM.into()], ..Load::default() };
    let began = Instant::now();
    sim.load(&load).await;
    while destinations.iter().any(|(_, tally)| tally.count() < messages)
        && began.elapsed() < DEADLINE
    {
        sleep(Duration::from_millis(5)).await;
    }
    let cpu = process.cpu().saturating_sub(before);
    let (idle, peak) = process.memory();
    for (destination, tally) in destinations {
        let sum = tally.sum();
        let took = sum.last_at.map_or(began.elapsed(), |last| last - began);
        let case = format!("four: {}", destination.kind.name());
        print(&Row { case, program: "relay", sent: messages, sum, took, cpu, idle, peak, start });
        destination.stop();
    }
    let ratio = cpu.as_secs_f64() / messages as f64 / dearest;
    println!("{:<22} of the dearest alone: cpu {ratio:.2}", "");
    sim.stop().await;
}

/// Ten thousand subscriptions, and a storm that ends every connection at once.
async fn subscriptions() {
    const CHANNELS: usize = 2_000;
    let topics = [
        "channel.activities", "channel.tips", "channel.session.update", "channel.session.reset",
        "channel.stream.status",
    ];
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = configuration(dir.path(), &sim, &rooms(1), &Map::new());
    let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let mut channels = toml::Table::new();
    for number in 0..CHANNELS {
        let channel = json!({ "room": format!("{number:024x}"), "token": "t", "topics": topics });
        channels.insert(format!("c{number}"), toml::Value::try_from(channel).unwrap());
    }
    config.insert("channels".into(), channels.into());
    std::fs::write(&file, config.to_string()).unwrap();
    let process = Process::relay(&file);
    let all = CHANNELS * topics.len();
    let standing = process.until(|| sim.stats().open > 0 && subscribed(&sim) >= all).await;
    let connections = sim.stats().open;
    println!(
        "subscriptions          {all} stand after {:.1} s on {connections} connections; rate limit exceeded {} times; cpu {:.2} s; {:.1} MiB",
        standing.as_secs_f64(),
        sim.stats().rate_limited,
        process.cpu().as_secs_f64(),
        process.memory().1 as f64 / f64::from(1 << 20),
    );
    // Answers of the sessions are in; what is left is what an hour of rest costs.
    sleep(Duration::from_secs(5)).await;
    wear::rest("subscriptions at rest", &process, Duration::from_secs(30)).await;
    let (before, began) = (process.cpu(), Instant::now());
    sim.end(None, End::Reset);
    while subscribed(&sim) >= all {
        sleep(Duration::from_millis(5)).await;
    }
    while subscribed(&sim) < all && began.elapsed() < DEADLINE {
        sleep(Duration::from_millis(50)).await;
    }
    println!(
        "storm                  all stand again after {:.1} s; cpu {:.2} s; rate limit exceeded {} times",
        began.elapsed().as_secs_f64(),
        (process.cpu().saturating_sub(before)).as_secs_f64(),
        sim.stats().rate_limited,
    );
    drop(process);
    sim.stop().await;
}

/// A burst while every sink is down, and the time after it.
async fn burst(messages: u64) {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kinds = [Kind::Nats, Kind::MqttQos1, Kind::RedisPubsub];
    let addresses: Vec<SocketAddr> =
        kinds.iter().map(|_| SocketAddr::from(([127, 0, 0, 1], free_port()))).collect();
    let sinks = kinds.iter().zip(&addresses).map(|(kind, address)| {
        let mut sink = kind.sink(*address);
        sink["backoff_max"] = "1s".into();
        (kind.name().to_owned(), sink)
    });
    let file = configuration(dir.path(), &sim, &rooms(1), &sinks.collect());
    let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    config["journal"].as_table_mut().unwrap().insert("max_size".into(), "4GiB".into());
    std::fs::write(&file, config.to_string()).unwrap();
    let process = Process::relay(&file);
    process.until(|| subscribed(&sim) == 1).await;
    let load = Load { messages, topic: TOPIC.into(), rooms: vec![ROOM.into()], ..Load::default() };
    let (before, began) = (process.cpu(), Instant::now());
    let loaded = sim.load(&load).await;
    println!(
        "burst                  {} messages taken in at {:.0}/s with every sink down; cpu {:.2} µs; {:.1} MiB at the peak",
        loaded.sent,
        loaded.sent as f64 / began.elapsed().as_secs_f64(),
        (process.cpu().saturating_sub(before)).as_secs_f64() * 1e6 / messages as f64,
        process.memory().1 as f64 / f64::from(1 << 20),
    );
    for (kind, address) in kinds.into_iter().zip(addresses) {
        let tally = Tally::of(1);
        let destination = Destination::start_at(kind, address, &tally).await;
        // A destination that was down for so long is tried every few seconds.
        let up = Instant::now();
        while tally.count() == 0 && up.elapsed() < DEADLINE {
            sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        while tally.count() < messages && began.elapsed() < DEADLINE {
            sleep(Duration::from_millis(5)).await;
        }
        let sum = tally.sum();
        println!(
            "drain {:<16} {} delivered, {} twice, {} out of order, from {:.1} s after it is up, at {:.0}/s; {:.1} MiB at the peak",
            kind.name(),
            sum.delivered,
            sum.repeated,
            sum.reordered,
            (began - up).as_secs_f64(),
            sum.delivered as f64 / began.elapsed().as_secs_f64(),
            process.memory().1 as f64 / f64::from(1 << 20),
        );
        destination.stop();
    }
    sim.stop().await;
}
