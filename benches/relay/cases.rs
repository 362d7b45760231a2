//! The cases, and the table.

use std::{net::SocketAddr, path::Path, time::Duration};

use astro_sim::{End, Load, Options, Sim};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{
    child::Process,
    destination::{Destination, Kind},
    support::process::free_port,
    tally::{Sum, Tally},
};

/// What is to be measured.
pub struct Plan {
    pub messages: u64,
    /// Names of cases; none: all.
    pub cases: Vec<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { messages: 200_000, cases: Vec::new() }
    }
}

/// The room of the numbered messages.
const ROOM: &str = "5b2e2007760aeb7729487dab";
const TOPIC: &str = "channel.activities";

/// Messages of the cases at a fixed rate.
const RATED: u64 = 10_000;
const RATE: u64 = 1_000;

/// How often a case and its floor run in turn.
const PAIRS: usize = 9;

/// What no run may exceed.
const DEADLINE: Duration = Duration::from_mins(5);

/// One line of the table.
struct Row {
    case: String,
    program: &'static str,
    sent: u64,
    sum: Sum,
    took: Duration,
    cpu: Duration,
    idle: u64,
    peak: u64,
    start: Duration,
}

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
            compare(kind, plan.messages, None).await;
        }
    }
    for kind in [Kind::Nats, Kind::MqttQos1] {
        let name = format!("rate-{}", kind.name());
        if wanted(&name) {
            compare(kind, RATED, Some(RATE)).await;
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
}

fn has_floor(kind: Kind) -> bool {
    matches!(kind, Kind::Nats | Kind::MqttQos0 | Kind::MqttQos1 | Kind::RedisPubsub)
}

/// Runs a case in turn with its floor, and says how the two compare: the middle of all pairs, for on a
/// machine that is shared one pair says little.
async fn compare(kind: Kind, messages: u64, rate: Option<u64>) {
    let name = match rate {
        Some(_) => format!("rate-{}", kind.name()),
        None => kind.name().to_owned(),
    };
    if !has_floor(kind) {
        one(kind, &name, messages, rate, false).await;
        return;
    }
    let mut ratios = Vec::new();
    for _ in 0..PAIRS {
        let floor = one(kind, &name, messages, rate, true).await;
        let relay = one(kind, &name, messages, rate, false).await;
        let per = |row: &Row| row.cpu.as_secs_f64() / row.sum.delivered.max(1) as f64;
        let late = |row: &Row, at: usize| row.sum.latency[at].as_secs_f64();
        ratios.push([
            rate_of(&relay) / rate_of(&floor),
            per(&relay) / per(&floor),
            late(&relay, 0) / late(&floor, 0),
            late(&relay, 2) / late(&floor, 2),
        ]);
    }
    let of = |measure: usize| {
        let mut all: Vec<_> = ratios.iter().map(|pair| pair[measure]).collect();
        all.sort_by(f64::total_cmp);
        format!("{:.2} ({:.2} to {:.2})", all[PAIRS / 2], all[0], all[PAIRS - 1])
    };
    let [rate, cpu, p50, p99] = [of(0), of(1), of(2), of(3)];
    println!("{:<22} of the floor: rate {rate}, cpu {cpu}, p50 {p50}, p99 {p99}", "");
}

async fn one(kind: Kind, name: &str, messages: u64, rate: Option<u64>, floor: bool) -> Row {
    let tally = Tally::of(kind.rooms());
    let destination = Destination::start(kind, &tally).await;
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
    let rooms = rooms(kind.rooms());
    let dir = tempfile::tempdir().unwrap();
    let process = if floor {
        let words = [kind.name(), &destination.address.to_string(), &sim.url(), TOPIC, ROOM];
        Process::floor(&words.map(ToOwned::to_owned), &dir.path().join("floor"))
    } else {
        let sinks = Map::from_iter([("out".to_owned(), kind.sink(destination.address))]);
        Process::relay(&configuration(dir.path(), &sim, &rooms, &sinks))
    };
    let start = process.until(|| subscribed(&sim) == rooms.len()).await;
    let row = measure(
        name,
        if floor { "floor" } else { "relay" },
        &process,
        &sim,
        &tally,
        messages,
        rate,
        start,
        rooms,
    )
    .await;
    print(&row);
    drop(process);
    destination.stop();
    sim.stop().await;
    row
}

/// The source keeps no record of a million messages.
fn source() -> Options {
    Options { keep_sent: 0, ..Options::default() }
}

/// The room of the numbered messages, and further ones.
fn rooms(count: usize) -> Vec<String> {
    let further = (1..count).map(|number| format!("{number:024x}"));
    std::iter::once(ROOM.to_owned()).chain(further).collect()
}

/// A configuration with a channel for each room.
fn configuration(
    dir: &Path,
    sim: &Sim,
    rooms: &[String],
    sinks: &Map<String, Value>,
) -> std::path::PathBuf {
    let channel = |room| json!({ "room": room, "token": "t", "topics": [TOPIC] });
    let channels: Map<String, Value> =
        rooms.iter().enumerate().map(|(at, room)| (format!("c{at}"), channel(room))).collect();
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": dir.join("journal") },
        "http": { "listen": "" },
        "log": { "level": "warn" },
        "channels": channels,
        "sinks": sinks,
    });
    let file = dir.join("astro-relay.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    file
}

fn subscribed(sim: &Sim) -> usize {
    sim.connections().iter().filter(|c| c.ended.is_none()).map(|c| c.subscriptions.len()).sum()
}

#[expect(clippy::too_many_arguments, reason = "it is what one measurement needs")]
async fn measure(
    name: &str,
    program: &'static str,
    process: &Process,
    sim: &Sim,
    tally: &Tally,
    messages: u64,
    rate: Option<u64>,
    start: Duration,
    rooms: Vec<String>,
) -> Row {
    // What the start itself costs is over, and memory at rest can be seen.
    sleep(Duration::from_secs(1)).await;
    let (idle, _) = process.memory();
    let before = process.cpu();
    let began = Instant::now();
    let load = Load { messages, rate, topic: TOPIC.into(), rooms, ..Load::default() };
    let loading = sim.load(&load);
    let waiting = async {
        let mut last = (0, Instant::now());
        while tally.count() < messages && began.elapsed() < DEADLINE {
            if tally.count() != last.0 {
                last = (tally.count(), Instant::now());
            }
            // Nothing for this long: what is missing is lost.
            if last.1.elapsed() > Duration::from_secs(20) {
                break;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::join!(loading, waiting);
    let sum = tally.sum();
    let took = sum.last_at.map_or(began.elapsed(), |last| last - began);
    // Acknowledgements behind the last message are part of its price.
    sleep(Duration::from_millis(300)).await;
    let (_, peak) = process.memory();
    let cpu = process.cpu().saturating_sub(before);
    Row { case: name.into(), program, sent: messages, sum, took, cpu, idle, peak, start }
}

fn rate_of(row: &Row) -> f64 {
    row.sum.delivered as f64 / row.took.as_secs_f64()
}

fn print(row: &Row) {
    let ms = |duration: Duration| format!("{:.2}", duration.as_secs_f64() * 1e3);
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let sum = &row.sum;
    println!(
        "{:<22} {:<6} {:>9} {:>6} {:>6} {:>6} {:>9.0} {:>8.2} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>7}",
        row.case,
        row.program,
        sum.delivered,
        row.sent.saturating_sub(sum.delivered),
        sum.repeated,
        sum.reordered,
        rate_of(row),
        row.cpu.as_secs_f64() * 1e6 / sum.delivered.max(1) as f64,
        ms(sum.latency[0]),
        ms(sum.latency[1]),
        ms(sum.latency[2]),
        ms(sum.latency[3]),
        mib(row.idle),
        mib(row.peak),
        ms(row.start),
    );
}

/// Four sinks at once, each counted for itself; the processor time is that of the one relay.
async fn four(messages: u64) {
    let kinds = [Kind::Nats, Kind::MqttQos1, Kind::RedisPubsub, Kind::Webhook];
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
    sim.stop().await;
}

/// Ten thousand subscriptions, and a storm that ends every connection at once.
async fn subscriptions() {
    const CHANNELS: usize = 2_000;
    let topics = [
        "channel.activities",
        "channel.tips",
        "channel.session.update",
        "channel.session.reset",
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
