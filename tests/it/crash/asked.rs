//! A running relay, asked by its commands; killed while it remembers; overtaken by its own limits.

use std::process::Stdio;

use astro_relay::journal::store::Store;
use astro_sim::{Options, Sim};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::{PATIENCE, ROOM, TOPIC};
use crate::support::{
    daemon::{PROGRAM, Relay, run},
    journal::say,
    receiver::{Answer, Receiver},
    wait::until,
};

/// A simulated Astro, a receiver of webhooks, and the relay between them.
struct Place {
    sim: Sim,
    receiver: Receiver,
    relay: Relay,
}

impl Place {
    async fn start(limits: &str) -> Self {
        let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
        let receiver = Receiver::start();
        let sinks = format!(
            "[sinks.hook]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.1\"]\n\
             topics = [{TOPIC:?}]\npayload = \"data\"\nbackoff_max = \"500ms\"\n",
            receiver.url()
        );
        let (url, api_url) = (sim.url(), sim.api_url());
        let mut relay = Relay::with_journal(&url, &api_url, TOPIC, ROOM, limits, &sinks);
        relay.start();
        relay.ready().await;
        Self { sim, receiver, relay }
    }

    /// Publishes messages with these numbers.
    fn publish(&self, numbers: impl IntoIterator<Item = u64>) {
        for n in numbers {
            self.sim.publish(TOPIC, ROOM, format!(r#"{{"n":{n}}}"#));
        }
    }

    /// Waits until so many requests have come.
    async fn received(&self, count: usize) {
        until("the requests arrive", PATIENCE, async || {
            (self.receiver.received().len() >= count).then_some(())
        })
        .await;
    }

    /// The lines that a command says about this relay's journal.
    async fn says(&self, args: &[&str]) -> Vec<String> {
        let output = run(args, &self.relay.journal()).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Waits until nothing waits for the sink, by what the disk says; answers `journal status`.
    async fn saved(&self) -> Vec<String> {
        until("the position is saved", PATIENCE, async || {
            let status = self.says(&["journal", "status"]).await;
            let saved =
                |line: &String| line.starts_with("sink hook") && line.contains("; nothing queued");
            status.iter().any(saved).then_some(status)
        })
        .await
    }

    /// Waits until `dead-letters list` has so many lines.
    async fn dead_letters(&self, count: usize) -> Vec<String> {
        until("so many dead letters are listed", PATIENCE, async || {
            let lines = self.says(&["dead-letters", "list"]).await;
            (lines.len() == count).then_some(lines)
        })
        .await
    }
}

#[tokio::test]
async fn what_was_refused_is_listed_shown_tried_again_and_dropped() {
    let mut place = Place::start("").await;
    let answers = (0..8).map(|n| Answer::Status(if n == 3 || n == 5 { 422 } else { 200 }));
    place.receiver.script(answers);
    place.publish(0..8);
    place.received(8).await;
    let listed = place.dead_letters(2).await;
    assert!(listed.iter().all(|line| line.contains("hook") && line.contains("422")), "{listed:?}");
    let shown = place.says(&["dead-letters", "show"]).await;
    let shown: Vec<Value> = shown.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |n: u64| {
        let letter = shown.iter().find(|letter| letter["event"]["message"]["data"]["n"] == n);
        letter.expect("it was refused")["number"].to_string()
    };
    place.says(&["dead-letters", "retry", &number(3)]).await;
    place.received(9).await;
    let left = place.dead_letters(1).await;
    place.says(&["dead-letters", "drop", &number(5)]).await;
    place.dead_letters(0).await;
    assert!(left[0].contains("422"), "{left:?}");
    assert_eq!(place.receiver.accepted(), [0, 1, 2, 4, 6, 7, 3]);
    // A repeat is known by its id.
    let requests = place.receiver.received();
    assert_eq!(requests[3].header("webhook-id"), requests[8].header("webhook-id"));
    place.relay.stop().await;
}

#[tokio::test]
async fn what_is_replayed_keeps_its_id_and_is_marked() {
    let mut place = Place::start("").await;
    place.publish(0..6);
    place.received(6).await;
    place.says(&["replay", "--sink", "hook", "--from", "1h", "--topic", "channel.*"]).await;
    place.received(12).await;
    // And while it is stopped.
    place.relay.stop().await;
    place.says(&["replay", "--sink", "hook", "--from", "1h", "--topic", "channel.tips"]).await;
    place.says(&["replay", "--sink", "hook", "--from", "1h"]).await;
    place.relay.start();
    place.received(18).await;
    place.relay.ready().await;
    // What is new is not marked.
    place.publish([6]);
    place.received(19).await;
    let requests = place.receiver.received();
    let told: Vec<_> = requests
        .iter()
        .map(|request| (request.n(), request.header("webhook-id"), request.header("astro-origin")))
        .collect();
    for (n, (first, rest)) in
        told[..6].iter().zip(told[6..12].iter().zip(&told[12..18])).enumerate()
    {
        let n = u64::try_from(n).unwrap();
        assert_eq!(*first, (n, first.1, "live"));
        assert_eq!((*rest.0, *rest.1), ((n, first.1, "replayed"), (n, first.1, "replayed")));
    }
    assert_eq!((told[18].0, told[18].2), (6, "live"));
    place.relay.stop().await;
}

#[tokio::test]
async fn the_journal_is_looked_into_while_it_grows() {
    let mut place = Place::start("").await;
    place.publish(0..3);
    place.received(3).await;
    let mut follower = Command::new(PROGRAM)
        .args([
            "journal", "export", "--last", "20", "--follow", "--when", "data.n in [2, 4]", "--dir",
        ])
        .arg(place.relay.journal())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("a line");
        let value: Value = serde_json::from_str(&line.unwrap().expect("it goes on")).unwrap();
        value["message"]["data"]["n"].as_u64()
    };
    assert_eq!(next().await, Some(2));
    place.publish(3..5);
    assert_eq!(next().await, Some(4));
    follower.kill().await.unwrap();
    let status = place.saved().await;
    assert!(status[0].starts_with("events 1 to "), "{status:?}");
    let exported = place.says(&["journal", "export", "--topic", TOPIC]).await;
    let numbers = exported.iter().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["message"]["data"]["n"].as_u64().unwrap()
    });
    assert!(numbers.eq(0..5), "{exported:?}");
    place.relay.stop().await;
}

#[tokio::test]
async fn what_was_heard_before_a_kill_is_not_heard_again_after_it() {
    let mut place = Place::start("").await;
    let message = |n: u64| {
        format!(
            r#"{{"id":"01JB8Z3G5QK9M6T2W4Y7V0X{n:03}","ts":"2026-01-02T03:04:05Z","type":"message","topic":{TOPIC:?},"room":{ROOM:?},"data":{{"n":{n}}}}}"#
        )
    };
    for n in 0..20 {
        place.sim.publish_raw(&message(n)).unwrap();
    }
    place.received(20).await;
    until("all of it is in the journal", PATIENCE, async || {
        (super::in_journal(&place.relay.journal()).len() == 20).then_some(())
    })
    .await;
    // Otherwise the kill might repeat some: only the gateway's twins are to be seen here.
    place.saved().await;
    place.relay.kill().await;
    place.relay.start();
    place.relay.ready().await;
    for n in 10..30 {
        place.sim.publish_raw(&message(n)).unwrap();
    }
    place.received(30).await;
    until("the last is accepted", PATIENCE, async || {
        place.receiver.newest().contains(&29).then_some(())
    })
    .await;
    place.relay.stop().await;
    assert_eq!(place.receiver.accepted(), (0..30).collect::<Vec<_>>());
    let held = super::in_journal(&place.relay.journal());
    assert_eq!(held, (0..30).collect::<Vec<_>>(), "each once");
}

/// The journal's size overtakes a sink that is away: what it will never get is told, to the last one,
/// in the log, in the metrics, and as an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_overtaken_is_told_how_much_it_has_lost() {
    const TOTAL: u64 = 6_000;
    const OTHERS: u64 = 64 * 1024;
    let mut place = Place::start("max_size = \"2MiB\"\nmemory = \"256KiB\"").await;
    place.receiver.kill();
    for n in 0..TOTAL {
        // What no compression makes smaller.
        let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(900).collect();
        place.sim.publish(TOPIC, ROOM, format!(r#"{{"n":{n},"noise":{noise:?}}}"#));
    }
    until("the journal has let go of some", PATIENCE, async || {
        let store = Store::open_reader(&place.relay.journal()).unwrap();
        let (first, last) = store.bounds().unwrap()?;
        // The limit is one of events; what else is in the file has limits of its own.
        let limit = (2 << 20) + OTHERS;
        (first > 1 && last >= TOTAL && store.size().unwrap() <= limit).then_some(())
    })
    .await;
    let bytes = |name: &str| std::fs::metadata(place.relay.journal().join(name)).unwrap().len();
    let (file, log) = (bytes("journal.db"), bytes("journal.db-wal"));
    // A quarter more for the log, and what came between two looks.
    assert!(file + log <= 5 << 20, "{file} and {log} bytes with 2 MiB as the limit");
    place.receiver.restart();
    until("the rest arrives", PATIENCE, async || {
        place.receiver.newest().contains(&(TOTAL - 1)).then_some(())
    })
    .await;
    let arrived = place.receiver.accepted();
    let lost = TOTAL - u64::try_from(arrived.len()).unwrap();
    assert!(lost > 0, "the journal was large enough");
    // What it had in hand was in memory all the time, and perhaps what it read at an attempt in between.
    assert_eq!((arrived[0], *arrived.last().unwrap()), (0, TOTAL - 1));
    assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");
    let metrics = place.relay.get("/metrics").await.expect("it runs");
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("astro_relay_lost_total{sink=\"hook\"} "))
        .expect("it is counted");
    let counted: u64 = counted.parse().unwrap();
    // The relay has some events of its own, which were among them.
    assert!((lost..lost + 20).contains(&counted), "{counted} counted, {lost} lost");
    let lost = counted;
    let told = |log: &str| {
        let lines = log.lines().filter(|line| line.contains("ERROR"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let errors = told(&place.relay.log());
    // One whenever the journal has removed some.
    let mut sum = 0;
    for error in &errors {
        for word in ["events were lost before the sink could get them", "hook"] {
            assert!(error.contains(word), "{word}: {errors:#?}");
        }
        let (_, count) = error.rsplit_once("count").unwrap();
        let digits = count.chars().skip_while(|c| !c.is_ascii_digit());
        let digits: String = digits.take_while(char::is_ascii_digit).collect();
        sum += digits.parse::<u64>().unwrap();
    }
    assert_eq!(sum, lost, "{errors:#?}");
    // One for each hole.
    until("the gaps are in the journal", PATIENCE, async || {
        let mut sum = 0;
        for gap in place.says(&["journal", "export", "--topic", "relay.gap"]).await {
            let gap: Value = serde_json::from_str(&gap).unwrap();
            let data = &gap["message"]["data"];
            assert_eq!(data["sink"], "hook", "{gap}");
            sum += data["count"].as_u64().unwrap();
        }
        assert!(sum <= lost, "{sum} reported, {lost} lost");
        (sum == lost).then_some(())
    })
    .await;
    say(&format!("{lost} of {TOTAL} overtaken, and told"));
    place.relay.stop().await;
}
