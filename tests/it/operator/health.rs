//! Health: what is not received or not delivered as configured is said at once, with why and what to do.

use std::fs;

use astro_sim::{End, Reception};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{PATIENCE, ROOM, Running, channel};
use crate::support::{
    daemon::PROGRAM,
    receiver::{Answer, Receiver},
    redis_server::{Durability, Listener, RedisServer},
    wait::until,
};

fn shop(receiver: &Receiver, more: &str) -> String {
    format!(
        "[sinks.shop]\ntype = \"webhook\"\nurl = {:?}\nallow_addresses = [\"127.0.0.0/8\"]\n{more}",
        receiver.url()
    )
}

/// Waits until health has a reason of this kind; answers it.
async fn reason(relay: &Running, kind: &str) -> Value {
    let found = |status: &Value| {
        let reasons = status["health"]["reasons"].as_array().unwrap();
        reasons.iter().find(|reason| reason["kind"] == kind).cloned()
    };
    let status = relay.until(kind, |status| found(status).is_some()).await;
    let reason = found(&status).unwrap();
    for key in ["what", "link"] {
        assert_ne!(reason[key], "", "{key}: {reason}");
    }
    assert!(reason["since"].as_u64().unwrap() > 1_700_000_000_000, "{reason}");
    reason
}

async fn is(relay: &Running, state: &str) {
    relay.until(state, |status| status["health"]["state"] == state).await;
    let answer = relay.get("/readyz").await;
    let code = if state == "working" { 200 } else { 503 };
    assert_eq!(answer.status(), code);
    assert_eq!(answer.text().await.unwrap().lines().next(), Some(state));
}

/// The only connection to Astro.
fn link(status: &Value) -> &Value {
    status["pages"]["connections"].as_object().unwrap().values().next().unwrap()
}

async fn exit_code(url: &str, more: &[&str]) -> Option<i32> {
    let args = [&["status", "--url", url], more].concat();
    Command::new(PROGRAM).args(args).output().await.unwrap().status.code()
}

/// The exit codes of `status` and of `status --check`.
async fn exit_codes(relay: &Running) -> [Option<i32>; 2] {
    let url = relay.url("");
    [exit_code(&url, &[]).await, exit_code(&url, &["--check"]).await]
}

fn tip(amount: u64) -> Value {
    json!({ "donation": { "amount": amount } })
}

#[tokio::test]
async fn a_condition_that_fails_degrades_and_is_shown_with_an_example() {
    let receiver = Receiver::start();
    let condition = "when = \"data.donaton.amount >= 5\"\n";
    let file = format!("{}{}", channel(&["channel.tips"]), shop(&receiver, condition));
    let relay = Running::start(&file).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    is(&relay, "working").await;
    assert_eq!(exit_codes(&relay).await, [Some(0), Some(0)]);
    relay.sim.publish("channel.tips", ROOM, tip(7));
    let reason = reason(&relay, "condition_fails").await;
    let what = reason["what"].as_str().unwrap();
    assert!(
        what.starts_with("sink shop: its condition (`when`) failed on 1 event, on channel.tips: ")
    );
    assert_eq!(reason["about"], json!({ "sink": "shop" }));
    assert!(reason["do"].as_str().unwrap().contains("sinks.shop.when"), "{reason}");
    is(&relay, "degraded").await;
    assert_eq!(exit_codes(&relay).await, [Some(0), Some(2)]);
    // Corrected, it is over.
    relay.rewrite(&file.replace("donaton", "donation"));
    assert_eq!(relay.reload().await.0, 200);
    is(&relay, "working").await;
}

#[tokio::test]
async fn a_condition_that_lets_nothing_through_is_a_notice_and_no_more() {
    let receiver = Receiver::start();
    let condition = "when = \"data.donation.amount >= 1000\"\n";
    let relay =
        Running::start(&format!("{}{}", channel(&["channel.tips"]), shop(&receiver, condition)))
            .await;
    relay.subscribed(1).await;
    for amount in 0..25 {
        relay.sim.publish("channel.tips", ROOM, tip(amount));
    }
    let reason = reason(&relay, "nothing_matched").await;
    assert_eq!(reason["state"], "working");
    is(&relay, "working").await;
    relay.sim.publish("channel.tips", ROOM, tip(5000));
    relay
        .until("it has matched", |status| !status["health"].to_string().contains("nothing_matched"))
        .await;
}

#[tokio::test]
async fn dead_letters_degrade_until_they_are_gone() {
    let receiver = Receiver::start();
    receiver.script([Answer::Status(400)]);
    let relay =
        Running::start(&format!("{}{}", channel(&["channel.tips"]), shop(&receiver, ""))).await;
    relay.subscribed(1).await;
    relay.sim.publish("channel.tips", ROOM, tip(1));
    let reason = reason(&relay, "dead_letters").await;
    let what = reason["what"].as_str().unwrap();
    assert!(what.starts_with("sink shop has 1 dead letter, the latest: "), "{what}");
    assert!(what.contains("400"), "{what}");
    assert_eq!(reason["link"], "/#dead-letters");
    is(&relay, "degraded").await;

    // A large one is not shown whole.
    receiver.script([Answer::Status(413)]);
    let text = "x".repeat(100_000);
    relay.sim.publish("channel.tips", ROOM, json!({ "text": text }));
    let list = async || relay.get("/api/dead-letters").await.json::<Value>().await.unwrap();
    let letters = until("both are listed", PATIENCE, async || {
        let letters = list().await;
        (letters.as_array().unwrap().len() == 2).then_some(letters)
    })
    .await;
    let large = letters[0]["event"].as_str().unwrap();
    assert!(large.contains("dead-letters show 2") && large.len() < 100, "{large}");
    assert_eq!(letters[1]["event"]["message"]["topic"], "channel.tips");
    relay.post("/api/dead-letters/drop", r#"{"sink":"shop"}"#).await;
    is(&relay, "working").await;
}

#[tokio::test]
async fn events_lost_to_a_sink_that_is_away_degrade_while_it_is_away() {
    let sink = "[sinks.shop]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:9/\"\n\
                allow_addresses = [\"127.0.0.0/8\"]\n";
    let small = "journal.max_size = \"64KiB\"\njournal.memory = \"64KiB\"\n";
    let relay = Running::start(&format!("{small}{}{sink}", channel(&["channel.tips"]))).await;
    relay.subscribed(1).await;
    relay.sim.publish("channel.tips", ROOM, tip(1));
    relay.sink_is("shop", "down").await;
    // Texts that the journal cannot pack, and more of them than the sink holds itself.
    for amount in 0..4000 {
        let message: String = (0..1000).map(|_| fastrand::alphanumeric()).collect();
        let tip = json!({ "donation": { "amount": amount, "message": message } });
        relay.sim.publish("channel.tips", ROOM, tip);
    }
    let reason = reason(&relay, "events_lost").await;
    assert_eq!(reason["about"], json!({ "sink": "shop" }));
    let what = reason["what"].as_str().unwrap();
    assert!(what.ends_with("lost, the journal no longer holds them"), "{what}");
    let status = relay.status().await;
    let shop = &status["pages"]["sinks"]["shop"];
    assert_eq!(shop["state"], "down");
    assert!(shop["lost"].as_u64() > Some(0), "{shop}");
}

#[tokio::test]
async fn what_is_published_to_nobody_degrades() {
    let redis = RedisServer::start(Durability::Memory).await;
    let sink =
        format!("[sinks.bus]\ntype = \"redis\"\nurl = {:?}\nmode = \"pubsub\"\n", redis.url());
    let relay = Running::start(&format!("{}{sink}", channel(&["channel.tips"]))).await;
    relay.subscribed(1).await;
    relay.sink_is("bus", "up").await;
    relay.sim.publish("channel.tips", ROOM, tip(1));
    let reason = reason(&relay, "no_receivers").await;
    assert_eq!(reason["what"], "sink bus: nobody is subscribed to the last 1 event");
    is(&relay, "degraded").await;
    let listener = Listener::start(&redis, "*").await;
    listener.settle(&redis).await;
    relay.sim.publish("channel.tips", ROOM, tip(2));
    is(&relay, "working").await;
}

#[tokio::test]
async fn a_rejected_configuration_degrades_until_a_good_one_is_loaded() {
    let receiver = Receiver::start();
    let file = format!("{}{}", channel(&["channel.tips"]), shop(&receiver, ""));
    let relay = Running::start(&file).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    relay.rewrite(&file.replace("allow_addresses", "alow_addresses"));
    assert_eq!(relay.reload().await.0, 422);
    let reason = reason(&relay, "configuration_rejected").await;
    assert!(reason["what"].as_str().unwrap().contains("alow_addresses"), "{reason}");
    is(&relay, "degraded").await;
    fs::write(relay.file(), relay.whole(&file)).unwrap();
    assert_eq!(relay.reload().await.0, 200);
    is(&relay, "working").await;
}

#[tokio::test]
async fn a_link_that_is_down_says_since_when_and_when_it_is_tried_again() {
    let receiver = Receiver::start();
    let relay =
        Running::start(&format!("{}{}", channel(&["channel.tips"]), shop(&receiver, ""))).await;
    relay.subscribed(1).await;
    relay.sink_is("shop", "up").await;
    relay.sim.faults(|faults| faults.every = Reception::Refuse { status: 503, retry_after: None });
    relay.sim.end(None, End::Reset);
    let status = relay
        .until("it waits, and what is missed is measured", |status| {
            let reason = &status["health"]["reasons"][0];
            reason["kind"] == "connection"
                && reason["next_attempt"].is_u64()
                && status["pages"]["gaps_running"][0]["channel"] == "main"
        })
        .await;
    assert_eq!(status["health"]["state"], "not working");
    assert_eq!(exit_codes(&relay).await, [Some(1), Some(1)]);
    // It is alive all the same: a new start would repair nothing.
    assert_eq!(exit_code(&relay.url(""), &["--alive"]).await, Some(0));
    let first = status["health"]["reasons"][0]["since"].as_u64();
    // The next attempt does not restart it.
    let attempts = |status: &Value| link(status)["attempts"].as_u64();
    let before = attempts(&status);
    let status = relay.until("it was tried again", |status| attempts(status) > before).await;
    assert_eq!(status["health"]["reasons"][0]["since"].as_u64(), first);
    relay.sim.faults(|faults| faults.every = Reception::default());
    let status = relay.until("it works", |status| status["health"]["state"] == "working").await;
    let link = link(&status);
    assert_eq!((&link["attempts"], &link["next_attempt"]), (&json!(0), &Value::Null), "{link}");
    assert!(link["last_error_at"].is_u64(), "{link}");
    assert_eq!(status["pages"]["gaps_running"], json!([]));
}

#[tokio::test]
async fn only_a_relay_that_answers_is_alive() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(exit_code(&format!("http://{nobody}"), &["--alive"]).await, Some(69));
    // Another server that says yes to everything is no relay.
    let other = Receiver::start();
    assert_eq!(exit_code(&other.url(), &["--alive"]).await, Some(69));
}
