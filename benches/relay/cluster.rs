//! Several relays as one: events through the log of a cluster, to one sink.
//!
//! The floor is the thinnest program that brings frames into a stream of JetStream, in order and acknowledged,
//! reads them there, and sends them on. `cpu` is that of all members together.

use std::{path::Path, time::Duration};

use astro_sim::{Load, Sim};
use serde_json::{Map, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    child::Process,
    destination::{Destination, Kind},
    row::{RATE, RATED, measure, print},
    setting::{ROOM, TOPIC, configuration, rooms, source, subscribed},
    support::process::{Server, free_port},
    tally::Tally,
};

/// Of one channel there is one event at a time on its way to the log.
const CHANNELS: usize = 200;

/// How many members hold each channel.
const COPIES: usize = 2;

/// Members, and servers of NATS: each keeps a copy of the log.
const SHAPES: [(usize, usize); 4] = [(1, 1), (3, 1), (1, 3), (3, 3)];

/// For so long nothing may change before the members are said to stand.
const STILL: Duration = Duration::from_secs(3);

/// Members that stand, or the floor; and what they need.
struct Cluster {
    processes: Vec<Process>,
    start: Duration,
    _servers: Vec<Server>,
    _dir: TempDir,
}

pub async fn run(messages: u64) {
    for (members, replicas) in SHAPES {
        for (rate, messages) in [(None, messages), (Some(RATE), RATED)] {
            let rated = if rate.is_some() { "rate-" } else { "" };
            let name = format!("{rated}cluster {members} on {replicas}");
            if members == 1 {
                one(&name, 0, replicas, messages, rate).await;
            }
            one(&name, members, replicas, messages, rate).await;
        }
    }
}

/// `members`: none is the floor.
async fn one(name: &str, members: usize, replicas: usize, messages: u64, rate: Option<u64>) {
    let rooms = rooms(if members == 0 { 1 } else { CHANNELS });
    let tally = Tally::of(rooms.len());
    let destination = Destination::start(Kind::Nats, &tally).await;
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), source()).await.unwrap();
    let cluster = Cluster::start(&sim, &destination, &rooms, members, replicas).await;
    let program = if members == 0 { "floor" } else { "relay" };
    let load = Load { messages, rate, topic: TOPIC.into(), rooms, ..Load::default() };
    print(&measure(name, program, &cluster.processes, &sim, &tally, &load, cluster.start).await);
    drop(cluster);
    destination.stop();
    sim.stop().await;
}

impl Cluster {
    async fn start(
        sim: &Sim,
        destination: &Destination,
        rooms: &[String],
        members: usize,
        replicas: usize,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (servers, addresses) = servers(replicas, dir.path()).await;
        let processes: Vec<Process> = if members == 0 {
            let log = format!("{addresses} {replicas}");
            let words = ["log", &destination.address.to_string(), &sim.url(), TOPIC, ROOM, &log];
            vec![Process::floor(&words.map(ToOwned::to_owned), &dir.path().join("floor"))]
        } else {
            let member = |number| {
                let dir = dir.path().join(format!("relay-{number}"));
                std::fs::create_dir(&dir).unwrap();
                Process::relay(&member(&dir, sim, rooms, destination, &addresses, replicas))
            };
            (0..members).map(member).collect()
        };
        let all = rooms.len() * members.clamp(1, COPIES);
        let began = Instant::now();
        let mut since = Instant::now();
        while since.elapsed() < STILL {
            if subscribed(sim) != all {
                since = Instant::now();
            }
            assert!(began.elapsed() < Duration::from_mins(2), "the members do not stand");
            sleep(Duration::from_millis(10)).await;
        }
        let start = began.elapsed().saturating_sub(STILL);
        Self { processes, start, _servers: servers, _dir: dir }
    }
}

/// The configuration of a member, in a directory of its own.
fn member(
    dir: &Path,
    sim: &Sim,
    rooms: &[String],
    destination: &Destination,
    addresses: &str,
    replicas: usize,
) -> std::path::PathBuf {
    let sinks = Map::from_iter([("out".to_owned(), destination.kind.sink(destination.address))]);
    let file = configuration(dir, sim, rooms, &sinks);
    let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let cluster = json!({
        "url": addresses,
        "member": dir.file_name().unwrap().to_str().unwrap(),
        "replicas": replicas,
        "copies": COPIES,
        // The destination is a server of its own, where subjects begin with the usual word.
        "name": "bench",
    });
    config.insert("cluster".into(), toml::Value::try_from(cluster).unwrap());
    std::fs::write(&file, config.to_string()).unwrap();
    file
}

/// Servers of NATS with JetStream, as they are installed: one, or several as one; and their addresses.
async fn servers(count: usize, dir: &Path) -> (Vec<Server>, String) {
    let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
    let routes: Vec<u16> = (0..count).map(|_| free_port()).collect();
    let others: Vec<String> =
        routes.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
    let mut starts = Vec::new();
    for (number, (port, route)) in ports.iter().zip(&routes).enumerate() {
        let store = dir.join(format!("store-{number}")).display().to_string();
        let text = format!(
            "server_name: n{number}\nlisten: \"127.0.0.1:{port}\"\n\
             jetstream {{ store_dir: \"{store}\", max_file_store: 1TB }}\n"
        );
        let cluster = format!(
            "cluster {{ name: c, listen: \"127.0.0.1:{route}\", routes: [{}], connect_retries: 1000 }}\n",
            others.join(", "),
        );
        let config = dir.join(format!("nats-{number}.conf"));
        let text = if count > 1 { text + &cluster } else { text };
        std::fs::write(&config, text).unwrap();
        let arguments = vec!["-c".to_owned(), config.display().to_string()];
        starts.push(Server::start("nats-server", arguments, *port));
    }
    let servers = futures_util::future::join_all(starts).await;
    let addresses: Vec<String> =
        ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    (servers, addresses.join(","))
}
