//! How a cluster is set up, and what is said where that is wrong.

use std::collections::BTreeSet;

use astro_relay::{
    base::{clock, event},
    cluster::assignment,
};
use astro_sim::{Load, Options, Sim};
use async_nats::{ConnectOptions, jetstream};
use serde_json::json;
use tokio::process::Command;

use super::{
    bench::{PATIENCE, TOPIC, channels, room},
    members::{arrived, page, stand},
};
use crate::support::{
    daemon::{PROGRAM, Relay},
    journal,
    nats_server::NatsServer,
    process::{Server, free_port},
    receiver::Receiver,
    wait::until,
};

/// A simulated Astro, one server of NATS, and a destination.
pub struct Small {
    pub sim: Sim,
    pub receiver: Receiver,
    /// The lease of the members.
    pub lease: &'static str,
}

impl Small {
    pub async fn start() -> Self {
        // For the clients of HTTP in these tests.
        astro_relay::base::tls::install_provider();
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        Self { sim, receiver: Receiver::start(), lease: "2s" }
    }

    /// A member; `cluster` are keys of its section, `more` the rest of its configuration.
    pub fn member(&self, cluster: &str, more: &str) -> Relay {
        let (url, api, hook) = (self.sim.url(), self.sim.api_url(), self.receiver.url());
        let lease = self.lease;
        let room = room(0);
        Relay::written(|port, journal| {
            format!(
                "[astro]\nurl = {url:?}\napi_url = {api:?}\n\
                 [channels.main]\nroom = {room:?}\ntoken = \"secret\"\ntoken_type = \"apikey\"\ntopics = [{TOPIC:?}]\n\
                 [cluster]\nreplicas = 1\nlease = {lease:?}\n{cluster}\n\
                 [http]\nlisten = \"127.0.0.1:{port}\"\n[log]\nformat = \"text\"\n\
                 [journal]\ndir = {journal:?}\nmin_free = \"0B\"\n\
                 [sinks.hook]\ntype = \"webhook\"\nurl = {hook:?}\nallow_addresses = [\"127.0.0.1\"]\npayload = \"data\"\n{more}\n"
            )
        })
    }

    pub async fn load(&self, first: u64, messages: u64) {
        let load = Load {
            messages,
            first,
            rate: Some(100),
            topic: TOPIC.into(),
            rooms: vec![room(0)],
            ..Load::default()
        };
        self.sim.load(&load).await;
    }
}

/// Waits until a member says this of why it is not ready.
pub async fn says(relay: &Relay, what: &str) {
    let mut last = None;
    let saying = until("the member says it", PATIENCE * 2, async || {
        let answer = relay.get("/readyz").await?;
        let found = answer.contains(what);
        last = Some(answer);
        found.then_some(())
    });
    assert!(
        tokio::time::timeout(PATIENCE, saying).await.is_ok(),
        "{what:?} is not said: {last:?}\n{}",
        relay.log()
    );
}

/// What a command of the program prints.
async fn program(args: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `check --connect` prints of a member's configuration, and whether it is content.
async fn checked(relay: &Relay) -> (String, bool) {
    let output = Command::new(PROGRAM)
        .args(["check", "--connect", "--config"])
        .arg(relay.config())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (text, output.status.success())
}

/// The rights that are shipped are all that two members need: with them, events are delivered once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permissions_are_enough() {
    let snippet = include_str!("../../../deploy/cluster/nats-permissions.conf");
    let server = NatsServer::start(snippet).await;
    let small = Small::start().await;
    let member = |number| {
        let (url, user) = (server.url(), "user = \"relay\"\npassword = \"change-me\"");
        small.member(&format!("url = {url:?}\nmember = \"relay-{number}\"\n{user}"), "")
    };
    let mut members = [member(1), member(2)];
    members[0].start();
    members[0].ready().await;
    let (text, content) = checked(&members[1]).await;
    assert!(
        content && text.contains("cluster: ok") && text.contains("member relay-1 runs"),
        "{text}"
    );
    members[1].start();
    members[1].ready().await;
    small.load(0, 100).await;
    let mut all = Vec::new();
    let arriving = until("the events arrive", PATIENCE * 2, async || {
        all = small.receiver.accepted();
        (all.len() >= 100).then_some(())
    });
    let arrived = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(arrived, "{all:?}\n{}\n{}", members[0].log(), members[1].log());
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    let url = format!("http://127.0.0.1:{}", members[0].port());
    let shown = program(&["cluster", "--channels", "--url", &url]).await;
    for word in ["cluster astro as relay-1 sees it", "relay-2", "stands", "hook", "main"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    for member in &mut members {
        member.stop().await;
        assert!(!member.log().contains("ermissions"), "{}", member.log());
    }
    // What its journal has, the log knows already.
    let config = members[0].config().display().to_string();
    let from = "2020-01-01T00:00:00Z";
    let again = program(&["cluster", "republish", "--config", &config, "--from", from]).await;
    let known: u64 = again.split("; ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(known >= 100, "{again}");
}

/// Of a channel the members have agreed on who reports what, and on what nobody has to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_reports_of_a_channel_is_not_republished() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let relay = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    let (journal, _) = journal::open(&journal::config(&relay.journal()));
    let own = |topic| event::own(topic, &"main".into(), &room(0).into(), &json!({}), clock::now());
    let events = vec![journal::event(1), own("relay.gap"), own("relay.session")];
    journal::append(&journal, events).await;
    journal::settled(&journal, &[]).await;
    journal::close(journal).await;
    let config = relay.config().display().to_string();
    let from = "2020-01-01T00:00:00Z";
    let said = program(&["cluster", "republish", "--config", &config, "--from", from]).await;
    assert!(said.starts_with("1 events were put into the log; 0 more"), "{said}");
}

/// What the servers lack is said, by `check --connect` and by the member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_servers_lack_is_said() {
    let small = Small::start().await;
    let port = free_port();
    let plain = Server::start("nats-server", vec!["-p".into(), port.to_string()], port).await;
    let relay = small.member(&format!("url = \"nats://127.0.0.1:{port}\""), "");
    let (text, content) = checked(&relay).await;
    assert!(!content && text.contains("is JetStream enabled"), "{text}");
    drop(plain);

    let server = NatsServer::start("").await;
    let streams = server.streams().await;
    let url = server.url();
    let mut relay = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    let three =
        std::fs::read_to_string(relay.config()).unwrap().replace("replicas = 1", "replicas = 3");
    std::fs::write(relay.config(), three).unwrap();
    relay.start();
    says(&relay, "fewer servers with JetStream than cluster.replicas wants").await;
    relay.stop().await;

    let config = |subjects: &[&str]| jetstream::stream::Config {
        name: "astro_log".into(),
        subjects: subjects.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    streams.create_stream(config(&["other.>"])).await.unwrap();
    let relay = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    let (text, content) = checked(&relay).await;
    assert!(!content && text.contains("it is not this cluster's"), "{text}");
    streams.delete_stream("astro_log").await.unwrap();
    streams
        .create_stream(jetstream::stream::Config { name: "ASTRO".into(), ..config(&["astro.>"]) })
        .await
        .unwrap();
    let mut relay = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    relay.start();
    says(&relay, "another stream takes its subjects").await;
    relay.stop().await;
}

/// Members that do not agree say so, and deliver all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_differ_say_so() {
    let server = NatsServer::start("").await;
    server.client(ConnectOptions::new()).await;
    let small = Small::start().await;
    let url = server.url();
    let mut first = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    first.start();
    first.ready().await;

    let more = "[channels.more]\ntoken = \"secret\"\ntoken_type = \"apikey\"\nroom = \"5b2e2007760aeb7700009999\"\ntopics = [\"channel.tips\"]";
    let mut other = small.member(&format!("url = {url:?}\nmember = \"b\""), more);
    let (text, content) = checked(&other).await;
    assert!(!content && text.contains("channel more is missing there"), "{text}");
    other.start();
    says(&first, "member b has another configuration: channel more is missing here").await;
    says(&other, "member a has another configuration: channel more is missing there").await;
    other.stop().await;

    let mut namesake = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    namesake.start();
    says(&namesake, "another relay calls itself \"a\"").await;
    says(&first, "another relay calls itself \"a\"").await;
    namesake.stop().await;

    // Whoever holds the channel and drives the sink: what differs costs nothing.
    small.load(0, 50).await;
    let mut all = Vec::new();
    let arriving = until("the events arrive", PATIENCE * 2, async || {
        all = small.receiver.accepted();
        (all.len() >= 50).then_some(())
    });
    let arrived = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(arrived, "{all:?}\n{}", first.log());
    assert_eq!(all, (0..50).collect::<Vec<_>>());
}

/// Waits until these are the holders of a channel, as each member sees it.
async fn held(members: &[&Relay], channel: &str, holders: &[&str]) {
    until("the channel has its holders", PATIENCE, async || {
        for relay in members {
            let page = page(relay).await?;
            if page["channels"][channel] != json!(holders) {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// What one member lacks stays with the other, also after the one was away and is back as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_back_lacks_what_it_lacked() {
    const CHANNELS: usize = 8;
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let cluster = |name: &str| format!("url = {url:?}\nmember = {name:?}\ncopies = 1");
    let mut first = small.member(&cluster("a"), &channels(1..CHANNELS, TOPIC));
    let mut other = small.member(&cluster("b"), "");
    let labels: Vec<String> = (1..CHANNELS).map(|n| format!("c{n}")).collect();
    let would_move = |label: &String| assignment::holders(label, ["a", "b"], 1) == ["b"];
    assert!(labels.iter().any(would_move));
    first.start();
    other.start();
    let differs = "member b has another configuration: channel c1 is missing there";
    says(&first, differs).await;
    other.stop().await;
    until("the other is gone", PATIENCE, async || {
        let answer = first.get("/readyz").await?;
        (!answer.contains(differs)).then_some(())
    })
    .await;
    other.start();
    says(&first, differs).await;
    stand(&[&first, &other]).await;
    for label in &labels {
        held(&[&first], label, &["a"]).await;
    }
    let load = Load {
        messages: 50,
        rate: Some(100),
        topic: TOPIC.into(),
        rooms: (1..CHANNELS).map(room).collect(),
        ..Load::default()
    };
    small.sim.load(&load).await;
    let mut all = BTreeSet::new();
    let arriving = until("the events arrive", PATIENCE * 2, async || {
        all = small.receiver.accepted().into_iter().collect();
        (all == (0..50).collect()).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(in_time, "{all:?}\n{}\n----\n{}", first.log(), other.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_one_member_has_is_received() {
    const MORE: &str = "channel.stream.status";
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let member =
        |name: &str| small.member(&format!("url = {url:?}\nmember = {name:?}\ncopies = 1"), "");
    // By itself the channel would be held by the one that lacks the topic.
    let ranked = assignment::holders("main", ["a", "b"], 2);
    let (mut lacks, mut has) = (member(ranked[0]), member(ranked[1]));
    let text = std::fs::read_to_string(has.config()).unwrap();
    let topics = format!("topics = [{TOPIC:?}, {MORE:?}]");
    std::fs::write(has.config(), text.replace(&format!("topics = [{TOPIC:?}]"), &topics)).unwrap();
    lacks.start();
    has.start();
    let members = [&lacks, &has];
    held(&members, "main", &ranked).await;
    stand(&members).await;
    // What both hold comes once.
    small.load(0, 50).await;
    arrived(&small, 50, &members).await;
    let mut number = 1000;
    until("the topic arrives", PATIENCE, async || {
        small.sim.publish(MORE, &room(0), json!({ "n": number }));
        number += 1;
        small.receiver.accepted().into_iter().find(|n| *n >= 1000)
    })
    .await;
}
