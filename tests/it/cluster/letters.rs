//! Dead letters and replays of two members: whoever drives the sink, and whoever is asked.

use std::{collections::BTreeSet, time::Duration};

use astro_relay::journal::store::Store;
use async_nats::jetstream::kv::Operation;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
};

use super::{
    bench::{PATIENCE, TOPIC, room},
    members::arrived,
    setup::{Small, says},
};
use crate::support::{
    carry::number,
    daemon::{PROGRAM, Relay},
    nats_server::NatsServer,
    receiver::Answer,
    wait::until,
};

/// Two members that do not run yet; `more` are further keys of their section `cluster`.
fn pair(small: &Small, url: &str, more: &str) -> [Relay; 2] {
    [1, 2].map(|number| {
        let cluster = format!("url = {url:?}\nmember = \"relay-{number}\"\n{more}");
        small.member(&cluster, "backoff_max = \"1s\"")
    })
}

/// What `/status` of a member shows.
async fn status(relay: &Relay) -> Option<Value> {
    let answer = relay.get("/status").await?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// How many dead letters of the sink a member knows.
async fn known(relay: &Relay) -> Option<u64> {
    Some(status(relay).await?["dead_letters"]["hook"].as_u64().unwrap_or(0))
}

pub async fn knows(relay: &Relay, letters: u64) {
    let known_at_last = until("the member knows the dead letters", PATIENCE * 2, async || {
        (known(relay).await? == letters).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, known_at_last).await;
    let found = known(relay).await;
    assert!(in_time.is_ok(), "{found:?} dead letters, not {letters}\n{}", relay.log());
}

/// The member that drives the sink.
async fn driver(relay: &Relay) -> String {
    until("a member drives the sink", PATIENCE, async || {
        let status = status(relay).await?;
        status["pages"]["cluster"]["sinks"]["hook"]["driver"].as_str().map(ToOwned::to_owned)
    })
    .await
}

/// What a command prints with the configuration of a member.
async fn command(relay: &Relay, args: &[&str]) -> String {
    let output = Command::new(PROGRAM)
        .args(args)
        .arg("--config")
        .arg(relay.config())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    assert!(!errors.contains("no connection to NATS"), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The numbers of the events that are dead letters.
async fn set_aside(relay: &Relay) -> BTreeSet<u64> {
    let shown = command(relay, &["dead-letters", "show"]).await;
    let mut letters = BTreeSet::new();
    for line in shown.lines() {
        let letter: Value = serde_json::from_str(line).unwrap();
        let event = letter["event"]["message"]["data"].to_string();
        letters.insert(number(event.as_bytes()).unwrap_or_else(|| panic!("{line}")));
    }
    letters
}

/// The members' metric of waiting dead letters, added up.
async fn counted(members: &[Relay]) -> u64 {
    let mut sum = 0;
    for relay in members {
        let metrics = relay.get("/metrics").await.unwrap();
        let line = metrics.lines().find(|line| {
            line.starts_with("astro_relay_dead_letters_waiting") && line.contains("\"hook\"")
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        sum += value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    }
    sum
}

/// How many members say that dead letters wait.
async fn complaints(members: &[Relay]) -> usize {
    let mut count = 0;
    for relay in members {
        let reasons = status(relay).await.unwrap()["reasons"].to_string();
        count += usize::from(reasons.contains("dead letter"));
    }
    count
}

async fn post(relay: &Relay, path: &str, body: Value) -> Value {
    let url = format!("http://127.0.0.1:{}{path}", relay.port());
    let request = reqwest::Client::new().post(url).bearer_auth("admin").body(body.to_string());
    let answer = request.send().await.unwrap();
    let (code, text) = (answer.status(), answer.text().await.unwrap());
    assert!(code.is_success(), "{code}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// The destination rejects everything, and the member that drives the sink is killed in the midst of it: each
/// event is one dead letter, which the other member lists, retries, drops and replays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_and_replays_belong_to_all_members() {
    let snippet = include_str!("../../../deploy/cluster/nats-permissions.conf");
    let server = NatsServer::start(snippet).await;
    let small = Small::start().await;
    let user = "user = \"relay\"\npassword = \"change-me\"";
    let mut members = pair(&small, &server.url(), user);
    let admin = [("ASTRO_RELAY__HTTP__ADMIN_TOKEN", "admin")];
    for member in &mut members {
        member.start_in(&admin);
        member.ready().await;
    }
    // What is received is in two journals from now on: one member may be killed.
    until("both hold the channel", PATIENCE, async || {
        let shown = status(&members[0]).await?;
        let shown = shown.pointer("/pages/cluster/members")?.as_object()?.clone();
        let hold = |member: &Value| member["channels"] == 1 && member["stands"] == true;
        (shown.len() == 2 && shown.values().all(hold)).then_some(())
    })
    .await;
    small.load(0, 10).await;
    until("the events arrive", PATIENCE, async || {
        (small.receiver.accepted().len() == 10).then_some(())
    })
    .await;

    small.receiver.room(&room(0), Some(Answer::Status(422)));
    let first = usize::from(driver(&members[0]).await == "relay-2");
    let loading = small.load(10, 100);
    let killing = async {
        until("letters are written", PATIENCE, async || {
            (known(&members[1 - first]).await? >= 20).then_some(())
        })
        .await;
        members[first].kill().await;
    };
    tokio::join!(loading, killing);
    let other = 1 - first;
    knows(&members[other], 100).await;
    assert_eq!(set_aside(&members[other]).await, (10..110).collect());

    members[first].start_in(&admin);
    members[first].ready().await;
    let all = [&members[first], &members[other]];
    for member in all {
        knows(member, 100).await;
    }
    // It drives the sink, or the other does: one of them counts them, and says so.
    until("they are counted once", PATIENCE, async || {
        (counted(&members).await == 100 && complaints(&members).await == 1).then_some(())
    })
    .await;

    retries_and_drops(&small, &members).await;
    replays(&small, &members).await;
    for member in &members {
        assert!(!member.log().contains("ermissions"), "{}", member.log());
    }
}

/// Asked of the member that does not drive the sink.
async fn retries_and_drops(small: &Small, members: &[Relay; 2]) {
    let asked = usize::from(driver(&members[0]).await == "relay-1");
    small.receiver.room(&room(0), None);
    let list = command(&members[asked], &["dead-letters", "list", "--sink", "hook"]).await;
    let lowest = list.split_whitespace().next().unwrap();
    let dropped = command(&members[asked], &["dead-letters", "drop", lowest]).await;
    assert!(dropped.contains("1 dead letter deleted"), "{dropped}");
    let numbers: Vec<i64> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .skip(1)
        .take(5)
        .collect();
    let answer =
        post(&members[asked], "/api/dead-letters/retry", json!({ "numbers": numbers })).await;
    assert_eq!(answer["count"], 5);
    for member in members {
        knows(member, 94).await;
    }
    assert_eq!(small.receiver.accepted().len(), 15);
    let answer = post(&members[asked], "/api/dead-letters/retry", json!({ "sink": "hook" })).await;
    assert_eq!(answer["count"], 94);
    for member in members {
        knows(member, 0).await;
    }
    let accepted: BTreeSet<u64> = small.receiver.accepted().into_iter().collect();
    assert_eq!((accepted.len(), small.receiver.accepted().len()), (109, 109));
}

async fn replays(small: &Small, members: &[Relay; 2]) {
    let before = small.receiver.accepted().len();
    let asked = &members[usize::from(driver(&members[0]).await == "relay-1")];
    let args =
        ["replay", "--sink", "hook", "--from", "1h", "--topic", "channel.activities", "--wait"];
    let done = command(asked, &args).await;
    assert!(done.contains("110 for sink hook") && done.ends_with("done\n"), "{done}");
    let again = small.receiver.accepted().split_off(before);
    assert_eq!(again, (0..110).collect::<Vec<_>>());
    let body = json!({ "sink": "hook", "from": "1h", "topic": "channel.activities" });
    let preview =
        json!({ "sink": "hook", "from": "1h", "topic": "channel.activities", "preview": true });
    let preview = post(asked, "/api/replay", preview).await;
    assert_eq!(preview["preview"]["sent"]["channel.activities"], 110);
    post(asked, "/api/replay", body).await;
    until("they arrive once more", PATIENCE, async || {
        (small.receiver.accepted().len() == before + 220).then_some(())
    })
    .await;
}

/// Astro sends messages that are larger than what NATS takes: they come whole, as dead letters and replays too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_larger_than_a_message_of_nats_comes_whole() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let mut members = pair(&small, &server.url(), "");
    for member in &mut members {
        member.start();
        member.ready().await;
    }
    let text: String = ('a'..='z').cycle().take(3_000_000).collect();
    let large = json!({ "n": 7, "text": text });
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.sim.publish(TOPIC, &room(0), large.clone());
    for member in &members {
        knows(member, 1).await;
    }
    let list = command(&members[0], &["dead-letters", "list"]).await;
    assert_eq!(list.lines().count(), 1, "{list}");
    small.receiver.room(&room(0), None);
    command(&members[0], &["dead-letters", "retry"]).await;
    for member in &members {
        knows(member, 0).await;
    }
    small.sim.publish(TOPIC, &room(0), json!({ "n": 8 }));
    let done = command(
        &members[1],
        &["replay", "--sink", "hook", "--from", "1h", "--topic", TOPIC, "--wait"],
    );
    assert!(done.await.ends_with("done\n"));
    until("all of it arrives", PATIENCE, async || {
        (small.receiver.accepted().len() >= 4).then_some(())
    })
    .await;
    let accepted = small.receiver.received().into_iter().filter(|one| one.accepted);
    let bodies: Vec<Value> =
        accepted.filter_map(|one| serde_json::from_slice(&one.body).ok()).collect();
    assert_eq!(bodies.iter().filter(|body| **body == large).count(), 2);
    until("the pieces go with the letter", PATIENCE, async || {
        let stream = server.streams().await.get_stream("KV_astro_dead").await.ok()?;
        let pieces = stream.info_with_subjects("$KV.astro_dead.part.>").await.ok()?;
        pieces.try_collect::<Vec<_>>().await.ok()?.is_empty().then_some(())
    })
    .await;
}

/// Changes the configuration of a relay, for its next start or a reload.
fn reconfigure(relay: &Relay, change: impl FnOnce(&str) -> String) {
    let text = std::fs::read_to_string(relay.config()).unwrap();
    std::fs::write(relay.config(), change(&text)).unwrap();
}

/// At its next start it is alone.
pub fn is_no_member(relay: &Relay) {
    reconfigure(relay, |text| {
        let (before, section) = text.split_once("[cluster]").unwrap();
        format!("{before}[http]{}", section.split_once("[http]").unwrap().1)
    });
}

/// A relay that worked alone becomes a member: what it had set aside is the cluster's, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_a_relay_that_worked_alone_become_the_clusters() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let mut members = pair(&small, &server.url(), "");
    let whole = std::fs::read_to_string(members[0].config()).unwrap();
    is_no_member(&members[0]);
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    members[0].start();
    members[0].ready().await;
    small.load(0, 5).await;
    knows(&members[0], 5).await;
    members[0].stop().await;

    small.receiver.room(&room(0), None);
    reconfigure(&members[0], |_| whole);
    for member in &mut members {
        member.start();
    }
    for member in &members {
        knows(member, 5).await;
    }
    until("none is left in the journal", PATIENCE, async || {
        let store = Store::open_reader(&members[0].journal()).unwrap();
        store.dead_letters(None).unwrap().is_empty().then_some(())
    })
    .await;
    members[0].stop().await;
    members[0].start();
    knows(&members[0], 5).await;
    command(&members[1], &["dead-letters", "retry"]).await;
    for member in &members {
        knows(member, 0).await;
    }
    assert_eq!(small.receiver.accepted(), (0..5).collect::<Vec<_>>());
}

/// The cursor that the sink had while the relay was alone says nothing of what waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_sink_that_is_removed_from_a_member_the_clusters_dead_letters_are_named() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let url = server.url();
    // None of the relay's own events, which would be rejected too.
    let more = "topics = [\"channel.*\"]";
    let mut relay = small.member(&format!("url = {url:?}\nmember = \"a\""), more);
    let whole = std::fs::read_to_string(relay.config()).unwrap();
    is_no_member(&relay);
    relay.start();
    relay.ready().await;
    small.load(0, 5).await;
    arrived(&small, 5, &[&relay]).await;
    relay.stop().await;

    reconfigure(&relay, |_| whole);
    relay.start();
    relay.ready().await;
    small.load(5, 5).await;
    arrived(&small, 10, &[&relay]).await;
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.load(10, 2).await;
    knows(&relay, 2).await;
    reconfigure(&relay, |text| text.replace("[sinks.hook]", "[sinks.renamed]"));
    relay.signal("HUP").await;
    let is_named = |what: &str| {
        let log = relay.log();
        log.lines()
            .any(|line| line.contains("WARN") && line.contains("hook") && line.contains(what))
    };
    let named = until("the dead letters are named", PATIENCE * 2, async || {
        is_named("dead letters wait for a sink").then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, named).await.is_ok();
    assert!(in_time && !is_named("events wait for a sink"), "{}", relay.log());
}

/// The room of a sink's dead letters is one for all members. Where it is used up the sink waits, whoever drives it,
/// and nothing is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_waits_while_the_room_of_its_dead_letters_is_used_up() {
    const EVENTS: u64 = 100;
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let mut members = pair(&small, &server.url(), "");
    for member in &mut members {
        reconfigure(member, |text| {
            text.replace("min_free = ", "max_dead_letters = \"16KiB\"\nmin_free = ")
        });
        member.start();
        member.ready().await;
    }
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.load(0, EVENTS).await;
    let driver = usize::from(driver(&members[0]).await == "relay-2");
    says(&members[driver], "max_dead_letters").await;
    // So it is for the next driver.
    members[driver].stop().await;
    let other = &members[1 - driver];
    says(other, "max_dead_letters").await;
    let kept = known(other).await.unwrap();
    assert!(kept > 0 && kept < EVENTS, "{kept} dead letters");
    let mut dropped = 0;
    until("all is dealt with", PATIENCE, async || {
        let said = command(other, &["dead-letters", "drop", "--yes"]).await;
        dropped += said.split(' ').next()?.parse::<u64>().ok()?;
        (dropped >= EVENTS).then_some(())
    })
    .await;
    assert_eq!(dropped, EVENTS, "each was set aside, none was deleted");
    knows(other, 0).await;
    assert_eq!(small.receiver.accepted(), Vec::<u64>::new());
}

/// A letter that is accepted makes room for the event that waits for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_waits_for_room_goes_on_after_a_retry_of_its_dead_letters() {
    const EVENTS: u64 = 100;
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let [mut relay, _] = pair(&small, &server.url(), "");
    reconfigure(&relay, |text| {
        text.replace("min_free = ", "max_dead_letters = \"16KiB\"\nmin_free = ")
    });
    relay.start();
    relay.ready().await;
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.load(0, EVENTS).await;
    says(&relay, "max_dead_letters").await;
    small.receiver.room(&room(0), None);
    command(&relay, &["dead-letters", "retry"]).await;
    knows(&relay, 0).await;
    let arriving = until("all events arrive", PATIENCE * 2, async || {
        (small.receiver.accepted().len() as u64 >= EVENTS).then_some(())
    });
    let in_time = tokio::time::timeout(PATIENCE, arriving).await.is_ok();
    let mut accepted = small.receiver.accepted();
    assert!(in_time, "{accepted:?}\n{}", relay.log());
    accepted.sort_unstable();
    assert_eq!(accepted, (0..EVENTS).collect::<Vec<_>>(), "{}", relay.log());
}

/// The destination neither accepts nor rejects it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_dead_letter_that_is_not_accepted_holds_up_no_new_event() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let [mut relay, _] = pair(&small, &server.url(), "");
    relay.start();
    relay.ready().await;
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.load(0, 1).await;
    knows(&relay, 1).await;
    small.receiver.number(0, Answer::Status(503));
    small.receiver.room(&room(0), None);
    command(&relay, &["dead-letters", "retry"]).await;
    until("it is tried", PATIENCE, async || (small.receiver.numbers().len() > 1).then_some(()))
        .await;
    small.load(1, 5).await;
    until("the new events arrive", PATIENCE, async || {
        (small.receiver.accepted().len() == 5).then_some(())
    })
    .await;
    command(&relay, &["dead-letters", "drop", "--yes"]).await;
    knows(&relay, 0).await;
    until("nothing is wrong", PATIENCE, async || {
        let status = status(&relay).await?;
        (status["pages"]["sinks"]["hook"]["state"] == "up").then_some(())
    })
    .await;
}

/// A log that was made again gives its positions to other events: the letters of the first ones stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_not_replaced_by_that_of_another_event_at_its_position() {
    let server = NatsServer::start("").await;
    let small = Small::start().await;
    let [mut relay, _] = pair(&small, &server.url(), "");
    relay.start();
    relay.ready().await;
    small.receiver.room(&room(0), Some(Answer::Status(422)));
    small.load(0, 20).await;
    knows(&relay, 20).await;
    server.streams().await.delete_stream("astro_log").await.unwrap();
    small.load(20, 20).await;
    knows(&relay, 40).await;
    assert_eq!(set_aside(&relay).await, (0..40).collect());
    small.receiver.room(&room(0), None);
    command(&relay, &["dead-letters", "retry"]).await;
    knows(&relay, 0).await;
    let mut accepted = small.receiver.accepted();
    accepted.sort_unstable();
    assert_eq!(accepted, (0..40).collect::<Vec<_>>(), "{}", relay.log());
}

/// A way to a server that can be cut.
struct Way {
    port: u16,
    open: watch::Sender<bool>,
}

impl Way {
    #[expect(clippy::disallowed_methods, reason = "a test's own task")]
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", server)).await else {
                        return;
                    };
                    tokio::select! {
                        biased;
                        _ = is_open.wait_for(|open| !open) => {}
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { port, open }
    }
}

/// The driver is cut off while it works through a replay, and another member finishes that: what the first one
/// had still to write does not come when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_another_member_has_finished_is_not_brought_back() {
    let server = NatsServer::start("").await;
    let mut small = Small::start().await;
    // Time enough for an answer that comes after the cut.
    small.lease = "4s";
    let ways = [Way::to(server.port).await, Way::to(server.port).await];
    let mut members = [1, 2].map(|number| {
        let url = format!("nats://127.0.0.1:{}", ways[number - 1].port);
        let cluster = format!("url = {url:?}\nmember = \"relay-{number}\"");
        small.member(&cluster, "window = 1\nbackoff_max = \"1s\"")
    });
    for member in &mut members {
        member.start();
        member.ready().await;
    }
    small.load(0, 5).await;
    until("the events arrive", PATIENCE, async || {
        (small.receiver.accepted().len() == 5).then_some(())
    })
    .await;

    let first = usize::from(driver(&members[0]).await == "relay-2");
    let other = &members[1 - first];
    small.receiver.room(&room(0), Some(Answer::Late(Duration::from_secs(1))));
    command(other, &["replay", "--sink", "hook", "--from", "1h", "--topic", TOPIC]).await;
    let dead = server.streams().await.get_key_value("astro_dead").await.unwrap();
    let keys: Vec<String> = dead.keys().await.unwrap().try_collect().await.unwrap();
    let replay = keys.into_iter().find(|key| key.starts_with("replay.hook.")).unwrap();
    until("a piece is under way", PATIENCE, async || {
        (small.receiver.numbers().len() > 5).then_some(())
    })
    .await;
    ways[first].open.send_replace(false);
    let done = until("the other member finishes the replay", PATIENCE, async || {
        let entry = dead.entry(replay.as_str()).await.ok()??;
        (entry.operation == Operation::Delete).then_some(entry.revision)
    })
    .await;

    ways[first].open.send_replace(true);
    let leases = server.streams().await.get_key_value("astro_lease").await.unwrap();
    until("the first member is back", PATIENCE, async || {
        leases.get(format!("member.relay-{}", first + 1)).await.ok()?
    })
    .await;
    // What it sent before that is stored by the time that this has come through the log.
    small.receiver.room(&room(0), None);
    small.load(5, 1).await;
    until("an event arrives", PATIENCE, async || {
        small.receiver.accepted().contains(&5).then_some(())
    })
    .await;
    let entry = dead.entry(replay.as_str()).await.unwrap().unwrap();
    assert_eq!((entry.operation, entry.revision), (Operation::Delete, done));
}
