//! Members that differ in version or clock or stand still, a command that several of them hear, and channels that
//! nobody held.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use astro_relay::{cluster::assignment, journal::store};
use astro_sim::{End, Load};
use async_nats::{
    ConnectOptions,
    jetstream::{self, kv::Store},
};
use rumqttc_v5::{PublishOptions, QoS};
use serde_json::{Value, json};

use super::{
    bench::{PATIENCE, TOPIC, channels, room},
    letters::is_no_member,
    setup::{Small, says},
};
use crate::support::{
    clock::Clock,
    daemon::Relay,
    mosquitto::{self, Listener, Mosquitto},
    nats_server::NatsServer,
    receiver::Receiver,
    wait::until,
};

/// A lease that no member loses, however busy the machine is.
pub const LONG: &str = "20s";

const ADMIN: &str = "admin-token";

/// Waits until exactly these have arrived, each once and in order.
pub async fn arrived(small: &Small, count: u64, members: &[&Relay]) {
    let mut all = Vec::new();
    let arriving = until("the events arrive", PATIENCE * 2, async || {
        all = small.receiver.accepted();
        (all.len() as u64 >= count).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    let logs = || members.iter().map(|relay| relay.log()).collect::<Vec<_>>().join("\n----\n");
    assert!(in_time, "{all:?}\n{}", logs());
    assert_eq!(all, (0..count).collect::<Vec<_>>(), "{}", logs());
}

/// A server and a member of which five events have gone through.
pub async fn begun() -> (NatsServer, Small, Relay) {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let url = server.url();
    let mut relay = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    relay.start();
    relay.ready().await;
    small.load(0, 5).await;
    arrived(&small, 5, &[&relay]).await;
    published(&[&relay]).await;
    (server, small, relay)
}

/// The same without its server: five more events wait in its journal.
async fn cut_off() -> (NatsServer, Small, Relay) {
    let (mut server, small, relay) = begun().await;
    server.server.kill().await;
    small.load(5, 5).await;
    says(&relay, "(5 wait)").await;
    (server, small, relay)
}

/// A member's page of the cluster.
pub async fn page(relay: &Relay) -> Option<Value> {
    let answer = relay.get("/status").await?;
    let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    status.pointer("/pages/cluster").cloned()
}

/// Waits until these members, and no others, are there and hold what they are to hold.
pub async fn stand(members: &[&Relay]) {
    until("the members stand", PATIENCE, async || {
        for relay in members {
            let page = page(relay).await?;
            let shown = page["members"].as_object()?;
            let driven = page["sinks"].as_object()?.values().all(|sink| sink["driver"].is_string());
            let stand = shown.values().all(|member| member["stands"] == true);
            if shown.len() != members.len() || !stand || !driven {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// The member that drives a sink.
async fn driver(members: &[&Relay], sink: &str) -> String {
    until("a member drives the sink", PATIENCE, async || {
        page(members.first()?).await?["sinks"][sink]["driver"].as_str().map(ToOwned::to_owned)
    })
    .await
}

/// Says every half a second that there is a member `z` of a later version, which is like `b` in all else,
/// says more than this version knows, and does nothing.
async fn later_version(leases: &Store) {
    loop {
        if let Ok(Some(value)) = leases.get("member.b").await {
            let mut said: Value = serde_json::from_slice(&value).unwrap();
            said["version"] = "9.9.9".into();
            said["run"] = "run-z".into();
            said["colour"] = "blue".into();
            leases.put("member.z", said.to_string().into()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_version_is_said_and_changes_no_result() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small { lease: LONG, ..Small::start().await };
    let url = server.url();
    let member = |name: &str| small.member(&format!("url = {url:?}\nmember = {name:?}"), "");
    let (mut first, mut second) = (member("a"), member("b"));
    first.start();
    second.start();
    stand(&[&first, &second]).await;
    let context = jetstream::new(server.client(ConnectOptions::new()).await);
    let leases = context.get_key_value("astro_lease").await.unwrap();
    let test = async {
        says(&first, "member z has version 9.9.9").await;
        says(&second, "member z has version 9.9.9").await;
        // It takes part: one that does nothing is one of the holders, and is to drive some sinks.
        small.load(0, 50).await;
        arrived(&small, 50, &[&first, &second]).await;
        first.stop().await;
        small.load(50, 50).await;
        arrived(&small, 100, &[&first, &second]).await;
    };
    tokio::select! {
        () = test => {}
        () = later_version(&leases) => unreachable!("it says so for ever"),
    }
}

/// A process that is killed leaves numbers of its journal out: no event has them, and none waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_killed_says_how_many_events_wait() {
    let (mut server, small, mut relay) = cut_off().await;
    relay.kill().await;
    relay.start();
    let waiting = until("it says how many wait", PATIENCE, async || {
        let answer = relay.get("/readyz").await?;
        let (count, _) = answer.rsplit_once('(')?.1.split_once(" wait)")?;
        count.parse::<u64>().ok().filter(|count| *count > 0)
    });
    // Beside the five those whose place was not on the disk yet.
    let waiting = waiting.await;
    assert!((5..=50).contains(&waiting), "{waiting} wait");
    server.server.restart().await;
    published(&[&relay]).await;
    // What the cursor had not passed yet comes again.
    let mut all = BTreeSet::new();
    let arriving = until("all of them arrive", PATIENCE * 2, async || {
        all = small.receiver.accepted().into_iter().collect();
        (all == (0..10).collect()).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(in_time, "{all:?}\n{}", relay.log());
}

/// What came before the journal was away waits in it, and is not forgotten for what came meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_a_journal_that_is_opened_late_is_published() {
    let (mut server, small, mut relay) = cut_off().await;
    relay.stop().await;
    let journal = relay.journal();
    let (aside, link) = (journal.with_extension("aside"), journal.with_extension("link"));
    std::fs::rename(&journal, &aside).unwrap();
    std::fs::write(&journal, "no directory").unwrap();
    server.server.restart().await;
    relay.start();
    stand(&[&relay]).await;
    small.load(10, 5).await;
    let arrive = async |expected: BTreeSet<u64>| {
        let mut all = BTreeSet::new();
        let arriving = until("they arrive", PATIENCE * 2, async || {
            all = small.receiver.accepted().into_iter().collect();
            (all == expected).then_some(())
        });
        let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
        assert!(in_time, "{all:?}\n{}", relay.log());
    };
    arrive((0..5).chain(10..15).collect()).await;
    std::os::unix::fs::symlink(&aside, &link).unwrap();
    std::fs::rename(&link, &journal).unwrap();
    arrive((0..15).collect()).await;
    published(&[&relay]).await;
}

/// What it has received while no server answered is in its journal only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_had_still_to_publish_its_sinks_deliver_when_it_is_alone() {
    let (_server, small, mut relay) = cut_off().await;
    relay.stop().await;
    is_no_member(&relay);
    relay.start();
    relay.ready().await;
    arrived(&small, 10, &[&relay]).await;
}

/// An hour's difference, either way, makes no event too old or too new, whoever drives the sink.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_is_said_and_changes_no_result() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small { lease: LONG, ..Small::start().await };
    let url = server.url();
    let member = |name: &str| small.member(&format!("url = {url:?}\nmember = {name:?}"), "");
    let (ahead, behind) = (Clock::new(), Clock::new());
    ahead.step_forward(Duration::from_hours(1));
    behind.step_back(Duration::from_hours(1));
    let mut members = BTreeMap::from([("a", member("a")), ("b", member("b")), ("c", member("c"))]);
    members.get_mut("a").unwrap().start();
    members.get_mut("b").unwrap().start_in(&ahead.env());
    members.get_mut("c").unwrap().start_in(&behind.env());
    stand(&members.values().collect::<Vec<_>>()).await;
    says(&members["b"], "s ahead of that of the NATS servers").await;
    says(&members["c"], "s behind that of the NATS servers").await;
    small.load(0, 50).await;
    arrived(&small, 50, &members.values().collect::<Vec<_>>()).await;
    // Each in turn is the driver that goes: whoever is left goes on.
    for count in [100, 150] {
        let running: Vec<_> = members.values().filter(|relay| relay.pid().is_some()).collect();
        let driver = driver(&running, "hook").await;
        members.get_mut(&*driver).unwrap().stop().await;
        small.load(count - 50, 50).await;
        arrived(&small, count, &members.values().collect::<Vec<_>>()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_a_members_clock_makes_no_event_too_old() {
    let server = NatsServer::start("").await;
    server.streams().await;
    // For long the member does not hear what the servers' clock shows.
    let small = Small { lease: LONG, ..Small::start().await };
    let url = server.url();
    let cluster = format!("url = {url:?}\nmember = \"a\"");
    let mut relay = small.member(&cluster, "max_age = \"60s\"");
    let clock = Clock::new();
    relay.start_in(&clock.env());
    stand(&[&relay]).await;
    small.load(0, 5).await;
    arrived(&small, 5, &[&relay]).await;
    clock.step_forward(Duration::from_hours(24));
    small.load(5, 50).await;
    arrived(&small, 55, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_age_at_which_a_sink_begins_goes_by_the_servers_clock() {
    let (server, small, mut relay) = begun().await;
    relay.stop().await;
    let receiver = Receiver::start();
    let (url, hook) = (server.url(), receiver.url());
    let new = format!(
        "[sinks.new]\ntype = \"webhook\"\nurl = {hook:?}\nallow_addresses = [\"127.0.0.1\"]\n\
         payload = \"data\"\nstart = \"2h\"\n"
    );
    let mut other = small.member(&format!("url = {url:?}\nmember = \"b\""), &new);
    let clock = Clock::new();
    clock.step_forward(Duration::from_hours(3));
    other.start_in(&clock.env());
    let arriving = until("the new sink gets what the log has", PATIENCE * 2, async || {
        (receiver.accepted().len() >= 5).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(in_time, "{:?}\n{}", receiver.accepted(), other.log());
    assert_eq!(receiver.accepted(), (0..5).collect::<Vec<_>>());
}

/// A member that takes commands over HTTP.
fn commanded(small: &Small, cluster: &str, more: &str) -> Relay {
    let relay = small.member(cluster, more);
    let text = std::fs::read_to_string(relay.config()).unwrap();
    let http = format!("[http]\ncommands = true\nadmin_token = {ADMIN:?}\n");
    std::fs::write(relay.config(), text.replace("[http]\n", &http)).unwrap();
    relay
}

/// A command as it is given over HTTP; answers the status.
async fn command(relay: &Relay, transaction: &str) -> u16 {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{}/channels/main/session/reset", relay.port());
    let body = json!({ "transaction": transaction }).to_string();
    let answer = client.post(url).bearer_auth(ADMIN).body(body).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_executed_once_whichever_members_hear_it() {
    let (server, broker) =
        tokio::join!(NatsServer::start(""), Mosquitto::start(mosquitto::Options::default()));
    server.streams().await;
    let answers = Listener::start(broker.port, "astro/+/response").await;
    let small = Small { lease: LONG, ..Small::start().await };
    let (url, mqtt) = (server.url(), broker.url());
    let home = format!("[sinks.home]\ntype = \"mqtt\"\nurl = {mqtt:?}\ncommands = true\n");
    let member =
        |name: &str| commanded(&small, &format!("url = {url:?}\nmember = {name:?}"), &home);
    let mut members = BTreeMap::from([("a", member("a")), ("b", member("b"))]);
    members.values_mut().for_each(Relay::start);
    stand(&members.values().collect::<Vec<_>>()).await;
    let session = || small.sim.session(&room(0))["_id"].clone();

    // Two members are given the same at once.
    let before = session();
    let (one, other) = tokio::join!(command(&members["a"], "t1"), command(&members["b"], "t1"));
    let mut statuses = [one, other];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{}\n{}", members["a"].log(), members["b"].log());
    let after = session();
    assert_ne!(after, before);

    // A driver hears it, and goes. Whoever drives the sink next hears it again.
    let driver = driver(&members.values().collect::<Vec<_>>(), "home").await;
    hears(&answers).await;
    let answer = reset(&answers, 0).await;
    assert_eq!(answer["ok"], true, "{answer}");
    let executed = session();
    assert_ne!(executed, after);
    let mut gone = members.remove(&*driver).unwrap();
    gone.stop().await;
    hears(&answers).await;
    let answer = reset(&answers, 1).await;
    assert_eq!((&answer["ok"], &answer["transaction"]), (&json!(false), &json!("t2")), "{answer}");
    assert!(answer.to_string().contains("another member"), "{answer}");
    assert_eq!(session(), executed, "it was executed once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_refused_without_a_server_can_be_given_again() {
    let mut server = NatsServer::start("").await;
    server.streams().await;
    let small = Small { lease: LONG, ..Small::start().await };
    let url = server.url();
    let member = |name: &str| commanded(&small, &format!("url = {url:?}\nmember = {name:?}"), "");
    let (mut first, mut other) = (member("a"), member("b"));
    first.start();
    other.start();
    stand(&[&first, &other]).await;
    server.server.kill().await;
    says(&first, "no NATS server can be reached").await;
    assert_eq!(command(&first, "t1").await, 503, "{}", first.log());
    server.server.restart().await;
    first.ready().await;
    other.ready().await;
    assert_eq!(command(&other, "t1").await, 200, "{}", other.log());
    // What the first answered is not remembered there: nothing was tried.
    assert_eq!(command(&first, "t1").await, 409, "{}", first.log());
}

/// The answers to a command.
fn answers_to(listener: &Listener, command: &str) -> Vec<Value> {
    let heard = listener.heard().into_iter();
    heard
        .map(|answer| serde_json::from_slice::<Value>(&answer.payload).unwrap())
        .filter(|answer| answer["command"] == command)
        .collect()
}

async fn give(listener: &Listener, command: &str, payload: &str) {
    let topic = format!("astro/main/command/{command}");
    listener.publish(&topic, payload.as_bytes(), PublishOptions::new(QoS::AtLeastOnce)).await;
}

/// Resets the session over MQTT, and waits for the answer behind the first `known`.
async fn reset(listener: &Listener, known: usize) -> Value {
    give(listener, "session/reset", r#"{"transaction":"t2"}"#).await;
    until("the answer comes", PATIENCE, async || {
        answers_to(listener, "session/reset").get(known).cloned()
    })
    .await
}

/// Waits until somebody takes the commands: what nobody hears the broker forgets.
async fn hears(listener: &Listener) {
    let known = answers_to(listener, "relay/refresh").len();
    until("commands are heard", PATIENCE, async || {
        give(listener, "relay/refresh", "").await;
        let answered = until("an answer", PATIENCE, async || {
            (answers_to(listener, "relay/refresh").len() > known).then_some(())
        });
        tokio::time::timeout(PATIENCE / 30, answered).await.ok()
    })
    .await;
}

/// What the relay says of gaps in the log: the channel, the member, and whether it is of what was recovered.
pub async fn gaps(server: &NatsServer) -> Vec<(String, String, bool)> {
    let mut log = server.streams().await.get_stream("astro_log").await.unwrap();
    let state = log.info().await.unwrap().state.clone();
    let mut found = Vec::new();
    for seq in state.first_sequence..=state.last_sequence {
        let Ok(message) = log.get_raw_message(seq).await else { continue };
        let header = |name| message.headers.get(name).map(ToString::to_string).unwrap_or_default();
        if header("Astro-Topic") == "relay.gap" {
            let recovered = String::from_utf8_lossy(&message.payload).contains("\"recovery\"");
            let member = header("Astro-Relay").rsplit(' ').next().unwrap_or_default().to_owned();
            found.push((header("Astro-Channel"), member, recovered));
        }
    }
    found
}

/// The channels of a member with gaps, once for each: those that its metric counts, and those that it lists.
pub async fn counted_gaps(relay: &Relay) -> (Vec<String>, Vec<String>) {
    let metrics = relay.get("/metrics").await.unwrap();
    let counts = metrics.lines().filter_map(|line| {
        let (channel, count) =
            line.strip_prefix("astro_relay_gaps_total{channel=\"")?.split_once("\"} ")?;
        Some((channel.to_owned(), count.trim().parse::<usize>().unwrap()))
    });
    let counted = counts.flat_map(|(channel, count)| vec![channel; count]);
    let answer = relay.get("/status").await.unwrap();
    let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let listed = status["pages"]["gaps"].as_array().unwrap().iter();
    let listed = listed.map(|gap| gap["channel"].as_str().unwrap().to_owned());
    let (mut counted, mut listed): (Vec<_>, Vec<_>) = (counted.collect(), listed.collect());
    counted.sort();
    listed.sort();
    (counted, listed)
}

/// Waits until no member has anything left for the log.
pub async fn published(members: &[&Relay]) {
    until("nothing waits for the log", PATIENCE, async || {
        for relay in members {
            let page = page(relay).await?;
            let member = &page["members"][page["member"].as_str()?];
            if member["waiting"] != 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// Both holders of a channel die at once: whoever takes it up says that nobody held it, and says that of no
/// other channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_holders_all_died_has_a_gap() {
    const CHANNELS: usize = 8;
    const MEMBERS: [&str; 3] = ["a", "b", "c"];
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let channels = channels(1..CHANNELS, "channel.tips");
    let mut members: BTreeMap<_, _> = MEMBERS
        .map(|name| (name, small.member(&format!("url = {url:?}\nmember = {name:?}"), &channels)))
        .into();
    members.values_mut().for_each(Relay::start);
    stand(&members.values().collect::<Vec<_>>()).await;
    let labels = (1..CHANNELS).map(|n| format!("c{n}")).chain(["main".to_owned()]);
    let mut expected: Vec<(String, String, bool)> = labels
        .filter(|label| !assignment::holders(label, MEMBERS, 2).contains(&"c"))
        .map(|label| (label, "c".to_owned(), false))
        .collect();
    expected.sort();
    assert!(!expected.is_empty() && expected.len() < CHANNELS, "{expected:?}");
    let (mut a, mut b) = (members.remove("a").unwrap(), members.remove("b").unwrap());
    tokio::join!(a.kill(), b.kill());
    let left = &members["c"];
    stand(&[left]).await;
    let mut found = Vec::new();
    let reporting = until("the gaps are reported", PATIENCE * 2, async || {
        found = gaps(&server).await;
        found.retain(|(.., recovered)| !recovered);
        found.sort();
        (found.len() >= expected.len()).then_some(())
    });
    let reported = tokio::time::timeout(PATIENCE, reporting).await.is_ok();
    assert!(reported, "{found:?}, not {expected:?}\n{}", left.log());
    published(&[left]).await;
    assert_eq!(found, expected, "{}", left.log());
    small.load(0, 50).await;
    arrived(&small, 50, &[left]).await;
}

/// What the one that was killed has not received, the other has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_member_held_is_no_gap_of_the_one_that_comes_back() {
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let mut members =
        ["a", "b"].map(|name| small.member(&format!("url = {url:?}\nmember = {name:?}"), ""));
    members.iter_mut().for_each(Relay::start);
    stand(&members.each_ref()).await;
    // Its gap begins with what it has written last, when the other held the channel already.
    small.load(0, 20).await;
    arrived(&small, 20, &members.each_ref()).await;
    published(&members.each_ref()).await;
    members[0].kill().await;
    small.load(20, 50).await;
    members[0].start();
    until("its interruption is over", PATIENCE, async || {
        members[0].log().contains("this member was without the channel").then_some(())
    })
    .await;
    let all = members.each_ref();
    stand(&all).await;
    published(&all).await;
    assert!(gaps(&server).await.is_empty(), "{}\n--\n{}", all[0].log(), all[1].log());
    for relay in all {
        assert_eq!(counted_gaps(relay).await, (vec![], vec![]), "{}", relay.log());
        assert!(!relay.log().contains("events may have been missed"), "{}", relay.log());
    }
}

/// Astro is away, and all members are without their channels: one report for each channel, not one of each holder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_holders_missed_is_reported_once() {
    const CHANNELS: usize = 8;
    const MEMBERS: [&str; 2] = ["a", "b"];
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let channels = channels(1..CHANNELS, "channel.tips");
    let mut members =
        MEMBERS.map(|name| small.member(&format!("url = {url:?}\nmember = {name:?}"), &channels));
    members.iter_mut().for_each(Relay::start);
    let all: Vec<&Relay> = members.iter().collect();
    stand(&all).await;
    small.sim.listen(false);
    small.sim.end(None, End::Reset);
    until("all are without Astro", PATIENCE, async || {
        for relay in &all {
            let answer = relay.get("/readyz").await?;
            if !answer.contains("Astro") {
                return None;
            }
        }
        Some(())
    })
    .await;
    small.sim.listen(true);
    stand(&all).await;
    first_holders_report(&server, CHANNELS, &all).await;
}

/// Both members' connections are half open, and the one notices long before the other would by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holders_notice_one_after_the_other_is_reported_once() {
    const CHANNELS: usize = 8;
    let server = NatsServer::start("").await;
    server.streams().await;
    let small = Small::start().await;
    let url = server.url();
    let channels = channels(1..CHANNELS, "channel.tips");
    let mut members = ["a", "b"]
        .map(|name| small.member(&format!("url = {url:?}\nmember = {name:?}"), &channels));
    for (relay, (after, timeout)) in members.iter_mut().zip([("1s", "2s"), ("20s", "4s")]) {
        relay.start_in(&[
            ("ASTRO_RELAY__ASTRO__PING_AFTER", after),
            ("ASTRO_RELAY__ASTRO__PING_TIMEOUT", timeout),
        ]);
    }
    let all: Vec<&Relay> = members.iter().collect();
    stand(&all).await;
    let before = small.sim.connections().len();
    small.sim.silence(None, true);
    until("both have connected again", PATIENCE, async || {
        (small.sim.connections().len() >= before + 2).then_some(())
    })
    .await;
    stand(&all).await;
    first_holders_report(&server, CHANNELS, &all).await;
}

/// Waits until there is a gap of each channel, and looks that members `a` and `b` reported it once: its first holder.
async fn first_holders_report(server: &NatsServer, channels: usize, members: &[&Relay]) {
    let labels = (1..channels).map(|n| format!("c{n}")).chain(["main".to_owned()]);
    let mut expected: Vec<(String, String, bool)> = labels
        .map(|label| {
            let first = assignment::holders(&label, ["a", "b"], 1)[0].to_owned();
            (label, first, false)
        })
        .collect();
    expected.sort();
    let reported = async || {
        let mut found = gaps(server).await;
        found.retain(|(.., recovered)| !recovered);
        found.sort();
        found
    };
    until("the gaps are reported", PATIENCE, async || {
        (reported().await.len() >= expected.len()).then_some(())
    })
    .await;
    published(members).await;
    let logs = || format!("{}\n--\n{}", members[0].log(), members[1].log());
    assert_eq!(reported().await, expected, "{}", logs());
    // Whoever reports it counts it and lists it, and nobody else does.
    for (relay, name) in members.iter().zip(["a", "b"]) {
        let own = expected.iter().filter(|(_, member, _)| member == name);
        let own: Vec<_> = own.map(|(channel, ..)| channel.clone()).collect();
        assert_eq!(counted_gaps(relay).await, (own.clone(), own), "{name}: {}", logs());
    }
}

/// The keys of the channel's events in the log.
async fn keys(server: &NatsServer) -> Vec<String> {
    let mut log = server.streams().await.get_stream("astro_log").await.unwrap();
    let state = log.info().await.unwrap().state.clone();
    let mut found = Vec::new();
    for seq in state.first_sequence..=state.last_sequence {
        let Ok(message) = log.get_raw_message(seq).await else { continue };
        let header = |name| message.headers.get(name).map(ToString::to_string).unwrap_or_default();
        if header("Astro-Topic") == TOPIC {
            found.push(header("Nats-Msg-Id"));
        }
    }
    found
}

/// What a member reads after it has stood still looks new to it, and the log recognises the other member's copies no
/// more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_stood_still_publishes_no_event_twice() {
    // A third of them are older than the log's window at the end, and a socket has room for all.
    const EVENTS: u64 = 300;
    const RATE: u64 = 20;
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let url = server.url();
    let mut members = ["a", "b"].map(|name| {
        let cluster = format!("url = {url:?}\nmember = {name:?}\nduplicate_window = \"10s\"");
        small.member(&cluster, "")
    });
    for member in &mut members {
        member.start();
        member.ready().await;
    }
    let [stopped, other] = &members;
    stand(&[stopped, other]).await;
    stopped.signal("STOP").await;
    let load = Load {
        messages: EVENTS,
        rate: Some(RATE),
        topic: TOPIC.into(),
        rooms: vec![room(0)],
        ..Load::default()
    };
    small.sim.load(&load).await;
    stopped.signal("CONT").await;
    until("it has read and published all", PATIENCE, async || {
        let journal = store::Store::open_reader(&stopped.journal()).ok()?;
        let (_, last) = journal.bounds().ok()??;
        (last >= EVENTS && page(stopped).await?["waiting"] == 0).then_some(())
    })
    .await;
    assert!(stopped.log().contains("this process has stood still"), "{}", stopped.log());
    let keys = keys(&server).await;
    let distinct: BTreeSet<&String> = keys.iter().collect();
    let found = (distinct.len() as u64, keys.len() as u64);
    assert_eq!(found, (EVENTS, EVENTS), "{}\n----\n{}", stopped.log(), other.log());
}

/// The journal's size overtakes a log that is away: what no sink will get is reported to all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_lost_before_they_came_into_the_log_are_reported() {
    // More than the journal has space for, and what is read ahead of the log.
    const TOTAL: u64 = 400;
    const SIZE: usize = 60_000;
    let mut server = NatsServer::start("").await;
    let small = Small { lease: LONG, ..Small::start().await };
    let url = server.url();
    let mut member = small.member(&format!("url = {url:?}\nmember = \"relay-1\""), "");
    member.start_in(&[
        ("ASTRO_RELAY__JOURNAL__MAX_SIZE", "2MiB"),
        ("ASTRO_RELAY__JOURNAL__MEMORY", "256KiB"),
    ]);
    member.ready().await;
    stand(&[&member]).await;
    server.server.kill().await;
    for n in 0..TOTAL {
        // What no compression makes much smaller.
        let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(SIZE).collect();
        small.sim.publish(TOPIC, &room(0), format!(r#"{{"n":{n},"noise":{noise:?}}}"#));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("the journal has deleted the older half", PATIENCE, async || {
        let (first, last) = store::Store::open_reader(&member.journal()).ok()?.bounds().ok()??;
        (first > TOTAL / 2 && last >= TOTAL).then_some(())
    })
    .await;
    server.server.restart().await;
    let reported = || -> u64 {
        let received = small.receiver.received().into_iter().filter(|request| request.accepted);
        let data = received.filter_map(|one| serde_json::from_slice::<Value>(&one.body).ok());
        let gaps = data.filter(|data| data["sink"] == "relay.cluster");
        gaps.filter_map(|data| data["count"].as_u64()).sum()
    };
    let arrived = || small.receiver.accepted().into_iter().collect::<BTreeSet<u64>>();
    let arriving = until("the rest and the report arrive", PATIENCE * 2, async || {
        (arrived().contains(&(TOTAL - 1)) && reported() > 0).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    assert!(in_time, "{:?}, {} reported\n{}", arrived(), reported(), member.log());
    let lost = TOTAL - arrived().len() as u64;
    assert!(lost > 0, "the journal was large enough");
    // The relay has some events of its own, which may be among them.
    assert!((lost..lost + 20).contains(&reported()), "{lost} lost, {} reported", reported());
    says(&member, "lost, the journal no longer holds them").await;
}
