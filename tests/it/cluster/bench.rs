//! Three relays on three nats-servers, a simulated Astro before them and destinations of four kinds behind
//! them; and what of the load arrived.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use astro_relay::{
    base::clock::{self, UnixMillis},
    cluster::assignment,
};
use astro_sim::{Load, Options, Sim};
use async_nats::jetstream::{self, consumer::pull::OrderedConfig};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::{
    carry::{first_arrivals, number},
    daemon::Relay,
    journal::{long, say},
    mosquitto::{self, Mosquitto},
    nats_cluster::NatsCluster,
    nats_server::NatsServer,
    receiver::Receiver,
    redis_server::{Durability, RedisServer},
    wait::until,
};

pub const TOPIC: &str = "channel.activities";

/// The window of each sink: what one kill may repeat.
pub const WINDOW: usize = 64;

/// The lease of the members, where they die.
pub const LEASE: Duration = Duration::from_secs(4);

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub const SINKS: [&str; 4] = ["mqtt", "nats", "redis", "webhook"];

pub fn room(channel: usize) -> String {
    format!("5b2e2007760aeb77{channel:08}")
}

/// The sections of these channels.
pub fn channels(numbers: std::ops::Range<usize>, topic: &str) -> String {
    let section = |n| {
        let room = room(n);
        format!(
            "[channels.c{n}]\nroom = {room:?}\ntoken = \"secret\"\ntoken_type = \"apikey\"\n\
             topics = [{topic:?}]\n"
        )
    };
    numbers.map(section).collect()
}

/// What stands in the configuration of every member.
#[derive(Clone)]
pub struct Shape {
    pub channels: usize,
    pub members: usize,
    pub lease: Duration,
    /// More keys of `[cluster]`.
    pub cluster: String,
    /// More of the configuration.
    pub more: String,
}

impl Default for Shape {
    fn default() -> Self {
        Self { channels: 6, members: 3, lease: LEASE, cluster: String::new(), more: String::new() }
    }
}

pub struct Bench {
    pub sim: Sim,
    pub brokers: NatsCluster,
    pub mqtt: Mosquitto,
    pub listener: mosquitto::Listener,
    pub nats: NatsServer,
    pub redis: RedisServer,
    pub receiver: Receiver,
    pub relays: Vec<Relay>,
    pub shape: Shape,
    pub began: Instant,
}

impl Bench {
    pub async fn start(shape: Shape) -> Self {
        Self::with(shape, Options::default()).await
    }

    pub async fn with(shape: Shape, options: Options) -> Self {
        let began = Instant::now();
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let (brokers, mqtt, nats, redis) = tokio::join!(
            NatsCluster::start(),
            Mosquitto::start(mosquitto::Options::default()),
            NatsServer::start(""),
            RedisServer::start(Durability::Memory),
        );
        let listener = mosquitto::Listener::start(mqtt.port, "astro/#").await;
        nats.streams().await;
        let mut bench = Self {
            sim,
            brokers,
            mqtt,
            listener,
            nats,
            redis,
            receiver: Receiver::start(),
            relays: Vec::new(),
            shape,
            began,
        };
        for number in 0..bench.shape.members {
            let relay = bench.member(number, "");
            bench.relays.push(relay);
        }
        bench
    }

    /// A member; `more` is configuration of its own.
    pub fn member(&self, number: usize, more: &str) -> Relay {
        let Shape { channels, lease, cluster, more: shared, .. } = &self.shape;
        let common = format!(
            "window = {WINDOW}\npayload = \"data\"\nbackoff_max = \"300ms\"\ntimeout = \"5s\""
        );
        let channels = self::channels(0..*channels, TOPIC);
        let (mqtt, nats, redis, hook) =
            (self.mqtt.url(), self.nats.url(), self.redis.url(), self.receiver.url());
        let sinks = format!(
            "[sinks.mqtt]\ntype = \"mqtt\"\nurl = {mqtt:?}\n{common}\n\
             [sinks.nats]\ntype = \"nats\"\nurl = {nats:?}\njetstream = true\ncreate_stream = true\n{common}\n\
             [sinks.redis]\ntype = \"redis\"\nurl = {redis:?}\nmode = \"stream\"\nmax_len = 0\n{common}\n\
             [sinks.webhook]\ntype = \"webhook\"\nurl = {hook:?}\nallow_addresses = [\"127.0.0.1\"]\n\
             bearer_token = \"relay-{number}\"\n{common}\n",
        );
        let (url, api, brokers) = (self.sim.url(), self.sim.api_url(), self.brokers.url());
        Relay::written(|port, journal| {
            format!(
                "[astro]\nurl = {url:?}\napi_url = {api:?}\nbackoff_max = \"300ms\"\nmax_subscriptions_per_connection = 100\n{channels}\
                 [cluster]\nurl = {brokers:?}\nmember = \"relay-{number}\"\nlease = \"{}s\"\n{cluster}\n\
                 [http]\nlisten = \"127.0.0.1:{port}\"\n[log]\nlevel = \"info\"\nformat = \"text\"\n\
                 [journal]\ndir = {journal:?}\nmin_free = \"0B\"\n{sinks}{shared}{more}\n",
                lease.as_secs(),
            )
        })
    }

    /// Starts all members, and waits until all of them stand.
    pub async fn run(&mut self) {
        self.relays.iter_mut().for_each(Relay::start);
        self.stands().await;
    }

    /// The cluster as a member shows it.
    pub async fn shown(&self, relay: &Relay) -> Option<Value> {
        let answer = relay.get("/status").await?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let status: Value = serde_json::from_str(body).ok()?;
        status.pointer("/pages/cluster").cloned()
    }

    /// Waits until the members that run see one another, have all that they are to hold, and drive each sink.
    pub async fn stands(&self) {
        let running: Vec<_> = self.relays.iter().filter(|relay| relay.pid().is_some()).collect();
        let standing = until("all members stand", PATIENCE * 2, async || {
            let mut sets = BTreeSet::new();
            let mut held = 0;
            for relay in &running {
                let shown = self.shown(relay).await?;
                let members = shown["members"].as_object()?;
                let own = &shown["members"][shown["member"].as_str()?];
                sets.insert(own["set"].as_u64()?);
                held += own["channels"].as_u64()?;
                // What is asked is answered, and what was received is in the log: a fault finds nobody busy.
                let all = members.len() == running.len()
                    && shown["waiting"] == 0
                    && members
                        .values()
                        .all(|member| member["stands"] == true && member["waiting"] == 0);
                let driven =
                    shown["sinks"].as_object()?.values().all(|sink| sink["driver"].is_string());
                if !all || !driven {
                    return None;
                }
            }
            let copies = self.shape.channels * 2.min(running.len());
            (sets.len() == 1 && held == copies as u64).then_some(())
        });
        if tokio::time::timeout(PATIENCE, standing).await.is_err() {
            let mut shown = Vec::new();
            for relay in &running {
                shown.push(self.shown(relay).await);
            }
            panic!("the members do not all stand: {shown:#?}\n{}", self.logs());
        }
    }

    /// The member that drives a sink.
    pub async fn driver(&self, sink: &str) -> usize {
        until("a member drives the sink", PATIENCE, async || {
            for relay in self.relays.iter().filter(|relay| relay.pid().is_some()) {
                let Some(shown) = self.shown(relay).await else { continue };
                let driver = shown["sinks"][sink]["driver"].as_str();
                if let Some(number) = driver.and_then(|name| name.strip_prefix("relay-")) {
                    return number.parse().ok();
                }
            }
            None
        })
        .await
    }

    /// Subscriptions that were ever made.
    pub fn subscribed(&self) -> usize {
        let connections = self.sim.connections();
        let commands = connections.iter().flat_map(|connection| &connection.commands);
        commands.filter(|one| one.kind == "subscribe" && one.error.is_none()).count()
    }

    /// The channels that a member is to hold of those of so many members.
    pub fn share(&self, member: &str, members: usize) -> usize {
        let names: Vec<String> = (0..members).map(|number| format!("relay-{number}")).collect();
        let labels = (0..self.shape.channels).map(|n| format!("c{n}"));
        labels
            .filter(|label| {
                assignment::holders(label, names.iter().map(String::as_str), 2).contains(&member)
            })
            .count()
    }

    /// What the webhook has received from a member behind the first `known` requests: the driver names itself.
    pub fn received_from(&self, member: usize, known: usize) -> usize {
        let by = format!("Bearer relay-{member}");
        let received = self.receiver.received();
        received.iter().skip(known).filter(|request| request.header("authorization") == by).count()
    }

    /// The member that a sink's cursor belongs to: nobody else can move it.
    pub async fn cursor_of(&self, sink: &str) -> usize {
        let context = jetstream::new(self.brokers.client().await);
        let cursors = context.get_key_value("astro_cursor").await.unwrap();
        let cursor = cursors.get(sink).await.unwrap().expect("the sink has a cursor");
        let cursor: Value = serde_json::from_slice(&cursor).unwrap();
        cursor["member"].as_str().unwrap().strip_prefix("relay-").unwrap().parse().unwrap()
    }

    pub fn load(&self, first: u64, messages: u64, rate: u64) -> Load {
        Load {
            messages,
            first,
            rate: Some(rate),
            topic: TOPIC.into(),
            rooms: (0..self.shape.channels).map(room).collect(),
            ..Load::default()
        }
    }

    async fn in_redis(&self) -> Vec<u64> {
        type Entry = (String, Vec<(String, Vec<u8>)>);
        let mut connection = self.redis.connection().await;
        let mut numbers = Vec::new();
        let mut after = "-".to_owned();
        loop {
            // Of a long stream the client would not wait for all at once.
            let mut entries: Vec<Entry> = redis::cmd("XRANGE")
                .arg(&["astro:events", &after, "+", "COUNT", "5000"])
                .query_async(&mut connection)
                .await
                .unwrap();
            let Some((last, _)) = entries.last() else { return numbers };
            after = format!("({last}");
            let fields = entries.drain(..).flat_map(|(_, fields)| fields);
            numbers.extend(fields.filter_map(|(_, value)| number(&value)));
        }
    }

    /// Whoever drove the sink, an entry in Redis has the id that its place in the log gives it.
    pub async fn entries_are_those_of_the_log(&self) {
        let mut connection = self.redis.connection().await;
        let entries: Vec<(String, redis::Value)> = redis::cmd("XRANGE")
            .arg(&["astro:events", "-", "+"])
            .query_async(&mut connection)
            .await
            .unwrap();
        let entries: BTreeSet<String> = entries.into_iter().map(|(id, _)| id).collect();
        for message in self.log().await {
            if topic(&message) != Some(TOPIC) {
                continue;
            }
            let info = message.info().unwrap();
            let id = format!("{}-{}", clock::millis(info.published), info.stream_sequence);
            assert!(entries.contains(&id), "{id} is missing");
        }
    }

    /// All messages of the log.
    async fn log(&self) -> Vec<jetstream::Message> {
        let streams = self.brokers.works().await;
        let mut log = streams.get_stream("astro_log").await.unwrap();
        let count = usize::try_from(log.info().await.unwrap().state.messages).unwrap();
        let consumer = log.create_consumer(OrderedConfig::default()).await.unwrap();
        let messages = consumer.messages().await.unwrap();
        messages.take(count).map(|message| message.unwrap()).collect().await
    }

    /// What has arrived at each destination.
    pub async fn arrived(&self) -> Vec<(&'static str, Vec<u64>)> {
        vec![
            ("mqtt", self.listener.numbers()),
            ("nats", self.nats.stored_after("ASTRO", 0).await),
            ("redis", self.in_redis().await),
            ("webhook", self.receiver.accepted()),
        ]
    }

    /// Waits until each of `expected` has arrived everywhere, and counts what came twice and out of order.
    pub async fn all_arrive(
        &self,
        expected: std::ops::Range<u64>,
    ) -> HashMap<&'static str, Counted> {
        let mut missing = HashMap::new();
        // To count a hundred thousand takes its time.
        let end = Instant::now() + if long() { PATIENCE * 5 } else { PATIENCE };
        loop {
            let arrived = self.arrived().await;
            let counted: HashMap<_, _> = arrived
                .iter()
                .map(|(name, numbers)| {
                    (*name, Counted::of(numbers, expected.clone(), self.shape.channels))
                })
                .collect();
            if counted.values().all(|counted| counted.lost == 0) {
                for (name, numbers) in &arrived {
                    say(&format!("{name}: {:?}", counted[name]));
                    if let Some(at) = first_disorder(numbers, self.shape.channels) {
                        let around = &numbers[at.saturating_sub(60)..(at + 60).min(numbers.len())];
                        say(&format!("{name}: out of order: {around:?}"));
                    }
                }
                return counted;
            }
            for (name, counted) in counted {
                missing.insert(name, counted);
            }
            if Instant::now() >= end {
                let mut shown = Vec::new();
                for relay in self.relays.iter().filter(|relay| relay.pid().is_some()) {
                    shown.push(relay.get("/status").await.unwrap_or_default());
                }
                let shown = shown.join("\n");
                panic!("not everything arrived: {missing:?}\n{shown}\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn logs(&self) -> String {
        let logs = self.relays.iter().enumerate();
        let logs = logs.map(|(number, relay)| format!("---- relay-{number}\n{}", relay.log()));
        logs.collect::<Vec<_>>().concat()
    }

    /// Where the log is out of order: what stands around the first such event, by whom and under which subject.
    pub async fn disorder(&self) -> String {
        let streams = self.brokers.works().await;
        let mut log = streams.get_stream("astro_log").await.unwrap();
        let last = log.info().await.unwrap().state.clone();
        let mut events = Vec::new();
        for seq in last.first_sequence..=last.last_sequence {
            let message =
                until("the log is read", PATIENCE, async || log.get_raw_message(seq).await.ok());
            let message = message.await;
            let json: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            let Some(n) = json.pointer("/data/n").and_then(Value::as_u64) else { continue };
            let header = |name: &str| message.headers.get(name).map_or("-", |value| value.as_str());
            let said = ["Astro-Relay", "Astro-Origin"].map(header).join(" ");
            events.push((n, format!("  {n} {} {} {said}", message.subject, message.time)));
        }
        let mut found = vec![format!("the log has {} events of the load", events.len())];
        let numbers: Vec<u64> = events.iter().map(|(n, _)| *n).collect();
        if let Some(at) = first_disorder(&numbers, self.shape.channels) {
            let channel = numbers[at] % self.shape.channels as u64;
            let around = events[at.saturating_sub(100)..(at + 100).min(events.len())].iter();
            let of_channel = around.filter(|(n, _)| n % self.shape.channels as u64 == channel);
            found.extend(of_channel.map(|(_, line)| line.clone()));
        }
        found.join("\n")
    }

    /// Each taking of a sink's lease from now on: the sink, and when its driver began by the wall clock. Ends
    /// when `end` does.
    pub async fn terms<T>(&self, end: impl Future<Output = T>) -> (Vec<(String, UnixMillis)>, T) {
        let context = jetstream::new(self.brokers.client().await);
        let leases = context.get_key_value("astro_lease").await.unwrap();
        let mut entries = leases.watch("sink.>").await.unwrap();
        let mut terms = Vec::new();
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                Some(Ok(entry)) = entries.next() => {
                    let Ok(holder) = serde_json::from_slice::<Value>(&entry.value) else { continue };
                    let term = (entry.key["sink.".len()..].to_owned(), holder["since"].as_u64().unwrap());
                    if !terms.contains(&term) {
                        terms.push(term);
                    }
                }
                ended = &mut end => return (terms, ended),
            }
        }
    }

    /// The gaps that were reported to a sink: the subjects in the stream that end so.
    pub async fn gaps(&self) -> usize {
        let log = self.log().await;
        // What was recovered of a gap is told again.
        let again = |payload: &[u8]| String::from_utf8_lossy(payload).contains("\"recovery\"");
        let gaps = log.iter().filter(|message| topic(message) == Some("relay.gap"));
        gaps.filter(|message| !again(&message.payload)).count()
    }
}

/// The topic of a message of the log.
fn topic(message: &jetstream::Message) -> Option<&str> {
    Some(message.headers.as_ref()?.get("Astro-Topic")?.as_str())
}

/// Where an event came first behind a later one of its channel.
fn first_disorder(arrived: &[u64], channels: usize) -> Option<usize> {
    let mut seen = BTreeSet::new();
    let mut newest: HashMap<u64, u64> = HashMap::new();
    arrived.iter().position(|n| {
        let newest = newest.entry(n % channels as u64).or_default();
        let late = seen.insert(*n) && n < newest;
        *newest = (*newest).max(*n);
        late
    })
}

/// What became of the load at one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub lost: usize,
    pub twice: usize,
    /// Events that came behind a later one of their channel.
    pub reordered: usize,
}

impl Counted {
    fn of(arrived: &[u64], expected: std::ops::Range<u64>, channels: usize) -> Self {
        let first = first_arrivals(arrived);
        let there: BTreeSet<u64> = first.iter().copied().collect();
        let mut newest: HashMap<u64, u64> = HashMap::new();
        let mut reordered = 0;
        for n in first.iter().filter(|n| expected.contains(n)) {
            let newest = newest.entry(n % channels as u64).or_default();
            reordered += usize::from(n < newest);
            *newest = (*newest).max(*n);
        }
        let of_these = |numbers: &[u64]| numbers.iter().filter(|n| expected.contains(n)).count();
        Self {
            twice: of_these(arrived) - of_these(&first),
            lost: expected.filter(|n| !there.contains(n)).count(),
            reordered,
        }
    }
}
